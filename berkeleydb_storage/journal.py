"""Which transaction changed what: a bounded history, and the totals after each transaction.

Owns the table journal. Every method runs by the thread that holds the engine's mutex.

Invariants:

1. Every transaction that changes an object appends one row; tids are consecutive, and their order is that of the
   transactions.
2. The newest row is never deleted: its totals are those of the storage.
3. At most `HORIZON` rows are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from berkeleydb_storage.environment import JOURNAL, Table, Transaction, reading
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.format import (
    JOURNAL_FLAGS,
    MARK_LENGTH,
    JournalRow,
    State,
    pack_journal,
    pack_uint64,
    unpack_journal,
    unpack_mark,
    unpack_uint64,
)

HORIZON = 16_384
"""Transactions that are remembered."""
FATE_STEP = 512
"""Rows that one call of `Journal.fate` reads at most: a millisecond."""


class Fate(NamedTuple):
    """What became of a commit that a client does not know the end of: `Fate(True, tid)`, `NOT_APPLIED` or `UNTOLD`."""

    known: bool
    """Whether it can be told."""
    tid: int | None
    """The transaction that it is; None where it is none, or where that cannot be told."""


NOT_APPLIED = Fate(True, None)
"""No transaction in question has the mark."""
UNTOLD = Fate(False, None)
"""No transaction that is remembered has the mark; but some of those in question are forgotten, or never were."""


class Journal:
    """The journal of a storage. `tid` is the newest transaction's, 0 where there was none."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        """Find the newest row."""
        self._rows = tables[JOURNAL]
        self._marks: OrderedDict[bytes, int] | None = None
        """Mark -> tid, oldest first, of the rows behind `_marks_from`; None until somebody asks for one."""
        self._marks_from = 0
        self._gap = 0
        """The newest row that was looked at for its mark, and is missing or malformed."""
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

    def append(
        self, state: State, oids: list[bytes] | None, transaction: Transaction, mark: bytes | None = None
    ) -> None:
        """Write the row of the next transaction, and delete the one that leaves the horizon.

        The transaction counts from `advance` on, to be called when it is committed.
        """
        tid = self.tid + 1
        self._rows.put(pack_uint64(tid), pack_journal(state, oids, mark), transaction)
        if tid >= HORIZON:
            try:  # noqa: SIM105 - each commit comes by
                self._rows.delete(pack_uint64(tid - HORIZON), transaction)
            except KeyError:  # a repair has forgotten it already
                pass

    def advance(self, state: State, mark: bytes | None = None) -> None:
        """Note that the transaction of the last `append`, which had this mark, is committed."""
        self.tid += 1
        self.state = state
        marks = self._marks
        if marks is None:
            return
        if mark is not None:
            marks[mark] = self.tid
            marks.move_to_end(mark)
        while marks and marks[next(iter(marks))] <= self.tid - HORIZON:
            marks.popitem(last=False)

    def reload(self) -> None:
        """Read the newest row again, after a transaction whose outcome is not known."""
        known = self.tid
        self.tid, self.state = self.newest()
        if self.tid != known:  # most often nothing was applied, and what is known of the marks is still right
            self._marks = None

    def since(self, tid: int) -> list[JournalRow] | None:
        """Return the transactions after `tid`, oldest first; None where some of them are forgotten."""
        return self.after(tid, HORIZON)

    def after(self, tid: int, limit: int) -> list[JournalRow] | None:
        """Return up to `limit` transactions after `tid`, oldest first; None where some of them are forgotten."""
        if not max(0, self.tid - HORIZON) <= tid <= self.tid:
            return None
        numbers = range(tid + 1, min(tid + limit, self.tid) + 1)
        rows = (self._rows.get(pack_uint64(number)) for number in numbers)
        found = [unpack_journal(row) for row in rows if row is not None]
        return found if len(found) == len(numbers) else None

    def fate(self, mark: bytes, since: int) -> Fate | None:
        """Tell which transaction after `since` has a mark: the newest, if a client gave it to several.

        The first call begins an index of marks in memory, of at most `HORIZON`: 200 bytes each.

        Returns:
            None where more rows must be read than one call may: call it again, until it returns something else.
        """
        if not 0 <= since <= self.tid:
            return UNTOLD
        if self._marks is None:
            self._marks, self._marks_from, self._gap = OrderedDict(), self.tid, 0
        tid = self._marks.get(mark)
        if tid is not None:
            return Fate(True, tid) if tid > since else NOT_APPLIED
        forgotten = max(self.tid - HORIZON, self._gap)
        if self._marks_from <= max(since, forgotten):
            return NOT_APPLIED if since >= forgotten else UNTOLD
        self._read_marks(self._marks, max(since, forgotten, self._marks_from - FATE_STEP))
        return None

    def _read_marks(self, marks: OrderedDict[bytes, int], floor: int) -> None:
        """Index the rows above `floor` that are not yet, the newest first; end where one is missing."""
        get, tid = self._rows.get, self._marks_from
        while tid > floor:
            try:
                part = get(pack_uint64(tid), dlen=1 + MARK_LENGTH, doff=JOURNAL_FLAGS)
                mark = unpack_mark(part or b"")
            except ValueError:
                self._gap = tid
                break
            if mark is not None and mark not in marks:
                marks[mark] = tid
                marks.move_to_end(mark, last=False)
            tid -= 1
        self._marks_from = tid

    @staticmethod
    def begin(tables: Mapping[str, Table], state: State, transaction: Transaction) -> None:
        """Write the first row of a new storage, with tid 0."""
        tables[JOURNAL].put(pack_uint64(0), pack_journal(state, []), txn=transaction)
