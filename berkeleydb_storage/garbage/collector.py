"""Does what the policy says: deletes garbage, looks at suspects, packs; and keeps account of it.

Any thread may call it. One of them at a time does a step; the engine's mutex is held for that only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import islice
from math import inf
from typing import NamedTuple

from berkeleydb_storage import compaction
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.errors import CommitRefused, StorageClosed
from berkeleydb_storage.format import META_PACKED, META_SEARCHED, pack_garbage_key, unpack_uint64
from berkeleydb_storage.garbage.deletion import STEP, Deleted, Deletion
from berkeleydb_storage.garbage.packing import Pack
from berkeleydb_storage.garbage.policy import IDLE, GarbageManual, GarbageNumbers, garbage_collection_interface
from berkeleydb_storage.garbage.requests import Packing, PackRequests
from berkeleydb_storage.garbage.suspicion import Suspicion

logger = logging.getLogger(__name__)

TURN = 0.1
"""Seconds that a turn of the background thread takes at most, pauses included, where records are large."""
READS_A_DELETION = 4
"""Records read by a full pack that count as one deleted: so much shorter is the mutex held for them."""
PAUSE = 0.001
"""Seconds between two steps of the background thread: the foreground gets the mutex and the interpreter."""
COMPACT_HOLD = 0.001
"""Seconds with the mutex for a step of a compaction."""
COMPACT_STEPS = 50
"""Of them in a turn, when the storage is idle."""
LOOKUPS = 50
"""Pages looked up by others since the last question that count as being used."""


class Collected(NamedTuple):
    """What was collected since the storage was opened."""

    objects: int
    bytes: int
    """In their records."""
    read: int
    """Records read to do it: to find what is garbage, and to delete it."""


class Collector:
    """The collector of one storage."""

    def __init__(
        self,
        engine: Engine,
        policy: garbage_collection_interface,
        *,
        ordered: bool = True,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        """Collect nothing yet.

        Args:
            engine: the storage.
            policy: when, and how much.
            ordered: whether the table of objects has an order (btree).
            checkpoint: makes one, which a compaction needs; None: there is none.
        """
        self.policy = policy
        self.collected = Collected(0, 0, 0)
        self._engine = engine
        self._ordered = ordered
        self._one = threading.RLock()
        """Whoever does a step holds it; it guards all that is below. Taken before the engine's mutex."""
        self._deletion = Deletion(engine)
        self._suspicion = Suspicion(engine, self._deletion)
        self._packs = PackRequests(self._begin)
        self._flip = False  # the queue and the suspects take turns
        self._checkpoint = checkpoint
        self._compacting: compaction.Steps | None = None
        self._compacted = -inf  # when a compaction was complete, by the monotonic clock
        self._used = time.monotonic()  # when others last used the storage
        self._lookups = 0  # pages that had been looked up when that was asked last
        self._asked = -inf  # when that was, by the monotonic clock
        self.packed = self._time_of(META_PACKED)
        """When a full pack was last complete, or else the storage created, in seconds since the epoch."""

    def numbers(self, committed: int = 0) -> GarbageNumbers:
        """Return what the policy is told. Any thread may ask."""
        engine = self._engine
        return GarbageNumbers(
            waiting=engine.counts.garbage + engine.doomed.left,
            committed=committed,
            idle=max(0.0, time.monotonic() - max(self._used, engine.last_commit)),
            suspects=len(engine.counts.pending),
            unsettled=len(engine.counts.unsettled) + engine.unmarked,
            objects=engine.size,
            packing=self._packs.wanted,
            since_pack=max(0.0, engine.time() / 1e6 - self.packed),
            since_compact=time.monotonic() - self._compacted,
            now=time.time(),
        )

    def turn(self, committed: int = 0, pause: float = 0.0) -> int:
        """Ask the policy, and do as much as it says.

        What lost its last referrer, or became a suspect, within the grace period is left alone.

        Args:
            committed: objects stored by the commit that just ended.
            pause: seconds to rest between two steps; the turn then ends after `TURN` seconds at the latest.

        Returns:
            How many records were read or deleted.
        """
        if type(self.policy) is GarbageManual and not vars(self.policy) and not self._packs.wanted:
            return 0  # it would be asked by each commit, for nothing
        numbers = self.numbers(committed)
        wanted = int(self.policy.amount(numbers))
        self._packs.by_policy = self._policy_says("pack", numbers)
        if numbers.packing:
            wanted = max(wanted, STEP)
        until = self._engine.time() - int(self.policy.grace * 1e6)
        done, end = 0, time.monotonic() + (TURN if pause else inf)
        while done < wanted and not self._engine.closing and time.monotonic() < end:
            did = self.step(min(STEP, wanted - done), until)
            if not did:
                break
            done += did
            if pause:
                time.sleep(pause)
        if self._policy_says("compact", numbers):
            self._compact(COMPACT_STEPS if numbers.idle > IDLE else 1)
        return done

    def background_turn(self) -> None:
        """Do what the policy says, gently; a full disk, or a migration, is waited out, and a close ends it."""
        if not self._at_rest() or time.monotonic() - self._asked >= IDLE:
            self._notice_others()
        done = 0
        try:
            done = self.turn(pause=PAUSE)
        except CommitRefused as error:
            logger.debug("garbage waits: %s", error)
        except StorageClosed:
            if not self._engine.closing:
                raise
            return
        if done or self._compacting is not None:
            self._lookups = self._engine.environment.lookups()

    def _at_rest(self) -> bool:
        """Tell whether there is nothing to do that how idle the storage is could matter for, as far as is known."""
        counts = self._engine.counts
        suspects = counts.pending or (counts.suspects and not self._suspicion.complete)
        wanted = self._packs.wanted or self._compacting is not None
        return not (counts.garbage or suspects or self._engine.doomed.closed or wanted)

    @property
    def packing(self) -> Packing | None:
        """How far the full pack under way is, None where there is none."""
        return self._packs.packing

    def pack(self) -> Packer:
        """Ask for a full pack: all goes that the root does not reach now, whatever its age.

        Another thread may do some of the steps, the background thread first of all: so it gets done even if nobody
        asks for the next step of what is returned. Where that is dropped, the pack is called off.

        Raises:
            StorageClosed, DamagedError: the storage cannot be used any more.
        """
        self._engine.require_open()  # in a forked child nobody releases a lock that was held
        with self._one:
            return Packer(self, self._packs.ask())

    def serve(self, ticket: int) -> bool:
        """Do a step of the pack with this number; False where it is complete.

        Raises:
            DiskFullError, DamagedError, StorageClosed: it cannot go on; what was deleted is.
            BerkeleyDBStorageError: it was given up, for an error that another thread met.
        """
        with self._one:
            if self._packs.is_served(ticket):
                return False
            self._pack_step()
            return True

    def withdraw(self, ticket: int) -> None:
        """Call a pack off, as far as this request goes; the next step drops it. At any time."""
        self._packs.withdraw(ticket)

    def tidy(self) -> None:
        """Drop a pack that nobody wants any more, unless another thread is at it, which will."""
        if self._one.acquire(blocking=False):
            try:
                self._packs.tidy()
            finally:
                self._one.release()

    def _policy_says(self, question: str, numbers: GarbageNumbers) -> bool:
        """Ask the policy about something that those written for the first release know nothing of."""
        answer = getattr(self.policy, question, None)
        return answer is not None and bool(answer(numbers))

    def _compact(self, steps: int) -> None:
        """Do some steps of a compaction."""
        if self._checkpoint is None or not self._one.acquire(blocking=False):
            return
        try:
            if self._compacting is None:
                self._checkpoint()
                self._compacting = compaction.compact(self._engine, hold=COMPACT_HOLD)
            if len(list(islice(self._compacting, steps))) < steps:
                self._compacting, self._compacted = None, time.monotonic()
                self._checkpoint()
        except BaseException:
            self._compacting = None
            raise
        finally:
            self._one.release()

    def step(self, limit: int, until: int) -> int:
        """Do a step of what there is to do, unless another thread is at it.

        Args:
            limit: records to read or delete at most; of a full pack that is wanted, a step besides.
            until: what became garbage or suspect after this time (microseconds since the epoch) is left alone.

        Returns:
            How many records it was about; 0: there is nothing to do.

        Raises:
            DiskFullError: there is no room; nothing is lost, it goes on when there is.
            DamagedError: a full pack met a record that is malformed.
        """
        if not self._one.acquire(blocking=False):
            return 0
        try:
            self._packs.tidy()
            done = self._local_step(limit, until)
            return done + self._pack_step() if self._packs.wanted else done
        finally:
            self._one.release()

    def collect(self, limit: int, until: int) -> int:
        """Do a step with what has no referrer, only; as `step`. One thread at a time."""
        return self._account(self._deletion.collect(limit, until)) if self._engine.counts.garbage else 0

    def _local_step(self, limit: int, until: int) -> int:
        """Do a step of what needs no full pack; nothing that could come in the way of one."""
        if self._engine.doomed.closed:
            return 0 if self._packs.sweeping else self._sweep(limit)
        first, second = (self.collect, self._look) if self._flip else (self._look, self.collect)
        self._flip = not self._flip
        return first(limit, until) or second(limit, until)

    def _sweep(self, limit: int) -> int:
        return self._account(self._deletion.sweep(limit))

    def _look(self, limit: int, until: int) -> int:
        """Do a step with the suspects; while a full pack goes on that is left to it."""
        if self._packs.wanted or not (self._engine.counts.pending or not self._suspicion.complete):
            return 0
        looked = self._suspicion.step(limit, until)
        self._account(looked.deleted, looked.reads)
        return looked.done

    def _pack_step(self) -> int:
        """Do a step of a full pack; return how many deletions that was worth, 0 at its end."""
        step = self._packs.step()
        if step is None:
            self.packed = self._time_of(META_PACKED)
            return 0
        self._account(step.deleted, step.reads)
        return step.deleted.done or 1 + step.done // READS_A_DELETION

    def close(self) -> None:
        """Let go of a pack and a compaction under way: the storage is being closed."""
        with self._one:
            self._packs.drop()
            self._compacting = None

    def _begin(self) -> Pack:
        with self._engine.lock:
            self._suspicion.forgive()
        self._suspicion.shed()
        return Pack(self._engine, self._deletion, ordered=self._ordered)

    def _account(self, deleted: Deleted, reads: int = 0) -> int:
        """Add up what was collected."""
        before = self.collected
        self.collected = Collected(
            before.objects + deleted.objects, before.bytes + deleted.bytes, before.read + deleted.objects + reads
        )
        return deleted.done

    def _time_of(self, key: bytes) -> float:
        try:
            return unpack_uint64(self._engine.get_meta(key) or bytes(8)) / 1e6
        except ValueError:  # a check reports it
            return 0.0

    def searched(self) -> float | None:
        """Return when a suspect was last looked at, in seconds since the epoch; None for never."""
        return self._time_of(META_SEARCHED) or None

    def _notice_others(self) -> None:
        """Notice whether others have used the storage since the last turn of the background thread.

        The library goes through its whole cache for that number: a microsecond for each MB.
        """
        lookups, self._asked = self._engine.environment.lookups(), time.monotonic()
        if lookups - self._lookups > LOOKUPS:
            self._used = self._asked
        self._lookups = lookups

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


