"""The client's side of the extended protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from durus.error import ReadConflictError

from berkeleydb_storage import protocol
from berkeleydb_storage.client import refusals
from berkeleydb_storage.client.channel import MAX_FRAME, Channel
from berkeleydb_storage.client.link import Decision, Told, Welcome, checked_record, checked_records
from berkeleydb_storage.errors import CommitRefused, WireError, missing
from berkeleydb_storage.format import OID_LENGTH, pack_uint64, unpack_uint64
from berkeleydb_storage.protocol import HEADER, IDENTITY_LENGTH, LENGTH, LIMITS, MARK_LENGTH, PAIR, frame

_WELCOME = IDENTITY_LENGTH + 9
"""Bytes of a welcome before its oids."""
_LOAD = HEADER.pack(1 + OID_LENGTH, protocol.LOAD)
_PER_RECORD = LENGTH.size + OID_LENGTH


class ExtendedLink:
    """A `Link` to a server of this package."""

    ordered = True

    def __init__(self, channel: Channel, longest: int) -> None:
        """Begin.

        Args:
            channel: after the server's greeting.
            longest: bytes of a frame that the server takes.
        """
        self._channel = channel
        self._longest = longest

    # --- coming in

    def authenticate(self, message: bytes) -> bytes:
        """Send a message of the exchange about the password, and return the answer."""
        return self._ask(protocol.AUTHENTICATE, message)

    def resume(self, identity: bytes, tid: int) -> Welcome:
        """Come in; with an empty identity as a client without a cache."""
        seen = identity + pack_uint64(tid) if identity else b""
        kind, payload = self._exchange(protocol.RESUME, seen)
        if kind not in (protocol.OK, protocol.FORGET):
            raise self._surprise(kind, payload)
        if len(payload) < _WELCOME:
            raise WireError(f"a welcome has at least {_WELCOME} bytes, not {len(payload)}")
        self._channel.limit = MAX_FRAME
        identity = payload[:IDENTITY_LENGTH]
        tid = unpack_uint64(payload[IDENTITY_LENGTH : _WELCOME - 1])
        oids = protocol.split_oids(payload[_WELCOME:])
        return Welcome(identity, tid, payload[_WELCOME - 1], None if kind == protocol.FORGET else oids)

    # --- objects

    def load(self, oid: bytes) -> bytes:
        """See `Link`."""
        channel = self._channel
        channel.send_bytes(_LOAD + oid)
        kind, payload = channel.receive()
        if kind == protocol.OK:
            return checked_record(payload, oid)
        raise self._not_loaded(kind, payload, oid)

    def _not_loaded(self, kind: int, payload: bytes, oid: bytes) -> Exception:
        if kind == protocol.UNKNOWN_OBJECT:
            gone: Exception = missing(oid)
            return gone
        if kind == protocol.REFUSED:
            found: Exception = ReadConflictError([oid])
            return found
        return self._surprise(kind, payload)

    def fetch(self, oid: bytes, objects: int, size: int) -> list[bytes]:
        """See `Link`."""
        kind, payload = self._exchange(protocol.FETCH, LIMITS.pack(oid, objects, size))
        if kind != protocol.OK:
            raise self._not_loaded(kind, payload, oid)
        records = checked_records(protocol.unpack_rows(payload))
        if not records:
            raise WireError("the server answered a load with no record")
        checked_record(records[0], oid)
        return records

    def bulk(self, oids: list[bytes]) -> list[bytes | Exception]:
        """See `Link`."""
        self._channel.send_bytes(frame(protocol.BULK, *oids))
        return [self._one_of_bulk(oid) for oid in oids]

    def _one_of_bulk(self, oid: bytes) -> bytes | Exception:
        kind, payload = self._channel.receive()
        if kind == protocol.OK:
            return checked_record(payload, oid)
        if kind == protocol.ERROR:  # nobody says whether it stands for one answer or for all that are still due
            self._channel.close()
            raise refusals.failure(payload)
        found = self._not_loaded(kind, payload, oid)
        if isinstance(found, WireError):
            raise found
        return found

    def rows(self, oid: bytes, count: int, size: int) -> list[bytes]:
        """See `Link`."""
        return checked_records(protocol.unpack_rows(self._ask(protocol.ROWS, LIMITS.pack(oid, count, size))))

    def new_oids(self, count: int) -> list[bytes]:
        """See `Link`."""
        oids = protocol.split_oids(self._ask(protocol.OIDS, LENGTH.pack(count)))
        if not 0 < len(set(oids)) == len(oids) <= count:
            raise WireError(f"the server was asked for {count} new oids and sent {len(oids)}, or one twice")
        return oids

    # --- transactions

    def sync(self) -> Told:
        """See `Link`."""
        return _told(self._ask(protocol.SYNC))

    def commit(self, mark: bytes, records: Mapping[bytes, bytes], size: int) -> Decision:
        """See `Link`."""
        length = 1 + MARK_LENGTH + size + _PER_RECORD * len(records)
        if length > self._longest:
            raise CommitRefused(
                f"a commit of {length} bytes is too large for the server, which takes {self._longest} at once: "
                "make several of it, or have the server's limit raised"
            )
        self._channel.send([HEADER.pack(length, protocol.COMMIT), mark, *protocol.pack_records(records.items())])
        return self._decision()

    def go_on(self) -> Decision:
        """See `Link`."""
        self._channel.send_bytes(frame(protocol.GO_ON))
        return self._decision()

    def _decision(self) -> Decision:
        kind, payload = self._channel.receive()
        if kind in (protocol.OK, protocol.STALE):
            return Decision(kind == protocol.OK, *_told(payload))
        if kind == protocol.REFUSED:
            raise refusals.conflict(payload)
        if kind == protocol.DOUBT:
            raise refusals.doubt(payload)
        raise self._surprise(kind, payload)

    def cancel(self) -> None:
        """See `Link`."""
        self._ask(protocol.CANCEL)

    def fate(self, mark: bytes, since: int) -> int:
        """See `Link`."""
        payload = protocol.require(self._ask(protocol.FATE, mark, pack_uint64(since)), 9, "the fate of a commit")
        if payload[0] > protocol.FORGOTTEN:
            raise WireError(f"a commit has no fate {payload[0]}")
        return payload[0]

    # --- the server

    def ping(self) -> None:
        """See `Link`."""
        self.size()

    def size(self) -> int:
        """See `Link`."""
        payload = protocol.require(self._ask(protocol.PING), PAIR.size, "the answer to a ping")
        return int(PAIR.unpack(payload)[1])

    def information(self) -> dict[str, Any]:
        """See `Link`."""
        return protocol.unpack_json(self._ask(protocol.INFORMATION))

    def pack(self) -> None:
        """See `Link`."""
        self._ask(protocol.PACK)

    def backup(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """See `Link`."""
        kind, payload = self._exchange(protocol.BACKUP)
        while kind == protocol.PROGRESS:
            progress(protocol.unpack_json(payload))
            kind, payload = self._channel.receive()
        if kind != protocol.OK:
            raise self._surprise(kind, payload)
        return protocol.unpack_json(payload)

    def shutdown(self) -> None:
        """See `Link`."""
        self._ask(protocol.SHUTDOWN)

    def close(self) -> None:
        """See `Link`."""
        self._channel.close()

    # --- frames

    def _exchange(self, kind: int, *parts: bytes) -> tuple[int, bytes]:
        self._channel.send_bytes(frame(kind, *parts))
        return self._channel.receive()

    def _ask(self, kind: int, *parts: bytes) -> bytes:
        kind, payload = self._exchange(kind, *parts)
        if kind != protocol.OK:
            raise self._surprise(kind, payload)
        return payload

    def _surprise(self, kind: int, payload: bytes) -> Exception:
        if kind == protocol.ERROR:
            return refusals.failure(payload)
        if kind == protocol.REFUSED:
            return refusals.conflict(payload)
        return WireError(f"the server answered with a frame of type {bytes((kind,))!r}")


def _told(payload: bytes) -> Told:
    if not payload:
        raise WireError("an answer lacks the number of a transaction")
    tid, *_ = oids = protocol.split_oids(payload)
    return Told(unpack_uint64(tid), oids[1:])
