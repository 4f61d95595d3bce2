"""Which transaction changed what: a bounded history, and the totals after each transaction.

Owns the table journal. Every method runs by the thread that holds the engine's mutex.

Invariants:

1. Every transaction that changes an object appends one row; tids are consecutive, and their order is that of the
   transactions.
2. The newest row is never deleted: its totals are those of the storage.
3. At most `HORIZON` rows are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from berkeleydb_storage.environment import JOURNAL, Table, Transaction, reading
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.format import (
    JournalRow,
    State,
    pack_journal,
    pack_uint64,
    unpack_journal,
    unpack_uint64,
)

HORIZON = 16_384
"""Transactions that are remembered."""


class Journal:
    """The journal of a storage. `tid` is the newest transaction's, 0 where there was none."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        """Find the newest row."""
        self._rows = tables[JOURNAL]
        self.tid, self.state = self.newest()

    def newest(self) -> tuple[int, State]:
        """Read the newest row: its tid, and the totals of the storage.

        Raises:
            DamagedError: there is none, or it is not what this package writes.
        """
        with reading(self._rows) as cursor:
            row = cursor.last()
        if row is None:
            raise DamagedError("journal.db has no transaction: restore the storage from a backup")
        try:
            return unpack_uint64(row[0]), unpack_journal(row[1]).state
        except ValueError as error:
            raise DamagedError(
                f"the newest row of journal.db is malformed ({error}): restore the storage from a backup"
            ) from error

    def append(self, state: State, oids: list[bytes] | None, transaction: Transaction) -> None:
        """Write the row of the next transaction, and delete the one that leaves the horizon.

        The transaction counts from `advance` on, to be called when it is committed.
        """
        tid = self.tid + 1
        self._rows.put(pack_uint64(tid), pack_journal(state, oids), transaction)
        if tid >= HORIZON:
            with suppress(KeyError):  # a repair may have forgotten it already
                self._rows.delete(pack_uint64(tid - HORIZON), transaction)

    def advance(self, state: State) -> None:
        """Note that the transaction of the last `append` is committed."""
        self.tid += 1
        self.state = state

    def reload(self) -> None:
        """Read the newest row again, after a transaction whose outcome is not known."""
        self.tid, self.state = self.newest()

    def since(self, tid: int) -> list[JournalRow] | None:
        """Return the transactions after `tid`, oldest first; None where some of them are forgotten."""
        if not max(0, self.tid - HORIZON) <= tid <= self.tid:
            return None
        rows = (self._rows.get(pack_uint64(number)) for number in range(tid + 1, self.tid + 1))
        found = [unpack_journal(row) for row in rows if row is not None]
        return found if len(found) == self.tid - tid else None

    @staticmethod
    def begin(tables: Mapping[str, Table], state: State, transaction: Transaction) -> None:
        """Write the first row of a new storage, with tid 0."""
        tables[JOURNAL].put(pack_uint64(0), pack_journal(state, []), txn=transaction)
