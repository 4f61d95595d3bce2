"""What the workers of test_bench_method.py do: they import little else."""

import mmap
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from benchmarks.method.contest import Contender

EACH = 20


class Syncing:
    """Waits for the disk in every way, so often that the test knows the number."""

    def __init__(self, directory):
        self._directory = Path(directory)
        self._waits = self._open("before", os.O_DSYNC)
        self._does_not = self._open("plain", 0)
        self._go = threading.Event()
        self._other = threading.Thread(target=self._thread)
        self._other.start()

    def _open(self, name, flags):
        return os.open(self._directory / name, os.O_RDWR | os.O_CREAT | flags)

    def _thread(self):
        self._go.wait()
        for _ in range(EACH):
            os.write(self._waits, b"1")
            os.fsync(self._does_not)
            os.write(self._does_not, b"0")

    def pid(self):
        return os.getpid()

    def work(self):
        """Return how often it waited for the disk."""
        self._go.set()
        for _ in range(EACH):
            os.fdatasync(self._does_not)
            os.pwrite(self._waits, b"1", 0)
            os.pwrite(self._does_not, b"0", 0)
        self._other.join()
        return 4 * EACH + self._others() + self._in_a_child()

    def _others(self):
        opened = self._open("opened", os.O_SYNC)
        copy = os.dup(opened)
        os.close(opened)
        os.write(copy, bytes(4096))
        os.close(copy)
        with suppress(OSError):
            os.fsync(0)  # a pipe: it fails, so it does not count
        again = self._open("opened", 0)
        os.write(again, b"0")  # under the number of one that waited
        with mmap.mmap(again, 4096) as mapped:
            mapped[0] = 1
            mapped.flush()
        os.close(again)
        return 2

    def _in_a_child(self):
        program = (
            "import os, sys; file = open(sys.argv[1], 'wb'); os.fsync(file.fileno()); os.write(int(sys.argv[2]), b'1')"
        )
        command = [sys.executable, "-c", program, self._directory / "child", str(self._waits)]
        subprocess.run(command, check=True, pass_fds=[self._waits])
        return 2

    def close(self):
        self._go.set()


class Forking:
    """Has a child that waits for ever, and waits for it."""

    def fork(self):
        self._child = os.fork()
        if not self._child:
            threading.Event().wait()
        return self._child

    def wait(self):
        os.waitpid(self._child, 0)


class Commits(Contender):
    """Syncs three times for each of two commits."""

    def round(self):
        """Do it."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT)
        for _ in range(6):
            os.fsync(file)
        os.close(file)
        return {"µs": 1.0}

    def commits_a_round(self):
        """Return how many there are."""
        return 2
