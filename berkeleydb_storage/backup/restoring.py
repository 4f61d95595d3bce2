"""A storage out of a repository: as of its end, or of any commit or time before.

The newest base that is not later than the state wanted is fetched, with the log after it. Where the log has more than
is wanted, it is cut at the end of the last commit that is; then the library applies it.

Killed at any point: the directory wanted is as it was. What was made is in a directory beside it whose name begins
with `RESTORING`; the next restore to the same place removes it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from berkeleydb_storage import commits, failpoints, files
from berkeleydb_storage.backup.assembling import State, describe, finish, verify
from berkeleydb_storage.backup.catalog import MANIFEST, UNKNOWN, Base, Piece, follow
from berkeleydb_storage.backup.repository import Report, Repository
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.errors import BackupError, DamagedBackup, StoreUnreachable
from berkeleydb_storage.files import TABLE_SUFFIX

logger = logging.getLogger(__name__)

RESTORING = ".restoring-"
AHEAD = 8
"""Pieces that are fetched at a time."""


@dataclass(frozen=True)
class Restored:
    """What was restored."""

    path: Path
    """The directory."""
    storage: str
    """The path of the storage that was backed up."""
    tid: int
    """The newest transaction in it."""
    time: float
    """When that was, in seconds since the epoch: what was committed later is not in it."""
    objects: int
    """Objects in it, garbage included."""
    bytes: int
    """That were fetched, uncompressed."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True)
class Wanted:
    """Up to where to restore; everything by default."""

    tid: int | None = None
    """The last transaction."""
    time: int | None = None
    """The last moment, in microseconds since the epoch."""

    def admits(self, tid: int, time: int) -> bool:
        """Tell whether a transaction is still in it."""
        return (self.tid is None or tid <= self.tid) and (self.time is None or time <= self.time)

    def passed(self, piece: Piece) -> bool:
        """Tell whether all that is wanted is before the end of a piece."""
        if piece.tid == UNKNOWN:
            return False
        return (self.tid is not None and piece.tid >= self.tid) or (self.time is not None and piece.time > self.time)

    @property
    def everything(self) -> bool:
        """Whether there is no limit."""
        return self.tid is None and self.time is None

    def __str__(self) -> str:
        """Return it in words."""
        if self.tid is not None:
            return f"transaction {self.tid}"
        return "everything" if self.time is None else moment_text(self.time)


def moment_text(time: int) -> str:
    """Return a time in microseconds since the epoch for people to read, as local time."""
    return datetime.fromtimestamp(time / 1e6).isoformat(" ", "microseconds")


