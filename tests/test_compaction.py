"""The room of deleted objects comes back: it is used again, and `compact` gives it to the file system.

Whatever is done between two steps, the storage has exactly what it had. Kills are in test_crash, full disks in
test_disk_full.
"""

import random
import threading

import pytest
from graphs import commit, copied, hand_out, number, oid, quiet, record, rows

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointNever,
    CommitRefused,
    DamagedError,
    GarbageManual,
    OptionError,
    ReadOnlyError,
    StorageClosed,
    compaction,
    failpoints,
    files,
)
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.environment import OBJECTS, TABLES

MANY = 100_000
"""Objects of which half are deleted."""
FEW = 10_000
"""Objects of the other tests."""
HUB = 500
"""Objects that one refers to."""
SEEDS = 6
PATIENCE = 30
SHORT = 1e-4
"""Seconds for a step, so that there are many."""


@pytest.fixture
def storage(open_storage):
    return open_quiet(open_storage)


def open_quiet(open_storage, **options):
    return open_storage(durable=False, garbage_collection=GarbageManual(), checkpoint=CheckpointNever(), **options)


def file(storage, name=OBJECTS):
    return storage._running.opened.directory.path / f"{name}.db"


def size(storage):
    return file(storage).stat().st_size


def fill(storage, count, seed=1):
    """Store hubs of `HUB` objects of 150 to 200 bytes each, and the root, which refers to the hubs; return the hubs."""
    source = random.Random(seed)
    hand_out(storage, 1)
    hubs = {}
    for _ in range(count // HUB):
        members = [number(storage.new_oid()) for _ in range(HUB)]
        hub = number(storage.new_oid())
        hubs[hub] = members
        commit(storage, *(record(key, data=source.randbytes(source.randint(138, 188))) for key in members))
        commit(storage, record(hub, *members), record(0, *hubs))
    storage.checkpoint()
    return hubs


def keep(storage, hubs):
    """Let go of all objects but these, and delete them."""
    commit(storage, record(0, *hubs), *(record(hub, *members) for hub, members in hubs.items()))
    storage.pack()
    storage.checkpoint()
    assert storage.get_size() == 1 + sum(len(members) + 1 for members in hubs.values())


def part(hubs, begin, end):
    """Return the hubs from one share of them to another."""
    keys = sorted(hubs)
    return {hub: hubs[hub] for hub in keys[int(begin * len(keys)) : int(end * len(keys))]}


def every_second(hubs):
    return {hub: members[::2] for hub, members in hubs.items()}


KEPT = {
    "every second": every_second,
    "front": lambda hubs: part(hubs, 0, 0.5),
    "back": lambda hubs: part(hubs, 0.5, 1),
    "outside": lambda hubs: part(hubs, 0, 0.25) | part(hubs, 0.75, 1),
    "nothing": lambda hubs: {},
}


def steps(storage, **options):
    return compaction.compact(storage._engine, **options)


@pytest.mark.parametrize("kept", KEPT)
def test_the_room_of_half_of_the_objects_comes_back(storage, kept):
    hubs = fill(storage, MANY)
    before = size(storage)
    keep(storage, KEPT[kept](hubs))
    expected = rows(storage, OBJECTS)
    assert size(storage) > 0.99 * before
    tables = sum(file(storage, name).stat().st_size for name in TABLES)
    returned = storage.compact()
    shorter = tables - sum(file(storage, name).stat().st_size for name in TABLES)
    assert abs(shorter - returned) <= len(TABLES) * files.PAGE_SIZE  # the library may write a page more than it uses
    assert size(storage) < (0.01 if kept == "nothing" else 0.55) * before
    assert all(files.free_pages(file(storage, name), 1000) < 10 for name in TABLES)
    assert storage.compact() < 10 * files.PAGE_SIZE
    assert rows(storage, OBJECTS) == expected


def test_a_small_cache(open_storage):
    """More pages are free than it holds."""
    storage = open_quiet(open_storage, cachesize=1 << 20)
    hubs = fill(storage, MANY // 4)
    before = size(storage)
    keep(storage, KEPT["back"](hubs))
    expected = rows(storage, OBJECTS)
    storage.compact()
    assert size(storage) < 0.55 * before
    assert rows(storage, OBJECTS) == expected


def test_pages_are_used_again_without_compaction(storage):
    hubs = fill(storage, MANY // 2)
    before = size(storage)
    for _ in range(3):
        keep(storage, hubs := part(hubs, 0.5, 1))
        more = {}
        while (len(hubs) + len(more)) * HUB < MANY // 2:
            members = [number(storage.new_oid()) for _ in range(HUB)]
            more[number(storage.new_oid())] = members
            commit(storage, *(record(key, data=bytes(163)) for key in members))
        hubs |= more
        commit(storage, record(0, *hubs), *(record(hub, *members) for hub, members in more.items()))
        storage.checkpoint()
        assert size(storage) < 1.04 * before


def test_what_is_compact_stays_as_it_is(storage):
    fill(storage, FEW)
    storage.compact()
    storage.checkpoint()
    before, position = size(storage), storage._engine.environment.log_position()
    assert storage.compact() < 5 * files.PAGE_SIZE
    assert size(storage) > before - 5 * files.PAGE_SIZE
    assert storage._engine.environment.log_position() - position < 100_000


def test_an_empty_storage(storage):
    assert storage.compact() == 0


def test_free_pages_alone(storage):
    """With merge=False nothing is rewritten but what moves."""
    hubs = fill(storage, FEW)
    keep(storage, every_second(hubs))
    storage.checkpoint()
    free, before = files.free_pages(file(storage), 1000), size(storage)
    assert sum(step.returned for step in steps(storage, merge=False) if step.table == OBJECTS) <= (free + 2) * 4096
    assert size(storage) > 0.9 * before


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_others_commit_between_any_two_steps(open_storage, type):
    storage = open_quiet(open_storage, type=type)
    hubs = fill(storage, FEW)
    keep(storage, hubs := every_second(hubs))
    asked, done, ended = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
    key, turns = next(iter(hubs.values()))[0], 0

    def work():
        session = storage.session()
        while asked.acquire() and not ended.is_set():
            commit(session, record(key, data=b"%d" % turns))
            done.release()

    worker = threading.Thread(target=work)
    worker.start()

    def meanwhile(what, count):
        nonlocal turns
        turns += 1
        asked.release()
        assert done.acquire(timeout=PATIENCE)

    storage.compact(meanwhile, hold=SHORT)
    ended.set()
    asked.release()
    worker.join()
    assert turns > 20
    storage.sync()
    assert storage.load(oid(key)) == record(key, data=b"%d" % turns)


SIZES = (0, 10, 150, 200, 800, 1100, 5000, 20_000)


class Model:
    """Random objects below one hub, changed, added and deleted at random, and what the storage must hold of them."""

    def __init__(self, storage, seed):
        self.storage = storage
        self.source = random.Random(seed)
        self.objects = {}
        hand_out(storage, 2)
        commit(storage, record(0, 1), record(1))

    def change(self, added, changed, deleted):
        """Do so much in one commit, and delete the garbage."""
        keys = sorted(self.objects)
        fresh = [number(self.storage.new_oid()) for _ in range(added)]
        for key in fresh + self.source.sample(keys, min(changed, len(keys))):
            self.objects[key] = record(key, data=self.source.randbytes(self.source.choice(SIZES)))
        gone = self.source.sample(keys, min(deleted, len(keys)))
        stored = {key: self.objects[key] for key in self.objects if key not in gone}
        commit(self.storage, record(1, *stored), *stored.values())
        self.objects = stored
        self.storage.pack()

    def delete_a_range(self):
        keys = sorted(self.objects)
        where = self.source.randrange(len(keys))
        self.objects = {key: self.objects[key] for key in keys[:where] + keys[where + len(keys) // 4 :]}
        commit(self.storage, record(1, *self.objects))
        self.storage.pack()

    def verify(self):
        expected = {oid(key): one for key, one in self.objects.items()}
        expected |= {one[:8]: one for one in (record(0, 1), record(1, *self.objects))}
        assert rows(self.storage, OBJECTS) == expected


@pytest.mark.parametrize("type", ["btree", "hash"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_commits_and_deletions_between_all_steps(open_storage, monkeypatch, seed, type):
    monkeypatch.setattr(compaction, "SMALL", seed % 3 * 8)
    storage = open_quiet(open_storage, type=type, cachesize=1 << 20)
    model = Model(storage, seed)
    model.change(1000, 0, 0)
    model.delete_a_range()
    taken = 0
    for step in steps(storage, hold=SHORT):
        taken += 1
        if taken < 60:
            model.change(*(model.source.choice((0, 1, 20)) for _ in range(3)))
            if model.source.random() < 0.1:
                model.delete_a_range()
            if model.source.random() < 0.1:
                storage.checkpoint()
        assert step.seconds > 0
    assert taken > 5
    model.verify()
    assert not storage.check().faults
    storage.compact()
    model.verify()


def test_two_at_the_same_time(storage):
    hubs = fill(storage, FEW)
    before = size(storage)
    keep(storage, every_second(hubs))
    expected = rows(storage, OBJECTS)
    for _ in zip(steps(storage, hold=SHORT), steps(storage, hold=SHORT), strict=False):
        pass
    storage.compact()
    assert rows(storage, OBJECTS) == expected
    assert size(storage) < 0.6 * before


def test_stopped_and_begun_anew(storage):
    hubs = fill(storage, FEW)
    before = size(storage)
    keep(storage, every_second(hubs))
    expected = rows(storage, OBJECTS)

    def stop(what, count):
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            storage.compact(stop, hold=SHORT)
    storage.compact()
    assert rows(storage, OBJECTS) == expected
    assert size(storage) < 0.6 * before


def test_a_crash_after_it(storage, tmp_path, caplog):
    """Without a checkpoint after it a copy is recovered first, because the table is shorter than was noted."""
    hubs = fill(storage, FEW)
    keep(storage, every_second(hubs))
    expected = rows(storage, OBJECTS)
    storage.checkpoint()
    assert sum(step.returned for step in steps(storage))
    storage._engine.environment.flush()
    unnoted = copied(file(storage).parent, tmp_path / "unnoted")
    storage.compact()
    storage.checkpoint()
    noted = copied(file(storage).parent, tmp_path / "noted")
    for path, rehearsed in ((noted, False), (unnoted, True)):
        caplog.clear()
        with quiet(path) as again:
            assert again.statistics().recovered
            assert rows(again, OBJECTS) == expected
            assert not again.check().faults
        assert ("a copy is recovered first" in caplog.text) == rehearsed
        assert not check_pages(path)


def test_a_checkpoint_follows(storage):
    """Of `compact` itself, also where it is interrupted."""
    keep(storage, every_second(fill(storage, FEW)))
    before = storage.statistics().checkpoints

    def stop(what, count):
        if count:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.compact(stop)
    assert storage.statistics().checkpoints == before + 2
    noted = storage._running.opened.directory.read().sizes
    assert noted["objects.db"] == size(storage)


def test_a_read_only_storage_is_refused(directory, open_storage):
    open_quiet(open_storage).close()
    with BerkeleyDBStorage(directory, read_only=True) as storage:
        with pytest.raises(ReadOnlyError, match="opened read-only: it cannot be compacted"):
            storage.compact()
        with pytest.raises(ReadOnlyError, match="opened read-only: it cannot be compacted"):
            list(steps(storage))


def test_a_closed_storage_is_refused(storage):
    going = steps(storage)
    next(going)
    storage.close()
    with pytest.raises(StorageClosed):
        next(going)
    with pytest.raises(StorageClosed):
        storage.compact()


def test_it_waits_for_nothing_that_is_done_exclusively(storage):
    exclusion = storage._engine.transactions.exclusion
    with exclusion.during("a migration"), pytest.raises(CommitRefused, match="busy with a migration"):
        storage.compact()
    assert storage.compact() == 0


@pytest.mark.parametrize("hold", [0, -1, float("nan"), float("inf")])
def test_a_hold_that_makes_no_sense(storage, hold):
    with pytest.raises(OptionError, match="hold is a positive number of seconds"):
        storage.compact(hold=hold)


def test_closing_meanwhile(storage):
    """Closing waits for the step, and the next one is refused."""
    keep(storage, every_second(fill(storage, FEW)))
    with pytest.raises(StorageClosed):
        storage.compact(lambda what, count: storage.close(), hold=SHORT)


def test_a_damaged_page(directory, open_storage):
    storage = open_quiet(open_storage)
    keep(storage, every_second(fill(storage, FEW)))
    storage.close()
    with (directory / "objects.db").open("r+b") as table:
        table.seek(50 * files.PAGE_SIZE + 1000)
        table.write(bytes(100))
    storage = open_quiet(open_storage)
    open_storage.forget()
    with pytest.raises(DamagedError, match="damaged"):
        storage.compact()
    with pytest.raises(DamagedError):
        storage.load(oid(0))


def test_each_point_is_reached(storage, monkeypatch):
    reached = set()
    keep(storage, every_second(fill(storage, FEW)))
    monkeypatch.setattr(failpoints, "hook", reached.add)
    storage.compact()
    monkeypatch.setattr(failpoints, "hook", None)
    assert {name for name in failpoints.NAMES if name.startswith("compact.")} <= reached


def test_free_pages_are_counted_in_the_file(storage):
    hubs = fill(storage, FEW)
    keep(storage, part(hubs, 0.5, 1))
    storage.checkpoint()
    counted = storage._engine.environment.free_pages(OBJECTS, 1 << 20)
    assert counted == storage._engine.objects.stat()["free"]
    assert counted > 100
    assert storage._engine.environment.free_pages(OBJECTS, 10) == 10
