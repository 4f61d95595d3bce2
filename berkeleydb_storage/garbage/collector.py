"""Deletes objects whose reference count is 0, and those that their deletion leaves without referrers.

Every step is one small transaction of the engine, which needs no flush: a crash that loses it loses no correctness,
the objects are still in the queue. Any thread may call it; the engine's mutex is held for one step.

Invariants:

1. An object is deleted only while its count is 0, in the transaction that saw it.
2. After every step each object with count 0 that still exists is in the queue.
3. The children of a deleted object inherit the time since which it had no referrer: so has the whole structure.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pickle import dumps
from typing import NamedTuple
from zlib import compress

from durus.persistent import Persistent
from durus.serialize import pack_record

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.errors import DiskFullError
from berkeleydb_storage.format import pack_garbage_key, references, unpack_uint64
from berkeleydb_storage.garbage.policy import GarbageNumbers, garbage_collection_interface

logger = logging.getLogger(__name__)

STEP = 50
"""Objects a step: about half a millisecond with the mutex."""
FAN = 500
"""References that a step lets go of at most: some 4 milliseconds. A record with more is split first."""
PAUSE = 0.001
"""Seconds between two steps of the background thread: the foreground gets the mutex and the interpreter."""
NOTHING = dumps(Persistent, 2) + compress(dumps({}, 2))
"""The data of an object without attributes, as Durus' ObjectWriter makes it."""
FOREVER = (1 << 64) - 1


class Collected(NamedTuple):
    """What was collected since the storage was opened."""

    objects: int
    bytes: int
    read: int
    """Records read to do it."""


