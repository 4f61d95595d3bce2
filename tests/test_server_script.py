"""server.py as an operator runs it: what it says, what it serves, how it ends."""

import contextlib
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import durusfiles
import pytest
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ConflictError
from durus.storage_server import DEFAULT_GCBYTES, DEFAULT_HOST, DEFAULT_PORT

import berkeleydb_storage
from berkeleydb_storage import BerkeleyDBStorage, GarbageManual
from berkeleydb_storage.inspection import outside

SCRIPT = Path(berkeleydb_storage.__file__).parents[1] / "server.py"
PATIENCE = 60
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="server.py is in the source tree only")


class Running:
    """A server in a process of its own, on a Unix socket unless told otherwise; ready when the constructor returns."""

    def __init__(self, *arguments, cwd=None, launcher=(), pass_fds=()):
        self._sockets = tempfile.TemporaryDirectory(prefix="server-")
        self.address = str(Path(self._sockets.name, "socket"))
        command = [*launcher, sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)]
        if "--port" not in arguments:
            command.append(f"--address={self.address}")
        environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds
        )
        self.said = ""
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self):
        while "Ready on" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def connect(self):
        return contextlib.closing(ClosingClient(address=self.address))

    def end(self, number=signal.SIGTERM):
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        self.said += self.process.stderr.read()
        code = self.process.wait(PATIENCE)
        self.process.stderr.close()
        return code

    def close(self):
        if self.process.returncode is None:
            self.process.kill()
            self.wait()
        self._sockets.cleanup()


class ClosingClient(ClientStorage):
    def close(self):
        self.s.close()


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(contextlib.closing(Running(*arguments, **options)))


@pytest.fixture
def db(open_storage, directory):
    storage = open_storage(garbage_collection=GarbageManual())
    durusfiles.run_program(storage)
    storage.close()
    return directory


def fails(*arguments, cwd=None):
    command = [sys.executable, SCRIPT, *arguments]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2, done
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_says_what_and_ends_with_the_storage_closed(number, serve, db):
    with BerkeleyDBStorage(db, read_only=True) as storage:
        objects = storage.get_size()
    server = serve(db)
    assert f"serving {db}, {objects} objects\n" in server.said
    assert f"Ready on {server.address}" in server.said
    with server.connect() as one, server.connect() as other:
        mine, yours = Connection(one), Connection(other)
        mine.get_root()["tree"][0] = "again"
        mine.commit()
        yours.abort()
        assert yours.get_root()["tree"][0] == "again"
        assert server.end(number) == 0
    assert server.said.endswith("ended\n")
    assert "Traceback" not in server.said
    assert not Path(server.address).exists()
    assert outside(db).state == "closed"
    with BerkeleyDBStorage(db) as storage:
        assert Connection(storage).get_root()["tree"][0] == "again"


def test_a_signal_before_the_first_client(serve, db):
    assert serve(db).end() == 0
    assert outside(db).state == "closed"


def test_two_signals(serve, db):
    server = serve(db)
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert outside(db).state == "closed"


def test_durus_stops_it(serve, db):
    server = serve(db)
    with server.connect() as client:
        client.s.send(b"Q")
        assert server.wait() == 0
    assert outside(db).state == "closed"


def test_without_a_directory(serve, tmp_path):
    server = serve(cwd=tmp_path)
    assert "serving db, 0 objects" in server.said
    with server.connect() as client:
        assert dict(Connection(client).get_root()) == {}
    assert server.end() == 0
    assert outside(tmp_path / "db").state == "closed"


def test_the_defaults_are_those_of_durus():
    options = runpy.run_path(str(SCRIPT))["parse"]([])
    assert (options.host, options.port, options.gcbytes) == (DEFAULT_HOST, DEFAULT_PORT, DEFAULT_GCBYTES)
    assert options.directory is None
    assert (options.read_only, options.no_durable, options.address) == (False, False, None)


def test_host_and_port(serve, db):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = serve(db, "--host", "127.0.0.1", "--port", str(port))
    assert f"Ready on 127.0.0.1:{port}" in server.said
    with contextlib.closing(ClosingClient(host="127.0.0.1", port=port)) as client:
        assert Connection(client).get_root()["tree"]
    assert server.end() == 0


def test_a_port_that_is_taken(db):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = fails(db, "--port", str(port))
    assert f"Address already in use: '127.0.0.1:{port}'" in said
    assert "Traceback" not in said
    assert outside(db).state == "closed"


def test_owner_group_and_umask_of_the_socket(serve, db):
    server = serve(db, "--umask", "077", "--owner", str(os.getuid()), "--group", str(os.getgid()))
    status = Path(server.address).stat()
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert server.end() == 0


def test_a_socket_of_systemd(serve, db):
    """It is the file 3, and the process is told so by its environment."""
    with tempfile.TemporaryDirectory() as path, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}/socket")
        listening.listen()
        launcher = [sys.executable, "-c", AS_SYSTEMD, str(listening.fileno())]
        server = serve(db, launcher=launcher, pass_fds=[listening.fileno()])
        assert f"Ready on {path}/socket" in server.said
        with contextlib.closing(ClosingClient(address=f"{path}/socket")) as client:
            assert Connection(client).get_root()["tree"]
        assert server.end() == 0
    assert outside(db).state == "closed"


def test_read_only(serve, db):
    before = {path.name: path.read_bytes() for path in Path(db).iterdir()}
    server = serve(db, "--read-only")
    with server.connect() as client:
        connection = Connection(client)
        assert len(list(connection.get_root()["tree"])) == durusfiles.ITEMS / 2
        connection.get_root()["more"] = 1
        with pytest.raises(ConflictError):
            connection.commit()
    assert server.end() == 0
    assert {path.name: path.read_bytes() for path in Path(db).iterdir()} == before


def test_not_durable_with_a_small_cache(serve, db):
    server = serve(db, "--no-durable", "--cachesize", "2M", "--gcbytes", "100", "-v")
    with server.connect() as client:
        connection = Connection(client)
        connection.get_root()["tree"] = None
        connection.commit()
    assert server.end() == 0
    with BerkeleyDBStorage(db, read_only=True) as storage:
        assert Connection(storage).get_root()["tree"] is None


def test_a_directory_that_is_not_there(tmp_path):
    said = fails(tmp_path / "nothing")
    assert said.startswith(f"server.py: {tmp_path}/nothing does not exist")
    assert said.count("\n") == 1


def test_a_directory_that_is_served_already(serve, db):
    server = serve(db)
    assert f"is in use by process {server.process.pid}" in fails(db)
    assert server.end() == 0
