"""Crashes between any two steps of the collector, and at every named point within them.

A crash leaves the files as the system has them at that moment: a copy of the directory is what the next open finds.
What the copy holds is compared with the model, clients go on to commit to it, and it is collected to the end.
"""

import random
import shutil
import sys
from collections import Counter

import pytest
from crash_parent import KILLED, SETTINGS, Children
from graphs import EVER, assert_books, commit, copied, doomed, hand_out, oid, quiet, record, scratch_directory, stored
from graphs import rows as rows_of
from interleaving import DRIVERS, SHAPES, World, make_small
from interleaving_clients import any_act

from berkeleydb_storage import DanglingReferenceError, environment, failpoints
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.environment import OBJECTS

WORLDS = 120
"""Random graphs, with a crash at every tenth point, or so."""
SLOW_WORLDS = 100
RATE = 0.12
NAMES = [name for name in failpoints.NAMES if name.split(".")[0] in ("collect", "search", "doom", "sweep", "clear")]
RELINKED = 4
"""Commits to each copy that link something that was garbage at the time of the crash."""


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)
    monkeypatch.setattr("berkeleydb_storage.oids.OID_BLOCK", 64)


class Crashes:
    """Crashes a world at the points that it is told of, and looks at what comes of it."""

    def __init__(self, directory, world, source, rate, tally):
        self.directory, self.world, self.source, self.rate, self.tally = directory, world, source, rate, tally
        self.failures = []

    def reached(self, name):
        """Called at each point within a step."""
        if self.source.random() < self.rate and name.split(".")[0] not in ("oids", "commit"):
            self.crash(name)

    def during(self, work, patch):
        """Do all steps, with commits between them, and crashes in the steps and between them."""
        more = True
        while more:
            with patch.context() as within:
                within.setattr(failpoints, "hook", self.reached)
                more = self.world.step(work)
            if self.source.random() < 0.3:
                any_act(self.world)
            self.reached("between two steps")

    def crash(self, name):
        self.tally[name] += 1
        copy = self.directory / "copy"
        copied(self.world.storage.get_filename(), copy)
        hook, failpoints.hook = failpoints.hook, None
        try:
            After(copy, self.world, self.source).look()
        except Exception as error:
            self.failures.append(f"{name}: {error!r}")
        finally:
            failpoints.hook = hook
            shutil.rmtree(copy)


class After:
    """A storage as a crash left it."""

    def __init__(self, path, world, source):
        self.path, self.source = path, source
        self.live = {key: world.bytes[key] for key in world.live}
        self.refs = {key: set(world.refs[key]) for key in self.live}
        self.known = set(world.refs)

    def look(self):
        with quiet(self.path) as storage:
            self.compare(storage)
            for key in self.source.sample(sorted(self.known), min(RELINKED, len(self.known))):
                self.link(storage, key)
                storage._running.collector.step(1, EVER)
                self.compare(storage)
            idle = 0
            while idle < 3:
                idle = 0 if storage._running.collector.step(3, EVER) else idle + 1
                self.compare(storage)
            assert not doomed(storage)
            storage.pack()
            assert stored(storage).keys() == self.refs.keys()
            report = storage.check()
            assert not report.faults, report.faults
        assert not check_pages(self.path)

    def compare(self, storage):
        """Everything that the root reaches is there, as it was."""
        assert_books(storage)
        there = rows_of(storage, OBJECTS)
        assert all(there.get(oid(key)) == value for key, value in self.live.items())
        assert doomed(storage).isdisjoint(self.refs)

    def link(self, storage, key):
        """Link an object from the root, which is refused if it is gone or doomed, and only then."""
        there, gone = stored(storage), doomed(storage)
        root = record(0, *sorted(self.refs[0] | {key}), data=b"after")
        if key not in there or key in gone:
            with pytest.raises(DanglingReferenceError):
                commit(storage, root)
            return
        commit(storage, root)
        self.refs[0] = self.refs[0] | {key}
        todo = [key, 0]
        values = rows_of(storage, OBJECTS)
        while todo:
            key = todo.pop()
            self.live[key] = values[oid(key)]
            todo += [ref for ref in there[key] if ref not in self.live]
            self.refs.setdefault(key, set(there[key]))


def crash_worlds(seeds, rate, tally, patch):
    for seed in seeds:
        source = random.Random(seed)
        with scratch_directory() as directory:
            path = directory / "storage"
            path.mkdir()
            with quiet(path) as storage:
                hand_out(storage, 1)
                world = World.random(storage, source, source.choice(list(SHAPES)), source.randint(3, 8))
                crashes = Crashes(directory, world, source, rate, tally)
                crashes.during(DRIVERS[source.choice(list(DRIVERS))](world), patch)
            assert not crashes.failures, (seed, crashes.failures)


@pytest.mark.parametrize("size", [1, 2])
def test_crashes_at_random_points(size, monkeypatch):
    make_small(monkeypatch, size, size)
    tally = Counter()
    crash_worlds(range(WORLDS), RATE, tally, monkeypatch)
    assert {name.split(".")[0] for name in tally} >= {"collect", "search", "sweep", "clear", "between two steps"}


@pytest.mark.slow
def test_many_crashes(monkeypatch, capsys):
    """At every point of many graphs."""
    tally = Counter()
    for size in (1, 2, 3):
        make_small(monkeypatch, size, size)
        crash_worlds(range(SLOW_WORLDS * size, SLOW_WORLDS * (size + 1)), 0.5, tally, monkeypatch)
    with capsys.disabled():
        sys.stdout.write(f"\n{tally.total()} crashes: {dict(sorted(tally.items()))}\n")
    assert tally.keys() >= set(NAMES)


def live_and_garbage(storage):
    """Store what is garbage, some that the child unlinks, and what lives; return that."""
    hand_out(storage, 100)
    ring = [record(key, 1 + key % 9, 90, data=b"ring") for key in range(1, 10)]
    ring += [record(50, 51), record(51, 50)]
    deep = [record(key, *([key + 1] if key < 29 else [0])) for key in range(20, 30)]
    pair = [record(40, 0, 41, 90), record(41, 40, 0, 42), record(42, 40, 0)]
    lives = [record(90, 91, 0, data=b"live"), record(91, 90)]
    commit(storage, record(0, 1, 20, 40, 50, 90), *ring, *deep, *pair, *lives)
    commit(storage, record(0, 40, 90))
    return {90: [0, 91], 91: [90]}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_killed_while_it_collects(tmp_path, name, count):
    """A process that is really killed."""
    path = tmp_path / "storage"
    path.mkdir()
    with quiet(path) as storage:
        lives = live_and_garbage(storage)
    children = Children(tmp_path)
    small = {f"garbage.{module}.STEP": 2 for module in ("deletion", "packing", "collector")} | {
        "garbage.packing.CLEAR": 1
    }
    try:
        fuse = (name, 1 if name.startswith("doom") else count)
        assert children.run("collect", path, options={}, fuse=fuse, settings=SETTINGS | small) == KILLED
    finally:
        children.close()
    with quiet(path) as storage:
        assert_books(storage)
        assert lives.items() <= stored(storage).items()
        while storage._running.collector.step(5, EVER) or storage._running.collector.step(5, EVER):
            assert_books(storage)
        commit(storage, record(0, 90))
        storage.pack()
        assert stored(storage) == lives | {0: [90]}
        assert not storage.check().faults
    assert not check_pages(path)
