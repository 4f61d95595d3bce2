"""Which client was handed which oids, so that no other one stores an object under them."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from pyroaring import BitMap64

from berkeleydb_storage.errors import CommitRefused
from berkeleydb_storage.format import unpack_oids, unpack_uint64


class Oids:
    """The oids that were handed out and not used yet. Used by the server's thread alone."""

    def __init__(self) -> None:
        self._all = BitMap64()
        self._of: WeakKeyDictionary[object, BitMap64] = WeakKeyDictionary()

    def handed_out(self, client: object, oids: list[bytes]) -> None:
        """Note oids that a client got."""
        numbers = unpack_oids(oids)
        self._all.update(numbers)
        self._of.setdefault(client, BitMap64()).update(numbers)

    def verify(self, client: object, oid: bytes) -> None:
        """Look whether a client may store an object under an oid.

        Raises:
            CommitRefused: it was handed to another one, who has not used it yet. That may be the same client before it
                came back, where the end of its former connection was not noticed: it takes other oids and tries again.
        """
        number = unpack_uint64(oid)
        if number in self._all and number not in self._of.get(client, ()):
            raise CommitRefused(f"object {number}: its oid was handed to another client. Nothing was stored", [oid])

    def used(self, client: object, oids: Iterable[bytes]) -> None:
        """Note that a client has stored objects."""
        own = self._of.get(client)
        if own:
            numbers = BitMap64(unpack_oids(list(oids)))
            own -= numbers
            self._all -= numbers

    def left(self, client: object) -> None:
        """Forget a client that is gone."""
        own = self._of.pop(client, None)
        if own:
            self._all -= own
