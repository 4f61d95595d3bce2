"""Processes that load and commit records, whoever keeps them, and see whether all is there that was committed."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle, islice

from benchmarks.objects.records import is_item
from benchmarks.serving.clients import Measured, Paced, Restless
from benchmarks.serving.littered import DURUS, made
from benchmarks.serving.stores import Client, Place, opened
from berkeleydb_storage.format import pack_uint64

TRANSACTION = 100
"""Loads in a transaction of who loads only."""

Loaded = list[tuple[int, bytes]]
"""Objects, and what was loaded as each."""


class User:
    """One client of whoever keeps the objects."""

    def __init__(self, number: int) -> None:
        """Do not connect yet.

        Args:
            number: that of this one among those that work together.
        """
        self._number = number
        self._versions = count(1)

    def connect(self, store: str, place: Place, first: int, objects: int, kind: str = DURUS) -> None:
        """Open a store.

        Args:
            store: a name of `STORES`.
            place: where it is.
            first: number of the first object.
            objects: how many there are.
            kind: of records.
        """
        self._client: Client = opened(store, place)
        self._kind = kind
        self._objects = [number for number in range(first, first + objects) if kind != DURUS or is_item(number)]
        self._new = cycle(random.Random(self._number).sample(self._objects, len(self._objects)))
        self._changed: dict[int, int] = {}
        gc.freeze()

    def disconnect(self) -> None:
        """Close it."""
        gc.unfreeze()
        self._client.close()

    def prepare(self, users: int, own: int, hot: int) -> None:
        """Load the objects that only this one changes, and some others.

        Args:
            users: how many work together.
            own: how many objects it changes.
            hot: how many others it loads.
        """
        self._own = list(islice((n for n in self._objects if n % users == self._number % users), own))
        self._hot = list(islice(self._new, hot))
        for number in (*self._own, *self._hot):
            self._client.load(pack_uint64(number))

    def ready(self) -> None:
        """Let Python's own collector do its work before it is measured, with what came since it connected."""
        gc.collect()

    # --- for a while

    def loads(self, at: float, seconds: float, hot: bool) -> Measured:
        """Load objects one by one, in transactions.

        Args:
            at: when to begin, by the clock of all processes.
            seconds: how long.
            hot: whether those that were loaded before, again and again, or those that were not, once each.
        """
        loaded: Loaded = []
        measured = self._timed(at, seconds, self._loading(cycle(self._hot) if hot else self._new, loaded))
        self._verify_loaded(loaded)
        return measured

    def commits(self, at: float, seconds: float) -> Measured:
        """Commit new versions of its objects, one by one."""
        return self._timed(at, seconds, self._committing())

    def works(self, at: float, seconds: float, committing: bool) -> Measured:
        """Commit, or load new objects."""
        return self.commits(at, seconds) if committing else self.loads(at, seconds, False)

    def _timed(self, at: float, seconds: float, step: Callable[[], None]) -> Measured:
        """Do something again and again from a time on; the rate is that since then, whenever this process got to it."""
        clock, taken = time.perf_counter, []
        note, until = taken.append, at + seconds
        time.sleep(max(0.0, at - clock()))
        now = clock()
        while now < until or not taken:
            step()
            then, now = now, clock()
            note(now - then)
        return {"rate": len(taken) / (now - at), "taken": [round(each * 1e6, 1) for each in taken]}

    def _loading(self, numbers: Iterator[int], loaded: Loaded) -> Callable[[], None]:
        begin, load, so_far, note = self._client.begin, self._client.load, count(), loaded.append

        def step() -> None:
            number = next(numbers)
            if next(so_far) % TRANSACTION == 0:
                begin()
            note((number, load(pack_uint64(number))))

        return step

    def _committing(self) -> Callable[[], None]:
        chosen, commit, kind, changed = cycle(self._own).__next__, self._client.commit, self._kind, self._changed

        def step() -> None:
            number = chosen()
            version = next(self._versions)
            commit([(pack_uint64(number), made(kind, number, version))])
            changed[number] = version

        return step

    # --- until it is told to end

    def begin_work(self, committing: bool, every: float) -> None:
        """Begin to commit or to load, by a thread: every so many seconds, or without a rest where that is 0."""
        self._loaded: Loaded = []
        known = cycle(self._objects[self._number :] + self._objects[: self._number])
        step = self._committing() if committing else self._loading(known, self._loaded)
        self._work = Paced(step, every) if every else Restless(step)

    def end_work(self) -> list[tuple[float, float]]:
        """End that; return when each began, or was due, by the clock of all processes, and how many seconds it took."""
        taken = self._work.end()
        self._verify_loaded(self._loaded)
        return taken

    # --- what is there

    def changed(self) -> list[tuple[int, int]]:
        """Return the objects that it changed since it connected, each with the last version."""
        return list(self._changed.items())

    def verify(self, changed: Sequence[tuple[int, int]]) -> int:
        """Make sure that objects are in the versions that were committed last; return how many."""
        self._client.begin()
        for number, version in changed:
            data = self._client.load(pack_uint64(number))
            if data != made(self._kind, number, version):
                raise AssertionError(f"version {version} of object {number} was committed, and is not there")
        return len(changed)

    def _verify_loaded(self, loaded: Loaded) -> None:
        for number, data in loaded:
            found = data.find(b"%016d" % number) + 16
            if data != made(self._kind, number, int(data[found : found + 16] or -1)):
                raise AssertionError(f"what was loaded as object {number} is not it")

    def close(self) -> None:
        """Nothing: the process ends."""
