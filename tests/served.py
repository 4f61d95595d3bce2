"""Durus' own server on a storage, in a subprocess, with as many clients as a test wants."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from concurrency import PATIENCE
from durus.client_storage import ClientStorage

import berkeleydb_storage

PYTHONPATH = os.pathsep.join(map(str, [Path(berkeleydb_storage.__file__).parents[1], Path(__file__).parent]))
"""Where a subprocess finds the package, and the modules of these tests."""


def free_port():
    """Return a port of localhost that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Served:
    """``durus -s`` on the storage in `directory`, which listens when the constructor returns.

    `port` is one of localhost; without it a Unix socket is used.
    """

    def __init__(self, directory, *options, storage_class="berkeleydb_storage.BerkeleyDBStorage", port=None):
        self.directory = directory
        self._sockets = Path(tempfile.mkdtemp(prefix="served-"))
        self.address = ("localhost", port) if port else str(self._sockets / "socket")
        self._clients = []
        self._lines = []
        self._news = threading.Condition()
        command = [sys.executable, "-m", "durus", "-s", f"--file={directory}", "--logginglevel=20"]
        command += [f"--port={port}" if port else f"--address={self.address}"]
        command += [f"--storage-class={storage_class}", *options]
        self._command = command
        self.environment = os.environ | {"PYTHONPATH": PYTHONPATH}
        self.restart()

    def restart(self):
        """Start the server, for the first time or after `stop`."""
        self._sockets.mkdir(exist_ok=True)
        self._lines.clear()
        self.process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.directory
        )
        self._reader = threading.Thread(target=self._read, name="output of the server", daemon=True)
        self._reader.start()
        self.wait_for("Ready on")

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._lines.append("")
            self._news.notify_all()

    def wait_for(self, text, *, after=0):
        """Wait until the server has logged a line with `text`, not counting the first `after` lines."""

        def there():
            return self._lines[-1:] == [""] or any(text in line for line in self._lines[after:])

        with self._news:
            assert self._news.wait_for(there, PATIENCE), f"no {text!r} in {self.output}"
            assert any(text in line for line in self._lines[after:]), f"no {text!r} in {self.output}"

    @property
    def lines(self):
        """The number of lines logged so far."""
        return len(self._lines)

    @property
    def output(self):
        """What the server has written."""
        return "".join(self._lines)

    def client(self):
        """Return a new client."""
        client = ClientStorage(address=self.address)
        self._clients.append(client)
        return client

    def pack(self, client):
        """Ask for a pack, and wait until it is done."""
        before = self.lines
        client.pack()
        self.wait_for("gc at", after=before)

    def stop(self):
        """Let the server close its storage and end."""
        if self.process.poll() is None:
            quitter = self.client()
            quitter.s.sendall(b"Q")
        self._end()
        assert self.process.returncode == 0, self.output

    def kill(self):
        """End the server by SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self._end()

    def _end(self):
        for client in self._clients:
            client.s.close()
        self.process.wait(PATIENCE)
        self._reader.join()
        self.process.stderr.close()
        self._clients.clear()
        shutil.rmtree(self._sockets)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None and self.process.poll() is None:
            self.stop()
        else:
            self.kill()
            assert error is not None, f"the server ended: {self.output}"
