"""Commits between all pairs of steps of the collector, on small graphs: an object lives, or the commit is refused.

``python tests/test_interleavings.py`` tries many more than the tests do, and prints how many they were.
"""

import random
import sys
import time
from collections import Counter
from itertools import combinations, count, product

import pytest
from graphs import (
    EVER,
    assert_books,
    commit,
    oid,
    oids,
    queue,
    record,
    scratch_storage,
    stored,
)
from interleaving import DRIVERS, SHAPES, World, make_small, reach, tight
from interleaving_clients import ACTIONS, act, any_act

from berkeleydb_storage import DanglingReferenceError
from berkeleydb_storage.format import ACQUITTED, UNSETTLED
from berkeleydb_storage.garbage import deletion
from berkeleydb_storage.refcounts import PATIENCE

WORLDS = 400
"""Random graphs for each size of the steps."""
SLOW_WORLDS = 10_000
A_STORAGE = 200
"""Graphs that are stored one after the other in one storage."""
LIVELY = 60
"""Objects at most where no garbage may be left by local steps."""
LIVELY_WORLDS = 60
STEPS = [(1, None), (1, 1), (2, 2), (3, None)]
"""Records of a step, and references of an object that are let go of at once."""
MOST_COMMITS = 40
PAIRS = 200
"""Pairs of commits that are tried at every two positions in the slow tests; there are 1156."""

SIMPLE = ("tree", "parents", "ring", "list")


@pytest.fixture
def storage():
    with scratch_storage(80) as opened:
        yield opened
        assert_books(opened)


class Tally(Counter):
    """How much was tried."""

    def add(self, world, left=0):
        self.update(graphs=1, steps=world.steps, commits=world.commits, refused=world.refused, left=bool(left))


def random_worlds(seeds, tally, shapes=tuple(SHAPES), sizes=(3, 8), drivers=tuple(DRIVERS)):
    """Store random graphs, and let random clients commit between the steps of a random collector."""
    seeds = list(seeds)
    for start in range(0, len(seeds), A_STORAGE):
        with scratch_storage(1) as storage:
            for seed in seeds[start : start + A_STORAGE]:
                random_world(storage, random.Random(seed), tally, shapes, sizes, drivers)


def random_world(storage, source, tally, shapes, sizes, drivers):
    world = World.random(storage, source, source.choice(shapes), source.randint(*sizes))
    work = DRIVERS[source.choice(drivers)](world)
    rate = source.choice((0.1, 0.3, 0.7))
    while world.step(work):
        while world.commits < MOST_COMMITS and source.random() < rate:
            any_act(world)
    tally.add(world, world.finish())
    world.clear()


@pytest.mark.parametrize(("size", "fan"), STEPS)
def test_random_commits_between_all_steps(size, fan, monkeypatch):
    make_small(monkeypatch, size, fan)
    tally = Tally()
    random_worlds(range(WORLDS), tally)
    assert tally["refused"] > WORLDS // 2, "the graphs say little: hardly any commit met what is gone"
    assert tally["left"] < WORLDS // 50


def test_what_a_search_gives_up_is_left_to_a_full_pack(monkeypatch):
    """Budgets that suffice for nothing: nothing is forgotten all the same, and a full pack finds the rest."""
    make_small(monkeypatch)
    tight(monkeypatch)
    tally = Tally()
    random_worlds(range(WORLDS), tally)
    assert tally["left"] > WORLDS // 100


@pytest.mark.slow
@pytest.mark.parametrize(("size", "fan"), STEPS)
def test_many_random_commits_between_all_steps(size, fan, monkeypatch, capsys):
    make_small(monkeypatch, size, fan)
    tally = Tally()
    random_worlds(range(SLOW_WORLDS), tally)
    show(capsys, f"steps of {size}, {fan or 'all'} references", tally)


def show(capsys, what, tally):
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {', '.join(f'{number} {name}' for name, number in sorted(tally.items()))}\n")


PAIR, RING, OWN = {1: {2}, 2: set()}, {1: {2}, 2: {1}}, {1: {1, 2}, 2: {2, 1}}


def all_graphs(size):
    """Yield every graph of so many objects that object 1 leads to."""
    keys = range(1, size + 1)
    edges = [(a, b) for a in keys for b in keys if a != b]
    for number in range(len(edges) + 1):
        for chosen in combinations(edges, number):
            refs = {key: {b for a, b in chosen if a == key} for key in keys}
            if reach(refs, [1]) == refs.keys():
                yield refs


TARGETS = dict.fromkeys(ACTIONS, 2) | dict.fromkeys(("link", "unlink", "new", "again", "empty"), 1)
"""How many objects an action is about."""


def all_acts(keys):
    """Yield every action with every choice of objects."""
    for name, number in TARGETS.items():
        for chosen in product(keys, repeat=number):
            yield name, chosen[0], chosen[-1]


