"""`durus-bdb serve` as an operator runs it: what its options do, what it logs, what it refuses."""

import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from concurrency import PATIENCE
from conftest import check_directory
from durus.client_storage import ClientStorage as DurusClient
from durus.connection import Connection
from durus.error import DurusError
from serve_process import COMMAND, ENVIRONMENT, LINE, WORD, Serving, run

from berkeleydb_storage import BerkeleyDBStorage, list_backups
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.errors import AccessDenied, AuthenticationError, BerkeleyDBStorageError, CommitRefused

SHORT = 5
"""Seconds that a client tries to get in where it will not."""


@pytest.fixture
def served(directory):
    """Serve the directory by the options given; at the end it is ended in order, and its directory checked."""
    started = []

    def serve(*options, **others):
        started.append(Serving(directory, *options, **others))
        return started[-1]

    yield serve
    for each in started:
        each.__exit__(None, None, None)
    if started:
        check_directory(directory)


@pytest.fixture
def stored(directory):
    """The directory, with a storage that has a counter."""
    with BerkeleyDBStorage(directory) as storage:
        connection = Connection(storage)
        connection.get_root()["n"] = 1
        connection.commit()
    return directory


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate for localhost: the files of the authority, of the certificate, of the key, and the authority."""
    path, made = tmp_path_factory.mktemp("tls"), trustme.CA()
    made.cert_pem.write_to_path(path / "ca.pem")
    certificate = made.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(path / "cert.pem", append=True)
    return path, made


def increment(storage):
    with closing(storage):
        connection = Connection(storage)
        connection.get_root()["n"] = connection.get_root().get("n", 0) + 1
        connection.commit()
        return connection.get_root()["n"]


def test_old_and_new_clients(served):
    server = served()
    assert increment(DurusClient(port=server.port, host="127.0.0.1")) == 1
    assert increment(ClientStorage(server.address)) == 2
    server.stop()
    assert re.search(r"info listening addresses=127\.0\.0\.1:\d+ pid=\d+ version=", server.output)
    assert re.search(r'info ending reason="signal SIGTERM"\n.*info closed storage=', server.output, re.DOTALL)


def test_without_options_it_listens_on_the_port_of_durus(directory):
    """If that is free, for us to find out; if not, the message says so."""
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", 2972))
            holder.listen()
        except OSError:
            pass  # whoever has it
        _, err = run("serve", directory, code=2)
        assert err.endswith("durus-bdb: 127.0.0.1:2972 is in use: stop what listens there, or choose another address\n")
    check_directory(directory)


def test_statistics_at_the_end(served):
    server = served("--json")
    increment(ClientStorage(server.address))
    values = json.loads(server.stop())
    assert values["server"]["commits"] == 2
    assert values["storage"]["objects"] == 1


def test_several_addresses(served, tmp_path):
    server = served("--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/s", "--listen", "[::1]:0")
    assert [increment(ClientStorage(address)) for address in server.addresses] == [1, 2, 3]


def test_the_file_of_a_unix_socket(served, tmp_path):
    path = tmp_path / "s"
    mine = str(os.getuid()), str(os.getgid())
    server = served("--listen", f"unix:{path}", "--owner", mine[0], "--group", mine[1], "--umask", "007")
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o770, os.getuid(), os.getgid())
    server.stop()
    assert not path.exists()


def test_tls_passwords_and_rights(served, authority, tmp_path):
    path, _ = authority
    users = PasswordFile(tmp_path / "users")
    users.set("ada", "9c0d", Rights.parse("write"))
    users.set("bob", "4b1e", Rights.parse("read"))
    server = served("--tls-cert", path / "cert.pem", "--tls-key", path / "key.pem", "--password-file", users.path)
    address = f"tls://localhost:{server.port}"
    assert increment(ClientStorage(address, ca=path / "ca.pem", user="ada", password="9c0d")) == 1
    with pytest.raises(AccessDenied):
        increment(ClientStorage(address, ca=path / "ca.pem", user="bob", password="4b1e"))
    with pytest.raises(AuthenticationError):
        ClientStorage(address, ca=path / "ca.pem", user="ada", password="77aa", timeout=SHORT)
    with pytest.raises(BerkeleyDBStorageError):
        ClientStorage(address, timeout=SHORT)
    server.wait_for("password-refused peer=127.0.0.1:")
    server.stop()
    assert re.search(r"info logged-in peer=127\.0\.0\.1:\d+ user=ada\n", server.output)
    assert """reason="a wrong password of user 'ada'\"""" in server.output
    assert not re.search("4b1e|9c0d|77aa", server.output)


