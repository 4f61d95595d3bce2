"""What the collector must withstand: interruptions in the middle of a step, clocks that jump, old garbage."""

import logging
import os
import signal
import time
from threading import Event, Thread

import pytest
from graphs import EVER, assert_books, commit, hand_out, quiet, record, scratch_storage

from berkeleydb_storage import GarbageThread, clock, engine, failpoints
from berkeleydb_storage.garbage import cycles
from berkeleydb_storage.garbage.cycles import Search
from berkeleydb_storage.garbage.deletion import STEP_BYTES, Deletion

DAY = 86_400
PATIENCE = 20
"""Seconds after which something hangs."""
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


class Clocks:
    """The time, by two clocks that can be set."""

    def __init__(self, ahead=0):
        self.ahead = ahead
        self.passed = 0

    def __getattr__(self, name):
        return getattr(time, name)

    def time_ns(self):
        return time.time_ns() + int((self.ahead + self.passed) * 1e9)

    def monotonic_ns(self):
        return time.monotonic_ns() + int(self.passed * 1e9)


def test_a_clock_that_was_set_back_keeps_no_garbage(tmp_path, monkeypatch):
    clocks = Clocks(ahead=DAY)
    monkeypatch.setattr(engine, "time", clocks)
    monkeypatch.setattr(clock, "time", clocks)
    with quiet(tmp_path) as storage:
        hand_out(storage, 10)
        commit(storage, record(0, 1), record(1))
        storage.pack()
    clocks.ahead = 0
    with quiet(tmp_path, garbage_collection=GarbageThread(grace=60, interval=DAY)) as storage:
        collector = storage._running.collector
        commit(storage, record(0))
        clocks.passed = 50
        collector.turn()
        assert storage.get_size() == 2
        clocks.passed = 70
        collector.turn()
        assert storage.get_size() == 1
        # what ends a pack has no journal row, so that the clock of the next opening begins a little before it
        assert 60 <= collector.numbers().since_pack < DAY


def test_time_goes_on_while_the_clock_is_behind_the_last_transaction(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(engine, "time", clocks)
    monkeypatch.setattr(clock, "time", clocks)
    with scratch_storage(10) as storage:
        commit(storage, record(0))
        clocks.ahead, first = -DAY, storage._engine.time()
        clocks.passed = 100
        assert 99e6 <= storage._engine.time() - first < DAY * 1e6
        commit(storage, record(0, data=b"later"))
        assert 99e6 <= storage._engine.journal.state.time - first < DAY * 1e6
        clocks.ahead = DAY
        assert storage._engine.time() - first >= DAY * 1e6


def in_child(work):
    """Return what a forked child says that does this; the default action of its alarm ends it where it hangs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        try:
            said = work()
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, str(said).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def test_a_child_that_packs_is_told_so_even_if_it_was_forked_within_a_step():
    with scratch_storage(10) as storage:
        commit(storage, record(0))
        with storage._running.collector._one:  # this thread does the step; in the child it is another one
            other = Thread(target=lambda: told.extend([in_child(storage.pack), in_child(packed)]))
            told, packed = [], lambda: list(storage.get_packer())
            other.start()
            other.join()
    assert told[0] == "StorageClosed"
    assert "open storages after forking" in told[1]


class Compacting(GarbageThread):
    """Compacts all the time."""

    def compact(self, numbers):
        return True


def test_closing_in_the_middle_of_a_compaction_is_no_error(tmp_path, monkeypatch, caplog):
    begun, closing = Event(), Event()

    def stop_in_the_middle(name):
        if name == "compact.begun" and not begun.is_set():
            begun.set()
            assert closing.wait(PATIENCE)

    monkeypatch.setattr(failpoints, "hook", stop_in_the_middle)
    storage = quiet(tmp_path, garbage_collection=Compacting(interval=0.001))
    assert begun.wait(PATIENCE)
    storage._engine.closing = True
    closing.set()
    storage.close()
    assert not [entry for entry in caplog.records if entry.levelno > logging.INFO]


@pytest.mark.parametrize("popular", [True, False])
@pytest.mark.parametrize("width", [100, 8000])
def test_a_search_among_wide_records_gives_others_a_turn(width, popular):
    """However many references they have, and however many of them lead to nothing."""
    members = range(1, 101)
    shared = range(1000, 1000 + width)

    def refs(number):
        return (number % 100 + 1, *shared) if number in members else ()

    def count(number):
        nonlocal counted
        counted += 1
        return 1 if number in members else 100 if popular else 1

    search, turns = Search(1, 200, 200), []
    while search.outcome is None:
        counted, before = 0, search.reads
        search.run(refs, count, 50)
        turns.append((counted, search.reads - before))
        assert len(turns) < 1000
    assert max(looked for looked, _ in turns) <= cycles.AT_ONCE + cycles.BRANCHES * 3
    assert all(0 <= read <= 50 for _, read in turns)
    assert all(width * read <= cycles.AT_ONCE + 2 * width for _, read in turns[1:] if not popular)


def test_a_step_of_a_pack_deletes_few_wide_records(monkeypatch):
    """Looking at their references takes its time, even where they need nothing to be done."""
    width, members = 5000, range(1, 41)
    with scratch_storage(60 + width) as storage:
        shared = range(50, 50 + width)
        wide = [record(key, key % len(members) + 1, *shared) for key in members]
        commit(storage, record(0, 1, *shared), *wide, *map(record, shared))
        commit(storage, record(0))
        steps, sweep = [], Deletion.sweep
        monkeypatch.setattr(Deletion, "sweep", lambda *a, **k: steps.append(sweep(*a, **k)) or steps[-1])
        storage.pack()
        assert storage.get_size() == 1
        assert sum(step.objects for step in steps) >= len(members) + width
        assert max(step.bytes for step in steps) <= STEP_BYTES + 9 * width


def test_suspects_that_are_too_young_are_not_looked_at_again_and_again(monkeypatch):
    """A storage that nobody uses must not keep the processor busy for as long as the grace period lasts."""
    pairs = range(1, 202, 2)
    with scratch_storage(300) as storage:
        commit(
            storage,
            record(0, *pairs),
            *(record(key, key + 1) for key in pairs),
            *(record(key + 1, key) for key in pairs),
        )
        commit(storage, record(0, *pairs[50:]))
        collector, counts = storage._running.collector, storage._engine.counts
        before, looked, suspect = storage._engine.time() - 10**9, [], counts.suspect
        counts.suspect = lambda key: looked.append(key) or suspect(key)

        def steps(until):
            looked.clear()
            done = 0
            while collector.step(20, until):
                done += 1
                assert done < 1000
            return len(looked)

        assert steps(before) >= 50
        assert steps(before) == 0
        commit(storage, record(0, *pairs[60:]))
        assert steps(before) >= 60
        assert steps(before) == 0
        assert steps(storage._engine.time()) >= 60
        assert storage.get_size() == 1 + 2 * len(pairs[60:])