class Exhaustive:
    """One graph and one way to collect it, with the same commits at all positions between its steps."""

    def __init__(self, storage, refs, driver, tally):
        self.storage, self.refs, self.driver, self.tally = storage, refs, driver, tally

    def everywhere(self, acts, placed=()):
        """Do these acts, each by a client of its own, in this order, at all positions; `placed` are those before."""
        steps = self.once(placed)
        if acts:
            first = placed[-1][0] if placed else 0
            for position in range(first, steps + 1):
                self.everywhere(acts[1:], (*placed, (position, *acts[0])))

    def once(self, placed):
        """Do it once, with acts at these positions; return how many steps there were."""
        keys = {key: int.from_bytes(self.storage.new_oid(), "big") for key in [0, *self.refs]}
        refs = {keys[key]: {keys[ref] for ref in refs} for key, refs in self.refs.items()}
        world = World(self.storage, random.Random(0), refs, {keys[1]}, clients=2)
        work = DRIVERS[self.driver](world)
        for position in count():
            for client, (_, name, x, y) in zip(world.clients, placed, strict=False):
                if _ == position:
                    act(world, client, name, keys[x], keys[y])
            if not world.step(work):
                break
        self.tally.add(world, world.finish())
        world.clear()
        return position


def exhaust(graphs, drivers, many_acts, tally):
    for refs, driver, acts in product(graphs, drivers, many_acts):
        with scratch_storage(1) as storage:
            Exhaustive(storage, refs, driver, tally).everywhere(acts)


def single_acts(size):
    return [(one,) for one in all_acts(range(1, size + 1))]


CLASHES = [
    (("link", 1, 1), ("unlink", 1, 1)),
    (("link", 2, 2), ("cut", 2, 1)),
    (("new", 1, 1), ("new", 2, 2)),
    (("new", 2, 2), ("empty", 1, 1)),
    (("again", 1, 1), ("link", 2, 2)),
    (("hang", 1, 2), ("link", 1, 1)),
    (("join", 2, 1), ("move", 1, 2)),
    (("both", 1, 2), ("unlink", 1, 1)),
]
"""What two clients do, one after the other."""


def test_one_commit_at_every_position(monkeypatch):
    """Every commit of one client, at every position, of every graph of two objects."""
    make_small(monkeypatch)
    tally = Tally()
    exhaust([PAIR, RING, OWN], ["local", "full"], single_acts(2), tally)
    assert tally["refused"] > tally["graphs"] // 10


def test_two_commits_at_every_two_positions(monkeypatch):
    make_small(monkeypatch)
    tally = Tally()
    exhaust([RING], ["local", "full"], CLASHES, tally)
    assert tally["refused"] > tally["graphs"] // 10


@pytest.mark.slow
def test_one_commit_at_every_position_of_larger_graphs(monkeypatch, capsys):
    """Of every graph of three objects."""
    make_small(monkeypatch)
    tally = Tally()
    exhaust(all_graphs(3), ["local", "full", "mixed"], single_acts(3), tally)
    show(capsys, "one commit at every position", tally)


@pytest.mark.slow
def test_many_two_commits_at_every_two_positions(monkeypatch, capsys):
    make_small(monkeypatch)
    tally = Tally()
    pairs = [first + second for first, second in product(single_acts(2), repeat=2)]
    exhaust([RING], ["local", "full"], random.Random(0).sample(pairs, PAIRS), tally)
    show(capsys, "two commits at every two positions", tally)


def test_no_garbage_is_left_by_local_steps(monkeypatch):
    """Larger graphs, with commits that unlink more while searches go on, and budgets as they are."""
    make_small(monkeypatch, 5)
    tally = Tally()
    random_worlds(range(LIVELY_WORLDS), tally, SIMPLE, (20, LIVELY), drivers=("local", "put_off"))
    assert not tally["left"]


def drain(storage, until=EVER):
    """Do all that local steps do."""
    collector = storage._running.collector
    while collector.step(50, until) or collector.step(50, until):
        pass


def test_a_ring_that_one_commit_closes_by_moving_a_reference(storage):
    """The count of what it hangs on is what it was."""
    commit(storage, record(0, 1), record(1, 2), record(2))
    commit(storage, record(0), record(2, 1))
    drain(storage)
    assert stored(storage) == {0: []}


def test_what_waits_in_the_queue_is_linked_by_garbage_that_hangs_on_it(storage):
    commit(storage, record(0, 1, 3), record(1, 2), record(2, 1), record(3, 1))
    commit(storage, record(0, 3))
    before = storage._engine.time()
    commit(storage, record(0))
    drain(storage, before)
    assert storage._engine.counts.suspect(oid(1)).state == ACQUITTED
    commit(storage, record(2, 1, 3))
    assert queue(storage) == []
    drain(storage)
    assert stored(storage) == {0: []}


