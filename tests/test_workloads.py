"""Many clients of all kinds work at random, are killed, and so is their server: what they did has an order."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter

import histories
import pytest
import workload_child
import workloads
from concurrency import run_threads
from conftest import check_directory
from durus.connection import Connection
from durus.error import ConflictError
from histories import Check
from mutants import OVER_KILLS
from served import free_port

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.client import ClientStorage, Fate
from berkeleydb_storage.errors import CommitUnknown, ServerUnreachable

MIX = ["old", "new", "new-ahead", "new-hasty", "old-slow", "new-slow"]
SECONDS = 2.0
KILLS = 4
LONG_SECONDS = 20.0
LONG_KILLS = 60
MUTANT_SECONDS = 6.0
MUTANT_KILLS = 12


class Play:
    """A server and its clients, in processes of their own; their history."""

    def __init__(self, directory, **options):
        self.directory, self.options = directory, options
        self.counts = Counter()
        self._logs = directory.parent / "logs"
        self._logs.mkdir()
        with BerkeleyDBStorage(directory) as storage:
            workloads.fill(storage)
        self.addresses = [f"127.0.0.1:{free_port()}", f"unix:{directory.parent / 'socket'}"]
        self._complaints = directory.parent / "complaints"
        with self._complaints.open("wb") as complaints:
            self._forker = subprocess.Popen(
                [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", workload_child.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._server = None
        self._clients = []
        self._pause = threading.Event()
        self._random = random.Random(0)

    def _tell(self, **job):
        self._forker.stdin.write(json.dumps(job) + "\n")
        self._forker.stdin.flush()

    def _read(self):
        line = self._forker.stdout.readline()
        assert line.strip() not in ("", "failed"), self._complaints.read_text()
        return line.strip()

    def serve(self, fuse=None):
        """Start the server, and wait until it listens; `fuse` is a crash point that ends it."""
        self.counts["servers"] += 1
        self._tell(
            function="serve",
            directory=str(self.directory),
            addresses=self.addresses,
            logs=str(self._logs),
            run=self.counts["servers"],
            fuse=fuse,
            **self.options,
        )
        lines = [self._read(), self._read()]
        lines.remove("ready")
        self._server = int(lines[0])

    def add_clients(self, kinds):
        """Start a process with clients of these kinds, each at one of the addresses."""
        self.counts["processes"] += 1
        clients = [(kind, self._random.choice(self.addresses)) for kind in kinds]
        name, mutant = f"p{self.counts['processes']}", self.options.get("mutant")
        self._tell(function="work", name=name, clients=clients, logs=str(self._logs), mutant=mutant)
        self._clients.append((int(self._read()), kinds))

    def kill_server(self):
        """Kill the server, and start it again."""
        self._end(self._server, signal.SIGKILL)
        self.counts["kills of the server"] += 1
        self.serve()

    def await_end(self):
        """Wait until the server has been killed by its fuse."""
        self._tell(wait=self._server)
        assert int(self._read()) == -signal.SIGKILL

    def kill_clients(self):
        """Kill a process with clients, and start another one."""
        pid, kinds = self._clients.pop(0)
        self._end(pid, signal.SIGKILL)
        self.counts["kills of clients"] += len(kinds)
        self.add_clients(kinds)

    def _end(self, pid, number):
        os.kill(pid, number)
        self._tell(wait=pid)
        assert int(self._read()) == (0 if number == signal.SIGTERM else -number), self._complaints.read_text()

    def wait(self, seconds):
        """Let them work for about so long: it decides at which moment something is killed, and nothing else."""
        self._pause.wait(self._random.uniform(0.3, 1.7) * seconds)

    def finish(self, *, check=True):
        """End all, and return what is wrong with the history. Without `check` clients may hang."""
        while self._clients:
            self._end(self._clients.pop()[0], signal.SIGTERM if check else signal.SIGKILL)
        self.end_server()
        self.close()
        history = [
            each
            for log in sorted(self._logs.iterdir())
            for each in histories.load(log.read_text().splitlines(keepends=True))
        ]
        if check:
            check_directory(self.directory)
        with BerkeleyDBStorage(self.directory) as storage:
            found = workloads.everything(storage)
        judged = Check(history, {name: version for name, (version, _) in found.items() if version})
        self.counts.update(each.outcome for each in history)
        complaints = self._complaints.read_text().splitlines()
        faults = judged.faults + workloads.wrong_values(found, history, judged.applied) + complaints
        self.counts["faults"] = len(faults)
        return faults

    def end_server(self):
        """End the server in order."""
        self._end(self._server, signal.SIGTERM)
        self._server = None

    def close(self):
        self._forker.stdin.close()
        self._forker.wait()
        self._forker.stdout.close()


@pytest.fixture
def play(directory):
    """A function that makes a `Play`."""
    made = []

    def make(**options):
        made.append(Play(directory, **options))
        return made[0]

    yield make
    for each in made:
        for pid in [each._server, *(pid for pid, _ in each._clients)]:
            if pid is not None and each._forker.poll() is None:
                os.kill(pid, signal.SIGKILL)
        each.close()


def run(play, seconds, kills):
    """Have clients of all kinds work, with as many kills of the server and of clients."""
    play.serve()
    for number in range(2):
        play.add_clients(MIX[number::2])
    for number in range(kills):
        play.wait(seconds / kills / 2)
        play.kill_server()
        play.wait(seconds / kills / 2)
        if number % 2:
            play.kill_clients()
    play.wait(seconds / (kills + 1) if kills else seconds)


def test_without_kills(play):
    it = play(sessions=1)
    run(it, SECONDS, 0)
    faults = it.finish()
    print(dict(it.counts))
    assert not faults, faults[:20]
    assert it.counts["committed"] > 100
    assert it.counts["refused"]
    assert not it.counts["unknown"]


DISKS = {
    "as it is": {},
    "slow": {"slow": 0.01},
    "slow, and a short memory": {"slow": 0.004, "kept": 50, "flusher": True},
}


@pytest.mark.parametrize("disk", DISKS)
def test_kills(play, disk):
    it = play(sessions=1, **DISKS[disk])
    run(it, SECONDS, KILLS)
    faults = it.finish()
    print(dict(it.counts))
    assert not faults, faults[:20]
    assert it.counts["committed"] > 100


FUSES = {"commit.begun": False, "commit.written": False, "commit.committed": False, "commit.flushed": True}
"""Crash points of a commit, and whether it is there after a kill."""


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("number", [0, 1], ids=["tcp", "unix"])
def test_fates(play, fuse, number):
    """Whoever does not wait is told later what became of it, and that is how it is."""
    it = play()
    it.serve(fuse)
    with ClientStorage(it.addresses[number], timeout=0.1) as storage:
        connection = Connection(storage)
        connection.get_root()["counter 0"].value += 1
        with pytest.raises(CommitUnknown) as caught:
            connection.commit()
        with pytest.raises(ServerUnreachable):
            storage.fate(caught.value)
        it.await_end()
        it.serve()
        fates = {storage.fate(caught.value) for _ in range(2)}
        assert fates == {Fate.STORED if FUSES[fuse] else Fate.NOT_STORED}
        connection.abort()
        assert connection.get_root()["counter 0"].value == FUSES[fuse]
    it.end_server()


@pytest.mark.parametrize("fuse", FUSES)
def test_who_waits_commits_once(play, fuse):
    it = play()
    it.serve(fuse)
    with ClientStorage(it.addresses[0]) as storage:
        connection = Connection(storage)
        connection.get_root()["counter 0"].value += 1
        run_threads(connection.commit, lambda: (it.await_end(), it.serve()))
        connection.get_root()["counter 0"].value += 1
        connection.get_root()["counter 1"].value += 1
        try:
            connection.commit()
        except ConflictError:  # it was told of its own commit
            connection.abort()
            assert connection.get_root()["counter 0"].value == 1
        else:
            with ClientStorage(it.addresses[1]) as other:
                assert Connection(other).get_root()["counter 0"].value == 2
    it.end_server()


@pytest.mark.slow
@pytest.mark.parametrize("disk", DISKS)
def test_many_kills(play, disk):
    it = play(sessions=2, **DISKS[disk])
    run(it, LONG_SECONDS + 0.2 * LONG_KILLS, LONG_KILLS)
    faults = it.finish()
    print(dict(it.counts))
    assert not faults, faults[:20]


@pytest.mark.slow
@pytest.mark.parametrize("name", OVER_KILLS)
def test_mutants(play, name):
    """Faults that are planted in the server are found."""
    it = play(mutant=name, slow=0.1)
    run(it, MUTANT_SECONDS, MUTANT_KILLS)
    faults = it.finish(check=False)
    print(f"{name}: {len(faults)} faults, such as {faults[:1]}")
    assert faults