class Packer:
    """A full pack that was asked for, as an iterator: each item is a step, and what to tell about it, or None."""

    def __init__(self, collector: Collector, ticket: int) -> None:
        """Begin to wait for the pack with this number."""
        self._collector = collector
        self._ticket = ticket
        self._before, self._started = collector.collected.objects, time.monotonic()
        self._activity = ""
        self._ended = False

    def __iter__(self) -> Packer:
        """Return itself."""
        return self

    def __next__(self) -> str | None:
        """Do a step.

        Raises:
            DiskFullError, DamagedError, StorageClosed: it cannot go on; what was deleted is.
        """
        if self._ended:
            raise StopIteration
        if not self._collector.serve(self._ticket):
            self._ended = True
            collected = self._collector.collected.objects - self._before
            return f"collected {collected} objects in {time.monotonic() - self._started:.2f} s"
        packing = self._collector.packing
        if packing is None or packing.activity == self._activity:
            return None
        self._activity = packing.activity
        return self._activity if packing.total is None else f"{self._activity}, {packing.total} in all"

    def close(self) -> None:
        """Wait no more. Not under the engine's mutex."""
        self._ended = True
        self._collector.withdraw(self._ticket)
        self._collector.tidy()

    def __del__(self) -> None:
        """Wait no more. This may run anywhere, so that it takes no lock."""
        self._collector.withdraw(self._ticket)
