"""Does OO7's operations on a peer: in a database that was just opened, and in one whose objects are all in memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from benchmarks.method.caches import drop
from benchmarks.method.contest import Contender
from benchmarks.oo7 import queries, traversals
from benchmarks.oo7.building import Builder
from benchmarks.oo7.changes import Changes
from benchmarks.oo7.expected import Expected
from benchmarks.oo7.plan import MEDIUM, SMALL, TINY, Plan
from benchmarks.peers.contract import Database
from benchmarks.peers.registry import open_database
from benchmarks.work.traversing import COLD, DROPPED
from benchmarks.work.updating import logs, occupied

READING: dict[str, Callable[[Builder], int]] = {
    "T1": traversals.t1,
    "T4": traversals.t4,
    "T6": traversals.t6,
    "T7": traversals.t7,
    "T8": traversals.t8,
    "T9": traversals.t9,
    "Q1": queries.q1,
    "Q2": queries.q2,
    "Q3": queries.q3,
    "Q4": queries.q4,
    "Q5": queries.q5,
    "Q7": queries.q7,
    "Q8": queries.q8,
}
UPDATING: dict[str, Callable[[Builder], int]] = {
    "T2a": traversals.t2a,
    "T2b": traversals.t2b,
    "T2c": traversals.t2c,
    "T3a": traversals.t3a,
    "T3b": traversals.t3b,
    "T3c": traversals.t3c,
    "T5do": traversals.t5do,
    "T5undo": traversals.t5undo,
}
FIRST = "T1"
"""Goes through almost all objects."""
INSERT, DELETE = "SM1", "SM2"
STRUCTURAL = [INSERT, DELETE]
ONCE = [*STRUCTURAL, "T5do", "T5undo"]
"""What does something else when it is done again."""
EVERYTHING = [*READING, *UPDATING, *STRUCTURAL]
CONFIGURATIONS = {each.name: each for each in (TINY, SMALL, MEDIUM)}

BUILD, DISK = "build s", "MB on disk"
HOT = "hot"
SHORT, AGAIN = 0.05, 9
"""Whatever takes fewer seconds is done so many more times when it is hot, and the median taken."""


class OO7(Contender):
    """Builds a database, does all operations, and looks at what is there in the end."""

    def __init__(
        self, peer: str, path: str, configuration: str, cold: Sequence[str], hot: Sequence[str], every: int = 1
    ) -> None:
        """Prepare.

        Args:
            peer: a name.
            path: where.
            configuration: the name of one.
            cold: which operations are done in a database that was just opened.
            hot: which are done with all objects in memory.
            every: of how many composite parts one is looked at in the end.
        """
        super().__init__(peer, path)
        self.plan = Plan(CONFIGURATIONS[configuration])
        self.expected = Expected(self.plan)
        self._cold, self._hot, self._every = cold, hot, every
        self._dropped = True

    def round(self) -> dict[str, float]:
        """Do everything once, and remove the database."""
        self._changes = Changes()
        self._open()
        found = {BUILD: self._builder.build()}
        self._database.close()
        found |= {DISK: occupied(self.path), **logs(self.path)}
        for name in sorted(self._cold, key=FIRST.__eq__):  # it comes last: then most is in memory for the hot ones
            self._open(empty=True)
            with _uncollected():
                found[column(name, COLD)] = self.operation(name) * 1e3
            if name != FIRST:
                self._database.close()
        if FIRST not in self._cold:
            self._open()
        with _uncollected():
            self._get_everything()
            found |= {column(name, HOT): self._often(name) * 1e3 for name in self._hot}
        self._database.close()
        self.verify()
        self.remove()
        return {**found, DROPPED: float(self._dropped)}

    def _open(self, *, empty: bool = False) -> None:
        self._database: Database = open_database(self.peer, self.path)
        self._builder = Builder(self._database, self.plan)
        if empty:
            self._dropped &= drop(self.path)

    def operation(self, name: str) -> float:
        """Do an operation and commit, if it changes something; return the seconds.

        Raises:
            AssertionError: it returned something else than the plan implies.
        """
        known = {**READING, **UPDATING, INSERT: self._changes.sm1, DELETE: self._changes.sm2}
        run, builder, database = known[name], self._builder, self._database
        started = time.perf_counter()
        found = run(builder)
        if name not in READING:
            database.commit()
        taken = time.perf_counter() - started
        self.expected.note(name)
        if found != self.expected.returns(name):
            raise AssertionError(f"{name} of {self.peer} returned {found}, not {self.expected.returns(name)}")
        return taken

    def _often(self, name: str) -> float:
        taken = [self.operation(name)]
        if taken[0] < SHORT and name not in ONCE:
            taken += [self.operation(name) for _ in range(AGAIN)]
        return median(taken)

    def _get_everything(self) -> None:
        """Fill the cache of objects: with the parts, and with the indexes."""
        for name, run in READING.items():
            found = run(self._builder)
            assert found == self.expected.returns(name), f"{name} of {self.peer} returned {found}"
        index = self._builder.design.atomic_by_date
        assert sum(1 for _ in self._builder.classes.everything(index)) == self.expected.returns("Q7")

    def verify(self) -> None:
        """Look at what is stored.

        Raises:
            AssertionError: it is not what the operations must have left.
        """
        self._open()
        self.expected.verify(self._builder, every=self._every)
        self._database.close()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let Python's own collector rest: it would go through all objects in memory, the same for everyone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def column(name: str, state: str) -> str:
    """Return the column of an operation."""
    return f"{name} {state} ms"
