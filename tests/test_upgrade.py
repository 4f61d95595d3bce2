"""Storages of an older format are upgraded in place, restartably; of a newer one, refused and left alone.

A long step is made up here, from a format 0, in which objects with one referrer had a count row, too. The steps that
come after it, from 1 to 3, are tried by themselves as well; `test_golden` has storages that were written in format 1.
"""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from graphs import (
    EVER,
    assert_books,
    commit,
    counts,
    hand_out,
    meta,
    oid,
    quiet,
    record,
    rows,
    stored,
    suspects,
    table,
)

from berkeleydb_storage import BerkeleyDBStorageError, NewerFormat
from berkeleydb_storage import upgrade as module
from berkeleydb_storage.directory import Directory
from berkeleydb_storage.environment import META, REFCOUNTS, SUSPECTS, TABLES
from berkeleydb_storage.environment import rows as rows_of
from berkeleydb_storage.files import log_name, log_numbers
from berkeleydb_storage.format import (
    FORMAT_VERSION,
    META_FORMAT,
    META_IDENTITY,
    META_PACKED,
    pack_count,
    pack_uint64,
    unpack_uint64,
)

OBJECTS = 60
BATCH = 10
"""Rows that the step deals with in a transaction."""


def from_0(environment, progress):
    """Delete the rows of counts that are 1, a few at a time."""
    counted = environment.tables[REFCOUNTS]
    done = 0
    while batch := [key for key, row in rows_of(counted) if row == pack_count(1)][:BATCH]:
        transaction = environment.begin()
        for key in batch:
            counted.delete(key, txn=transaction)
        transaction.commit()
        done += len(batch)
        progress(f"{done} rows")


def open_dying_after(path, lines):
    """Open a storage in another process, which kills itself after so many progress lines of the step."""
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
import test_upgrade
from berkeleydb_storage import BerkeleyDBStorage, upgrade

def step(environment, progress):
    told = []
    def tell(text):
        told.append(text)
        if len(told) == {lines}:
            environment.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    test_upgrade.from_0(environment, tell)

