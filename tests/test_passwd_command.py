"""``durus-bdb passwd`` as people and scripts use it: on a terminal, in a pipe; the password is never shown."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import berkeleydb_storage
from berkeleydb_storage import cli
from berkeleydb_storage.auth.handshake import ClientHandshake, ServerHandshake
from berkeleydb_storage.auth.users import Users

ROOT = Path(berkeleydb_storage.__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-m", "berkeleydb_storage", "passwd"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PASSWORD = "geheim und lang"
PATIENCE = 60


def run(*arguments, stdin="", code=0):
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, input=data, capture_output=True, timeout=PATIENCE
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, (done.returncode, out, err)
    return out, err


def opens(path, name, password):
    """Prove the password, and return the rights of the user."""
    server, client = ServerHandshake(Users(path)), ClientHandshake(name, password)
    message = client.start()
    while message is not None:
        message = client.receive(server.receive(message))
    return server.rights.text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users"


def test_in_a_pipe(path):
    out, err = run(path, "ada", stdin=f"{PASSWORD}\nanother line\n")
    assert out == f"added ada in {path}; a server that runs sees it after SIGHUP\n"
    assert err == ""
    assert opens(path, "ada", PASSWORD) == "write"
    assert "changed the password of ada" in run(path, "ada", "--rights", "admin", stdin="new")[0]
    assert opens(path, "ada", "new") == "admin"
    run(path, "ada", stdin="newer\r\n")
    assert opens(path, "ada", "newer") == "admin"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [("", "is empty"), ("\n", "is empty"), (b"\xff\n", "is no text"), ("x" * 5000, "at most 1024 characters")],
)
def test_passwords_that_are_none(path, stdin, message):
    assert message in run(path, "ada", stdin=stdin, code=2)[1]
    assert not path.exists()


def test_rights_alone(path):
    run(path, "ada", stdin=PASSWORD)
    assert "changed the rights of ada" in run(path, "ada", "--keep", "--rights", "read")[0]
    assert opens(path, "ada", PASSWORD) == "read"
    assert "say which" in run(path, "ada", "--keep", code=2)[1]


def test_list_and_remove(path):
    for name, rights in (("bob", "read"), ("ada", "admin")):
        run(path, name, "--rights", rights, stdin=PASSWORD)
    assert run(path, "--list")[0] == "admin   ada\nread    bob\n"
    assert json.loads(run(path, "--list", "--json")[0])["users"] == [
        {"user": "ada", "rights": "admin"},
        {"user": "bob", "rights": "read"},
    ]
    assert run(path, "bob", "--list")[0] == "read    bob\n"
    assert json.loads(run(path, "bob", "--remove", "--json")[0])["done"] == "removed"
    assert run(path, "--list")[0] == "admin   ada\n"
    assert "has no user 'bob'" in run(path, "bob", "--remove", code=2)[1]
    assert run(path, "ada", "--remove", "--quiet") == ("", "")


def test_errors_are_one_line(path):
    assert run(path, "--list", code=2)[1] == f"durus-bdb: {path}: No such file or directory\n"
    assert "a user is missing" in run(path, code=2)[1]
    assert "a user's name has" in run(path, "a:b", stdin=PASSWORD, code=2)[1]
    run(path, "ada", stdin=PASSWORD)
    path.chmod(0o644)
    assert "chmod 600" in run(path, "ada", stdin=PASSWORD, code=2)[1]


def test_a_password_is_no_argument(path, capsys):
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["passwd", str(path), "ada", PASSWORD])
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["passwd", str(path), "ada", "--password", PASSWORD])


def test_verbose_does_not_show_it(path):
    out, err = run(path, "ada", "-vv", stdin=PASSWORD)
    line = path.read_text().splitlines()[1]
    assert not [secret for secret in [PASSWORD, *line.split(":")[2:]] if secret in out + err]


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [*COMMAND, *map(str, arguments)], ENVIRONMENT)
        self.shown = ""

    def wait_for(self, text):
        """Read until a text is shown."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert self._read(deadline), self.shown

    def _read(self, deadline):
        ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
        try:
            data = os.read(self.descriptor, 4096) if ready else b""
        except OSError:
            data = b""
        self.shown += data.decode()
        return bool(data)

    def echoes(self):
        return bool(termios.tcgetattr(self.descriptor)[3] & termios.ECHO)

    def type(self, text):
        os.write(self.descriptor, text.encode())

    def end(self):
        """Read to the end, and return the exit code."""
        while self._read(time.monotonic() + PATIENCE):
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        return code


def test_on_a_terminal(path):
    terminal = Terminal(path, "ada")
    terminal.wait_for("new password of ada: ")
    assert not terminal.echoes()
    terminal.type(f"{PASSWORD}\n")
    terminal.wait_for("once more: ")
    terminal.type(f"{PASSWORD}\n")
    assert terminal.end() == 0
    assert "added ada" in terminal.shown
    assert PASSWORD not in terminal.shown
    assert opens(path, "ada", PASSWORD) == "write"


def test_two_that_differ(path):
    terminal = Terminal(path, "ada")
    terminal.wait_for("new password of ada: ")
    terminal.type(f"{PASSWORD}\n")
    terminal.wait_for("once more: ")
    terminal.type("another\n")
    assert terminal.end() == 2
    assert "were not the same: nothing was changed" in terminal.shown
    assert PASSWORD not in terminal.shown
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_question(path, number):
    """At once, and the terminal shows again what is typed."""
    terminal = Terminal(path, "ada")
    terminal.wait_for("new password of ada: ")
    os.kill(terminal.pid, number)
    terminal.wait_for("interrupted")
    assert terminal.echoes()
    assert terminal.end() == 128 + number
    assert not path.exists()
