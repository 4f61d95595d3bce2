"""What has no referrer: what is deleted and what never, in steps, with commits between them; and the packer."""

import random
from itertools import pairwise

import pytest
from graphs import (
    assert_books,
    collected,
    commit,
    counts,
    drain,
    hand_out,
    number,
    oid,
    oids,
    queue,
    quiet,
    record,
    scratch_storage,
    step,
    stored,
    suspects,
    turn,
)

from berkeleydb_storage import (
    DanglingReferenceError,
    ReadOnlyError,
)
from berkeleydb_storage.garbage import deletion
from berkeleydb_storage.garbage.deletion import STEP
from berkeleydb_storage.garbage.marking import Mark

CHAIN = 100_000
FAN = 20_000
RANDOM_GRAPHS = 5_000
"""Graphs with a commit between every two steps."""
THOROUGH_GRAPHS = 60
"""Graphs with every commit of one reference between every two steps."""
NODES = 6


@pytest.fixture
def storage():
    with scratch_storage(40) as opened:
        yield opened
        assert_books(opened)


def test_what_has_no_referrer_goes_with_all_that_hangs_on_it(storage):
    commit(storage, record(0, 1, 5), record(1, 2, 3), record(2, 4), record(3, 4, 5), record(4), record(5))
    commit(storage, record(0, 5))
    drain(storage)
    assert stored(storage) == {0: [5], 5: []}
    assert suspects(storage) == set(), "what refers to nothing is on no cycle"


def test_shared_children_stay_as_long_as_one_refers_to_them(storage):
    commit(storage, record(0, 1, 2), record(1, 3), record(2, 3), record(3))
    commit(storage, record(0, 2))
    drain(storage)
    assert (stored(storage), counts(storage)) == ({0: [2], 2: [3], 3: []}, {})
    commit(storage, record(0))
    drain(storage)
    assert stored(storage) == {0: []}


def test_garbage_that_refers_to_the_root(storage):
    commit(storage, record(0, 1), record(1, 0))
    commit(storage, record(0))
    drain(storage)
    assert (stored(storage), counts(storage)) == ({0: []}, {})


def test_cycles_stay_and_are_suspect(storage):
    """They are not for these steps; what hangs on them stays with them. A pack takes them, and clears the suspects."""
    commit(storage, record(0, 1, 4), record(1, 2, 3), record(2, 1), record(3), record(4, 5), record(5, 4))
    commit(storage, record(4, 5, 3))
    commit(storage, record(0, 4), record(5))
    drain(storage)
    assert stored(storage) == {0: [4], 1: [2, 3], 2: [1], 3: [], 4: [3, 5], 5: []}
    assert suspects(storage) == {1, 4}
    storage.pack()
    assert (stored(storage), counts(storage)) == ({0: [4], 3: [], 4: [3, 5], 5: []}, {})
    assert suspects(storage) == set()


def test_a_pack_leaves_no_suspect_though_it_deletes_what_refers_to_the_living(storage, monkeypatch):
    """As many steps as there are objects: what the first of them touches is known to live in the others."""
    monkeypatch.setattr("berkeleydb_storage.garbage.packing.STEP", 1)
    tops = range(1, 20)
    trees = [record(top, 0, 30, top + 100) for top in tops] + [record(top + 100, top, 30) for top in tops]
    hand_out(storage, 200)
    commit(storage, record(0, *tops, 30), record(30, 31), record(31), *trees)
    commit(storage, record(0, 30))
    storage.pack()
    assert stored(storage) == {0: [30], 30: [31], 31: []}
    assert suspects(storage) == set()


def test_a_pack_counts_what_it_deletes_where_its_steps_end_early(storage, monkeypatch):
    monkeypatch.setattr(deletion, "FAN", 1)
    rings = [record(key, key ^ 1, 30) for key in range(2, 22)]
    hand_out(storage, 40)
    commit(storage, record(0, 30, *range(2, 22)), record(30), *rings)
    commit(storage, record(0, 30))
    told = []
    storage.pack(told.append)
    done = [packing.done for packing in told if packing.activity == "deleting"]
    assert done == list(range(1, 21))


def test_a_cycle_that_hangs_on_garbage(storage):
    commit(storage, record(0, 1), record(1, 2), record(2, 3), record(3, 2))
    commit(storage, record(0))
    drain(storage)
    assert stored(storage) == {0: [], 2: [3], 3: [2]}
    assert suspects(storage) == {2}
    storage.pack()
    assert stored(storage) == {0: []}
    assert suspects(storage) == set()


def test_garbage_that_hangs_on_a_cycle(storage):
    """When a pack deletes the cycle, it takes what hung on it; what lives as well loses a referrer."""
    commit(storage, record(0, 1, 5), record(1, 2), record(2, 1, 3, 5), record(3, 4), record(4), record(5))
    commit(storage, record(0, 5))
    storage.pack()
    assert (stored(storage), counts(storage), queue(storage)) == ({0: [5], 5: []}, {}, [])
    assert suspects(storage) == set()


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
        assert storage.statistics().garbage == 1, "the step asked for oids, and let go of nothing"
        assert step(storage) == 1
        assert storage.statistics().garbage == FAN // deletion.FAN, "the fan was split"
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
        self.parts = 0
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
        """Make a step of one object, and look at what it took: nothing that anything refers to.

        What has more references than a step may let go of is replaced by parts that have some each.
        """
        done = step(self.storage)
        left = stored(self.storage)
        gone, parts = self.there - left.keys(), left.keys() - self.there
        assert len(gone) <= done <= 1
        assert {ref for part in parts for ref in left[part]} == {ref for key in gone for ref in self.refs[key] if parts}
        assert not gone & ({ref for key in self.there for ref in self.refs[key]} | {0})
        self.there = self.there - gone | parts
        self.parts += len(parts)
        self.refs |= {part: set(left[part]) for part in parts}
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


