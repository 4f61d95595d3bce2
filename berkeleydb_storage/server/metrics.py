"""What a server counts. Written by its thread; any other may take a snapshot, which is a little out of step then."""

from __future__ import annotations

from typing import Any

BUCKETS = 28
"""Of a histogram: up to 1, 2, 4 … 2^27 microseconds, which are two minutes."""


class Histogram:
    """How often something took how long, in powers of two."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        """The last one counts all that is longer, too."""
        self.total = 0.0
        """Seconds."""

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[min(int(seconds * 1e6).bit_length(), BUCKETS - 1)] += 1
        self.total += seconds

    def quantile(self, share: float) -> float:
        """Return the seconds that a share of all did not exceed, up to a factor of two."""
        left = share * sum(self.counts)
        for power, count in enumerate(self.counts):
            left -= count
            if left <= 0 and count:
                return float(2**power) / 1e6
        return 0.0

    def values(self) -> dict[str, Any]:
        """Return its numbers, times in seconds."""
        count = sum(self.counts)
        return {
            "count": count,
            "mean": self.total / count if count else 0.0,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "buckets": list(self.counts),
        }


class Metrics:
    """The numbers of a server since it began."""

    def __init__(self) -> None:
        self.accepted = 0
        self.turned_away = 0
        self.failed_passwords = 0
        self.loads = 0
        self.prefetched = 0
        self.commits = 0
        self.records = 0
        self.conflicts = 0
        self.refused = 0
        self.asked = 0
        self.received = 0
        self.sent = 0
        self.flushes = 0
        self.violations = 0
        self.serving = Histogram()
        """What was there of a client's requests, answered without a wait: loads, mostly."""
        self.committing = Histogram()
        """Commits, from the last byte to the acknowledgement."""
        self.flushing = Histogram()
        self.groups = Histogram()
        """Commits that became durable together; counts in place of microseconds."""

    def flushed(self, commits: int, seconds: float) -> None:
        """Count a flush."""
        self.flushes += 1
        self.flushing.add(seconds)
        self.groups.add(commits / 1e6)

    def committed(self, records: int, size: int, seconds: float) -> None:
        """Count a commit."""
        self.commits += 1
        self.records += records
        self.committing.add(seconds)

    def values(self) -> dict[str, Any]:
        """Return a snapshot."""
        return {
            name: value.values() if isinstance(value, Histogram) else value for name, value in self.__dict__.items()
        }
