"""The continuous archive: what is in it can be restored, whatever the store does, and commits wait for none of it."""

import os
import random
import subprocess
import sys
import threading
import time

import flaky
import pytest
from concurrency import wait_until
from durus.connection import Connection
from flaky import FAULTS, faults

from berkeleydb_storage import (
    Archive,
    BackupError,
    BerkeleyDBStorage,
    CheckpointInline,
    GarbageManual,
    Keep,
    OptionError,
    SharedStorage,
    StorageClosed,
    list_backups,
    restore,
    verify_backups,
)
from berkeleydb_storage.backup import archiving, chain
from berkeleydb_storage.backup.archiving import Archiver
from berkeleydb_storage.backup.claim import Claim
from berkeleydb_storage.backup.guarding import GuardedSource
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store

SEEDS, SLOW_SEEDS = 5, 60
TURNS = 25
"""Of each seed."""
PATIENT = 60.0


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Whatever failed is tried again at once."""
    flaky.register(monkeypatch)
    monkeypatch.setattr(archiving, "LONGEST_WAIT", 0.0)


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "db").mkdir()
    with BerkeleyDBStorage(tmp_path / "db", garbage_collection=GarbageManual()) as storage:
        yield storage


def put(storage, number, size=100):
    """Commit a pair that matches."""
    connection = Connection(storage.session())
    connection.get_root()["a"] = connection.get_root()["b"] = (number, os.urandom(size))
    connection.commit()
    return storage._engine.journal.tid


def pair(path):
    with BerkeleyDBStorage(path, garbage_collection=GarbageManual()) as storage:
        assert storage.check() is not None
        assert list(storage.check().faults) == []
        root = Connection(storage).get_root()
        assert root.get("a") == root.get("b")
        return root["a"][0] if "a" in root else None


def settle(archiver, turns=200):
    """Let it do all that is to be done."""
    for _ in range(turns):
        archiver.turn()
        if archiver.is_complete:
            return
        archiver.wait(PATIENT)
    raise AssertionError(archiver.figures())


def started(storage, where, **options):
    store = open_store(where, create=True)
    return Archiver(storage._running.source, store, **options)


def restored(where, path, **wanted):
    made = restore(where, path, **wanted)
    return made.tid, pair(path)


def test_what_was_committed_is_there(storage, tmp_path):
    put(storage, 0)
    archiver = started(storage, tmp_path / "place")
    settle(archiver)
    tids = []
    for number in range(1, 6):
        tids.append(put(storage, number))
        archiver.turn()
        assert archiver.is_shipped
        assert archiver.figures().tid == tids[-1]
    assert restored(tmp_path / "place", tmp_path / "back") == (tids[-1], 5)
    assert restored(tmp_path / "place", tmp_path / "back2", to_commit=tids[1]) == (tids[1], 2)
    assert verify_backups(tmp_path / "place").sound


def test_nothing_is_done_while_nothing_is_committed(storage):
    archiver = started(storage, "flaky://host/a")
    put(storage, 0)
    settle(archiver)
    archiver.turn()
    requests = FAULTS.requests
    for _ in range(50):
        archiver.turn()
    assert FAULTS.requests == requests
    assert archiver.figures().behind_seconds == 0


def test_it_goes_on_where_it_was(storage, tmp_path):
    archiver = started(storage, tmp_path / "place")
    put(storage, 0)
    settle(archiver)
    put(storage, 1)
    archiver.turn()
    archiver.release()
    put(storage, 2)
    again = started(storage, tmp_path / "place")
    settle(again)
    assert (again.figures().bases, again.figures().pieces) == (0, 1)
    assert restored(tmp_path / "place", tmp_path / "back")[1] == 2


@pytest.mark.parametrize("shipped", [True, False])
def test_it_goes_on_after_the_storage_was_closed(tmp_path, shipped):
    """Also where log files were removed by checkpoints: those that it needs are held."""
    (tmp_path / "db").mkdir()
    for number in range(4):
        with BerkeleyDBStorage(tmp_path / "db", checkpoint=CheckpointInline(log_bytes=1000)) as storage:
            archiver = started(storage, tmp_path / "place")
            settle(archiver)
            put(storage, number)
            if shipped:
                archiver.turn()
            archiver.release()
            assert archiver.figures().bases == (number == 0)
            assert archiver.figures().gaps == 0


def test_log_files_are_held_until_they_are_there(storage, monkeypatch):
    monkeypatch.setattr(archiving, "is_outgrown", lambda base, moment: False)
    archiver = started(storage, "flaky://host/a")
    settle(archiver)
    FAULTS.down = True
    for number in range(3):
        put(storage, number, 6 << 20)
        archiver.turn()
        storage.checkpoint()
    figures = archiver.figures()
    assert figures.failing
    assert figures.behind_seconds > 0
    (held,) = storage.statistics().holds
    assert held.bytes > 10 << 20
    FAULTS.down = False
    settle(archiver)
    storage.checkpoint()
    storage.checkpoint()
    assert (archiver.figures().gaps, archiver.figures().bases) == (0, 1)
    (held,) = storage.statistics().holds
    assert held.bytes <= 16 << 20


def test_more_than_the_queue_is_a_gap(storage, tmp_path, caplog):
    """It is logged, and everything is copied again; all that is there can be restored."""
    archiver = started(storage, "flaky://host/a", queue=1 << 20)
    first = put(storage, 0)
    settle(archiver)
    FAULTS.down = True
    archiver.turn()
    for number in range(1, 4):
        put(storage, number, 6 << 20)
        storage.checkpoint()
        archiver.turn()
    assert storage.statistics().holds == ()
    FAULTS.down = False
    settle(archiver)
    assert archiver.figures().bases == 2
    assert "Everything is copied again" in caplog.text or "has a gap" in caplog.text
    assert restored("flaky://host/a", tmp_path / "back")[1] == 3
    assert restored("flaky://host/a", tmp_path / "back2", to_commit=first) == (first, 0)


def test_many_pieces_of_a_file_are_joined(storage, tmp_path, monkeypatch):
    """And then they go by retention; every commit can be restored before and after."""
    monkeypatch.setattr(chain, "MANY", 3)
    monkeypatch.setattr(archiving, "is_outgrown", lambda base, moment: False)
    archiver = started(storage, tmp_path / "place")
    settle(archiver)
    tids = []
    for number in range(12):
        tids.append(put(storage, number, 2 << 20))
        archiver.turn()
        archiver.wait(PATIENT)
    settle(archiver)
    (base,) = Repository(open_store(tmp_path / "place")).bases()
    whole = [piece for piece in base.pieces if sum(piece.covers(other) for other in base.pieces) > 1]
    assert len(whole) >= 1
    names = [piece.name for piece in base.pieces]
    archiver._prune_due = 0.0
    settle(archiver)
    (base,) = Repository(open_store(tmp_path / "place")).bases()
    assert len(base.pieces) < len(names)
    for index in (3, 11):
        assert restored(tmp_path / "place", tmp_path / f"back{index}", to_commit=tids[index]) == (tids[index], index)


def test_many_pieces_of_the_newest_file_are_joined(storage, tmp_path, monkeypatch):
    """A thousand to one: each of them once, and it goes on so after an interruption."""
    monkeypatch.setattr(chain, "RUN", 5)
    archiver = started(storage, tmp_path / "place")
    settle(archiver)
    tids = []
    for number in range(33):
        tids.append(put(storage, number))
        archiver.turn()
        archiver.wait(PATIENT)
        if number == 17:
            archiver.release()
            archiver = started(storage, tmp_path / "place")
    settle(archiver)
    (base,) = Repository(open_store(tmp_path / "place")).bases()
    assert len(base.chain()) < 12
    archiver._prune_due = 0.0
    settle(archiver)
    (base,) = Repository(open_store(tmp_path / "place")).bases()
    assert len(base.pieces) == len(base.chain())
    for index in (2, 16, 17, 18, 32):
        assert restored(tmp_path / "place", tmp_path / f"back{index}", to_commit=tids[index]) == (tids[index], index)


@pytest.mark.parametrize("options", [{"key": "sesame, and a long one"}, {"type": "hash"}])
def test_storages_of_every_kind(tmp_path, options):
    for name in ("db", "place"):
        (tmp_path / name).mkdir()
    policy = Archive(tmp_path / "place", interval=0.05)
    for number in range(3):
        with BerkeleyDBStorage(tmp_path / "db", archive=policy, **options) as storage:
            connection = Connection(storage)
            connection.get_root()["a"] = (number, "this is the plaintext")
            connection.commit()
    key = options.get("key")
    restore(tmp_path / "place", tmp_path / "back", key=key)
    with BerkeleyDBStorage(tmp_path / "back", key=key) as storage:
        assert Connection(storage).get_root()["a"] == (2, "this is the plaintext")
    store = open_store(tmp_path / "place")
    found = any(b"PersistentDict" in whole for whole in (b"".join(store.read(name)) for name in store.list()))
    assert found == (key is None)


def test_everything_is_copied_again_when_the_log_outgrew_it(storage, tmp_path, monkeypatch):
    """Meanwhile the chain before goes on: each commit can be restored."""
    monkeypatch.setattr(archiving, "is_outgrown", lambda base, moment: moment.tid > base.noted.tid + 10)
    archiver = started(storage, tmp_path / "place")
    settle(archiver)
    tids = []
    for number in range(35):
        tids.append(put(storage, number))
        archiver.turn()
        archiver.wait(PATIENT)
    settle(archiver)
    assert archiver.figures().bases >= 3
    for index in (3, 11, 12, 23, 34):
        assert restored(tmp_path / "place", tmp_path / f"back{index}", to_commit=tids[index]) == (tids[index], index)


def test_what_is_needless_goes(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(archiving, "is_outgrown", lambda base, moment: moment.tid > base.noted.tid + 3)
    archiver = started(storage, tmp_path / "place", keep=Keep(last=2))
    for number in range(30):
        put(storage, number)
        archiver.turn()
        archiver.wait(PATIENT)
    settle(archiver)
    assert archiver.figures().bases > 4
    assert len(list_backups(tmp_path / "place")) == 2
    assert restored(tmp_path / "place", tmp_path / "back")[1] == 29


def test_the_chain_goes_on_while_everything_is_copied(storage, tmp_path):
    """A copy that takes long does not hold up what is committed meanwhile."""
    put(storage, 0)
    archiver = started(storage, "flaky://host/a")
    settle(archiver)
    reached, go_on = threading.Event(), threading.Event()

    def report(activity, count):
        reached.set()
        go_on.wait(PATIENT)

    archiver._report = report
    archiver._begin_base(storage._running.source.look())
    assert reached.wait(PATIENT)
    for number in range(1, 5):
        tid = put(storage, number)
        archiver.turn()
        assert archiver.figures().copying is not None
        assert archiver.is_shipped
        assert restored("flaky://host/a", tmp_path / f"back{number}") == (tid, number)
    go_on.set()
    settle(archiver)
    assert archiver.figures().bases == 2
    put(storage, 5)
    settle(archiver)
    assert restored("flaky://host/a", tmp_path / "back5")[1] == 5


def test_another_log_is_not_continued(storage, tmp_path, caplog):
    """An older copy of the directory has the same identity, and another history."""
    archiver = started(storage, tmp_path / "place")
    put(storage, 0)
    settle(archiver)
    archiver.release()
    storage.close()
    subprocess.run(["cp", "-r", tmp_path / "db", tmp_path / "copy"], check=True)
    for name, number in (("db", 1), ("copy", 2)):
        with BerkeleyDBStorage(tmp_path / name, garbage_collection=GarbageManual()) as opened:
            archiver = started(opened, tmp_path / "place")
            for turn in range(3):
                put(opened, number * 100 + turn)
            settle(archiver)
            archiver.release()
            assert archiver.figures().bases == (name == "copy")
    assert "not the one that is archived" in caplog.text
    assert restored(tmp_path / "place", tmp_path / "back", of=str(tmp_path / "copy"))[1] == 202


def test_what_is_continued_was_removed(storage, tmp_path, monkeypatch, caplog):
    """By somebody else: it is noticed, and everything is copied again."""
    monkeypatch.setattr(archiving, "CHECK", 0.0)
    archiver = started(storage, tmp_path / "place")
    put(storage, 0)
    settle(archiver)
    store = open_store(tmp_path / "place")
    store.remove(*store.list())
    put(storage, 1)
    settle(archiver)
    assert "is gone from there" in caplog.text
    put(storage, 2)
    settle(archiver)
    assert restored(tmp_path / "place", tmp_path / "back")[1] == 2


def test_one_archives_to_a_place_at_a_time(storage, tmp_path):
    first, second = (started(storage, tmp_path / "place") for _ in range(2))
    first.claim()
    with pytest.raises(BackupError, match=f"process {os.getpid()} already"):
        second.claim()
    second.turn()
    assert second.figures().tid is None
    other = started(storage, tmp_path / "other")
    settle(other)
    first.release()
    settle(second)
    assert not [name for name in os.listdir(tmp_path / "db") if name.startswith("archiving-")][2:]


def test_a_forked_child_has_no_claim(tmp_path):
    claim = Claim(tmp_path, "url")
    assert claim.take()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        claim.release()
        assert Claim(tmp_path, "url").take()
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_a_claim_of_a_process_that_was_killed_is_free(tmp_path):
    script = (
        "import sys, os; from pathlib import Path; from berkeleydb_storage.backup.claim import Claim\n"
        "claim = Claim(Path(sys.argv[1]), 'url'); claim.take(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert len(list(tmp_path.iterdir())) == 1
    claim = Claim(tmp_path, "url")
    assert claim.take()
    assert claim.holder() == os.getpid()
    claim.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "seed", [*range(SEEDS), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(SEEDS, SLOW_SEEDS))]
)
def test_a_store_that_fails_at_random(storage, tmp_path, monkeypatch, seed):
    """What it says is there can be restored, at any time, with nothing but the store; in the end all is."""
    monkeypatch.setattr(chain, "MANY", 3)
    monkeypatch.setattr(archiving, "is_outgrown", lambda base, moment: moment.tid > base.noted.tid + 15)
    chance = random.Random(seed)
    archiver = started(storage, "flaky://host/a", keep=Keep(within=1e9))
    promised, tids = 0, {}
    with faults(seed, refused=0.08, unanswered=0.05, lost=0.04, late=0.05):
        for number in range(TURNS):
            for _ in range(chance.randrange(3)):
                tids[put(storage, number, chance.choice([10, 1000, 200_000]))] = number
            FAULTS.down = chance.random() < 0.1
            archiver.turn()
            if chance.random() < 0.7:
                archiver.wait(PATIENT)
            promised = archiver.figures().tid or promised
            if promised and chance.random() < 0.15:
                archiver.wait(PATIENT)
                machine_is_lost(tmp_path / f"back{number}", promised, tids)
            if chance.random() < 0.1:
                archiver.release()
                archiver = started(storage, "flaky://host/a", keep=Keep(within=1e9))
    settle(archiver)
    assert archiver.figures().gaps == 0
    tid, number = restored("flaky://host/a", tmp_path / "back")
    assert tid == storage._engine.journal.tid
    assert number == tids[max(tids)]


def machine_is_lost(path, promised, tids):
    """Restore from what the store has now, without faults: at least what was promised."""
    rates, down = FAULTS.rates, FAULTS.down
    FAULTS.rates, FAULTS.down = {}, False
    tid, number = restored("flaky://host/a", path)
    FAULTS.rates, FAULTS.down = rates, down
    assert tid >= promised
    assert number == tids.get(tid, number)


# -- as a policy of a storage ------------------------------------------------------------------------------------------


def test_closing_copies_what_is_left(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "place").mkdir()
    with BerkeleyDBStorage(tmp_path / "db", archive=Archive(tmp_path / "place", interval=1000)) as storage:
        for number in range(10):
            tid = put(storage, number)
    assert restored(tmp_path / "place", tmp_path / "back") == (tid, 9)


def test_a_shared_storage_is_archived_by_its_owner(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "place").mkdir()
    for number in range(2):
        with SharedStorage(tmp_path / "db", archive=Archive(tmp_path / "place", interval=0.05)) as storage:
            connection = Connection(storage)
            connection.get_root()["a"] = connection.get_root()["b"] = (number, "")
            connection.commit()
    assert restored(tmp_path / "place", tmp_path / "back")[1] == 1


def test_closing_waits_for_so_long_only(tmp_path, caplog):
    """Commits are not lost: they come when the storage is opened again."""
    (tmp_path / "db").mkdir()
    policy = Archive("flaky://host/a", interval=0.02, closing=0.2)
    with BerkeleyDBStorage(tmp_path / "db", archive=Archive("flaky://host/a", interval=0.02)) as storage:
        put(storage, 0)
    with BerkeleyDBStorage(tmp_path / "db", archive=policy) as storage:
        FAULTS.hanging.clear()
        tid = put(storage, 1)
        began = time.monotonic()
    assert time.monotonic() - began < PATIENT
    assert "does not have everything" in caplog.text or time.monotonic() - began < 5
    FAULTS.hanging.set()
    with BerkeleyDBStorage(tmp_path / "db", archive=Archive("flaky://host/a", interval=0.02)):
        pass
    assert restored("flaky://host/a", tmp_path / "back") == (tid, 1)


def test_commits_do_not_wait_for_a_store_that_hangs(tmp_path):
    (tmp_path / "db").mkdir()
    with BerkeleyDBStorage(tmp_path / "db", archive=Archive("flaky://host/a", interval=0.02, closing=0.1)) as storage:
        put(storage, 0)
        FAULTS.hanging.clear()
        for number in range(100):
            put(storage, number)
        assert storage.statistics().archive.url == "flaky://host/a"
        storage.close()
    FAULTS.hanging.set()


def test_a_place_that_is_not_there_yet(tmp_path):
    """It is an error of the archive, and not of the storage."""
    (tmp_path / "db").mkdir()
    with BerkeleyDBStorage(tmp_path / "db", archive=Archive(tmp_path / "place", interval=0.01)) as storage:
        put(storage, 0)
        wait_until(lambda: storage.statistics().archive.failing)
        assert "mount its disk" in storage.statistics().archive.failing
        (tmp_path / "place").mkdir()
        wait_until(lambda: storage.statistics().archive.tid is not None)
        assert storage.statistics().archive.failing == ""
    assert restored(tmp_path / "place", tmp_path / "back")[1] == 0


def test_a_place_in_the_storage_itself_is_none(storage, tmp_path):
    archiver = started(storage, tmp_path / "db" / "place")
    archiver.turn()
    assert "is in a storage" in archiver.figures().failing
    assert archiver.figures().tid is None


def test_what_can_never_work_is_refused_before_anything_is_opened(tmp_path):
    (tmp_path / "db").mkdir()
    with pytest.raises(BackupError, match="nosuch"):
        BerkeleyDBStorage(tmp_path / "db", archive=Archive("nosuch://bucket/a"))
    with pytest.raises(OptionError, match="archive is Archive"):
        BerkeleyDBStorage(tmp_path / "db", archive="s3://bucket/a")
    assert list((tmp_path / "db").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"interval": "1"},
        {"queue": -1},
        {"queue": 1.5},
        {"closing": -1},
        {"timeout": float("inf")},
        {"keep": 0},
        {"to": ""},
        {"to": 7},
    ],
)
def test_options_are_verified(options):
    with pytest.raises(OptionError):
        Archive(**{"to": "/a", **options})


def test_options_are_not_shown():
    assert "sesame" not in repr(Archive("s3://bucket", options={"secret": "sesame77"}))


def test_a_source_that_is_taken_away(storage):
    source = GuardedSource(storage._running.source)
    copying = source.copy()
    next(copying)
    moment = source.look()
    source.hold("x", moment.end, 1000)
    assert source.held("x") == moment.end
    source.release("x")
    source.stop()
    for use in (source.look, lambda: next(copying), lambda: source.hold("x", moment.end, 1), lambda: source.held("x")):
        with pytest.raises(StorageClosed):
            use()
