"""What a client asks of a server, whichever protocol the two speak: `ExtendedLink` and `DurusLink` have these methods.

A link is used by one thread at a time. Beside the errors that are named, every method may raise `ConnectionLost`,
`WireError`, and what the server has refused: `ServerError` or another error of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from berkeleydb_storage.errors import WireError
from berkeleydb_storage.format import RECORD_HEADER

READ, WRITE, ADMIN = 1, 2, 4
"""Rights, to be added."""


class Welcome(NamedTuple):
    """What a server says to a client that comes in."""

    identity: bytes
    """Stands for one storage and one history of it; empty where the server has none."""
    tid: int
    rights: int
    changed: list[bytes] | None
    """What was changed since the client was told last; None: anything may have been."""


class Told(NamedTuple):
    """What others changed, up to which transaction."""

    tid: int
    oids: list[bytes]


class Decision(NamedTuple):
    """What a server says to a commit."""

    stored: bool
    """False: the client has to say whether it goes on, in view of what others changed."""
    tid: int
    oids: list[bytes]


class Link(Protocol):
    """A connection to a server that let this client in."""

    @property
    def ordered(self) -> bool:
        """Whether `rows` can be asked for."""

    def load(self, oid: bytes) -> bytes:
        """Return a record. Raises: DurusKeyError, ReadConflictError."""

    def fetch(self, oid: bytes, objects: int, size: int) -> list[bytes]:
        """Return the record of an object, and of up to `objects` - 1 more that it leads to. Raises: as `load`."""

    def bulk(self, oids: list[bytes]) -> list[bytes | Exception]:
        """Return for each object its record, or what `load` would raise."""

    def new_oids(self, count: int) -> list[bytes]:
        """Return about `count` new oids."""

    def sync(self) -> Told:
        """Return what others changed."""

    def commit(self, mark: bytes, records: Mapping[bytes, bytes], size: int) -> Decision:
        """Begin to store records of `size` bytes in all. Raises: ConflictError, CommitInDoubt."""

    def go_on(self) -> Decision:
        """Store them although others changed something. Raises: as `commit`."""

    def cancel(self) -> None:
        """Do not store them."""

    def fate(self, mark: bytes, since: int) -> int:
        """Return `COMMITTED`, `NOT_COMMITTED` or `FORGOTTEN`."""

    def ping(self) -> None:
        """Wait for an answer."""

    def size(self) -> int:
        """Return the number of objects."""

    def rows(self, oid: bytes, count: int, size: int) -> list[bytes]:
        """Return the records of the next objects from this oid on."""

    def information(self) -> dict[str, Any]:
        """Return statistics."""

    def pack(self) -> None:
        """Begin a full pack."""

    def backup(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Make a backup, and return what was made."""

    def shutdown(self) -> None:
        """End the server."""

    def close(self) -> None:
        """Close the connection."""


def checked_record(record: bytes, oid: bytes | None = None) -> bytes:
    """Return a record of a server.

    Raises:
        WireError: it is too short, or one of another object than `oid`.
    """
    if len(record) < RECORD_HEADER or (oid is not None and record[:8] != oid):
        raise WireError("the server sent the record of another object, or none at all")
    return record


def checked_records(records: Iterable[bytes]) -> list[bytes]:
    """Return records of a server.

    Raises:
        WireError: one is too short.
    """
    return [checked_record(record) for record in records]
