"""Addresses as text; sockets that are made for them: what listens, what connects, and whose files are removed."""

import contextlib
import errno
import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage.errors import ListenError, OptionError
from berkeleydb_storage.transport import unix
from berkeleydb_storage.transport.addresses import (
    DEFAULT_PORT,
    Address,
    bound_address,
    connect,
    is_loopback,
    listen,
    parse_address,
    peer_uid,
    unlink,
)

ROOT = Path(unix.__file__).parents[2]
PATIENCE = 5.0
SHORT = 0.2
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db.example.org:1", Address("db.example.org", 1)),
        ("db", Address("db", DEFAULT_PORT)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("[::1]:2972", Address("::1", 2972)),
        ("[::1]", Address("::1", DEFAULT_PORT)),
        ("[fe80::1%eth0]:7", Address("fe80::1%eth0", 7)),
        ("tcp://db:7", Address("db", 7)),
        ("tls://db:7", Address("db", 7, tls=True)),
        ("tls://db/", Address("db", DEFAULT_PORT, tls=True)),
        ("tls://[::1]:7", Address("::1", 7, tls=True)),
        ("unix:/run/app.sock", Address(path="/run/app.sock")),
        ("unix:///run/app.sock", Address(path="/run/app.sock")),
        ("unix:db/socket", Address(path="db/socket")),
        ("unix:@name", Address(path="@name")),
        ("@name", Address(path="@name")),
        (("db", 7), Address("db", 7)),
        (("::1", 7), Address("::1", 7)),
        (Address("db", 7), Address("db", 7)),
    ],
)
def test_texts(text, expected):
    address = parse_address(text)
    assert address == expected
    assert parse_address(str(address)) == address
    assert pickle.loads(pickle.dumps(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":2972",
        "db:",
        "db:x",
        "db:65536",
        "db:-1",
        "db:٣",
        "::1",
        "::1:2972",
        "[::1",
        "[db]:7",
        "[]:7",
        "[127.0.0.1]:7",
        "a b:7",
        "db:7/path",
        "/run/app.sock",
        "http://db:7",
        "tls://",
        "tls:db",
        "unix:",
        "unix:@",
        "@",
        "unix://run/app.sock",
        "unix:/run/",
        "unix:/a\0b",
        "a\0b:7",
        ("db",),
        ("db", "7"),
        ("db", True),
        ("", 7),
        (7, "db"),
        ("db", 65536),
        ("a:b", 7),
        None,
        7,
        b"db:7",
    ],
)
def test_what_is_none(text):
    with pytest.raises(OptionError) as caught:
        parse_address(text)
    assert "such as" in str(caught.value)


@pytest.mark.parametrize("text", ["ada:geheim@db:7", "tls://ada:geheim@db:7", "http://ada:geheim@db", "ada:geheim@@"])
def test_a_password_in_an_address_is_not_repeated(text):
    with pytest.raises(OptionError) as caught:
        parse_address(text)
    assert "geheim" not in str(caught.value)


