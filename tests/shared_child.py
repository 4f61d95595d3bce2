"""Processes that share a storage: each does what it is told, and some of them are killed.

They are forked by multiprocessing's fork server, which has imported everything, so that one takes some milliseconds.
A `Child` is told what to do over a pipe of its own. What it reports goes through a pipe that all of a crew share, a
line by one write: what was reported survives the process.
"""

import multiprocessing
import os
import random
import signal
import time
import traceback
from multiprocessing.connection import wait

from concurrency import PATIENCE
from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError
from durus.persistent import Persistent

from berkeleydb_storage import SharedStorage, environment, failpoints
from berkeleydb_storage.directory import LOCK

ACCOUNTS = 8
COUNTERS = 4
EACH = 100
"""Of an account, at first."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["shared_child"])


class Cell(Persistent):
    """A number."""

    def __init__(self, value):
        self.value = value


class Fuse:
    """Kills the process when a crash point is reached for the n-th time."""

    def __init__(self, name, times):
        self._name = name
        self._left = times

    def __call__(self, name):
        if name == self._name:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def connect(storage):
    """Make a connection, also while others change the root: then Durus' may meet a change between its sync and load."""
    while True:
        try:
            return Connection(storage)
        except ReadConflictError:
            storage.sync()


def set_up(path, **options):
    """Make the accounts and the counters."""
    with SharedStorage(path, **options) as storage:
        connection = Connection(storage)
        root = connection.get_root()
        root["accounts"] = [Cell(EACH) for _ in range(ACCOUNTS)]
        root["counters"] = [Cell(0) for _ in range(COUNTERS)]
        connection.commit()


class Worker:
    """Transfers between accounts, and increments counters, and reports what it tries and what came of it."""

    def __init__(self, path, report, seed, closes, options):
        self._path = path
        self._report = report
        self._random = random.Random(seed)
        self._closes = closes
        self._options = options
        self._open()

    def _open(self):
        self._connection = Connection(SharedStorage(self._path, **self._options))

    def close(self):
        self._connection.get_storage().close()

    def step(self):
        choice = self._random.random()
        if choice < self._closes:
            self.close()
            self._open()
        elif choice < 0.5:
            self._try(f"counter {self._random.randrange(COUNTERS)}", self._increment)
        else:
            self._try("transfer", self._transfer)

    def _try(self, what, change):
        """Change something and commit it; it is reported before, and after."""
        self._report(f"try {what}")
        started = time.monotonic()
        try:
            change(what)
            self._connection.commit()
            outcome = "ok"
        except ConflictError:
            self._connection.abort()
            outcome = "conflict"
        now = time.monotonic()
        self._report(f"{outcome} {what} at {now} in {now - started}")

    def _increment(self, what):
        self._connection.get_root()["counters"][int(what.split()[1])].value += 1

    def _transfer(self, what):
        accounts = self._connection.get_root()["accounts"]
        payer, payee = self._random.sample(accounts, 2)
        amount = self._random.randrange(10)
        payer.value -= amount
        payee.value += amount


class Jobs:
    """What a child can be told to do, in the child."""

    def __init__(self, commands, report):
        self._commands = commands
        self._lines = report
        self.storages = []

    def report(self, line):
        self._lines.send_bytes(f"{os.getpid()} {line}".encode())

    def open(self, path, connect=False, **options):
        """Open a storage, and keep it open; with `connect`, make a connection of it."""
        storage = SharedStorage(path, **options)
        self.storages.append(storage)
        if connect:
            Connection(storage)

    def close(self):
        while self.storages:
            self.storages.pop().close()

    def arm(self, point, times):
        failpoints.hook = Fuse(point, times)

    def small_logs(self):
        environment.LOG_FILE_SIZE = 1 << 18
        environment.LOG_BUFFER = 1 << 15

    def add(self, key, size=1):
        """Commit some bytes; a conflict is not tried again."""
        connection = connect(self.storages[0])
        connection.get_root()[key] = os.urandom(size)
        connection.commit()

    def get_size(self):
        return self.storages[0].get_size()

    def work(self, path, seed, closes=0.0, **options):
        """Work until told to stop."""
        worker = Worker(path, self.report, seed, closes, options)
        self.report("began")
        while not self._commands.poll():
            worker.step()
        worker.close()


