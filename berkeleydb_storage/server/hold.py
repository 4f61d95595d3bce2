"""The engine's mutex, held from one turn of the event loop to the next while a large commit is applied.

Used by the server's thread alone.

Invariants:

1. While `held`, objects may be loaded, and nothing else may be done with the engine in this thread: it would wait for
   itself. What needs more comes back by `when_free`.
2. `records` has what is being applied while `held`, and is empty else.
"""

from __future__ import annotations

from berkeleydb_storage.engine import Engine
from berkeleydb_storage.server.commits import Client, Pending


class Hold:
    """Whether the mutex is held, for what, and who waits for that."""

    def __init__(self, engine: Engine) -> None:
        """Begin without the mutex of this engine."""
        self.held = False
        self.records: Pending = {}
        self._engine = engine
        self._blocked: list[Client] = []

    def begin(self, records: Pending) -> None:
        """Keep the mutex, which the caller has, to apply these."""
        self.held = True
        self.records = records

    def end(self) -> list[Client]:
        """Let go of the mutex; return those who are to proceed now."""
        self.held = False
        self.records = {}
        self._engine.lock.release()
        blocked, self._blocked = self._blocked, []
        return blocked

    def when_free(self, client: Client) -> None:
        """Have a client proceed when the mutex is not held any more."""
        self._blocked.append(client)