@pytest.mark.parametrize(("fan", "graphs"), [(None, RANDOM_GRAPHS), (1, RANDOM_GRAPHS // 5), (2, RANDOM_GRAPHS // 5)])
def test_commits_between_all_steps_on_random_graphs(fan, graphs, monkeypatch):
    """Never is there a reference to what is not there: an object lives, or the commit is refused."""
    if fan:
        monkeypatch.setattr(deletion, "FAN", fan)
    source = random.Random(2)
    refused = parts = 0
    with scratch_storage(1) as storage:
        for _ in range(graphs):
            situation = Situation(storage, source)
            done = situation.step()
            while done:
                tid = storage._engine.journal.tid
                situation.change()
                refused += tid == storage._engine.journal.tid
                done = situation.step()
            situation.finish()
            parts += situation.parts
    assert (parts > graphs // 2) if fan else (parts == 0)
    assert refused > graphs // 20, "the graphs say little: hardly any commit met what was collected"


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


def ring(start, size):
    """Return the records of a ring of objects from `start` on."""
    return [record(start + each, start + (each + 1) % size) for each in range(size)]


def test_a_packer_goes_in_small_steps(storage):
    """Each step deletes no more than it may, and tells when it begins with something else, and of how much."""
    hand_out(storage, 500)
    many, dead = range(1, 4 * STEP + 11), 2 * STEP + 5
    commit(storage, record(0, *many, 300, 299), *map(record, many), *ring(300, dead), *ring(298, 2))
    commit(storage, record(0, 299))
    sizes, told = [storage.get_size()], []
    for message in storage.get_packer():
        told.append(message)
        sizes.append(storage.get_size())
        assert_books(storage)
    assert [before - after for before, after in pairwise(sizes)] == [
        *([STEP] * 4 + [10]),  # collecting
        *[0, 0, 0],  # marking: the root, 299, 298
        *[0],  # looking
        *[STEP, STEP, 5],  # deleting
        *[0, 0, 0],  # clearing; the end
    ]
    assert told[:-1] == [
        *[f"collecting, {len(many)} in all", None, None, None, None],
        *[f"marking, {dead + 3} in all", None, None],
        "looking",
        *[f"deleting, {dead} in all", None, None],
        *["clearing, 0 in all", None],
    ]
    assert told[-1].startswith(f"collected {len(many) + dead} objects in ")
    assert stored(storage) == {0: [299], 298: [299], 299: [298]}


def test_a_packer_gets_on_with_commits_between_its_steps(storage):
    """Whatever is committed meanwhile lives, also what was garbage when the packer began."""
    commit(storage, record(0, 1, 3, 5), *ring(1, 2), *ring(3, 2), *ring(5, 2))
    commit(storage, record(0, 5))
    packer = storage.get_packer()
    assert next(packer) == "marking, 7 in all"
    commit(storage, record(0, 3, 5))
    commit(storage, record(0, 3, 5, 7), *ring(7, 2))
    list(packer)
    assert stored(storage) == {0: [3, 5, 7], 3: [4], 4: [3], 5: [6], 6: [5], 7: [8], 8: [7]}


def test_a_packer_that_is_dropped_leaves_the_rest(storage):
    many = range(1, STEP + 10)
    hand_out(storage, STEP + 40)
    commit(storage, record(0, *many), *map(record, many))
    commit(storage, record(0))
    packer = storage.get_packer()
    next(packer)
    packer.close()
    assert len(queue(storage)) == 9
    assert not storage._running.collector.numbers().packing
    assert turn(storage) == 0


def test_a_packer_that_is_dropped_while_it_deletes_leaves_what_a_later_step_takes(storage):
    hand_out(storage, 200)
    commit(storage, record(0, 1), *ring(1, 3 * STEP))
    commit(storage, record(0))
    packer = storage.get_packer()
    while not (next(packer) or "").startswith("deleting"):
        pass
    packer.close()
    assert storage.get_size() == 1 + 2 * STEP
    assert storage.statistics().doomed == 2 * STEP
    assert_books(storage)
    while storage._running.collector.step(STEP, 0):
        assert_books(storage)
    assert stored(storage) == {0: []}
    assert storage.statistics().doomed == 0


def test_a_packer_takes_what_was_garbage_when_it_began(storage):
    """What gets garbage while it marks waits for the next; who asks for one then waits for that."""
    commit(storage, record(0, 1, 2), record(1), record(2, 3), record(3))
    commit(storage, record(0, 2))
    packer = storage.get_packer()
    assert next(packer) == "collecting, 1 in all"
    assert next(packer) == "marking, 3 in all"
    commit(storage, record(0))
    later = storage.get_packer()
    list(packer)
    assert stored(storage) == {0: [], 2: [3], 3: []}
    assert queue(storage) == [2]
    list(later)
    assert stored(storage) == {0: []}


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


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_a_mark_finds_neighbours_and_those_behind_gaps(type):
    """Whatever is in between, or was deleted meanwhile."""
    stored, asked = {1, 2, 3, 7, 8, 20}, [1, 2, 4, 5, 6, 7, 8, 9, 20, 21, 22]
    with scratch_storage(30, type=type) as storage:
        commit(storage, record(0, *stored), *map(record, stored))
        mark = Mark(storage._engine, ordered=storage.ordered)
        with storage._engine.lock:
            found = mark._read(asked)
        mark.close()
    assert found == [(oid(key), record(key) if key in stored else None) for key in asked]
