"""The transactional core: objects, their counts and the journal change together, under one mutex.

Owns the table objects and, through its collaborators, all others; and the mutex. Its methods may be called from any
thread unless they say that the caller holds the mutex.

Invariants:

1. Every read and write of a table is done under `lock`; there is one writer.
2. A transaction changes records, counts, queues, the totals and the journal together, or nothing.
3. No record refers to an object that does not exist.
4. An oid is handed out once, ever; blocks of them are reserved on the disk before.
5. With `durable`, `commit` returns after the log of its transaction is on the disk.

Killed inside a transaction: the next open finds none of it. Killed between its end and the flush: all of it or none.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import NoReturn, Protocol

from pyroaring import BitMap64

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.doomed import Doomed
from berkeleydb_storage.environment import (
    LIBRARY_ERRORS,
    META,
    NO_SYNC,
    OBJECTS,
    WRITE_NO_SYNC,
    Environment,
    Table,
    Transaction,
    explain,
    reading,
    rows,
)
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    CommitInDoubt,
    CommitRefused,
    DamagedError,
    DanglingReferenceError,
    ReadOnlyError,
    StorageClosed,
    describe_oids,
)
from berkeleydb_storage.format import (
    FORMAT_VERSION,
    META_FORMAT,
    META_NEXT_OID,
    META_PACKED,
    META_UNMARKED,
    ROOT_OID,
    State,
    pack_uint64,
    require_mark,
    unpack_uint64,
)
from berkeleydb_storage.identity import read_identity, write_identity
from berkeleydb_storage.journal import Fate, Journal
from berkeleydb_storage.refcounts import ReferenceCounts
from berkeleydb_storage.room import Room
from berkeleydb_storage.watch import Watch

OID_BLOCK = 4096
"""Oids reserved at a time: one sync for so many new objects."""
SLICE = 32
"""Records that are applied at a time, where the one who commits does it in slices."""
SLICE_BYTES = 256 << 10
"""Bytes of them at most, but for the last one."""
LAST_OID = (1 << 64) - 2
"""The highest that is handed out: the one after it can be noted in 8 bytes."""
COLLECTION_BYTES = 1 << 20
"""Room asked for by a transaction that deletes."""


Pending = Mapping[bytes, tuple[bytes, tuple[bytes, ...]]]
"""oid -> (record, what it refers to), of a commit."""


class Listener(Protocol):
    """Who wants to know which objects changed. Called by the thread that holds the mutex, right after a commit."""

    def invalidate(self, oids: Iterable[bytes]) -> None:
        """Take note of them."""


class _Refusing:
    """Stands in for the table of objects when it must not be used any more."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error.with_traceback(None)  # an error that is raised again keeps the frames of all times before

    def __getitem__(self, key: bytes) -> NoReturn:
        raise self._error.with_traceback(None)


def new_storage(tables: Mapping[str, Table], transaction: Transaction) -> None:
    """Write the first rows of a storage."""
    tables[META].put(META_FORMAT, pack_uint64(FORMAT_VERSION), txn=transaction)
    tables[META].put(META_NEXT_OID, pack_uint64(0), txn=transaction)
    now = time.time_ns() // 1000
    tables[META].put(META_PACKED, pack_uint64(now), txn=transaction)
    write_identity(tables, transaction)
    Journal.begin(tables, State(now, 0, 0, 0), transaction)