class Restoring:
    """One restore from a repository. For one thread, once."""

    def __init__(self, repository: Repository, report: Report, *, key: str | None = None) -> None:
        """Fetch nothing yet.

        Args:
            repository: where from.
            report: called with what is being done, and how many bytes of it are; what it raises ends it.
            key: of the storage that was backed up, if that is encrypted.
        """
        self._repository = repository
        self._report = report
        self._key = key
        self._fetched = 0

    def into(
        self, target: Path, base: Base, wanted: Wanted, then: Callable[[Path], Path] | None = None
    ) -> tuple[State, int]:
        """Make `target`, which is not there or an empty directory, a storage with the state wanted.

        Args:
            target: the directory.
            base: what to begin with.
            wanted: up to where.
            then: called with the directory of the storage that was made, closed, before it gets its place; returns
                the one that is to have it, below the same directory.

        Returns:
            The state in it, and how many bytes were fetched.

        Raises:
            BackupError: the target cannot be used, or the state wanted is not there.
            DamagedBackup: something is damaged; it is named, and what can be restored.
            DiskFullError, OSError: it cannot be written. WrongKey, OptionError, LibraryMismatch: it cannot be read.
        """
        with making(target) as scratch:
            made = scratch / "storage"
            made.mkdir()
            state = self.assemble(made, base, wanted)
            failpoints.reached("restore.assembled")
            if then is not None:
                made = then(made)
            _place(made, target)
        return state, self._fetched

    def assemble(self, path: Path, base: Base, wanted: Wanted) -> State:
        """Make an empty directory a storage with the state wanted; killed, it is none. Raises as `into`."""
        manifest = base.noted
        description = describe(manifest.description, base.folder)
        verify(path, description, self._key, f"{self._repository.store.url}/{base.folder}")
        _require_tables(base)
        for name in manifest.files:
            self._write(path / _plain(name, base), 0, self._repository.read_file(base, name))
        failpoints.reached("restore.base")
        known = self._fetch_log(path, base, wanted)
        if not wanted.everything:
            self._cut(path, base, wanted, known)
        _sync(path)
        failpoints.reached("restore.log")
        self._report("applying the log", 0)
        state = finish(path, description, self._key)
        if wanted.everything and state.tid < known:
            raise _too_early(base, state.tid, known)
        if wanted.tid not in (None, state.tid):
            raise DamagedBackup(
                f"transaction {wanted.tid} is not in the log after {base.folder}, {state.tid} is the one before that: "
                f"give --to-commit {state.tid}"
            )
        _sync(path)
        return state

    def _write(self, where: Path, offset: int, chunks: Iterable[bytes]) -> None:
        with where.open("r+b" if where.exists() else "xb") as file:
            file.seek(offset)
            for chunk in chunks:
                file.write(chunk)
                self._fetched += len(chunk)
                self._report("fetching", self._fetched)

    def _fetch_log(self, path: Path, base: Base, wanted: Wanted) -> int:
        """Write the log after a base, as far as it is wanted; return the newest transaction that is known to be in it.

        Raises:
            DamagedBackup: some of it is missing or damaged, and what was wanted lies behind that.
        """
        reached, known = base.noted.end, base.noted.tid
        if wanted.tid is not None and known >= wanted.tid:
            return known
        if base.lacks():  # a backup may have been made while that was listed
            base = self._repository.again(base)
        useless: set[Piece] = set()
        damaged: BackupError | None = None
        while plan := follow([piece for piece in base.pieces if piece not in useless], reached):
            try:
                for piece, data in self._read(base, plan):
                    self._write(path / files.log_name(piece.start.log), piece.start.offset, (data,))
                    reached, damaged = piece.end, None
                    known = piece.tid or known
                    if wanted.passed(piece):
                        return known
            except StoreUnreachable:
                raise
            except BackupError as error:  # there may be another piece with the same bytes, or one by now
                damaged = error
                useless.add(next(piece for piece in plan if piece.end > reached))
                base = self._repository.again(base)
        if damaged is None and (base.lacks() or any(piece.end > reached for piece in base.pieces)):
            damaged = DamagedBackup(f"{base.folder}: the log from {reached.log}/{reached.offset} on is missing")
        if damaged is not None:
            raise DamagedBackup(f"{damaged}; {_advice(known)}")
        return known

    def _read(self, base: Base, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bytes]]:
        """Give the log in some pieces, of which the next ones are fetched meanwhile: a store may be far away."""
        waiting: deque[tuple[Piece, Future[bytes]]] = deque()
        following = iter(pieces)
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="berkeleydb_storage restore") as pool:
            try:
                while True:
                    for piece in islice(following, AHEAD - len(waiting)):
                        waiting.append((piece, pool.submit(self._repository.read_piece, base, piece)))
                    if not waiting:
                        return
                    piece, data = waiting.popleft()
                    yield piece, data.result()
            finally:
                for _, data in waiting:
                    data.cancel()

    def _cut(self, path: Path, base: Base, wanted: Wanted, known: int) -> None:
        """End the log after the last commit that is wanted, or at the end of the base.

        Raises:
            DamagedBackup: transaction `known`, which is in it, is not found.
        """
        done = 0

        def report(size: int) -> None:
            nonlocal done
            done += size
            self._report("reading the log", done)

        end, seen = base.noted.end, base.noted.tid
        for commit in commits.scan(path, self._key, report):
            seen = max(seen, commit.tid)
            if commit.end > end:
                if not wanted.admits(commit.tid, commit.time):
                    break
                end = commit.end
        else:
            if seen < (known if wanted.tid is None else min(known, wanted.tid)):
                raise _too_early(base, seen, known)
        commits.cut(path, end)


def choose(bases: list[Base], wanted: Wanted) -> Base:
    """Return the base to begin with, of those of one storage.

    Raises:
        BackupError: the state wanted is not there; what is, is told.
    """
    whole = [base for base in bases if base.manifest is not None]
    if not whole:
        raise BackupError("there is no backup that is complete: make one by `durus-bdb backup DIRECTORY PLACE --full`")
    fitting = [base for base in whole if wanted.admits(base.noted.tid, base.noted.time)]
    if not fitting:
        oldest = min((base.noted for base in whole), key=lambda manifest: manifest.tid)
        raise BackupError(
            f"{wanted} is before all that is there: the oldest state is transaction {oldest.tid}, of "
            f"{moment_text(oldest.time)}"
        )
    best = _furthest(fitting, wanted)
    _require_sound(best, bases, wanted)
    _require_reached(best, whole, wanted)
    return best


def _furthest(bases: list[Base], wanted: Wanted) -> Base:
    """Return the newest base of those whose chains have all that is wanted, or the most of it.

    The newest of all need not be one: an archive goes on with its own while backups are made to the same place.
    """
    reaches = {base.folder: base.reach()[1:] for base in bases}

    def has_all(base: Base) -> bool:
        tid, when = reaches[base.folder]
        return (wanted.tid is not None and tid >= wanted.tid) or (wanted.time is not None and when >= wanted.time)

    most = max(tid for tid, _ in reaches.values())
    able = [base for base in bases if has_all(base)] or [base for base in bases if reaches[base.folder][0] == most]
    return max(able, key=lambda base: (base.noted.tid, base.noted.time, base.folder))


