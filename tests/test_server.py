"""Durus' own server on a storage of ours, as a subprocess, with Durus' own clients."""

import signal
import subprocess
import sys
import threading

import pytest
from concurrency import PATIENCE, run_threads
from conftest import check_directory
from durus.connection import Connection
from durus.error import ConflictError, WriteConflictError
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.utils import ShortRead
from served import Served

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.environment import REFCOUNTS
from berkeleydb_storage.format import pack_count
from berkeleydb_storage.testing import commit, record_of
from berkeleydb_storage.testing.records import ROOT, UNKNOWN, loaded, populate

CLIENTS = 3
INCREMENTS = 25
KILLS = 4
COMMITS_BEFORE_KILL = 60


@pytest.fixture
def served(directory):
    """A server of an empty storage; what it leaves is checked."""
    with Served(directory) as served:
        yield served
    check_directory(directory)


def test_clients_that_conflict(served):
    """They increment one counter and a few others: no increment is lost."""
    first = Connection(served.client())
    first.get_root().update({name: PersistentDict(n=0) for name in "abcd"})
    first.commit()
    conflicts = []

    def increment(connection, own):
        for _ in range(INCREMENTS):
            while True:
                try:
                    for name in ("a", own):
                        connection.get_root()[name]["n"] += 1
                    connection.commit()
                    break
                except ConflictError:
                    conflicts.append(own)
                    connection.abort()

    connections = [Connection(served.client()) for _ in range(CLIENTS)]
    run_threads(*(lambda c=c, own=own: increment(c, own) for c, own in zip(connections, "bcd", strict=True)))
    first.abort()
    found = {name: value["n"] for name, value in first.get_root().items()}
    assert found == {"a": CLIENTS * INCREMENTS, "b": INCREMENTS, "c": INCREMENTS, "d": INCREMENTS}
    assert conflicts


def test_clients_make_objects(served):
    """Each gets oids of its own, and all that they make is there after a restart."""

    def build(number, connection):
        mine = PersistentDict()
        while True:
            try:
                connection.get_root()[number] = mine
                connection.commit()
                break
            except ConflictError:
                connection.abort()
        for key in range(20):
            mine[key] = PersistentDict(key=key)
            connection.commit()

    # Before anybody commits: a connection whose first load meets a commit of the root gets a ReadConflictError.
    connections = [Connection(served.client()) for _ in range(CLIENTS)]
    run_threads(*(lambda pair=pair: build(*pair) for pair in enumerate(connections)))
    served.stop()
    with BerkeleyDBStorage(served.directory) as storage:
        assert storage.get_size() == 1 + CLIENTS * 21
        root = Connection(storage).get_root()
        assert {number: sorted(root[number]) for number in root} == {key: list(range(20)) for key in range(CLIENTS)}
    served.restart()


def test_pack_asked_for_by_a_client(served):
    """The server packs in steps; all clients learn what went."""
    first, second = Connection(served.client()), Connection(served.client())
    for key in range(300):
        first.get_root()[key] = PersistentDict(key=key)
    first.commit()
    second.abort()
    doomed = [second.get_root()[key] for key in range(0, 300, 2)]
    assert {each["key"] for each in doomed} == set(range(0, 300, 2))
    for key in range(0, 300, 2):
        del first.get_root()[key]
    first.commit()
    first.abort()
    served.pack(first.get_storage())
    second.abort()
    assert all(each._p_is_ghost() for each in doomed)
    assert [second.get_root()[key]["key"] for key in range(1, 300, 2)] == list(range(1, 300, 2))
    assert served.client().bulk_load([]) is not None
    served.stop()
    with BerkeleyDBStorage(served.directory) as storage:
        assert storage.get_size() == 151
    served.restart()


def test_commits_while_the_server_packs(served):
    """The steps of the packer and the commits of a client take turns."""
    client = served.client()
    records = populate(client, 500)
    oids = sorted(records)[1:]
    kept = oids[:20]
    commit(client, [record_of(ROOT, b"root", kept)])
    before = served.lines
    client.pack()
    for turn in range(200):
        oid = kept[turn % 20]
        records[oid] = record_of(oid, b"turn %d" % turn)
        commit(client, [records[oid]])
    served.wait_for("gc at", after=before)
    client.sync()
    assert loaded(client, kept) == {oid: records[oid] for oid in kept}
    assert len(list(client.gen_oid_record())) == 21


def test_pack_after_so_many_bytes(directory):
    """``--gcbytes`` makes the server pack by itself."""
    with Served(directory, "--gcbytes=1") as served:
        client = served.client()
        records = populate(client, 10)
        served.wait_for("gc at")
        before = served.lines
        commit(client, [record_of(ROOT)])
        served.wait_for("gc at", after=before)
        client.sync()
        with pytest.raises(KeyError):
            client.load(max(records))
    check_directory(directory)


def test_dangling_reference_is_a_conflict(served):
    """Nothing of the commit is stored, and the server goes on for everybody."""
    client, other = served.client(), served.client()
    records = populate(client, 2)
    first, second = sorted(records)[1:]
    other.sync()
    for reference in (UNKNOWN, client.new_oid()):
        with pytest.raises(WriteConflictError):
            commit(client, [record_of(first, b"lost"), record_of(second, b"lost", [reference])])
        assert loaded(client, records) == records
        assert loaded(other, records) == records
    records[first] = record_of(first, b"new")
    commit(other, [records[first]])
    client.sync()
    assert loaded(client, records) == records