def test_a_suspect_without_patience_left_is_for_a_full_pack(storage):
    """It was acquitted again and again; that its last referrer is collected must be noticed all the same."""
    chain = [record(key, key + 1) for key in range(1, 50)]
    commit(storage, record(0, 1, 60), *chain, record(50, 1), record(60, 1))
    while storage._engine.counts.suspect(oid(1)) is None or storage._engine.counts.suspect(oid(1)).spent < PATIENCE:
        commit(storage, record(0, 60))
        drain(storage)
        last = storage._engine.counts.suspect(oid(1))
        assert last.state == ACQUITTED
        if last.spent < PATIENCE:
            commit(storage, record(0, 1, 60))
    commit(storage, record(0))
    drain(storage)
    assert storage.statistics().unsettled == 1
    assert storage._engine.counts.suspect(oid(1)).state == UNSETTLED
    storage.pack()
    assert stored(storage) == {0: []}


def test_a_link_to_what_a_search_has_explained(storage):
    """The search has counted fewer references to an object than it meets: it ends, and begins again."""
    commit(storage, record(0, 5), record(5, 6), record(6, 5, 3), record(3, 6))
    commit(storage, record(0))
    while storage.statistics().collected.read < 2:
        assert storage._running.collector.step(1, EVER)
    commit(storage, record(3, 6, 5))
    drain(storage)
    assert stored(storage) == {0: []}


def packing_until(storage, activity):
    """Return a pack that has done a step of this."""
    work = storage._running.collector.pack()
    while storage._running.collector.packing is None or storage._running.collector.packing.activity != activity:
        next(work)
    return work


def test_garbage_that_a_client_stores_during_the_mark_is_not_forgotten(storage, monkeypatch):
    make_small(monkeypatch)
    commit(storage, record(0, 1), record(1, 2), record(2, 1))
    commit(storage, record(0))
    work = packing_until(storage, "marking")
    commit(storage, record(2, 1, data=b"more"))
    list(work)
    assert stored(storage) == {0: [], 1: [2], 2: [1]}
    drain(storage)
    assert stored(storage) == {0: []}


def test_a_ring_that_hung_on_what_was_unlinked_during_the_mark(storage, monkeypatch):
    """Its last referrer goes with this pack, because garbage referred to it."""
    make_small(monkeypatch)
    commit(storage, record(0, 1, 3), record(1, 2, 3), record(2, 1), record(3, 4), record(4, 5), record(5, 4))
    commit(storage, record(0, 3))
    work = packing_until(storage, "looking")
    commit(storage, record(0))
    list(work)
    drain(storage)
    assert stored(storage) == {0: []}


def test_a_ring_of_garbage_that_is_made_while_what_refers_to_it_is_doomed(storage, monkeypatch):
    make_small(monkeypatch)
    commit(storage, record(0, 1), record(1, 2, 3), record(2, 1), record(3, 4), record(4))
    commit(storage, record(0))
    work = packing_until(storage, "marking")
    commit(storage, record(4, 3))
    list(work)
    assert stored(storage) == {0: [], 3: [4], 4: [3]}
    drain(storage)
    assert stored(storage) == {0: []}


def test_parts_of_what_was_doomed_go_with_the_pack(storage, monkeypatch):
    monkeypatch.setattr(deletion, "FAN", 2)
    leaves = range(10, 20)
    commit(storage, record(0, 1, *leaves), record(1, 2, *leaves), record(2, 1), *map(record, leaves))
    commit(storage, record(0, *leaves))
    storage.pack()
    assert stored(storage).keys() == {0, *leaves}


def test_a_commit_that_meets_what_is_doomed(storage, monkeypatch):
    """Between two steps of the sweep some of it is there and some is not: a reference to either is refused."""
    make_small(monkeypatch)
    commit(storage, record(0, 1), record(1, 2), record(2, 3), record(3, 1))
    commit(storage, record(0))
    work = packing_until(storage, "deleting")
    assert stored(storage) == {0: [], 2: [3], 3: [1]}
    for refused in ([record(0, 1)], [record(0, 3)], [record(3)], [record(1)], [record(0, 40), record(40, 2)]):
        with pytest.raises(DanglingReferenceError) as caught:
            commit(storage, *refused)
        assert set(caught.value.oids) <= set(oids(1, 2, 3))
    commit(storage, record(0, 40), record(40))
    list(work)
    assert stored(storage) == {0: [40], 40: []}


def main():
    """Try many, and tell how many they were."""
    patch, tally, began = pytest.MonkeyPatch(), Tally(), time.monotonic()
    for size, fan in STEPS:
        make_small(patch, size, fan)
        random_worlds(range(SLOW_WORLDS), tally)
    make_small(patch)
    exhaust(all_graphs(3), ["local", "full", "mixed"], single_acts(3), tally)
    patch.undo()
    print(f"{time.monotonic() - began:.0f} s: " + ", ".join(f"{number} {name}" for name, number in tally.items()))


if __name__ == "__main__":
    main()
