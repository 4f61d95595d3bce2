"""The records of a commit, looked at one by one before it is handed in.

Used by the server's thread alone.

Invariants:

1. A commit that reaches the desk is whole and well-formed: each record is one of an oid that was handed out, and to
   nobody else who has not used it yet; and its client may write.
2. A large one is looked at in steps, a job of its connection, which is busy until it is answered.
"""

from __future__ import annotations

from collections.abc import Iterator

from berkeleydb_storage.errors import BerkeleyDBStorageError, WireError
from berkeleydb_storage.format import references, unpack_uint64
from berkeleydb_storage.protocol import LENGTH
from berkeleydb_storage.server.commits import Commit
from berkeleydb_storage.server.connection import AT_ONCE, WRITE, Connection

SMALL = 2048
"""Bytes of a commit up to which it is looked at without letting others in between."""


def receive(c: Connection, payload: bytes, start: int, mark: bytes | None) -> None:
    """Look at the records of a commit, from `start` on, and hand it in."""
    c.keep(len(payload))
    if len(payload) > SMALL:
        c.run(_receive(c, payload, start, mark))
        return
    c.busy = True
    try:
        for _ in _receive(c, payload, start, mark):
            pass
    except WireError as error:
        c.violate(str(error))
    except (BerkeleyDBStorageError, ValueError) as error:
        c.fail(error)


def _receive(c: Connection, payload: bytes, start: int, mark: bytes | None) -> Iterator[bool]:
    service = c.service
    engine, oids = service.engine, service.oids
    records: dict[bytes, tuple[bytes, tuple[bytes, ...]]] = {}
    at, end = start, len(payload)
    while at < end:
        first = at + LENGTH.size
        at = first + LENGTH.unpack_from(payload, at)[0] if first <= end else end + 1
        if at > end or at < first + 8:
            raise WireError("a commit ends within a record")
        oid = payload[first : first + 8]
        record = payload[first + 8 : at]
        refs = references(oid, record)
        if not engine.was_handed_out(oid):
            raise ValueError(f"object {unpack_uint64(oid)} is a surprise: this storage never handed out its oid")
        oids.verify(c, oid)
        records[oid] = (record, refs)
        if not len(records) % AT_ONCE:
            yield False
    if c.rights & WRITE:
        service.desk.submit(Commit(c, records, end - start, mark))
        service.desk.groups.flush_now()
    else:
        raise service.lacks("write")
