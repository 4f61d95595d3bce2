"""When to collect garbage, and how much at a time. Pure: a policy gets numbers and returns one.

Users may write their own: a subclass of `garbage_collection_interface`, or anything with its members.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import inf
from typing import NamedTuple

from berkeleydb_storage.errors import OptionError

GRACE = 60.0
"""Default grace period: longer than a web request that unlinks in one transaction and links again in a later one."""


DAY = 86_400.0
MINUTES = 24 * 60
IDLE = 1.0
"""Seconds without use after which a storage is idle."""
FULL_PACE, QUIET_PACE = 5000, 500
"""Records a turn when the storage is idle, and when it is in use. Measured with a thread that loads and commits without
a pause: at 1,000 ten times a second, the 99th percentiles of its latencies grow by less than a third; at 2,000, that
of durable commits doubles."""


class GarbageNumbers(NamedTuple):
    """What a garbage collection policy is told."""

    waiting: int
    """Objects that are known to be garbage, and not yet deleted."""
    committed: int
    """Objects stored by the commit that just ended; 0 when asked from the background thread."""
    idle: float
    """Seconds since somebody used the storage, as far as it was noticed: loads are noticed between two questions, or
    once a second where there is nothing to collect."""
    suspects: int = 0
    """Objects that may hang on a dead cycle, and are still to be looked at."""
    unsettled: int = 0
    """Suspects that were looked at, and of which only a full pack can tell whether they are garbage. One more where
    not all suspects are known: after a migration, a repair, and an upgrade from format 1."""
    objects: int = 0
    """Objects stored, garbage included."""
    packing: bool = False
    """Whether a full pack is under way, or asked for."""
    since_pack: float = 0.0
    """Seconds since a full pack was complete; where there was none, since the storage was created."""
    since_compact: float = inf
    """Seconds since a compaction that the policy asked for was complete; infinite: none was, since the opening."""
    now: float = 0.0
    """Seconds since the epoch."""


class garbage_collection_interface:  # noqa: N801 - the name that the original release gave it
    """A policy that decides how much garbage to collect. Subclass it, and override `amount`, perhaps `pack`."""

    grace: float = GRACE
    """Seconds that an object stays after it lost its last referrer, so that a later transaction may link it again.
    ``pack()`` ignores it."""

    interval: float | None = None
    """Seconds between two questions, asked from a background thread, which then also does the work. None: asked by
    every commit, after it; the work is then part of the time that the commit takes."""

    def amount(self, numbers: GarbageNumbers) -> int:
        """Decide how much to do now.

        Args:
            numbers: how much is waiting, and what the storage was doing.

        Returns:
            At most so many objects are deleted, or read to find garbage; 0 for none. A full pack that is wanted goes
            on by a few more. It must not call the storage, and must return at once.
        """
        raise NotImplementedError

    def pack(self, numbers: GarbageNumbers) -> bool:
        """Decide whether a full pack should be going on now. By default: no.

        It is asked as often as `amount`. While it says yes a pack is begun, if there is none, and goes on with the
        amounts of `amount`; when it says no, one that it began is put off until it says yes again.

        Args:
            numbers: as `amount` gets them.
        """
        return False

    def compact(self, numbers: GarbageNumbers) -> bool:
        """Decide whether the room of what was deleted should be given back to the file system now. By default: no.

        It is asked as often as `amount`. While it says yes a compaction goes on, a step of a few milliseconds each
        time, more where the storage is idle; when it says no, it is put off.

        Args:
            numbers: as `amount` gets them.
        """
        return False


class GarbageManual(garbage_collection_interface):
    """Nothing is collected but by ``pack()``."""

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return 0."""
        return 0