def test_certificates_of_clients(served, authority, tmp_path):
    path, ca = authority
    certificate = ca.issue_cert("client")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    server = served(
        *("--tls-cert", path / "cert.pem", "--tls-key", path / "key.pem", "--tls-client-ca", path / "ca.pem")
    )
    address = f"tls://localhost:{server.port}"
    assert increment(ClientStorage(address, ca=path / "ca.pem", certificate=tmp_path / "client.pem")) == 1
    with pytest.raises(BerkeleyDBStorageError):
        ClientStorage(address, ca=path / "ca.pem", timeout=0.5)


def test_networks(served):
    server = served("--allow", "10.0.0.0/8", "--allow", "::1", "--listen", "127.0.0.1:0", "--listen", "[::1]:0")
    assert increment(ClientStorage(server.addresses[1])) == 1
    with pytest.raises(BerkeleyDBStorageError):
        ClientStorage(server.addresses[0], timeout=0.5)
    assert re.search(
        r'warning refused peer=127\.0\.0\.1:\d+ reason="its address is not admitted"', server.wait_for(" refused peer=")
    )


@pytest.mark.parametrize("option", [("--rights", "read"), ("--read-only",)])
def test_reading_only(stored, option):
    with Serving(stored, *option) as server, closing(ClientStorage(server.address)) as client:
        connection = Connection(client)
        assert connection.get_root()["n"] == 1
        connection.get_root()["n"] = 2
        with pytest.raises((AccessDenied, CommitRefused)):
            connection.commit()
        connection.abort()
        assert connection.get_root()["n"] == 1
    check_directory(stored)


def test_a_limit_on_connections(served):
    server = served("--max-connections", "2", "--max-connections-per-address", "1")
    with closing(ClientStorage(server.address)):
        with pytest.raises(BerkeleyDBStorageError):
            ClientStorage(server.address, timeout=0.5)
        server.wait_for("there are 1 connections from its address")


