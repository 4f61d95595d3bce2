"""`durus-bdb server`: what an operator asks a server for, with a password that nobody else sees."""

import json
import os
import pty
import re
import select
import signal
import subprocess
from contextlib import closing

import pytest
import trustme
from backed import restored
from concurrency import PATIENCE
from conftest import check_directory
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import commit, hand_out, record
from serve_process import COMMAND, ENVIRONMENT, Serving, run
from served import Served
from test_cli import on_terminal

from berkeleydb_storage import BerkeleyDBStorage, GarbageManual, list_backups
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile
from berkeleydb_storage.client import ClientStorage

SOON = ("--timeout", "0.5")
MANY = 20_000
"""Objects that nothing leads to."""


@pytest.fixture
def server(directory, tmp_path):
    """A server on a Unix socket, whose user may do everything, with a place for backups."""
    (tmp_path / "backups").mkdir()
    with Serving(directory, "--listen", f"unix:{tmp_path}/s", "--backup-to", tmp_path / "backups") as server:
        yield server
    check_directory(directory)


@pytest.fixture
def tcp(directory):
    """A server on TCP, without users."""
    with Serving(directory) as server:
        yield server
    check_directory(directory)


def fill(address, objects=10):
    with closing(ClientStorage(address)) as client:
        connection = Connection(client)
        connection.get_root().update({number: PersistentDict() for number in range(objects)})
        connection.commit()


def test_ping(server):
    fill(server.address)
    out, err = run("server", server.address, "ping")
    assert re.fullmatch(r"unix:\S+: \d+\.\d{3} ms \(best of 5\), transaction 2, 11 objects\n", out)
    assert err == ""
    values = json.loads(run("server", server.address, "ping", "--json")[0])
    assert 0 < values.pop("seconds") < PATIENCE
    assert values == {"address": server.address, "transaction": 2, "objects": 11}


def test_statistics(server):
    fill(server.address)
    out, err = run("server", server.address, "statistics")
    assert err == ""
    lines = dict(re.findall(r"^(\S.*?) {2,}([\d,.]+)", out, re.MULTILINE))
    assert out.splitlines()[0].startswith(f"{server.address}: version ")
    assert (lines["connections"], lines["commits"], lines["objects"], lines["conflicts"]) == ("1", "2", "11", "0")
    assert re.search(r"^commits +2( +\d+\.\d{3}){5}$", out, re.MULTILINE)
    assert all(len(line) <= 90 for line in out.splitlines()[1:])


def test_statistics_as_json(server):
    fill(server.address)
    values = json.loads(run("server", server.address, "statistics", "--json")[0])
    assert values["server"]["commits"] == 2
    assert values["server"]["committing"]["count"] == 2
    assert values["storage"]["objects"] == 11
    assert values["storage"]["collected"] == {"objects": 0, "bytes": 0, "read": 0}
    assert values["packing"] is False


def litter(directory, objects):
    """Make a storage with objects that nothing leads to, in rings of two."""
    with BerkeleyDBStorage(directory, garbage_collection=GarbageManual()) as storage:
        rings = ((number, number + 1 if number % 2 else number - 1) for number in range(1, objects + 1))
        storage.migrate([(bytes(8), record(0)), *((record(*ring)[:8], record(*ring)) for ring in rings)])


@pytest.fixture
def littered(directory):
    """A storage with many objects that nothing leads to."""
    litter(directory, MANY)
    return directory


def test_pack(littered, tmp_path):
    with Serving(littered, "--listen", f"unix:{tmp_path}/s") as server:
        out, err = run("server", server.address, "pack")
        assert re.fullmatch(rf"packed unix:\S+: {MANY:,} objects deleted in \d+\.\d s, 1 left\n", out)
        assert err == ""
        values = json.loads(run("server", server.address, "pack", "--json")[0])
        assert (values["collected"], values["objects"]) == (0, 1)
        server.wait_for(f"info packed deleted={MANY} seconds=")
    check_directory(littered)


def test_pack_shows_how_far_it_is(directory, tmp_path):
    """One that takes a second or two."""
    litter(directory, 10 * MANY)
    with Serving(directory, "--listen", f"unix:{tmp_path}/s") as server:
        code, shown = on_terminal("server", server.address, "pack")
    assert code == 0
    assert re.search(r"(collecting|marking|looking|deleting|clearing): ", shown)


