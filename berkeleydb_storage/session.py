"""What one user of the engine sees: Durus' storage contract, with the pending commit and the invalidations of its own.

A session is for one ``Connection`` or one server. Two threads that each have a ``Connection`` take a session each; then
they find their conflicts as two clients of a Durus server do.

Thread-safety: every method may be called from any thread; each thread has a pending commit of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from heapq import heappop, heappush

from durus.error import ConflictError, ReadConflictError
from durus.storage import Storage
from pyroaring import BitMap64

from berkeleydb_storage.engine import Engine, Pending
from berkeleydb_storage.environment import LIBRARY_ERRORS
from berkeleydb_storage.errors import CommitRefused, describe_oids, missing
from berkeleydb_storage.format import OID_LENGTH, pack_uint64, references, unpack_oids, unpack_uint64

Invalidator = Callable[[list[bytes]], None]


class _Commit:
    """What a thread has stored, and not ended."""

    __slots__ = ("records", "size")

    def __init__(self) -> None:
        self.records: dict[bytes, tuple[bytes, tuple[bytes, ...]]] = {}
        self.size = 0


class _Pending(threading.local):
    """The commit under way of each thread; looked up once a call, because that takes longer than to look up others."""

    def __init__(self) -> None:
        self.commit = _Commit()


class Session(Storage):
    """One user of an open storage. Made by ``BerkeleyDBStorage.session()``; the storage itself is one, too."""

    def __init__(self, engine: Engine, *, ordered: bool, committed: Callable[[int], None]) -> None:
        """Begin a session.

        Args:
            engine: what it works on.
            ordered: whether the table of objects has an order (btree).
            committed: called after each commit, with the number of records, by the committing thread.
        """
        self._engine = engine
        self._gate = engine.gate
        self._oids = engine.oids
        self._ordered = ordered
        self._committed = committed
        self._pending = _Pending()
        self._invalid = BitMap64()  # guarded by the engine's mutex
        engine.listen(self)

    @property
    def engine(self) -> Engine:
        """What it works on; for the modules of this package."""
        return self._engine

    @property
    def ordered(self) -> bool:
        """Whether the table of objects has an order (btree)."""
        return self._ordered

    def committed(self, records: int) -> None:
        """Do what is to be done after a commit of so many records that was made through the engine itself."""
        self._committed(records)

    def invalidate(self, oids: Collection[bytes]) -> None:
        """Note objects that another session or the collector changed. Called by the engine, under its mutex."""
        if oids:
            self._invalid.update(unpack_oids(oids))

    def load(self, oid: bytes) -> bytes:
        """Return the record of an object.

        Args:
            oid: 8 bytes.

        Raises:
            DurusKeyError: there is no such object.
            ReadConflictError: another session changed it since the last `sync`.
            ValueError: `oid` is not 8 bytes.
            DamagedError, StorageClosed: it cannot be read.
        """
        gate = self._gate
        try:
            with gate.lock:
                if self._invalid and unpack_uint64(oid) in self._invalid:
                    raise ReadConflictError([oid])
                return gate.objects[oid]
        except KeyError:
            if len(oid) != OID_LENGTH:
                raise ValueError(f"an oid has {OID_LENGTH} bytes, not {len(oid)}: {oid[:16]!r}") from None
            raise missing(oid) from None
        except LIBRARY_ERRORS as error:
            with gate.lock:
                raise gate.failed(error) from error

    def begin(self) -> None:
        """Begin a commit of this thread; what it had stored and not ended is dropped."""
        self._pending.commit = _Commit()

    def store(self, oid: bytes, record: bytes) -> None:
        """Include a record in the commit of this thread.

        Args:
            oid: 8 bytes that `new_oid` returned, or those of the root.
            record: as ``durus.serialize.pack_record`` makes it.

        Raises:
            ValueError: the oid was never handed out, or the record is malformed or another object's. The commit
                under way is dropped.
        """
        pending, record = self._pending.commit, bytes(record)
        try:
            refs = references(oid, record)
            if not self._oids.was_handed_out(oid):
                raise ValueError(f"object {unpack_uint64(oid)} is a surprise: this storage never handed out its oid")
        except ValueError:
            self.begin()
            raise
        pending.records[oid] = (record, refs)
        pending.size += len(record)

    def end(self, handle_invalidations: Invalidator | None = None) -> None:
        """Conclude the commit of this thread: store its records, all or nothing.

        With ``durable=True`` they are on the disk when this returns.

        Args:
            handle_invalidations: called, before anything is stored, with the oids that others changed since the last
                `sync`; it raises a ``ConflictError`` where that matters, and then nothing is stored.

        Raises:
            ConflictError: what `handle_invalidations` raised; or it let pass that others changed one of the records.
            DanglingReferenceError: a record refers to an object that does not exist. Nothing was stored.
            ReadOnlyError, DiskFullError: nothing was stored.
            CommitInDoubt: stored, but not brought to the disk yet.
            DamagedError, StorageClosed: nothing was stored.
        """
        engine, pending = self._engine, self._pending.commit
        records, size = pending.records, pending.size
        self.begin()
        stale: Callable[[], bool] | None = None
        if handle_invalidations is not None:
            handle, stale = handle_invalidations, self.is_stale
            if stale():
                self._report(handle, records)
        while not engine.commit(records, size, self, unless=stale):
            self._report(handle, records)
        if records:
            self._committed(len(records))

    def _report(self, handle: Invalidator, records: Pending) -> None:
        """Let `handle` decide about what others changed; but nobody overwrites what was changed since he was told.

        The handler of a Durus server lets everything pass: it told its client before, and waited for the records since.
        """
        oids = self.sync()
        try:
            handle(oids)
        except ConflictError:
            raise
        except BaseException:
            self._take_back(BitMap64(map(unpack_uint64, oids)))
            raise
        both = [oid for oid in oids if oid in records]
        if both:
            raise CommitRefused(f"others changed {describe_oids(both)} meanwhile: nothing was stored", both)

    def is_stale(self) -> bool:
        """Whether others changed something since the last `sync`."""
        return bool(self._invalid)

    def is_invalid(self, oid: bytes) -> bool:
        """Whether others changed this object since the last `sync`. The caller holds the engine's mutex."""
        return bool(self._invalid) and unpack_uint64(oid) in self._invalid

    def sync(self) -> list[bytes]:
        """Return the oids of the objects that others changed, or that were collected, since the last call."""
        if not self._invalid:
            return []
        invalid = None
        try:
            with self._engine.lock:
                invalid, self._invalid = self._invalid, BitMap64()
            return [pack_uint64(number) for number in invalid]
        except BaseException:
            if invalid is not None:
                self._take_back(invalid)
            raise

    def _take_back(self, invalid: BitMap64) -> None:
        """Report these again by the next `sync`: whoever asked for them was interrupted."""
        with self._engine.lock:
            self._invalid |= invalid

    def new_oid(self) -> bytes:
        """Return an oid that was never returned before.

        Raises:
            DiskFullError, DamagedError, StorageClosed, CommitInDoubt: none can be reserved.
        """
        return self._oids.new()

    def get_size(self) -> int:
        """Return the number of objects, garbage included, in constant time."""
        return self._engine.size

    def gen_oid_record(self, start_oid: bytes | None = None, batch_size: int = 100) -> Iterator[tuple[bytes, bytes]]:
        """Yield (oid, record) of every object, or of those that can be reached from one.

        Args:
            start_oid: None: all objects, in the order of their oids. Else what it leads to, itself first, nearly
                breadth first; about a bit of memory for each.
            batch_size: records that are read at once.

        Raises:
            DurusKeyError: while iterating from `start_oid`, an object was deleted before it was reached.
            ValueError: `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size!r}")
        if start_oid is not None:
            return self._reachable(start_oid, batch_size)
        return self._in_order(batch_size) if self._ordered else self._unordered(batch_size)

    def _in_order(self, batch_size: int) -> Iterator[tuple[bytes, bytes]]:
        """Go up to the highest oid there is at first, so that it ends while others add objects."""
        start, last = b"", self._engine.highest
        while rows := self._engine.reader.rows(start, batch_size):
            start = rows[-1][0] + b"\0"
            if start > last:
                yield from self._engine.reader.living([row for row in rows if row[0] <= last])
                return
            yield from self._engine.reader.living(rows)

    def _unordered(self, batch_size: int) -> Iterator[tuple[bytes, bytes]]:
        """Take all oids at once, so that none is missed or met twice while the table is written to."""
        for number in self._engine.reader.numbers():
            oid = pack_uint64(number)
            record = self._engine.get(oid)
            if record is not None:
                yield oid, record

    def _reachable(self, start_oid: bytes, batch_size: int) -> Iterator[tuple[bytes, bytes]]:
        todo, seen = [start_oid], BitMap64()
        while todo:
            batch: list[bytes] = []
            while todo and len(batch) < batch_size:
                oid = heappop(todo)
                number = unpack_uint64(oid)
                if number not in seen:
                    seen.add(number)
                    batch.append(oid)
            for oid, record in zip(batch, self.bulk_load(batch), strict=True):
                yield oid, record
                for ref in references(oid, record):
                    if unpack_uint64(ref) not in seen:
                        heappush(todo, ref)

    def close(self) -> None:
        """End the session; the storage stays open."""
        self.begin()


__all__ = ["ConflictError", "Invalidator", "Session"]
