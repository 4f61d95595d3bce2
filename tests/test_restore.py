"""Storages out of backups: as of any commit or time, interrupted, refused, and of what is damaged."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import pytest
from backed import bases, contents, restored, verify
from concurrency import PATIENCE
from crash_parent import KILLED, SETTINGS, Children
from graphs import commit, hand_out, quiet, record, scratch_directory
from test_cli import COMMAND, ENVIRONMENT, run, run_here
from test_disk_full import Disk, mounted
from test_golden import ARCHIVES, CONTENTS, GOLDEN, assert_contents, pytestmark  # noqa: F401 - of Berkeley DB 5.3
from test_repository import sealed

from berkeleydb_storage import (
    BackupError,
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointNever,
    GarbageManual,
    KeyNeeded,
    OptionError,
    WrongKey,
    environment,
    failpoints,
    list_backups,
    restore,
    verify_backups,
)
from berkeleydb_storage.backup import making
from berkeleydb_storage.backup.catalog import DIGITS, MANIFEST
from berkeleydb_storage.backup.restoring import AHEAD
from berkeleydb_storage.backup.stores import LocalStore
from berkeleydb_storage.errors import DamagedBackup
from berkeleydb_storage.format import FORMAT_VERSION

POINTS = [name for name in failpoints.NAMES if name.startswith("restore.")]
PLACES = (0.0, 0.3, 0.7, 1.0)
"""Where in an object a byte is flipped: the first, the last, and between."""
DAY = 86400.0


class Made(NamedTuple):
    """A place with backups of one storage."""

    where: Path
    storage: str
    states: dict[int, dict]
    """Transaction -> contents."""
    times: dict[int, float]
    """Transaction -> a time after it, and before the next."""
    first: int
    """The oldest that can be restored."""

    @property
    def last(self):
        return max(self.states)


def make(where, directory, **options):
    """Two bases, the chain of the first going on up to the second, and log after that, in several files."""
    where.mkdir(exist_ok=True)
    states, times, first = {}, {}, None
    with BerkeleyDBStorage(
        directory, checkpoint=CheckpointNever(), garbage_collection=GarbageManual(), **options
    ) as storage:
        hand_out(storage, 10)
        for number in range(12):
            size = 60_000 if number in (4, 5, 9) else 300
            keys = range(1, 10) if not number or size > 300 else [number % 9 + 1]
            root = [record(0, *range(1, 10))] if not number else []
            commit(storage, *root, *(record(key, data=b"%d " % number + os.urandom(size)) for key in keys))
            tid = storage.statistics().transactions
            states[tid] = dict(storage.gen_oid_record())
            if number in (1, 3, 6, 8, 11):
                made = storage.backup(where, full=number in (1, 6))
                first = first or made.tid
            times[tid] = storage._engine.time() / 1e6
    return Made(where, str(directory), states, times, first)


@pytest.fixture(scope="module", autouse=True)
def small_logs():
    """So that there are several log files."""
    patch = pytest.MonkeyPatch()
    patch.setattr(environment, "LOG_FILE_SIZE", SETTINGS["environment.LOG_FILE_SIZE"])
    patch.setattr(environment, "LOG_BUFFER", SETTINGS["environment.LOG_BUFFER"])
    patch.setattr(making, "LOG_FILE_SIZE", SETTINGS["environment.LOG_FILE_SIZE"])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original")
    (path / "storage").mkdir()
    return make(path / "backups", path / "storage")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """What is behind a URL, in a directory all the same."""
    path = tmp_path_factory.mktemp("compressed")
    (path / "storage").mkdir()
    patch = pytest.MonkeyPatch()
    patch.setattr(LocalStore, "compressed", True)
    made = make(path / "backups", path / "storage", type="hash")
    patch.undo()
    return made


@pytest.fixture
def made(original, tmp_path):
    """A copy of it, for a test that changes it."""
    shutil.copytree(original.where, tmp_path / "backups")
    return original._replace(where=tmp_path / "backups")


# --- any state


@pytest.mark.parametrize("kind", ["original", "compressed"])
def test_every_commit(kind, request):
    made = request.getfixturevalue(kind)
    for tid in range(made.first, made.last + 1):
        path = restored(made.where, to_commit=tid)
        assert contents(path) == made.states[tid]
        if tid % 4 == 0:
            verify(path)


def test_everything(original, tmp_path):
    reported = []
    found = restore(original.where, tmp_path / "new", progress=lambda *values: reported.append(values))
    assert (found.path, found.storage, found.tid) == (tmp_path / "new", original.storage, original.last)
    assert (found.objects, found.time) == (10, pytest.approx(original.times[original.last], abs=1))
    assert 0 < found.seconds < PATIENCE
    assert contents(tmp_path / "new") == original.states[original.last]
    assert list(dict.fromkeys(activity for activity, _ in reported)) == ["fetching", "applying the log"]
    assert max(size for activity, size in reported if activity == "fetching") == found.bytes > 100_000


def test_every_time(original):
    """As seconds, and as a datetime of any zone or none, which is local then."""
    zones = (None, timezone.utc, timezone(timedelta(hours=-11)))
    for tid in range(original.first, original.last + 1):
        moment = original.times[tid]
        assert contents(restored(original.where, to=moment)) == original.states[tid]
    for zone in zones:
        tid = original.first + 1
        assert (
            contents(restored(original.where, to=datetime.fromtimestamp(original.times[tid], zone)))
            == (original.states[tid])
        )


def test_the_time_that_is_told_of_a_backup(original, tmp_path):
    """It is a float of seconds, and gives that very backup."""
    for number, backup in enumerate(list_backups(original.where)):
        path = tmp_path / str(number)
        found = restore(original.where, path, to=backup.time)
        assert found.tid == backup.tid


def test_a_time_within_a_repeated_hour(original, monkeypatch):
    """Clocks go back by an hour: `fold` says which of the two is meant."""
    from berkeleydb_storage.backup.recalling import _microseconds

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        first = datetime(2026, 10, 25, 2, 30)
        assert _microseconds(first.replace(fold=1)) - _microseconds(first) == 3600 * 10**6
    finally:
        monkeypatch.undo()
        time.tzset()


def test_microseconds():
    from berkeleydb_storage.backup.recalling import _microseconds

    for number in range(1_763_716_207_000_000, 1_763_717_207_000_000, 99_991):
        assert _microseconds(number / 1e6) == number


# --- what is not there


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"to_commit": 0}, r"transaction 0 is before all that is there: the oldest state is transaction \d+, of "),
        ({"to": 1e9}, r"2001-09-0. .* is before all that is there: the oldest state is transaction \d+"),
        ({"to_commit": 10**9}, r"transaction 1000000000 is not there: \d+, of .*, is the newest before it"),
        ({"of": "/elsewhere"}, r"has no backup that is complete of /elsewhere: make one, or look elsewhere"),
    ],
)
def test_what_is_not_there(original, tmp_path, wanted, message):
    with pytest.raises(BackupError, match=message):
        restore(original.where, tmp_path / "new", **wanted)
    assert os.listdir(tmp_path) == []


def test_a_time_that_is_later_is_everything(original):
    assert contents(restored(original.where, to=time.time() + DAY)) == original.states[original.last]


def test_arguments_that_contradict(original, tmp_path):
    for wrong in ({"to": 1.0, "to_commit": 1}, {"new_key": "x", "decrypt": True}):
        with pytest.raises(OptionError, match="give one of them"):
            restore(original.where, tmp_path / "new", **wrong)


def test_between_two_chains(made, caplog):
    """Where the chain of the first base does not go up to the second, that is told."""
    first, second = bases(made.where)
    for piece in first.pieces:
        (made.where / first.folder / "pieces" / piece.name).unlink()
    shutil.rmtree(made.where / first.folder / "runs")  # as if there had been no backup in between
    tid = first.noted.tid
    assert contents(restored(made.where, to=made.times[tid + 1])) == made.states[tid]
    assert f"what was committed after transaction {tid}" in caplog.text
    assert f"and before {second.noted.tid}" in caplog.text
    with pytest.raises(BackupError, match=f"transaction {tid + 1} is not there: {tid}, of "):
        restored(made.where, to_commit=tid + 1)
    assert contents(restored(made.where)) == made.states[made.last]


def test_the_chain_that_goes_furthest(made):
    """A newer base may be without what an older one goes on with: an archive has its own."""
    _, second = bases(made.where)
    for piece in second.pieces:
        source = made.where / second.folder / "pieces" / piece.name
        first = next(base for base in bases(made.where) if base.folder != second.folder)
        shutil.move(source, made.where / first.folder / "pieces" / piece.name)
    for wanted in ({}, {"to_commit": made.last}, {"to": made.times[made.last]}):
        assert contents(restored(made.where, **wanted)) == made.states[made.last]


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackupError, match="empty has no backup that is complete: make one"):
        restored(tmp_path / "empty")
    with pytest.raises(BackupError, match="is no directory, or is gone"):
        restored(tmp_path / "missing")
    assert not verify_backups(tmp_path / "empty").sound


# --- the target


def test_targets_that_are_none(original, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, message in [
        ("file", "is no directory that can be used"),
        ("file/below", "is no directory that can be used"),
        ("full", "is not empty, it has 'x'"),
        ("missing/below", "cannot be written"),
        ("link", "is a mount point, or a link"),
    ]:
        with pytest.raises(BackupError, match=message):
            restore(original.where, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full", "link"]


def test_an_empty_directory_keeps_its_mode(original, tmp_path):
    (tmp_path / "new").mkdir(mode=0o751)
    (tmp_path / "new").chmod(0o751)
    restore(original.where, tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o751
    assert os.listdir(tmp_path) == ["new"]


def test_a_relative_target(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    restore(original.where, "new")
    assert contents(tmp_path / "new") == original.states[original.last]


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    works, reason = mounted(path)
    if not works:
        pytest.skip(f"no file system can be mounted here ({reason})")
    yield Disk(path)
    os.system(f"umount -l {path}")


def test_a_mount_point(original, disk):
    """That is told before anything is fetched."""
    fetched = []
    with pytest.raises(BackupError, match=r"is a mount point, .* give a directory below it"):
        restore(original.where, disk.path, progress=lambda *values: fetched.append(values))
    assert not fetched
    restore(original.where, disk.path / "below", to_commit=original.first)
    assert contents(disk.path / "below") == original.states[original.first]


@pytest.mark.parametrize("leave", [0, 40_000, 300_000])
def test_a_full_disk(original, disk, leave):
    disk.fill(leave)
    before = sorted(os.listdir(disk.path))
    with pytest.raises((OSError, BerkeleyDBStorageError)):
        restore(original.where, disk.path / "new")
    assert sorted(os.listdir(disk.path)) == before


def test_the_target_is_filled_meanwhile(original, tmp_path):
    """By somebody else: it is not overwritten."""
    (tmp_path / "new").mkdir()
    failpoints.hook = lambda name: (tmp_path / "new" / "x").touch() if name == "restore.assembled" else None
    try:
        with pytest.raises(BackupError, match="is not empty"):
            restore(original.where, tmp_path / "new")
    finally:
        failpoints.hook = None
    assert os.listdir(tmp_path) == ["new"]


def test_two_at_once(original, tmp_path):
    """To one target: the second is refused, and the first goes on."""
    complaints = []

    def again(activity, size):
        if not complaints:
            with pytest.raises(BackupError, match="is being restored by another process: wait"):
                restore(original.where, tmp_path / "new")
            complaints.append(True)
            restore(original.where, tmp_path / "new-2", to_commit=original.first)

    restore(original.where, tmp_path / "new", progress=again)
    assert contents(tmp_path / "new") == original.states[original.last]
    assert contents(tmp_path / "new-2") == original.states[original.first]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("empty", [False, True])
def test_killed(original, tmp_path, point, empty):
    """The target is as it was, or complete; what is left beside it goes with the next one."""
    target = tmp_path / "new"
    if empty:
        target.mkdir()
    children = Children(tmp_path)
    assert children.run("restore_to", target, fuse=(point, 1), where=str(original.where)) == KILLED
    children.close()
    leftovers = [name for name in os.listdir(tmp_path) if name.startswith(".restoring-")]
    assert len(leftovers) == 1
    if point == "restore.placed":
        assert contents(target) == original.states[original.last]
        shutil.rmtree(target)
    else:
        assert target.exists() == empty
        assert not empty or os.listdir(target) == []
    (tmp_path / ".restoring-new-x").mkdir()
    (tmp_path / ".restoring-new2-17").mkdir()
    restore(original.where, target)
    assert sorted(os.listdir(tmp_path)) == [".restoring-new-x", ".restoring-new2-17", "new", "report"] or (
        "report" not in os.listdir(tmp_path)
    )
    verify(target)


@pytest.mark.parametrize("activity", ["fetching", "applying the log", "reading the log"])
def test_what_the_progress_raises_ends_it(original, tmp_path, activity):
    def stop(doing, size):
        if doing == activity:
            raise KeyboardInterrupt

    (tmp_path / "new").mkdir()
    with pytest.raises(KeyboardInterrupt):
        restore(original.where, tmp_path / "new", to_commit=original.last - 1, progress=stop)
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == []


# --- several storages in one place


def test_several_storages(made, tmp_path):
    (tmp_path / "other").mkdir()
    other = make(made.where, tmp_path / "other")
    with pytest.raises(BackupError, match=r"has backups of .*: say which, by --of"):
        restored(made.where)
    for each in (made, other):
        assert contents(restored(made.where, of=each.storage)) == each.states[each.last]
    for identity in {base.identity for base in bases(made.where)}:
        (path,) = {base.noted.storage for base in bases(made.where) if base.identity == identity}
        (each,) = (each for each in (made, other) if each.storage == path)
        assert contents(restored(made.where, of=identity, to_commit=each.first)) == each.states[each.first]
    verified = verify_backups(made.where)
    assert verified.sound
    assert len(verified.chains) == 4


def test_a_relative_path(made, monkeypatch):
    monkeypatch.chdir(Path(made.storage).parent)
    assert contents(restored(made.where, of="storage")) == made.states[made.last]


# --- damage


def objects(where):
    return sorted(path for path in where.rglob("*") if path.is_file() and ".making" not in path.parts)


def damage(path, place):
    data = bytearray(path.read_bytes())
    data[round((len(data) - 1) * place)] ^= 0x10
    path.write_bytes(data)


def advised(message):
    found = re.findall(r"--to-commit (\d+)", message)
    assert len(found) <= 1
    return int(found[0]) if found else None


def last_before(where, path, made):
    """Return the newest transaction that can be had without an object; None where there is none."""
    relative = path.relative_to(where)
    first, second = bases(where) if len(bases(where)) == 2 else (None, None)
    (base,) = (base for base in bases(where) if relative.is_relative_to(base.folder))
    if relative.parts[2] == "pieces":
        name = relative.name.removesuffix(".gz")
        (piece,) = (piece for piece in base.pieces if piece.name == name)
        return max([base.noted.tid, *(each.tid for each in base.pieces if each.end <= piece.start)])
    if base is first:
        return None
    return min(second.noted.tid - 1, first.reach()[1])


FAST = (("original", PLACES[1]), ("compressed", "missing"))


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(kind, how, marks=[] if (kind, how) in FAST else [pytest.mark.slow])
        for kind in ("original", "compressed")
        for how in (*PLACES, "missing", "cut", "empty")
    ],
)
def test_damage(kind, how, request, tmp_path):
    """Of every object: what is restored is right, or it is named what is damaged and what can be restored."""
    made = request.getfixturevalue(kind)
    count = len(objects(made.where))
    for number in range(count):
        where = tmp_path / "backups"
        shutil.copytree(made.where, where)
        path = objects(where)[number]
        is_run = path.parent.name == "runs"
        expected = None if is_run else last_before(where, path, made)
        before = path.read_bytes()
        spoil(path, how)
        found = attempt(where, made, {}, made.last)
        if not is_run and not is_same(path, before):
            assert not verify_backups(where).sound or how == "missing", path
            if found is not None:
                assert path.name in found or how == "missing", (path, found)
                tid = advised(found)
                if tid is None:
                    assert expected is None, (path, found)
                else:
                    assert tid == expected or path.name == MANIFEST, (path, found)
                    assert attempt(where, made, {"to_commit": tid}, tid) is None, path
                    for early in {made.first, tid - 1}:
                        if early >= made.first:
                            attempt(where, made, {"to_commit": early}, early)
        for tid in (made.first, made.last - 1):
            attempt(where, made, {"to_commit": tid}, tid)
            attempt(where, made, {"to": made.times[tid]}, tid)
        shutil.rmtree(where)


def is_same(path, before):
    """Tell whether what is compressed is what it was, although the bytes are not: not all of them matter."""
    try:
        return path.suffix == ".gz" and gzip.decompress(path.read_bytes()) == gzip.decompress(before)
    except (OSError, EOFError, zlib.error):
        return False


def spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 2)
    else:
        damage(path, how)


def attempt(where, made, wanted, tid):
    """Restore; return the message of the error. What is restored is right, and never older in silence."""
    with scratch_directory() as scratch:
        try:
            restore(where, scratch / "new", **wanted)
        except BackupError as error:
            assert os.listdir(scratch) == []
            return str(error)
        found = contents(scratch / "new")
        assert found in made.states.values()
        assert found == made.states[tid] or is_told(where, made), "something older was restored in silence"
    return None


def is_told(where, made):
    """Tell whether what is missing left no trace: the end of a chain, or a whole base with it."""
    there = bases(where)
    return not any(base.is_damaged for base in there) and (
        max(base.reach()[1] for base in there if base.manifest) < made.last or any(not base.manifest for base in there)
    )


def test_a_missing_piece_within_a_chain(made):
    """What comes after it shows that it is missing."""
    base = bases(made.where)[0]
    for index, piece in enumerate(base.pieces[:-1]):
        path = made.where / base.folder / "pieces" / piece.name
        data = path.read_bytes()
        path.unlink()
        known = max([base.noted.tid, *(each.tid for each in base.pieces[:index])])
        verified = verify_backups(made.where)
        assert f"is missing: give --to-commit {known}" in verified.chains[0].faults[0]
        assert attempt(made.where, made, {"to_commit": known}, known) is None
        path.write_bytes(data)


def test_a_later_base_whose_manifest_is_damaged(made):
    """What is asked for may be in it: nothing older is given in its place."""
    second = bases(made.where)[1]
    damage(made.where / second.folder / MANIFEST, 0.5)
    for wanted in ({}, {"to": made.times[made.last]}):
        with pytest.raises(DamagedBackup, match=r"backup\.json is damaged, and may have what came after") as caught:
            restored(made.where, **wanted)
        known = advised(str(caught.value))
        assert contents(restored(made.where, to_commit=known)) == made.states[known]
    assert contents(restored(made.where, to=made.times[made.first])) == made.states[made.first]


def test_pieces_that_are_there_twice(made):
    """One of them is damaged: the other is taken."""
    second = bases(made.where)[1]
    piece = second.chain()[0]
    path = made.where / second.folder / "pieces" / piece.name
    name = piece.name.replace(piece.digest, "0" * 16)
    path.with_name(name).write_bytes(path.read_bytes()[:-1] + b"!")
    assert attempt(made.where, made, {}, made.last) is None


@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
def test_log_that_was_damaged_before_it_was_copied(made, place):
    """Its checksum in the place is right: the library takes the damage for the end, which is too early."""
    second = bases(made.where)[1]
    piece = second.chain()[-1]
    path = made.where / second.folder / "pieces" / piece.name
    damage(path, place)
    data = path.read_bytes()
    path.rename(path.with_name(replace(piece, digest=hashlib.sha256(data).hexdigest()[:DIGITS]).name))
    with pytest.raises(BerkeleyDBStorageError) as caught:
        restored(made.where)
    known = advised(str(caught.value))
    assert known is None or contents(restored(made.where, to_commit=known)) == made.states[known]
    assert not verify_backups(made.where).sound
    with pytest.raises(BerkeleyDBStorageError):
        restored(made.where, to=made.times[made.last])
    assert contents(restored(made.where, to_commit=second.noted.tid)) == made.states[second.noted.tid]


def test_a_manifest_that_names_other_files(made):
    """Nothing is written outside of the directory."""
    base = bases(made.where)[1]
    path = made.where / base.folder / MANIFEST
    values = json.loads(path.read_text())
    for name in ("../x", "/tmp/x", "lock", "storage.json", "log.1", "objects.db.new"):
        files = {**values["files"], name: {"bytes": 0, "sha256": "0" * 64}}
        path.write_bytes(sealed(values | {"files": files}))
        with pytest.raises(DamagedBackup, match=f"names a file {name!r}, which no storage has".replace(".", r"\.")):
            restored(made.where)


def test_a_manifest_whose_description_is_none(made):
    base = bases(made.where)[1]
    path = made.where / base.folder / MANIFEST
    values = json.loads(path.read_text())
    for wrong in ({}, {"format": "x"}, {**values["description"], "new": 1}):
        path.write_bytes(sealed(values | {"description": wrong}))
        with pytest.raises(DamagedBackup, match=r"what is noted of the storage in .* is damaged"):
            restored(made.where)


def test_a_manifest_without_a_file(made):
    """The files do not fit together then."""
    base = bases(made.where)[1]
    path = made.where / base.folder / MANIFEST
    values = json.loads(path.read_text())
    for name in values["files"]:
        files = {other: entry for other, entry in values["files"].items() if other != name}
        path.write_bytes(sealed(values | {"files": files}))
        with scratch_directory() as scratch, pytest.raises(DamagedBackup):
            restore(made.where, scratch / "new")


# --- formats and keys


@pytest.mark.parametrize("name", [name for name in ARCHIVES if "encrypted" not in name and "format-4" not in name])
def test_storages_of_older_formats(name, tmp_path, monkeypatch):
    """A backup of one is restored, and what comes out is like any other; it has the format that it was upgraded to."""
    import tarfile

    (tmp_path / "db").mkdir()
    (tmp_path / "backups").mkdir()
    with tarfile.open(GOLDEN / name) as archive:
        archive.extractall(tmp_path / "db", filter="data")
    with quiet(tmp_path / "db") as storage:
        storage.backup(tmp_path / "backups")
    path = restored(tmp_path / "backups")
    key = name.removesuffix(".tar.gz")
    with quiet(path) as storage:
        assert_contents(storage, CONTENTS.get(key, CONTENTS[key[: len("format-1")]]))
        assert storage._running.opened.directory.read().format <= FORMAT_VERSION
        assert storage.check().faults == []


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """Backups of an encrypted storage."""
    path = tmp_path_factory.mktemp("secret")
    (path / "storage").mkdir()
    return make(path / "backups", path / "storage", key="the first key")


def test_of_an_encrypted_storage(secret):
    path = restored(secret.where, key="the first key")
    assert contents(path, key="the first key") == secret.states[secret.last]
    path = restored(secret.where, key="the first key", to_commit=secret.first + 1)
    assert contents(path, key="the first key") == secret.states[secret.first + 1]
    with pytest.raises(KeyNeeded):
        contents(path)
    everything = b"".join(path.read_bytes() for path in objects(secret.where))
    assert not [row for state in secret.states.values() for row in state.values() if row[12:40] in everything]
    assert verify_backups(secret.where, key="the first key").sound


def test_keys_that_do_not_fit(secret, original, tmp_path):
    """Nothing is fetched then."""
    fetched = []
    options = {"progress": lambda *values: fetched.append(values)}
    with pytest.raises(WrongKey):
        restore(secret.where, tmp_path / "new", key="another", **options)
    with pytest.raises(KeyNeeded):
        restore(secret.where, tmp_path / "new", **options)
    with pytest.raises(OptionError):
        restore(original.where, tmp_path / "new", key="one", **options)
    with pytest.raises((KeyNeeded, WrongKey)):
        verify_backups(secret.where)
    assert os.listdir(tmp_path) == []
    assert not [size for activity, size in fetched if activity == "applying the log"]


def test_another_key(secret, original):
    for made, key, change, new in (
        (secret, "the first key", {"new_key": "the second"}, "the second"),
        (secret, "the first key", {"decrypt": True}, None),
        (original, None, {"new_key": "the second"}, "the second"),
    ):
        path = restored(made.where, key=key, to_commit=made.first + 2, **change)
        assert contents(path, key=new) == made.states[made.first + 2]
        with BerkeleyDBStorage(path, key=new) as storage:
            assert storage.check().faults == []


# --- the commands


def test_the_command(original, tmp_path):
    out, _ = run("restore", original.where, tmp_path / "new")
    assert re.match(
        rf"restored {original.storage} to {tmp_path}/new: up to transaction {original.last}, of 20..-..-.. .*; "
        r"10 objects, [\d,]+ bytes in [\d.]+ s\n$",
        out,
    )
    run("check", tmp_path / "new")
    out, _ = run("restore", original.where, tmp_path / "old", "--to-commit", original.first, "--json")
    values = json.loads(out)
    assert values.keys() == {"path", "storage", "tid", "time", "objects", "bytes", "seconds"}
    assert (values["path"], values["tid"]) == (str(tmp_path / "old"), original.first)
    assert contents(tmp_path / "old") == original.states[original.first]


@pytest.mark.parametrize("form", ["{:%Y-%m-%d %H:%M:%S.%f}", "{:%Y-%m-%dT%H:%M:%S.%f}", "utc", "offset"])
def test_the_command_to_a_time(original, tmp_path, capsys, form):
    moment = original.times[original.first + 1]
    if form == "utc":
        text = datetime.fromtimestamp(moment, timezone.utc).isoformat().replace("+00:00", "Z")
    elif form == "offset":
        text = datetime.fromtimestamp(moment, timezone(timedelta(hours=5))).isoformat()
    else:
        text = form.format(datetime.fromtimestamp(moment))
    run_here(capsys, "restore", original.where, tmp_path / "new", "--to", text)
    assert contents(tmp_path / "new") == original.states[original.first + 1]


def test_the_command_refuses(original, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, message in [
        ((original.where, tmp_path / "full"), "is not empty"),
        ((original.where, tmp_path / "new", "--to-commit", "0"), "is before all that is there"),
        ((original.where, tmp_path / "new", "--of", "x"), "has no backup that is complete of x"),
        ((tmp_path / "missing", tmp_path / "new"), "is no directory, or is gone"),
        ((original.where, tmp_path / "new", "--store-options", tmp_path / "none.json"), "none.json"),
    ]:
        assert message in run_here(capsys, "restore", *arguments, code=2).err
    with pytest.raises(SystemExit):
        run_here(capsys, "restore", original.where, tmp_path / "new", "--to", "yesterday")
    assert "'yesterday' is no time" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_here(capsys, "restore", original.where, tmp_path / "new", "--to", "2026-01-01", "--to-commit", "5")
    assert os.listdir(tmp_path) == ["full"]


def test_store_options(original, tmp_path, capsys):
    for text, message in (("[]", "holds no JSON object"), ("{", "options.json"), ('{"a": 1}', "it takes no options")):
        (tmp_path / "options.json").write_text(text)
        arguments = (original.where.as_uri(), tmp_path / "new", "--store-options", tmp_path / "options.json")
        assert message in run_here(capsys, "restore", *arguments, code=2).err
    (tmp_path / "options.json").write_text("{}")
    run_here(capsys, "restore", original.where.as_uri(), tmp_path / "new", "--store-options", tmp_path / "options.json")


def test_the_command_is_interrupted(original, tmp_path):
    """By Ctrl-C: the target is as it was, and what was made is gone."""
    (tmp_path / "new").mkdir()
    fifo = next(path for path in objects_of_a_slow_place(original, tmp_path))
    command = [*COMMAND, "restore", str(tmp_path / "slow"), str(tmp_path / "new")]
    child = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    with fifo.open("wb", buffering=0) as pipe:  # it is opened when the command reads there
        child.send_signal(signal.SIGINT)
        with suppress(BrokenPipeError):
            while child.poll() is None:  # it ends when it has got something
                pipe.write(b"x")
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, err
    assert "is as it was; to start again, run it again" in err
    assert sorted(os.listdir(tmp_path)) == ["new", "slow"]
    assert os.listdir(tmp_path / "new") == []


def objects_of_a_slow_place(original, tmp_path):
    """Make a place in which reading one object takes for ever."""
    shutil.copytree(original.where, tmp_path / "slow")
    path = max(objects(tmp_path / "slow"), key=lambda each: (each.name == "objects.db", each))
    path.unlink()
    os.mkfifo(path)
    yield path


def test_verify(original, made, capsys):
    out = run_here(capsys, "verify", original.where).out
    assert out.count(": restored and checked, 10 objects\n") == 2
    assert re.search(rf"^{original.where}: sound; [\d,]+ bytes in [\d.]+ s$", out, re.MULTILINE)
    values = json.loads(run_here(capsys, "verify", original.where, "--json").out)
    assert values["sound"]
    assert [chain["faults"] for chain in values["chains"]] == [[], []]
    assert [chain["restored"] for chain in values["chains"]] == [True, True]
    damage(next(path for path in objects(made.where) if path.name == "objects.db"), 0.5)
    out = run_here(capsys, "verify", made.where, code=1).out
    assert "objects.db is damaged, its checksum is wrong" in out
    assert f"{made.where}: NOT SOUND; " in out


def test_verify_tells_what_is_not_complete(made, capsys):
    base = bases(made.where)[1]
    (made.where / base.folder / MANIFEST).unlink()
    verified = verify_backups(made.where)
    assert verified.interrupted == (base.folder,)
    assert verified.sound
    assert f"{base.folder} is not complete: being made, or interrupted" in run_here(capsys, "verify", made.where).out


def test_more_pieces_than_are_fetched_at_a_time(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "backups").mkdir()
    with quiet(tmp_path / "db") as storage:
        hand_out(storage, 2)
        for number in range(3 * AHEAD):
            commit(storage, record(0, data=b"%d" % number))
            made = storage.backup(tmp_path / "backups")
        expected = dict(storage.gen_oid_record())
    assert len(bases(tmp_path / "backups")[0].pieces) == 3 * AHEAD - 1
    assert contents(restored(tmp_path / "backups")) == expected
    assert contents(restored(tmp_path / "backups", to_commit=made.tid - 5))[bytes(8)] == (
        record(0, data=b"%d" % (3 * AHEAD - 6))
    )
