"""What every peer offers to the workloads, whatever it is: records by their oids, or objects below a root.

A workload knows nothing of a peer but this, so that all do the same work. Each is used by one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

Record = tuple[bytes, bytes]
"""An oid of 8 bytes, and what is stored under it."""


class Store(Protocol):
    """The level of records: what a storage of an object database does, or a key-value store."""

    def fill(self, batches: Iterable[Sequence[Record]]) -> None:
        """Store the first records of an empty store, a transaction for each batch (`objects.records.batches`) or more.

        It may wait for the disk at the end only, where the peer offers that.
        """

    def load(self, oid: bytes) -> bytes:
        """Return a record; KeyError where there is none."""

    def commit(self, changes: Sequence[Record]) -> None:
        """Store these records in one transaction, as durable as the peer says."""

    def close(self) -> None:
        """Close it as its documents advise: what was committed is there when it is opened again."""


class Database(Protocol):
    """The level of objects: a connection with its cache, which holds as many objects as it likes."""

    toolkit: str
    """Whose base class its objects have: "durus" or "zodb", as in `benchmarks.objects.durus_classes`."""
    root: Any
    """A mapping, persistent itself: names -> objects."""

    def commit(self) -> None:
        """Commit what changed, as durable as the peer says."""

    def forget(self) -> None:
        """Empty the cache of objects: the next use of each object, but the root, loads it."""

    def collect(self) -> None:
        """Delete all that the root does not lead to, and give back what the files can do without."""

    def close(self) -> None:
        """Close it as its documents advise."""
