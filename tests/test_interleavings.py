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
    hand_out,
    oid,
    oids,
    queue,
    quiet,
    record,
    scratch_storage,
    stored,
    suspects,
)
from interleaving import ACTIONS, DRIVERS, SHAPES, World, act, any_act, local, make_small, reach, tight

from berkeleydb_storage import DanglingReferenceError
from berkeleydb_storage.format import ACQUITTED, UNSETTLED
from berkeleydb_storage.garbage import deletion, packing

WORLDS = 600
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


def random_worlds(seeds, tally, shapes=tuple(SHAPES), sizes=(3, 8)):
    """Store random graphs, and let random clients commit between the steps of a random collector."""
    seeds = list(seeds)
    for start in range(0, len(seeds), A_STORAGE):
        with scratch_storage(1) as storage:
            for seed in seeds[start : start + A_STORAGE]:
                random_world(storage, random.Random(seed), tally, shapes, sizes)


def random_world(storage, source, tally, shapes, sizes):
    world = World.random(storage, source, source.choice(shapes), source.randint(*sizes))
    work = DRIVERS[source.choice(list(DRIVERS))](world)
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


TARGETS = {name: 2 for name in ACTIONS} | dict.fromkeys(("link", "unlink", "new", "again", "empty"), 1)
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
def test_every_two_commits_at_every_two_positions(monkeypatch, capsys):
    make_small(monkeypatch)
    tally = Tally()
    pairs = [first + second for first, second in product(single_acts(2), repeat=2)]
    exhaust([PAIR, RING], ["local", "full"], pairs, tally)
    show(capsys, "two commits at every two positions", tally)
