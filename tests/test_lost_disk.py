"""A disk that fails while a storage is in use: reads, writes, syncs, a read-only file system, files that are removed.

Whatever happens, nothing that was acknowledged is lost, the error says what to do, and the storage goes on when the
cause is gone, or says that it has to be opened again.
"""

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from crash_model import History, Writer, set_up
from damage import tried
from graphs import oid, scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointNever,
    CommitInDoubt,
    DamagedError,
    GarbageManual,
    StorageNotFound,
    environment,
)
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.files import log_name, log_numbers

READS, WRITES, SYNCS, OPENS = 1, 2, 4, 8
STEPS = 20
FILES = ("/log.", *(f"/{name}.db" for name in TABLES))
ERRORS = (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES)


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture(scope="session")
def hooks(tmp_path_factory):
    """What the library calls in place of the system, from failing_disk.c."""
    if not Path("/proc/self/maps").exists() or not shutil.which("cc"):
        pytest.skip("this needs /proc and a C compiler")
    made = tmp_path_factory.mktemp("hooks") / "failing_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(Path(__file__).parent / "failing_disk.c")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(made))


def hooked(hooks, names):
    """Let the library call the hooks, and give a function that makes what it does with some files fail."""
    mapped = Path("/proc/self/maps").read_text().splitlines()
    library = ctypes.CDLL(next(line.split()[-1] for line in mapped if "/libdb" in line))
    for name in names:
        assert getattr(library, f"db_env_set_func_{name}")(getattr(hooks, f"failing_{name}")) == 0
    yield lambda part, kinds, number=errno.EIO, after=0: hooks.fail(part.encode(), kinds, number, after)
    hooks.fail(b"", 0, 0, 0)
    for name in names:
        getattr(library, f"db_env_set_func_{name}")(None)


@pytest.fixture
def fail(hooks):
    yield from hooked(hooks, ("pwrite", "write", "fsync", "open"))


@pytest.fixture
def fail_reading(hooks):
    """As `fail`. The library takes the end of a file for an error where `read` is replaced, so it is only meanwhile."""
    mended = []

    def fail(part, kinds):
        for works in mended:
            next(works, None)
        mended.clear()
        if kinds:
            mended.append(hooked(hooks, ("pread", "read")))
            next(mended[0])(part, kinds)

    yield fail
    fail("", 0)


class Case:
    """A storage in use, and its history."""

    def __init__(self, place, **options):
        self.path = place / "storage"
        self.path.mkdir()
        self.history = History()
        policies = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
        self.options = {"cachesize": 1 << 20} | policies | options
        self.storage = BerkeleyDBStorage(self.path, **self.options)
        set_up(self.storage, 1, self.history.report)
        self.commit(STEPS)

    def commit(self, times=1):
        """Commit so many steps."""
        writer = Writer(self.storage, 0, self.history.hubs[0], self.history.report)
        for _ in range(times):
            writer.next()

    def use_all(self):
        """Do everything that a storage does; return the errors, which are all this package's."""
        uses = (
            lambda: self.storage.load(bytes(8)),
            lambda: self.commit(60),
            self.storage.checkpoint,
            self.storage.pack,
            self.storage.check,
            lambda: self.storage.load(oid(self.history.hubs[0])),
        )
        errors = []
        for use in uses:
            try:
                use()
            except BerkeleyDBStorageError as error:
                errors.append(error)
        return errors

    def goes_on(self):
        """Tell whether it does, now that nothing fails; if not, it says that it must be opened again, and recovers."""
        try:
            self.commit(3)
        except DamagedError as error:
            assert "open it again" in str(error)  # noqa: PT017 - it may as well work
            return False
        return True

    def is_whole(self, path=None):
        """Close it, open it again, and find all that was acknowledged."""
        self.storage.close()
        with BerkeleyDBStorage(path or self.path, **self.options) as self.storage:
            self.history.verify(self.storage)
            assert not self.storage.check().faults
            assert self.history.lost == 0
            self.commit(3)


@pytest.fixture
def place():
    with scratch_directory() as path:
        yield path


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("kind", [WRITES, SYNCS], ids=["write", "sync"])
def test_nothing_is_lost_when_writing_fails(place, fail, part, number, kind):
    case = Case(place)
    fail(part, kind, number)
    errors = case.use_all()
    fail("", 0)
    assert all(errors)
    for error in errors:
        assert str(case.path) in str(error)
    case.goes_on()
    case.is_whole()


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_the_log_fails_after_some_writes(place, fail, after):
    case = Case(place)
    fail("/log.", WRITES | SYNCS, errno.EIO, after)
    errors = case.use_all()
    fail("", 0)
    assert "look after " in str(errors[0])
    assert "close the storage and open it again" in str(errors[0])
    case.goes_on()
    case.is_whole()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_no_new_log_file_can_be_made(place, fail, number):
    case = Case(place)
    fail("/log.", OPENS, number)
    errors = case.use_all()
    fail("", 0)
    assert errors
    case.goes_on()
    case.is_whole()


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_a_page_that_cannot_be_read(place, fail_reading, type):
    """It is an error; when the disk reads again, the storage goes on, or has to be opened again."""
    case = Case(place, type=type)
    case.commit(60)
    case.storage.close()
    case.storage = BerkeleyDBStorage(case.path, **case.options)
    oids = [key for key, _ in BerkeleyDBStorage.gen_oid_record(case.storage)]
    case.storage.close()
    case.storage = BerkeleyDBStorage(case.path, **case.options)
    fail_reading("/objects.db", READS)
    failed = 0
    for key in oids:
        try:
            case.storage.load(key)
        except BerkeleyDBStorageError as error:
            assert str(case.path) in str(error)  # noqa: PT017 - what is in the cache is read
            failed += 1
    assert failed
    fail_reading("", 0)
    case.goes_on()
    case.is_whole()


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", [WRITES, OPENS], ids=["write", "open"])
def test_opening_what_fails_changes_nothing(place, fail, kind, number):
    case = Case(place)
    killed = place / "killed"
    shutil.copytree(case.path, killed, ignore=shutil.ignore_patterns("control"))
    case.storage.close()
    fail("/killed/", kind, number)
    with pytest.raises(BerkeleyDBStorageError, match=str(killed)):
        BerkeleyDBStorage(killed, **case.options)
    fail("", 0)
    case.is_whole(killed)


