"""Backups and restores while threads commit without pause, and kills of all who take part; nothing may be lost."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import backup_load
import pytest
from backup_load import HELD, LOGS, Load, Seen, busy, make_logs_small, restore_and_verify, verify
from concurrency import PATIENCE, run_threads
from graphs import scratch_directory

from berkeleydb_storage import BerkeleyDBStorage, environment, failpoints, list_backups, restore, verify_backups
from berkeleydb_storage.backup import making

TIMES, SLOW_TIMES = 2, 13
"""Backups in each mode, each with a restore; more than 100 in all modes."""
AT_ONCE = 1
"""Of those, while the same threads run: without pause they fill the disk."""
WRITERS = 2
KEEP = 4
KILLS, SLOW_KILLS = 1, 1
"""Of each kind."""
KEY = "a password, long enough"
OPTIONS = {
    f"{type}, {name}{', encrypted' if key else ''}": {"type": type, "key": key} | durability
    for type in ("btree", "hash")
    for name, durability in {
        "durable": {"durable": True},
        "buffered": {"durable": False, "async_log_write": False},
    }.items()
    for key in (None, KEY)
}
FAST = ["btree, durable", "hash, durable"]
RARE = ("hold.forgotten", "hold.removed", "hold.aside")
"""Reached only where more log would be kept than may be, or by a recovery."""
POINTS = [
    name
    for name in failpoints.NAMES
    if name.startswith(("backup.", "store.", "hold.", "checkpoint.")) and name not in RARE
]
FAST_POINTS = [
    "hold.begun",
    "hold.noted",
    "checkpoint.done",
    "checkpoint.logs-noted",
    "backup.piece",
    "backup.removing",
]
RESTORE_POINTS = [name for name in failpoints.NAMES if name.startswith("restore.")]


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    for name, value in LOGS.items():
        monkeypatch.setattr(environment, name, value)
    monkeypatch.setattr(making, "SMALL", HELD)
    monkeypatch.setattr(making, "LOG_FILE_SIZE", LOGS["LOG_FILE_SIZE"])


@pytest.fixture
def place():
    with scratch_directory() as path:
        (path / "backups").mkdir()
        (path / "storage").mkdir()
        yield path


class Course:
    """Backups of a storage under load, and restores of them."""

    def __init__(self, place, name):
        self.place, self.target = place, place / "backups"
        self.options, self.key = OPTIONS[name], OPTIONS[name]["key"]
        self.random = random.Random(name)
        self.storage = BerkeleyDBStorage(place / "storage", **busy(**self.options))
        self.load = Load(self.storage, WRITERS)
        self.moments = []
        self.kinds, self.restores, self.times = [], 0, [0.0, 0.0]

    def run(self, times):
        with ProcessPoolExecutor(1, get_context("spawn"), make_logs_small) as self.other:
            while times > 0:
                self.load.begin()
                run_threads(self.work(min(times, AT_ONCE)), *self.load.workers)
                times -= AT_ONCE
        self.storage.close()

    def work(self, times):
        def back_up_and_restore():
            try:
                for _ in range(times):
                    self.back_up()
            finally:
                self.load.end()

        return back_up_and_restore

    def moment(self):
        """Note a moment, what was done for sure before, and what may have been."""
        before = self.load.seen
        now = self.storage._engine.time()
        self.moments.append((now / 1e6, before, self.load.seen))

    def back_up(self):
        """Make a backup, and restore that, or what was at some moment before."""
        self.moment()
        before, started = self.load.seen, time.perf_counter()
        full = self.random.random() < 0.3
        backup = self.storage.backup(self.target, full=full, keep=self.random.choice([None, KEEP]))
        after = self.load.seen
        self.times[0] += time.perf_counter() - started
        assert backup.kind == "full" or not full
        self.kinds.append(backup.kind)
        first = min(backup.time for backup in list_backups(self.target))
        moments = [moment for moment in self.moments if moment[0] >= first]
        if moments and self.random.random() < 0.5:
            when, before, after = self.random.choice(moments)
            self.restore(before, after, {"to": when})
        else:
            self.restore(before, after, self.random.choice([{}, {"to_commit": backup.tid}]), backup.tid)

    def restore(self, before, after, wanted, tid=None):
        """Let another process restore something, and verify it."""
        target = self.place / "restored"
        done = self.other.submit(restore_and_verify, self.target, target, wanted, self.key, tuple(before), tuple(after))
        found, seconds = done.result(PATIENCE)
        assert tid in (None, found)
        self.times[1] += seconds
        self.restores += 1


@pytest.mark.parametrize("name", FAST)
def test_under_load(place, name):
    course = Course(place, name)
    course.run(TIMES)
    assert verify_backups(course.target, key=course.key).sound


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_often_under_load(place, name, capsys):
    course = Course(place, name)
    course.run(SLOW_TIMES)
    assert verify_backups(course.target, key=course.key).sound
    seconds = [round(taken, 1) for taken in course.times]
    with capsys.disabled():
        print(
            f"\n{name}: {len(course.kinds)} backups ({course.kinds.count('full')} full), {course.restores} restores "
            f"while {sum(course.load.acknowledged)} commits were made, 0 wrong, 0 lost; "
            f"{seconds[0]} s for the backups, {seconds[1]} s for the restores"
        )


class Child:
    """Runs jobs in processes of their own, which are killed."""

    def __init__(self, place):
        self.report = place / "report"
        self._read = 0

    def run(self, job, point, times, **arguments):
        """Do a job; return whether it was killed, and what it reported."""
        values = {"job": job, "fuse": [point, times], "report": str(self.report), **arguments}
        command = [sys.executable, "-W", "error", backup_load.__file__, json.dumps(values, default=str)]
        paths = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
        assert done.returncode in (0, -9), done.stderr
        lines = self.report.read_text().splitlines() if self.report.exists() else []
        new, self._read = lines[self._read :], len(lines)
        return done.returncode == -9, new


def acknowledged(lines, before):
    """Return the last step of each writer that was acknowledged."""
    found = list(before)
    for line in lines:
        what, *values = line.split(None, 2)
        if what == "ack":
            found[int(values[0])] = int(values[1])
    return found


class Kills:
    """An owner with backups that is killed again and again, and what must be there after each time."""

    def __init__(self, place, options):
        self.place, self.path, self.target = place, place / "storage", place / "backups"
        self.options, self.key = options, options.get("key")
        self.child = Child(place)
        self.steps = [0] * WRITERS
        self.kills = 0

    def kill(self, point, times):
        arguments = {"path": self.path, "target": self.target, "options": self.options, "writers": WRITERS}
        killed, lines = self.child.run("own", point, times, seed=f"{point} {times}", **arguments)
        assert killed
        self.kills += 1
        made = [json.loads(line[5:]) for line in lines if line.startswith("made")]
        last = acknowledged(lines, self.steps)
        if made:
            self.verify_restored(made[-1][1], made[-1][3])
        with BerkeleyDBStorage(self.path, **self.options) as storage:
            found = Seen([0] * WRITERS, [1 << 60] * WRITERS)
            if self.options["durable"]:
                found = Seen(last, [step + 1 for step in last])
            verify_if_begun(storage, found, last)
            tid = storage.statistics().transactions
            self.steps = [backup_load.read(storage, writer)[1] for writer in range(WRITERS)] if tid else [0] * WRITERS
            backup = storage.backup(self.target)
            assert backup.tid == tid
        self.verify_restored(tid, self.steps, exactly=True)
        verified = verify_backups(self.target, key=self.key)
        assert verified.sound, verified

    def verify_restored(self, tid, least, *, exactly=False):
        """Restore all that there is: not less than was told of."""
        target = self.place / "restored"
        restored = restore(self.target, target, key=self.key)
        assert restored.tid == tid if exactly else restored.tid >= tid
        with BerkeleyDBStorage(target, read_only=True, key=self.key) as storage:
            verify_if_begun(storage, Seen(least, least if exactly else [1 << 60] * WRITERS), least)
        shutil.rmtree(target)


def verify_if_begun(storage, seen, least):
    if storage.get_size() or any(least):
        verify(storage, seen, seen)


@pytest.mark.parametrize("point", FAST_POINTS)
def test_an_owner_is_killed(place, point):
    kills = Kills(place, OPTIONS["btree, durable"])
    kills.kill(point, KILLS)


def inventory(path):
    return {str(each.relative_to(path)): each.stat().st_size for each in path.rglob("*") if each.is_file()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Backups with a long chain, and the last transaction in them."""
    place = tmp_path_factory.mktemp("repository")
    (place / "storage").mkdir()
    (place / "backups").mkdir()
    with pytest.MonkeyPatch.context() as patches:
        for name, value in LOGS.items():
            patches.setattr(environment, name, value)
        patches.setattr(making, "SMALL", HELD)
        patches.setattr(making, "LOG_FILE_SIZE", LOGS["LOG_FILE_SIZE"])
        course = Course(place, "btree, durable")
        course.run(TIMES)
    newest = list_backups(place / "backups")[-1]
    return place / "backups", newest.tid, course.load.seen