def test_limits_on_time_and_size(served):
    server = served(
        "--idle-timeout", "0.1", "--handshake-timeout", "0.2", "--frame-size", "1K", "--stall-timeout", "60"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        assert silent.recv(1) == b""
    server.wait_for('reason="it has not come in within 0.2 s"')
    client = DurusClient(port=server.port, host="127.0.0.1")
    with closing(client.s):
        assert client.s.recv(1) == b""
    server.wait_for('reason="idle for 0.1 s"')
    client = DurusClient(port=server.port, host="127.0.0.1")
    with closing(client.s):
        connection = Connection(client)
        connection.get_root()["x"] = os.urandom(2000)
        with pytest.raises((OSError, DurusError)):
            connection.commit()
    server.wait_for("at most 1024 are taken")


def test_backups_by_themselves(served, tmp_path):
    server = served("--backup-to", tmp_path, "--backup-every", "0.2", "--backup-keep", "2")
    increment(ClientStorage(server.address))
    server.wait_for("backup of ")
    for _ in range(3):
        lines = len(server.lines)
        increment(ClientStorage(server.address))
        server.wait_for("backup of ", after=lines)
    server.stop()
    [first, *kept] = list_backups(tmp_path)
    assert first.kind == "full"
    assert 1 <= len(kept) <= 3  # one more where the end came before the removing


def limits_of(server):
    text = Path(f"/proc/{server.process.pid}/limits").read_text()
    return [int(number) for number in re.search(r"Max open files +(\d+) +(\d+)", text).groups()]


@pytest.mark.parametrize(("hard", "files", "connections"), [(4096, 1200, 1000), (300, 300, 100)])
def test_the_limit_on_open_files(served, hard, files, connections):
    """It is raised, as far as that is allowed; then there are fewer connections."""
    before = ("/bin/sh", "-c", f'ulimit -Sn 64; ulimit -Hn {hard}; exec "$0" "$@"')
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this process may not have so many itself")
    server = served("--max-connections", "1000", before=before)
    assert limits_of(server) == [files, hard]
    assert (f"limited connections={connections} wanted=1000" in server.output) is (connections < 1000)
    assert increment(ClientStorage(server.address)) == 1


# --- what it logs


def log_of(server):
    """Return (level, words) of each line, which are all well-formed."""
    found = []
    for line in server.lines:
        match = LINE.fullmatch(line)
        assert match, line
        assert re.fullmatch(rf"{WORD.pattern}( {WORD.pattern})*", match["text"]), line
        found.append((match["level"], match["text"]))
    return found


@pytest.fixture
def manager(tmp_path):
    """What systemd listens on for news of a service: (the socket, the environment of the service)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        yield sock, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def offend(address):
    """Connect as a client that breaks the protocol, with what is to look like a line of the log."""
    with socket.create_connection(("127.0.0.1", address)) if isinstance(address, int) else connected(address) as sock:
        sock.sendall(b"\n2026-01-01T00:00:00.000Z info logged-in user=root\n")
        assert sock.recv(100) == b""


def connected(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(path)
    return sock


@pytest.mark.parametrize(
    ("option", "levels"),
    [((), {"info", "warning"}), (("--quiet",), {"warning"}), (("--verbose",), {"debug", "info", "warning"})],
)
def test_levels(served, option, levels, tmp_path, manager):
    sock, environment = manager
    server = served("--listen", f"unix:{tmp_path}/s", *option, environment=environment, ready=None)
    assert sock.recv(100) == b"READY=1"
    increment(ClientStorage(f"unix:{tmp_path}/s"))
    offend(f"{tmp_path}/s")
    server.stop()
    assert {level for level, _ in log_of(server)} == levels
    assert [text for level, text in log_of(server) if level == "warning"] == [
        f'violated peer="unix:uid={os.getuid()}" reason="there is no request b\'\\\\n\'"'
    ]


def test_no_line_is_forged_and_strangers_do_not_fill_the_disk(served):
    server = served()
    for _ in range(50):
        offend(server.port)
    server.stop()
    violated = [text for _, text in log_of(server) if text.startswith("violated ")]
    assert 20 <= len(violated) < 30
    assert not [text for _, text in log_of(server) if text.startswith("logged-in")]


def test_a_user_with_a_strange_name(served, tmp_path):
    name = 'a"b c=\u2028\u202ed\\'
    users = PasswordFile(tmp_path / "users")
    users.set("ada", "secret")
    server = served("--password-file", users.path)
    with pytest.raises(AuthenticationError):
        ClientStorage(server.address, user=name, password="x\ny", timeout=SHORT)
    server.stop()
    assert [text for _, text in log_of(server) if "an unknown user" in text]


def test_what_others_log_is_an_event_too(served, directory):
    """A recovery, for instance."""
    with Serving(directory) as killed:
        increment(ClientStorage(killed.address))
        killed.kill()
    server = served(ready="listening ")
    server.stop()
    notes = [text for _, text in log_of(server) if text.startswith("note ")]
    assert any("was not closed: recovering" in text for text in notes)


def test_the_journal_has_times_of_its_own(directory, tmp_path):
    """systemd tells device and inode of the standard error that it has made."""
    script = 'exec env JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) "$0" "$@"'
    with Serving(directory, before=("/bin/sh", "-c", script)) as server:
        offend(server.port)
        server.stop()
        assert {line[:3] for line in server.lines} == {"<6>", "<4>"}
        assert any(line.startswith("<6>listening addresses=") for line in server.lines)


# --- systemd


def test_inherited_sockets(served, tmp_path):
    """In place of addresses; the file of a Unix socket stays: it is systemd's."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        script = f'exec 3<&{tcp.fileno()} 4<&{unix.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=2; exec "$0" "$@"'
        options = {"before": ("/bin/bash", "-c", script), "pass_fds": (tcp.fileno(), unix.fileno()), "listen": False}
        server = served(**options)
        assert server.addresses == [f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path}/s"]
        assert [increment(ClientStorage(address)) for address in server.addresses] == [1, 2]
        server.stop()
        with socket.create_connection(tcp.getsockname()) as waiting:  # systemd's socket still takes it
            again = served(**options)
            waiting.sendall(b"L" + bytes(8))
            assert waiting.recv(1) == b"O"
            assert increment(ClientStorage(f"unix:{tmp_path}/s")) == 3
            again.stop()
        assert "option=--listen" not in server.output


def test_inherited_sockets_and_addresses(served):
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        script = f'exec 3<&{tcp.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@"'
        server = served(before=("/bin/bash", "-c", script), pass_fds=(tcp.fileno(),))
        assert server.addresses == [f"127.0.0.1:{tcp.getsockname()[1]}"]
        assert "ignored option=--listen" in server.output


def test_systemd_is_told(served, manager):
    sock, environment = manager
    server = served(environment=environment)
    assert sock.recv(100) == b"READY=1"
    server.send(signal.SIGHUP)
    assert sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert sock.recv(100) == b"READY=1"
    server.stop()
    assert sock.recv(100) == b"STOPPING=1"


# --- what it refuses


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tls-key", "key.pem"], "--tls-key is of no use without --tls-cert"),
        (["--tls-client-ca", "ca.pem"], "--tls-client-ca is of no use without --tls-cert"),
        (["--tls-cert", "nowhere.pem"], "nowhere.pem: No such file or directory"),
        (["--password-file", "nowhere"], "nowhere: No such file or directory"),
        (["--password-file", "users", "--rights", "read"], "--rights is for clients without a user"),
        (["--listen", "0.0.0.0:0", "--password-file", "users"], "passwords are asked for at 0.0.0.0:0 without TLS"),
        (["--listen", "tls://127.0.0.1:0"], "takes certificates="),
        (["--listen", "127.0.0.1:x"], "'127.0.0.1:x' is no address"),
        (["--listen", "unix:/nowhere/s"], "unix:/nowhere/s: No such file or directory"),
        (["--listen", "unix:s", "--owner", "nobody-at-all"], "owner='nobody-at-all': there is no such user"),
        (["--allow", "10.0.0.1/8"], "'10.0.0.1/8' is no network"),
        (["--idle-timeout", "0"], "the limit idle is a positive number"),
        (["--idle-timeout", "nan"], "the limit idle is a positive number"),
        (["--max-connections", "-1"], "the limit connections is a positive number"),
        (["--frame-size", "4g"], "the limit frame is less than 4 GiB"),
        (["--backup-every", "1"], "--backup-every takes a directory, --backup-to"),
        (["--backup-to", ".", "--backup-every", "0"], "seconds is a positive number"),
        (["--backup-to", ".", "--backup-keep", "3"], "--backup-keep is for backups made by --backup-every"),
        (["--metrics", "tls://127.0.0.1:0"], "there is no TLS for metrics"),
        (["--metrics", "127.0.0.1:99999"], "a port is a number up to 65535"),
        (["--cachesize", "1"], "cachesize is a number of bytes, at least 1048576"),
    ],
)
def test_refusals(directory, tmp_path, monkeypatch, options, complaint):
    """In one line, with exit code 2, and without a trace of it in the directory."""
    monkeypatch.chdir(tmp_path)
    PasswordFile("users").set("ada", "secret")
    options = options if "--listen" in options else [*options, "--listen", "127.0.0.1:0"]
    out, err = run("serve", directory, "--quiet", *options, code=2)
    assert out == ""
    assert re.fullmatch(rf"durus-bdb: .*{re.escape(complaint)}.*\n", err), err
    if (directory / "storage.json").exists():
        check_directory(directory)


