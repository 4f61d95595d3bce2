"""First records in transactions as large as a peer likes them. Imports nothing of any peer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.peers.contract import Record

PLENTY = 10_000
"""Records in a transaction of a program that fills an empty store, and would begin anew if it were interrupted."""


def together(batches: Iterable[Sequence[Record]], least: int = PLENTY) -> Iterator[list[Record]]:
    """Yield what is in these batches in fewer and larger ones, of at least so many records, but for the last.

    Of a record that is in several of those which are put together, the last is taken.
    """
    found: dict[bytes, bytes] = {}
    for batch in batches:
        found.update(batch)
        if len(found) >= least:
            yield list(found.items())
            found.clear()
    if found:
        yield list(found.items())
