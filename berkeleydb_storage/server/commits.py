"""What the desk works on: commits, wishes for the turn, and the clients that they come from. Holds no state of its own.

Used by the server's thread alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Protocol

from berkeleydb_storage.server.interest import Interest

Pending = Mapping[bytes, tuple[bytes, tuple[bytes, ...]]]


class Client(Protocol):
    """What the desk knows of a connection."""

    told: int
    """The newest transaction that it was told of."""
    interest: Interest
    ended: bool
    can_be_asked: bool
    """Whether it can be asked about what others changed after it has sent a commit."""

    def proceed(self) -> None:
        """Go on with its requests."""

    def give_up(self, error: Exception) -> None:
        """What it waits for does not come: it is not brought to the disk."""

    def take_turn(self) -> None:
        """It has the turn."""

    def ask(self, commit: Commit, news: list[bytes]) -> None:
        """Ask whether it still wants its commit, given what others changed."""

    def stored(self, commit: Commit) -> None:
        """Take note that a commit was applied: from now on others may change its objects."""

    def finish(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge a commit."""

    def refuse(self, commit: Commit, error: Exception) -> None:
        """Tell that nothing of it was stored, or, with a `CommitInDoubt`, that it is not on the disk."""


class Commit:
    """A commit of a client, whole and well-formed."""

    __slots__ = ("client", "mark", "overwrites", "records", "size", "started", "tries")

    def __init__(self, client: Client, records: Pending, size: int, mark: bytes | None) -> None:
        self.client = client
        self.records = records
        self.size = size
        self.mark = mark
        self.tries = 0
        self.overwrites: list[bytes] = []
        self.started = perf_counter()


class Wish:
    """A client's wish to have the turn."""

    __slots__ = ("client",)

    def __init__(self, client: Client) -> None:
        self.client = client
