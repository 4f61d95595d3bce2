"""Where a backup is read from: a storage that is in use, and its log.

A `Source` gives bytes, and keeps the log files that are still to be read; where the bytes go is not its affair.
`LocalSource` reads the storage of this process. Any thread may use either; each generator belongs to one.

The library allows to copy the tables while they are written, if every page is copied whole, and the log of everything
since the checkpoint before goes with them: recovery then brings all pages to the state at the end of that log. The log
that follows may be added to it at any later time.

Invariants:

1. Every log that is given ends where no transaction was under way, at a commit, and is on the disk by then: it never
   turns out, after a crash, that the storage knows less than its backup.
2. No page is copied while it is written. Pages are written by a checkpoint, or by who holds the engine's mutex. So
   reading and checkpoints take turns; and each part is read twice, with the mutex held once in between: what was the
   same both times was written by nobody then. A page that was not is read again with the mutex held.
3. A page whose checksum is wrong, or that is another's, is not copied: it ends the backup.

The mutex is held for microseconds at a time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from berkeleydb_storage import failpoints, files
from berkeleydb_storage.backup.soundness import damaged_pages
from berkeleydb_storage.checkpoint import Checkpointer
from berkeleydb_storage.directory import DESCRIPTION, Directory
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import LIBRARY_ERRORS, TABLES, explain
from berkeleydb_storage.errors import BackupError, DamagedError, LogGone, StorageClosed
from berkeleydb_storage.files import PAGE_SIZE, TABLE_SUFFIX, Position
from berkeleydb_storage.holding import Holds, Pin
from berkeleydb_storage.keys import mac_key
from berkeleydb_storage.recovery import RESTORE

PART = 64 * PAGE_SIZE
"""Bytes that are copied at a time."""
READ_AT_ONCE = 4 << 20
"""Bytes that are read between two checkpoints, at most, and kept in memory: what is slow is the writing."""
BUSY = 64 << 10
"""Bytes given at a time while others commit: a store on the same disk syncs them, and a commit waits for that."""
REST, LONGEST_REST = 2.0, 0.02
"""While others commit, the copying rests for so many times the time that it worked, and so many seconds at most. The
slowest hundredth of the commits took 1.3 to 1.6 times as long as alone; 1.7 to 4.5 with half of that."""


class Moment(NamedTuple):
    """A state of a storage, and where its log ends with it."""

    tid: int
    """The newest transaction."""
    time: int
    """In microseconds since the epoch, of when it was looked at: not before any transaction that is in it."""
    objects: int
    identity: bytes
    end: Position


class Chunk(NamedTuple):
    """Bytes of a file. Files come one after another, each in order and complete."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Copied:
    """What was copied."""

    moment: Moment
    """The state at its end."""
    first: Position
    """Where the log in the copy begins."""
    description: dict[str, Any]
    """What ``storage.json`` said."""


class Source(Protocol):
    """What a backup is made from."""

    @property
    def path(self) -> Path:
        """The directory of the storage."""

    def look(self) -> Moment:
        """Return the state of now, once it is on the disk: every commit that was acknowledged before is in it.

        Raises:
            CommitRefused: a migration is under way. DamagedError, StorageClosed: the storage cannot be used.
        """

    def copy(self) -> Generator[Chunk, None, Copied]:
        """Give all tables, and the log from the checkpoint before on; return what that is.

        Raises:
            DiskFullError: the storage has no room for a checkpoint. As `look`. OSError: a file cannot be read.
        """

    def log(self, start: Position, end: Position) -> Iterator[Chunk]:
        """Give the log from `start` to `end`, where `look` said that it ends. Every chunk is of one file.

        Raises:
            LogGone: it is not there any more. StorageClosed: the storage is closed.
        """

    def hold(self, holder: str, start: Position, limit: int) -> None:
        """Keep the log from `start` on for `holder`, instead of what it held before; beyond `limit` bytes it is let go.

        Raises:
            DiskFullError: there is no room to note that.
        """

    def release(self, holder: str) -> None:
        """Keep no log for `holder` any more."""

    def held(self, holder: str) -> Position | None:
        """Return from where on the log is kept for `holder`; None where it is not, or was let go."""