def main(commands, report):
    """Do jobs until the pipe is closed."""
    jobs = Jobs(commands, report)
    while True:
        try:
            name, arguments = commands.recv()
        except EOFError:
            break
        try:
            commands.send((True, getattr(jobs, name)(**arguments)))
        except Exception as error:
            traceback.print_exc()
            commands.send((False, error))
    jobs.close()


class Child:
    """A process, seen by the one who tells it what to do."""

    def __init__(self, report):
        self._commands, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=main, args=(theirs, report), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self):
        return self.process.pid

    def tell(self, name, **arguments):
        """Have it do something; `answer` waits for the end of that."""
        self._commands.send((name, arguments))

    def answer(self):
        assert self._commands.poll(PATIENCE), "the child does not answer"
        done, result = self._commands.recv()
        if not done:
            raise result
        return result

    def ask(self, name, **arguments):
        self.tell(name, **arguments)
        return self.answer()

    def stop(self):
        """Have it stop working."""
        self._commands.send(("close", {}))
        self.answer()
        self.answer()

    def kill(self):
        self.process.kill()
        self.wait()

    def wait(self):
        """Wait until it is dead, and return its exit status."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None
        self._commands.close()
        return self.process.exitcode

    def end(self):
        """Close everything, and end."""
        self._commands.close()
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0


class Crew:
    """Several children, and what they report."""

    def __init__(self, path):
        self.path = path
        self._reader, self.report = CONTEXT.Pipe(duplex=False)
        self.children = {}
        self.history = History()

    def child(self):
        child = Child(self.report)
        self.children[child.pid] = child
        return child

    def owner(self):
        """Return the child that owns the storage, None where that is not one of these."""
        try:
            return self.children.get(int((self.path / LOCK).read_text()))
        except ValueError:
            return None

    def read_until(self, true):
        """Take reports until something is true of the history."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert self._reader.poll(max(0, deadline - time.monotonic())), "nothing is reported"
            self.history.take(self._reader.recv_bytes().decode())

    def drain(self):
        while self._reader.poll():
            self.history.take(self._reader.recv_bytes().decode())

    def gone(self, child):
        """Wait for the end of a child that is killed."""
        status = child.wait()
        del self.children[child.pid]
        self.drain()
        self.history.killed(child.pid)
        return status

    def wait_for(self, child):
        """Wait for the end of a child, taking reports meanwhile; return its exit status."""
        while child.process.sentinel not in (ready := wait([child.process.sentinel, self._reader], PATIENCE)):
            assert ready, "it does not end, and nothing is reported"
            self.drain()
        return self.gone(child)

    def stop(self):
        for child in self.children.values():
            child.stop()
        self.drain()
        assert not self.history.open

    def finish(self):
        for child in self.children.values():
            child.process.kill()
            child.process.join()
        self._reader.close()
        self.report.close()


class History:
    """What the children reported."""

    def __init__(self):
        self.began = 0
        self.commits = 0
        self.conflicts = 0
        self.acknowledged = [0] * COUNTERS
        self.doubtful = [0] * COUNTERS
        """Increments under way when their process was killed."""
        self.open = {}
        self.mark = 0.0
        self.first = None
        """When the first commit was acknowledged that was begun after `mark`."""
        self.longest = 0.0

    def take(self, line):
        pid, what, *rest = line.split()
        if what == "began":
            self.began += 1
        elif what == "try":
            self.open[int(pid)] = rest
        else:
            self._ended(int(pid), what, rest)

    def _ended(self, pid, what, rest):
        del self.open[pid]
        at, seconds = float(rest[-3]), float(rest[-1])
        self.longest = max(self.longest, seconds)
        if what == "conflict":
            self.conflicts += 1
            return
        assert what == "ok"
        if self.first is None and at - seconds > self.mark:
            self.first = at
        self.commits += 1
        if rest[0] == "counter":
            self.acknowledged[int(rest[1])] += 1

    def note(self):
        """Wait for the next commit from now on."""
        self.mark, self.first = time.monotonic(), None

    def killed(self, pid):
        tried = self.open.pop(pid, None)
        if tried and tried[0] == "counter":
            self.doubtful[int(tried[1])] += 1

    def verify(self, connection):
        """Compare with what is stored; return how many acknowledged increments are lost."""
        root = connection.get_root()
        assert sum(cell.value for cell in root["accounts"]) == ACCOUNTS * EACH
        lost = 0
        for cell, known, doubtful in zip(root["counters"], self.acknowledged, self.doubtful, strict=True):
            assert cell.value <= known + doubtful, "one was done twice"
            lost += max(0, known - cell.value)
        return lost
