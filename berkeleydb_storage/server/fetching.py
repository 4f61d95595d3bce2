"""Requests of the extended protocol for several objects: an object and what it leads to, and those that follow an oid.

Used by the server's thread alone. They are jobs, so that others have turns meanwhile.

Invariants:

1. An answer has no more objects than were asked for, and ends with the one that makes it too many bytes.
2. What is fetched along is nothing that the client may have, and nothing that it would not be shown.
3. Rows are shown when they are on the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from berkeleydb_storage.format import pack_uint64, references, unpack_uint64
from berkeleydb_storage.protocol import LIMITS, OK, frame, pack_rows, require
from berkeleydb_storage.server.answers import MISSING, SYNC_FIRST
from berkeleydb_storage.server.connection import AT_ONCE, Connection
from berkeleydb_storage.server.reading import LATER, RETRY

MOST_FETCHED = 10_000
"""Objects in one answer."""
MOST_BYTES = 16 << 20
"""Bytes after which an answer with several records ends."""
SEARCHED = 8
"""Objects that are looked at for each that is to be fetched: a client may have nearly all of them."""


def fetch(c: Connection, payload: bytes) -> bool:
    """Send an object, and what it leads to."""
    oid, count, size = LIMITS.unpack(require(payload, LIMITS.size, "a request to fetch"))
    c.run(_fetching(c, oid, min(count, MOST_FETCHED), min(size, MOST_BYTES)))
    return True


def _fetching(c: Connection, oid: bytes, count: int, size: int) -> Iterator[bool]:
    while (found := c.service.read(c, oid)) in (LATER, RETRY):
        c.service.wait(c, found)
        yield True
    c.service.metrics.loads += 1
    if type(found) is not bytes:
        c.answer(MISSING if found is None else SYNC_FIRST)
        return
    records, left = [found], size - len(found)
    c.interest.update([oid])
    more = _nearby(c, oid, found) if count > 1 and left > 0 else ()
    for number, (other, record) in enumerate(more, 1):
        if record is not None:
            records.append(record)
            c.interest.add(other)
            left -= len(record)
        if len(records) >= count or left <= 0 or number >= SEARCHED * count:
            break
        if not number % AT_ONCE:
            yield False
    c.service.metrics.prefetched += len(records) - 1
    c.interest.tidy()
    c.answer(frame(OK, *pack_rows(records)))


def _nearby(c: Connection, oid: bytes, record: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Go through what an object leads to, breadth first, and then what follows it; None: not to be had.

    Objects that are born together have oids one after the other, so that the next one in a container is often
    among them.
    """
    interested, read = c.interest.has, c.service.read
    seen, todo, last = {oid}, deque(references(oid, record)), oid
    while todo:
        other = todo.popleft()
        if other in seen:
            continue
        seen.add(other)
        found = None if interested(other) else read(c, other)
        if type(found) is bytes:
            todo.extend(references(other, found))
            yield other, found
        else:
            yield other, None
    number = unpack_uint64(last)
    while number + 1 < c.service.engine.next_oid:
        number += 1
        other = pack_uint64(number)
        found = None if other in seen or interested(other) else read(c, other)
        yield other, found if type(found) is bytes else None


def rows(c: Connection, payload: bytes) -> bool:
    """Send the objects from an oid on, in the order of the oids."""
    oid, count, size = LIMITS.unpack(require(payload, LIMITS.size, "a request for rows"))
    if c.service.desk.hold.held:
        c.service.when_free(c)
        return False
    c.run(_listing(c, oid, min(count, MOST_FETCHED), min(size, MOST_BYTES)))
    return True


def _listing(c: Connection, oid: bytes, count: int, size: int) -> Iterator[bool]:
    service = c.service
    start: bytes | None = oid
    records: list[bytes] = []
    while start is not None and len(records) < count and size > 0:
        if service.desk.hold.held:
            service.when_free(c)
            yield True
            continue
        found, after = service.rows(start, min(AT_ONCE, count - len(records)), size)
        start = after
        records += (record for _, record in found)
        c.interest.update(other for other, _ in found)
        size -= sum(len(record) for _, record in found)
        yield False
    newest = service.engine.journal.tid
    if service.reading.known(newest) != newest:  # what the client was not told of must be on the disk, too
        service.when_durable(c)
        yield True
    c.answer(frame(OK, *pack_rows(records)))
