"""Watches what else the machine did while a benchmark ran: others make numbers worse, and nobody sees it in them.

Who is not ours: every process that is neither this one, nor descends from it, nor did so until it ended. The kernel's
own threads, and its interrupts, are nobody's: most of their work is to bring to the disk what we wrote.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.method.facts import cores, sync_time
from benchmarks.method.syncs import tree

MOST_OTHERS = 0.1
"""Of one processor: what others may use before we warn. Like the two below, it is chosen, not measured: what a share
costs the numbers takes a machine that is quiet otherwise."""
MOST_STEAL = 0.02
"""Of all processors: what the machine below may keep for itself before we warn."""
MOST_SLOWER = 1.5
"""How much slower syncs may be after than before, or the other way round, before we warn."""

KTHREADD = 2
"""Number of the process that all threads of the kernel descend from (Linux)."""
TICKS = os.sysconf("SC_CLK_TCK")
SYNCS = 25
"""Syncs that are timed before and after."""


@dataclass(frozen=True)
class Busy:
    """What the machine did meanwhile."""

    seconds: float
    ours: float
    """Processors that we used, on average: 1.0 is one of them, all the time."""
    others: float | None
    """Processors that others used; None where the system does not tell."""
    steal: float | None
    """Share of all processors that the machine below gave to others."""
    waiting: float | None
    """Share of the time in which some process, ours or another, waited for the disk (/proc/pressure/io)."""
    load: float
    """Load average of the last minute, at the end."""
    sync_before: float
    """Microseconds of a small sync right before, and after."""
    sync_after: float

    @property
    def warnings(self) -> list[str]:
        """What makes the numbers doubtful."""
        found = []
        if self.others is not None and self.others > MOST_OTHERS:
            found.append(f"other processes used {self.others:.2f} of a processor")
        if self.steal is not None and self.steal > MOST_STEAL:
            found.append(f"the machine below took {self.steal:.0%} of the processors")
        slower = self.sync_after / self.sync_before if self.sync_before else 1.0
        if not 1 / MOST_SLOWER <= slower <= MOST_SLOWER:
            found.append(f"a sync took {self.sync_before:.0f} µs before and {self.sync_after:.0f} µs after")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON knows."""
        return {name: round(value, 4) if value is not None else None for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Busy:
        """Return what was written."""
        return cls(**found)


@dataclass(frozen=True)
class _Now:
    """Seconds since the system began, but for `clock`."""

    clock: float
    ours: float
    busy: float | None
    steal: float | None
    waiting: float | None


class Watch:
    """Watches from its construction on. Used by one thread."""

    def __init__(self, directory: Path) -> None:
        """Begin.

        Args:
            directory: on the disk whose syncs are timed.
        """
        self._directory = directory
        self._sync = sync_time(directory, SYNCS)
        self._begun = _now()

    def end(self) -> Busy:
        """Return what happened since. Processes of ours that ended are to be waited for before."""
        begun, ended = self._begun, _now()
        seconds = ended.clock - begun.clock
        ours = (ended.ours - begun.ours) / seconds
        busy, steal = _passed(begun.busy, ended.busy, seconds), _passed(begun.steal, ended.steal, seconds)
        return Busy(
            seconds,
            ours,
            None if busy is None else max(busy - ours, 0.0),
            None if steal is None else steal / (os.cpu_count() or cores()),
            _passed(begun.waiting, ended.waiting, seconds),
            os.getloadavg()[0],
            self._sync * 1e6,
            sync_time(self._directory, SYNCS) * 1e6,
        )


def _passed(begun: float | None, ended: float | None, seconds: float) -> float | None:
    return None if begun is None or ended is None else (ended - begun) / seconds


def _now() -> _Now:
    busy, steal = _machine()
    return _Now(time.monotonic(), _ours(), busy, steal, _waited())


def _machine() -> tuple[float | None, float | None]:
    """Return (used by somebody of this system, taken by the machine below)."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None, None
    user, nice, system, _, _, _, _, steal = (int(each) / TICKS for each in first.split()[1:9])
    return user + nice + system - _kernel(), steal


def _kernel() -> float:
    """Return what the kernel's threads used; 0 where they are not seen, as from some containers."""
    try:
        named = Path(f"/proc/{KTHREADD}/comm").read_text().strip()
    except OSError:
        return 0.0
    if named != "kthreadd":
        return 0.0
    return sum(_used(int(entry.name), of=KTHREADD) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _ours() -> float:
    """Return what this process used, and all that descend from it, also those that ended and were waited for."""
    return sum(_used(pid) for pid in tree(os.getpid())) if Path("/proc/self/stat").exists() else sum(os.times()[:4])


def _used(pid: int, of: int | None = None) -> float:
    """Return what a process used, with those of its children that it waited for; 0 where its parent is not `of`."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended meanwhile
        return 0.0
    return sum(map(int, after[11:15])) / TICKS if of in (None, int(after[1])) else 0.0


def _waited() -> float | None:
    try:
        some = Path("/proc/pressure/io").read_text().split()
    except OSError:
        return None
    return int(some[4].partition("=")[2]) / 1e6
