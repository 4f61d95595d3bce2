"""How long somebody has to wait after failed attempts. Pure: time is passed in. For one thread.

1. Failures of an address (of an IPv6 one: its /64 network) double its delay, up to `CEILING`. Attempts that wait at the
   same time are spaced by it, so that many connections guess no faster than one.
2. Failures at a user's name double a delay of their own, which is at most `USER_CEILING` and not spaced: a stranger
   who guesses a name holds its owner up for that long and no longer.
3. Who succeeded for a user from an address does not wait there as that user, until he fails: other failures from the
   same address, or at the same name, do not hurt him.
4. A success forgives nothing else: whoever has one account cannot guess at others in between.
5. Failures are forgotten by half in `HALF_LIFE`. At most `capacity` addresses, users and pairs are remembered: the one
   whose last failure is the oldest is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address

from berkeleydb_storage.auth.networks import host_address

__all__ = ["CEILING", "HALF_LIFE", "USER_CEILING", "Throttle"]

FIRST = 0.25
"""Seconds after the first failure."""
CEILING = 30.0
"""Seconds, the longest delay of an address."""
USER_CEILING = 2.0
"""Seconds, the longest delay of a user at another address."""
HALF_LIFE = 120.0
"""Seconds in which half of the failures are forgotten."""
CAPACITY = 10_000
LONGEST_KEY = 256
"""Characters of a name that are remembered."""
NETWORK_BITS = 64


@dataclass
class _Failures:
    """Those of an address or a user, at a time."""

    count: float = 0.0
    at: float = 0.0
    next: float = 0.0
    """When the next attempt may be made, where attempts are spaced."""

    def decayed(self, now: float) -> float:
        return self.count * float(0.5 ** (max(0.0, now - self.at) / HALF_LIFE))


class _Table:
    """Failures by key, of which a limited number is remembered."""

    def __init__(self, capacity: int, ceiling: float) -> None:
        self._capacity = capacity
        self._ceiling = ceiling
        self._most = 1.0
        while FIRST * 2 ** (self._most - 1) < ceiling:
            self._most += 1
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def penalty(self, key: str, now: float) -> float:
        found = self._failures.get(key)
        count = 0.0 if found is None else found.decayed(now)
        return min(self._ceiling, FIRST * 2 ** (count - 1)) if count >= 0.5 else 0.0

    def spaced(self, key: str, now: float) -> float:
        """Return the delay of an attempt, and have the next one come after it."""
        penalty = self.penalty(key, now)
        if not penalty:
            return 0.0
        found = self._failures[key]
        found.next = min(max(now, found.next) + penalty, now + self._ceiling)
        return min(found.next - now, self._ceiling)

    def failed(self, key: str, now: float) -> None:
        found = self._failures.setdefault(key, _Failures())
        found.count = min(found.decayed(now) + 1, self._most)
        found.at = max(now, found.at)
        self._failures.move_to_end(key)
        if len(self._failures) > self._capacity:
            self._failures.popitem(last=False)


class Throttle:
    """Who failed lately, and who has to wait for that."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Know of no failures.

        Args:
            capacity: how many addresses, users and pairs of them are remembered, about 300 bytes each.
        """
        self._capacity = capacity
        self._addresses = _Table(capacity, CEILING)
        self._users = _Table(capacity, USER_CEILING)
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._addresses) + len(self._users) + len(self._trusted)

    def delay(self, address: str, user: str, now: float) -> float:
        """Return how many seconds an attempt has to wait; to be asked once for each, before it is answered.

        Args:
            address: the host of the client, or any text for those on Unix sockets, such as their user id.
            user: whom the client says to be.
            now: seconds on a clock that never goes back.
        """
        if (_network(address), user[:LONGEST_KEY]) in self._trusted:
            return 0.0
        return max(self._addresses.spaced(_network(address), now), self._users.penalty(user[:LONGEST_KEY], now))

    def failed(self, address: str, user: str, now: float) -> None:
        """Note a failed attempt."""
        key, name = _network(address), user[:LONGEST_KEY]
        self._trusted.pop((key, name), None)
        self._addresses.failed(key, now)
        self._users.failed(name, now)

    def succeeded(self, address: str, user: str, now: float) -> None:
        """Note an attempt that succeeded."""
        pair = _network(address), user[:LONGEST_KEY]
        self._trusted[pair] = None
        self._trusted.move_to_end(pair)
        if len(self._trusted) > self._capacity:
            self._trusted.popitem(last=False)


def _network(address: str) -> str:
    found = host_address(address)
    if found is None:
        return address[:LONGEST_KEY]
    if isinstance(found, IPv6Address):
        return f"{int(found) >> (128 - NETWORK_BITS):x}/{NETWORK_BITS}"
    return str(found)
