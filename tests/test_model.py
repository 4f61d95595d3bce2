"""Random operations by two sessions on a small object graph, with reopening and crashes, against a model in dicts."""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import MappingProxyType

import pytest
from conftest import check_directory
from durus.error import ReadConflictError, WriteConflictError
from durus.serialize import split_oids, unpack_record
from graphs import copied
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, DanglingReferenceError, GarbageManual
from berkeleydb_storage.testing import commit, record_of
from berkeleydb_storage.testing.records import ROOT, populate

EXAMPLES, STEPS = 60, 40
SLOW_EXAMPLES, SLOW_STEPS = 500, 60
MEMORY = Path("/dev/shm")
"""Where there is a file system in memory: what is copied there is what a killed process leaves behind, too."""

SESSIONS = st.integers(0, 1)
PICKS = st.integers(0, 1000)
"""Chooses one of the objects there are, modulo their number."""
SIZES = st.sampled_from([0, 10, 900, 1100, 4096, 20_000])
KINDS = st.sampled_from(["create", "create", "link", "unlink", "unlink", "move", "overwrite", "link_whatever"])
CHANGES = st.lists(st.tuples(KINDS, PICKS, PICKS, SIZES), min_size=1, max_size=4)
ENDINGS = st.sampled_from(["commit"] * 5 + ["commit without a handler", "leave", "drop"])

WORKS = [
    "collect_a_step",
    "collect_a_step",
    "search_a_step",
    "search_a_step",
    "settle",
    "pack",
    "checkpoint",
    "crash",
    "reopen",
    "reopen_after_reading",
]
SEQUELS = st.sampled_from([None] * 7 + WORKS)
"""What may happen right after a transaction."""
LOOKS = st.sampled_from(["load", "load", "sync", "iterate_from", "store_an_unknown_oid"])


def references(record):
    """Return what a record refers to, without itself."""
    return set(split_oids(unpack_record(record)[2])) - {record[:8]}


def unreferenced(objects):
    """Return the objects that no other one refers to."""
    return set(objects) - {ROOT}.union(*map(references, objects.values()))


def without_garbage(objects):
    """Return what is left when everything was deleted that no other object refers to, again and again."""
    objects = dict(objects)
    while garbage := unreferenced(objects):
        for oid in garbage:
            del objects[oid]
    return objects


def reachable(objects, start=ROOT):
    """Return the oids that an object leads to, itself included."""
    found, todo = {start}, [start]
    while todo:
        fresh = references(objects[todo.pop()]) - found
        found |= fresh
        todo += fresh
    return found


def copy_sparsely(source, target):
    """Copy a file, and leave the hole at its end one."""
    data = source.read_bytes()
    target.write_bytes(data.rstrip(b"\0"))
    os.truncate(target, len(data))


class View:
    """What the model knows of a session."""

    def __init__(self):
        self.pending = {}
        self.stale = set()


