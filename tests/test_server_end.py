"""How a server ends, and what it does on signals: real processes, under load, at every point of a commit."""

import os
import re
import signal
import socket
import ssl
import threading
from contextlib import closing, suppress

import pytest
import trustme
from concurrency import PATIENCE
from conftest import check_directory
from durus.client_storage import ClientStorage as DurusClient
from durus.connection import Connection
from durus.error import ConflictError
from durus.persistent_dict import PersistentDict
from graphs import record
from serve_process import Serving, state_of

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.auth.users import PasswordFile
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.errors import BerkeleyDBStorageError, CommitUnknown
from berkeleydb_storage.format import pack_uint64, unpack_uint64
from berkeleydb_storage.server.chores import Chores
from berkeleydb_storage.server.metrics import Metrics
from berkeleydb_storage.transport.tls import client_context

NEW, OLD = 4, 2
"""Clients that commit as fast as they can: of this package, and of Durus."""
COMMITS = 200
"""Commits that are acknowledged before anything happens."""
KILLS = 4
AWAY = 0.5
"""Seconds that clients wait for a server which does not come back."""
MANY = 20_000
"""Objects of a commit that takes many turns of the event loop."""


class Load:
    """Clients that each increment a number of their own, and know what was acknowledged."""

    def __init__(self, connect, numbers):
        """Begin.

        Args:
            connect: name -> a function that returns a client.
            numbers: name -> the number at the beginning.
        """
        self.acknowledged, self.attempted = dict(numbers), dict(numbers)
        self.stopping = False
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(name, connect[name])) for name in numbers]
        for thread in self._threads:
            thread.start()

    def _run(self, name, connect):
        client = connect()
        with closing(client if isinstance(client, ClientStorage) else client.s), suppress(OSError, AssertionError):
            connection = Connection(client)
            while not self.stopping:
                try:
                    self._commit(connection, name)
                except (CommitUnknown, ConflictError):
                    connection.abort()  # reads on when the server is back, or fails
                except BerkeleyDBStorageError:
                    return

    def _commit(self, connection, name):
        mine = connection.get_root()[name]
        number = mine["n"] + 1
        mine["n"], mine["child"] = number, PersistentDict(n=number)
        self.attempted[name] = max(number, self.attempted[name])
        connection.commit()
        with self._news:
            self.acknowledged[name] = number
            self._news.notify_all()

    def wait(self, commits):
        """Wait until so many more commits were acknowledged."""
        wanted = sum(self.acknowledged.values()) + commits
        with self._news:
            assert self._news.wait_for(lambda: sum(self.acknowledged.values()) >= wanted, PATIENCE)

    def join(self):
        """Wait until the clients have ended."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def numbers(directory):
    """A storage with a number for each client."""
    names = [f"new {number}" for number in range(NEW)] + [f"old {number}" for number in range(OLD)]
    with BerkeleyDBStorage(directory) as storage:
        connection = Connection(storage)
        connection.get_root().update({name: PersistentDict(n=0, child=PersistentDict(n=0)) for name in names})
        connection.commit()
    return dict.fromkeys(names, 0)


def clients(server, names, timeout=AWAY):
    old = lambda: DurusClient(host="127.0.0.1", port=server.port)  # noqa: E731
    new = lambda: ClientStorage(server.address, timeout=timeout)  # noqa: E731
    return {name: old if name.startswith("old") else new for name in names}


def look(directory, load):
    """Verify that what is stored is what was acknowledged, or at least attempted; return it, and how it was left."""
    with BerkeleyDBStorage(directory) as storage:
        root = Connection(storage).get_root()
        stored = {name: root[name]["n"] for name in load.attempted}
        assert {name: root[name]["child"]["n"] for name in stored} == stored
        recovered = storage.statistics().recovered
    for name, number in stored.items():
        assert load.acknowledged[name] <= number <= load.attempted[name], name
    check_directory(directory)
    return stored, recovered


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_end_under_load(directory, numbers, number):
    """Whatever was acknowledged is there, nothing has to be recovered, and nobody listens any more."""
    server = Serving(directory)
    load = Load(clients(server, numbers), numbers)
    load.wait(COMMITS)
    server.stop(number)
    load.join()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    stored, recovered = look(directory, load)
    assert not recovered
    assert sum(stored.values()) >= COMMITS
    assert not [line for line in server.lines if re.search(" (warning|error|critical) ", line)]


@pytest.mark.parametrize("point", ["commit.begun", "commit.written", "commit.committed", "commit.flushed"])
@pytest.mark.parametrize("objects", [1, MANY])
def test_a_commit_under_way_is_finished(directory, point, objects):
    """And acknowledged, also one that takes many turns of the event loop."""
    with BerkeleyDBStorage(directory) as storage:
        Connection(storage)
    server = Serving(directory, signalled=(point, signal.SIGTERM, 1))
    with closing(ClientStorage(server.address, timeout=PATIENCE)) as client:
        client.begin()
        children = [client.new_oid() for _ in range(objects)]
        for oid in children:
            client.store(oid, record(unpack_uint64(oid)))
        client.store(bytes(8), record(0, *map(unpack_uint64, children)))
        client.end()
    code, _ = server.join()
    assert code == 0
    assert state_of(directory) == "closed"
    with BerkeleyDBStorage(directory) as storage:
        assert storage.get_size() == 1 + objects
    check_directory(directory)


@pytest.fixture
def laden(directory):
    """A storage with some megabytes."""
    with BerkeleyDBStorage(directory) as storage:
        storage.begin()
        oids = [storage.new_oid() for _ in range(MANY)]
        for oid in oids:
            storage.store(oid, record(unpack_uint64(oid), data=os.urandom(1000)))
        storage.store(bytes(8), record(0, *map(unpack_uint64, oids)))
        storage.end()
    return directory


def ask_for_all(path):
    """Ask for every object, and read none of it: the server is busy with that."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.sendall(b"B" + MANY.to_bytes(4, "big") + b"".join(map(pack_uint64, range(MANY))))
    assert sock.recv(1) == b"O"
    return sock


