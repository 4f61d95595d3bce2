"""What a connection knows of the protocol that its client speaks. Holds no state of its own.

Used by the server's thread alone.
"""

from __future__ import annotations

from typing import Protocol

from berkeleydb_storage.server.commits import Commit


class Dialect(Protocol):
    """A protocol, with the state of one client in it."""

    expecting: bool
    """Whether it waits for the client to go on with what it has begun."""

    def parse(self, data: bytes) -> int:
        """Serve the requests in `data`, until one makes the connection busy; return where the next one begins."""

    def ask(self, commit: Commit, news: list[bytes]) -> None:
        """Ask whether a commit is still wanted."""

    def finish(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge a commit."""

    def refuse(self, commit: Commit, error: Exception) -> None:
        """Tell that a commit is refused."""

    def fail(self, error: Exception) -> None:
        """Tell that a request failed."""

    def take_turn(self) -> None:
        """Go on with the turn."""
