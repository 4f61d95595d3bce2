"""The acyclic collector: what it deletes and what never, in which steps, and what its policies make it do."""

import logging
import random
import threading
from itertools import pairwise

import pytest
from graphs import (
    assert_books,
    commit,
    counts,
    hand_out,
    number,
    oid,
    oids,
    queue,
    quiet,
    record,
    rows,
    scratch_storage,
    stored,
    suspects,
    table,
)

from berkeleydb_storage import (
    Collected,
    DamagedError,
    DanglingReferenceError,
    GarbageInline,
    GarbageManual,
    GarbageThread,
    ReadOnlyError,
    failpoints,
    garbage_collection_interface,
)
from berkeleydb_storage.environment import GARBAGE, OBJECTS, REFCOUNTS
from berkeleydb_storage.format import pack_condemned, pack_count, pack_garbage_key, unpack_garbage_key
from berkeleydb_storage.garbage import collector as module
from berkeleydb_storage.garbage.collector import STEP

CHAIN = 100_000
FAN = 20_000
RANDOM_GRAPHS = 5_000
"""Graphs with a commit between every two steps."""
THOROUGH_GRAPHS = 60
"""Graphs with every commit of one reference between every two steps."""
NODES = 6
EVER = (1 << 63) - 1
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


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("berkeleydb_storage.engine.time", clock)
    monkeypatch.setattr("berkeleydb_storage.garbage.collector.time", clock)
    return clock


def step(storage, limit=1, until=EVER):
    return storage._running.collector.step(limit, until)


def turn(storage, committed=0):
    return storage._running.collector.turn(committed)


def collected(storage):
    return storage.statistics().collected


def test_what_has_no_referrer_goes_with_all_that_hangs_on_it(storage):
    commit(storage, record(0, 1, 5), record(1, 2, 3), record(2, 4), record(3, 4, 5), record(4), record(5))
    commit(storage, record(0, 5))
    storage.pack()
    assert stored(storage) == {0: [5], 5: []}
    assert suspects(storage) == {5}


def test_shared_children_stay_as_long_as_one_refers_to_them(storage):
    commit(storage, record(0, 1, 2), record(1, 3), record(2, 3), record(3))
    commit(storage, record(0, 2))
    storage.pack()
    assert (stored(storage), counts(storage)) == ({0: [2], 2: [3], 3: []}, {})
    commit(storage, record(0))
    storage.pack()
    assert stored(storage) == {0: []}


def test_garbage_that_refers_to_the_root(storage):
    commit(storage, record(0, 1), record(1, 0))
    commit(storage, record(0))
    storage.pack()
    assert (stored(storage), counts(storage)) == ({0: []}, {})


def test_cycles_stay_and_are_suspect(storage):
    """They are not for this collector; what hangs on them stays with them."""
    commit(storage, record(0, 1), record(1, 2, 3), record(2, 1), record(3))
    commit(storage, record(0))
    storage.pack()
    assert stored(storage) == {0: [], 1: [2, 3], 2: [1], 3: []}
    assert suspects(storage) == {1}


def test_a_cycle_that_hangs_on_garbage(storage):
    commit(storage, record(0, 1), record(1, 2), record(2, 3), record(3, 2))
    commit(storage, record(0))
    storage.pack()
    assert stored(storage) == {0: [], 2: [3], 3: [2]}
    assert suspects(storage) == {2}


def test_nothing_to_do(storage):
    commit(storage, record(0))
    before = storage._engine.journal.tid
    assert step(storage) == 0
    assert turn(storage) == 0
    assert storage._engine.journal.tid == before


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_a_step_is_no_larger_than_it_may_be(storage, limit):
    commit(storage, record(0, *range(1, 31)), *(record(key, 30 + key % 9) for key in range(1, 30)), *LEAVES)
    commit(storage, record(0))
    sizes = []
    while done := step(storage, limit):
        sizes.append(done)
        assert_books(storage)
    assert all(size == limit for size in sizes[:-1])
    assert sum(sizes) == 39
    assert stored(storage) == {0: []}


LEAVES = [record(key) for key in range(30, 39)] + [record(39)]


