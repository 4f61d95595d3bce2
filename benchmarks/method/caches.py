"""Drops the system's cache of files, so that what is read next comes from the disk; and tells whether it is gone.

What stays: pages that somebody has mapped (LMDB, while it is open), the directory entries and the inodes, and whatever
the disk and the machine below keep: of a virtual machine, that may be all. So a load that is called cold says only
that this system's cache was empty.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.method.usage import files

PIECE = 256 << 20
"""Bytes that are looked at together; a multiple of every size of a page."""
READ, SHARED = 1, 1
"""PROT_READ and MAP_SHARED."""


def drop(path: str | os.PathLike[str]) -> bool:
    """Bring the files of a storage to the disk, and drop what the system keeps of them in memory.

    Close the storage before: what it has mapped stays.

    Args:
        path: a file or a directory; with it goes what lies beside it under its name and an ending.

    Returns:
        Whether nothing of them is in the system's cache now.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    found = files(path)
    for file in found:
        _drop(file)
    return cached(path) == 0


def settle(directory: Path) -> None:
    """Bring all files below a directory to the disk, and that others were removed there.

    Else whoever works next waits for what somebody else has left to the system: a sync is for more than its own file.
    """
    for path in (directory, *directory.rglob("*")):
        if path.is_file() or path.is_dir():
            with suppress(FileNotFoundError):  # of a server, which removes it
                _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cached(path: str | os.PathLike[str]) -> int:
    """Return the bytes of the files of a storage that the system keeps in memory; -1 where it does not tell."""
    if sys.platform != "linux":
        return -1
    return sum(_resident(file) for file in files(path)) * mmap.PAGESIZE


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not written yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _resident(file: Path) -> int:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return sum(_pages(descriptor, offset, min(PIECE, size - offset)) for offset in range(0, size, PIECE))
    finally:
        os.close(descriptor)


def _pages(descriptor: int, offset: int, size: int) -> int:
    """Return how many pages of a part of a file are in memory."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    given = [None, ctypes.c_size_t(size), READ, SHARED, descriptor, ctypes.c_long(offset)]
    address = library.mmap(*given)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        there = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        if library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), there):
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(each & 1 for each in bytes(there))
    finally:
        library.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
