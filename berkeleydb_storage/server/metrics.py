"""What a server counts. Written by its thread; any other may take a snapshot, which is a little out of step then.

Adding one number takes about 0.1 microseconds: it is done for every request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

PARTS = 4
"""Buckets for each doubling: a quantile is at most a quarter too high."""
TIMES = tuple(2**power * (1 + part / PARTS) / 1e6 for power in range(27) for part in range(PARTS))
"""Upper bounds of buckets, in seconds: from 1 microsecond to two minutes."""
SIZES = (1, 2, 3, *(2**power * (PARTS + part) // PARTS for power in range(2, 15) for part in range(PARTS)))
"""Upper bounds of buckets for whole numbers, up to 28,672."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Histogram:
    """How often which values came: latencies, sizes."""

    __slots__ = ("bounds", "counts", "largest", "total")

    def __init__(self, bounds: Sequence[float] = TIMES) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The last one counts what is larger than all bounds."""
        self.total = 0.0
        """Sum of all values."""
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    def values(self) -> dict[str, Any]:
        """Return its numbers: the quantiles as upper bounds, the buckets that are not empty as [bound, count].

        The bound of what is larger than all is None.
        """
        counts, largest, total = list(self.counts), self.largest, self.total
        count = sum(counts)
        return {
            "count": count,
            "sum": total,
            "mean": total / count if count else 0.0,
            **{name: self._quantile(counts, share * count, largest) for name, share in QUANTILES.items()},
            "max": largest,
            "buckets": [[bound, n] for bound, n in zip((*self.bounds, None), counts, strict=True) if n],
        }

    def _quantile(self, counts: list[int], rank: float, largest: float) -> float:
        """Return a bound that so many values did not exceed."""
        for bound, count in zip(self.bounds, counts, strict=False):
            rank -= count
            if rank <= 0:
                return min(bound, largest)
        return largest


class Metrics:
    """The numbers of a server since it began."""

    def __init__(self) -> None:
        self.accepted = 0
        """Connections, those that were turned away included."""
        self.turned_away = 0
        """Connections that a limit, or the list of networks, did not let in."""
        self.violations = 0
        """Connections that were ended because of what the client did, or did not do."""
        self.failed_passwords = 0
        self.loads = 0
        """Objects that were asked for one by one."""
        self.prefetched = 0
        """Objects that were sent beside one that was asked for."""
        self.commits = 0
        """Acknowledged."""
        self.records = 0
        """Stored by these."""
        self.committed_bytes = 0
        """Bytes of these records."""
        self.asked = 0
        """Commits whose client was asked, because others had changed something that it has."""
        self.conflicts = 0
        """Commits that were not stored: refused, or given up by a client that was asked."""
        self.refused = 0
        """Those of them that were refused when their turn came."""
        self.received = 0
        """Bytes."""
        self.sent = 0
        """Bytes."""
        self.flushes = 0
        self.packs = 0
        """Full packs that clients asked for, and that were completed."""
        self.failed_packs = 0
        self.backups = 0
        """Backups that clients asked for, and that were completed."""
        self.failed_backups = 0
        self.serving = Histogram()
        """Seconds for the requests that came at once, as far as they were answered without a wait: loads, mostly."""
        self.committing = Histogram()
        """Seconds for a commit, from its last byte to the acknowledgement."""
        self.flushing = Histogram()
        """Seconds for a flush."""
        self.groups = Histogram(SIZES)
        """Commits that became durable together."""

    def flushed(self, commits: int, seconds: float) -> None:
        """Count a flush, and how many commits it made durable; none: it was for those who read."""
        self.flushes += 1
        self.flushing.add(seconds)
        if commits:
            self.groups.add(commits)

    def committed(self, records: int, size: int, seconds: float) -> None:
        """Count a commit."""
        self.commits += 1
        self.records += records
        self.committed_bytes += size
        self.committing.add(seconds)

    def values(self) -> dict[str, Any]:
        """Return a snapshot, as values for JSON."""
        return {
            name: value.values() if isinstance(value, Histogram) else value for name, value in self.__dict__.items()
        }
