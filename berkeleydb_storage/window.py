"""Reads a large file here and there: its bytes are in memory by the window, not by the file."""

from __future__ import annotations

import os
from pathlib import Path

from berkeleydb_storage.errors import MigrationError

WINDOW = 16 << 10
"""Bytes that are read at a time: more would cost where what is asked for next is not in them."""


class Window:
    """What was read last of an open file. For one thread."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Read nothing yet; `path` is for messages."""
        self.path = path
        self._descriptor = descriptor
        self._bytes = b""
        self._start = 0

    def at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, which must lie within the file.

        Raises:
            MigrationError: they do not, any more.
            OSError: they cannot be read.
        """
        start = offset - self._start
        if start < 0 or start + length > len(self._bytes):
            self._bytes = os.pread(self._descriptor, max(length, WINDOW), offset)
            self._start, start = offset, 0
            if len(self._bytes) < length:
                raise MigrationError(f"{self.path} was cut off while it was read")
        return self._bytes[start : start + length]
