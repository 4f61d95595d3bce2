"""Encrypted storages: no plaintext in any file at any time, and otherwise the same as every storage."""

import json
import os
import tempfile
import time
import uuid
from pathlib import Path
from types import MappingProxyType

import durus.serialize
import pytest
from concurrency import run_threads
from crash_parent import KILLED, Children
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import MEMORY, copied, oid, record

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointNever,
    DamagedError,
    GarbageManual,
    KeyNeeded,
    NewerFormat,
    OptionError,
    SharedStorage,
    WrongKey,
    environment,
    failpoints,
)
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.directory import DESCRIPTION
from berkeleydb_storage.server import Server
from berkeleydb_storage.testing import StorageConformance

KEY = "pJ0mOzVRxS9uZC3J6eYsM1sO1kq9qR5l"
OTHER = KEY[:-1] + "m"
SECRET = b"Nobody is to read this: " + uuid.uuid4().hex.encode()
"""Another one in each run, as others use shared memory, too."""
CLASS = b"PersistentDict"
COMMITS = 30
QUIET = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual(), "cachesize": 1 << 20}
LOCATED = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see files without a name")


def contents(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path) if (path / name).is_file()}


def check_encrypted(path):
    """Open the storage that a test left behind, and fail if anything in it is wrong."""
    with BerkeleyDBStorage(path, key=KEY) as storage:
        assert storage.check().faults == []
    assert check_pages(path, key=KEY) == []


class Encrypted(StorageConformance):
    validates_records = True
    refuses_dangling = True
    has_size = True
    several_clients = True
    options = MappingProxyType({})

    def make_storage(self, directory):
        return BerkeleyDBStorage(directory, key=KEY, **self.options)

    def another(self, storage):
        return storage.session()

    def check_storage(self, directory):
        check_encrypted(directory)


class TestConformance(Encrypted):
    """The default: a btree whose commits are synced."""


class TestConformanceOfHash(Encrypted):
    options = MappingProxyType({"type": "hash", "durable": False, "cachesize": 1 << 20})


class Watch:
    """Looks for what is to be secret wherever this process can have written it."""

    def __init__(self, *places):
        self._places = places
        self._began = time.time() - 1
        self.times = 0

    def leaks(self):
        """Return the files that have something in plaintext, those too that have no name any more."""
        self.times += 1
        ours = [path for place in self._places for path in place.rglob("*")]
        opened = list(Path("/proc/self/fd").iterdir())
        shared = MEMORY.rglob("*") if MEMORY.exists() else ()
        found = [path for path in ours if any(self._has(path, what) for what in (SECRET, CLASS))]
        return sorted(map(str, found + [path for path in (*opened, *shared) if self._has(path, SECRET)]))

    def _has(self, path, what):
        try:
            return path.is_file() and path.stat().st_mtime > self._began and what in path.read_bytes()
        except OSError:
            return False  # it is gone, or another user's


