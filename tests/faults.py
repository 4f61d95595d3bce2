"""A small storage in which faults are planted, and what a check reports."""

from graphs import (
    commit,
    hand_out,
    oid,
    record,
    rows,
    table,
)

from berkeleydb_storage.environment import GARBAGE, JOURNAL, OBJECTS, SUSPECTS
from berkeleydb_storage.format import (
    unpack_garbage_key,
    unpack_journal,
)

GRAPH = {0: [1, 2, 3], 1: [4, 0], 2: [4], 3: [5, 9], 4: [], 5: [6], 6: [], 7: [8], 8: [], 9: [6], 10: [], 11: []}
GARBAGE_OBJECTS = [7, 10, 11]
REFERENCES = 11
NEXT_OID = 20


def build(storage):
    """Fill a storage with `GRAPH`: 0, 4 and 6 have two referrers, 7, 10 and 11 none; 5 is a suspect."""
    hand_out(storage, NEXT_OID)
    before = GRAPH | {2: [4, 5]}
    commit(storage, *(record(each, *refs) for each, refs in before.items()))
    commit(storage, record(2, *GRAPH[2]))
    for turn in range(8):
        commit(storage, record(4, data=b"%d" % turn))


def plant(storage, *changes):
    """Write rows, or delete them, behind the engine's back."""
    transaction = storage._engine.environment.begin()
    for name, key, value in changes:
        if value is None:
            table(storage, name).delete(key, txn=transaction)
        else:
            table(storage, name).put(key, value, txn=transaction)
    transaction.commit()


def since(storage, key):
    """When an object was condemned, as the queue has it."""
    return next(time for time, each in map(unpack_garbage_key, rows(storage, GARBAGE)) if each == oid(key))


def totals_by_hand(storage):
    """The totals that are wrong, from the tables alone."""
    transactions = rows(storage, JOURNAL)
    noted = unpack_journal(transactions[max(transactions)]).state
    counted = {"objects": OBJECTS, "garbage": GARBAGE, "suspects": SUSPECTS}
    sizes = {what: len(rows(storage, name)) for what, name in counted.items()}
    return {
        ("total", None, f"{size} {what} are stored, and the total says {getattr(noted, what)}")
        for what, size in sizes.items()
        if size != getattr(noted, what)
    }


def found(report):
    faults = [(fault.kind, fault.oid, fault.message) for fault in report.faults]
    assert len(faults) == len(set(faults)) == report.found
    return set(faults)