def test_a_directory_that_is_removed(place):
    """The files take commits as before, but they are nowhere: none is acknowledged."""
    case = Case(place)
    shutil.rmtree(case.path)
    with pytest.raises(CommitInDoubt, match=r"lock was removed while the storage is in use, and perhaps everything"):
        case.commit()
    for use in (case.commit, case.storage.check, lambda: case.storage.load(bytes(8))):
        with pytest.raises(DamagedError, match="was removed while the storage is in use"):
            use()
    with pytest.raises(DamagedError):
        case.storage.checkpoint()
    case.storage.close()
    with pytest.raises(StorageNotFound):
        BerkeleyDBStorage(case.path)


def test_a_lock_that_is_removed(place):
    """Another process could open it: this one writes nothing any more."""
    case = Case(place)
    (case.path / "lock").unlink()
    with pytest.raises(CommitInDoubt, match="lock was removed"):
        case.commit()
    before = (case.path / "objects.db").read_bytes()
    with pytest.raises(DamagedError, match="lock was removed"):
        case.storage.checkpoint()
    case.storage.close()
    assert (case.path / "objects.db").read_bytes() == before
    case.is_whole()


def test_a_directory_that_is_moved(place):
    """What is acknowledged meanwhile is where it is now; at the next log file it says that it must be opened again."""
    case = Case(place)
    moved = place / "moved"
    case.path.rename(moved)
    case.commit(3)
    with pytest.raises(DamagedError, match=r"is not there any more, it was removed, moved or unmounted: put it back"):
        case.commit(100)
    case.is_whole(moved)


def test_a_directory_that_is_moved_and_put_back(place):
    case = Case(place)
    case.path.rename(place / "moved")
    case.commit(2)
    (place / "moved").rename(case.path)
    case.commit(100)
    case.storage.checkpoint()
    case.is_whole()


@pytest.mark.parametrize("name", [f"{table}.db" for table in TABLES])
def test_a_table_that_is_removed(place, name):
    case = Case(place)
    (case.path / name).unlink()
    case.commit(2)
    with pytest.raises(DamagedError, match=rf"{name} is gone: restore the storage from a backup"):
        case.storage.checkpoint()
    case.storage.close()
    with pytest.raises(DamagedError, match=rf"{name} is missing"):
        BerkeleyDBStorage(case.path)


def test_logs_that_are_removed(place):
    case = Case(place)
    removed = log_numbers(case.path)
    for number in removed:
        (case.path / log_name(number)).unlink()
    with pytest.raises((DamagedError, CommitInDoubt)):
        case.commit(100)
    case.storage.close()
    with pytest.raises(DamagedError, match=rf"{log_name(removed[0])} is missing, and log files"):
        BerkeleyDBStorage(case.path)


def as_nobody(place, work):
    """Do something as a user who is not root, in a process of his own; return the text that it returns."""
    if os.getuid():
        pytest.skip("only root can become another user")
    place.chmod(0o777)

    def become_and_work():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return work()

    return tried(become_and_work)


def test_permissions_that_are_taken_away(place):
    """No new file can be made in the directory then: it says so, and recovers when they are back."""

    def work():
        case = Case(place)
        case.path.chmod(0o500)
        errors = case.use_all()
        assert errors
        case.path.chmod(0o700)
        case.goes_on()
        case.is_whole()
        return str(errors[0])

    told = as_nobody(place, work)
    assert "mend its permissions" in told


@pytest.fixture
def ext4(place):
    """A file system that becomes read-only at an error."""
    image, mounted = place / "image", place / "mounted"
    mounted.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)
    commands = (
        ["mkfs.ext4", "-q", "-F", str(image)],
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(mounted)],
    )
    for command in commands:
        if not shutil.which(command[0]) or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"{command[0]} is not allowed here")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_a_file_system_that_becomes_read_only(ext4):
    device = Path(os.path.realpath(subprocess.check_output(["findmnt", "-no", "SOURCE", str(ext4)], text=True).strip()))
    trigger = Path("/sys/fs/ext4") / device.name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("this kernel has no trigger_fs_error")
    case = Case(ext4)
    trigger.write_text("1")
    errors = case.use_all()
    assert errors
    for error in errors:
        assert str(case.path) in str(error)
    with pytest.raises(BerkeleyDBStorageError):
        case.commit()
    case.storage.close()
    with pytest.raises(BerkeleyDBStorageError, match=r"not writable|read-only|Read-only"):
        BerkeleyDBStorage(case.path)
    with BerkeleyDBStorage(case.path, read_only=True) as storage:
        case.history.verify(storage)
        assert case.history.lost == 0
    subprocess.run(["umount", str(ext4)], check=True)
    image = ext4.parent / "image"
    subprocess.run(["fsck.ext4", "-p", "-f", str(image)], capture_output=True, check=False)
    subprocess.run(["mount", "-o", "loop", str(image), str(ext4)], check=True)
    case.is_whole()
    case.storage.close()