@pytest.fixture
def watch(directory, tmp_path, monkeypatch):
    """A watch over the directory, a temporary directory of its own, and shared memory."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(durus.serialize, "WRITE_COMPRESSED_STATE_PICKLES", False)
    return Watch(directory, temporary)


def change(connection, number):
    """Store some secrets; more than the smallest cache holds when all are there."""
    root = connection.get_root()
    for index in range(4):
        root[SECRET.decode() + str(number * 4 + index)] = PersistentDict({"it": SECRET * 200})
    connection.commit()


@LOCATED
@pytest.mark.parametrize("options", [{}, {"durable": False}, {"type": "hash", "durable": False}])
def test_no_plaintext(directory, watch, options):
    with BerkeleyDBStorage(directory, key=KEY, **QUIET, **options) as storage:
        connection = Connection(storage)
        for number in range(COMMITS):
            change(connection, number)
            if number % 10 == 0:
                assert watch.leaks() == []
        storage.checkpoint()
        assert watch.leaks() == []
        connection.get_root().clear()
        connection.commit()
        storage.pack()
        assert watch.leaks() == []
        storage.compact()
        change(connection, 0)
    assert watch.leaks() == []
    assert watch.times > COMMITS // 10
    check_encrypted(directory)


@LOCATED
def test_without_a_key_there_is_plaintext(directory, watch):
    """So the watch would see it."""
    with BerkeleyDBStorage(directory, durable=False, async_log_write=True, **QUIET) as storage:
        connection = Connection(storage)
        change(connection, 0)
        assert [Path(name).name for name in watch.leaks() if "/proc" not in name] == ["log.0000000001"]
        storage.checkpoint()
        assert str(directory / "objects.db") in watch.leaks()
        assert SECRET in (directory / "objects.db").read_bytes()
    assert str(directory / "objects.db") in watch.leaks()


@LOCATED
def test_no_plaintext_while_a_killed_storage_is_recovered(directory, watch, tmp_path, monkeypatch):
    killed = tmp_path / "temporary" / "killed"
    with BerkeleyDBStorage(directory, key=KEY, **QUIET) as storage:
        for number in range(COMMITS):
            change(Connection(storage), number)
            if number == COMMITS // 2:
                storage.checkpoint()
        copied(directory, killed)
    reached = []
    monkeypatch.setattr(failpoints, "hook", lambda name: reached.append((name, watch.leaks())))
    with BerkeleyDBStorage(killed, key=KEY, read_only=True) as storage:
        assert len(Connection(storage).get_root()) == 4 * COMMITS
        assert watch.leaks() == []
    with BerkeleyDBStorage(killed, key=KEY) as storage:
        assert storage.statistics().recovered
        assert len(Connection(storage).get_root()) == 4 * COMMITS
    assert {"recover.begin", "recover.done"} <= {name for name, _ in reached}
    assert [leaks for _, leaks in reached if leaks] == []


@LOCATED
def test_what_a_check_puts_aside_is_encrypted(watch, monkeypatch):
    """Beyond its cache a table without a name is in a file; with a key that nobody keeps."""
    table = environment.scratch_table(1 << 20)
    for number in range(2000):
        table.put(oid(number), SECRET * 100)
    spilled = [path for path in Path("/proc/self/fd").iterdir() if path.is_file() and "BDB" in str(path.readlink())]
    assert sum(path.stat().st_size for path in spilled) > 1 << 20
    assert watch.leaks() == []
    assert table.get(oid(7)) == SECRET * 100
    table.close()


def test_with_its_key_it_opens(open_encrypted):
    with open_encrypted() as storage:
        assert storage.load(oid(0)) == record(0)
        assert not storage.statistics().recovered
    with open_encrypted(read_only=True) as storage:
        assert storage.load(oid(0)) == record(0)


@pytest.fixture
def open_encrypted(directory):
    """A function that opens the storage of this test, which has an object."""
    with BerkeleyDBStorage(directory, key=KEY, **QUIET) as storage:
        storage.new_oid()
        storage.begin()
        storage.store(oid(0), record(0))
        storage.end()
    yield lambda **options: BerkeleyDBStorage(directory, **{"key": KEY, **QUIET, **options})
    check_encrypted(directory)


@pytest.fixture(params=["closed", "killed", "no lock"])
def left(request, open_encrypted, directory, tmp_path):
    """The directory of an encrypted storage that nobody has open."""
    if request.param == "killed":
        with open_encrypted() as storage:
            storage.begin()
            storage.store(oid(0), record(0, data=b"changed"))
            storage.end()
            copied(directory, tmp_path / "killed")
        return tmp_path / "killed"
    if request.param == "no lock":
        (directory / "lock").unlink()
    return directory


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"do_recover": True}])
@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (None, KeyNeeded, "is encrypted: give the key, as `key` or with --key-file"),
        (OTHER, WrongKey, "is encrypted with another key: give the right one"),
    ],
)
def test_without_its_key_it_is_refused_and_left_alone(left, key, error, message, options):
    before = contents(left)
    with pytest.raises(error, match=f"^{left} {message}") as caught:
        BerkeleyDBStorage(left, key=key, **options)
    assert caught.type is error
    assert KEY not in str(caught.value)
    assert contents(left) == before
    with BerkeleyDBStorage(left, key=KEY) as storage:
        assert storage.get_size() == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_a_key_for_what_is_not_encrypted_is_refused(directory, open_storage, read_only):
    open_storage().close()
    before = contents(directory)
    with pytest.raises(OptionError, match="is not encrypted: leave the key out"):
        BerkeleyDBStorage(directory, key=KEY, read_only=read_only)
    assert contents(directory) == before


def test_tables_in_plaintext_are_refused(open_encrypted, directory, tmp_path):
    """Whoever puts them there does not get anybody to write secrets into them."""
    open_encrypted().close()
    plain = tmp_path / "plain"
    plain.mkdir()
    BerkeleyDBStorage(plain).close()
    genuine = (directory / "objects.db").read_bytes()
    (directory / "objects.db").write_bytes((plain / "objects.db").read_bytes())
    with pytest.raises(DamagedError, match=r"objects\.db|damaged"):
        open_encrypted()
    (directory / "objects.db").write_bytes(genuine)


def test_earlier_releases_refuse_it(open_encrypted, directory):
    """They know no format above 3, and say so before they look at anything else."""
    said = json.loads((directory / DESCRIPTION).read_text())
    assert (said["format"], said["encrypted"]) == (4, True)
    assert KEY not in json.dumps(said)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": 5}, NewerFormat, "has format 5, and this version of the package reads up to 4: install a newer"),
        ({"format": 3}, DamagedError, "encrypted has an impossible value"),
        ({"encrypted": 1}, DamagedError, "encrypted has an impossible value"),
        ({"encrypted": False}, NewerFormat, "has format 4, and this version of the package reads up to 3"),
        ({"key_check": ""}, DamagedError, "key_check has an impossible value"),
        ({"key_check": "0:0"}, DamagedError, "key_check has an impossible value"),
        ({"key_check": 7}, DamagedError, "key_check has an impossible value"),
    ],
)
def test_what_is_said_of_it_makes_sense(open_encrypted, directory, changes, error, message):
    said = (directory / DESCRIPTION).read_text()
    (directory / DESCRIPTION).write_text(json.dumps(json.loads(said) | changes))
    with pytest.raises(error, match=message):
        open_encrypted()
    (directory / DESCRIPTION).write_text(said)


def test_keys_of_all_kinds(tmp_path):
    for number, key in enumerate(["x", "Schlüssel", "a b", "鍵" * 1000, "-"]):
        path = tmp_path / str(number)
        path.mkdir()
        BerkeleyDBStorage(path, key=key).close()
        assert check_pages(path, key=key) == []
        with pytest.raises(WrongKey):
            BerkeleyDBStorage(path, key=key + "x")
        BerkeleyDBStorage(path, key=key).close()


@pytest.mark.parametrize("name", ["create.begun", "create.tables", "commit.committed", "recover.done", "close.marked"])
@pytest.mark.parametrize("options", [{}, {"durable": False}])
def test_killed_it_recovers(tmp_path, directory, name, options):
    children = Children(tmp_path)
    work = {"how": "inline", "commits": 30, "options": {"key": KEY, **options}}
    if name == "recover.done":
        assert children.run("work", directory, fuse=("commit.written", 9), **work) == KILLED
    assert children.run("work", directory, fuse=(name, 1), **work) == KILLED
    children.close()
    check_encrypted(directory)


def test_a_creation_that_was_killed_may_go_on_with_another_key(directory, tmp_path):
    children = Children(tmp_path)
    options = {"how": "none", "commits": 1, "options": {"key": OTHER}}
    assert children.run("work", directory, fuse=("create.tables", 1), **options) == KILLED
    children.close()
    check_encrypted(directory)


def test_migration_and_repair(tmp_path, open_storage):
    with open_storage() as plain:
        change(Connection(plain), 0)
        target = tmp_path / "target"
        target.mkdir()
        with BerkeleyDBStorage(target, key=KEY) as storage:
            assert storage.migrate(plain.gen_oid_record()) == plain.get_size()
            assert dict(storage.gen_oid_record()) == dict(plain.gen_oid_record())
        with BerkeleyDBStorage(target, key=KEY, repair=True, validate_garbage=True) as storage:
            assert storage.check(repair=True).faults == []
        check_encrypted(target)


def test_shared(directory):
    with pytest.raises(OptionError):
        SharedStorage(directory, key="")
    first, second = (SharedStorage(directory, key=KEY, durable=False) for _ in range(2))
    change(Connection(first), 0)
    connection = Connection(second)
    assert len(connection.get_root()) == 4
    first.close()
    second.close()
    with pytest.raises(WrongKey):
        SharedStorage(directory, key=OTHER)
    assert not (directory / "socket").exists()
    check_encrypted(directory)


def test_served(directory):
    storage = BerkeleyDBStorage(directory, key=KEY, durable=False)
    with Server(storage, "127.0.0.1:0") as server:
        clients = [ClientStorage(server.addresses[0]) for _ in range(2)]
        change(Connection(clients[0]), 0)
        assert len(Connection(clients[1]).get_root()) == 4
        for client in clients:
            client.close()
    storage.close()
    check_encrypted(directory)


def test_threads(directory):
    with BerkeleyDBStorage(directory, key=KEY) as storage:
        first = Connection(storage)
        for name in "abcd":
            first.get_root()[name] = PersistentDict()
        first.commit()

        def work(name):
            connection = Connection(storage.session())
            for number in range(20):
                connection.get_root()[name][str(number)] = SECRET
                connection.commit()

        run_threads(*(lambda name=name: work(name) for name in "abcd"))
        first.abort()
        assert [len(first.get_root()[name]) for name in "abcd"] == [20] * 4
    check_encrypted(directory)


def test_the_key_is_not_shown(directory):
    with BerkeleyDBStorage(directory, key=KEY) as storage:
        shown = [repr(storage), str(storage), repr(storage.statistics()), repr(storage._running.opened)]
        assert not [text for text in shown if KEY in text]
    assert KEY.encode() not in b"".join(contents(directory).values())
