"""Which objects a client may have in its cache, as far as a server can tell: those that it was sent or has stored."""

from __future__ import annotations

from collections.abc import Iterable

from pyroaring import BitMap64

from berkeleydb_storage.format import unpack_oids, unpack_uint64

FOLDED = 4096
"""Loads after which what was loaded is folded into the bitmap: a list is faster to append to."""

FEW = 16
"""Objects up to which it is faster to do one after the other than to make a bitmap."""


class Interest:
    """The objects that one client may have. Used by the server's thread alone."""

    __slots__ = ("_anything", "_has", "_lacks", "_loaded", "add")

    def __init__(self, *, anything: bool = False) -> None:
        """Begin with nothing, or, for a client that comes back with a cache, with anything."""
        self._anything = anything
        self._has = BitMap64()
        self._lacks = BitMap64()  # with `_anything`: what it does not have
        self._loaded: list[bytes] = []
        self.add = self._loaded.append
        """Note an object that the client is sent."""

    def __bool__(self) -> bool:
        """Tell whether there may be any."""
        return self._anything or bool(self._loaded) or bool(self._has)

    def _fold(self) -> None:
        if self._loaded:
            numbers = unpack_oids(self._loaded)
            self._loaded.clear()
            _change(self._lacks, numbers, has=False)
            if not self._anything:
                _change(self._has, numbers, has=True)

    def tidy(self) -> None:
        """Keep the list short. To be called now and then."""
        if len(self._loaded) > FOLDED:
            self._fold()

    def update(self, oids: Iterable[bytes]) -> None:
        """Note objects that the client has stored."""
        self._loaded.extend(oids)
        self.tidy()

    def drop(self, oids: list[bytes]) -> None:
        """Note that the client was told to drop these."""
        if oids:
            self._fold()
            if self._anything:
                _change(self._lacks, unpack_oids(oids), has=True)
            else:
                _change(self._has, unpack_oids(oids), has=False)

    def has(self, oid: bytes) -> bool:
        """Tell whether the client may have an object."""
        self._fold()
        number = unpack_uint64(oid)
        return number not in self._lacks if self._anything else number in self._has

    def meets(self, oids: list[bytes]) -> bool:
        """Tell whether the client may have one of these objects."""
        self._fold()
        if len(oids) <= FEW:
            has, lacks, anything = self._has, self._lacks, self._anything
            return any(number not in lacks if anything else number in has for number in unpack_oids(oids))
        numbers = BitMap64(unpack_oids(oids))
        return bool(numbers - self._lacks) if self._anything else not self._has.isdisjoint(numbers)


def _change(bitmap: BitMap64, numbers: tuple[int, ...], *, has: bool) -> None:
    """Add numbers to a bitmap, or take them out of it."""
    if len(numbers) > FEW:
        if has:
            bitmap |= BitMap64(numbers)
        elif bitmap:
            bitmap -= BitMap64(numbers)
    elif has:
        for number in numbers:
            bitmap.add(number)
    elif bitmap:
        for number in numbers:
            bitmap.discard(number)
