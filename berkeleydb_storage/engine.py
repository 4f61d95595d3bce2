"""The transactional core: objects, their counts and the journal change together, under one mutex.

Composed of parts that keep a promise each: the gate to the tables, the state between transactions, durability, oids, a
reader. Owns what they come to: commits, the identity, the rows of the table meta, beginning and stopping. Its methods
may be called from any thread unless they say that the caller holds the mutex.

Invariants:

1. Every read and write of a table is done under `lock`; there is one writer.
2. A transaction changes records, counts, queues, the totals and the journal together, or nothing.
3. No record refers to an object that does not exist.
4. With `durable`, `commit` returns after the log of its transaction is on the disk.

Killed inside a transaction: the next open finds none of it. Killed between its end and the flush: all of it or none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.durability import Durability
from berkeleydb_storage.environment import META, NO_SYNC, WRITE_NO_SYNC, Environment, Table, Transaction
from berkeleydb_storage.errors import DanglingReferenceError, StorageClosed, describe_oids
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
)
from berkeleydb_storage.gate import Gate
from berkeleydb_storage.identity import read_identity, write_identity
from berkeleydb_storage.journal import Fate, Journal
from berkeleydb_storage.listeners import Listener
from berkeleydb_storage.oids import Oids
from berkeleydb_storage.reader import Reader
from berkeleydb_storage.transactions import Transactions

SLICE = 32
"""Records that are applied at a time, where the one who commits does it in slices."""
SLICE_BYTES = 256 << 10
"""Bytes of them at most, but for the last one."""
COLLECTION_BYTES = 1 << 20
"""Room asked for by a transaction that deletes."""

Pending = Mapping[bytes, tuple[bytes, tuple[bytes, ...]]]
"""oid -> (record, what it refers to), of a commit."""


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
            environment: to be closed by whoever opened it.
            durable: whether a commit waits until its log is on the disk.
            async_log_write: with `durable` False, whether a commit hands its log to the system.
        """
        self.environment = environment
        self.durable = durable
        self.gate = Gate(environment)
        self.transactions = Transactions(self.gate, NO_SYNC if durable or not async_log_write else WRITE_NO_SYNC)
        self.durability = Durability(self.gate, self.transactions.journal, durable=durable)
        self.oids = Oids(self.transactions, self.durability)
        self.reader = Reader(self.gate, self.transactions.doomed)
        self.journal = self.transactions.journal
        self.counts = self.transactions.counts
        self.doomed = self.transactions.doomed
        self._meta = environment.tables[META]
        self.identity = read_identity(environment.tables)
        """What `identity` says; replaced under lock. With a tid that is on the disk it tells a client what it has."""
        self.unmarked = self._meta.exists(META_UNMARKED)
        """Whether there may be garbage of which no suspect is known: a full pack is due."""
        self.last_commit = float("-inf")

    @property
    def lock(self) -> threading.Lock:
        """The mutex."""
        return self.gate.lock

    @property
    def objects(self) -> Table:
        """The table of objects. The caller holds the mutex."""
        return self.gate.objects

    @property
    def size(self) -> int:
        """The number of objects."""
        return self.journal.state.objects

    @property
    def next_oid(self) -> int:
        """No oid from this one on was handed out."""
        return self.oids.next

    @property
    def highest(self) -> bytes:
        """An oid that no object's is above."""
        return self.transactions.highest

    @property
    def flushed(self) -> int:
        """A transaction that is on the disk, as `Durability` knows it."""
        return self.durability.flushed

    @property
    def closing(self) -> bool:
        """Whether the storage is to be closed: who is in the middle of long work ends it."""
        return self.durability.closing

    @closing.setter
    def closing(self, closing: bool) -> None:
        self.durability.closing = closing

    def require_open(self) -> None:
        """Raise what it is that keeps the engine from being used, if there is something."""
        self.gate.require_open()

    def refuse(self, error: Exception) -> None:
        """Answer everything from now on with `error`. The caller holds the mutex."""
        self.gate.refuse(error)

    def failed(self, error: Exception) -> Exception:
        """Return what an error of the library means; stop the engine if the library has stopped. Under the mutex."""
        return self.gate.failed(error)

    def new_oid(self) -> bytes:
        """Return an oid that was never returned before; as `Oids.new`."""
        return self.oids.new()

    def was_handed_out(self, oid: bytes) -> bool:
        """Tell whether `new_oid` may have returned it, now or in an earlier opening. The root's always was."""
        return self.oids.was_handed_out(oid)

    def get(self, oid: bytes) -> bytes | None:
        """Return the record of an object, None where there is none."""
        return self.reader.get(oid)

    def listen(self, listener: Listener) -> None:
        """Tell `listener` about all changes that are not its own, for as long as it lives."""
        self.transactions.listeners.listen(listener)

    def time(self) -> int:
        """Return the time in microseconds since the epoch, which never goes back."""
        return self.transactions.clock.time()

    def tick(self) -> int:
        """Return a time that no earlier transaction has. The caller holds the mutex."""
        return self.transactions.clock.tick()

    def require_idle(self) -> None:
        """Raise `CommitRefused` while something is done exclusively. The caller holds the mutex."""
        self.transactions.exclusion.require_idle()

    def renew_identity(self) -> None:
        """Give the storage a new identity, on the disk whatever `durable` says: no client will go on with its cache.

        Raises:
            ReadOnlyError, DiskFullError, CommitRefused, DamagedError, StorageClosed: it cannot.
        """
        with self.lock:
            self._renew_identity()

    def _renew_identity(self, next_oid: bytes | None = None) -> None:
        with self.change(0) as change:
            write_identity(self.environment.tables, change.transaction)
            if next_oid is not None:
                self._meta.put(META_NEXT_OID, next_oid, txn=change.transaction)
        self.identity = read_identity(self.environment.tables)
        self.durability.flush_now()

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
        durability, thread = self.durability, threading.get_ident()
        try:
            with self.gate.lock:
                if unless is not None and unless():
                    return False
                if not pending:
                    return True
                for _ in self.applying(pending, size, origin, mark):
                    pass
                if not durability.durable:
                    return True
                durability.flushing.add(thread)
            durability.flush("the commit")
        finally:
            durability.flushing.discard(thread)  # here, before an interruption can come between
            if durability.closing:
                durability.tell()
        return True

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
        transactions = self.transactions
        if transactions.exclusion.under_way is not None:
            transactions.exclusion.require_idle()
        if not self.oids.next and ROOT_OID in pending:
            self.oids.hand_out_root()
        with Change(transactions, size) as change:
            change.mark = mark
            failpoints.reached("commit.begun")
            left = SLICE_BYTES
            for number, (oid, (record, refs)) in enumerate(sorted(pending.items()), 1):
                change.store(oid, record, refs)
                left -= len(record)
                if left < 0 or not number % SLICE:
                    left = SLICE_BYTES
                    yield
            if len(pending) <= SLICE:
                dangling = change.settle()
            else:
                dangling = yield from change.settling()
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
            with self.lock, self.gate.explaining():
                self.require_open()
                fate = self.journal.fate(mark, since)
        return fate

    def make_durable(self) -> None:
        """Bring everything that is committed to the disk, if the engine is durable.

        Raises:
            CommitInDoubt, DamagedError, StorageClosed: it cannot.
        """
        self.durability.make_durable()

    def stop(self) -> None:
        """Let the commits under way finish, give back the oids that were not handed out, and refuse all that follows.

        Raises:
            DiskFullError, DamagedError: the oids cannot be given back; they are skipped at the next opening.
        """
        with self.lock:
            self.durability.finish()
            try:
                if self.gate.failure is None:
                    self.oids.give_back()
            finally:
                self.refuse(StorageClosed(f"{self.environment.path} is closed"))

    def change(self, size: int = COLLECTION_BYTES) -> Change:
        """Return a transaction of about `size` bytes. The caller holds the mutex from its beginning to its end."""
        return Change(self.transactions, size)

    def adopt(self) -> None:
        """Take everything from the tables anew, after their rows were replaced."""
        with self.lock:
            self.reload_all()

    def reload_all(self) -> None:
        """Do what `adopt` does. The caller holds the mutex."""
        self.transactions.reload_all()
        self.oids.reload()
        self.unmarked = self._meta.exists(META_UNMARKED)
        self.identity = read_identity(self.environment.tables)

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
