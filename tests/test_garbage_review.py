"""What the collector must withstand: interruptions in the middle of a step, clocks that jump, old garbage."""

import pytest
from graphs import EVER, assert_books, commit, record, scratch_storage

RING = range(10, 30)
STEPS = 60
POINTS = 150


class Interrupting:
    """Counts references, and is interrupted once."""

    def __init__(self, counts, at, error):
        self._count, self._left, self._error = counts.count, at, error

    def __call__(self, oid):
        self._left -= 1
        if self._left == 0:
            raise self._error
        return self._count(oid)

    @property
    def happened(self):
        return self._left <= 0


def commit_suspects_that_live(storage):
    """Commit a ring and a small graph that both lost a referrer and are still reached."""
    ring = [record(key, *(other for other in (key - 1, key + 1) if other in RING)) for key in RING]
    small = [record(1, 30), record(30, 31, 32), record(31, 30), record(32, 30, 20)]
    commit(storage, record(0, 1, 10, 40), record(40, 30), *small, *ring)
    commit(storage, record(0, 1, 10))
    storage._running.collector.collect(STEPS, EVER)
    commit(storage, record(0, 1, 20))
    return storage.get_size()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_search_that_was_interrupted_deletes_nothing_that_lives(error):
    for at in range(1, POINTS):
        with scratch_storage(60) as storage:
            objects = commit_suspects_that_live(storage)
            counts = storage._engine.counts
            counts.count = interrupting = Interrupting(counts, at, error)
            interrupted = 0
            for _ in range(STEPS):
                try:
                    storage._running.collector.step(3, EVER)
                except BaseException:
                    interrupted += 1
            assert interrupted == interrupting.happened
            if not interrupted:
                assert at > 50, "the searches were not interrupted where they were long"
                return
            assert storage.get_size() == objects
            assert_books(storage)
    raise AssertionError("more points than were visited")
