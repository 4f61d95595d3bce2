"""Owners and commands that archive, killed: the archive alone gives back all that was acknowledged a second ago."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from archive_child import INTERVAL
from durus.connection import Connection

from berkeleydb_storage import BerkeleyDBStorage, GarbageManual, restore, verify_backups
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store

CHILD = str(Path(__file__).parent / "archive_child.py")
SECOND = 1.0
"""That may be lost, at most, of what was acknowledged."""
POINTS = [
    ("store.written", 9),
    ("store.named", 11),
    ("backup.piece", 3),
    ("backup.piece", 7),
    ("archive.shipped", 5),
    ("archive.switching", 1),
    ("archive.switching", 2),
    ("archive.joined", 1),
    ("backup.begun", 2),
    ("backup.tables", 2),
    ("backup.copied", 2),
    ("backup.noted", 2),
    ("backup.removing", 3),
    ("hold.begun", 3),
    ("hold.noted", 4),
    ("commit.committed", 400),
    ("checkpoint.logs-noted", 3),
]
FAST = [("store.written", 9), ("archive.switching", 2), ("backup.removing", 3)]
"""The others are slow."""
PATIENT = 120


def points(*others):
    """Return the crash points but for those that begin so, which are reached in the owner."""
    return [
        pytest.param(*each, marks=() if each in FAST else pytest.mark.slow, id="-".join(map(str, each)))
        for each in POINTS
        if not each[0].startswith(others)
    ]


@pytest.fixture
def place(tmp_path):
    for name in ("db", "place"):
        (tmp_path / name).mkdir()
    return tmp_path / "place"


def child(kind, tmp_path, place, point="", times=0, **options):
    arguments = [kind, tmp_path / "db", place, tmp_path / "report", point, times]
    return subprocess.Popen(
        [sys.executable, CHILD, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def died(process):
    """Wait until it was killed."""
    code = process.wait(PATIENT)
    assert code == -9, process.stderr.read()
    process.stdin.close()
    process.stderr.close()


def acknowledged(tmp_path):
    """Return (number, tid, time) of what was acknowledged."""
    path = tmp_path / "report"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(number), int(tid), float(when)) for number, tid, when in map(str.split, lines)]


def require_all_but_the_last_second(tmp_path, place, name):
    """Restore from the archive alone, and compare. Return how much less than a second was lost."""
    known = acknowledged(tmp_path)
    made = restore(place, tmp_path / name)
    with BerkeleyDBStorage(tmp_path / name, garbage_collection=GarbageManual()) as storage:
        assert list(storage.check().faults) == []
        root = Connection(storage).get_root()
        assert root.get("a") == root.get("b")
        number = root["a"][0] if "a" in root else 0
    tids = {tid: acknowledged for acknowledged, tid, _ in known}
    assert tids.get(made.tid, number) == number
    lost = [when for _, tid, when in known if tid > made.tid]
    end = known[-1][2] if known else 0.0
    assert not lost or end - lost[0] <= SECOND, f"{end - lost[0]:.2f} s of commits are lost"
    return end - lost[0] if lost else 0.0


def duplicates(place):
    """Return the pieces that say the same as another one."""
    found = []
    for base in Repository(open_store(place)).bases():
        ends = sorted((piece.start, piece.end) for piece in base.pieces)
        found += [one for one, other in pairwise(ends) if one == other]
    return found


@pytest.mark.parametrize(("point", "times"), points("nothing"))
def test_an_owner_is_killed(tmp_path, place, point, times):
    process = child("owner", tmp_path, place, point, times)
    died(process)
    require_all_but_the_last_second(tmp_path, place, "back")
    process = child("owner", tmp_path, place)
    goal = len(acknowledged(tmp_path)) + 100
    wait_until(lambda: len(acknowledged(tmp_path)) >= goal, process)
    process.communicate("", PATIENT)
    assert process.returncode == 0
    assert require_all_but_the_last_second(tmp_path, place, "again") == 0
    assert verify_backups(place).sound
    assert duplicates(place) == []


@pytest.mark.parametrize(("point", "times"), points("commit", "hold", "checkpoint", "backup.tables"))
def test_an_archiving_command_is_killed(tmp_path, place, point, times):
    """Its owner notices nothing, and the next one goes on."""
    owner = child("owner", tmp_path, "")
    archiving = None
    try:
        wait_until(lambda: acknowledged(tmp_path), owner)
        archiving = child("command", tmp_path, place, point, times)
        died(archiving)
        archiving = child("command", tmp_path, place)
        goal = acknowledged(tmp_path)[-1][1]
        wait_until(lambda: reached(place) > goal, archiving)
        owner.kill()
        died(owner)
        require_all_but_the_last_second(tmp_path, place, "back")
        archiving.terminate()
        _, errors = archiving.communicate("", PATIENT)
        assert archiving.returncode == 0, errors
    finally:
        for process in filter(None, (owner, archiving)):
            if process.returncode is None:
                process.kill()
                died(process)
    assert verify_backups(place).sound
    assert duplicates(place) == []


def wait_until(happened, process):
    """Wait until something has happened, while a process runs that has it happen."""
    until = time.monotonic() + PATIENT
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(INTERVAL / 4)


def reached(place):
    """Return the newest transaction that is known to be there."""
    return max((base.reach()[1] for base in Repository(open_store(place)).bases()), default=0)
