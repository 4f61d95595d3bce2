"""Log files that are kept for backups and archives: as long as they are needed, and no longer; nothing depends on them.

Log files are small here, so that there are many. A "kill" is a copy of the directory at a named point.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import holding_child
import pytest
import test_disk_full
from graphs import commit, hand_out, oid, quiet, record, scratch_directory
from test_disk_full import SIZE

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointNever,
    DiskFullError,
    GarbageManual,
    OptionError,
    StorageClosed,
    cli,
    environment,
    failpoints,
    inspection,
    room,
)
from berkeleydb_storage.directory import Directory
from berkeleydb_storage.errors import DamagedError, LogGone
from berkeleydb_storage.files import Position, log_name, log_numbers, oldest_without_gap
from berkeleydb_storage.holding import KEEP, LONGEST_NAME, holder_name
from berkeleydb_storage.salvage import Salvage

LOG = 1 << 18
"""Bytes of a log file."""
PLENTY = 1 << 40
KILLS = 3
"""At each point."""
STEPS = 300
"""Of the long run."""
POINTS = [name for name in failpoints.NAMES if name.startswith(("hold.", "checkpoint."))]


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", LOG)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture
def path():
    with scratch_directory() as directory:
        yield directory


@pytest.fixture
def storage(path):
    with quiet(path) as storage:
        hand_out(storage, 3)
        commit(storage, record(0, 1), record(1))
        yield storage


def holds(storage):
    return storage._running.holds


def end(storage):
    return Position(*storage._engine.environment.end_of_log())


def write(storage, logs=3):
    """Write about so many log files: they have the old record, too."""
    for _ in range(logs * 2):
        commit(storage, record(1, data=os.urandom(LOG // 4)))


def noted(path):
    return json.loads((path / "storage.json").read_text())


def kept(path):
    """Return what keep.json says: holder -> position."""
    values = json.loads((path / KEEP).read_text())
    assert values["format"] == 1
    return {name: Position(hold["log"], hold["offset"]) for name, hold in values["holders"].items()}


def test_nobody_holds_anything(path, storage):
    assert (holds(storage).held("a"), holds(storage).first(), holds(storage).figures()) == (None, None, ())
    holds(storage).release("a")
    write(storage)
    storage.checkpoint()
    assert not (path / KEEP).exists()
    assert len(log_numbers(path)) == 1


def test_what_is_held_stays_and_then_goes(path, storage):
    write(storage)
    start = end(storage)
    holds(storage).hold("a", start, PLENTY)
    assert (holds(storage).held("a"), holds(storage).first()) == (start, start.log)
    for _ in range(3):
        write(storage)
        storage.checkpoint()
        assert log_numbers(path) == list(range(start.log, end(storage).log + 1))
        assert noted(path)["first_log"] == end(storage).log
    holds(storage).hold("a", Position(start.log + 4, 7), PLENTY)
    assert kept(path) == {"a": (start.log + 4, 7)}
    storage.checkpoint()
    assert log_numbers(path)[0] == start.log + 4
    holds(storage).release("a")
    storage.checkpoint()
    assert log_numbers(path) == [end(storage).log]
    assert kept(path) == {}


def test_the_slowest_of_several_counts(path, storage):
    places = {}
    for name in "cab":
        places[name] = end(storage)
        holds(storage).hold(name, places[name], PLENTY)
        write(storage)
    storage.checkpoint()
    for name, following in (("c", "a"), ("a", "b")):
        assert holds(storage).first() == places[name].log
        holds(storage).release(name)
        storage.checkpoint()
        assert log_numbers(path)[0] == places[following].log


def test_it_survives_closing(path):
    with quiet(path) as storage:
        hand_out(storage, 2)
        commit(storage, record(0, 1), record(1))
        start = end(storage)
        holds(storage).hold("a", start, PLENTY)
        write(storage)
    for _ in range(2):
        with quiet(path) as storage:
            assert holds(storage).held("a") == start
            write(storage)
        assert log_numbers(path)[0] == start.log
        description = noted(path)
        assert (description["state"], description["first_log"]) == ("closed", description["last_log"])


def test_what_a_holder_says_again_writes_nothing(path, storage):
    start = end(storage)
    holds(storage).hold("a", start, PLENTY)
    before = (path / KEEP).stat().st_ino, holds(storage).figures()
    holds(storage).hold("a", start, PLENTY)
    assert ((path / KEEP).stat().st_ino, holds(storage).figures()) == before
    holds(storage).hold("a", start, PLENTY - 1)
    assert holds(storage).figures()[0].limit == PLENTY - 1


@pytest.mark.parametrize(
    ("holder", "position", "limit"),
    [
        ("", (1, 0), 1),
        ("a\n", (1, 0), 1),
        ("a" * (LONGEST_NAME + 1), (1, 0), 1),
        (b"a", (1, 0), 1),
        ("a", (0, 0), 1),
        ("a", (1, -1), 1),
        ("a", (1,), 1),
        ("a", ("1", 0), 1),
        ("a", (True, 0), 1),
        ("a", None, 1),
        ("a", (1, 0), 0),
        ("a", (1, 0), 1.5),
    ],
)
def test_what_cannot_be_held(path, storage, holder, position, limit):
    with pytest.raises(OptionError):
        holds(storage).hold(holder, position, limit)
    assert not (path / KEEP).exists()


def test_what_is_gone_cannot_be_held(storage, path):
    start = end(storage)
    write(storage)
    storage.checkpoint()
    with pytest.raises(LogGone, match=re.escape(log_name(start.log))):
        holds(storage).hold("a", start, PLENTY)
    holds(storage).hold("a", Position(end(storage).log + 1, 0), PLENTY)  # the next file, which is not there yet
    assert kept(path) == {"a": (end(storage).log + 1, 0)}


def test_closed_or_read_only(path):
    with quiet(path) as storage:
        pass
    with pytest.raises(StorageClosed):
        holds(storage).hold("a", Position(1, 0), PLENTY)
    with pytest.raises(StorageClosed):
        holds(storage).release("a")
    with quiet(path, read_only=True) as reader, pytest.raises(StorageClosed, match="read-only"):
        holds(reader).hold("a", Position(1, 0), PLENTY)
    assert not (path / KEEP).exists()


def test_beyond_its_limit_a_holder_is_forgotten(path, storage, caplog):
    start = end(storage)
    holds(storage).hold("slow", start, 4 * LOG)
    holds(storage).hold("patient", start, PLENTY)
    write(storage, 2)
    storage.checkpoint()
    assert holds(storage).held("slow") == start
    write(storage, 4)
    with caplog.at_level(logging.WARNING):
        storage.checkpoint()
        storage.checkpoint()
    (warning,) = [line.getMessage() for line in caplog.records if "slow" in line.getMessage()]
    assert f"{4 * LOG:,} is its limit" in warning
    assert "the next backup to it copies everything" in warning
    size = int(re.search(r"([\d,]+) bytes of log are kept for", warning)[1].replace(",", ""))
    assert 4 * LOG < size <= 8 * LOG
    assert holds(storage).held("slow") is None
    assert kept(path) == {"patient": start}
    assert log_numbers(path)[0] == start.log
    holds(storage).release("patient")
    storage.checkpoint()
    assert log_numbers(path) == [end(storage).log]


def test_what_recovery_needs_anyway_is_not_charged(path, storage):
    """Nothing is, before a checkpoint."""
    start = end(storage)
    holds(storage).hold("a", start, 1)
    write(storage)
    assert holds(storage).figures()[0].bytes == 0
    assert holds(storage).held("a") == start
    storage.checkpoint()
    assert holds(storage).held("a") is None


def test_the_figures(path, storage):
    start = end(storage)
    holds(storage).hold("a", start, PLENTY)
    holds(storage).hold("b", Position(start.log + 2, 5), PLENTY)
    write(storage)
    storage.checkpoint()
    first, second = storage.statistics().holds
    assert (first.holder, first.log, first.offset, first.limit) == ("a", *start, PLENTY)
    assert first.bytes == sum((path / log_name(number)).stat().st_size for number in log_numbers(path)[:-1])
    assert (second.holder, second.log) == ("b", start.log + 2)
    assert 0 < second.bytes < first.bytes
    assert first.since == pytest.approx((path / KEEP).stat().st_mtime, abs=60)
    assert inspection.figures(storage).holds == (first, second)
    assert inspection.outside(path).holds == (first, second)


def test_stat(path, capsys):
    with quiet(path) as storage:
        hand_out(storage, 2)
        commit(storage, record(0, 1), record(1))
        start = end(storage)
        holds(storage).hold("backup to /backups", start, 1 << 30)
        write(storage)
    assert cli.main(["stat", str(path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held")]
    assert re.search(
        rf"of at most 1,073.7 MB of log, from {start.log}/{start.offset} since .* for backup to /backups$", line
    )
    assert cli.main(["stat", str(path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    (held,) = values["holds"]
    assert (held["holder"], held["log"], held["offset"]) == ("backup to /backups", *start)
    assert held["bytes"] > LOG
    assert "holds" not in values["inside"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"format": 2, "holders": {}}',
        b'{"format": "1", "holders": {}}',
        b'{"format": 1, "holders": []}',
        b'{"format": 1, "holders": {"a": 7}}',
        b'{"format": 1, "holders": {"a": {"log": 1, "offset": 0, "limit": 1}}}',
        b'{"format": 1, "holders": {"a": {"log": 1, "offset": 0, "limit": 1, "since": "now"}}}',
        b'{"format": 1, "holders": {"a": {"log": 0, "offset": 0, "limit": 1, "since": 1}}}',
        b'{"format": 1, "holders": {"a": {"log": 1, "offset": 0, "limit": 1, "since": 1, "more": 1}}}',
        b"[" * 100_000,
        None,
    ],
)
def test_a_malformed_file_holds_nothing(path, text, caplog):
    with quiet(path):
        pass
    if text is None:
        (path / KEEP).mkdir()
    else:
        (path / KEEP).write_bytes(text)
    with caplog.at_level(logging.WARNING), quiet(path) as storage:
        hand_out(storage, 2)
        commit(storage, record(0, 1), record(1))
        assert "keep.json cannot be used" in caplog.text
        assert holds(storage).first() is None
        write(storage)
        storage.checkpoint()
        assert len(log_numbers(path)) == 1
        if text is None:
            with pytest.raises(OSError, match="directory"):
                holds(storage).hold("a", end(storage), PLENTY)
            (path / KEEP).rmdir()
        holds(storage).hold("a", end(storage), PLENTY)
        assert kept(path) == {"a": end(storage)}


def crashed(storage, path, to):
    """Return a copy of a storage as it is now, which nobody closes."""
    storage._engine.environment.flush()
    return copied(path, to / f"copy {len(os.listdir(to))}")


def copied(path, target):
    return shutil.copytree(path, target, ignore=shutil.ignore_patterns("control"))


@pytest.fixture
def copies():
    with scratch_directory() as directory:
        yield directory


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("missing", ["first", "middle", "last kept", "all"])
def test_a_kept_file_that_is_gone_does_not_matter(path, storage, copies, missing, closed, caplog):
    start = end(storage)
    holds(storage).hold("a", start, PLENTY)
    holds(storage).hold("late", Position(start.log + 8, 0), PLENTY)
    write(storage)
    storage.checkpoint()
    newest = os.urandom(100)
    commit(storage, record(2, data=newest), record(0, 1, 2))
    copy = crashed(storage, path, copies)
    if closed:
        with quiet(copy):
            pass
    older = log_numbers(copy)[:-1]
    assert len(older) >= 3
    gone = {"first": older[:1], "middle": older[1:2], "last kept": older[-1:], "all": older}[missing]
    for number in gone:
        (copy / log_name(number)).unlink()
    caplog.clear()
    with quiet(copy, read_only=True) as reader:
        assert reader.load(oid(2)) == record(2, data=newest)
    with quiet(copy) as opened:
        assert opened.load(oid(2)) == record(2, data=newest)
        assert not opened.check().faults
        assert holds(opened).held("a") is None
        assert holds(opened).held("late") == (start.log + 8, 0)
        assert f"{log_name(start.log)}, or one after it, is gone, which a needs" in caplog.text
        opened.checkpoint()
        assert log_numbers(copy) == [end(opened).log], "what lies before a gap goes, too"
        assert kept(copy).keys() == {"late"}
        holds(opened).hold("a", end(opened), PLENTY)
        commit(opened, record(2, data=newest + b"!"))
    with quiet(copy) as opened:
        assert opened.load(oid(2)) == record(2, data=newest + b"!")
        assert holds(opened).held("a") is not None


def test_what_recovery_needs_is_still_missed(path, storage, copies):
    holds(storage).hold("a", end(storage), PLENTY)
    write(storage)
    storage.checkpoint()
    needed = noted(path)["first_log"]
    write(storage)
    copy = crashed(storage, path, copies)
    (copy / log_name(needed)).unlink()
    with pytest.raises(DamagedError, match=re.escape(log_name(needed))):
        quiet(copy)


def test_a_recovery_reads_and_copies_only_what_it_needs(path, storage, copies, caplog):
    holds(storage).hold("a", end(storage), PLENTY)
    write(storage, 12)
    storage.checkpoint()
    copy = crashed(storage, path, copies)
    needed = Directory(copy).needed_logs()
    assert needed == log_numbers(copy)[-1:]
    target = copies / "target"
    target.mkdir()
    Directory(copy).copy_to(target)
    assert log_numbers(target) == needed
    assert not (target / KEEP).exists()
    with quiet(copy) as opened:
        assert holds(opened).first() == 1
    megabytes = float(re.search(r"recovering from ([\d.]+) MB of log", caplog.text)[1])
    assert megabytes <= LOG / 1e6 + 0.1


def test_a_backup_begins_where_recovery_does(path, storage, tmp_path):
    holds(storage).hold("a", end(storage), PLENTY)
    write(storage)
    storage.checkpoint()
    with storage._running.checkpointer.keeping_logs() as first:
        assert first.log == noted(path)["first_log"] == end(storage).log
        holds(storage).release("a")
        write(storage)
        storage.checkpoint()
        assert log_numbers(path)[0] == first.log
        with storage._running.checkpointer.keeping_logs() as second:
            assert second.log > first.log
            storage.checkpoint()
            assert log_numbers(path)[0] == first.log
    storage.checkpoint()
    assert log_numbers(path) == [end(storage).log]


def test_who_comes_while_a_checkpoint_removes_logs(path, storage, monkeypatch):
    """He waits, and is told that they are gone; or he came in time, and they are not."""
    start = end(storage)
    write(storage)
    outcome = []

    def come():
        try:
            holds(storage).hold("late", start, PLENTY)
        except LogGone as error:
            outcome.append(error)

    thread = threading.Thread(target=come)
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "checkpoint.logs-noted" and thread.start())
    storage.checkpoint()
    monkeypatch.setattr(failpoints, "hook", None)
    thread.join()
    assert len(outcome) == 1
    assert holds(storage).held("late") is None


@pytest.mark.parametrize("what", ["hold", "advance", "release", "limit", "relieve"])
def test_killed_at_each_point(path, storage, copies, monkeypatch, what):
    """The state is the one before or the one after; no commit is lost; all that is held is there."""
    start = end(storage)
    if what != "hold":
        holds(storage).hold("a", start, 3 * LOG if what == "limit" else PLENTY)
    write(storage, 2)
    storage.checkpoint()
    write(storage, 6 if what == "limit" else 1)
    before, after = holds(storage).held("a"), end(storage) if what in ("hold", "advance") else None
    newest = storage.load(oid(1))
    if what == "relieve":
        storage.checkpoint()
    seen = []

    def kill(name):
        if name in POINTS:
            seen.append((name, crashed(storage, path, copies)))

    monkeypatch.setattr(failpoints, "hook", kill)
    if after is not None:
        holds(storage).hold("a", after, PLENTY)
    elif what == "release":
        holds(storage).release("a")
    elif what == "relieve":
        assert holds(storage).relieve(LOG)
    storage.checkpoint()
    monkeypatch.setattr(failpoints, "hook", None)
    assert holds(storage).held("a") == after
    expected = {name for name in POINTS if name.startswith("checkpoint.")} | {"hold.begun", "hold.noted"}
    assert {name for name, _ in seen} == expected | ({"hold.forgotten", "hold.removed"} if what == "relieve" else set())
    for name, copy in seen:
        with quiet(copy) as opened:
            assert opened.load(oid(1)) == newest
            assert not opened.check().faults
            found = holds(opened).held("a")
            assert found in (before, after), name
            assert name != "hold.noted" or found == after
            if found is not None:
                assert oldest_without_gap(copy) <= found.log
            opened.checkpoint()
            first = end(opened).log if what == "limit" or found is None else min(found.log, end(opened).log)
            assert log_numbers(copy)[0] == first


class Story:
    """What processes said that were killed: what they did is there, and at most what they were about to do besides."""

    def __init__(self):
        self.number = {0}
        self.places = {"a": {None}, "b": {None}}

    def read(self, lines):
        for word, *rest in map(str.split, lines):
            if word in ("committing", "committed"):
                number = int(rest[0])
                self.number = {number} if word == "committed" else {number - 1, number}
            elif word in ("holding", "held"):
                place = Position(int(rest[1]), int(rest[2]))
                self.places[rest[0]] = {place} | (self.places[rest[0]] if word == "holding" else set())
            elif word in ("releasing", "released"):
                self.places[rest[0]] = {None} | (self.places[rest[0]] if word == "releasing" else set())
            elif word == "relieving":
                self.places = {name: {None} | known for name, known in self.places.items()}
            else:
                self.places = {name: known - {None} if name in rest else {None} for name, known in self.places.items()}

    def compare(self, path):
        with quiet(path) as storage:
            assert holding_child.stored(storage) in self.number
            assert not storage.check().faults
            for name, known in self.places.items():
                found = holds(storage).held(name)
                assert found in known
                assert found is None or oldest_without_gap(path) <= found.log
                self.places[name] = {found}
            self.number = {holding_child.stored(storage)}


@pytest.mark.parametrize("point", [name for name in POINTS if name != "hold.aside"])
def test_killed_in_earnest(path, point):
    story, source = Story(), random.Random(point)
    for _ in range(KILLS):
        arguments = [str(path), str(source.random()), point, str(source.randint(1, 4))]
        child = [sys.executable, "-W", "error", holding_child.__file__, *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(child, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr
        story.read(done.stdout.splitlines())
        story.compare(path)


def test_a_long_run(path):
    """Two holders that advance at random: after each checkpoint just the files are there that somebody needs."""
    source = random.Random(1)
    options = {"durable": False, "garbage_collection": GarbageManual(), "checkpoint": CheckpointNever()}
    storage = BerkeleyDBStorage(path, cachesize=1 << 20, **options)
    hand_out(storage, 2)
    commit(storage, record(0, 1), record(1))
    places = {}
    most = 0
    for _ in range(STEPS):
        commit(storage, record(1, data=os.urandom(source.randrange(LOG))))
        choice = source.random()
        name = source.choice("ab")
        if choice < 0.1:
            newest = end(storage)
            oldest = places.get(name, Position(log_numbers(path)[0], 0)).log
            number = source.randint(oldest, newest.log)
            places[name] = newest if number == newest.log else Position(number, source.randrange(LOG))
            holds(storage).hold(name, places[name], PLENTY)
        elif choice < 0.12:
            places.pop(name, None)
            holds(storage).release(name)
        elif choice < 0.3:
            storage.checkpoint()
            needed = noted(path)["first_log"]
            first = min([needed, *(place.log for place in places.values())])
            assert log_numbers(path) == list(range(first, end(storage).log + 1))
            most = max(most, needed - first)
        elif choice < 0.35:
            storage.close()
            storage = BerkeleyDBStorage(path, cachesize=1 << 20, **options)
        for name in "ab":
            assert holds(storage).held(name) == places.get(name)
    assert most > 3
    assert not storage.check().faults
    storage.close()


disk = test_disk_full.disk


class Full:
    """A storage on a small disk that is filled, with what it held on the way."""

    def __init__(self, disk):
        self.disk = disk
        self.path = disk.path / "storage"
        self.path.mkdir()
        self.storage = quiet(self.path)
        disk.storages.append(self.storage)
        hand_out(self.storage, 2)
        commit(self.storage, record(0, 1), record(1))

    def hold(self, name, logs=6):
        """Let `name` hold the log from here on, and write that much of it."""
        start = end(self.storage)
        holds(self.storage).hold(name, start, PLENTY)
        write(self.storage, logs)
        self.storage.checkpoint()
        return start

    def reserve(self):
        status = os.statvfs(self.path)
        return min(room.RESERVE, status.f_blocks * status.f_frsize // room.RESERVE_SHARE)


@pytest.fixture
def full(disk):
    return Full(disk)


@pytest.mark.parametrize("size", [0, 100_000])
def test_on_a_full_disk_commits_come_first(full, caplog, size):
    """Who holds most is forgotten, then the next; and then commits are refused."""
    places = {name: full.hold(name) for name in ("oldest", "older", "newest")}
    storage, data = full.storage, os.urandom(size)
    forgotten = []
    for name, following in (("oldest", places["older"].log), ("older", places["newest"].log), ("newest", None)):
        full.disk.fill(full.reserve() + size * 2)
        storage._engine.transactions.room._credit = 0  # as after a second
        caplog.clear()
        commit(storage, record(1, data=data))
        assert storage.load(oid(1)) == record(1, data=data)
        (error,) = [line for line in caplog.records if line.levelno == logging.ERROR]
        assert re.search(
            rf"disk of .* is full: .* bytes of log that {name} has not copied yet are removed", error.message
        )
        forgotten.append(name)
        assert holds(storage).held(name) is None
        assert log_numbers(full.path)[0] == (following or noted(full.path)["first_log"])
        assert kept(full.path).keys() == places.keys() - set(forgotten)
    full.disk.fill(full.reserve() - 1)
    storage._engine.transactions.room._credit = 0
    caplog.clear()
    with pytest.raises(DiskFullError, match="bytes free, and"):
        commit(storage, record(1, data=b"refused"))
    assert not caplog.records
    full.disk.clear()
    commit(storage, record(1, data=b"afterwards"))
    assert not storage.check().faults


def test_nothing_is_given_up_in_vain(full):
    """A commit that is too large for all of it is refused, and who holds something keeps it."""
    start = full.hold("a")
    full.disk.fill(full.reserve() + 1000)
    full.storage._engine.transactions.room._credit = 0
    with pytest.raises(DiskFullError):
        commit(full.storage, record(1, data=bytes(SIZE // 2)))
    assert holds(full.storage).held("a") == start
    assert log_numbers(full.path)[0] == start.log


def test_what_a_running_copy_needs_is_given_up_last(full, caplog):
    """Before commits are refused: a copy to a slow place can be made again."""
    copying = full.storage._running.source.copy()
    next(copying)
    full.hold("a")
    full.disk.fill(full.reserve())
    full.storage._engine.transactions.room._credit = 0
    commit(full.storage, record(1))
    assert holds(full.storage).held("a") is None
    assert "the copy of everything that is being made ends" in caplog.text
    with pytest.raises(LogGone, match="free some, then make it again"):
        list(copying)
    full.disk.clear()
    assert [chunk.name for chunk in full.storage._running.source.copy()]


@pytest.mark.parametrize("what", ["hold", "advance", "release"])
def test_no_room_to_note_who_holds_something(full, what, copies):
    """It fails, and all is as before; the storage goes on, and so does who holds it, when there is room."""
    storage, start = full.storage, end(full.storage)
    if what != "hold":
        start = full.hold("a")
    before = holds(storage).held("a")

    def change():
        if what == "release":
            holds(storage).release("a")
        else:
            holds(storage).hold("a", end(storage), PLENTY)

    full.disk.fill()
    with pytest.raises(DiskFullError, match="no room on the disk of"):
        change()
    assert holds(storage).held("a") == before
    assert not (full.path / KEEP).exists() if what == "hold" else kept(full.path) == {"a": start}
    copy = copied(full.path, copies / "killed")
    with quiet(copy) as opened:
        assert holds(opened).held("a") == before
    full.disk.clear()
    change()
    commit(storage, record(1, data=b"on"))
    storage.checkpoint()
    assert not storage.check().faults


def test_forgetting_on_a_disk_without_a_byte(full, caplog):
    """What cannot be noted before the files are removed is noted after it."""
    full.hold("a")
    full.disk.fill()
    assert holds(full.storage).relieve(LOG)
    assert kept(full.path) == {}
    assert "keep.json is not up to date, which is tried again" in caplog.text
    full.disk.clear()
    full.storage.checkpoint()


def test_salvaging_needs_no_kept_file(path, storage, copies):
    """Damage in one of them loses nothing of what came later."""
    holds(storage).hold("a", end(storage), PLENTY)
    write(storage)
    storage.checkpoint()
    newest = os.urandom(LOG)
    commit(storage, record(1, data=newest))
    write(storage)
    commit(storage, record(1, data=newest))
    copy = crashed(storage, path, copies)
    damaged = copy / log_name(log_numbers(copy)[1])
    assert log_numbers(copy)[1] < noted(copy)["first_log"]
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 1
    damaged.write_bytes(contents)
    (copies / "new").mkdir()
    with Salvage(copy) as salvage, quiet(copies / "new") as opened:
        opened.migrate(salvage.records())
        assert opened.load(oid(1)) == record(1, data=newest)
    assert not salvage.report.missing


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("which", ["oldest", "all"])
@pytest.mark.parametrize("damage", ["empty", "short", "zeros", "random", "flipped"])
def test_a_kept_file_that_is_damaged_does_not_matter(path, storage, copies, damage, which, closed):
    holds(storage).hold("a", end(storage), PLENTY)
    write(storage)
    storage.checkpoint()
    newest = os.urandom(100)
    commit(storage, record(1, data=newest))
    copy = crashed(storage, path, copies)
    if closed:
        with quiet(copy):
            pass
    kept_ones = log_numbers(copy)[:-1]
    for number in kept_ones[:1] if which == "oldest" else kept_ones:
        where = copy / log_name(number)
        contents = where.read_bytes()
        flipped = bytes([contents[0] ^ 1]) + contents[1:100] + bytes(byte ^ 255 for byte in contents[100:])
        kinds = {"empty": b"", "short": contents[:100], "zeros": bytes(len(contents)), "flipped": flipped}
        where.write_bytes(kinds.get(damage, os.urandom(len(contents))))
    with quiet(copy, read_only=True) as reader:
        assert reader.load(oid(1)) == record(1, data=newest)
    with quiet(copy) as opened:
        assert opened.load(oid(1)) == record(1, data=newest)
        commit(opened, record(1, data=newest + b"!"))
        write(opened)
        opened.checkpoint()
        assert holds(opened).first() == log_numbers(copy)[0]
        holds(opened).release("a")
        opened.checkpoint()
        assert log_numbers(copy) == [end(opened).log]
        assert not opened.check().faults


def test_killed_while_a_recovery_is_under_way(path, storage, copies, monkeypatch):
    """What is kept has another name then, and gets its own back."""
    start = end(storage)
    holds(storage).hold("a", start, PLENTY)
    write(storage)
    storage.checkpoint()
    commit(storage, record(1, data=b"newest"))
    copy = crashed(storage, path, copies)
    before = log_numbers(copy)
    killed = []
    monkeypatch.setattr(
        failpoints,
        "hook",
        lambda name: name == "hold.aside" and killed.append(copied(copy, copies / f"k{len(killed)}")),
    )
    with quiet(copy) as opened:
        assert holds(opened).held("a") == start
    assert set(before) <= set(log_numbers(copy))
    monkeypatch.setattr(failpoints, "hook", None)
    assert log_numbers(killed[-1]) == before[-1:]
    with quiet(killed[-1], read_only=True) as reader:
        assert reader.load(oid(1)) == record(1, data=b"newest")
    with quiet(killed[-1]) as opened:
        assert opened.load(oid(1)) == record(1, data=b"newest")
        assert holds(opened).held("a") == start
        assert set(before) <= set(log_numbers(killed[-1]))
    assert not [name for name in os.listdir(killed[-1]) if name.startswith("kept")]


@pytest.mark.parametrize("where", [0, 4, 8, 16, 24, 28, 32, 36])
@pytest.mark.parametrize("size", [4, 100])
def test_damage_at_the_beginning_of_the_log_is_never_silent(path, storage, copies, where, size):
    """The library would find no log, recover nothing and say nothing; or crash."""
    storage.checkpoint()
    write(storage)
    commit(storage, record(1, data=b"newest"))
    copy = crashed(storage, path, copies)
    needed = Directory(copy).needed_logs()
    assert len(needed) > 3
    log = copy / log_name(needed[0])
    contents = bytearray(log.read_bytes())
    contents[where : where + size] = bytes(size)
    log.write_bytes(contents)
    try:
        with quiet(copy) as opened:
            assert opened.load(oid(1)) == record(1, data=b"newest")
    except DamagedError as error:
        named = str(log) in str(error)
        assert named, error  # noqa: PT017 - where it is opened all the same, all is there


def test_the_command_release(tmp_path, capsys):
    """Who will not come back is let go, by whoever has the storage open; and who was never there is named."""
    (tmp_path / "db").mkdir()
    (tmp_path / "backups").mkdir()
    with BerkeleyDBStorage(tmp_path / "db") as opened:
        opened.backup(tmp_path / "backups")
        (holder,) = [held.holder for held in holds(opened).figures()]
        assert holder == f"backup to {tmp_path / 'backups'}"
        assert cli.main(["release", str(tmp_path / "db"), holder]) == 0
        assert not holds(opened).figures()
    assert cli.main(["release", str(tmp_path / "db"), holder]) == 2
    assert "keeps no log for" in capsys.readouterr().err
    with BerkeleyDBStorage(tmp_path / "db") as opened:
        assert opened.backup(tmp_path / "backups").kind == "full"


def test_holders_of_strange_places():
    """Each has a name that may be one, the same each time."""
    strange = ["/x" * 1000, "/x" * 1000 + "y", "/a\nb", "/a b", "/ä"]
    names = [holder_name("backup", place) for place in strange]
    assert len(set(names)) == len(strange)
    assert all(len(name) <= LONGEST_NAME and name.isprintable() for name in names)
    assert names == [holder_name("backup", place) for place in strange]
