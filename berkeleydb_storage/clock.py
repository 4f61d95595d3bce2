"""The time of a storage, which never goes back.

Owns the time of the newest transaction. `time` may be called from any thread; `tick` by the one that holds the mutex.

Invariants:

1. No two transactions have the same time, and later ones have later times, whatever the system's clock does.
"""

from __future__ import annotations

import time


class Clock:
    """The time in microseconds since the epoch, but never before that of the newest transaction."""

    def __init__(self, newest: int) -> None:
        """Begin with the time of the newest transaction."""
        self._last = newest, time.monotonic_ns()  # the newest transaction's time, by either clock

    def time(self) -> int:
        """Return the time in microseconds since the epoch.

        It never goes back, not even across openings, and never stands still: after the clock was set back it stays
        ahead of it, so that what became garbage before gets older all the same.
        """
        last, at = self._last
        return max(last + (time.monotonic_ns() - at) // 1000, time.time_ns() // 1000)

    def tick(self) -> int:
        """Return a time that no earlier transaction has. The caller holds the mutex."""
        (last, then), at = self._last, time.monotonic_ns()
        now = max(last + 1, last + (at - then) // 1000, time.time_ns() // 1000)
        self._last = now, at
        return now
