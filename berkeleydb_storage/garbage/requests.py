"""Who wants a full pack, and the one that is under way.

Several may ask for one at the same time, and are served by the same; who asks when one has begun is served by the
next, because what became garbage since is no business of the one under way. The policy may want one, too.

Only `withdraw` may be called at any time, by any thread, and by the garbage collector of Python; for everything else
the caller holds the collector's lock, and not the engine's mutex.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from typing import NamedTuple

from berkeleydb_storage.errors import BerkeleyDBStorageError, CommitRefused
from berkeleydb_storage.garbage.packing import Pack, Step


class Packing(NamedTuple):
    """How far a full pack is."""

    activity: str
    """"collecting", "marking", "looking", "deleting" or "clearing"."""
    done: int
    """Objects in this activity so far; in "looking", looks into the table."""
    total: int | None
    """How many there will be, about; None where that is not known."""


class PackRequests:
    """The full packs of one storage."""

    def __init__(self, begin: Callable[[], Pack]) -> None:
        """Take no request yet; `begin` makes a pack that is to be done now."""
        self._begin = begin
        self._pack: Pack | None = None
        self._steps: Generator[Step] | None = None
        self._ended = 0
        self._tickets: list[int] = []
        self._broken: Exception | None = None
        self._kept = False  # whether the policy wanted the one under way, and may go on with it later
        self.by_policy = False
        """Whether the policy wants one."""
        self.packing: Packing | None = None
        """How far the one under way is, None where there is none."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for one that has not ended, or one has begun to delete, which must be gone on with."""
        return bool(self._tickets) or self.sweeping or (self.by_policy and self._broken is None)

    @property
    def sweeping(self) -> bool:
        """Whether what is doomed is what the one under way found."""
        return self._pack is not None and self._pack.sweeping

    def ask(self) -> int:
        """Ask for a pack of what is garbage now; return its number, for `serves` and `withdraw`."""
        begun = self._pack is not None and self._pack.begun
        ticket = self._ended + (2 if begun else 1)
        self._tickets.append(ticket)
        return ticket

    def withdraw(self, ticket: int) -> None:
        """Say that one who asked waits no more. It may have been said before."""
        with suppress(ValueError):
            self._tickets.remove(ticket)

    def is_served(self, ticket: int) -> bool:
        """Tell whether the pack with this number is complete.

        Raises:
            BerkeleyDBStorageError: it was given up, because another thread that did a step met an error.
        """
        if self._ended < ticket and ticket not in self._tickets:
            raise BerkeleyDBStorageError(f"packing was given up: {self._broken}") from self._broken
        return self._ended >= ticket

    def step(self) -> Step | None:
        """Do a step of the pack under way, or of a new one; None where it is complete.

        Raises:
            DiskFullError, DamagedError, StorageClosed: it cannot go on; what was deleted is. What lacks room, or is in
                the way of a migration, is begun again by the next step; else all requests are given up.
        """
        if self._steps is None:
            self._pack = self._begin()
            self._steps = self._pack.steps()
        self._kept = self._kept or self.by_policy
        try:
            step = next(self._steps, None)
        except BaseException as error:
            self.drop()
            if isinstance(error, Exception) and not isinstance(error, CommitRefused):
                self._broken = error
                self._tickets.clear()
            raise
        if step is None:
            self._end()
        else:
            going_on = self.packing is not None and self.packing.activity == step.activity
            done = self.packing.done if self.packing is not None and going_on else 0
            self.packing = Packing(step.activity, done + step.done, step.total)
        return step

    def tidy(self) -> None:
        """Drop a pack that nobody wants any more, unless the policy put it off."""
        if self._steps is not None and not self.wanted and not self._kept:
            self.drop()

    def drop(self) -> None:
        """End the pack under way, complete or not."""
        if self._steps is not None:
            self._steps.close()
        self._pack = self._steps = self.packing = None
        self._kept = False

    def _end(self) -> None:
        self.drop()
        self._ended += 1
        self._tickets[:] = [ticket for ticket in self._tickets if ticket > self._ended]
        self._broken = None
        self.by_policy = False
