"""Who may open a directory: wrong paths, other processes, forks, and storages that nobody closed."""

import gc
import json
import os
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest
from berkeleydb import db
from crash_model import pair, store
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.persistent_dict import PersistentDict
from graphs import oid, record

from berkeleydb_storage import (
    BerkeleyDBStorage,
    DamagedError,
    NewerFormat,
    NotAStorage,
    StorageClosed,
    StorageInUse,
    StorageNotFound,
)
from berkeleydb_storage.directory import DESCRIPTION, LOCK

ROUNDS = 15
"""Races for one directory."""

FORKING = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
"""Newer interpreters warn of forks while there are threads, which is what is tested here."""


def stamps(path):
    """Return everything that would show a change: names, contents, times, but for the times of the lock."""
    if path.is_dir():
        return {name: stamps(path / name) for name in os.listdir(path)} | {".": path.stat().st_mtime_ns}
    if path.is_socket():
        return path.stat()
    return (path.read_bytes(), path.name == LOCK or path.stat().st_mtime_ns, path.stat().st_mode)


def program(text, *arguments, **options):
    """Start an interpreter that runs a program; its standard input and output are pipes."""
    command = [sys.executable, *FORKING, "-c", textwrap.dedent(text), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process, text=""):
    """Let a program run to its end; return what it wrote and its exit status."""
    out, err = process.communicate(text)
    assert "Exception ignored" not in err, err
    return out, err, process.returncode


def with_an_object(path):
    with BerkeleyDBStorage(path) as storage:
        storage.new_oid()
        store(storage, [record(0, data=b"root")])


def state(path):
    return json.loads((path / DESCRIPTION).read_text())["state"]


def nothing(path):
    return StorageNotFound, "does not exist: create the directory first"


def a_text_file(path):
    path.write_text("anything")
    return NotAStorage, "is not a directory: a storage is a directory$"


def a_durus_file(path):
    with closing(FileStorage(str(path))) as storage:
        connection = Connection(storage)
        connection.get_root()["a"] = PersistentDict()
        connection.commit()
    return NotAStorage, r"this is a Durus storage file, which `durus-bdb migrate .*path DIRECTORY` copies into one"


