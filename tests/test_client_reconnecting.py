"""A client whose connection breaks: at every byte of a commit, between transactions, within one; and its fate."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
from client_peers import Proxy, Site
from concurrency import PATIENCE, run_threads
from conftest import check_directory
from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError, WriteConflictError
from durus.persistent_dict import PersistentDict
from served import PYTHONPATH, Served, free_port

from berkeleydb_storage.client import ClientStorage, Fate
from berkeleydb_storage.client.line import Patience
from berkeleydb_storage.errors import CommitUnknown, ServerUnreachable, StorageClosed
from berkeleydb_storage.testing.records import ROOT, accept, commit, populate, record_of

LONG = 20


@pytest.fixture
def site(directory):
    with Site(directory) as site:
        yield site
    check_directory(directory)


@pytest.fixture
def proxy(site):
    with Proxy(site.path) as proxy:
        yield proxy


@pytest.fixture
def clients(site):
    opened = []

    def open_client(address=None, **options):
        opened.append(ClientStorage(address or site.address, **({"timeout": LONG} | options)))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def count(site):
    """Return the counter as it is stored."""
    session = site.storage.session()
    return Connection(session).get_root().get("count")


def lengths_of_a_commit(proxy, connection):
    """Return how many bytes a commit takes, to the server and back."""
    for _ in range(2):
        before = dict(proxy.bytes)
        connection.get_root()["count"] = 0
        connection.commit()
    return {way: proxy.bytes[way] - before[way] for way in before}


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "others commit"])
def test_commit_cut_at_every_byte(site, proxy, clients, way, others):
    """It is stored, once, wherever the connection breaks."""
    connection = Connection(clients(proxy.address))
    root = connection.get_root()
    root["seen"], root["other"] = PersistentDict(), PersistentDict()
    lengths = lengths_of_a_commit(proxy, connection)
    other = Connection(clients())
    length = lengths[way] + (40 if others else 0)
    for number, at in enumerate(range(length), 1):
        connection.abort()
        assert root["count"] == number - 1
        if others:
            _ = root["other"].keys()
            connection.abort()
            _ = root["count"]
            other.abort()
            other.get_root()["other"]["number"] = number
            other.commit()
        proxy.cut(**{way: at})
        root["count"] += 1
        connection.commit()
        assert count(site) == number
        if others:
            connection.abort()
            assert root["other"]["number"] == number
        proxy.cut(up=None, down=None)
    assert proxy.accepted >= lengths[way]


@pytest.mark.parametrize("way", ["up", "down"])
def test_conflict_cut_at_every_byte(site, proxy, clients, way):
    """What others changed of what was read is found, wherever the connection breaks, and nothing is stored."""
    connection = Connection(clients(proxy.address))
    root = connection.get_root()
    root["other"] = PersistentDict(n=0)
    length = lengths_of_a_commit(proxy, connection)[way]
    other = Connection(clients())
    for at in range(length):
        connection.abort()
        _ = root["other"]["n"]
        other.abort()
        other.get_root()["other"]["n"] = at
        other.commit()
        proxy.cut(**{way: at})
        root["count"] = 1
        with pytest.raises(WriteConflictError):
            connection.commit()
        connection.abort()
        assert root["other"]["n"] == at
        assert count(site) == 0
        proxy.cut(up=None, down=None)


def test_oids_are_used_again_after_a_conflict(clients):
    """As Durus' client does."""
    first, second = clients(), clients()
    records = populate(first, 2)
    second.sync()
    second.load(max(records))
    commit(first, [record_of(max(records), b"new")])

    def refuse(oids):
        raise WriteConflictError(oids)

    second.begin()
    fresh = [second.new_oid(), second.new_oid()]
    second.store(max(records), record_of(max(records), b"lost", fresh))
    for oid in fresh:
        second.store(oid, record_of(oid))
    with pytest.raises(WriteConflictError):
        second.end(refuse)
    second.begin()
    assert [second.new_oid(), second.new_oid()] == fresh


