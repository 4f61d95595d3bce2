"""The oids of a storage: each is handed out once, ever.

Owns which is the next. Any thread may ask for one; a method says if its caller holds the mutex.

Invariants:

1. Oids are handed out in order, from blocks that are reserved on the disk before the first of a block is used.
2. Those of a block that a crash, or a failure, leaves unused are skipped.
"""

from __future__ import annotations

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.durability import Durability
from berkeleydb_storage.environment import META
from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.format import META_NEXT_OID, ROOT_OID, pack_uint64, unpack_uint64
from berkeleydb_storage.transactions import Transactions

OID_BLOCK = 4096
"""Oids reserved at a time: one sync for so many new objects."""
LAST_OID = (1 << 64) - 2
"""The highest that is handed out: the one after it can be noted in 8 bytes."""


class Oids:
    """Hands out the oids of an open storage."""

    def __init__(self, transactions: Transactions, durability: Durability) -> None:
        """Begin behind those that are reserved on the disk."""
        self._transactions = transactions
        self._durability = durability
        self._gate = transactions.gate
        self.reload()

    def reload(self) -> None:
        """Begin anew behind those that are reserved on the disk. The caller holds the mutex."""
        self.next = self._transactions.oids_noted()  # guarded by the mutex
        """No oid from this number on was handed out."""
        self._reserved = self.next  # guarded by the mutex

    def new(self) -> bytes:
        """Return an oid that was never returned before.

        Raises:
            BerkeleyDBStorageError: there is none left.
            DiskFullError, CommitRefused, DamagedError, StorageClosed, CommitInDoubt: none can be reserved.
        """
        with self._gate.lock:
            number = self.next
            if number >= self._reserved:
                if number > LAST_OID:
                    raise BerkeleyDBStorageError(
                        f"{self._gate.path} has handed out all of its oids: migrate into a new storage"
                    )
                self._reserve(min(number + OID_BLOCK, LAST_OID + 1))
            self.next = number + 1
        return pack_uint64(number)

    def was_handed_out(self, oid: bytes) -> bool:
        """Tell whether `new` may have returned it, now or in an earlier opening. The root's always was."""
        return oid == ROOT_OID or unpack_uint64(oid) < self.next

    def hand_out_root(self) -> None:
        """Hand out the first, to who stores the root without having asked for it. The caller holds the mutex."""
        self._reserve(OID_BLOCK)
        self.next = 1

    def give_back(self) -> None:
        """Write that those that were not handed out are not reserved any more. The caller holds the mutex."""
        if self._reserved != self.next:
            self._reserve(self.next)

    def _reserve(self, until: int) -> None:
        """Reserve the oids below `until`, on the disk whatever `durable` says. The caller holds the mutex.

        A reservation that a crash takes back would hand the same oids out again, also to one who still holds them.
        Those of a read-only storage are good for nothing, so that nothing is written: a client that asks a server
        for oids before it commits gets its refusal as a conflict, from the commit.
        """
        self._gate.require_open()
        if self._gate.environment.writable:
            with Change(self._transactions, 0) as change:
                self._gate.environment.tables[META].put(META_NEXT_OID, pack_uint64(until), txn=change.transaction)
            self._durability.flush_now()
        self._reserved = until
        failpoints.reached("oids.reserved")
