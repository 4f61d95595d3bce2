"""Where a storage is archived continuously, and how. Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.errors import OptionError

QUEUE = 1 << 30
"""Bytes of log that are kept while the store cannot be reached, by default."""


@dataclass(frozen=True)
class Archive:
    """A policy: what is committed is copied to a store, every second; any commit can be restored from there.

    A background thread does it. Commits do not wait for it. What fails is logged, and tried again until it works; log
    files are kept meanwhile, up to `queue` bytes. Beyond that, everything is copied again when the store is back.
    """

    to: str | os.PathLike[str]
    """A directory that exists, or a URL that fsspec knows, such as ``abfs://container/folder``. Several storages may
    share it."""
    interval: float = 1.0
    """Seconds of commits that may be missing when the machine is lost: what was committed is looked at so often, and a
    little earlier, by what the store takes. Each look takes two requests of the store, if something was."""
    queue: int = QUEUE
    """Bytes of log that are kept beside those that recovery needs, while they cannot be copied."""
    keep: Keep | int | None = None
    """What stays when it gets older; a number is that of the newest copies of everything. None: all."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What fsspec's file system takes, such as credentials; what is not given it finds by itself."""
    timeout: float = 60.0
    """Seconds that a request of the store may take."""
    closing: float = 5.0
    """Seconds that closing the storage waits for the last commits to be copied; after that, they are when it is opened
    again."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: a number is not possible.
        """
        for name, least in (("interval", 0.01), ("timeout", 0.01), ("closing", 0.0)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= least):
                raise OptionError(f"archive: {name} is a number of seconds, at least {least:g}, not {value!r}")
        if type(self.queue) is not int or self.queue < 0:
            raise OptionError(f"archive: queue is a number of bytes, not {self.queue!r}")
        if not isinstance(self.to, (str, os.PathLike)) or not os.fspath(self.to):
            raise OptionError(f"archive: to is a directory or a URL, not {self.to!r}")
        if self.keep is not None:
            object.__setattr__(self, "keep", Keep.of(self.keep))


@dataclass(frozen=True)
class Archived:
    """How far an archive is."""

    url: str
    """Where it is."""
    tid: int | None
    """The newest transaction that is in it; None: not known, as long as nothing was copied since the opening."""
    time: float | None
    """Every commit before that time, in seconds since the epoch, is in it; None as above."""
    behind_bytes: int | None
    """Of log, that were not in it at the last look; None: there is nothing to continue, until everything is copied."""
    behind_seconds: float
    """Age of the oldest commit that is not in it, at most, as of the last look, an interval ago; 0: all are."""
    shipped_bytes: int
    """Of log, since the storage was opened."""
    pieces: int
    """In which they came."""
    bases: int
    """How often everything was copied since the storage was opened."""
    copying: int | None
    """Bytes that were copied so far, while everything is; None: it is not."""
    gaps: int
    """How often the log was lost before it was copied, since the storage was opened."""
    failing: str
    """Why it does not work at present; empty if it does."""
