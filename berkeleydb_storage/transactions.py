"""How a transaction begins, and what is known in memory of the state that the last one left.

Owns the collaborators that have tables of their own (journal, counts, doomed), and what must be known to begin one:
whether there is room, and whether something is done exclusively. A `Change` is one transaction; it ends by itself.

Everything here is called by the thread that holds the mutex, unless it says otherwise.

Invariants:

1. What is in memory is what is in the tables: it changes after a transaction is committed, and is read anew after one
   whose outcome is not known.
2. None begins in a storage that is read-only, that refuses, whose disk is full, or beside what another thread does
   exclusively.
"""

from __future__ import annotations

from berkeleydb_storage.clock import Clock
from berkeleydb_storage.doomed import Doomed
from berkeleydb_storage.environment import LIBRARY_ERRORS, META, Transaction
from berkeleydb_storage.errors import ReadOnlyError
from berkeleydb_storage.exclusion import Exclusion
from berkeleydb_storage.format import META_NEXT_OID, pack_uint64, unpack_uint64
from berkeleydb_storage.gate import Gate
from berkeleydb_storage.journal import Journal
from berkeleydb_storage.listeners import Listeners
from berkeleydb_storage.refcounts import ReferenceCounts
from berkeleydb_storage.room import Room
from berkeleydb_storage.watch import Watches


class Transactions:
    """The state of an open storage, which each transaction takes on to the next."""

    def __init__(self, gate: Gate, flags: int) -> None:
        """Find the state that the last transaction left.

        Args:
            gate: to the tables.
            flags: of the library, with which each transaction is committed.
        """
        tables = gate.environment.tables
        self.gate = gate
        self.flags = flags
        self.journal = Journal(tables)
        state = self.journal.state
        self.counts = ReferenceCounts(tables, state.garbage, state.suspects)
        self.doomed = Doomed(tables[META])
        self.clock = Clock(state.time)
        self.exclusion = Exclusion(gate)
        self.room = Room(gate.path)
        self.listeners = Listeners(gate)
        self.watches = Watches()
        self.highest = pack_uint64(self.oids_noted())
        """An oid that no object's is above."""

    @property
    def size(self) -> int:
        """The number of objects. Any thread may ask."""
        return self.journal.state.objects

    def oids_noted(self) -> int:
        """Return the number below which oids are reserved, as it is on the disk; 0 where there is no object yet."""
        stored = self.gate.environment.tables[META].get(META_NEXT_OID)
        return unpack_uint64(stored) if stored is not None and self.size else 0

    def is_new(self, oid: bytes) -> bool:
        """Tell without a look into the table whether no object of this oid was ever stored."""
        return oid > self.highest

    def begin(self, size: int) -> Transaction:
        """Begin a transaction that writes about `size` bytes.

        Raises:
            StorageClosed, ReadOnlyError, DiskFullError, DamagedError, CommitRefused: it may not begin.
        """
        gate = self.gate
        if gate.failure is not None:  # a call saved: each commit comes by
            gate.require_open()
        if self.exclusion.under_way is not None:
            self.exclusion.admit()
        if not gate.environment.writable:
            raise ReadOnlyError(f"{gate.path} was opened read-only: nothing was stored")
        self.room.need(size)
        try:
            return gate.environment.begin()
        except LIBRARY_ERRORS as error:
            raise gate.failed(error) from error

    def need_room(self, size: int) -> None:
        """Make sure that a transaction can write `size` bytes more than it said.

        Raises:
            DiskFullError: it cannot.
        """
        self.room.need(size)

    def reload(self) -> None:
        """Take the totals from the disk, after a transaction that did not end well."""
        self.journal.reload()
        self.counts.garbage, self.counts.suspects = self.journal.state.garbage, self.journal.state.suspects
        self.doomed.reload()

    def reload_all(self) -> None:
        """Take everything from the tables anew, after their rows were replaced."""
        self.reload()
        self.watches.spoil()
        self.highest = pack_uint64(self.oids_noted())
