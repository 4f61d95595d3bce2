"""When a storage is backed up by itself, and where to. Pure."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from berkeleydb_storage.errors import OptionError


@dataclass(frozen=True)
class Every:
    """A policy: a backup every so many seconds, if something was committed since the last one; and the older ones go.

    A background thread makes them, the first when the newest that is there has that age: opening a storage makes none
    by itself. What fails is logged, and tried again after `seconds`, or 5 minutes if that is less.
    """

    seconds: float
    """From one to the next. Each copies the whole storage."""
    to: str | os.PathLike[str]
    """An existing directory, on another disk if possible. Several storages may share it."""
    keep: int = 10
    """How many of this storage stay: the newest. Others are removed after one was made, never before."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense, and make the path absolute.

        Raises:
            OptionError: a number is not positive.
        """
        finite = isinstance(self.seconds, (int, float)) and math.isfinite(self.seconds)
        if not (finite and self.seconds > 0):
            raise OptionError(f"backup: seconds is a positive number, not {self.seconds!r}")
        if type(self.keep) is not int or self.keep < 1:
            raise OptionError(f"backup: keep is a number of backups, at least 1, not {self.keep!r}")
        object.__setattr__(self, "to", Path(self.to).absolute())
