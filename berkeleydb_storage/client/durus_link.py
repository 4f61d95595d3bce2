"""The client's side of Durus' own protocol, for Durus' own server.

It knows no identity, no fate of a commit, and no size; a client that comes back may have missed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from durus.error import ReadConflictError, WriteConflictError

from berkeleydb_storage.client.channel import Channel, ConnectionLost
from berkeleydb_storage.client.link import ADMIN, READ, WRITE, Decision, Told, Welcome, checked_record
from berkeleydb_storage.errors import CommitRefused, ServerError, WireError, missing
from berkeleydb_storage.format import OID_LENGTH
from berkeleydb_storage.protocol import (
    DURUS_VERSION,
    FORGOTTEN,
    INVALID,
    LENGTH,
    MISSING,
    OKAY,
    pack_records,
    split_oids,
)

MOST_OIDS = 255
"""The number has one byte."""
MAX_RECORD = 1 << 30
MAX_COMMIT = (1 << 32) - 1
MAX_TOLD = (1 << 30) // OID_LENGTH

WELCOME = Welcome(b"", 0, READ | WRITE | ADMIN, None)


class DurusLink:
    """A `Link` to a server of Durus."""

    ordered = False

    def __init__(self, channel: Channel) -> None:
        """Begin, after the versions were compared."""
        self._channel = channel
        self._records: Mapping[bytes, bytes] = {}
        self._size = 0

    # --- objects

    def load(self, oid: bytes) -> bytes:
        """See `Link`."""
        self._channel.send_bytes(b"L" + oid)
        found = self._loaded(oid)
        if isinstance(found, Exception):
            raise found
        return found

    def _loaded(self, oid: bytes) -> bytes | Exception:
        status = self._channel.read(1)
        if status == OKAY:
            return checked_record(self._channel.read(self._length(MAX_RECORD)), oid)
        if status == MISSING:
            gone: Exception = missing(oid)
            return gone
        if status == INVALID:
            conflict: Exception = ReadConflictError([oid])
            return conflict
        raise WireError(f"the server answered a load with {status!r}")

    def _length(self, most: int) -> int:
        length = int(LENGTH.unpack(self._channel.read(LENGTH.size))[0])
        if length > most:
            raise WireError(f"the server announced {length} things; at most {most} make sense")
        return length

    def fetch(self, oid: bytes, objects: int, size: int) -> list[bytes]:
        """Return one record, because the protocol has nothing of that kind."""
        return [self.load(oid)]

    def bulk(self, oids: list[bytes]) -> list[bytes | Exception]:
        """See `Link`."""
        self._channel.send([b"B" + LENGTH.pack(len(oids)), *oids])
        return [self._loaded(oid) for oid in oids]

    def new_oids(self, count: int) -> list[bytes]:
        """See `Link`."""
        count = min(count, MOST_OIDS)
        self._channel.send_bytes(b"M%c" % count)
        oids = split_oids(self._channel.read(OID_LENGTH * count))
        if len(set(oids)) != count:
            raise WireError("the server handed out an oid twice")
        return oids

    # --- transactions

    def sync(self) -> Told:
        """See `Link`."""
        self._channel.send_bytes(b"S")
        return self._told()

    def _told(self) -> Told:
        return Told(0, split_oids(self._channel.read(OID_LENGTH * self._length(MAX_TOLD))))

    def commit(self, mark: bytes, records: Mapping[bytes, bytes], size: int) -> Decision:
        """See `Link`. Nothing is sent of the records yet: this protocol always asks."""
        size += (LENGTH.size + OID_LENGTH) * len(records)
        if size > MAX_COMMIT:
            raise CommitRefused(f"a commit of {size} bytes is too large for this protocol: make several of it")
        self._records, self._size = records, size
        try:
            self._channel.send_bytes(b"C")
            return Decision(False, *self._told())
        except ConnectionLost as error:
            error.unsent = True
            raise

    def go_on(self) -> Decision:
        """See `Link`."""
        records, self._records = self._records, {}
        self._channel.send([LENGTH.pack(self._size), *pack_records(records.items())])
        status = self._channel.read(1)
        if status == INVALID:
            raise WriteConflictError
        if status != OKAY:
            raise WireError(f"the server answered a commit with {status!r}")
        return Decision(True, 0, [])

    def cancel(self) -> None:
        """See `Link`."""
        self._records = {}
        self._channel.send_bytes(LENGTH.pack(0))

    def fate(self, mark: bytes, since: int) -> int:
        """Return that it cannot be told."""
        return FORGOTTEN

    # --- the server

    def ping(self) -> None:
        """See `Link`."""
        _compare_versions(self._channel)

    def size(self) -> int:
        """Not told."""
        self._unable("tell the number of objects")

    def rows(self, oid: bytes, count: int, size: int) -> list[bytes]:
        """Not done."""
        self._unable("list the objects in order")

    def information(self) -> dict[str, Any]:
        """Not told."""
        self._unable("tell its statistics")

    def pack(self) -> None:
        """See `Link`."""
        self._channel.send_bytes(b"P")
        if self._channel.read(1) != OKAY:
            raise WireError("the server did not understand that it is to pack")

    def backup(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Not done."""
        self._unable("make a backup")

    def shutdown(self) -> None:
        """See `Link`."""
        self._channel.send_bytes(b"Q")
        try:
            self._channel.read(1)
        except ConnectionLost:
            return
        raise WireError("the server answered instead of ending")

    def _unable(self, what: str) -> NoReturn:
        raise ServerError(f"Durus' own server cannot {what}: that takes `durus-bdb serve`")

    def close(self) -> None:
        """See `Link`."""
        self._channel.close()


def open_durus(channel: Channel) -> tuple[DurusLink, Welcome]:
    """Come in at Durus' own server.

    Raises:
        ConnectionLost: it hung up.
        WireError: it speaks another version.
    """
    _compare_versions(channel)
    return DurusLink(channel), WELCOME


def _compare_versions(channel: Channel) -> None:
    channel.send_bytes(b"V" + DURUS_VERSION)
    if channel.read(len(DURUS_VERSION)) != DURUS_VERSION:
        raise WireError("the server speaks another version of Durus' protocol")
