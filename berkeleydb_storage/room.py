"""Whether the disk has room for what is about to be written.

Berkeley DB survives a full disk, but a commit that meets one half way is applied and not durable. So it is refused
before it begins, while there is still room for the log and the pages of those under way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from berkeleydb_storage.errors import DiskFullError

RESERVE = 32 << 20
"""Bytes that stay free: two log files."""
RESERVE_SHARE = 10
"""On a small file system the reserve is at most this fraction (1/10) of it."""
AMPLIFICATION = 3
"""Bytes that a byte of records may take: in the log, in the table, and in pages that were split."""
STALE_AFTER = 1.0
"""Seconds after which the free space is measured again."""


class Room:
    """The free space around `path`, measured at most once a second unless it gets short. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Measure nothing yet."""
        self._path = path
        self._credit = 0
        self._measured = float("-inf")
        self.relief: Callable[[int], bool] | None = None
        """Called where there is too little room, with the bytes that are missing; returns whether it made any. Set
        before the storage is used."""

    def need(self, size: int) -> None:
        """Make sure that `size` bytes of records can be written.

        Raises:
            DiskFullError: they cannot; the numbers are in the message.
        """
        wanted = size * AMPLIFICATION
        now = time.monotonic()
        if self._credit < wanted or now - self._measured > STALE_AFTER:
            free, reserve = self._measure(now)
            if self._credit < wanted and self.relief is not None and self.relief(wanted - self._credit):
                free, reserve = self._measure(now)
            if self._credit < wanted:
                raise DiskFullError(
                    f"the disk of {self._path} has {free:,} bytes free, and {wanted + reserve:,} are needed to commit "
                    f"{size:,} bytes safely: free some; nothing was lost, and the storage goes on when there is room"
                )
        self._credit -= wanted

    def _measure(self, now: float) -> tuple[int, int]:
        """Look how much room there is; return the bytes that are free, and those that are to stay so."""
        status = os.statvfs(self._path)
        free = status.f_bavail * status.f_frsize
        reserve = min(RESERVE, status.f_blocks * status.f_frsize // RESERVE_SHARE)
        self._credit, self._measured = free - reserve, now
        return free, reserve