def on_its_terminal(*arguments):
    """Start a command on a terminal; return the process, and our end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    return process, ours


def read_until(terminal, text):
    """Return what is shown, up to a text."""
    shown = ""
    while text not in shown:
        assert select.select([terminal], [], [], PATIENCE)[0], shown
        shown += os.read(terminal, 4096).decode()
    return shown


def test_a_pack_that_fails(directory, tmp_path):
    """Of a storage that is read-only."""
    with BerkeleyDBStorage(directory) as storage:
        Connection(storage)
    with Serving(directory, "--listen", f"unix:{tmp_path}/s", "--read-only") as server:
        _, err = run("server", server.address, "pack", code=2)
        assert re.fullmatch(
            r"durus-bdb: unix:\S+: the pack failed: .* was opened read-only: it cannot be packed\n", err
        )
        assert "error pack-failed reason=" in server.output
        out, _ = run("server", server.address, "statistics")
        assert "the last pack failed: " in out


def test_backup(server, tmp_path):
    fill(server.address, 1000)
    out, _ = run("server", server.address, "backup")
    [made] = list_backups(tmp_path / "backups")
    assert re.fullmatch(
        rf"backed up unix:\S+ to {made.where} \(there\): 1,001 objects, [\d,]+ bytes in \d+\.\d s\n", out
    )
    values = json.loads(run("server", server.address, "backup", "--json")[0])
    [_, second] = list_backups(tmp_path / "backups")
    assert (values["name"], values["kind"], values["objects"]) == (second.name, "incremental", 1001)
    path = restored(tmp_path / "backups")
    with BerkeleyDBStorage(path, read_only=True) as storage:
        assert len(Connection(storage).get_root()) == 1000
    assert "info backed-up to=" in server.output


def test_backup_shows_how_far_it_is(server):
    fill(server.address)
    code, shown = on_terminal("server", server.address, "backup")
    assert code == 0
    assert "copying: " in shown


def test_backup_of_a_server_that_was_not_told_where_to(directory, tmp_path):
    with Serving(directory, "--listen", f"unix:{tmp_path}/s") as server:
        _, err = run("server", server.address, "backup", code=2)
        assert err == "durus-bdb: this server was not told where to put backups: start it with --backup-to\n"


def test_a_backup_that_fails(directory, tmp_path):
    with Serving(directory, "--listen", f"unix:{tmp_path}/s", "--backup-to", tmp_path / "nowhere") as server:
        _, err = run("server", server.address, "backup", code=2)
        assert f"{tmp_path}/nowhere is no directory, or is gone" in err
        server.wait_for("error backup-failed to=")
        fill(server.address)


def test_a_backup_under_way_ends_with_the_server(directory, tmp_path):
    """At once; there is nothing of it."""
    backups = tmp_path / "backups"
    backups.mkdir()
    with BerkeleyDBStorage(directory) as storage:  # large enough for the signal to come before the end of the copy
        hand_out(storage, 40)
        commit(storage, record(0, *range(1, 40)), *(record(key, data=os.urandom(1 << 20)) for key in range(1, 40)))
    options = ("--listen", f"unix:{tmp_path}/s", "--backup-to", backups)
    server = Serving(directory, *options, signalled=("backup.begun", signal.SIGTERM, 1))
    _, err = run("server", server.address, "backup", code=2)
    assert err == "durus-bdb: the server: the server ends: there is no backup\n"
    assert server.join()[0] == 0
    assert list_backups(backups) == []
    check_directory(directory)


def test_shutdown(server):
    out, err = run("server", server.address, "shutdown")
    assert (out, err) == (f"{server.address} ends\n", "")
    code, _ = server.join()
    assert code == 0
    assert f'info ending reason="asked by unix:uid={os.getuid()}"' in server.output


@pytest.mark.parametrize("action", ["shutdown", "backup"])
def test_what_strangers_cannot_do(tcp, action):
    _, err = run("server", tcp.address, action, code=2)
    assert re.fullmatch(r"durus-bdb: the right to .* is missing: a user of the server must have it\n", err)
    fill(tcp.address)


# --- passwords


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    file = PasswordFile(tmp_path_factory.mktemp("users") / "users")
    for name in ("read", "write", "admin"):
        file.set(name, f"pass {name}", Rights.parse(name))
    file.set("durus", "grün", Rights.parse("read"))
    return file.path


@pytest.fixture
def guarded(directory, users):
    """A server that asks for passwords."""
    with Serving(directory, "--password-file", users) as server:
        yield server
    check_directory(directory)


def with_password(password):
    return {**ENVIRONMENT, "DURUS_BDB_PASSWORD": password}


def test_a_password_in_a_file(guarded, tmp_path):
    file = tmp_path / "password"
    for text in ("pass admin", "pass admin\n", "pass admin\r\nthe rest is not looked at"):
        file.write_text(text)
        assert "objects" in run("server", guarded.address, "ping", "--user", "admin", "--password-from", file)[0]


def test_a_password_in_the_environment(guarded):
    assert "objects" in run("server", guarded.address, "ping", environment=with_password("grün"))[0]


def test_a_password_from_the_terminal(guarded):
    """It is not shown."""
    process, ours = on_its_terminal("server", guarded.address, "ping", "--user", "write")
    shown = read_until(ours, f"password of write at {guarded.address}: ")
    os.write(ours, b"pass write\n")
    shown += read_until(ours, "transaction")
    assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert "pass write" not in shown


def test_no_password(guarded):
    _, err = run("server", guarded.address, "ping", code=2)
    assert err == (
        f"durus-bdb: {guarded.address} asks for the password of durus: --password-from, or DURUS_BDB_PASSWORD\n"
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "a password is expected, on the first line"), (b"\n", "a password is expected"), (b"\xff", "is no text")],
)
def test_password_files_that_are_none(guarded, tmp_path, content, complaint):
    (tmp_path / "password").write_bytes(content)
    _, err = run("server", guarded.address, "ping", "--password-from", tmp_path / "password", code=2)
    assert complaint in err
    _, err = run("server", guarded.address, "ping", "--password-from", tmp_path / "nowhere", code=2)
    assert err == f"durus-bdb: {tmp_path}/nowhere: No such file or directory\n"


def test_a_wrong_password(guarded):
    _, err = run("server", guarded.address, "ping", environment=with_password("wrong"), code=2)
    assert err == ("durus-bdb: the user's name or the password is wrong, or the other side is not what it says to be\n")


@pytest.mark.parametrize(
    ("user", "allowed"),
    [
        ("read", {"ping", "statistics"}),
        ("write", {"ping", "statistics", "pack"}),
        ("admin", {"ping", "statistics", "pack", "shutdown"}),
    ],
)
def test_rights(guarded, user, allowed):
    for action in ("ping", "statistics", "pack", "shutdown"):
        code = 0 if action in allowed else 2
        _, err = run(
            "server", guarded.address, action, "--user", user, environment=with_password(f"pass {user}"), code=code
        )
        assert ("the right to" in err) is (code == 2)
    if "shutdown" in allowed:
        assert guarded.join()[0] == 0
        assert "user=" in guarded.output


def test_the_password_is_never_an_argument(guarded):
    """Neither of the command nor of what it starts, nor in the log."""
    assert not [option for option in run("server", "--help")[0].split() if option == "--password"]
    run("server", guarded.address, "ping", "--user", "admin", environment=with_password("pass admin"))
    assert "pass admin" not in guarded.output


# --- TLS


def test_tls(directory, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.issue_cert("me").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    options = ("--tls-cert", tmp_path / "server.pem", "--tls-client-ca", tmp_path / "ca.pem")
    with Serving(directory, *options) as server:
        address, mine = f"tls://localhost:{server.port}", ("--cert", tmp_path / "me.pem")
        run("server", address, "ping", "--ca", tmp_path / "ca.pem", *mine)
        run("server", address, "ping", "--insecure", *mine)
        _, err = run("server", address, "ping", *mine, *SOON, code=2)
        assert "certificate verify failed" in err
        run("server", address, "ping", "--ca", tmp_path / "ca.pem", *SOON, code=2)
        run("server", server.address.removeprefix("tls://"), "ping", *SOON, code=2)
    check_directory(directory)


# --- what goes wrong


def test_nobody_there(tmp_path):
    _, err = run("server", f"unix:{tmp_path}/s", "ping", *SOON, code=2)
    assert re.fullmatch(r"durus-bdb: unix:\S+ cannot be reached for 0.5 s: .*\n", err)


@pytest.mark.parametrize(
    "arguments", [["127.0.0.1:x", "ping"], ["a@b", "ping"], ["localhost", "ping", "--timeout", "0"]]
)
def test_arguments_that_make_no_sense(arguments):
    _, err = run("server", *arguments, code=2)
    assert err.startswith("durus-bdb: ")
    assert len(err.splitlines()) == 1


def test_a_server_of_durus(directory):
    """It has no statistics; it packs, if that is asked for."""
    with Served(directory) as served:
        for action in ("ping", "statistics", "pack", "backup"):
            _, err = run("server", f"unix:{served.address}", action, *SOON, code=2)
            assert len(err.splitlines()) == 1, err


def test_interrupted(littered, tmp_path):
    """The pack goes on."""
    script = (
        "import os, signal, sys; from berkeleydb_storage import cli; from berkeleydb_storage.commands import asking\n"
        "asking.time.sleep = lambda seconds: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(cli.main())"
    )
    with Serving(littered, "--listen", f"unix:{tmp_path}/s") as server:
        command = [*COMMAND[:3], "-c", script, "server", server.address, "pack"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 130
        assert done.stderr.endswith("durus-bdb: interrupted; the server goes on packing\n")
        server.wait_for(f"info packed deleted={MANY} ")