def test_a_long_chain_takes_no_room(tmp_path):
    """Neither the stack nor the queue grows with it: after every step one object of the chain waits."""
    with quiet(tmp_path) as storage:
        hand_out(storage, CHAIN + 1)
        commit(storage, *(record(key, key + 1) for key in range(CHAIN)), record(CHAIN))
        commit(storage, record(0))
        for _ in range(CHAIN // STEP - 1):
            assert step(storage, STEP) == STEP
            assert storage.statistics().garbage == 1
        assert queue(storage) == [CHAIN - STEP + 1]
        assert step(storage, 2 * STEP) == STEP
        assert step(storage, STEP) == 0
        assert stored(storage) == {0: []}
        assert collected(storage).objects == CHAIN
        assert_books(storage)


def test_a_wide_fan(tmp_path):
    with quiet(tmp_path) as storage:
        hand_out(storage, FAN + 2)
        leaves = range(2, FAN + 2)
        commit(storage, record(0, 1), record(1, *leaves), *map(record, leaves))
        commit(storage, record(0))
        assert step(storage) == 1
        assert storage.statistics().garbage == FAN
        storage.pack()
        assert stored(storage) == {0: []}
        assert_books(storage)


def test_a_wide_fan_of_shared_leaves(tmp_path):
    with quiet(tmp_path) as storage:
        hand_out(storage, 200)
        leaves = range(100, 200)
        commit(
            storage, record(0, *range(1, 100)), *(record(key, *leaves) for key in range(1, 100)), *map(record, leaves)
        )
        commit(storage, record(0))
        storage.pack()
        assert stored(storage) == {0: []}
        assert counts(storage) == {}
        assert suspects(storage) == set()
        assert_books(storage)


def test_what_is_linked_again_between_two_steps_lives(storage):
    commit(storage, record(0, 1), record(1, 2, 3), record(2), record(3))
    commit(storage, record(0))
    assert step(storage) == 1
    assert set(queue(storage)) == {2, 3}
    commit(storage, record(0, 2))
    storage.pack()
    assert stored(storage) == {0: [2], 2: []}


def test_what_was_deleted_between_two_steps_is_not_linked(storage):
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0))
    assert step(storage) == 1
    with pytest.raises(DanglingReferenceError) as caught:
        commit(storage, record(0, 1))
    assert caught.value.oids == oids(1)
    commit(storage, record(0, 2))
    storage.pack()
    assert stored(storage) == {0: [2], 2: []}


class Situation:
    """A random acyclic graph in a storage, and what must become of it."""

    def __init__(self, storage, source):
        self.storage = storage
        self.source = source
        self.nodes = [number(storage.new_oid()) for _ in range(NODES)]
        self.refs = {0: self.choose(self.nodes)}
        for index, key in enumerate(self.nodes):
            self.refs[key] = self.choose(self.nodes[index + 1 :])
        self.known = dict(self.refs)
        self.there = set(self.refs)
        self.store(self.refs)
        self.store({0: self.choose(self.refs[0])})

    def choose(self, keys):
        return {key for key in keys if self.source.random() < 0.4}

    def store(self, pending):
        """Commit these references; what is not there makes the whole commit be refused, and nothing else does."""
        records = [record(key, *sorted(refs)) for key, refs in pending.items()]
        missing = {ref for refs in pending.values() for ref in refs} - self.there - pending.keys()
        if missing:
            with pytest.raises(DanglingReferenceError) as caught:
                commit(self.storage, *records)
            assert sorted(caught.value.oids) == oids(*sorted(missing))
        else:
            commit(self.storage, *records)
            self.refs |= pending
            self.known |= pending
            self.there |= pending.keys()

    def change(self):
        """Commit something, from a client that has seen all objects and not heard of any that was collected."""
        index = self.source.randrange(-1, NODES)
        key = self.nodes[index] if index >= 0 else 0
        below = self.nodes[index + 1 :]
        kind = self.source.randrange(3)
        if kind == 0 and below:
            self.store({key: self.known[key] | {self.source.choice(below)}})
        elif kind == 1:
            self.store({key: self.choose(self.known[key])})
        else:
            fresh = number(self.storage.new_oid())
            self.store({0: self.known[0] | {fresh}, fresh: self.choose(self.nodes)})

    def step(self):
        """Make a step of one object, and look at what it took."""
        done = step(self.storage)
        left = stored(self.storage)
        gone = self.there - left.keys()
        assert len(gone) == done <= 1
        referred = {ref for key in self.there for ref in self.refs[key]} | {0}
        assert not gone & referred
        self.there -= gone
        assert left == {key: sorted(self.refs[key]) for key in self.there}
        return done

    def finish(self):
        """Collect the rest: what is left is what can be reached. Leave the storage with an empty root."""
        while self.step():
            pass
        reached, todo = set(), [0]
        while todo:
            key = todo.pop()
            reached.add(key)
            todo += self.refs[key] - reached
        assert self.there == reached
        assert_books(self.storage)
        commit(self.storage, record(0))
        self.storage.pack()
        assert stored(self.storage) == {0: []}


