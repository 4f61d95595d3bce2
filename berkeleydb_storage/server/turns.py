"""Who has the turn: for a while the commits of one client come before those of all others.

Used by the server's thread alone.

Invariants:

1. One client at most has the turn, and none for longer than `TURN`.
2. Who lets the time run out has none for a while; and nobody has any, where all together have been slow lately.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from berkeleydb_storage.server.commits import Client

TURN = 0.02
"""Seconds that a client has for its answer while it has the turn and other commits wait."""
PENALTY = 1.0
"""Seconds without a turn for one who let the time run out; doubled each time, up to `LONGEST_PENALTY`."""
LONGEST_PENALTY = 64.0
QUICK_TURN = 0.005
"""Seconds that a turn of a client takes at most that is quick."""
SLOW_TURNS = 0.1
"""Seconds that the turns of all clients together may take longer than that, before nobody gets one for a while: then
conflicts are found at the end of a commit, and nobody waits for a crowd that takes the turn and does nothing."""
FORGIVEN = 0.1
"""Seconds of slow turns that are forgotten in a second."""


class Turns:
    """The turn, and who had it."""

    def __init__(self, loop: AbstractEventLoop, over: Callable[[], None]) -> None:
        """Begin with nobody; `over` is called by the event loop, `loop`, after each turn."""
        self.holder: Client | None = None
        """Who has the turn."""
        self._loop = loop
        self._over = over
        self._timer: TimerHandle | None = None
        self._began = 0.0
        self._slow = 0.0  # seconds of slow turns, at the time `_slow_at`
        self._slow_at = 0.0
        self._late: dict[int, tuple[float, float]] = {}  # id of a client -> no turn until, the penalty

    def may_have(self, client: Client) -> bool:
        """Tell whether a client, and all of them together, have not let others wait in vain lately."""
        until, _ = self._late.get(id(client), (0.0, 0.0))
        return self._loop.time() >= until and self._slow_turns(0.0) < SLOW_TURNS

    def _slow_turns(self, more: float) -> float:
        """Return the seconds of slow turns that are not forgotten yet, with some more."""
        now = self._loop.time()
        self._slow = max(0.0, self._slow - (now - self._slow_at) * FORGIVEN) + more
        self._slow_at = now
        return self._slow

    def give(self, client: Client) -> None:
        """Give a client the turn, which nobody has, if it may have it."""
        if self.may_have(client):
            self._began = self._loop.time()
            self.holder = client
            self._timer = self._loop.call_later(TURN, self._overrun, client)

    def _overrun(self, client: Client) -> None:
        _, penalty = self._late.get(id(client), (0.0, PENALTY / 2))
        penalty = min(2 * penalty, LONGEST_PENALTY)
        self._late[id(client)] = self._loop.time() + penalty, penalty
        self.end(client)

    def end(self, client: Client) -> None:
        """End the turn of a client, if it has it."""
        if self.holder is client:
            self.holder = None
            self._slow_turns(max(0.0, self._loop.time() - self._began - QUICK_TURN))
            if self._timer is not None:
                self._timer.cancel()
            self._loop.call_soon(self._over)

    def forget(self, client: Client) -> None:
        """Forget a client that is gone, and end its turn."""
        self._late.pop(id(client), None)
        self.end(client)
