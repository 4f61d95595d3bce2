"""Counts how often processes wait for something to be on the disk. Needs strace, and the right to trace (Linux).

What is counted, where it succeeds: fsync, fdatasync, syncfs, sync; msync with MS_SYNC; sync_file_range that waits; and
every write to a file that was opened with O_SYNC or O_DSYNC, or that says RWF_SYNC or RWF_DSYNC: LMDB writes its meta
page so. The files that were open before are known from /proc/PID/fdinfo, the others from the calls themselves.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60
"""Seconds for strace to attach, and to end."""

SYNCS = frozenset({"fsync", "fdatasync", "syncfs", "sync"})
WRITES = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
OPENS = frozenset({"open", "openat", "openat2", "creat"})
COPIES = frozenset({"dup", "dup2", "dup3", "fcntl"})
CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
OTHERS = frozenset({"msync", "sync_file_range", "close"})

_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (\d+)")
_UNFINISHED = re.compile(r"(\d+) +(\w+\(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")
_DESCRIPTOR = re.compile(r"(\d+)")


class CannotCount(Exception):
    """Raised when strace is missing, or may not trace: before anything was done."""


def counted(pid: int, work: Callable[[], object], *others: int) -> int:
    """Return the syncs of a process, its threads and its children while something is done.

    Args:
        pid: the process.
        work: has it do something, and returns when it is done.
        others: more processes that are counted.

    Raises:
        CannotCount: strace is missing, or may not trace; `work` was not called.
    """
    if not shutil.which("strace"):
        raise CannotCount("strace is not installed")
    pids = list(dict.fromkeys(each for one in (pid, *others) for each in tree(one)))
    with tempfile.TemporaryDirectory(prefix="syncs-") as directory:
        output = Path(directory, "calls")
        open_before = {thread: files for each in pids for thread, files in _threads(each)}
        with _traced(pids, output):
            work()
        with output.open(errors="replace") as lines:
            return syncs(lines, open_before)


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it and still run."""
    found = [pid]
    for each in found:
        try:
            children = [int(child) for task in Path(f"/proc/{each}/task").iterdir() for child in _children(task)]
        except OSError:  # ended meanwhile
            continue
        found += [child for child in children if child not in found]
    return found


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def _threads(pid: int) -> list[tuple[int, set[int]]]:
    """Return the threads of a process, each with the descriptors that all of them share."""
    files = synced_files(pid)
    return [(int(task.name), files) for task in Path(f"/proc/{pid}/task").iterdir()]


def synced_files(pid: int) -> set[int]:
    """Return the descriptors of a process whose writes wait for the disk."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            line = next(line for line in entry.read_text().splitlines() if line.startswith("flags:"))
        except (OSError, StopIteration):  # closed meanwhile
            continue
        if int(line.split()[1], 8) & os.O_DSYNC:  # O_SYNC is O_DSYNC and more
            found.add(int(entry.name))
    return found


@contextmanager
def _traced(pids: list[int], output: Path) -> Iterator[None]:
    """Have strace attached to these processes; write their calls."""
    calls = ",".join(f"?{name}" for name in sorted(SYNCS | WRITES | OPENS | COPIES | CLONES | OTHERS))
    command = ["strace", "-f", "-s", "0", "-e", f"trace={calls}", "-e", "signal=none", "-o", output]
    tracer = subprocess.Popen(
        [*command, *(part for pid in pids for part in ("-p", str(pid)))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl+C in the terminal ends us, and we end it
    )
    said = _Said(tracer, len(pids))
    try:
        said.wait()
        yield
    finally:
        _end(tracer)
        said.close()


class _Said:
    """What strace says on its standard error; read by a thread, so that it never waits for us."""

    def __init__(self, tracer: subprocess.Popen[str], processes: int) -> None:
        self._tracer = tracer
        self._left = processes
        self._lines: list[str] = []
        self._known = threading.Event()
        self._attached = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._tracer.stderr is not None
        for line in self._tracer.stderr:
            self._lines.append(line.strip())
            self._left -= " attached" in line
            if self._left == 0:  # from here on, no call is missed
                self._attached = True
                self._known.set()
        self._known.set()

    def wait(self) -> None:
        """Return when it is attached to all of them."""
        self._known.wait(PATIENCE)
        if not self._attached:
            raise CannotCount("; ".join(self._lines) or "strace did not attach")

    def close(self) -> None:
        """It has ended."""
        self._thread.join()
        assert self._tracer.stderr is not None
        self._tracer.stderr.close()


def _end(tracer: subprocess.Popen[str]) -> None:
    """End strace: it lets go of the processes."""
    tracer.send_signal(signal.SIGTERM)
    try:
        tracer.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()


def syncs(lines: Iterable[str], open_before: dict[int, set[int]]) -> int:
    """Return how many of these calls waited for the disk.

    Args:
        lines: what strace wrote.
        open_before: number of each thread -> its descriptors whose writes wait; the threads of a process share a set.
            The sets are changed.
    """
    calls = list(_finished(lines))
    files = _Files(open_before, {result: (thread, given) for thread, call, given, result in calls if call in CLONES})
    return sum(files.waits(*call) for call in calls)


def _finished(lines: Iterable[str]) -> Iterator[tuple[int, str, str, int]]:
    """Yield thread, call, arguments and result of each call that succeeded, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in lines:
        if unfinished := _UNFINISHED.match(line):
            begun[unfinished[1]] = unfinished[2]
            continue
        if resumed := _RESUMED.match(line):
            line = f"{resumed[1]} {begun.pop(resumed[1], '')}{resumed[2]}"
        if ended := _LINE.match(line):
            yield int(ended[1]), ended[2], ended[3], int(ended[4])


class _Files:
    """Which descriptors of which threads wait for the disk when they are written to."""

    def __init__(self, open_before: dict[int, set[int]], begun: dict[int, tuple[int, str]]) -> None:
        """Begin.

        Args:
            open_before: as for `syncs`.
            begun: thread -> which thread made it, and how. It may work before the call that made it returns.
        """
        self._of_thread = dict(open_before)
        self._begun = begun

    def waits(self, thread: int, call: str, arguments: str, result: int) -> bool:
        """Note a call; tell whether it waited for the disk."""
        files = self._of(thread)
        if call in WRITES:
            return _descriptor(arguments) in files or "RWF_DSYNC" in arguments or "RWF_SYNC" in arguments
        if call in OPENS:
            _set(files, result, "O_SYNC" in arguments or "O_DSYNC" in arguments)
        elif call == "close":
            files.discard(_descriptor(arguments))
        elif call in COPIES and (call != "fcntl" or "F_DUPFD" in arguments):
            _set(files, result, _descriptor(arguments) in files)
        elif call in CLONES:
            self._of(result)
        return call in SYNCS or "MS_SYNC" in arguments or "SYNC_FILE_RANGE_WAIT_AFTER" in arguments

    def _of(self, thread: int) -> set[int]:
        if thread not in self._of_thread:
            maker, how = self._begun.get(thread, (0, ""))
            files = self._of(maker) if maker else set()
            self._of_thread[thread] = files if "CLONE_FILES" in how else set(files)
        return self._of_thread[thread]


def _set(files: set[int], descriptor: int, waits: bool) -> None:
    (files.add if waits else files.discard)(descriptor)


def _descriptor(arguments: str) -> int:
    found = _DESCRIPTOR.match(arguments)
    return int(found[1]) if found else -1
