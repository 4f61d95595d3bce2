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
    """Seconds from one look at what was committed to the next: so much may be missing when the machine is lost. Each
    takes two requests of the store, if something was."""
    queue: int = QUEUE
    """Bytes of log that are kept beside those that recovery needs, while they cannot be copied."""
    keep: Keep | int | None = None
    """What stays when it gets older; a number is that of the newest copies of everything. None: all."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What fsspec's file system takes, such as credentials; what is not given it finds by itself."""
    timeout: float = 60.0
    """Seconds that a request of the store may take."""
    closing: float = 10.0
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