def kill_a_restore(place, repository, point, times):
    """Kill it; return whether it was. What it wrote is not in the way, and nothing was changed in the repository."""
    where, tid, seen = repository
    before, target = inventory(where), place / "new"
    killed, _ = Child(place).run("restore", point, times, path=target, target=where, options={})
    assert inventory(where) == before
    assert killed or target.exists()
    assert target.exists() == (not killed or point == "restore.placed")
    if not target.exists():
        assert restore(where, target).tid == tid
    assert not [name for name in os.listdir(place) if name.startswith(".restoring-")] or point == "restore.placed"
    with BerkeleyDBStorage(target) as storage:
        verify(storage, Seen([0] * WRITERS, []), seen)
        assert storage.statistics().transactions == tid
    shutil.rmtree(target)
    return killed


@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_a_restore_is_killed(place, repository, point):
    assert kill_a_restore(place, repository, point, 1)


def test_a_restore_is_killed_while_it_fetches(place, repository):
    for times in (1, 2, 7):
        assert kill_a_restore(place, repository, "progress", times)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_everything_is_killed_often(place, name, capsys):
    kills = Kills(place, OPTIONS[name])
    chosen = random.Random(name)
    for _ in range(SLOW_KILLS):
        for point in (*POINTS, "progress", "commit.written", "commit.flushed"):
            kills.kill(point, chosen.randrange(1, 40 if "." not in point or point.startswith("commit") else 4))
    with capsys.disabled():
        print(f"\n{name}: {kills.kills} kills, {sum(kills.steps)} steps, 0 lost")
