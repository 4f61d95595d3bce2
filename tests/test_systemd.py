"""What systemd hands over, to real processes that were started as it starts them; and what it is told."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from berkeleydb_storage.transport import systemd
from berkeleydb_storage.transport.systemd import inherited_sockets, notify

ROOT = Path(systemd.__file__).parents[2]
PATIENCE = 30

SERVICE = """
import fcntl, os, socket
from berkeleydb_storage.errors import ListenError
from berkeleydb_storage.transport.systemd import inherited_sockets
try:
    found = inherited_sockets()
except ListenError as error:
    print("refused:", error)
    raise SystemExit
left = [name for name in os.environ if name.startswith("LISTEN_")]
assert not left, left
assert inherited_sockets() == []
for sock in found:
    assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert sock.gettimeout() == 0
    print(sock.fileno(), sock.family.name, sock.getsockname())
"""


def serve(*sockets, variables="LISTEN_PID=$$ LISTEN_FDS={count}"):
    """Start a service with sockets from descriptor 3 on, as systemd does: the process id is the service's."""
    inherited = [os.dup(sock.fileno()) for sock in sockets]
    moved = [os.fdopen(os.open(os.devnull, os.O_RDONLY)) for _ in range(10)]
    high = [os.dup(descriptor) for descriptor in inherited]
    redirections = " ".join(f"{3 + number}<&{descriptor}" for number, descriptor in enumerate(high))
    settings = variables.format(count=len(sockets))
    command = f'{settings} exec "$0" -W error -c "$1" {redirections}'
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", command, sys.executable, SERVICE],
            pass_fds=high,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        for descriptor in inherited + high:
            os.close(descriptor)
        for file in moved:
            file.close()
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def tcp():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_all_sockets_are_inherited(tcp, tmp_path):
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("::1", 0), family=socket.AF_INET6) as tcp6:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        assert serve(tcp, unix, tcp6) == [
            f"3 AF_INET {tcp.getsockname()}",
            f"4 AF_UNIX {tmp_path}/socket",
            f"5 AF_INET6 {tcp6.getsockname()}",
        ]


@pytest.mark.parametrize(
    "variables",
    ["", "LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=x LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=0"],
)
def test_none_are_inherited(tcp, variables):
    assert serve(tcp, variables=variables) == []


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "99999999999", "٣"])
def test_a_number_that_is_none(tcp, count):
    [line] = serve(tcp, variables=f"LISTEN_PID=$$ LISTEN_FDS={count}")
    assert line.startswith("refused: the variable LISTEN_FDS=")


def test_a_descriptor_that_is_not_there(tcp):
    lines = serve(tcp, variables="LISTEN_PID=$$ LISTEN_FDS=1000")
    assert lines[0].startswith("refused: descriptor ")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_does_not_listen_is_refused(kind):
    with socket.socket(socket.AF_INET, kind) as sock:
        assert serve(sock) == ["refused: descriptor 3 of LISTEN_FDS does not listen: use ListenStream=, and Accept=no"]


def test_this_process_was_handed_none(monkeypatch):
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert inherited_sockets() == []


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """What systemd listens on."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@bdb-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        sock.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_systemd_is_told(manager):
    assert notify("READY=1") is True
    assert manager.recv(4096) == b"READY=1"
    assert notify("STOPPING=1\nSTATUS=closing") is True
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=closing"


def test_reloading_has_its_time(manager):
    assert notify("RELOADING=1") is True
    lines = manager.recv(4096).decode().split("\n")
    assert lines[0] == "RELOADING=1"
    assert lines[1].startswith("MONOTONIC_USEC=")
    assert int(lines[1].partition("=")[2]) > 0


def test_nobody_wants_to_know(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False


@pytest.mark.parametrize("name", ["/nowhere/notify", "@bdb-nobody-listens-here", "/" + "x" * 200])
def test_nobody_listens(name, monkeypatch, caplog):
    """A service does not end for that."""
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert notify("READY=1") is False
    assert "systemd could not be told 'READY=1'" in caplog.text