def other_files(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")
    return NotAStorage, r"holds files of something else \(thesis\.tex\): a new storage needs an empty directory"


def a_foreign_environment(path):
    path.mkdir()
    environment = db.DBEnv()
    environment.open(str(path), db.DB_CREATE | db.DB_INIT_MPOOL | db.DB_INIT_LOG | db.DB_INIT_TXN)
    table = db.DB(environment)
    table.open("durus.db", dbtype=db.DB_BTREE, flags=db.DB_CREATE | db.DB_AUTO_COMMIT)
    table.put(b"key", b"value")
    table.close()
    environment.close()
    return NotAStorage, "holds a Berkeley DB environment that this package did not write"


def a_newer_storage(path):
    path.mkdir()
    with_an_object(path)
    change_description(path, format=4)
    return NewerFormat, "has format 4, and this version of the package reads up to 3: install a newer"


def a_newer_storage_without_a_lock(path):
    expected = a_newer_storage(path)
    (path / LOCK).unlink()
    return expected


def a_storage_without_its_description(path):
    path.mkdir()
    with_an_object(path)
    (path / DESCRIPTION).unlink()
    return DamagedError, r"storage\.json is missing, and the tables of a storage are there: restore it from a backup"


def change_description(path, **changes):
    values = json.loads((path / DESCRIPTION).read_text()) | changes
    (path / DESCRIPTION).write_text(json.dumps(values))


WRONG = [
    nothing,
    a_text_file,
    a_durus_file,
    other_files,
    a_foreign_environment,
    a_newer_storage,
    a_newer_storage_without_a_lock,
    a_storage_without_its_description,
]


@pytest.mark.parametrize("read_only", [False, True], ids=["to write", "to read"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
@pytest.mark.parametrize("make", WRONG)
def test_a_wrong_path(tmp_path, make, kind, read_only):
    path = tmp_path / "path"
    error, match = make(path)
    before = stamps(tmp_path)
    with pytest.raises(error, match=match) as caught:
        BerkeleyDBStorage(kind(path), read_only=read_only)
    assert str(path) in str(caught.value)
    assert stamps(tmp_path) == before


def test_an_empty_directory_is_no_storage_for_a_reader(tmp_path):
    with pytest.raises(StorageNotFound, match="holds no storage yet: open it for writing once"):
        BerkeleyDBStorage(tmp_path, read_only=True)
    assert os.listdir(tmp_path) == []


HOLDER = """
    import sys
    from berkeleydb_storage import BerkeleyDBStorage
    storage = BerkeleyDBStorage(sys.argv[1], read_only=sys.argv[2] == "reader")
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A function that has another process open the storage; the process is asked to end after the test."""
    processes = []

    def hold(how):
        processes.append(program(HOLDER, tmp_path, how))
        assert processes[-1].stdout.readline() == "open\n"
        return processes[-1]

    yield hold
    for process in processes:
        if process.returncode is None:
            assert finish(process)[2] == 0


@pytest.mark.parametrize("read_only", [False, True], ids=["to write", "to read"])
def test_another_process_has_it(tmp_path, holder, read_only):
    with_an_object(tmp_path)
    owner = holder("owner")
    before = stamps(tmp_path)
    with pytest.raises(StorageInUse, match=f"is in use by process {owner.pid}: close it there, or share it") as caught:
        BerkeleyDBStorage(tmp_path, read_only=read_only)
    assert caught.value.pid == owner.pid
    assert stamps(tmp_path) == before
    finish(owner)
    BerkeleyDBStorage(tmp_path, read_only=read_only).close()


@pytest.mark.parametrize("read_only", [False, True], ids=["to write", "to read"])
def test_this_process_has_it(tmp_path, read_only):
    with BerkeleyDBStorage(tmp_path):
        before = stamps(tmp_path)
        with pytest.raises(
            StorageInUse, match=rf"in use by this process \({os.getpid()}\), which has opened it already"
        ):
            BerkeleyDBStorage(tmp_path, read_only=read_only)
        assert stamps(tmp_path) == before
    BerkeleyDBStorage(tmp_path, read_only=read_only).close()


def test_readers_share_it_and_keep_a_writer_out(tmp_path, holder):
    with_an_object(tmp_path)
    before = stamps(tmp_path)
    other = holder("reader")
    with BerkeleyDBStorage(tmp_path, read_only=True) as one, BerkeleyDBStorage(tmp_path, read_only=True) as two:
        assert one.load(oid(0)) == two.load(oid(0)) == record(0, data=b"root")
    with pytest.raises(StorageInUse, match="is in use by another process that reads it") as caught:
        BerkeleyDBStorage(tmp_path)
    assert caught.value.pid is None
    assert stamps(tmp_path) == before
    finish(other)
    BerkeleyDBStorage(tmp_path).close()


def test_a_reader_is_not_taken_for_the_owner_who_was_killed(tmp_path, holder):
    owner = holder("owner")
    owner.kill()
    finish(owner)
    change_description(tmp_path, state="creating")
    with_an_object(tmp_path)
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    holder("reader")
    with pytest.raises(StorageInUse, match="is in use by another process that reads it"):
        BerkeleyDBStorage(tmp_path)


RACER = """
    import sys
    from berkeleydb_storage import BerkeleyDBStorage, StorageInUse
    for line in sys.stdin:
        try:
            storage = BerkeleyDBStorage(line.rstrip())
        except StorageInUse:
            print("in use", flush=True)
            sys.stdin.readline()
        else:
            print("opened", flush=True)
            sys.stdin.readline()
            storage.close()
"""


def test_of_two_who_create_a_storage_at_once_one_wins(tmp_path):
    racers = [program(RACER), program(RACER)]
    for number in range(ROUNDS):
        path = tmp_path / str(number)
        path.mkdir()
        for racer in racers:
            racer.stdin.write(f"{path}\n")
        for racer in racers:
            racer.stdin.flush()
        assert sorted(racer.stdout.readline() for racer in racers) == ["in use\n", "opened\n"]
        for racer in racers:
            racer.stdin.write("go on\n")
            racer.stdin.flush()
    for racer in racers:
        assert finish(racer)[2] == 0
    for number in range(ROUNDS):
        with BerkeleyDBStorage(tmp_path / str(number)) as storage:
            assert not storage.statistics().recovered
            assert not storage.check().faults


FORKED = """
    import os, sys
    from pathlib import Path
    from crash_model import pair, store
    from graphs import oid, record
    from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual, StorageClosed, StorageInUse

    def contents():
        return {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir() if not path.is_socket()}

    storage = BerkeleyDBStorage(sys.argv[1], checkpoint=CheckpointNever(), garbage_collection=GarbageManual())
    for _ in range(3):
        storage.new_oid()
    store(storage, [record(0, 1, data=b"root"), *pair(0, 1, 1, 2)])
    session = storage.session()
    before = contents()
    pid = os.fork()
    if not pid:
        def refused(work):
            try:
                work()
            except StorageClosed as error:
                assert f"was opened by process {os.getppid()}, and this is its child" in str(error), error
                return True

        assert refused(lambda: storage.load(oid(0)))
        assert refused(lambda: session.load(oid(1)))
        assert refused(lambda: store(session, [record(0, data=b"the child's")]))
        assert refused(lambda: list(storage.gen_oid_record()))
        assert refused(storage.check)
        assert refused(storage.statistics)
        try:
            BerkeleyDBStorage(sys.argv[1])
        except StorageInUse as error:
            assert error.pid == os.getppid()
        else:
            raise AssertionError("the child opened what the parent has open")
        if sys.argv[2] == "closes":
            storage.close()
        elif sys.argv[2] == "drops":
            import gc
            del storage, session
            gc.collect()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert contents() == before, "the child wrote to the files"
    store(storage, [record(0, 1, data=b"the parent's")])
    print("locked?", flush=True)
    sys.stdin.readline()
    storage.close()
"""


@pytest.mark.parametrize("how", ["exits", "closes", "drops"])
def test_a_forked_child_changes_nothing(tmp_path, how):
    """It has a copy of the pages that were not written yet, and of every handle, and ends in the ordinary way."""
    parent = program(FORKED, tmp_path, how)
    line = parent.stdout.readline()
    assert line == "locked?\n", finish(parent)[1]
    with pytest.raises(StorageInUse) as caught:
        BerkeleyDBStorage(tmp_path)
    assert caught.value.pid == parent.pid
    _, err, status = finish(parent, "go on\n")
    assert (status, err) == (0, "")
    with BerkeleyDBStorage(tmp_path) as storage:
        assert not storage.statistics().recovered
        assert not storage.check().faults
        expected = [record(0, 1, data=b"the parent's"), *pair(0, 1, 1, 2)]
        assert [row for _, row in storage.gen_oid_record()] == expected


def test_a_child_opens_a_storage_of_its_own(tmp_path):
    for name in ("parent", "child"):
        (tmp_path / name).mkdir()
    text = """
        import os, sys
        from berkeleydb_storage import BerkeleyDBStorage
        parents = BerkeleyDBStorage(sys.argv[1])
        if not os.fork():
            with BerkeleyDBStorage(sys.argv[2]) as storage:
                storage.new_oid()
            sys.exit(0)
        os.wait()
        parents.new_oid()
    """
    assert finish(program(text, tmp_path / "parent", tmp_path / "child")) == ("", "", 0)
    assert state(tmp_path / "parent") == state(tmp_path / "child") == "closed"


ENDS = {
    "the end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise SystemError('a bug')", 1),
    "in a cycle": ("circle = [storage]; circle.append(circle)", 0),
    "a session": ("session = storage.session(); del storage", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_storage_that_nobody_closes_is_closed_when_the_interpreter_ends(tmp_path, end):
    last, expected = ENDS[end]
    text = f"""
        import sys
        from berkeleydb_storage import BerkeleyDBStorage
        from crash_model import store
        from graphs import record
        storage = BerkeleyDBStorage(sys.argv[1])
        storage.new_oid()
        store(storage, [record(0, data=b"root")])
        {last}
    """
    _, err, status = finish(program(text, tmp_path))
    assert status == expected, err
    assert state(tmp_path) == "closed"
    with BerkeleyDBStorage(tmp_path) as storage:
        assert not storage.statistics().recovered
        assert storage.load(oid(0)) == record(0, data=b"root")


def test_a_storage_that_is_dropped_is_closed(tmp_path):
    storage = BerkeleyDBStorage(tmp_path)
    storage.new_oid()
    store(storage, [record(0, data=b"root")])
    del storage
    gc.collect()
    assert state(tmp_path) == "closed"
    with BerkeleyDBStorage(tmp_path) as again:
        assert again.load(oid(0)) == record(0, data=b"root")


def test_a_session_keeps_its_storage_open(tmp_path):
    session = BerkeleyDBStorage(tmp_path).session()
    gc.collect()
    session.new_oid()
    store(session, [record(0, data=b"root")])
    assert session.load(oid(0)) == record(0, data=b"root")
    assert state(tmp_path) == "open"
    session.storage.close()
    with pytest.raises(StorageClosed, match="is closed"):
        session.load(oid(0))
    assert state(tmp_path) == "closed"
