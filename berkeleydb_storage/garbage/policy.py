"""When to collect garbage, and how much at a time. Pure: a policy gets numbers and returns one.

Users may write their own: a subclass of `garbage_collection_interface`, or anything with its members.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from berkeleydb_storage.errors import OptionError

GRACE = 60.0
"""Default grace period: longer than a web request that unlinks in one transaction and links again in a later one."""


class GarbageNumbers(NamedTuple):
    """What a garbage collection policy is told."""

    waiting: int
    """Objects in the queue: without referrers, and not yet deleted."""
    committed: int
    """Objects stored by the commit that just ended; 0 when asked from the background thread."""
    idle: float
    """Seconds since the last commit."""


class garbage_collection_interface:  # noqa: N801 - the name that the original release gave it
    """A policy that decides how much garbage to collect. Subclass it, and override `amount`."""

    grace: float = GRACE
    """Seconds that an object stays after it lost its last referrer, so that a later transaction may link it again.
    ``pack()`` ignores it."""

    interval: float | None = None
    """Seconds between two questions, asked from a background thread, which then also does the work. None: asked by
    every commit, after it; the work is then part of the time that the commit takes."""

    def amount(self, numbers: GarbageNumbers) -> int:
        """Decide how many objects to delete now.

        Args:
            numbers: how much is waiting, and what the storage was doing.

        Returns:
            At most so many are deleted; 0 for none. It must not call the storage, and must return at once.
        """
        raise NotImplementedError


class GarbageManual(garbage_collection_interface):
    """Nothing is collected but by ``pack()``."""

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return 0."""
        return 0


class GarbageInline(garbage_collection_interface):
    """Some objects after every commit: twice as many as it stored, so that garbage cannot pile up."""

    def __init__(self, grace: float = GRACE, factor: float = 2.0, least: int = 10) -> None:
        """Set how much a commit deletes.

        Args:
            grace: seconds; default 60.
            factor: objects to delete for each one that the commit stored; default 2.
            least: objects to delete whatever it stored; default 10.

        Raises:
            OptionError: one of them is negative or not finite.
        """
        if not (0 <= grace < inf and 0 <= factor < inf and least >= 0):
            raise OptionError(
                f"grace, factor and least are finite and not negative, not {grace!r}, {factor!r}, {least!r}"
            )
        self.grace = grace
        self.factor = factor
        self.least = least

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return a number in proportion to the commit."""
        return max(self.least, int(numbers.committed * self.factor))


class GarbageThread(garbage_collection_interface):
    """The default: a background thread, at a pace that grows with the queue, and with how idle the storage is."""

    def __init__(self, grace: float = GRACE, interval: float = 0.1) -> None:
        """Set the pace.

        Args:
            grace: seconds; default 60.
            interval: seconds between two turns; default 0.1.

        Raises:
            OptionError: `grace` is negative, `interval` is not positive, or one of them not finite.
        """
        if not (0 <= grace < inf and 0 < interval < inf):
            raise OptionError(
                f"grace is finite and not negative, interval finite and positive, not {grace!r} and {interval!r}"
            )
        self.grace = grace
        self.interval = interval

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return 1 % of the queue, within 200 and 2,000; five times that when nothing was committed for a second."""
        pace = min(max(200, numbers.waiting // 100), 2000)
        return pace * 5 if numbers.idle > 1.0 else pace