upgrade.STEPS[0] = step
BerkeleyDBStorage({str(path)!r}).close()
"""
    return subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode


@pytest.fixture
def old(tmp_path):
    """A storage of format 0."""
    with quiet(tmp_path) as storage:
        hand_out(storage, OBJECTS)
        commit(storage, record(0, *range(1, OBJECTS)), *(record(key, OBJECTS - 1) for key in range(1, OBJECTS)))
        for key in range(1, OBJECTS - 1):
            table(storage, REFCOUNTS).put(oid(key), pack_count(1))
        make_older(storage, 0)
    with closing(Locked(tmp_path)) as directory:
        directory.update(format=0)
    return tmp_path


@pytest.fixture
def first(tmp_path):
    """A storage of format 1, with garbage, a suspect, and a ring that only a pack can tell to be garbage."""
    return build(tmp_path, 1)


@pytest.fixture
def second(tmp_path):
    """The same in format 2."""
    return build(tmp_path, 2)


def build(path, version):
    with quiet(path) as storage:
        hand_out(storage, 10)
        commit(storage, record(0, 1, 2, 3), record(1, 3), record(2), record(3, 4), record(4, 3), record(5))
        commit(storage, record(0, 1, 2), record(1))
        for key, row in rows(storage, SUSPECTS).items():
            table(storage, SUSPECTS).put(key, row[:8])
        make_older(storage, version)
    with closing(Locked(path)) as directory:
        directory.update(format=version)
    return path


def make_older(storage, version):
    table(storage, META).delete(META_IDENTITY)
    if version < 2:
        table(storage, META).delete(META_PACKED)
    table(storage, META).put(META_FORMAT, pack_uint64(version))


class Locked(Directory):
    def __init__(self, path):
        super().__init__(path)
        self.acquire(read_only=False)
        self.close = self.release


@pytest.fixture
def step(monkeypatch):
    monkeypatch.setitem(module.STEPS, 0, from_0)


def contents(path):
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sorted(os.listdir(path))}


def formats(path):
    """What storage.json says, and what the table meta does."""
    description = Directory(path).read()
    with closing(Locked(path)):
        pass
    return description.format


def test_the_steps_that_there_are():
    assert FORMAT_VERSION == 3
    assert module.STEPS.keys() == module.READABLE == {1, 2}


def test_an_old_storage_is_upgraded_when_it_is_opened(old, step, caplog):
    caplog.set_level(logging.WARNING)
    with quiet(old) as storage:
        assert counts(storage) == {OBJECTS - 1: OBJECTS - 1}
        assert meta(storage, META_FORMAT) == pack_uint64(3)
        assert_books(storage)
        assert storage.check().faults == []
        commit(storage, record(0))
    assert formats(old) == 3
    lines = [message for message in caplog.messages if "format" in message or "upgrading" in message]
    assert lines[0] == f"upgrading {old} from format 0 to 1"
    assert lines[1:-5] == [f"upgrading {old}: {done} rows" for done in (10, 20, 30, 40, 50, 58)]
    assert lines[-5].startswith(f"{old} has format 1 now, after ")
    assert lines[-4] == f"upgrading {old} from format 1 to 2"
    assert lines[-3].startswith(f"{old} has format 2 now, after ")
    assert lines[-2] == f"upgrading {old} from format 2 to 3"
    assert lines[-1].startswith(f"{old} has format 3 now, after ")


def test_it_is_upgraded_once(old, step, monkeypatch):
    quiet(old).close()
    for version in (0, 1, 2):
        monkeypatch.setitem(module.STEPS, version, pytest.fail)
    quiet(old).close()


@pytest.mark.parametrize("lines", [1, 3, 6])
def test_killed_in_the_middle_it_is_completed_at_the_next_opening(old, step, lines):
    assert open_dying_after(old, lines) == -signal.SIGKILL
    assert formats(old) == 0
    with quiet(old) as storage:
        assert storage.statistics().recovered
        assert counts(storage) == {OBJECTS - 1: OBJECTS - 1}
        assert storage.check().faults == []
    assert formats(old) == 3


def test_killed_again_and_again_it_gets_there(old, step):
    """Each time it gets one transaction further."""
    times = 0
    while open_dying_after(old, 1) == -signal.SIGKILL:
        assert formats(old) == 0
        times += 1
    assert times == -(-(OBJECTS - 2) // BATCH)
    with quiet(old) as storage:
        assert counts(storage) == {OBJECTS - 1: OBJECTS - 1}
    assert formats(old) == 3


def test_a_step_that_fails_leaves_the_version(old, monkeypatch):
    def fail(environment, progress):
        progress("about to fail")
        raise RuntimeError("the disk is on fire")

    monkeypatch.setitem(module.STEPS, 0, fail)
    with pytest.raises(RuntimeError, match="on fire"):
        quiet(old)
    assert formats(old) == 0
    monkeypatch.setitem(module.STEPS, 0, from_0)
    with quiet(old) as storage:
        assert storage.check().faults == []


def test_the_version_is_raised_last(old, monkeypatch):
    """First the work, then the table, then storage.json: stopped before any of them, it is done again."""
    seen = []

    def watch(environment, progress):
        seen.append(("step", Directory(old).read().format, environment.tables[META].get(META_FORMAT)))
        from_0(environment, progress)

    update = Directory.update

    def stop(directory, **changes):
        if changes == {"format": 1}:
            raise InterruptedError("before storage.json is replaced")
        return update(directory, **changes)

    monkeypatch.setitem(module.STEPS, 0, watch)
    with monkeypatch.context() as patch:
        patch.setattr(Directory, "update", stop)
        with pytest.raises(InterruptedError):
            quiet(old)
    assert formats(old) == 0
    with quiet(old) as storage:
        assert meta(storage, META_FORMAT) == pack_uint64(3)
        assert storage.check().faults == []
    assert seen == [("step", 0, pack_uint64(0)), ("step", 0, pack_uint64(1))]


def test_several_steps_in_a_row(old, monkeypatch):
    done = []
    monkeypatch.setattr(module, "FORMAT_VERSION", 4)
    monkeypatch.setattr("berkeleydb_storage.directory.FORMAT_VERSION", 4)
    monkeypatch.setattr("berkeleydb_storage.opening.FORMAT_VERSION", 4)
    for version in (0, 1, 2, 3):
        monkeypatch.setitem(module.STEPS, version, lambda *_, version=version: done.append((version, formats_now())))

    def formats_now():
        return Directory(old).read().format

    quiet(old).close()
    assert done == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert formats(old) == 4


def test_where_no_step_leads_it_is_refused_and_left_alone(old):
    before = contents(old)
    with pytest.raises(
        BerkeleyDBStorageError, match=r"has format 0, and this version .* cannot upgrade it to 3: see UP"
    ):
        quiet(old)
    assert contents(old) == before


def test_read_only_it_is_not_upgraded(old, step):
    before = contents(old)
    with pytest.raises(BerkeleyDBStorageError, match=r"has format 0.* reads format 3: open it for writing once, which"):
        quiet(old, read_only=True)
    assert contents(old) == before
    quiet(old).close()
    with quiet(old, read_only=True) as storage:
        assert storage.get_size() == OBJECTS


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_format_is_refused_and_left_alone(tmp_path, read_only):
    with quiet(tmp_path) as storage:
        hand_out(storage, 3)
        commit(storage, record(0))
    with closing(Locked(tmp_path)) as directory:
        directory.update(format=FORMAT_VERSION + 1)
    before = contents(tmp_path)
    with pytest.raises(NewerFormat, match=r"has format 4, and this version .* reads up to 3: install a newer"):
        quiet(tmp_path, read_only=read_only)
    assert contents(tmp_path) == before


def test_what_was_not_closed_is_recovered_first(old, step):
    """An upgrade works on tables, and those are complete only after a recovery."""
    with closing(Locked(old)) as directory:
        directory.update(state="open")
    with quiet(old) as storage:
        assert storage.statistics().recovered
        assert stored(storage)[1] == [OBJECTS - 1]
        assert rows(storage, REFCOUNTS) == {oid(OBJECTS - 1): pack_count(OBJECTS - 1)}
    assert set(TABLES) == {name.removesuffix(".db") for name in os.listdir(old) if name.endswith(".db")}
    assert (old / log_name(log_numbers(old)[-1])).exists()


def test_a_storage_of_format_1_is_a_format_3_as_it_is(first):
    """Three rows are added: it counts as packed now, not all suspects are known, and it has an identity.

    Suspects keep their short rows.
    """
    started = time.time()
    with quiet(first) as storage:
        assert formats_of(storage) == (3, 3)
        assert started - 1 <= storage.statistics().last_pack <= time.time()
        assert storage.statistics().last_search is None
        assert_books(storage)
        assert storage.check().faults == []
        assert {len(row) for row in rows(storage, SUSPECTS).values()} == {8}
        assert suspects(storage) == {3}
        assert rows(storage, META).keys() == {b"format", b"next oid", b"packed", b"unmarked", b"identity"}
        assert storage._running.collector.numbers().unsettled == 1
        storage.pack()
        assert rows(storage, META).keys() == {b"format", b"next oid", b"packed", b"identity"}
        assert storage._running.collector.numbers().unsettled == 0
        assert stored(storage) == {0: [1, 2], 1: [], 2: []}
    with quiet(first) as storage:
        assert storage.check().faults == []


def formats_of(storage):
    return storage._running.opened.directory.read().format, unpack_uint64(meta(storage, META_FORMAT))


def test_suspects_of_format_1_are_looked_at(first):
    with quiet(first) as storage:
        while storage._running.collector.step(50, EVER):
            pass
        assert stored(storage) == {0: [1, 2], 1: [], 2: []}
        assert storage.statistics().last_search is not None


def test_a_storage_of_format_1_is_read_as_it_is(first):
    before = contents(first)
    with quiet(first, read_only=True) as storage:
        assert formats_of(storage) == (1, 1)
        assert stored(storage) == {0: [1, 2], 1: [], 2: [], 3: [4], 4: [3], 5: []}
        assert storage.check().faults == []
        assert (storage.statistics().last_pack, storage.statistics().doomed) == (None, 0)
        assert list(storage.get_packer()) == []
    assert contents(first) == before
    quiet(first).close()
    assert formats(first) == 3


def test_a_storage_of_format_2_gets_an_identity(second):
    """One row is added, and it was packed when it was packed."""
    with quiet(second, read_only=True) as storage:
        before = rows(storage, META)
        assert before.keys() == {b"format", b"next oid", b"packed"}
    with quiet(second) as storage:
        assert formats_of(storage) == (3, 3)
        assert rows(storage, META) == before | {
            b"format": pack_uint64(3),
            b"identity": storage._engine.identity,
        }
        assert storage.check().faults == []
        identity = storage._engine.identity
    with quiet(second) as storage:
        assert storage._engine.identity == identity


@pytest.mark.parametrize("version", [1, 2])
def test_before_it_has_one_no_client_can_resume(tmp_path, version):
    """Each opening for reading has an identity of its own, and storage.json says nothing that it did not say then."""
    build(tmp_path, version)
    before = contents(tmp_path)
    seen = set()
    for _ in range(2):
        with quiet(tmp_path, read_only=True) as storage:
            assert formats_of(storage) == (version, version)
            assert meta(storage, META_IDENTITY) is None
            assert storage.check().faults == []
            seen.add(storage._engine.identity)
    assert {len(identity) for identity in seen} == {16}
    assert len(seen) == 2
    assert contents(tmp_path) == before
    assert "durable" not in (tmp_path / "storage.json").read_text()


def test_that_of_a_format_1_that_is_not_closed_too(first):
    with closing(Locked(first)) as directory:
        directory.update(state="open")
    before = contents(first)
    with quiet(first, read_only=True) as storage:
        assert storage.statistics().recovered
        assert storage.check().faults == []
        assert storage.get_size() == 6
    assert contents(first) == before


def test_a_table_that_says_format_1_is_a_fault_where_it_is_written_to(first):
    with closing(Locked(first)) as directory:
        directory.update(format=3)
    with quiet(first) as storage:
        assert [fault.kind for fault in storage.check().faults] == ["meta"]
    with closing(Locked(first)) as directory:
        directory.update(format=1)
    quiet(first).close()


POINTS = [
    "Environment.begin",  # before the step
    "Environment.begin",  # before the table says the version
    "Environment.checkpoint",
    "Directory.update",  # before storage.json says it
    "Environment.begin",  # and the same from 2 to 3
    "Environment.begin",
    "Environment.checkpoint",
    "Directory.update",
    "Engine.__init__",  # when all is done
]
"""What the upgrade from 1 to 3 calls, in this order."""
FORMATS = [1, 1, 1, 1, 2, 2, 2, 2, 3]
"""What storage.json says at each of them."""
STEP_OF_2 = 4
"""Where the upgrade from 2 to 3 begins in `POINTS`."""


def open_dying_at(path, point, flush, start=0):
    """Open a storage in another process, which kills itself at one of the `POINTS`, its log on the disk or not.

    Those before `start` are not met.
    """
    script = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
from berkeleydb_storage import BerkeleyDBStorage, directory, engine, opening, upgrade

points, left = {POINTS!r}, list({POINTS[start : point + 1]!r})

def watch(owner, name, environment):
    method, label = getattr(owner, name), f"{{getattr(owner, '__name__', 'Environment')}}.{{name}}"
    def watched(*arguments, **options):
        if left[0] == label:
            del left[0]
            if not left:
                if {flush!r}:
                    environment.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)
    setattr(owner, name, watched)

def upgrading(directory_, description, environment):
    for owner, name in (
        (environment, "begin"),
        (environment, "checkpoint"),
        (directory.Directory, "update"),
        (engine.Engine, "__init__"),
    ):
        watch(owner, name, environment)
    return upgrade.upgrade(directory_, description, environment)

opening.upgrade = upgrading
BerkeleyDBStorage({str(path)!r}).close()
"""
    return subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("point", range(len(POINTS)))
def test_killed_at_any_point_from_1_to_3(first, point, flush):
    assert open_dying_at(first, point, flush) == -signal.SIGKILL
    assert_goes_on(first, point)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("point", range(STEP_OF_2, len(POINTS)))
def test_killed_at_any_point_from_2_to_3(second, point, flush):
    assert open_dying_at(second, point, flush, start=STEP_OF_2) == -signal.SIGKILL
    assert_goes_on(second, point)


def assert_goes_on(path, point):
    assert formats(path) == FORMATS[point]
    with quiet(path, read_only=True) as storage:
        assert storage.check().faults == []
        assert storage.get_size() == 6
    with quiet(path) as storage:
        assert storage.statistics().recovered
        assert formats_of(storage) == (3, 3)
        assert meta(storage, META_IDENTITY) == storage._engine.identity
        assert stored(storage) == {0: [1, 2], 1: [], 2: [], 3: [4], 4: [3], 5: []}
        assert_books(storage)
        assert storage.check().faults == []
        assert storage.statistics().last_pack is not None