def refuses(path):
    """Wait until nobody can connect any more."""
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                return


def test_a_request_under_way_is_answered_and_no_other(laden, tmp_path):
    """It accepts nobody, its socket's file is gone, whoever waits for nothing is hung up on; the rest is served."""
    path = f"{tmp_path}/s"
    server = Serving(laden, "--listen", f"unix:{path}")
    idle = socket.socket(socket.AF_UNIX)
    idle.connect(path)
    idle.settimeout(PATIENCE)
    with closing(idle), closing(ask_for_all(path)) as sock:
        server.send(signal.SIGTERM)
        server.wait_for(" ending ")
        assert idle.recv(1) == b""
        refuses(path)
        assert not os.path.lexists(path)
        assert server.process.poll() is None
        with sock.makefile("rb") as answers:
            size = int.from_bytes(answers.read(4), "big")
            answers.read(size)
            for _ in range(MANY - 1):
                assert answers.read(1) == b"O"
                answers.read(int.from_bytes(answers.read(4), "big"))
            assert answers.read() == b""
    assert server.join()[0] == 0
    assert state_of(laden) == "closed"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(laden, tmp_path, second):
    """As if it were killed: what was acknowledged is there after a recovery."""
    path = f"{tmp_path}/s"
    server = Serving(laden, "--listen", f"unix:{path}")
    with closing(ClientStorage(f"unix:{path}")) as client:
        client.begin()
        client.store(bytes(8), record(0, 1, data=b"acknowledged"))
        client.end()
    with closing(ask_for_all(path)):
        server.send(signal.SIGINT)
        server.wait_for(" ending ")
        server.send(second)
        assert server.join()[0] == -second
    assert state_of(laden) == "open"
    with BerkeleyDBStorage(laden) as storage:
        assert b"acknowledged" in storage.load(bytes(8))
        assert storage.statistics().recovered


@pytest.mark.parametrize("point", ["close.checkpointed", "close.environment"])
def test_an_impatient_signal_while_the_storage_is_closed(directory, numbers, point):
    server = Serving(directory, signalled=(point, signal.SIGTERM, 1))
    server.send(signal.SIGTERM)
    assert server.join()[0] == -signal.SIGTERM
    check_directory(directory)