def test_oids_stay_valid_after_a_restart(site, clients):
    """A server that begins anew hands out others."""
    first = clients()
    records = populate(first, 1)
    mine = {first.new_oid() for _ in range(3)}
    site.restart()
    second = clients()
    theirs = {second.new_oid() for _ in range(100)}
    mine |= {first.new_oid() for _ in range(100)}
    assert not mine & theirs
    commit(first, [record_of(ROOT, b"", [*records, *mine][1:]), *map(record_of, mine)])


def test_changes_while_away_are_told_by_sync(site, proxy, clients):
    """As if the connection had never been lost: the object cannot be loaded before, others can."""
    away, other = clients(proxy.address), clients()
    records = populate(other, 3)
    first, second, third = sorted(records)[1:]
    away.sync()
    for oid in records:
        away.load(oid)
    proxy.reset()
    commit(other, [record_of(second, b"new")])
    assert away.load(first) == records[first]
    for _ in range(2):
        with pytest.raises(ReadConflictError):
            away.load(second)
        with pytest.raises(ReadConflictError):
            list(away.bulk_load([second]))
    assert away.load(third) == records[third]
    assert away.sync() == [second]
    assert away.sync() == []
    assert away.load(second) == record_of(second, b"new")


def test_changes_while_away_are_told_to_the_handler(site, proxy, clients):
    """Before anything is sent."""
    away, other = clients(proxy.address), clients()
    records = populate(other, 2)
    first, second = sorted(records)[1:]
    away.sync()
    proxy.reset()
    commit(other, [record_of(first, b"new")])
    told = []
    commit(away, [record_of(second, b"mine")], told.extend)
    assert told == [first]
    assert away.sync() == []


def test_lost_answer_to_sync(site, proxy, clients):
    """What it would have said is told after all."""
    away, other = clients(proxy.address), clients()
    records = populate(other, 1)
    away.sync()
    for at in range(21):
        commit(other, [record_of(max(records), b"%d" % at)])
        proxy.cut(down=at)
        assert away.sync() == [max(records)]
        proxy.cut(down=None)
        assert away.load(max(records)) == record_of(max(records), b"%d" % at)


def test_end_without_handler_keeps_the_news(clients):
    """They are told by the next ``sync``; until then the object cannot be loaded."""
    first, second = clients(), clients()
    records = populate(first, 3)
    one, two, three = sorted(records)[1:]
    second.sync()
    for oid in records:
        second.load(oid)
    commit(first, [record_of(one, b"new")])
    second.begin()
    second.store(two, record_of(two, b"mine"))
    second.end()
    with pytest.raises(ReadConflictError):
        second.load(one)
    assert second.load(two) == record_of(two, b"mine")
    second.begin()
    second.store(one, record_of(one, b"lost"))
    with pytest.raises(ConflictError):
        second.end()
    assert second.sync() == [one]
    assert second.load(one) == record_of(one, b"new")
    assert second.load(three) == records[three]


def test_forgotten_history(directory, clients, site):
    """A server that cannot tell what was changed: everything that the client knows counts as changed."""
    away = clients()
    records = populate(away, 3)
    oids = sorted(records)
    away.load(oids[1])
    site.stop()
    away._line._identity = bytes(16)  # as if another storage was there before
    site.start()
    with pytest.raises(ReadConflictError):
        away.load(oids[2])
    assert away.sync() == oids
    assert away.load(oids[2]) == records[oids[2]]
    assert away.sync() == []


def test_commit_begun_at_another_storage(site, clients):
    """Its new oids are not of this storage: it is refused, and they are not used again."""
    away = clients()
    populate(away, 1)
    away.begin()
    oid = away.new_oid()
    away.store(ROOT, record_of(ROOT, b"", [oid]))
    away.store(oid, record_of(oid))
    site.stop()
    away._line._identity = bytes(16)
    site.start()
    with pytest.raises(ConflictError, match="another"):
        away.end(accept)
    away.begin()
    assert away.new_oid() != oid