def _require_sound(base: Base, bases: list[Base], wanted: Wanted) -> None:
    """Look whether a later base, whose manifest is damaged, may have what is wanted.

    Raises:
        DamagedBackup: it may. What can be restored is told.
    """
    damaged = [other for other in bases if other.is_damaged and other.begun >= base.begun]
    _, tid, time = base.reach()
    reached = wanted.tid <= tid if wanted.tid is not None else wanted.time is not None and wanted.time < time
    if damaged and not reached:
        raise DamagedBackup(
            f"{damaged[-1].folder}/{MANIFEST} is damaged, and may have what came after transaction {tid}: "
            f"{_advice(tid)}"
        )


def _too_early(base: Base, tid: int, known: int) -> DamagedBackup:
    return DamagedBackup(
        f"the log after {base.folder} ends with transaction {tid}, and not with {known}, it is damaged: {_advice(tid)}"
    )


def _advice(tid: int) -> str:
    return f"all up to transaction {tid} can be restored, give --to-commit {tid}"


def before(base: Base, bases: list[Base]) -> int | None:
    """Return the newest transaction that can be restored without a base and what follows it; None: there is none."""
    others = [other.reach()[1] for other in bases if other.manifest and other.noted.tid < base.noted.tid]
    return min(max(others), base.noted.tid - 1) if others else None


def _require_reached(base: Base, bases: list[Base], wanted: Wanted) -> None:
    """Look whether the chain of a base goes as far as is wanted, or, if not, nothing later is known."""
    _, tid, when = base.reach()
    if wanted.tid is not None and wanted.tid > tid:
        raise BackupError(
            f"transaction {wanted.tid} is not there: {tid}, of {moment_text(when)}, is the newest before it"
        )
    later = [other.noted for other in bases if other.noted.tid > tid]
    if later and wanted.time is not None and wanted.time > when:
        following = min(later, key=lambda manifest: manifest.tid)
        logger.warning(
            "what was committed after transaction %d, of %s, and before %d, of %s, is only in the latter: the state "
            "restored may be older than the time wanted",
            tid,
            moment_text(when),
            following.tid,
            moment_text(following.time),
        )


def _require_tables(base: Base) -> None:
    """Look whether all tables are in a base.

    Raises:
        DamagedBackup: one is not.
    """
    for name in TABLES:
        if name + TABLE_SUFFIX not in base.noted.files:
            raise DamagedBackup(f"the manifest of {base.folder} names no {name + TABLE_SUFFIX}: use another one")


def _plain(name: str, base: Base) -> str:
    """Return a file's name, which comes from a manifest.

    Raises:
        DamagedBackup: a storage has no such file.
    """
    if files.log_number(name) is None and name not in (table + TABLE_SUFFIX for table in TABLES):
        raise DamagedBackup(
            f"the manifest of {base.folder} names a file {name!r}, which no storage has: use another one"
        )
    return name


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """Give a new directory beside `target`, on the same disk, which is gone at the end.

    Raises:
        BackupError: the target is not empty, or the directory that it is in cannot be used.
    """
    require_free(target)
    target = target.absolute()
    begin = f"{RESTORING}{target.name}-"
    try:
        _remove_leftovers(target.parent, begin)
        scratch = target.parent / f"{begin}{os.getpid()}"
        scratch.mkdir(mode=0o700)
    except OSError as error:
        raise BackupError(f"{target.parent} cannot be written ({error}): choose another place, or mend that") from error
    lock = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _remove_leftovers(parent: Path, begin: str) -> None:
    """Remove what restores left that were killed: nobody has it locked."""
    for name in os.listdir(parent):
        if not (name.startswith(begin) and name[len(begin) :].isdigit()):
            continue
        lock = os.open(parent / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(parent / name)
            logger.info("%s was left by a restore that was interrupted: it is removed", parent / name)
        except BlockingIOError as error:
            raise BackupError(f"{parent / name} is being restored by another process: wait until it is done") from error
        finally:
            os.close(lock)


def require_free(target: Path) -> None:
    """Look whether something can be restored there.

    Raises:
        BackupError: it is not empty, or no directory.
    """
    if target.is_symlink() or target.is_mount():
        raise BackupError(f"{target} is a mount point, or a link, and cannot be replaced: give a directory below it")
    try:
        names = os.listdir(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackupError(f"{target} is no directory that can be used ({error.strerror}): give a new one") from error
    if names:
        raise BackupError(f"{target} is not empty, it has {names[0]!r}: give a new directory, nothing is overwritten")


def _place(made: Path, target: Path) -> None:
    """Give what was made its place, at once and for good."""
    require_free(target)
    made.chmod(0o700)  # nobody knows who may read what is in it
    if target.exists():
        status = target.stat()
        made.chmod(status.st_mode & 0o7777)
        with suppress(PermissionError):
            for path in (made, *made.iterdir()):
                os.chown(path, status.st_uid, status.st_gid)
    failpoints.reached("restore.done")
    try:
        made.rename(target)
    except OSError as error:
        advice = (
            "give a directory below it" if error.errno in (errno.EBUSY, errno.EXDEV) else "mend that, and try again"
        )
        raise BackupError(f"{target} cannot be replaced ({error.strerror}): {advice}") from error
    failpoints.reached("restore.placed")
    _sync_directory(target.absolute().parent)


def _sync(directory: Path) -> None:
    """Bring all files in a directory to the disk."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