class GarbageInline(garbage_collection_interface):
    """Some work after every commit, in proportion to it, so that garbage cannot pile up, cycles included.

    An object that is garbage is deleted once, and read up to three times before to find that out. What only a full pack
    can find waits for ``pack()``.
    """

    def __init__(self, grace: float = GRACE, factor: float = 4.0, least: int = 10) -> None:
        """Set how much a commit deletes.

        Args:
            grace: seconds; default 60.
            factor: records to read or delete for each one that the commit stored; default 4.
            least: records to read or delete whatever it stored; default 10.

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
    """The default: a background thread, at a pace that grows with the garbage, and with how idle the storage is."""

    def __init__(self, grace: float = GRACE, interval: float = 0.1, pack_interval: float | None = DAY) -> None:
        """Set the pace.

        Args:
            grace: seconds; default 60.
            interval: seconds between two turns; default 0.1.
            pack_interval: seconds from one full pack to the next, which is done only where suspects are left that
                nothing else can settle; default a day. None: never.

        Raises:
            OptionError: `grace` or `pack_interval` is negative, `interval` is not positive, or one of them not finite.
        """
        if not (0 <= grace < inf and 0 < interval < inf):
            raise OptionError(
                f"grace is finite and not negative, interval finite and positive, not {grace!r} and {interval!r}"
            )
        if pack_interval is not None and not 0 <= pack_interval < inf:
            raise OptionError(f"pack_interval is a number of seconds, or None, not {pack_interval!r}")
        self.grace = grace
        self.interval = interval
        self.pack_interval = pack_interval

    def amount(self, numbers: GarbageNumbers) -> int:
        """Return a pace that the foreground hardly notices, faster where much is waiting or nobody is there."""
        if numbers.idle > IDLE:
            return FULL_PACE
        pace = QUIET_PACE + min((numbers.waiting + numbers.suspects) // 1000, 3 * QUIET_PACE)
        return max(pace, 2 * QUIET_PACE) if numbers.packing else pace

    def pack(self, numbers: GarbageNumbers) -> bool:
        """Say yes where suspects are left over and the last full pack is `pack_interval` ago, until it is done."""
        due = self.pack_interval is not None and numbers.since_pack >= self.pack_interval
        return due and (numbers.unsettled > 0 or numbers.packing)


class GarbageNightly(GarbageThread):
    """As `GarbageThread`; once a night, in a window of time, also a full pack, and after it a compaction."""

    def __init__(self, begin: str = "02:00", end: str = "05:00", grace: float = GRACE, interval: float = 0.1) -> None:
        """Set the window.

        Args:
            begin: when it begins, as "HH:MM", in the local time of the machine; default "02:00".
            end: when it ends; default "05:00". A pack that is not complete by then goes on the next night.
            grace: seconds; default 60.
            interval: seconds between two turns; default 0.1.

        Raises:
            OptionError: a time is none, or both are the same; or as `GarbageThread` does.
        """
        super().__init__(grace, interval, None)
        self.begin, self.end = _minutes(begin), _minutes(end)
        if self.begin == self.end:
            raise OptionError(f"the window of {begin} to {end} is empty: let it end at another time than it begins")

    def pack(self, numbers: GarbageNumbers) -> bool:
        """Say yes within the window, until a pack was complete in it."""
        begun = self._begun(numbers.now)
        return begun is not None and numbers.since_pack > numbers.now - begun

    def compact(self, numbers: GarbageNumbers) -> bool:
        """Say yes within the window, after the pack, until a compaction was complete in it."""
        begun = self._begun(numbers.now)
        return begun is not None and not self.pack(numbers) and numbers.since_compact > numbers.now - begun

    def _begun(self, now: float) -> float | None:
        """Return when the window began that is open at a time, None where it is not; in seconds since the epoch."""
        here = datetime.fromtimestamp(now)
        into = timedelta(minutes=(here.hour * 60 + here.minute - self.begin) % MINUTES)
        if into >= timedelta(minutes=(self.end - self.begin) % MINUTES):
            return None
        begin = here.replace(second=0, microsecond=0) - into
        return min(begin.replace(fold=fold).timestamp() for fold in (0, 1))  # where clocks change, the earlier one


def _minutes(text: str) -> int:
    """Return the minute of the day that "HH:MM" says."""
    try:
        parsed = datetime.strptime(text, "%H:%M")
    except (TypeError, ValueError):
        raise OptionError(f'a time of the day is "HH:MM", not {text!r}') from None
    return parsed.hour * 60 + parsed.minute