def test_server_that_does_not_come_back(site, clients):
    """Loads and commits say so; when it is back, everything goes on."""
    away = clients(timeout=0.3)
    records = populate(away, 1)
    site.stop()
    for operation in (away.sync, lambda: away.load(ROOT), lambda: commit(away, [record_of(max(records), b"x")])):
        with pytest.raises(ServerUnreachable, match=r"0\.3 s"):
            operation()
    site.start()
    assert away.load(ROOT) == records[ROOT]


def test_closing_ends_waiting(site, clients):
    """Whoever waits for a server that is away is told at once that the client was closed."""
    away = clients(timeout=PATIENCE)
    populate(away, 1)
    waiting = threading.Event()
    away._line._ending = ending = SignallingEvent(waiting)
    site.stop()

    def load():
        with pytest.raises(StorageClosed):
            away.load(ROOT)

    def close():
        assert waiting.wait(PATIENCE)
        away.close()

    run_threads(load, close)
    assert ending.is_set()
    with pytest.raises(StorageClosed):
        away.sync()
    site.start()


class SignallingEvent(threading.Event):
    """One that says when it is waited for."""

    def __init__(self, waited_for):
        super().__init__()
        self._waited_for = waited_for

    def wait(self, timeout=None):
        if timeout:
            self._waited_for.set()
        return super().wait(timeout)


def test_patience_grows():
    """The first attempt follows at once; the delays grow, with chance in them, up to a second."""
    ending = Delays()
    patience = Patience("x", PATIENCE, ending)
    for _ in range(12):
        patience.pause(OSError("away"))
    first, second, *_, last = ending.delays
    assert first == 0
    assert 0.005 <= second <= 0.01
    assert 0.5 <= last <= 1


class Delays:
    """Notes what it is to wait for, and does not."""

    def __init__(self):
        self.delays = []

    def wait(self, seconds):
        self.delays.append(seconds)
        return False


@pytest.mark.parametrize(
    ("cut", "fate"), [({"down": 0}, Fate.STORED), ({"up": 30}, Fate.NOT_STORED)], ids=["stored", "not stored"]
)
def test_unknown_commit_and_its_fate(site, proxy, clients, cut, fate):
    """The server goes away with the answer; when it is back it tells what became of the commit."""
    away = clients(proxy.address, timeout=0.3)
    records = populate(away, 1)
    oid = max(records)
    proxy.refuse()
    proxy.cut(**cut)
    with pytest.raises(CommitUnknown) as caught:
        commit(away, [record_of(oid, b"new")])
    assert len(caught.value.mark) == 16
    with pytest.raises(ServerUnreachable):
        away.fate(caught.value)
    proxy.admit(site.path)
    site.restart()
    assert away.fate(caught.value) is fate
    assert clients().fate(caught.value.mark, caught.value.since) is fate
    away.sync()
    assert away.load(oid) == (record_of(oid, b"new") if fate is Fate.STORED else records[oid])
    commit(away, [record_of(oid, b"newer")])
    assert away.load(oid) == record_of(oid, b"newer")


SERVE = """
import sys
from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.server import Server
with BerkeleyDBStorage(sys.argv[1]) as storage:
    server = Server(storage, sys.argv[2])
    print("begins", flush=True)
    server.run()
"""
KILLS = 8


def test_server_that_is_killed(tmp_path, directory):
    """Again and again, while two clients count: every increment is there, once, and nobody is told of an error."""
    address = f"unix:{tmp_path}/socket"
    servers = []

    def start():
        command = [sys.executable, "-c", SERVE, str(directory), address]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE)
        assert process.stdout.readline()
        servers.append(process)

    start()
    over, counted, progress = threading.Event(), [0, 0], threading.Condition()

    connections = [Connection(ClientStorage(address, timeout=LONG)) for _ in counted]

    def increment(number):
        with connections[number].get_storage():
            connection = connections[number]
            root = connection.get_root()
            while not over.is_set():
                try:
                    root["count"] = root.get("count", 0) + 1
                    connection.commit()
                except ConflictError:
                    connection.abort()
                    continue
                with progress:
                    counted[number] += 1
                    progress.notify_all()

    def kill():
        try:
            for turn in range(KILLS):
                goal = sum(counted) + 10 + turn
                with progress:
                    assert progress.wait_for(partial(lambda goal: sum(counted) >= goal, goal), PATIENCE)
                servers[-1].send_signal(signal.SIGKILL)
                servers[-1].wait()
                servers[-1].stdout.close()
                start()
        finally:
            over.set()

    try:
        run_threads(lambda: increment(0), lambda: increment(1), kill)
        with ClientStorage(address, timeout=LONG) as storage:
            assert Connection(storage).get_root()["count"] == sum(counted)
    finally:
        servers[-1].terminate()
        assert servers[-1].wait(PATIENCE) == 0
        servers[-1].stdout.close()
    check_directory(directory)


