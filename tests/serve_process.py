"""``durus-bdb serve`` in a process of its own, with its log, as an operator has it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from concurrency import PATIENCE

import berkeleydb_storage

ROOT = Path(berkeleydb_storage.__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-m", "berkeleydb_storage"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("JOURNAL_STREAM", "NOTIFY_SOCKET")}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>debug|info|warning|error|critical) (?P<text>\S.*)\n"
)
"""What every line of the log is like."""
WORD = re.compile(r'(?:[\w-]+=)?(?:"(?:[^"\\]|\\.)*"|[^\s"=\\]+)')

SIGNALLED = """
import os, sys
from berkeleydb_storage import cli, failpoints

wanted, number, left = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def hook(point):
    global left
    left -= point == wanted
    if point == wanted and left == 0:
        os.kill(os.getpid(), number)

failpoints.hook = hook
sys.exit(cli.main(sys.argv[4:]))
"""
"""A command that gets a signal when it reaches a crash point for the n-th time."""


def run(*arguments, code=0, stdin="", environment=None):
    """Run a command, check its exit code, return what it wrote to standard output and error."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=environment or ENVIRONMENT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def state_of(directory):
    """Return what the files say of a storage: "open" or "closed"."""
    return json.loads((Path(directory) / "storage.json").read_text())["state"]


class Serving:
    """A server that listens when the constructor returns; on a free port of 127.0.0.1 unless the options say more.

    Args:
        directory: of the storage.
        options: of the command.
        signalled: at which crash point, by which number, the how manieth time it gets a signal.
        before: a command line that ends by executing its arguments, such as of a shell.
        ready: what is logged then; None: do not wait.
        listen: False: do not say where to listen.
        others: of `subprocess.Popen`.
    """

    def __init__(
        self,
        directory,
        *options,
        signalled=None,
        before=(),
        environment=None,
        ready="listening ",
        listen=True,
        **others,
    ):
        if listen and "--listen" not in options:
            options = ("--listen", "127.0.0.1:0", *options)
        command = COMMAND
        if signalled is not None:
            point, number, times = signalled
            command = [*COMMAND[:3], "-c", SIGNALLED, point, str(int(number)), str(times)]
        self.directory = directory
        self.process = subprocess.Popen(
            [*before, *command, "serve", str(directory), *map(str, options)],
            env={**ENVIRONMENT, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **others,
        )
        self.lines = []  # guarded by _news
        self.ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            if ready is not None:
                self.wait_for(ready)
        except BaseException:
            self.kill()
            raise

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def wait_for(self, text, *, after=0):
        """Wait until there is a line with `text`, not counting the first `after` ones, and return it."""

        def found():
            return [line for line in self.lines[after:] if text in line]

        with self._news:
            assert self._news.wait_for(lambda: found() or self.ended, PATIENCE), (text, self.lines)
            assert found(), (text, self.lines)
            return found()[0]

    @property
    def output(self):
        """All that was logged so far."""
        with self._news:
            return "".join(self.lines)

    @property
    def addresses(self):
        """Where it listens."""
        return re.search(r"addresses=(\S+)", self.wait_for("listening "))[1].split(",")

    @property
    def address(self):
        """Where it listens first."""
        return self.addresses[0]

    @property
    def port(self):
        """The number of the port of that."""
        return int(self.address.rpartition(":")[2])

    @property
    def metrics(self):
        """Where it answers Prometheus."""
        return re.search(r"metrics address=(\S+)", self.output)[1]

    def send(self, number):
        """Send a signal."""
        self.process.send_signal(number)

    def join(self):
        """Wait until it has ended by itself; return the exit code and what it printed."""
        code = self.process.wait(PATIENCE)
        out = self.process.stdout.read()
        self._reader.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()
        return code, out

    def stop(self, number=signal.SIGTERM):
        """End it in order; return what it printed."""
        self.send(number)
        code, out = self.join()
        assert code == 0, (code, self.output)
        assert state_of(self.directory) == "closed"
        return out

    def kill(self):
        """End it by SIGKILL."""
        self.process.kill()
        self.join()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self.process.poll() is not None and self.process.stdout.closed:
            return
        if error is None:
            self.stop()
        else:
            self.kill()
