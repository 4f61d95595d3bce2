"""One transaction of the engine: what it stores and deletes, how that changes the counts, and how it ends.

The caller holds the engine's mutex from the beginning to the end. Killed before the commit: nothing of it is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from berkeleydb_storage.environment import LIBRARY_ERRORS, NO_SYNC, Transaction
from berkeleydb_storage.errors import CommitInDoubt
from berkeleydb_storage.format import references

if TYPE_CHECKING:
    from berkeleydb_storage.engine import Engine, Listener


class Change:
    """One transaction of the engine. It ends with the ``with`` block: committed, or undone by an exception.

    The caller holds the mutex.
    """

    __slots__ = (
        "_engine",
        "_size",
        "_tid",
        "born",
        "changes",
        "deleted",
        "dooms",
        "ended",
        "lost",
        "mark",
        "now",
        "origin",
        "stored",
        "touched",
        "transaction",
    )

    transaction: Transaction

    def __init__(self, engine: Engine, size: int) -> None:
        """Prepare a transaction of about `size` bytes."""
        self._engine = engine
        self._size = size
        self.changes: dict[bytes, int] = {}
        self.born: set[bytes] = set()
        self.lost: set[bytes] = set()
        self.stored: list[bytes] = []
        self.deleted: list[bytes] = []
        self.touched = False
        self.dooms = False
        self.ended = False
        self.origin: Listener | None = None
        self.mark: bytes | None = None

    def __enter__(self) -> Change:
        """Begin it."""
        self._tid = self._engine.journal.tid
        self.transaction = self._engine.begin(self._size)
        self.now = self._engine.tick()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit it if it changed objects or queues, or else just end it; undo it on an exception."""
        engine = self._engine
        if error is None:
            try:
                if self.stored or self.deleted or self.touched:
                    engine.commit_change(self)
                else:
                    self.ended = True
                    self.transaction.commit(NO_SYNC)
                return
            except BaseException as failure:
                error = failure
        if self._undo() and isinstance(error, Exception):
            raise CommitInDoubt(
                f"transaction {engine.journal.tid} of {engine.environment.path} was applied, but a crash may lose it"
            ) from error
        if isinstance(error, LIBRARY_ERRORS):
            raise engine.failed(error) from error
        if kind is None:
            raise error

    def _undo(self) -> bool:
        """Undo what can be undone, and take the totals from the disk: they tell what a failed commit came to.

        Returns:
            Whether the transaction was applied all the same; then everyone knows of it.
        """
        engine = self._engine
        try:
            if not self.ended:
                self.transaction.abort()
            engine.reload()
        except LIBRARY_ERRORS as failure:
            raise engine.failed(failure) from failure
        applied = engine.journal.tid != self._tid
        if applied:
            engine.adopt_commit(self)
        return applied

    def store(self, oid: bytes, record: bytes, refs: tuple[bytes, ...]) -> None:
        """Write a record, and sum up how it changes the counts of others."""
        engine, changes = self._engine, self.changes
        old = None if engine.is_new(oid) else engine.objects.get(oid)
        self.stored.append(oid)
        if old is None:
            self.born.add(oid)
            changes.setdefault(oid, 0)
            for ref in refs:
                changes[ref] = changes.get(ref, 0) + 1
        elif old == record:
            return
        elif (before := references(oid, old)) != refs:
            for ref in set(refs).difference(before):
                changes[ref] = changes.get(ref, 0) + 1
            lost = set(before).difference(refs)
            for ref in lost:
                changes[ref] = changes.get(ref, 0) - 1
            self.lost |= lost
        engine.objects.put(oid, record, self.transaction)

    def create(self, oid: bytes, record: bytes) -> None:
        """Write the record of a new object; counts are the caller's business."""
        self._engine.objects.put(oid, record, self.transaction)
        self.born.add(oid)
        self.stored.append(oid)

    def settle(self) -> list[bytes]:
        """Apply the changes of the counts.

        Returns:
            The objects that are referred to and do not exist, or that are stored or referred to and doomed. If there
            are any, undo the transaction.
        """
        engine = self._engine
        if engine.doomed.closed and (doomed := engine.doomed.among(self.touches())):
            return doomed
        return engine.counts.settle(self.changes, self.born, self.lost, self.now, self.transaction)

    def touches(self) -> set[bytes]:
        """Return what it stored and deleted, and what gained or lost a reference by that."""
        return {*self.changes, *self.stored, *self.deleted}

    def touch(self, oids: Iterable[bytes]) -> None:
        """Note that a record that refers to these objects is stored or deleted; counts are the caller's business."""
        self.changes.update(dict.fromkeys(oids, 0))

    def delete(self, oid: bytes) -> bytes:
        """Delete an object without referrers and its count; return its record."""
        engine = self._engine
        record = engine.objects[oid]
        engine.objects.delete(oid, txn=self.transaction)
        engine.counts.forget(oid, self.transaction)
        self.deleted.append(oid)
        return record