def test_a_storage_that_is_in_use(served, directory):
    server = served()
    _, err = run("serve", directory, "--listen", "127.0.0.1:0", code=2)
    assert (
        err == f"durus-bdb: {directory} is in use by process {server.process.pid}\n" or str(server.process.pid) in err
    )
    assert len(err.splitlines()) == 1


def test_an_address_that_is_in_use(served, tmp_path):
    server = served("--metrics", "127.0.0.1:0")
    (tmp_path / "other").mkdir()
    for options in (["--listen", server.address], ["--metrics", server.metrics]):
        options = ["--listen", f"unix:{tmp_path}/s", *options]
        _, err = run("serve", tmp_path / "other", "--quiet", *options, code=2)
        assert not (tmp_path / "s").exists()
        assert re.fullmatch(r"durus-bdb: 127\.0\.0\.1:\d+ is in use: stop what listens there, .*\n", err)
    check_directory(tmp_path / "other")


@pytest.mark.parametrize("mask", ["8", "rwx", "0o1777", "-1", ""])
def test_masks_that_are_none(directory, mask):
    _, err = run("serve", directory, f"--umask={mask}", code=2)
    assert "is not a mask of permissions in octal digits, such as 007" in err


def test_no_directory(tmp_path):
    _, err = run("serve", tmp_path / "nowhere", code=2)
    assert "nowhere" in err
    assert not (tmp_path / "nowhere").exists()


def test_without_the_extra_for_metrics(directory):
    """The server does not need it; asked for, it is named."""
    script = (
        "import sys; sys.modules['prometheus_client'] = None; from berkeleydb_storage.cli import main; sys.exit(main())"
    )
    blocked = [*COMMAND[:3], "-c", script, "serve", str(directory), "--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*blocked, "--metrics", "127.0.0.1:0"], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 2
    assert "metrics need prometheus-client: pip install 'durus-berkeleydbstorage[metrics]'" in done.stderr