def test_commits_between_all_steps_on_random_graphs():
    """Never is there a reference to what is not there: an object lives, or the commit is refused."""
    source = random.Random(2)
    refused = 0
    with scratch_storage(1) as storage:
        for _ in range(RANDOM_GRAPHS):
            situation = Situation(storage, source)
            tid = storage._engine.journal.tid
            changes = steps = 0
            while situation.step() or changes < 2:
                situation.change()
                changes, steps = changes + 1, steps + 1
            refused += tid + changes + steps - storage._engine.journal.tid
            situation.finish()
    assert refused > RANDOM_GRAPHS // 20, "the graphs say little: hardly any commit met what was collected"


def test_every_link_between_every_two_steps():
    with scratch_storage(1) as storage:
        for seed in range(THOROUGH_GRAPHS):
            for target in range(NODES):
                position = 0
                while link_after(storage, random.Random(seed), target, position):
                    position += 1


def link_after(storage, source, target, position):
    """Link an object from the root after some steps. Returns whether there were that many."""
    situation = Situation(storage, source)
    there = all(situation.step() for _ in range(position))
    if there:
        situation.store({0: situation.known[0] | {situation.nodes[target]}})
    situation.finish()
    return there


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


def test_a_packer_goes_in_small_steps(storage):
    hand_out(storage, 4 * STEP + 30)
    many = range(1, 4 * STEP + 11)
    commit(storage, record(0, *many), *map(record, many))
    commit(storage, record(0))
    packer = storage.get_packer()
    assert next(packer) == f"collecting {len(many)} objects and what hangs on them"
    sizes = [storage.get_size()]
    told = []
    for message in packer:
        told.append(message)
        sizes.append(storage.get_size())
        commit(storage, record(0, data=b"%d" % len(told)))
    assert [before - after for before, after in pairwise(sizes)] == [STEP] * 4 + [10, 0]
    assert told[:-1] == [None] * 5
    assert told[-1].startswith(f"collected {len(many)} objects in ")


def test_a_packer_that_is_dropped_leaves_the_rest(storage):
    many = range(1, 40)
    commit(storage, record(0, *many), *map(record, many))
    commit(storage, record(0))
    packer = storage.get_packer()
    next(packer)
    packer.close()
    assert len(queue(storage)) == 39


def test_a_packer_takes_what_was_garbage_when_it_began(storage):
    commit(storage, record(0, 1, 2), record(1), record(2, 3), record(3))
    commit(storage, record(0, 2))
    packer = storage.get_packer()
    next(packer)
    commit(storage, record(0))
    list(packer)
    assert stored(storage) == {0: [], 2: [3], 3: []}


def test_a_read_only_storage_is_not_packed(tmp_path, caplog):
    with quiet(tmp_path) as storage:
        hand_out(storage, 3)
        commit(storage, record(0), record(1))
    with quiet(tmp_path, read_only=True) as storage:
        with pytest.raises(ReadOnlyError, match="opened read-only: it cannot be packed"):
            storage.pack()
        assert list(storage.get_packer()) == []
        assert storage.get_size() == 2
    assert "was opened read-only: it is not packed" in caplog.text


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
        assert asked == []
        clock.now += 5
        commit(storage, record(0, 4), record(4))
        assert [(numbers.waiting, numbers.committed, numbers.idle) for numbers in asked] == [(3, 2, 0.0)]
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


def test_what_was_collected_is_counted(storage):
    assert collected(storage) == Collected(0, 0, 0)
    large = record(1, 2, 3, data=b"x" * 1000)
    commit(storage, record(0, 1), large, record(2), record(3))
    commit(storage, record(0))
    storage.pack()
    assert collected(storage) == Collected(3, len(large) + 24, 3)
    commit(storage, record(4))
    storage.pack()
    assert collected(storage) == Collected(4, len(large) + 36, 4)


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


def plant(storage, *changes):
    """Write rows behind the engine's back, and correct the total for those of the queue."""
    for name, key, value in changes:
        if value is None:
            table(storage, name).delete(key)
        else:
            table(storage, name).put(key, value)
    storage._engine.counts.garbage += sum(name == GARBAGE for name, _, _ in changes)


