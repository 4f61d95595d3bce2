"""Fills an empty storage from the records of another one, and empties it again if that does not succeed.

The records go in by transactions of a few thousand; a row in the table meta says that they are not complete. Killed at
any point: the next open finds that row and empties the tables. After the transaction that removes it, everything is
there, counted and verified.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from berkeleydb_storage import failpoints
from berkeleydb_storage.change import Change
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import GARBAGE, OBJECTS, REFCOUNTS, SUSPECTS, rows
from berkeleydb_storage.errors import MigrationError, RecoveryNeeded, StorageNotEmpty, describe_oids
from berkeleydb_storage.format import (
    META_MIGRATING,
    META_NEXT_OID,
    META_UNMARKED,
    ROOT_OID,
    State,
    pack_condemned,
    pack_garbage_key,
    pack_uint64,
)
from berkeleydb_storage.identity import write_identity
from berkeleydb_storage.oids import LAST_OID
from berkeleydb_storage.tally import Tally, digest_of_all

logger = logging.getLogger(__name__)

BATCH = 2000
BATCH_BYTES = 8 << 20
"""A transaction has at most so many records, and ends with the one that exceeds so many bytes."""

Progress = Callable[[str, int], None]
Records = Iterable[tuple[bytes, bytes]]


def migrate(engine: Engine, records: Records, progress: Progress) -> int:
    """Store all records, count their references, compare what was stored with what came; see `BerkeleyDBStorage`."""
    with engine.transactions.exclusion.during("a migration"):
        _require_empty(engine)
        try:
            _begin(engine)
            tally = _load(engine, records, progress)
            failpoints.reached("migrate.counted")
            _verify(engine, tally, progress)
            _finish(engine, tally)
        except BaseException:
            _undo_or_refuse(engine)
            raise
        failpoints.reached("migrate.done")
        return len(tally.stored)


def _require_empty(engine: Engine) -> None:
    if engine.size:
        raise StorageNotEmpty(
            f"{engine.environment.path} has {engine.size} objects: migrate into a storage that has none"
        )


def _begin(engine: Engine) -> None:
    with engine.lock, engine.change() as change:
        engine.set_meta(META_MIGRATING, b"1", change.transaction)
    engine.make_durable()
    failpoints.reached("migrate.begun")


def _load(engine: Engine, records: Records, progress: Progress) -> Tally:
    tally = Tally(engine.environment.tables[REFCOUNTS])
    for batch, size in _batches(records):
        try:
            tally.add_all(batch)
        except ValueError as error:
            raise MigrationError(f"the source cannot be migrated: {error}") from error
        with engine.lock, engine.change(size) as change:
            put, transaction = engine.objects.put, change.transaction
            for oid, record in batch:
                put(oid, record, transaction)
            tally.flush(transaction)
        failpoints.reached("migrate.batch")
        progress("loading", len(tally.stored))
    if tally.stored:
        _require_complete(tally)
    return tally


def _batches(records: Records) -> Iterator[tuple[list[tuple[bytes, bytes]], int]]:
    """Yield the records in lists, each sorted by oid and with its number of bytes."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for row in records:
        batch.append(row)
        size += len(row[1])
        if len(batch) == BATCH or size > BATCH_BYTES:
            batch.sort()
            yield batch, size
            batch, size = [], 0
    if batch:
        batch.sort()
        yield batch, size


def _require_complete(tally: Tally) -> None:
    dangling = tally.dangling()
    if dangling and dangling[0] == ROOT_OID:
        raise MigrationError("the source has no root, which is object 0: repair it first")
    if dangling:
        raise MigrationError(
            f"the source refers to {len(dangling)} objects that it does not have ({describe_oids(dangling)}): "
            "pack or repair it first"
        )
    if tally.stored.max() > LAST_OID:
        raise MigrationError(f"the source has an object {tally.stored.max()}: oids end at {LAST_OID}")


def _verify(engine: Engine, tally: Tally, progress: Progress) -> None:
    digest = seen = 0
    with engine.lock:
        for batch, _ in _batches(rows(engine.objects)):
            seen += len(batch)
            digest += digest_of_all([record for _, record in batch])
            if any(not record.startswith(oid) for oid, record in batch):
                break
            progress("verifying", seen)
    if (seen, digest) != (len(tally.stored), tally.digest):
        raise MigrationError(
            f"what was stored in {engine.environment.path} is not what came: is the disk sound? It is empty again"
        )


def _finish(engine: Engine, tally: Tally) -> None:
    if not tally.stored:
        _undo(engine)
        return
    garbage = tally.garbage()
    with engine.lock, engine.change(32 * len(garbage)) as change:
        for number in garbage:
            oid = pack_uint64(number)
            engine.environment.tables[REFCOUNTS].put(oid, pack_condemned(change.now), txn=change.transaction)
            key = pack_garbage_key(change.now, oid)
            engine.environment.tables[GARBAGE].put(key, b"", txn=change.transaction)
        engine.set_meta(META_UNMARKED, b"1", change.transaction)
        _set_state(engine, change, State(change.now, len(tally.stored), len(garbage), 0), tally.stored.max() + 1)
    engine.adopt()
    engine.make_durable()


def _set_state(engine: Engine, change: Change, state: State, next_oid: int) -> None:
    """Write the totals, and that no migration is under way."""
    engine.set_meta(META_MIGRATING, None, change.transaction)
    engine.set_meta(META_NEXT_OID, pack_uint64(next_oid), change.transaction)
    engine.journal.append(state, None, change.transaction)
    write_identity(engine.environment.tables, change.transaction)  # the oids begin anew


def _undo(engine: Engine) -> None:
    failpoints.reached("undo.begun")
    with engine.lock, engine.change() as change:
        for name in (OBJECTS, REFCOUNTS, GARBAGE, SUSPECTS):
            engine.environment.tables[name].truncate(txn=change.transaction)
        engine.set_meta(META_UNMARKED, None, change.transaction)
        _set_state(engine, change, State(change.now, 0, 0, 0), 0)
    engine.adopt()
    engine.make_durable()


def _undo_or_refuse(engine: Engine) -> None:
    """Empty the storage; where that fails, refuse every use until it is opened again, which empties it.

    What is stored in between would be gone then.
    """
    try:
        _undo(engine)
    except BaseException:
        with engine.lock:
            engine.refuse(
                MigrationError(
                    f"a migration into {engine.environment.path} did not complete, and could not be undone: close it "
                    "and open it again, which empties it"
                )
            )
        raise


def undo_interrupted(engine: Engine) -> None:
    """Empty a storage whose migration did not complete; called at open.

    Raises:
        RecoveryNeeded: it was opened read-only.
    """
    if engine.get_meta(META_MIGRATING) is None:
        return
    if not engine.environment.writable:
        raise RecoveryNeeded(
            f"a migration into {engine.environment.path} did not complete: open it for writing once, which empties it"
        )
    started = time.monotonic()
    logger.warning("%s: a migration into it did not complete; it is emptied", engine.environment.path)
    with engine.transactions.exclusion.during("undoing a migration"):
        _undo(engine)
    logger.warning("emptied in %.1f s; migrate again", time.monotonic() - started)


__all__ = ["Progress", "migrate", "undo_interrupted"]