@given(st.text(max_size=30) | st.text("[]:/@tlsunixcp%.0129", max_size=20))
def test_any_text_is_an_address_or_an_option_error(text):
    try:
        address = parse_address(text)
    except OptionError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("unix:/x", True),
        ("@x", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("10.0.0.1", False),
        ("[::ffff:10.0.0.1]", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback(text, expected):
    assert is_loopback(parse_address(text)) is expected


def talk(server, client):
    """Accept, and see that the two are connected."""
    server.settimeout(PATIENCE)
    accepted, _ = server.accept()
    with accepted:
        client.sendall(b"ping")
        assert accepted.recv(4) == b"ping"
        return peer_uid(accepted)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_tcp(text):
    address = parse_address(text)
    with listen(address) as server:
        assert server.gettimeout() == 0
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        where = bound_address(address, server)
        assert where.port > 0
        with connect(where, timeout=PATIENCE) as client:
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.gettimeout() == PATIENCE
            assert talk(server, client) is None
        assert unlink(server) is False


def test_a_port_in_use_is_named():
    with listen(parse_address("127.0.0.1:0")) as server:
        address = bound_address(parse_address("127.0.0.1:0"), server)
        with pytest.raises(ListenError, match=f"127.0.0.1:{address.port} is in use"):
            listen(address)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:7"):
        listen(Address("192.0.2.1", 7))


def test_nobody_listens():
    with listen(Address("127.0.0.1", 0)) as server:
        address = bound_address(Address("127.0.0.1", 0), server)
    with pytest.raises(ConnectionRefusedError, match=str(address)):
        connect(address, timeout=PATIENCE)


def test_a_name_that_does_not_exist():
    with pytest.raises(socket.gaierror, match=r"no-such-host\.invalid"):
        connect(parse_address("no-such-host.invalid"), timeout=PATIENCE)


@LINUX
def test_a_server_that_does_not_accept_is_given_up_in_time():
    """The queue of a Unix socket is full at one more than its length; then the system answers at once."""
    address = Address(path=f"@bdb-full-{os.getpid()}")
    with listen(address, backlog=0) as server, contextlib.ExitStack() as stack:
        started = time.monotonic()
        stack.enter_context(connect(address, timeout=SHORT))
        with pytest.raises(TimeoutError, match="unix:@bdb-full"):
            connect(address, timeout=SHORT)
        assert SHORT <= time.monotonic() - started < PATIENCE
        server.settimeout(PATIENCE)
        waiting = threading.Thread(target=lambda: connect(address, timeout=PATIENCE).close())
        waiting.start()
        while waiting.is_alive():
            with contextlib.suppress(TimeoutError, BlockingIOError):
                server.settimeout(SHORT)
                server.accept()[0].close()
        waiting.join()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def directory_of(place, length):
    """Return a new directory whose path has at least `length` characters."""
    path = place
    while len(str(path)) < length:
        path = path / ("d" * 50)
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("length", [0, 85, 95, 100, 106, 107, 108, 150, pytest.param(3000, marks=LINUX)])
def test_unix(place, length):
    """Around the limit of 108 bytes, for the socket's own name and for the one that it has at first."""
    directory = place if length < 150 else directory_of(place, length)
    path = directory / ("s" * max(1, min(length, 150) - len(str(directory)) - 1))
    address = Address(path=str(path))
    with listen(address) as server:
        assert server.gettimeout() == 0
        with connect(address, timeout=PATIENCE) as client:
            assert talk(server, client) == os.getuid()
        assert os.listdir(directory) == [path.name]
        assert unlink(server) is True
        assert unlink(server) is False
    assert os.listdir(directory) == []


@LINUX
def test_a_long_path_leaves_no_descriptor(place):
    directory = directory_of(place, 200)
    before = len(os.listdir("/proc/self/fd"))
    address = Address(path=str(directory / "socket"))
    for _ in range(3):
        with listen(address), connect(address, timeout=PATIENCE):
            pass
        with pytest.raises(ConnectionRefusedError):
            connect(address, timeout=PATIENCE)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_that_is_too_long(place):
    address = Address(path=str(place / ("s" * 200)))
    with pytest.raises(OptionError, match="too long for a socket"):
        connect(address, timeout=PATIENCE)


def test_relative_paths(place):
    address = parse_address("unix:socket")
    with listen(address) as server, connect(address, timeout=PATIENCE) as client:
        talk(server, client)
        assert stat.S_ISSOCK(os.lstat(place / "socket").st_mode)
        assert unlink(server)


@LINUX
def test_abstract_names():
    address = parse_address(f"@bdb-test-{os.getpid()}")
    with listen(address) as server:
        with connect(address, timeout=PATIENCE) as client:
            assert talk(server, client) == os.getuid()
        with pytest.raises(ListenError, match="is in use"):
            listen(address)
        assert unlink(server) is False
    with pytest.raises(ConnectionRefusedError, match="bdb-test"):
        connect(address, timeout=PATIENCE)
    with pytest.raises(OptionError, match="at most"):
        connect(Address(path="@" + "n" * 107), timeout=PATIENCE)


def test_a_stale_socket_is_replaced(place):
    address = Address(path="socket")
    listen(address).close()
    before = os.lstat("socket")
    with listen(address) as server, connect(address, timeout=PATIENCE) as client:
        talk(server, client)
        assert os.lstat("socket").st_mtime_ns > before.st_mtime_ns
    assert os.listdir() == ["socket"]


def test_a_live_socket_is_refused(place):
    address = Address(path="socket")
    with listen(address) as server:
        with pytest.raises(ListenError, match="socket is in use: another server"):
            listen(address)
        server.settimeout(PATIENCE)
        server.accept()[0].close()  # the question whether anybody listens
        with connect(address, timeout=PATIENCE) as client:
            talk(server, client)
    assert os.listdir() == ["socket"]


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere"), os.mkfifo])
def test_what_is_no_socket_is_never_removed(place, make):
    make(Path("socket"))
    before = os.lstat("socket")
    with pytest.raises(ListenError, match="socket is no socket: remove it"):
        listen(Address(path="socket"))
    assert os.lstat("socket") == before
    assert os.listdir() == ["socket"]


def test_a_socket_of_datagrams_is_not_removed(place):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind("socket")
        with pytest.raises(ListenError):
            listen(Address(path="socket"))
    assert os.listdir() == ["socket"]


def test_a_directory_that_does_not_exist(place):
    with pytest.raises(ListenError, match="unix:nowhere/socket: No such file"):
        listen(Address(path="nowhere/socket"))
    with pytest.raises(FileNotFoundError, match="unix:nowhere/socket"):
        connect(Address(path="nowhere/socket"), timeout=PATIENCE)


@pytest.mark.parametrize("umask", [0o077, 0o117, 0o000])
def test_permissions(place, umask):
    with listen(Address(path="socket"), umask=umask, owner=os.getuid(), group=os.getgid()):
        assert stat.S_IMODE(os.lstat("socket").st_mode) == 0o777 & ~umask


def test_owners_by_name(place):
    import grp
    import pwd

    owner, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    with listen(Address(path="socket"), owner=owner, group=group):
        assert os.lstat("socket").st_uid == os.getuid()
    for options in ({"owner": "no such"}, {"group": "no such"}):
        with pytest.raises(OptionError, match="there is no such"):
            listen(Address(path="other"), **options)
    assert os.listdir() == ["socket"]


def test_the_process_keeps_its_umask_where_none_is_given(place):
    before = os.umask(0o027)
    try:
        with listen(Address(path="socket")):
            assert stat.S_IMODE(os.lstat("socket").st_mode) == 0o750
    finally:
        assert os.umask(before) == 0o027


def test_a_socket_gets_its_name_when_it_is_ready(place, monkeypatch):
    """It has its permissions and is listened on: nobody can connect before, or take it for a stale one."""
    published = []
    publish = unix._publish

    def watched(temporary, name):
        assert not Path(name).exists()
        assert stat.S_IMODE(os.lstat(temporary).st_mode) == 0o700
        connect(Address(path=temporary), timeout=PATIENCE).close()
        publish(temporary, name)
        published.append(name)

    monkeypatch.setattr(unix, "_publish", watched)
    with listen(Address(path="socket"), umask=0o077):
        assert published == ["socket"]


def test_the_file_of_another_server_is_left_alone(place):
    address = Address(path="socket")
    with listen(address) as server:
        Path("socket").rename("moved")
        with listen(address) as other:
            assert unlink(server) is False
            assert unlink(other) is True
    assert os.listdir() == ["moved"]


def test_a_file_that_is_gone_already(place):
    with listen(Address(path="socket")) as server:
        Path("socket").unlink()
        assert unlink(server) is False


def test_a_closed_socket_can_still_be_unlinked(place):
    server = listen(Address(path="socket"))
    server.close()
    assert unlink(server)
    assert os.listdir() == []


def test_a_forked_child_does_not_remove_it(place):
    with listen(Address(path="socket")) as server:
        child = os.fork()
        if child == 0:
            os._exit(3 if unlink(server) else 0)
        assert os.waitpid(child, 0)[1] == 0
        assert Path("socket").exists()
        assert unlink(server)


RIVAL = """
import sys
from berkeleydb_storage.errors import ListenError
from berkeleydb_storage.transport.addresses import Address, listen
print("ready", flush=True)
for line in sys.stdin:
    try:
        server = listen(Address(path="socket"))
        print("listens", flush=True)
        sys.stdin.readline()
        server.close()
        print("closed", flush=True)
    except ListenError:
        print("refused", flush=True)
"""
ROUNDS = 40


def test_of_servers_that_start_at_once_over_a_stale_socket_one_wins(place):
    """And it is the one that clients reach."""
    listen(Address(path="socket")).close()
    command = [sys.executable, "-W", "error", "-c", RIVAL]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": {"PYTHONPATH": str(ROOT)}}
    with contextlib.ExitStack() as stack:
        rivals = [stack.enter_context(subprocess.Popen(command, **options)) for _ in range(3)]
        for rival in rivals:
            assert rival.stdout.readline() == "ready\n"
        for _ in range(ROUNDS):
            for rival in rivals:
                rival.stdin.write("go\n")
                rival.stdin.flush()
            answers = [rival.stdout.readline().strip() for rival in rivals]
            assert answers.count("listens") == 1, answers
            connect(Address(path="socket"), timeout=PATIENCE).close()
            winner = rivals[answers.index("listens")]
            winner.stdin.write("end\n")
            winner.stdin.flush()
            assert winner.stdout.readline() == "closed\n"
        for rival in rivals:
            rival.stdin.close()
    assert os.listdir() == ["socket"]


@LINUX
def test_under_gevent(place):
    """Two greenlets: one connects, over TCP and a long Unix path, and the other accepts meanwhile."""
    directory = directory_of(place, 200)
    script = f"""
from gevent import monkey; monkey.patch_all()
import gevent, socket
from berkeleydb_storage.transport.addresses import Address, bound_address, connect, listen
for address in (Address("127.0.0.1", 0), Address(path={str(directory / "s")!r})):
    server = listen(address)
    server.settimeout({PATIENCE})
    assert type(server).__module__.startswith("gevent"), type(server)
    def serve():
        sock, _ = server.accept()
        sock.sendall(sock.recv(4).upper())
        sock.close()
    job = gevent.spawn(serve)
    with connect(bound_address(address, server), timeout={PATIENCE}) as client:
        client.sendall(b"ping")
        assert client.recv(4) == b"PING"
    job.get()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "done\n", done.stderr


def test_errors_keep_their_number():
    with pytest.raises(OSError, match="nothing") as caught:
        connect(Address(path="/nothing/at/all"), timeout=PATIENCE)
    assert caught.value.errno == errno.ENOENT