class Machine(RuleBasedStateMachine):
    """The storage under test, and the model of it. Subclasses choose the options."""

    options = None

    def __init__(self):
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="model-", dir=MEMORY if MEMORY.is_dir() else None))
        self.openings = 0
        self.objects = {}
        self.handed_out = set()
        self.directory = self.new_directory()
        self.open()

    def new_directory(self):
        self.openings += 1
        directory = self.scratch / str(self.openings)
        directory.mkdir()
        return directory

    def open(self):
        self.storage = BerkeleyDBStorage(
            self.directory, checkpoint=CheckpointNever(), garbage_collection=GarbageManual(), **self.options
        )
        self.sessions = [self.storage, self.storage.session()]
        self.views = [View(), View()]
        self.flushed()

    def flushed(self):
        """From here on a crash loses nothing of what there is now."""
        self.history = [self.objects]

    def changed(self, *, flushed):
        """Note a new state of the objects."""
        self.history.append(self.objects)
        if flushed:
            self.flushed()

    @property
    def survives_kills(self):
        """Whether a commit is out of the process when it is acknowledged."""
        return self.options["durable"] or self.options["async_log_write"]

    @initialize()
    def make_root(self):
        assert self.sessions[0].new_oid() == ROOT
        self.handed_out.add(ROOT)
        self.views[0].pending[ROOT] = record_of(ROOT)
        self.commit(0, handled=True)
        self.checkpoint()

    def pick(self, pick, objects=None):
        known = sorted(self.handed_out if objects is None else objects)
        return known[pick % len(known)]

    def current(self, session, oid):
        """Return the record that a session would change."""
        return self.views[session].pending.get(oid) or self.objects.get(oid) or record_of(oid)

    def put(self, session, oid, *, size=None, add=(), remove=()):
        """Change an object in a session."""
        _, data, refs = unpack_record(self.current(session, oid))
        kept = [ref for ref in split_oids(refs) if ref not in remove]
        data = data if size is None else bytes(size)
        self.views[session].pending[oid] = record_of(oid, data, [*kept, *add])

    @rule(session=SESSIONS, changes=CHANGES, ending=ENDINGS, sequel=SEQUELS)
    def transact(self, session, changes, ending, sequel):
        """Change something, on top of what is pending, and end the transaction in one way or other, or not yet."""
        for change, first, second, size in changes:
            getattr(self, change)(session, first, second, size)
        if ending.startswith("commit"):
            self.commit(session, handled=ending == "commit")
        elif ending == "drop":
            self.views[session].pending.clear()
        if sequel:
            getattr(self, sequel)()

    def create(self, session, parent, _, size):
        oid = self.sessions[session].new_oid()
        assert oid not in self.handed_out
        self.handed_out.add(oid)
        self.put(session, oid, size=size)
        self.put(session, self.pick(parent, self.objects), add=[oid])

    def link(self, session, source, other, _):
        self.put(session, self.pick(source, self.objects), add=[self.pick(other, self.objects)])

    def link_whatever(self, session, source, other, _):
        self.put(session, self.pick(source), add=[self.pick(other)])

    def unlink(self, session, source, other, _):
        referrers = [oid for oid in self.objects if references(self.current(session, oid))]
        if referrers:
            source = self.pick(source, referrers)
            self.put(session, source, remove=[self.pick(other, references(self.current(session, source)))])

    def move(self, session, source, destination, _):
        referrers = [oid for oid in self.objects if references(self.current(session, oid))]
        if referrers:
            source, destination = self.pick(source, referrers), self.pick(destination, self.objects)
            moved = self.pick(source[-1], references(self.current(session, source)))
            self.put(session, source, remove=[moved])
            self.put(session, destination, add=[moved])

    def overwrite(self, session, pick, _, size):
        self.put(session, self.pick(pick), size=size)

    def commit(self, session, handled):
        """End a commit; `handled` finds conflicts as ``Connection`` does, by what others changed."""
        view, told = self.views[session], []
        pending, view.pending = view.pending, {}

        def handle(oids):
            told.extend(oids)
            if view.stale & set(pending):
                raise WriteConflictError(oids)

        missing = self.dangling(pending)
        expected = None
        if handled and view.stale & set(pending):
            expected = WriteConflictError
        elif missing:
            expected = DanglingReferenceError
        self.end(session, pending, handle if handled else None, expected, missing)
        if handled:
            assert set(told) == view.stale
            view.stale.clear()
        if expected is None and pending:
            self.objects = self.objects | pending
            self.views[1 - session].stale |= set(pending)
            self.changed(flushed=self.survives_kills)

    def end(self, session, pending, handler, expected, missing):
        client = self.sessions[session]
        client.begin()
        for oid, record in pending.items():
            client.store(oid, record)
        if expected is None:
            client.end(handler)
            return
        with pytest.raises(expected) as caught:
            client.end(handler)
        if expected is DanglingReferenceError:
            assert set(caught.value.oids) == missing

    def dangling(self, pending):
        """Return the objects that a commit would newly refer to, and that do not exist."""
        after = self.objects | pending
        gained = set()
        for oid, record in pending.items():
            gained |= references(record) - (references(self.objects[oid]) if oid in self.objects else set())
        return gained - set(after)

    @rule(look=LOOKS, session=SESSIONS, pick=PICKS)
    def look(self, look, session, pick):
        getattr(self, look)(session, pick)

    @precondition(lambda self: len(self.objects) > 1)
    @rule(work=st.sampled_from(WORKS))
    def work(self, work):
        getattr(self, work)()

    def load(self, session, pick):
        oid = self.pick(pick)
        if oid in self.views[session].stale:
            with pytest.raises(ReadConflictError):
                self.sessions[session].load(oid)
        elif oid in self.objects:
            assert self.sessions[session].load(oid) == self.objects[oid]
        else:
            with pytest.raises(KeyError):
                self.sessions[session].load(oid)

    def sync(self, session, _):
        view = self.views[session]
        assert set(self.sessions[session].sync()) == view.stale
        view.stale.clear()

    def store_an_unknown_oid(self, session, _):
        unknown = (max(int.from_bytes(oid, "big") for oid in self.handed_out) + 100_000).to_bytes(8, "big")
        self.sessions[session].begin()
        with pytest.raises(ValueError, match="surprise"):
            self.sessions[session].store(unknown, record_of(unknown))

    def collect_a_step(self, limit=2):
        """What has no referrer goes, and no more than that, whether the root reaches it or not."""
        kept = without_garbage(self.objects)
        self.storage._running.collector.collect(limit, self.storage._engine.time())
        gone = self.take_out()
        assert len(gone) == min(limit, len(self.objects) + len(gone) - len(kept))
        assert not gone & set(kept)

    def search_a_step(self, limit=3):
        """A step reads some objects, or deletes some that the root does not reach: rings, too."""
        self.storage._running.collector.step(limit, self.storage._engine.time())
        self.take_out()

    def settle(self):
        """When nothing is left to do, nothing is without a referrer."""
        collector, idle = self.storage._running.collector, 0
        while idle < 2:
            did = collector.step(5, self.storage._engine.time())
            self.take_out()
            idle = 0 if did else idle + 1
        assert not unreferenced(self.objects)
        assert not collector.numbers().suspects

    def pack(self):
        """Exactly what the root reaches is left. A crash later may find any of the states in between."""
        for _ in self.storage.get_packer():
            self.take_out()
        assert set(self.objects) == reachable(self.objects)
        known = self.storage.statistics()
        assert (known.doomed, known.suspects, known.garbage) == (0, 0, 0)

    def take_out(self):
        """Take what a step deleted out of the model; return it. Nothing that the root reaches is among that."""
        found = dict(self.storage.gen_oid_record())
        gone = set(self.objects) - set(found)
        assert not gone & reachable(self.objects)
        assert found == {oid: record for oid, record in self.objects.items() if oid not in gone}
        self.deleted(gone)
        return gone

    def deleted(self, gone):
        if gone:
            self.objects = {oid: record for oid, record in self.objects.items() if oid not in gone}
            self.changed(flushed=False)
            for view in self.views:
                view.stale |= gone

    def checkpoint(self):
        self.storage.checkpoint()
        self.flushed()

    def iterate_from(self, _, pick):
        """What an object leads to comes once; a session that has synced meets no conflict."""
        start = self.pick(pick, self.objects)
        reached = reachable(self.objects, start)
        found = list(self.storage.session().gen_oid_record(start_oid=start, batch_size=1 + pick % 5))
        assert found[0][0] == start
        assert len(found) == len(reached)
        assert dict(found) == {oid: self.objects[oid] for oid in reached}

    def reopen_after_reading(self):
        self.storage.close()
        with BerkeleyDBStorage(self.directory, read_only=True) as reader:
            assert dict(reader.gen_oid_record()) == self.objects
        self.reopen()

    def reopen(self):
        self.storage.close()
        self.open()
        assert not self.storage.statistics().recovered

    def crash(self):
        """Go on with a copy of the files as they are: one of the states since the last flush, whole."""
        dead = self.storage
        copy = self.new_directory()
        for file in filter(Path.is_file, self.directory.iterdir()):
            copy_sparsely(file, copy / file.name)
        dead.close()
        self.directory = copy
        history = self.history
        self.open()
        assert self.storage.statistics().recovered
        self.objects = dict(self.storage.gen_oid_record())
        assert self.objects in history
        while self.storage.statistics().doomed:  # in the middle of a pack; what was being deleted is not there any more
            assert self.storage._running.collector.step(2, 0)
        self.flushed()
        oid = self.storage.new_oid()
        if self.survives_kills:
            assert oid not in self.handed_out
        self.handed_out = {known for known in self.handed_out if known < oid} | {oid}

    @invariant()
    def storage_is_sound(self):
        report = self.storage.check()
        assert not report.faults, report.faults
        assert self.storage.get_size() == report.objects == len(self.objects)
        assert self.storage.statistics().garbage == len(unreferenced(self.objects))

    @invariant()
    def iteration_yields_everything(self):
        assert dict(self.storage.gen_oid_record()) == self.objects

    def teardown(self):
        self.storage.close()
        check_directory(self.directory)
        shutil.rmtree(self.scratch)


