"""One transaction of the engine: what it stores and deletes, how that changes the counts, and how it ends.

The caller holds the engine's mutex from the beginning to the end. Killed before the commit: nothing of it is found.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from itertools import islice
from types import TracebackType

from berkeleydb_storage.environment import LIBRARY_ERRORS, NO_SYNC, Transaction
from berkeleydb_storage.errors import CommitInDoubt
from berkeleydb_storage.format import State, references, same_references
from berkeleydb_storage.listeners import Listener
from berkeleydb_storage.transactions import Transactions

SETTLED_AT_ONCE = 1024
"""Counts that are changed at a time, where it is done in slices."""


class Change:
    """One transaction of the engine. It ends with the ``with`` block: committed, or undone by an exception.

    The caller holds the mutex.
    """

    __slots__ = (
        "_gate",
        "_size",
        "_tid",
        "_transactions",
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

    def __init__(self, transactions: Transactions, size: int) -> None:
        """Prepare a transaction of about `size` bytes."""
        self._transactions = transactions
        self._gate = transactions.gate
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
        transactions = self._transactions
        self._tid = transactions.journal.tid
        self.transaction = transactions.begin(self._size)
        self.now = transactions.clock.tick()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit it if it changed objects or queues, or else just end it; undo it on an exception."""
        if error is None:
            try:
                if self.stored or self.deleted or self.touched:
                    self._commit()
                else:
                    self.ended = True
                    self.transaction.commit(NO_SYNC)
                return
            except BaseException as failure:
                error = failure
        if self._undo() and isinstance(error, Exception):
            tid = self._transactions.journal.tid
            raise CommitInDoubt(
                f"transaction {tid} of {self._gate.path} was applied, but a crash may lose it"
            ) from error
        if isinstance(error, LIBRARY_ERRORS):
            raise self._gate.failed(error) from error
        if kind is None:
            raise error

    def _commit(self) -> None:
        """Write the journal row, end the transaction, and tell everyone."""
        transactions = self._transactions
        journal, counts = transactions.journal, transactions.counts
        objects = journal.state.objects + len(self.born) - len(self.deleted)
        state = State(self.now, objects, counts.garbage, counts.suspects)
        journal.append(state, self.stored + self.deleted, self.transaction, self.mark)
        self.ended = True
        self.transaction.commit(transactions.flags)
        journal.advance(state, self.mark)
        self._tell()

    def _tell(self) -> None:
        """Let everyone know of what was applied."""
        transactions = self._transactions
        if self.born:
            transactions.highest = max(transactions.highest, max(self.born))
        if self.dooms:
            transactions.doomed.reload()
        if transactions.watches.active:
            transactions.watches.note(self.touches())
        transactions.listeners.tell(self.origin, self.stored, self.deleted)

    def _undo(self) -> bool:
        """Undo what can be undone, and take the totals from the disk: they tell what a failed commit came to.

        Returns:
            Whether the transaction was applied all the same; then everyone knows of it.
        """
        try:
            if not self.ended:
                self.transaction.abort()
            self._transactions.reload()
        except LIBRARY_ERRORS as failure:
            raise self._gate.failed(failure) from failure
        applied = self._transactions.journal.tid != self._tid
        if applied:
            self._tell()
        return applied

    def store(self, oid: bytes, record: bytes, refs: tuple[bytes, ...]) -> None:
        """Write a record, and sum up how it changes the counts of others."""
        objects, changes = self._gate.objects, self.changes
        try:
            old = None if oid > self._transactions.highest else objects[oid]
        except KeyError:
            old = None
        self.stored.append(oid)
        if old is None:
            self.born.add(oid)
            changes.setdefault(oid, 0)
            for ref in refs:
                changes[ref] = changes.get(ref, 0) + 1
        elif old == record:
            return
        elif not (refs and same_references(old, record)) and (before := references(oid, old)) != refs:
            for ref in set(refs).difference(before):
                changes[ref] = changes.get(ref, 0) + 1
            lost = set(before).difference(refs)
            for ref in lost:
                changes[ref] = changes.get(ref, 0) - 1
            self.lost |= lost
        objects.put(oid, record, self.transaction)

    def create(self, oid: bytes, record: bytes) -> None:
        """Write the record of a new object; counts are the caller's business."""
        self._gate.objects.put(oid, record, self.transaction)
        self.born.add(oid)
        self.stored.append(oid)

    def settle(self) -> list[bytes]:
        """Apply the changes of the counts.

        Returns:
            The objects that are referred to and do not exist, or that are stored or referred to and doomed. If there
            are any, undo the transaction.
        """
        return self._doomed() or self._settle(self.changes)

    def _doomed(self) -> list[bytes]:
        doomed = self._transactions.doomed
        return doomed.among(self.touches()) if doomed.closed else []

    def _settle(self, changes: Mapping[bytes, int]) -> list[bytes]:
        return self._transactions.counts.settle(changes, self.born, self.lost, self.now, self.transaction)

    def settling(self) -> Generator[None, None, list[bytes]]:
        """Do what `settle` does, in slices of about a millisecond."""
        if doomed := self._doomed():
            return doomed
        dangling: list[bytes] = []
        left = iter(self.changes.items())
        while part := dict(islice(left, SETTLED_AT_ONCE)):
            dangling += self._settle(part)
            yield
        return dangling

    def touches(self) -> set[bytes]:
        """Return what it stored and deleted, and what gained or lost a reference by that."""
        return {*self.changes, *self.stored, *self.deleted}

    def touch(self, oids: Iterable[bytes]) -> None:
        """Note that a record that refers to these objects is stored or deleted; counts are the caller's business."""
        self.changes.update(dict.fromkeys(oids, 0))

    def delete(self, oid: bytes, *, counted: bool) -> None:
        """Delete an object without referrers, which exists, and its count; `counted`: whether that has a row."""
        self._gate.objects.delete(oid, self.transaction)
        self._transactions.counts.forget(oid, self.transaction, counted=counted)
        self.deleted.append(oid)
