"""Kill -9, at every named crash point and at random moments: what was acknowledged is there, whole, and it goes on."""

import random
import sys
import time

import pytest
from crash_child import records
from crash_model import History, Writer, set_up
from crash_parent import KILLED, SETTINGS, Children
from test_collecting_crashes import NAMES as COLLECTING

from berkeleydb_storage import BerkeleyDBStorage, environment, failpoints
from berkeleydb_storage.check import check_pages

KILLS = 100
"""Random kills of the default run, over all configurations."""
SLOW_KILLS = 500
LONGEST = 0.12
"""Seconds that a child lives at most."""
MIGRATED = 1000
"""Objects of a migration."""
MANY = 15_000
"""Objects of a large commit."""
LONG = 1500
"""Commits without a checkpoint that make a recovery take longer than `LONGEST`."""

MODES = {
    "durable": {},
    "async": {"durable": False, "async_log_write": True},
    "buffered": {"durable": False, "async_log_write": False},
}
"""How the log is written. Only the last may lose acknowledged commits to a kill."""

WORKING = [
    name
    for name in failpoints.NAMES
    if name.startswith(("create.", "oids.", "commit.", "collect.", "checkpoint.", "close."))
]


@pytest.fixture
def children(tmp_path):
    started = Children(tmp_path)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    """What the parent writes has log files of the same size."""
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", SETTINGS["environment.LOG_FILE_SIZE"])
    monkeypatch.setattr(environment, "LOG_BUFFER", SETTINGS["environment.LOG_BUFFER"])


class Case:
    """One storage that is killed again and again, and its history."""

    def __init__(self, path, children, mode, type="btree"):
        self.path = path
        self.children = children
        self.losing = mode == "buffered"
        self.options = MODES[mode] | {"type": type, "cachesize": 1 << 20}
        self.history = History(losing=self.losing)
        self.kills = 0
        path.mkdir()

    def kill_at(self, name, count, function="work", **arguments):
        """Let a child die at a crash point, which it must reach."""
        status = self.children.run(function, self.path, fuse=(name, count), options=self.options, **arguments)
        assert status == KILLED, f"{name} was not reached {count} times"
        self.kills += 1
        self.take_reports()

    def take_reports(self):
        for line in self.children.reported():
            self.history.report(line)

    def survives(self):
        """Open it, compare it, check it, commit to it, close it, and check the pages of its files."""
        with BerkeleyDBStorage(self.path, **self.options) as storage:
            self.history.verify(storage)
            report = storage.check()
            assert not report.faults, report.faults
            for index, key in enumerate(set_up(storage, 1, self.history.report)):
                Writer(storage, index, key, self.history.report).next()
            self.history.verify(storage)
        assert not check_pages(self.path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in WORKING for mode in MODES if name != "commit.flushed" or mode == "durable"],
)
def test_killed_while_it_works(tmp_path, children, name, mode):
    case = Case(tmp_path / "storage", children, mode)
    times = (1,) if name.startswith(("create", "close")) else (1, 2, 5)
    for count in times:
        case.kill_at(name, count, how="inline", commits=60)
        case.survives()
    assert case.losing or case.history.lost == 0


@pytest.mark.parametrize("name", ["commit.written", "commit.committed"])
def test_killed_in_a_commit_that_is_larger_than_the_cache(tmp_path, children, name):
    """Pages of it are in the tables, and the log files that a checkpoint could not remove are undone."""
    case = Case(tmp_path / "storage", children, "async")
    assert children.run("work", case.path, options=case.options, how="inline", commits=20) == 0
    case.take_reports()
    case.kill_at(name, 1, "commit_many", objects=MANY, settings=SETTINGS | {"oids.OID_BLOCK": 4096})
    assert sum(path.stat().st_size for path in case.path.glob("log.*")) > 2 * case.options["cachesize"]
    case.survives()
    with BerkeleyDBStorage(case.path, **case.options) as storage:
        assert (storage.get_size() > MANY) == (name == "commit.committed")


@pytest.mark.parametrize("mode", MODES)
def test_killed_while_it_opens(tmp_path, children, mode):
    case = Case(tmp_path / "storage", children, mode)
    assert children.run("work", case.path, options=case.options, how="none", commits=30) == 0
    case.take_reports()
    case.kill_at("open.marked", 1, "open_and_close")
    case.survives()
    assert case.history.lost == 0