def test_table_that_shrinks(directory, open_storage, tmp_path):
    """A page that is freed at its end makes a table shorter than the last checkpoint left it: that is no damage."""
    storage = open_storage(checkpoint=CheckpointNever(), garbage_collection=GarbageManual())
    oid = max(populate(storage, 1))
    commit(storage, [record_of(oid, bytes(1100))])
    storage.checkpoint()
    before = (directory / "objects.db").stat().st_size
    record = record_of(oid, bytes(1101))
    commit(storage, [record])
    assert (directory / "objects.db").stat().st_size < before
    copy = tmp_path / "copy"
    copied(directory, copy)
    assert open_storage(copy).load(oid) == record


class Durable(Machine):
    options = MappingProxyType({"type": "btree", "durable": True})


class HandedToTheSystem(Machine):
    options = MappingProxyType({"type": "hash", "durable": False, "async_log_write": True})


class Buffered(Machine):
    options = MappingProxyType({"type": "btree", "durable": False, "async_log_write": False})


MACHINES = pytest.mark.parametrize("machine", [Durable, HandedToTheSystem, Buffered])
PROFILE = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, print_blob=True)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """A recovery after each crash is no news."""
    caplog.set_level(logging.ERROR, "berkeleydb_storage")


@MACHINES
def test_model(machine):
    """The same operations every time."""
    profile = settings(PROFILE, derandomize=True, max_examples=EXAMPLES, stateful_step_count=STEPS)
    run_state_machine_as_test(machine, settings=profile)


@pytest.mark.slow
@MACHINES
def test_model_at_length(machine):
    """More of them, and other ones every time."""
    profile = settings(PROFILE, max_examples=SLOW_EXAMPLES, stateful_step_count=SLOW_STEPS)
    run_state_machine_as_test(machine, settings=profile)
