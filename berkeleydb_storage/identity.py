"""The identity of a storage: 16 random bytes by which a client that comes back knows that it is the same one.

Owns the row `identity` of the table meta. The caller of what takes a transaction holds the engine's mutex, if there is
an engine already.

Invariants:

1. An identity together with a tid stands for one state of the storage, among all that clients were told of. What could
   give a tid to another transaction than it was told with gives the storage a new identity, and so does what lets the
   oids begin anew.
2. Everything else keeps it; a crash too, if the log was on the disk before a transaction was acknowledged.

So it is renewed by a migration and by undoing one; by a repair; by a recovery that may have lost transactions that were
acknowledged; by opening a storage that has no objects, but handed oids out; and by the first opening of a backup for
writing, or of a copy of that. Any other copy of the files has the identity of the original: who means to write to both
renews one of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeGuard

from berkeleydb_storage.environment import META, Environment, Table, Transaction
from berkeleydb_storage.format import IDENTITY_LENGTH, META_IDENTITY


def write_identity(tables: Mapping[str, Table], transaction: Transaction) -> None:
    """Give the storage a new identity, as part of a transaction."""
    tables[META].put(META_IDENTITY, os.urandom(IDENTITY_LENGTH), txn=transaction)


def read_identity(tables: Mapping[str, Table]) -> bytes:
    """Return the identity; one that nothing else will ever have, where there is none or it is malformed.

    An older format has none: it is read as it is, and whoever keeps something of it starts anew each time.
    """
    stored = tables[META].get(META_IDENTITY)
    return stored if is_identity(stored) else os.urandom(IDENTITY_LENGTH)


def is_identity(row: bytes | None) -> TypeGuard[bytes]:
    """Tell whether a row is there and has the right length."""
    return row is not None and len(row) == IDENTITY_LENGTH


def renew_identity(environment: Environment) -> None:
    """Give a storage a new identity, in a transaction of its own, which is on the disk when this returns.

    Before an engine has it; one that is open has `Engine.renew_identity`.
    """
    transaction = environment.begin()
    write_identity(environment.tables, transaction)
    transaction.commit()
