"""When a storage is backed up by itself, and where to. Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.backup.stores import is_url
from berkeleydb_storage.errors import OptionError


@dataclass(frozen=True)
class Every:
    """A policy: a backup every so many seconds, if something was committed since the last one; and the older ones go.

    The first copies everything, later ones what is new. A background thread makes them, the first when the newest that
    is there has that age: opening a storage makes none by itself. What fails is logged, and tried again after
    `seconds`, or 5 minutes if that is less.
    """

    seconds: float
    """From one to the next."""
    to: str | os.PathLike[str]
    """An existing directory, on another disk if possible, or a URL that fsspec knows. Several storages may share it."""
    keep: int | Keep = 10
    """How many of this storage stay, the newest; or which, as `Keep` says. Others are removed after one was made."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What fsspec's file system takes for a URL, such as credentials; what is not given it finds by itself."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense, and make a path absolute.

        Raises:
            OptionError: a number is not positive.
        """
        finite = isinstance(self.seconds, (int, float)) and math.isfinite(self.seconds)
        if not (finite and self.seconds > 0):
            raise OptionError(f"backup: seconds is a positive number, not {self.seconds!r}")
        object.__setattr__(self, "keep", Keep.of(self.keep))
        object.__setattr__(self, "to", self.to if is_url(self.to) else Path(self.to).absolute())

    @property
    def kept(self) -> Keep:
        """What stays."""
        return Keep.of(self.keep)
