"""Proves that a repository can be restored: reads all of it, and restores each chain into a scratch directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from berkeleydb_storage.backup.catalog import Base, Piece
from berkeleydb_storage.backup.recalling import named
from berkeleydb_storage.backup.repository import Report, Repository
from berkeleydb_storage.backup.restoring import Restoring, Wanted
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.check import check_engine
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import scratch_directory
from berkeleydb_storage.errors import BerkeleyDBStorageError, DamagedBackup, DamagedError, StoreUnreachable
from berkeleydb_storage.opening import abandon_storage, open_storage
from berkeleydb_storage.options import Options


@dataclass(frozen=True)
class Chain:
    """What was found of a base and the log after it."""

    storage: str
    """The path of the storage that it is of; empty where that is not known."""
    name: str
    """The folder of the base."""
    first: int
    """The oldest transaction that can be restored; 0 where there is none."""
    last: int
    """The newest; every one in between can be, too."""
    time: float
    """Of the newest, in seconds since the epoch."""
    objects: int
    """In the newest state."""
    restored: bool
    """Whether the newest state was restored and checked."""
    faults: tuple[str, ...]
    """What is wrong; nothing in a sound one."""


@dataclass(frozen=True)
class Verified:
    """What was found in a repository."""

    where: str
    """The directory or URL."""
    chains: tuple[Chain, ...]
    """Oldest first."""
    interrupted: tuple[str, ...]
    """Folders of bases that are not complete: made just now, or left by one that was killed. They do no harm."""
    bytes: int
    """That were read."""
    seconds: float
    """How long it took."""

    @property
    def sound(self) -> bool:
        """Whether there is something to restore, and nothing wrong."""
        return bool(self.chains) and not any(chain.faults for chain in self.chains)


def verify_backups(
    where: str | os.PathLike[str],
    *,
    of: str | None = None,
    key: str | None = None,
    scratch: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Verified:
    """Read all backups in a directory or at a URL, restore each chain in full, and check what comes out.

    It writes nothing there. It needs room in the temporary directory for the largest storage, and takes about as long
    as restoring and checking all chains one after another.

    Args:
        where: a path or a URL.
        of: the path, or identity, of the storage whose backups are looked at; default: all, which takes one key.
        key: of the storage that was backed up, if that is encrypted.
        scratch: the directory to restore into; default: the temporary one.
        progress: called now and then with what is being done and a number; what it raises ends it.
        options: what fsspec needs for the URL, such as credentials.

    Raises:
        BackupError: the repository cannot be read. WrongKey, KeyNeeded: the key does not fit.
        BerkeleyDBStorageError: there is no room to restore.
    """
    started = time.monotonic()
    repository = Repository(open_store(where, options=options))
    verifying = _Verifying(repository, key, Path(scratch) if scratch is not None else None, progress or _silent)
    bases = repository.bases() if of is None else named(repository.bases(), of)
    chains = tuple(verifying.chain(base) for base in bases if base.manifest is not None or base.is_damaged)
    interrupted = tuple(base.folder for base in bases if base.manifest is None and not base.is_damaged)
    return Verified(repository.store.url, chains, interrupted, verifying.read, round(time.monotonic() - started, 3))


class _Verifying:
    def __init__(self, repository: Repository, key: str | None, scratch: Path | None, report: Report) -> None:
        self.read = 0
        self._repository = repository
        self._key = key
        self._scratch = scratch
        self._report = report

    def chain(self, base: Base) -> Chain:
        """Read and restore a base with the log after it."""
        manifest = base.manifest
        if manifest is None:
            faults = _said(lambda: self._repository.manifest(base))
            return Chain("", base.folder, 0, 0, 0.0, 0, False, tuple(faults))
        faults = [fault for part in self._parts(base) for fault in part]
        _, last, when = base.reach()
        objects, restored = manifest.objects, False
        if not faults:
            objects, faults = self._restored(base, last)
            restored = not faults
        return Chain(manifest.storage, base.folder, manifest.tid, last, when / 1e6, objects, restored, tuple(faults))

    def _parts(self, base: Base) -> Iterator[list[str]]:
        if base.lacks():  # a backup may have been made while that was listed
            base = self._repository.again(base)
        for name in base.noted.files:
            yield _said(partial(self._count, self._repository.read_file(base, name)))
        for piece in base.pieces:
            faults = _said(partial(self._count_piece, base, piece))
            if faults and piece in self._repository.again(base).pieces:  # else it was removed: it is in another one
                yield faults
        reached, known, _ = base.reach()
        if base.lacks() or any(piece.end > reached for piece in base.pieces):
            yield [
                f"{base.folder}: the log from {reached.log}/{reached.offset} on is missing: give --to-commit {known}"
            ]

    def _count(self, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            self.read += len(chunk)
            self._report("reading", self.read)

    def _count_piece(self, base: Base, piece: Piece) -> None:
        self._count(iter((self._repository.read_piece(base, piece),)))

    def _restored(self, base: Base, last: int) -> tuple[int, list[str]]:
        with scratch_directory(f"a copy of {base.folder}", self._scratch) as scratch:
            try:
                state = Restoring(self._repository, self._report, key=self._key).assemble(scratch, base, Wanted())
                if state.tid < last:
                    raise DamagedBackup(f"{base.folder}: transaction {state.tid} is its last, and not {last}")
                return state.objects, self._checked(scratch)
            except (DamagedBackup, DamagedError) as error:
                return 0, [str(error)]

    def _checked(self, path: Path) -> list[str]:
        opened = open_storage(path, Options(key=self._key))
        try:
            engine = Engine(opened.environment, durable=False, async_log_write=True)
            faults = check_engine(engine, progress=self._report).faults
            engine.stop()
        finally:
            abandon_storage(opened)
        return [str(fault) for fault in faults]


def _said(read: Callable[[], object]) -> list[str]:
    """Return what is wrong with a part."""
    try:
        read()
    except StoreUnreachable:
        raise
    except BerkeleyDBStorageError as error:
        return [str(error)]
    return []


def _silent(activity: str, number: int) -> None:
    """Show no progress."""
