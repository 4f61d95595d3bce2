"""When garbage is collected: the grace period, packing, and the policies, asked by commits or by a thread."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest
from graphs import (
    assert_books,
    collected,
    commit,
    drain,
    hand_out,
    number,
    oid,
    queue,
    quiet,
    record,
    rows,
    scratch_storage,
    step,
    stored,
    turn,
)

from berkeleydb_storage import (
    Collected,
    GarbageInline,
    GarbageManual,
    GarbageThread,
    failpoints,
    garbage_collection_interface,
)
from berkeleydb_storage.environment import GARBAGE
from berkeleydb_storage.format import unpack_garbage_key
from berkeleydb_storage.garbage import collector as module
from berkeleydb_storage.garbage.collector import LOOKUPS, STEP

PATIENCE = 60.0
"""Seconds after which a thread is taken for dead."""


@pytest.fixture
def storage():
    with scratch_storage(40) as opened:
        yield opened
        assert_books(opened)


class Clock:
    """Stands in for the module time of the engine."""

    def __init__(self):
        self.now = 1_000_000.0

    def time(self):
        return self.now

    def time_ns(self):
        return int(self.now * 1e9)

    def monotonic(self):
        return self.now

    def monotonic_ns(self):
        return self.time_ns()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("berkeleydb_storage.clock.time", clock)
    monkeypatch.setattr("berkeleydb_storage.engine.time", clock)
    monkeypatch.setattr("berkeleydb_storage.garbage.collector.time", clock)
    return clock


def test_what_lost_its_last_referrer_stays_for_the_grace_period(clock):
    with scratch_storage(5, garbage_collection=GarbageInline(grace=60)) as storage:
        commit(storage, record(0, 1), record(1))
        commit(storage, record(0))
        for now, there in ((0.0, True), (59.9, True), (60.1, False)):
            clock.now = 1_000_000.0 + now
            assert turn(storage) == (not there)
            assert (1 in stored(storage)) == there


def test_what_is_linked_again_within_the_grace_period_lives(clock):
    with scratch_storage(5, garbage_collection=GarbageInline(grace=60)) as storage:
        commit(storage, record(0, 1), record(1, 2), record(2))
        commit(storage, record(0))
        clock.now += 59
        commit(storage, record(0, 1))
        clock.now += 1000
        turn(storage)
        assert stored(storage) == {0: [1], 1: [2], 2: []}
        commit(storage, record(0))
        clock.now += 59
        assert turn(storage) == 0
        clock.now += 2
        assert turn(storage) == 2


def test_what_hangs_on_garbage_has_waited_as_long(clock):
    """The whole structure goes when the grace period of its head is over, however many steps that takes."""
    with scratch_storage(10, garbage_collection=GarbageInline(grace=60)) as storage:
        commit(storage, record(0, 1), record(1, 2, 3), record(2, 4), record(3), record(4))
        clock.now += 500
        commit(storage, record(0))
        condemned = storage._engine.journal.state.time
        clock.now += 61
        for _ in range(4):
            assert step(storage, until=storage._engine.time() - 60_000_000) == 1
            assert {unpack_garbage_key(key)[0] for key in rows(storage, GARBAGE)} <= {condemned}
        assert stored(storage) == {0: []}


def test_the_oldest_goes_first(clock):
    with scratch_storage(5, garbage_collection=GarbageInline(grace=60)) as storage:
        commit(storage, record(0, 1, 2), record(1), record(2))
        commit(storage, record(0, 1))
        clock.now += 30
        commit(storage, record(0))
        clock.now += 31
        assert turn(storage) == 1
        assert stored(storage) == {0: [], 1: []}


def test_packing_ignores_the_grace_period(clock):
    with scratch_storage(5, garbage_collection=GarbageInline(grace=1e6)) as storage:
        commit(storage, record(0, 1), record(1))
        commit(storage, record(0))
        storage.pack()
        assert stored(storage) == {0: []}


def test_manual_collects_only_when_it_is_told(clock):
    with scratch_storage(5, garbage_collection=GarbageManual()) as storage:
        commit(storage, record(0, 1), record(1))
        commit(storage, record(0))
        clock.now += 1e6
        commit(storage, record(0, data=b"new"))
        assert turn(storage) == 0
        assert 1 in stored(storage)
        storage.pack()
        assert 1 not in stored(storage)


def test_inline_collects_in_proportion_to_the_commit(clock):
    policy = GarbageInline(grace=0, factor=2, least=3)
    with scratch_storage(100, garbage_collection=policy) as storage:
        many = range(20, 100)
        commit(storage, record(0, *many), *map(record, many))
        policy.least = policy.factor = 0
        commit(storage, record(0, 1, 2), record(1), record(2))
        policy.least, policy.factor = 3, 2
        clock.now += 1
        assert len(queue(storage)) == 80
        commit(storage, record(1))
        assert len(queue(storage)) == 77
        commit(storage, record(0, 1, 2), record(1), record(2))
        assert len(queue(storage)) == 71


def test_inline_keeps_up_for_ever(clock):
    """Each commit replaces what the one before stored: what waits does not pile up."""
    with scratch_storage(5, garbage_collection=GarbageInline(grace=0)) as storage:
        for _ in range(50):
            clock.now += 1
            fresh = [number(storage.new_oid()) for _ in range(20)]
            commit(storage, record(0, *fresh), *map(record, fresh))
            assert storage.statistics().garbage <= 20
        assert storage.get_size() <= 1 + 40


def test_a_policy_of_ones_own_asked_by_every_commit(clock):
    asked = []

    class Mine(garbage_collection_interface):
        grace = 0

        def amount(self, numbers):
            asked.append(numbers)
            return 1

    with scratch_storage(10, garbage_collection=Mine()) as storage:
        commit(storage, record(0, 1, 2, 3), *map(record, (1, 2, 3)))
        assert [numbers[:3] for numbers in asked] == [(0, 4, 0.0)]
        clock.now += 5
        commit(storage, record(0, 4), record(4))
        assert [numbers[:3] for numbers in asked[1:]] == [(3, 2, 0.0)]
        assert len(queue(storage)) == 2
        clock.now += 5
        commit(storage, record(0))
        assert asked[-1][:2] == (3, 1)
        assert len(queue(storage)) == 2


class Reached:
    """Lets the test wait for a crash point that another thread passes."""

    def __init__(self, name):
        self.name = name
        self.event = threading.Event()

    def __call__(self, name):
        if name == self.name:
            self.event.set()

    def wait(self):
        assert self.event.wait(PATIENCE), f"{self.name} was not reached"
        self.event.clear()


@pytest.fixture
def a_step(monkeypatch):
    reached = Reached("collect.committed")
    monkeypatch.setattr(failpoints, "hook", reached)
    return reached


def test_the_thread_collects_in_the_background(a_step):
    policy = GarbageThread(grace=0, interval=0.001)
    with scratch_storage(5, garbage_collection=policy) as storage:
        commit(storage, record(0, 1), record(1, 2), record(2))
        commit(storage, record(0))
        a_step.wait()
        assert stored(storage) == {0: []}
        commit(storage, record(0, 3), record(3))
        commit(storage, record(0))
        a_step.wait()
        assert stored(storage) == {0: []}


def test_the_thread_minds_the_grace_period(monkeypatch):
    """Asked again and again, it leaves what is young alone."""
    asked = threading.Semaphore(0)

    class Watched(GarbageThread):
        def amount(self, numbers):
            asked.release()
            return super().amount(numbers)

    with scratch_storage(5, garbage_collection=Watched(grace=3600, interval=0.001)) as storage:
        commit(storage, record(0), record(1))
        for _ in range(5):
            assert asked.acquire(timeout=PATIENCE)
        assert stored(storage) == {0: [], 1: []}


def test_a_policy_of_ones_own_asked_by_a_thread(a_step):
    class Mine:
        """Without the interface as its base: its members are enough."""

        grace = 0.0
        interval = 0.001

        def amount(self, numbers):
            assert threading.current_thread() is not threading.main_thread()
            assert numbers.committed == 0
            return 1000

    with scratch_storage(5, garbage_collection=Mine()) as storage:
        commit(storage, record(0, 1), record(1))
        commit(storage, record(0))
        a_step.wait()
        assert stored(storage) == {0: []}


@pytest.mark.parametrize("interval", [None, 0.001])
def test_a_policy_that_fails_does_no_harm(caplog, interval):
    failing = threading.Semaphore(0)

    class Broken(garbage_collection_interface):
        def amount(self, numbers):
            failing.release()
            raise ZeroDivisionError("my policy")

    policy = Broken()
    policy.interval = interval
    with scratch_storage(5, garbage_collection=policy) as storage:
        commit(storage, record(0), record(1))
        commit(storage, record(0, data=b"new"))
        for _ in range(2):
            assert failing.acquire(timeout=PATIENCE)
        assert stored(storage) == {0: [], 1: []}
    assert "my policy" in caplog.text


def test_a_turn_deletes_as_much_as_the_policy_says(storage):
    policy = storage._running.collector.policy
    policy.grace = 0
    many = range(1, 36)
    commit(storage, record(0, *many), *map(record, many))
    commit(storage, record(0))
    for amount, left in ((0, 35), (1, 34), (30, 4), (10**6, 0)):
        policy.amount = lambda numbers, amount=amount: amount
        turn(storage)
        assert len(queue(storage)) == left


def test_a_turn_ends_when_the_storage_closes(storage):
    commit(storage, record(0), *map(record, range(1, 30)))
    policy = storage._running.collector.policy
    policy.grace, policy.amount = 0, lambda numbers: 10**6
    storage._engine.closing = True
    assert turn(storage) == 0
    storage._engine.closing = False
    assert turn(storage) == 29


def test_a_long_turn_of_the_thread_pauses_between_steps(storage, monkeypatch):
    paused = []
    monkeypatch.setattr("berkeleydb_storage.garbage.collector.time.sleep", paused.append)
    hand_out(storage, 3 * STEP)
    commit(storage, record(0), *map(record, range(1, 2 * STEP + 1)))
    policy = storage._running.collector.policy
    policy.grace, policy.amount = 0, lambda numbers: 10**6
    storage._running.collector.background_turn()
    assert paused == [module.PAUSE] * 2
    assert queue(storage) == []


def test_the_thread_waits_while_something_is_done_exclusively(storage):
    collector = storage._running.collector
    commit(storage, record(0, 1), record(1))
    commit(storage, record(0))
    collector.policy.grace, collector.policy.amount = 0, lambda numbers: 10**6
    with ThreadPoolExecutor(1) as other, storage._engine.transactions.exclusion.during("a migration"):
        other.submit(collector.background_turn).result(PATIENCE)
    assert len(queue(storage)) == 1
    collector.background_turn()
    assert queue(storage) == []


def test_loads_are_noticed(storage):
    collector = storage._running.collector
    commit(storage, record(0, 1), record(1))
    collector.background_turn()
    for loads in (0, LOOKUPS + 1):
        used, collector._asked = collector._used, -inf
        for _ in range(loads):
            storage.load(oid(1))
        collector.background_turn()
        assert (collector._used > used) == (loads > 0)


def test_what_the_thread_does_itself_is_no_use_of_the_storage(storage):
    collector = storage._running.collector
    commit(storage, record(0, *range(1, 36)), *map(record, range(1, 36)))
    commit(storage, record(0))
    collector.background_turn()
    used, collector._asked = collector._used, -inf
    collector.policy.grace, collector.policy.amount = 0, lambda numbers: 10**6
    collector.background_turn()
    collector._asked = -inf
    collector.background_turn()
    assert queue(storage) == []
    assert collector._used == used


def test_at_rest_it_is_seldom_asked_how_much_was_looked_up(storage, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "IDLE", inf)
    monkeypatch.setattr(storage._engine.environment, "lookups", lambda: asked.append(True) or 0)
    commit(storage, record(0, 1), record(1))
    for _ in range(5):
        storage._running.collector.background_turn()
    assert len(asked) == 1
    commit(storage, record(0))
    for _ in range(5):
        storage._running.collector.background_turn()
    assert len(asked) == 6


def test_what_was_collected_is_counted(storage):
    assert collected(storage) == Collected(0, 0, 0)
    large = record(1, 2, 3, data=b"x" * 1000)
    commit(storage, record(0, 1), large, record(2), record(3))
    commit(storage, record(0))
    drain(storage)
    assert collected(storage) == Collected(3, len(large) + 24, 3)
    commit(storage, record(4))
    drain(storage)
    assert collected(storage) == Collected(4, len(large) + 36, 4)


def test_what_a_pack_read_and_deleted_is_counted(storage):
    """Each record that it deletes is read once to do it; and each that it marks, once."""
    commit(storage, record(0, 1, 3, 5), record(1, 2), record(2, 1), record(3, 4), record(4, 3), record(5))
    commit(storage, record(0, 3))
    storage.pack()
    assert stored(storage) == {0: [3], 3: [4], 4: [3]}
    marked, deleted, size = 3, 3, len(record(1, 2)) * 2 + len(record(5))
    assert collected(storage) == Collected(deleted, size, marked + deleted)


def test_a_step_that_fails_takes_nothing(storage, monkeypatch):
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0))

    def fail(name):
        if name == "collect.written":
            raise InterruptedError(name)

    monkeypatch.setattr(failpoints, "hook", fail)
    with pytest.raises(InterruptedError):
        step(storage, 10)
    monkeypatch.setattr(failpoints, "hook", None)
    assert stored(storage) == {0: [], 1: [2], 2: []}
    assert collected(storage) == Collected(0, 0, 0)
    assert_books(storage)


def test_the_log_tells_what_the_thread_met(tmp_path, caplog, monkeypatch):
    """An error of the background work is logged once, and the work goes on when it can."""
    caplog.set_level(logging.WARNING)
    told = threading.Event()

    class Handler(logging.Handler):
        def emit(self, entry):
            if "works again" in entry.getMessage():
                told.set()

    handler = Handler()
    logging.getLogger("berkeleydb_storage").addHandler(handler)
    failing = iter([RuntimeError("first"), RuntimeError("second")])

    class Policy(GarbageThread):
        def amount(self, numbers):
            error = next(failing, None)
            if error is not None:
                raise error
            return super().amount(numbers)

    with quiet(tmp_path, garbage_collection=Policy(grace=0, interval=0.001)) as storage:
        hand_out(storage, 2)
        commit(storage, record(0), record(1))
        assert told.wait(PATIENCE)
    logging.getLogger("berkeleydb_storage").removeHandler(handler)
    said = [message for message in caplog.messages if "garbage" in message]
    assert said == [
        "berkeleydb_storage garbage: first; it is tried again",
        "berkeleydb_storage garbage works again",
    ]
