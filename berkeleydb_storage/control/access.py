"""A `Source` of the storage in a directory, whoever has it open: this process, for as long as it takes, or another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from berkeleydb_storage.backup.source import Source
from berkeleydb_storage.control.asking import TIMEOUT, ControlSource
from berkeleydb_storage.directory import CREATING, Directory
from berkeleydb_storage.errors import OwnerGone, StorageInUse, StorageNotFound
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.options import DEFAULT_CACHE
from berkeleydb_storage.storage import BerkeleyDBStorage

PAUSE = 0.05
"""Seconds between two attempts, while an owner is opening or closing the storage."""
WAIT = 10.0
"""Default seconds that an owner may take for that."""


@contextmanager
def open_source(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    cachesize: int = DEFAULT_CACHE,
    wait: float = WAIT,
    timeout: float = TIMEOUT,
) -> Iterator[Source]:
    """Give a source of the storage at `path`: opened here until the block is left, or asked from who has it open.

    Args:
        path: the directory of a storage.
        key: to open it with here, if it is encrypted; who has it open has the key.
        cachesize: bytes of memory for pages, where it is opened here.
        wait: seconds to wait for a process that is opening or closing it; default 10.
        timeout: of `ControlSource`.

    Raises:
        StorageNotFound: there is no storage.
        StorageInUse: another process has it, and does not answer.
        AccessDenied: another process has it, of another user.
        BerkeleyDBStorageError: it cannot be opened, as ``BerkeleyDBStorage`` says.
    """
    found = _find(path, key, cachesize, time.monotonic() + wait, timeout)
    if isinstance(found, ControlSource):
        yield found
        return
    with found:
        source = found._running.source
        assert source is not None
        yield source


def _find(
    path: str | os.PathLike[str], key: str | None, cachesize: int, until: float, timeout: float
) -> BerkeleyDBStorage | ControlSource:
    """Open it, or find out that somebody answers who has it open."""
    while True:
        _require_storage(path)
        try:
            return BerkeleyDBStorage(path, cachesize=cachesize, key=key, garbage_collection=GarbageManual())
        except StorageInUse as error:
            in_use = error
        asked = ControlSource(path, timeout=timeout)
        try:
            asked.ping()
        except OwnerGone as gone:
            if time.monotonic() > until:
                raise _silent(in_use, gone) from gone
            time.sleep(PAUSE)
        else:
            return asked


def _silent(in_use: StorageInUse, gone: OwnerGone) -> StorageInUse:
    """Return the error for a storage that somebody has who does not answer; those who read it never do."""
    if in_use.pid is None:
        return in_use
    return StorageInUse(
        f"{gone}. It is process {in_use.pid}: if it runs, look into its log whether it has a control socket", in_use.pid
    )


def _require_storage(path: str | os.PathLike[str]) -> None:
    """Raise `StorageNotFound` where opening it would create one."""
    if not Path(path).is_dir():
        raise StorageNotFound(f"{os.fspath(path)} is no directory: give the directory of a storage")
    directory = Directory(path)
    description = directory.read()
    if description is None or description.state == CREATING:
        raise StorageNotFound(f"{directory.path} holds no storage: give the directory of one")