class LocalSource:
    """The storage that this process has open."""

    def __init__(self, engine: Engine, checkpointer: Checkpointer, directory: Directory, holds: Holds) -> None:
        """Read nothing yet."""
        self._engine = engine
        self._checkpointer = checkpointer
        self._directory = directory
        self._holds = holds
        self._copying = threading.Lock()
        self._mac = mac_key(engine.environment.key)
        self.hold: Callable[[str, Position, int], None] = holds.hold
        self.release: Callable[[str], None] = holds.release
        self.held: Callable[[str], Position | None] = holds.held

    @property
    def path(self) -> Path:
        """The directory of the storage, absolute."""
        return self._directory.path.absolute()

    def look(self) -> Moment:
        """Do as `Source` says."""
        engine = self._engine
        with engine.lock:
            engine.require_open()
            engine.require_idle()
            end = Position(*engine.environment.end_of_log())
            moment = Moment(engine.journal.tid, engine.time(), engine.size, engine.identity, end)
        try:
            engine.environment.flush()
        except LIBRARY_ERRORS as error:
            stopped = engine.environment.distrust(error)
            if stopped is not None:
                with engine.lock:
                    engine.refuse(stopped)
            raise stopped or explain(error, self._directory.path) from error
        return moment

    def copy(self) -> Generator[Chunk, None, Copied]:
        """Do as `Source` says; one at a time.

        Raises:
            BackupError: another copy is being made.
        """
        if not self._copying.acquire(blocking=False):
            raise BackupError(f"a backup of {self._directory.path} is being made: wait until it is done")
        try:
            with self._engine.lock:
                self._engine.require_open()
                self._engine.require_idle()
            with self._checkpointer.keeping_logs() as pin:
                for name in TABLES:
                    yield from self._table(name + TABLE_SUFFIX, pin)
                failpoints.reached("backup.tables")
                moment = self.look()
                start = Position(pin.log, 0)
                yield from self.log(start, moment.end)
                return Copied(moment, start, self._description())
        finally:
            self._copying.release()

    def _description(self) -> dict[str, Any]:
        description = self._directory.read()
        if description is None:
            raise DamagedError(f"{self._directory.path / DESCRIPTION} is gone: restore it from a backup")
        return asdict(description)

    def _table(self, name: str, pin: Pin) -> Iterator[Chunk]:
        with _opened(self._directory.path / name) as file:
            offset, rests = 0, _Rests(self._engine)
            while parts := self._parts(file, offset):
                for part in rests.divided(parts):
                    self._require_running()
                    self._require_kept(pin)
                    self._require_sound(name, offset, part)
                    yield Chunk(name, part)
                    offset += len(part)
                    rests.after_work()

    def _require_running(self) -> None:
        if self._engine.closing:
            raise StorageClosed(f"{self._directory.path} is being closed: there is no backup")

    def _require_kept(self, pin: Pin) -> None:
        if pin.lost:
            raise LogGone(
                f"the disk of {self._directory.path} was full, and log files that the copy needs are removed: "
                "free some, then make it again"
            )

    def _require_sound(self, name: str, offset: int, part: bytes) -> None:
        for number in damaged_pages(part, offset // PAGE_SIZE, self._mac):
            raise DamagedError(
                f"page {number} of {self._directory.path / name} is damaged, there is no backup: look after the disk, "
                f"and {RESTORE}"
            )

    def _parts(self, file: int, offset: int) -> list[bytes]:
        """Return the next parts of a table, of `READ_AT_ONCE` bytes together; at its end none."""
        parts: list[bytes] = []
        with self._checkpointer.resting():
            for start in range(offset, offset + READ_AT_ONCE, PART):
                parts.append(self._part(file, start))
                if len(parts[-1]) < PART:
                    break
        return [part for part in parts if part]

    def _part(self, file: int, offset: int) -> bytes:
        """Return some whole pages of a table. No checkpoint is under way."""
        first = os.pread(file, PART, offset)
        with self._engine.lock:
            self._engine.require_open()
        part = os.pread(file, PART, offset)
        if part != first:
            part = b"".join(self._settled(file, offset, first, part))
        return part[: len(part) // PAGE_SIZE * PAGE_SIZE]

    def _settled(self, file: int, offset: int, first: bytes, second: bytes) -> Iterator[bytes]:
        for start in range(0, len(second), PAGE_SIZE):
            page = second[start : start + PAGE_SIZE]
            if page != first[start : start + PAGE_SIZE]:
                with self._engine.lock:
                    page = os.pread(file, PAGE_SIZE, offset + start)
            yield page.ljust(PAGE_SIZE, b"\0")

    def log(self, start: Position, end: Position) -> Iterator[Chunk]:
        """Do as `Source` says."""
        for number in range(start.log, end.log + 1):
            name = files.log_name(number)
            offset = start.offset if number == start.log else 0
            try:
                with _opened(self._directory.path / name) as file:
                    size = os.fstat(file).st_size
                    stop = size if number < end.log else end.offset
                    while offset < stop:
                        self._require_running()
                        part = os.pread(file, min(PART, stop - offset), offset)
                        if not part:
                            raise DamagedError(
                                f"{self._directory.path / name} has {offset} bytes, and {stop} were expected: it was "
                                "cut off, look after the disk"
                            )
                        yield Chunk(name, part)
                        offset += len(part)
            except FileNotFoundError as error:
                raise LogGone(f"{error.filename} is not there any more: make a backup of everything") from error


class _Rests:
    """Rests between two parts, if anything was committed meanwhile: commits would wait for the disk and for Python."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen = engine.journal.tid
        self._since = time.monotonic()
        self._busy = True

    def divided(self, parts: list[bytes]) -> Iterator[bytes]:
        """Give what is to be written at a time: a store on the same disk syncs each."""
        for part in parts:
            if not self._busy:
                yield part
                continue
            for start in range(0, len(part), BUSY):
                yield part[start : start + BUSY]

    def after_work(self) -> None:
        """Rest, in proportion to the time since the last rest."""
        seen = self._engine.journal.tid
        self._busy = seen != self._seen
        if self._busy:
            time.sleep(min((time.monotonic() - self._since) * REST, LONGEST_REST))
        self._seen, self._since = seen, time.monotonic()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