class Engine:
    """One open storage, without policies."""

    def __init__(self, environment: Environment, *, durable: bool, async_log_write: bool) -> None:
        """Take over an open environment.

        Args:
            environment: to be closed by `close`.
            durable: whether a commit waits until its log is on the disk.
            async_log_write: with `durable` False, whether a commit hands its log to the system.
        """
        self.lock = threading.Lock()
        self._flushed = threading.Condition(self.lock)
        self._flushing: set[int] = set()  # grows under lock: threads that flush or are about to
        self.environment = environment
        self.objects: Table = environment.tables[OBJECTS]
        self.journal = Journal(environment.tables)
        state = self.journal.state
        self.counts = ReferenceCounts(environment.tables, state.garbage, state.suspects)
        self.doomed = Doomed(environment.tables[META])
        self.identity = read_identity(environment.tables)
        """What `identity` says; replaced under lock. With a tid that is on the disk it tells a client what it has."""
        self.flushed = self.journal.tid
        """A transaction that is on the disk; written by all threads that flush, so that the newest may be missed."""
        self._watches: list[Watch] = []  # guarded by lock
        self.closing = False
        self.last_commit = float("-inf")
        self._meta = environment.tables[META]
        self.unmarked = self._meta.exists(META_UNMARKED)
        """Whether there may be garbage of which no suspect is known: a full pack is due."""
        self.durable = durable
        self._flags = NO_SYNC if durable or not async_log_write else WRITE_NO_SYNC
        self._room = Room(environment.path)  # guarded by lock
        self._last = state.time, time.monotonic_ns()  # the newest transaction's time, by either clock
        self._listeners: list[weakref.ref[Listener]] = []  # guarded by lock
        self._failure: Exception | None = None  # guarded by lock
        self._exclusive: tuple[int, str] | None = None  # guarded by lock
        self._load_oids()
        _watch_forks()
        _engines.add(self)

    def _load_oids(self) -> None:
        stored = self._meta.get(META_NEXT_OID)
        self._next_oid = unpack_uint64(stored) if stored is not None and self.size else 0  # guarded by lock
        self._reserved = self._next_oid  # guarded by lock
        self._highest = pack_uint64(self._next_oid)  # guarded by lock: no object above it exists

    def time(self) -> int:
        """Return the time in microseconds since the epoch.

        It never goes back, not even across openings, and never stands still: after the clock was set back it stays
        ahead of it, so that what became garbage before gets older all the same.
        """
        last, at = self._last
        return max(last + (time.monotonic_ns() - at) // 1000, time.time_ns() // 1000)

    def tick(self) -> int:
        """Return a time that no earlier transaction has. The caller holds the mutex."""
        now = max(self._last[0] + 1, self.time())
        self._last = now, time.monotonic_ns()
        return now

    @property
    def size(self) -> int:
        """The number of objects."""
        return self.journal.state.objects

    def listen(self, listener: Listener) -> None:
        """Tell `listener` about all changes that are not its own, for as long as it lives."""
        with self.lock:
            self._listeners = [known for known in self._listeners if known() is not None]
            self._listeners.append(weakref.ref(listener))

    def watch(self) -> Watch:
        """Begin to note what is touched, until `unwatch`. The caller holds the mutex."""
        watch = Watch()
        self._watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch, which may have ended already. The caller holds the mutex."""
        if watch in self._watches:
            self._watches.remove(watch)

    def new_oid(self) -> bytes:
        """Return an oid that was never returned before.

        Raises:
            BerkeleyDBStorageError: there is none left.
        """
        with self.lock:
            number = self._next_oid
            if number >= self._reserved:
                if number > LAST_OID:
                    raise BerkeleyDBStorageError(
                        f"{self.environment.path} has handed out all of its oids: migrate into a new storage"
                    )
                self._reserve(min(number + OID_BLOCK, LAST_OID + 1))
            self._next_oid = number + 1
        return pack_uint64(number)

    @property
    def next_oid(self) -> int:
        """No oid from this one on was handed out."""
        return self._next_oid

    def was_handed_out(self, oid: bytes) -> bool:
        """Tell whether `new_oid` may have returned it, now or in an earlier opening. The root's always was."""
        return oid == ROOT_OID or unpack_uint64(oid) < self._next_oid

    def _reserve(self, until: int) -> None:
        """Reserve the oids below `until`, on the disk whatever `durable` says. The caller holds the mutex.

        A reservation that a crash takes back would hand the same oids out again, also to one who still holds them.
        Those of a read-only storage are good for nothing, so that nothing is written: a client that asks a server
        for oids before it commits gets its refusal as a conflict, from the commit.
        """
        self.require_open()
        if self.environment.writable:
            with Change(self, 0) as change:
                self._meta.put(META_NEXT_OID, pack_uint64(until), txn=change.transaction)
            self._flush_under_lock()
        self._reserved = until
        failpoints.reached("oids.reserved")

    def _flush_under_lock(self) -> None:
        try:
            self.environment.flush()
        except LIBRARY_ERRORS as error:
            stopped = self.environment.distrust(error)
            if stopped is None:
                raise self.failed(error) from error
            self.refuse(stopped)
            raise stopped from error

    def renew_identity(self) -> None:
        """Give the storage a new identity, on the disk whatever `durable` says: no client will go on with its cache.

        Raises:
            ReadOnlyError, DiskFullError, CommitRefused, DamagedError, StorageClosed: it cannot.
        """
        with self.lock:
            self._renew_identity()

    def _renew_identity(self, next_oid: bytes | None = None) -> None:
        with Change(self, 0) as change:
            write_identity(self.environment.tables, change.transaction)
            if next_oid is not None:
                self._meta.put(META_NEXT_OID, next_oid, txn=change.transaction)
        self.identity = read_identity(self.environment.tables)
        self._flush_under_lock()

    def begin_oids(self) -> None:
        """Renew the identity if oids are handed out again: an earlier opening did that, and nothing was stored."""
        with self.lock:
            if self.environment.writable and not self.size and self._meta.get(META_NEXT_OID) != pack_uint64(0):
                self._renew_identity(pack_uint64(0))

    def commit(
        self,
        pending: Pending,
        size: int,
        origin: Listener | None = None,
        *,
        unless: Callable[[], bool] | None = None,
        mark: bytes | None = None,
    ) -> bool:
        """Store the records of one transaction; durably, if the engine is.

        Args:
            pending: the records.
            size: bytes in them.
            origin: not told about the change.
            unless: asked under the mutex, before anything is stored.
            mark: 16 bytes, which nothing else has, by which `fate` finds the transaction. A commit of nothing is none.

        Returns:
            False where `unless` said yes, and nothing was stored.

        Raises:
            DanglingReferenceError: they refer to objects that do not exist. Nothing was stored.
            DiskFullError: there is no room. Nothing was stored.
            CommitInDoubt: they were stored, but could not be brought to the disk yet.
            DamagedError: a file is damaged, or the library has stopped. Nothing was stored.
            ValueError: the mark does not have 16 bytes. Nothing was stored.
        """
        if mark is not None:
            require_mark(mark)
        thread = threading.get_ident()
        try:
            with self.lock:
                if unless is not None and unless():
                    return False
                if not pending:
                    return True
                self._apply(pending, size, origin, mark)
                if not self.durable:
                    return True
                self._flushing.add(thread)
            self._flush("the commit")
            failpoints.reached("commit.flushed")
        finally:
            self._flushing.discard(thread)  # here, before an interruption can come between
            if self.closing:
                self._tell_flushed()
        return True

    def _apply(self, pending: Pending, size: int, origin: Listener | None, mark: bytes | None) -> None:
        """Store the records, all or nothing. The caller holds the mutex."""
        for _ in self.applying(pending, size, origin, mark):
            pass

    def applying(
        self, pending: Pending, size: int, origin: Listener | None = None, mark: bytes | None = None
    ) -> Iterator[None]:
        """Store the records, all or nothing, without bringing them to the disk, in slices of some 100 microseconds.

        The caller holds the mutex from the beginning to the end. Between two slices he may read objects that are not
        among the records, and nothing else. A generator that is closed before the end undoes all.

        Raises:
            CommitRefused, DamagedError, StorageClosed: nothing was stored. As of `commit`.
        """
        if mark is not None:
            require_mark(mark)
        self.require_idle()
        if not self._next_oid and ROOT_OID in pending:
            self._reserve(OID_BLOCK)
            self._next_oid = 1
        with Change(self, size) as change:
            change.mark = mark
            failpoints.reached("commit.begun")
            left = SLICE_BYTES
            for number, (oid, (record, refs)) in enumerate(sorted(pending.items()), 1):
                change.store(oid, record, refs)
                left -= len(record)
                if left < 0 or not number % SLICE:
                    left = SLICE_BYTES
                    yield
            dangling = change.settle()
            if dangling:
                if origin is not None:
                    origin.invalidate(self.doomed.among(dangling))
                raise DanglingReferenceError(
                    f"the commit refers to objects that do not exist, or were collected: {describe_oids(dangling)}. "
                    "Nothing of it was stored; abort() and do it again with what there is",
                    dangling,
                )
            change.origin = origin
            failpoints.reached("commit.written")
        self.last_commit = time.monotonic()
        failpoints.reached("commit.committed")

    def fate(self, mark: bytes, since: int) -> Fate:
        """Tell what became of a commit with this mark, made by a client that knew transaction `since` to be applied.

        It speaks of what was applied up to now: make sure before that no commit with this mark is still to come. What
        it finds may not be on the disk yet: call `make_durable`, or compare with `flushed`, before you pass it on.

        Args:
            mark: 16 bytes.
            since: a tid that the client was told together with the `identity` that the storage has now; the commit
                is looked for behind it. With another identity nothing can be told.

        Raises:
            ValueError: the mark does not have 16 bytes.
            DamagedError, StorageClosed: it cannot be read.
        """
        require_mark(mark)
        fate: Fate | None = None
        while fate is None:
            with self.lock, self.explaining():
                self.require_open()
                fate = self.journal.fate(mark, since)
        return fate

    def make_durable(self) -> None:
        """Bring everything that is committed to the disk, if the engine is durable."""
        thread = threading.get_ident()
        try:
            with self.lock:
                self.require_open()
                if not self.durable:
                    return
                self._flushing.add(thread)
            self._flush("a transaction")
            failpoints.reached("commit.flushed")
        finally:
            self._flushing.discard(thread)
            if self.closing:
                self._tell_flushed()

    def _tell_flushed(self) -> None:
        with self.lock:
            self._flushed.notify_all()

    def _flush(self, what: str) -> None:
        tid = self.journal.tid
        try:
            self.environment.flush()
            self.flushed = max(self.flushed, tid)
        except LIBRARY_ERRORS as error:
            stopped = self.environment.distrust(error)
            if stopped is not None:
                with self.lock:
                    self.refuse(stopped)
            reason = stopped or explain(error, self.environment.path)
            raise CommitInDoubt(f"{what} was applied, and could not be brought to the disk: {reason}") from error

    def stop(self) -> None:
        """Let the commits under way finish, give back the oids that were not handed out, and refuse all that follows.

        Raises:
            DiskFullError, DamagedError: the oids cannot be given back; they are skipped at the next opening.
        """
        with self.lock:
            self.closing = True
            self._flushing.discard(threading.get_ident())  # closing in a signal handler, within a commit
            while self._flushing:
                self._flushed.wait()
            try:
                if self._failure is None and self._reserved != self._next_oid:
                    self._reserve(self._next_oid)
            finally:
                self.refuse(StorageClosed(f"{self.environment.path} is closed"))

    def change(self, size: int = COLLECTION_BYTES) -> Change:
        """Return a transaction of about `size` bytes. The caller holds the mutex from its beginning to its end."""
        return Change(self, size)

    @contextmanager
    def exclusively(self, what: str) -> Iterator[None]:
        """Refuse all commits, and other transactions of other threads, while the calling one does `what`.

        Raises:
            CommitRefused: something is done exclusively already.
        """
        with self.lock:
            self.require_idle()
            self._exclusive = (threading.get_ident(), what)
        try:
            yield
        finally:
            self._exclusive = None

    def adopt(self) -> None:
        """Take everything from the tables anew, after their rows were replaced."""
        with self.lock:
            self.reload_all()

    def require_open(self) -> None:
        """Raise what it is that keeps the engine from being used, if there is something."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def require_idle(self) -> None:
        """Raise `CommitRefused` while something is done exclusively. The caller holds the mutex."""
        if self._exclusive is not None:
            raise CommitRefused(
                f"{self.environment.path} is busy with {self._exclusive[1]}: nothing was stored, try again later"
            )

    def begin(self, size: int) -> Transaction:
        """Begin a transaction that writes about `size` bytes. The caller holds the mutex.

        Raises:
            StorageClosed, ReadOnlyError, DiskFullError, DamagedError: it may not begin.
        """
        self.require_open()
        if self._exclusive is not None and self._exclusive[0] != threading.get_ident():
            self.require_idle()
        if not self.environment.writable:
            raise ReadOnlyError(f"{self.environment.path} was opened read-only: nothing was stored")
        self._room.need(size)
        try:
            return self.environment.begin()
        except LIBRARY_ERRORS as error:
            raise self.failed(error) from error

    def need_room(self, size: int) -> None:
        """Make sure that a transaction can write `size` bytes more than it said. The caller holds the mutex.

        Raises:
            DiskFullError: it cannot.
        """
        self._room.need(size)

    def commit_change(self, change: Change) -> None:
        """Write the journal row of a transaction, end it, and tell the listeners. The caller holds the mutex."""
        before = self.journal.state
        objects = before.objects + len(change.born) - len(change.deleted)
        state = State(change.now, objects, self.counts.garbage, self.counts.suspects)
        self.journal.append(state, change.stored + change.deleted, change.transaction, change.mark)
        change.ended = True
        change.transaction.commit(self._flags)
        self.journal.advance(state, change.mark)
        self.adopt_commit(change)

    def adopt_commit(self, change: Change) -> None:
        """Let everyone know of a transaction that was applied. The caller holds the mutex."""
        if change.born:
            self._highest = max(self._highest, max(change.born))
        if change.dooms:
            self.doomed.reload()
        for watch in self._watches:
            watch.note(change.touches())
        for reference in self._listeners:
            listener = reference()
            if listener is not None and listener is not change.origin:
                listener.invalidate(change.stored)
                listener.invalidate(change.deleted)

    def reload(self) -> None:
        """Take the totals from the disk, after a transaction that did not end well. The caller holds the mutex."""
        self.journal.reload()
        self.counts.garbage, self.counts.suspects = self.journal.state.garbage, self.journal.state.suspects
        self.doomed.reload()

    def reload_all(self) -> None:
        """Do what `adopt` does. The caller holds the mutex."""
        self.reload()
        self.unmarked = self._meta.exists(META_UNMARKED)
        self.identity = read_identity(self.environment.tables)
        for watch in self._watches:
            watch.spoiled = True
        self._load_oids()

    def failed(self, error: Exception) -> Exception:
        """Return what an error of the library means; stop the engine if the library has stopped. Under the mutex."""
        explained = explain(error, self.environment.path)
        if isinstance(explained, DamagedError):
            self.refuse(explained)
        return explained

    def refuse(self, error: Exception) -> None:
        """Answer everything from now on with `error`."""
        self._failure = error
        self.objects = _Refusing(error)

    @property
    def highest(self) -> bytes:
        """An oid that no object's is above."""
        return self._highest

    def is_new(self, oid: bytes) -> bool:
        """Tell without a look into the table whether no object of this oid was ever stored. Under the mutex."""
        return oid > self._highest

    def set_meta(self, key: bytes, value: bytes | None, transaction: Transaction) -> None:
        """Write or delete (None) a row of the table meta. The caller holds the mutex."""
        if value is not None:
            self._meta.put(key, value, txn=transaction)
        elif self._meta.exists(key):
            self._meta.delete(key, txn=transaction)

    def get_meta(self, key: bytes) -> bytes | None:
        """Return a row of the table meta."""
        with self.lock:
            return self._meta.get(key)

    def rows(self, start: bytes, limit: int, size: float = math.inf) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` objects, about `size` bytes, in key order from the oid `start`; the table is a btree."""
        found: list[tuple[bytes, bytes]] = []
        with self.lock, self.explaining(), reading(self.objects) as cursor:
            row = cursor.set_range(start)
            while row is not None:
                found.append(row)
                size -= len(row[1])
                if len(found) == limit or size <= 0:
                    break
                row = cursor.next()
        return found

    def living(self, found: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return those of the rows whose objects are not doomed."""
        with self.lock:
            closed = self.doomed.closed
            return [row for row in found if unpack_uint64(row[0]) not in closed] if closed else found

    def numbers(self) -> BitMap64:
        """Return all oids as numbers, for a table that has no order, but for doomed ones."""
        with self.lock, self.explaining():
            return BitMap64(unpack_uint64(oid) for oid, _ in rows(self.objects)) - self.doomed.closed

    def get(self, oid: bytes) -> bytes | None:
        """Return the record of an object, None where there is none."""
        with self.lock, self.explaining():
            return self.objects.get(oid)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what an error of the library means in its place. The caller holds the mutex."""
        try:
            yield
        except LIBRARY_ERRORS as error:
            raise self.failed(error) from error


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_disable_all)


def _disable_all() -> None:
    """Keep a forked child from touching the files, of which its parent is the owner."""
    for engine in list(_engines):
        if isinstance(engine._failure, StorageClosed):
            continue
        engine.lock = threading.Lock()
        engine.environment.disown()
        engine.refuse(
            StorageClosed(
                f"{engine.environment.path} was opened by process {os.getppid()}, and this is its child: "
                "open storages after forking, one owner per directory, or use a server"
            )
        )
