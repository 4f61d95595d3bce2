"""The messages between clients and a server: bytes <-> values, without sockets. docs/PROTOCOL.md describes them.

Two protocols share a port. That of Durus has requests without lengths, of one byte and what belongs to it. The extended
one, which a client asks for with its first five bytes, has frames in both directions. Pure functions; any thread.

Invariants:

1. Nothing that came from a peer is trusted: whatever is malformed is a `WireError`, never another exception.
2. What a frame may hold is known before its contents are read: its length is checked first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from berkeleydb_storage.errors import WireError
from berkeleydb_storage.format import OID_LENGTH

# --- Durus' protocol

DURUS_VERSION = b"\0\0\0\1"
REFUSED_VERSION = b"\0\0\0\0"
"""What a Durus client is told that may not come in: it then raises its ``ProtocolError`` about versions."""
VERSION = ord("V")
OKAY, MISSING, INVALID = b"O", b"K", b"I"
"""What a load, or the end of a commit, is answered with, in both protocols."""

# --- The extended protocol

EXTENDED = b"BDB"
"""The version that a client of the extended protocol asks for and is answered with begins so; the last byte counts."""
EXTENDED_VERSION = 1

LENGTH = struct.Struct(">L")
HEADER = struct.Struct(">LB")
"""Before each frame: the bytes that follow after these 4, and the type, which is the first of them."""
PAIR = struct.Struct(">QQ")
LIMITS = struct.Struct(">8sLL")
MARK_LENGTH = 16
"""Bytes by which a client recognises a commit of its own."""
IDENTITY_LENGTH = 16
"""Bytes that tell one storage, and one history of it, from all others."""

(
    LOAD,
    FETCH,
    BULK,
    OIDS,
    SYNC,
    COMMIT,
    GO_ON,
    CANCEL,
    FATE,
    PING,
    INFORMATION,
    PACK,
    BACKUP,
    SHUTDOWN,
    ROWS,
    AUTHENTICATE,
    RESUME,
) = b"LFBNSCGXYTIPWQZAR"
"""Types of requests."""

HELLO, OK, UNKNOWN_OBJECT, STALE, REFUSED, DOUBT, ERROR, FORGET, PROGRESS = b"HOKSIDEZp"
"""Types of answers. `REFUSED` is also what a load of an object is answered with that others changed."""

COMMITTED, NOT_COMMITTED, FORGOTTEN = range(3)
"""What became of a commit: it was stored; it was not, and never will be; that is too long ago to tell."""


def frame(kind: int, *parts: bytes) -> bytes:
    """Return a frame of this type."""
    payload = b"".join(parts)
    return HEADER.pack(1 + len(payload), kind) + payload


def check_oids(payload: bytes) -> None:
    """Raise `WireError` unless these are whole oids."""
    if len(payload) % OID_LENGTH:
        raise WireError(f"{len(payload)} bytes are no whole number of oids")


def split_oids(payload: bytes) -> list[bytes]:
    """Return the oids in a payload.

    Raises:
        WireError: they are not whole.
    """
    check_oids(payload)
    return [payload[at : at + OID_LENGTH] for at in range(0, len(payload), OID_LENGTH)]


def require(payload: bytes, length: int, what: str) -> bytes:
    """Return the payload of a message if it has the right length.

    Raises:
        WireError: it has not.
    """
    if len(payload) != length:
        raise WireError(f"{what} has {length} bytes, not {len(payload)}")
    return payload


def pack_records(records: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the records of a commit as Durus' protocol has them, to be joined: length, oid, record."""
    parts: list[bytes] = []
    for oid, record in records:
        parts += (LENGTH.pack(OID_LENGTH + len(record)), oid, record)
    return parts


def pack_rows(records: Iterable[bytes]) -> list[bytes]:
    """Return records, each after its length, to be joined."""
    parts: list[bytes] = []
    for record in records:
        parts += (LENGTH.pack(len(record)), record)
    return parts


def unpack_rows(payload: bytes) -> list[bytes]:
    """Return records that each follow their length.

    Raises:
        WireError: the last one is cut off.
    """
    found, at, end = [], 0, len(payload)
    while at < end:
        start = at + LENGTH.size
        if start > end:
            raise WireError("a list of records ends within a length")
        at = start + int(LENGTH.unpack_from(payload, at)[0])
        if at > end:
            raise WireError("a list of records ends within a record")
        found.append(payload[start:at])
    return found


class Refusal(NamedTuple):
    """Why a request was not done: the name of the error's class, the objects that are the reason, and the message."""

    code: str
    oids: list[bytes]
    message: str


def pack_refusal(code: str, message: str, oids: Sequence[bytes] = ()) -> bytes:
    """Return the payload of `REFUSED`, `DOUBT` and `ERROR`."""
    name = code.encode("ascii")[:255]
    return b"%c%s%s%s%s" % (len(name), name, LENGTH.pack(len(oids)), b"".join(oids), message.encode("utf-8", "replace"))


def unpack_refusal(payload: bytes) -> Refusal:
    """Return what `pack_refusal` packed.

    Raises:
        WireError: it is malformed.
    """
    try:
        at = 1 + payload[0]
        code = payload[1:at].decode("ascii")
        end = at + LENGTH.size + OID_LENGTH * int(LENGTH.unpack_from(payload, at)[0])
        if end > len(payload):
            raise WireError("a refusal ends within its oids")
        return Refusal(code, split_oids(payload[at + LENGTH.size : end]), payload[end:].decode("utf-8", "replace"))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError(f"a malformed refusal: {error}") from error


def pack_json(values: Any) -> bytes:
    """Return values as JSON in UTF-8."""
    return json.dumps(values, separators=(",", ":")).encode()


def unpack_json(payload: bytes) -> dict[str, Any]:
    """Return the object that is there as JSON.

    Raises:
        WireError: it is none.
    """
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"malformed JSON: {error}") from error
    if not isinstance(values, dict):
        raise WireError(f"JSON of an object is due, not of a {type(values).__name__}")
    return values