class Collector:
    """The acyclic collector of one storage."""

    def __init__(self, engine: Engine, policy: garbage_collection_interface) -> None:
        """Collect nothing yet."""
        self.policy = policy
        self._engine = engine
        self.collected = Collected(0, 0, 0)  # guarded by the engine's mutex
        self._spare: list[bytes] = []  # guarded by the engine's mutex: oids for the parts of large records
        self._wanted = 0  # guarded by the engine's mutex: how many it takes to go on

    def numbers(self, committed: int = 0) -> GarbageNumbers:
        """Return what the policy is told."""
        engine = self._engine
        return GarbageNumbers(engine.counts.garbage, committed, time.monotonic() - engine.last_commit)

    def turn(self, committed: int = 0, pause: float = 0.0) -> int:
        """Ask the policy, delete as much as it says of what is older than its grace period; return how many."""
        if not self._engine.counts.garbage:
            return 0
        wanted = self.policy.amount(self.numbers(committed))
        until = self._engine.time() - int(self.policy.grace * 1e6)
        done = 0
        while done < wanted and not self._engine.closing:
            deleted = self.step(min(STEP, wanted - done), until)
            if not deleted:
                break
            done += deleted
            if pause:
                time.sleep(pause)
        return done

    def pack(self) -> Iterator[str | None]:
        """Delete all that has no referrer now, whatever its age, a step at a time. Yields what to tell, or None."""
        engine = self._engine
        until, started = engine.time(), time.monotonic()
        total = 0
        yield f"collecting {engine.counts.garbage} objects and what hangs on them"
        while deleted := self.step(STEP, until):
            total += deleted
            yield None
        yield f"collected {total} objects in {time.monotonic() - started:.2f} s"

    def step(self, limit: int, until: int) -> int:
        """Delete up to `limit` objects that have had no referrer since `until` (microseconds) or before.

        Returns:
            How many entries of the queue and objects were done with; 0 when there is nothing to do.

        Raises:
            DiskFullError: there is no room; nothing is lost, it goes on when there is.
        """
        fresh = [self._engine.new_oid() for _ in range(self._wanted)]
        with self._engine.lock, self._engine.change() as change:
            failpoints.reached("collect.begun")
            self._spare += fresh
            done, size = self._collect(limit, until, change)
            failpoints.reached("collect.written")
        if done:
            failpoints.reached("collect.committed")
            deleted = len(change.deleted)
            with self._engine.lock:
                before = self.collected
                self.collected = Collected(before.objects + deleted, before.bytes + size, before.read + deleted)
        return done

    def _collect(self, limit: int, until: int, change: Change) -> tuple[int, int]:
        """Delete within a transaction; return how many entries and objects were done with, and their bytes."""
        counts, transaction = self._engine.counts, change.transaction
        orphans: list[tuple[int, bytes]] = []
        done = size = dropped = 0
        while done < limit and (entry := orphans.pop() if orphans else self._take(until, change)):
            since, oid = entry
            record = self._found(oid, change)
            children = _children(oid, record)
            if dropped + len(children) > FAN:
                if dropped or not self._split(oid, children, since, change):
                    orphans.append(entry)
                done += 1
                break
            done += 1
            if record:
                change.delete(oid)
            size += len(record)
            dropped += len(children)
            for child in children:
                if counts.drop_reference(child, change.now, transaction):
                    orphans.append((since, child))
        for since, oid in orphans:
            counts.condemn(oid, since, transaction)
        return done, size

    def _take(self, until: int, change: Change) -> tuple[int, bytes] | None:
        """Take the oldest entry out of the queue; None where none is as old as `until`. Wrong ones are dropped."""
        counts = self._engine.counts
        while (entry := counts.next_condemned()) is not None and entry[0] <= until:
            since, oid = entry
            counts.unqueue(oid, since, change.transaction)
            change.touched = True
            if counts.is_condemned(oid, since):
                return entry
            logger.error("object %d was in the garbage queue by mistake: taken out", unpack_uint64(oid))
        return None

    def _found(self, oid: bytes, change: Change) -> bytes:
        """Return the record of a condemned object; nothing where it does not exist, and then its rows are removed."""
        record = self._engine.objects.get(oid)
        if record is None:
            logger.error("object %d is garbage and does not exist: its rows are removed", unpack_uint64(oid))
            self._engine.counts.forget(oid, change.transaction)
            change.touched = True
        return record or b""

    def _split(self, oid: bytes, children: Sequence[bytes], since: int, change: Change) -> bool:
        """Put objects that have `FAN` of its references each in the place of a condemned one, and condemn them.

        So every step stays short, and the storage is as consistent between them as ever.

        Returns:
            False where that takes more oids than are at hand; they are there at the next step.
        """
        parts = [children[start : start + FAN] for start in range(0, len(children), FAN)]
        self._wanted = max(0, len(parts) - len(self._spare))
        if self._wanted:
            return False
        self._engine.need_room(16 * len(children))
        change.delete(oid)
        for part in parts:
            substitute = self._spare.pop()
            change.create(substitute, pack_record(substitute, NOTHING, b"".join(part)))
            self._engine.counts.condemn(substitute, since, change.transaction)
        return True

    def validate(self) -> int:
        """Re-check every entry of the queue, take out those that are wrong, and return how many that were."""
        engine = self._engine
        position, wrong = b"", 0
        while True:
            with engine.lock:
                batch = list(islice(engine.counts.condemned(position), 1000))
                bad = [(since, oid) for since, oid in batch if not engine.counts.is_condemned(oid, since)]
            if bad:
                with engine.lock, engine.change() as change:
                    for since, oid in bad:
                        engine.counts.unqueue(oid, since, change.transaction)
                    change.touched = True
                wrong += len(bad)
            if len(batch) < 1000:
                return wrong
            since, oid = batch[-1]
            position = pack_garbage_key(since, oid) + b"\0"

    def background_turn(self) -> None:
        """Do what the policy says, gently; a full disk is waited out."""
        try:
            self.turn(pause=PAUSE)
        except DiskFullError as error:
            logger.debug("garbage waits: %s", error)


def _children(oid: bytes, record: bytes) -> tuple[bytes, ...]:
    """Return what a deleted record referred to; nothing where it is malformed: that is kept, and not lost."""
    if not record:
        return ()
    try:
        return references(oid, record)
    except ValueError as error:
        logger.error("garbage is malformed, so that what it referred to stays: %s", error)
        return ()
