"""Makes the records that a salvaged storage needs besides those that were found. Pure.

No class of the application is imported: what refers to an object names its class by the bytes of its own record.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator, Sequence
from io import BytesIO

from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList

from berkeleydb_storage.format import RECORD_HEADER, pack_uint64
from berkeleydb_storage.missing import Missing, lost

LOST_AND_FOUND = "lost+found"
"""The key in a new root of what nothing refers to."""
CHUNK = 1000
"""Objects that a list refers to."""

_PROTOCOL = pickle.PROTO + b"\x02"


def packed(oid: bytes, data: bytes, references: Sequence[bytes] = ()) -> bytes:
    """Return a record as Durus packs it."""
    return b"".join((oid, len(data).to_bytes(4, "big"), data, *references))


def stand_in(number: int, keeps: Sequence[bytes] = ()) -> bytes:
    """Return the record of a `Missing` in the place of an object; it keeps the objects `keeps` from being garbage."""
    state = _PROTOCOL + pickle.dumps(lost, 2)[2:-1] + _integer(number) + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP
    return packed(pack_uint64(number), pickle.dumps(Missing, 2) + state, keeps)


def _integer(number: int) -> bytes:
    return pickle.dumps(number, 2)[2:-1]


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded


def _reference(oid: bytes, kind: bytes) -> bytes:
    """Return the pickle of a reference; `kind` is that of the class."""
    return pickle.SHORT_BINBYTES + bytes([len(oid)]) + oid + kind + pickle.TUPLE2 + pickle.BINPERSID


def class_pickle(record: bytes) -> bytes:
    """Return the operations that push an object's class; those for `Missing` where the record does not tell."""
    source = BytesIO(record[RECORD_HEADER : RECORD_HEADER + int.from_bytes(record[8:RECORD_HEADER], "big")])
    try:
        for operation, _, position in pickletools.genops(source):
            if operation.name == "STOP" and position:
                start = 2 if source.getvalue()[:1] == pickle.PROTO else 0
                return source.getvalue()[start:position]
    except ValueError:
        pass
    return pickle.dumps(Missing, 2)[2:-1]


def _persistent_list(oid: bytes, members: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the record of a list; `members`: oid and class of each."""
    body = b"".join(_reference(*member) for member in members)
    state = pickle.EMPTY_DICT + _text("data") + pickle.EMPTY_LIST + pickle.MARK + body + pickle.APPENDS + pickle.SETITEM
    data = pickle.dumps(PersistentList, 2) + _PROTOCOL + state + pickle.STOP
    return packed(oid, data, [member for member, _ in members])


def lists(start: int, members: Iterator[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Yield the records of lists of everything in `members`, and at last that of a list of these lists.

    Args:
        start: the oid of the first; the others follow.
        members: oid and class of each.
    """
    kind = pickle.dumps(PersistentList, 2)[2:-1]
    made: list[bytes] = []
    chunk: list[tuple[bytes, bytes]] = []
    for member in members:
        chunk.append(member)
        if len(chunk) == CHUNK:
            made.append(pack_uint64(start + len(made)))
            yield _persistent_list(made[-1], chunk)
            chunk = []
    if chunk:
        made.append(pack_uint64(start + len(made)))
        yield _persistent_list(made[-1], chunk)
    yield _persistent_list(pack_uint64(start + len(made)), [(oid, kind) for oid in made])


def root(container: bytes) -> bytes:
    """Return the record of a root that refers to the list of everything that nothing refers to."""
    reference = _reference(container, pickle.dumps(PersistentList, 2)[2:-1])
    inner = pickle.EMPTY_DICT + _text(LOST_AND_FOUND) + reference + pickle.SETITEM
    state = pickle.EMPTY_DICT + _text("data") + inner + pickle.SETITEM
    data = pickle.dumps(PersistentDict, 2) + _PROTOCOL + state + pickle.STOP
    return packed(pack_uint64(0), data, [container])
