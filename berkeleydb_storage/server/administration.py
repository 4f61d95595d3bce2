"""Requests of the extended protocol about the storage as a whole: statistics, packs, backups, the end of the server.

Used by the server's thread alone; what is long goes on in others, and the connection is busy meanwhile. Whether the
client may ask for it was looked at before. Each function serves one request, as `Extended` has it.
"""

from __future__ import annotations

from functools import partial

from berkeleydb_storage.protocol import OK, PROGRESS, frame, pack_json
from berkeleydb_storage.server.answers import failure
from berkeleydb_storage.server.connection import Connection


def information(c: Connection, _: bytes) -> bool:
    """Tell the statistics."""
    c.busy = True
    c.service.in_thread(c.service.information, partial(_done, c))
    return True


def pack(c: Connection, _: bytes) -> bool:
    """Begin a full pack."""
    c.service.pack()
    c.write(frame(OK))
    return True


def backup(c: Connection, _: bytes) -> bool:
    """Make a backup, and tell now and then how far it is."""
    c.busy = True
    c.service.backup(partial(_progress, c), partial(_done, c))
    return True


def shutdown(c: Connection, _: bytes) -> bool:
    """End the server."""
    c.write(frame(OK))
    c.service.shut_down(c)
    return True


def _progress(c: Connection, values: object) -> None:
    c.write(frame(PROGRESS, pack_json(values)))
    c.send()


def _done(c: Connection, values: object) -> None:
    c.answer(failure(values) if isinstance(values, Exception) else frame(OK, pack_json(values)))