@pytest.mark.parametrize("point", ["open.marked", "recover.done"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_storage_is_opened(directory, numbers, point, number):
    """It is closed again, and the exit code is 0."""
    if point == "recover.done":
        with Serving(directory) as killed:
            killed.kill()
    server = Serving(directory, signalled=(point, number, 1), ready=None)
    assert server.join()[0] == 0
    assert state_of(directory) == "closed"
    assert " listening " not in server.output
    check_directory(directory)


@pytest.mark.parametrize("point", ["open.marked", "close.checkpointed"])
def test_a_hangup_at_the_wrong_time(directory, numbers, point):
    """While it is opened, or closed, it does not end the process."""
    with Serving(directory, signalled=(point, signal.SIGHUP, 1)) as server:
        server.stop()
    check_directory(directory)


def test_killed_under_load_and_started_again_on_the_same_port(directory, numbers):
    """At once. The clients of this package come back by themselves, and go on."""
    names = {name: number for name, number in numbers.items() if name.startswith("new")}
    server = Serving(directory)
    address = server.address
    load = Load(clients(server, names, timeout=PATIENCE), names)
    for _ in range(KILLS):
        load.wait(COMMITS)
        server.kill()
        server = Serving(directory, "--listen", address)
    load.wait(COMMITS)
    load.stopping = True
    load.join()
    server.stop()
    stored, _ = look(directory, load)
    assert sum(stored.values()) >= (KILLS + 1) * COMMITS


# --- SIGHUP


def certify(path, ca):
    """Write a new certificate for localhost; return its serial number."""
    made = ca.issue_cert("localhost", "127.0.0.1")
    made.private_key_and_cert_chain_pem.write_to_path(path)
    return made.cert_chain_pems[0].bytes()


def shown(server, ca):
    """Return the certificate that a server shows to a new connection."""
    with (
        socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock,
        client_context(ca=ca).wrap_socket(sock, server_hostname="localhost") as secure,
    ):
        return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True)).encode()


def hang_up(server, event):
    """Send SIGHUP, and wait until it has had its effect."""
    lines = len(server.lines)
    server.send(signal.SIGHUP)
    return server.wait_for(event, after=lines)


def test_new_certificates(directory, numbers, tmp_path):
    """For new connections; the others go on. What cannot be used does not replace what can."""
    ca, path = trustme.CA(), tmp_path / "server.pem"
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    first = certify(path, ca)
    with Serving(directory, "--tls-cert", path) as server:
        assert shown(server, tmp_path / "ca.pem") == first
        address = f"tls://localhost:{server.port}"
        with closing(ClientStorage(address, ca=tmp_path / "ca.pem", timeout=AWAY)) as client:
            load = Load({"new 0": lambda: ClientStorage(address, ca=tmp_path / "ca.pem", timeout=AWAY)}, {"new 0": 0})
            load.wait(10)
            second = certify(path, ca)
            assert second != first
            hang_up(server, "info reloaded what=servercertificates")
            assert shown(server, tmp_path / "ca.pem") == second
            load.wait(10)
            path.write_text("no certificate")
            assert "server.pem" in hang_up(server, "error not-reloaded what=servercertificates")
            assert shown(server, tmp_path / "ca.pem") == second
            load.wait(10)
            assert client.get_size() > 0
        server.stop()
        load.join()
    look(directory, load)


def test_new_users(directory, numbers, tmp_path):
    users = PasswordFile(tmp_path / "users")
    users.set("ada", "first")
    with Serving(directory, "--password-file", users.path) as server:
        with closing(ClientStorage(server.address, user="ada", password="first")) as client:
            users.set("ada", "second")
            users.set("bob", "third")
            hang_up(server, "info reloaded what=users")
            assert client.get_size() > 0
            with closing(ClientStorage(server.address, user="bob", password="third")) as other:
                assert other.get_size() == client.get_size()
            with pytest.raises(BerkeleyDBStorageError):
                ClientStorage(server.address, user="ada", password="first", timeout=PATIENCE)
        users.path.chmod(0o666)
        assert "others can read or write" in hang_up(server, "error not-reloaded what=users")
        with closing(ClientStorage(server.address, user="ada", password="second")) as client:
            assert client.get_size() > 0


def test_many_hangups_under_load(directory, numbers):
    with Serving(directory) as server:
        load = Load(clients(server, numbers), numbers)
        for _ in range(20):
            server.send(signal.SIGHUP)
            load.wait(5)
        server.stop()
        load.join()
    look(directory, load)


def test_a_pack_that_begins_when_the_storage_is_closed(tmp_path, caplog):
    """A client asked for it last; its thread ends in order."""
    caplog.set_level("INFO", "berkeleydb_storage")
    storage = BerkeleyDBStorage(tmp_path)
    metrics = Metrics()
    chores = Chores(storage, metrics, None)
    storage.close()
    chores.pack()
    chores.finish_packing()
    assert "pack-ended" in caplog.text
    assert (metrics.packs, metrics.failed_packs) == (0, 0)
