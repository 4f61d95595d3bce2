"""What others changed and the application was not told yet; and what it may have in its cache.

A server tells what was changed in the answers to ``sync`` and to commits, but also to a client that comes back after
its connection broke. The application learns of it at the times at which it expects that: from ``sync``, and from the
handler that it gives to ``end``. Until then an object with news cannot be loaded.

Not thread-safe: its storage's lock guards it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pyroaring import BitMap64

from berkeleydb_storage.format import pack_oids, unpack_oids, unpack_uint64


class News:
    """The objects that the application has to be told of."""

    def __init__(self) -> None:
        """Begin without any."""
        self._untold = BitMap64()
        self._known = BitMap64()
        self._everything = False

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return self._everything or bool(self._untold)

    def saw(self, oids: Collection[bytes]) -> None:
        """Note that the application has seen these objects, or stored them."""
        self._known.update(unpack_oids(oids))

    def saw_one(self, oid: bytes) -> None:
        """Note that the application has seen this object."""
        self._known.add(int.from_bytes(oid, "big"))

    def add(self, oids: Collection[bytes]) -> None:
        """Note that these were changed."""
        self._untold.update(unpack_oids(oids))

    def forget(self) -> None:
        """Note that anything may have been changed."""
        self._everything = True

    def concerns(self, oid: bytes) -> bool:
        """Tell whether an object was changed, or may have been."""
        return self._everything or (bool(self._untold) and unpack_uint64(oid) in self._untold)

    def among(self, oids: Iterable[bytes]) -> list[bytes]:
        """Return those of the oids that were changed; where anything may have been, those that were seen."""
        changed = self._untold | self._known if self._everything else self._untold
        return [oid for oid in oids if unpack_uint64(oid) in changed] if changed else []

    def take(self) -> list[bytes]:
        """Return what the application is to be told; it counts as told from now on."""
        told = self._untold
        if self._everything:
            told = told | self._known
            self._known = BitMap64()
            self._everything = False
        self._untold = BitMap64()
        return pack_oids(told)