@pytest.mark.parametrize("fork_within", [False, True], ids=["between commits", "within a commit"])
def test_forked_child(site, clients, fork_within):
    """It uses a connection and oids of its own; what it has loaded stays valid; the parent notices nothing."""
    client = clients()
    connection = Connection(client)
    root = connection.get_root()
    root["a"] = PersistentDict(n=1)
    connection.commit()
    _ = root["a"]["n"]
    if fork_within:
        client.begin()
        client.new_oid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            theirs = client.new_oid()
            root["a"]["n"] = 2
            root["child"] = PersistentDict()
            connection.commit()
            client.close()
            status = 0 if theirs else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    connection.abort()
    assert root["a"]["n"] == 2
    root["parent"] = PersistentDict()
    connection.commit()
    assert root["parent"]._p_oid != root["child"]._p_oid


def test_fork_while_another_thread_waits(clients):
    """The child does not inherit the lock that a thread of the parent holds."""
    client = clients()
    records = populate(client, 1)
    with client._lock:
        pid = fork_in_thread(lambda: client.load(ROOT) == records[ROOT])
    assert os.waitpid(pid, 0)[1] == 0
    assert client.load(ROOT) == records[ROOT]


def fork_in_thread(function):
    """Fork from another thread, and return the child's pid; the child exits with 0 if the function returns True."""
    pids = []

    def fork():
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if function() else 1)
            finally:
                os._exit(2)
        pids.append(pid)

    run_threads(fork)
    return pids[0]


def test_durus_server_restarts(directory):
    """Everything counts as changed, and a commit begun before is a conflict."""
    port = free_port()
    with Served(directory, port=port) as served:
        client = ClientStorage(served.address, timeout=LONG)
        records = populate(client, 2)
        first, second = sorted(records)[1:]
        client.load(first)
        client.begin()
        client.store(first, record_of(first, b"lost"))
        served.stop()
        served.restart()
        told = []

        def refuse(oids):
            told.extend(oids)
            raise WriteConflictError(oids)

        with pytest.raises(WriteConflictError):
            client.end(refuse)
        assert told == sorted(records)
        assert client.sync() == []
        assert client.load(second) == records[second]
        commit(client, [record_of(first, b"new")])
        assert client.load(first) == record_of(first, b"new")
        client.close()


def test_commit_to_a_durus_server_that_is_killed(directory):
    """Between transactions that is no harm; with the records sent, nobody will ever know."""
    port = free_port()
    with Served(directory, port=port), Proxy(("localhost", port)) as proxy:
        client = ClientStorage(proxy.address, timeout=0.5)
        records = populate(client, 1)
        oid = max(records)
        proxy.reset()
        assert client.sync() == sorted(records)
        commit(client, [record_of(oid, b"new")])
        proxy.cut(up=0)
        with pytest.raises(ConflictError):
            commit(client, [record_of(oid, b"lost")])
        proxy.cut(down=4)
        proxy.refuse()
        with pytest.raises(CommitUnknown) as caught:
            commit(client, [record_of(oid, b"newer")])
        proxy.admit(("localhost", port))
        assert client.fate(caught.value) is Fate.UNKNOWN
        client.sync()
        assert client.load(oid) == record_of(oid, b"newer")
        client.close()