@pytest.mark.parametrize("type", ["btree", "hash"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["recover.begin", "recover.done"])
def test_killed_while_it_recovers_again_and_again(tmp_path, children, name, mode, type):
    case = Case(tmp_path / "storage", children, mode, type)
    case.kill_at("commit.written", 50, how="none")
    for _ in range(3):
        case.kill_at(name, 1, "open_and_close")
    case.survives()
    assert case.losing or case.history.lost == 0


def migrated(storage):
    return dict(storage.gen_oid_record()) == dict(records(MIGRATED, MIGRATED))


@pytest.mark.parametrize("name", [name for name in failpoints.NAMES if name.startswith("migrate.")])
def test_killed_while_it_migrates(tmp_path, children, name):
    """It is empty or complete afterwards; when it is empty, a new migration succeeds."""
    case = Case(tmp_path / "storage", children, "durable")
    times = 3 if name == "migrate.batch" else 1
    case.kill_at(name, times, "migrate", objects=MIGRATED)
    with BerkeleyDBStorage(case.path, **case.options) as storage:
        assert not storage.check().faults
        if name != "migrate.done":
            assert storage.get_size() == 0
            assert storage.migrate(records(MIGRATED, MIGRATED)) == MIGRATED
        assert migrated(storage)
        assert not storage.check().faults
    assert not check_pages(case.path)


@pytest.mark.parametrize("name", ["migrate.batch", "undo.begun"])
def test_killed_while_a_migration_is_undone(tmp_path, children, name):
    """First because it was interrupted or is inconsistent, then while the next openings empty the storage."""
    case = Case(tmp_path / "storage", children, "durable")
    case.kill_at(name, 1, "migrate", objects=MIGRATED, fail=True)
    for _ in range(2):
        case.kill_at("undo.begun", 1, "open_and_close")
    with BerkeleyDBStorage(case.path, **case.options) as storage:
        assert storage.get_size() == 0
        assert not storage.check().faults
        storage.migrate(records(MIGRATED, MIGRATED))
        assert migrated(storage)
    assert not check_pages(case.path)


COMPACTING = {"objects": 1200, "hold": 1e-4}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in failpoints.NAMES if name.startswith("compact.")])
def test_killed_while_it_compacts(tmp_path, children, name, mode):
    case = Case(tmp_path / "storage", children, mode)
    for count in (1, 2) if name == "compact.done" else (1, 2, 7, 20):
        case.kill_at(name, count, "compact", how="none", **COMPACTING)
        case.survives()
    assert case.losing or case.history.lost == 0


@pytest.mark.parametrize("how", ["none", "threads"])
@pytest.mark.parametrize("type", ["btree", "hash"])
def test_killed_while_it_compacts_at_random_moments(tmp_path, children, type, how, capsys):
    case = Case(tmp_path / "storage", children, "durable", type)
    source = random.Random(type + how)
    for _ in range(KILLS // 8):
        children.start("compact", case.path, options=case.options, how=how, **COMPACTING)
        time.sleep(source.uniform(LONGEST / 4, LONGEST * 3))
        children.kill()
        assert children.wait() == KILLED
        case.kills += 1
        case.take_reports()
        case.survives()
    assert case.history.lost == 0
    print_totals(capsys, case, f"compacting, {type}, {how}")


def test_every_crash_point_is_visited():
    """Here, or in `test_collecting_crashes`, `test_backup` and `test_holding`."""
    visited = {*WORKING, *COLLECTING, "open.marked", "recover.begin", "recover.done", "undo.begun"}
    visited |= {
        name
        for name in failpoints.NAMES
        if name.startswith(("compact.", "backup.", "hold.", "rekey.", "store.", "archive.", "restore."))
    }
    assert visited | {name for name in failpoints.NAMES if name.startswith("migrate.")} == set(failpoints.NAMES)


CONFIGURATIONS = [
    ("durable", "btree", "threads", 2),
    ("durable", "hash", "inline", 1),
    ("async", "btree", "inline", 2),
    ("async", "hash", "threads", 2),
    ("buffered", "btree", "threads", 1),
]


def kill_at_random(case, kills, seed, how, writers):
    """Kill so often; the storage is looked at after most of the kills, so that some hit a recovery."""
    source = random.Random(seed)
    for _ in range(kills):
        case.children.start("work", case.path, options=case.options, how=how, writers=writers)
        time.sleep(source.uniform(0, LONGEST))
        case.children.kill()
        assert case.children.wait() == KILLED
        case.kills += 1
        case.take_reports()
        if source.random() < 0.8:
            case.survives()
    case.survives()


def print_totals(capsys, case, what):
    history = case.history
    with capsys.disabled():
        sys.stdout.write(
            f"\n{what}: {case.kills} kills survived, {history.commits} commits acknowledged, {history.lost} lost\n"
        )


def survives_random_kills(case, kills, number, capsys):
    mode, type, how, writers = CONFIGURATIONS[number]
    kill_at_random(case, kills, number, how, writers)
    assert case.losing or case.history.lost == 0
    assert case.history.commits > kills
    print_totals(capsys, case, f"{mode}, {type}, {how}")


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)), ids=["-".join(map(str, one)) for one in CONFIGURATIONS])
def test_killed_at_random_moments(tmp_path, children, number, capsys):
    case = Case(tmp_path / "storage", children, *CONFIGURATIONS[number][:2])
    survives_random_kills(case, KILLS // len(CONFIGURATIONS), number, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)), ids=["-".join(map(str, one)) for one in CONFIGURATIONS])
def test_killed_at_random_moments_more_often(tmp_path, children, number, capsys):
    case = Case(tmp_path / "storage", children, *CONFIGURATIONS[number][:2])
    survives_random_kills(case, SLOW_KILLS // len(CONFIGURATIONS), number, capsys)


def test_a_long_recovery_killed_at_random_moments(tmp_path, children, capsys):
    """Each recovery begins anew; the log has some megabytes, so that kills hit the library at its work."""
    case = Case(tmp_path / "storage", children, "durable")
    case.kill_at("commit.committed", LONG, how="none", settings={})
    source = random.Random(0)
    for _ in range(KILLS // 10):
        children.start("open_and_close", case.path, options=case.options)
        time.sleep(source.uniform(0, LONGEST))
        children.kill()
        case.kills += children.wait() == KILLED
    case.survives()
    assert case.history.lost == 0
    print_totals(capsys, case, "recovery")