def test_reference_to_what_was_collected_is_a_conflict(served):
    """A client that still holds a collected object cannot link it again."""
    first, second = Connection(served.client()), Connection(served.client())
    first.get_root()["a"], first.get_root()["b"] = PersistentDict(), PersistentDict()
    first.commit()
    second.abort()
    held, target = second.get_root()["a"], second.get_root()["b"]
    assert (list(held), list(target)) == ([], [])
    del first.get_root()["a"]
    first.commit()
    served.pack(first.get_storage())
    target["again"] = held
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    assert sorted(second.get_root()) == ["b"]
    second.get_root()["b"]["other"] = PersistentDict()
    second.commit()


@pytest.mark.parametrize("change", ["overwritten", "new"])
def test_commit_to_a_read_only_server_is_a_conflict(directory, open_storage, change):
    """Of objects that are there, and of new ones, for which the client asks for oids before; reading goes on."""
    connection = Connection(open_storage())
    connection.get_root()["a"] = PersistentDict(n=1)
    connection.commit()
    connection.get_storage().close()
    with Served(directory, "--readonly") as served:
        first, second = Connection(served.client()), Connection(served.client())
        for _ in range(2):
            first.get_root()["a"]["n" if change == "overwritten" else "b"] = (
                2 if change == "overwritten" else Persistent()
            )
            with pytest.raises(WriteConflictError):
                first.commit()
            first.abort()
        first.pack()
        assert dict(first.get_root()["a"]) == dict(second.get_root()["a"]) == {"n": 1}


def test_repair(directory, open_storage):
    """``--repair`` rebuilds the reference counts before it serves."""
    storage = open_storage()
    records = populate(storage, 10)
    engine = storage._engine
    with engine.lock, engine.change() as change:
        engine.environment.tables[REFCOUNTS].put(max(records), pack_count(7), txn=change.transaction)
    assert not storage.check().sound
    storage.close()
    with Served(directory, "--repair") as served:
        assert loaded(served.client(), records) == records


def test_full_disk(directory):
    """Commits are conflicts and the server goes on, also for a client that finds no room to reserve oids."""
    full = directory / ".full"
    with Served(directory, storage_class="server_storages.ShortOfRoom") as served:
        client, other = served.client(), served.client()
        records = populate(client, 3)
        other.sync()
        full.touch()
        with pytest.raises(WriteConflictError):
            commit(client, [record_of(max(records), b"lost")])
        with pytest.raises(ShortRead):
            _ = [other.new_oid() for _ in range(1000)]
        assert loaded(client, records) == records
        full.unlink()
        records[max(records)] = record_of(max(records), b"new")
        commit(client, [records[max(records)]])
        other = served.client()
        assert loaded(other, records) == records
        assert len({other.new_oid() for _ in range(1000)}) == 1000
    check_directory(directory)


def test_client_that_goes_away_in_the_middle(served):
    """Of a frame, of a commit, or without a word: the others do not notice, and nothing of it is stored."""
    client = served.client()
    records = populate(client, 2)
    oid = max(records)
    frame = (8 + 20).to_bytes(4, "big") + oid + record_of(oid, b"partial!")
    for sent in (
        b"",
        b"L",
        b"L" + oid[:4],
        b"C",
        b"C" + b"\0\0",
        b"C" + (28 + 4).to_bytes(4, "big") + frame[:-3],
        b"B\0",
    ):
        leaver = served.client()
        leaver.s.sendall(sent)
        leaver.s.close()
        assert loaded(client, records) == records
    assert list(client.sync()) == []


def test_second_server_is_refused(served):
    """It ends at once, and names the process that has the storage."""
    command = [sys.executable, "-m", "durus", "-s", f"--file={served.directory}", f"--address={served.address}.2"]
    command.append("--storage-class=berkeleydb_storage.BerkeleyDBStorage")
    second = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=served.environment
    )
    assert second.returncode != 0
    assert "StorageInUse" in second.stderr
    assert str(served.process.pid) in second.stderr
    populate(served.client(), 2)


class Load:
    """Clients that commit as fast as they can, each to an object of its own, and know what was acknowledged."""

    def __init__(self, served, stored):
        self.acknowledged = dict(stored)
        self.attempted = dict(stored)
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._commit, args=(served.client(), name)) for name in stored]
        for thread in self._threads:
            thread.start()

    def _commit(self, client, name):
        try:
            connection = Connection(client)
            mine = connection.get_root()[name]
            while True:
                number = mine["n"] + 1
                self.attempted[name] = number
                mine["n"] = number
                mine["child"] = PersistentDict(n=number)
                connection.commit()
                with self._news:
                    self.acknowledged[name] = number
                    self._news.notify_all()
        except OSError:
            return

    def wait(self, commits):
        """Wait until so many commits were acknowledged."""
        wanted = sum(self.acknowledged.values()) + commits
        with self._news:
            assert self._news.wait_for(lambda: sum(self.acknowledged.values()) >= wanted, PATIENCE)

    def join(self):
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_killed_under_load(directory, open_storage):
    """SIGKILL, again and again: what was acknowledged is there, and what is there was attempted."""
    stored = {f"client {number}": 0 for number in range(CLIENTS)}
    connection = Connection(open_storage())
    connection.get_root().update({name: PersistentDict(n=0, child=PersistentDict(n=0)) for name in stored})
    connection.commit()
    connection.get_storage().close()
    for _ in range(KILLS):
        served = Served(directory)
        load = Load(served, stored)
        load.wait(COMMITS_BEFORE_KILL)
        served.process.send_signal(signal.SIGKILL)
        load.join()
        served.kill()
        with Served(directory) as again:
            root = Connection(again.client()).get_root()
            stored = {name: root[name]["n"] for name in stored}
            assert {name: root[name]["child"]["n"] for name in stored} == stored
        assert all(load.acknowledged[name] <= stored[name] <= load.attempted[name] for name in stored)
    assert sum(stored.values()) >= KILLS * COMMITS_BEFORE_KILL