@pytest.fixture
def with_wrong_entries(storage):
    """Objects 1 to 3 are alive, 4 and 5 are garbage; the queue has entries for 1, 4 (of another time) and 99, too."""
    commit(storage, record(0, 1, 2, 3), *map(record, (1, 2, 3)))
    commit(storage, record(4), record(5))
    wrong = [(GARBAGE, pack_garbage_key(time, oid(key)), b"") for time, key in ((1, 1), (2, 4), (EVER, 99))]
    plant(storage, *wrong)
    return storage


def test_entries_that_are_wrong_are_taken_out(with_wrong_entries):
    assert with_wrong_entries._running.collector.validate() == 3
    assert queue(with_wrong_entries) == [4, 5]
    assert with_wrong_entries._running.collector.validate() == 0


def test_validating_goes_through_a_long_queue():
    with scratch_storage(3500) as storage:
        commit(storage, record(0), *map(record, range(1, 3000)))
        alive = [(GARBAGE, pack_garbage_key(EVER - key, oid(key)), b"") for key in range(500, 3500, 3)]
        plant(storage, *alive)
        assert storage._running.collector.validate() == len(alive)
        assert_books(storage)


@pytest.mark.parametrize("validate", [False, True])
def test_the_queue_is_validated_when_it_is_opened_if_so_wished(tmp_path, caplog, validate):
    with quiet(tmp_path) as storage:
        hand_out(storage, 5)
        commit(storage, record(0, 1), record(1), record(2))
        plant(storage, (GARBAGE, pack_garbage_key(1, oid(1)), b""))
        commit(storage, record(0, 1))
    with quiet(tmp_path, validate_garbage=validate) as storage:
        assert queue(storage) == ([2] if validate else [1, 2])
    said = f"{tmp_path}: 1 wrong entries were taken out of the garbage queue" in caplog.messages
    assert said == validate


def test_a_wrong_entry_deletes_nothing(with_wrong_entries, caplog):
    """The collector looks at the count again before it deletes."""
    with_wrong_entries.pack()
    assert step(with_wrong_entries, 10, EVER) == 1
    assert stored(with_wrong_entries) == {0: [1, 2, 3], 1: [], 2: [], 3: []}
    assert [line for line in caplog.messages if "by mistake" in line] == [
        f"object {key} was in the garbage queue by mistake: taken out" for key in (1, 4, 99)
    ]


def test_garbage_that_is_gone_already(storage, caplog):
    commit(storage, record(0), record(1))
    table(storage, OBJECTS).delete(oid(1))
    assert step(storage) == 1
    assert "object 1 is garbage and does not exist: its rows are removed" in caplog.messages
    assert (counts(storage), queue(storage)) == ({}, [])
    storage._engine.journal.state = storage._engine.journal.state._replace(objects=1)
    commit(storage, record(0))


def test_garbage_that_is_malformed_does_not_stop_it(storage, caplog):
    """What it referred to stays: its count says that there is a referrer."""
    commit(storage, record(0), record(1, 3), record(2), record(3))
    table(storage, OBJECTS).put(oid(1), record(1, 3)[:-1])
    storage.pack()
    assert stored(storage) == {0: [], 3: []}
    assert "garbage is malformed, so that what it referred to stays" in caplog.text
    report = storage.check(repair=True)
    assert [fault.message for fault in report.faults] == ["object 3 has 0 referrers and a reference count of 1"]


def test_a_count_that_would_be_negative_stops_it(storage):
    """It is wrong already, and must not get worse."""
    commit(storage, record(0), record(1, 2), record(2))
    plant(storage, (REFCOUNTS, oid(2), pack_condemned(EVER)))
    with pytest.raises(DamagedError, match="object 2 is lower than its number of referrers: run `durus-bdb check"):
        storage.pack()
    assert list(storage.get_packer())[-1].startswith("stopped: the reference count of object 2")
    assert set(stored(storage)) == {0, 1, 2}
    plant(storage, (REFCOUNTS, oid(2), None))


def test_an_object_with_more_referrers_than_there_are_is_kept(storage):
    """A count that is too high loses room, never data."""
    commit(storage, record(0, 1), record(1))
    plant(storage, (REFCOUNTS, oid(1), pack_count(3)))
    commit(storage, record(0))
    storage.pack()
    assert set(stored(storage)) == {0, 1}
    assert storage.check(repair=True).sound


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
