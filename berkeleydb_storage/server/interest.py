"""Which objects a client may have in its cache, as far as a server can tell: those that it was sent or has stored."""

from __future__ import annotations

from collections.abc import Iterable

from pyroaring import BitMap64

from berkeleydb_storage.format import unpack_oids, unpack_uint64

FOLDED = 4096
"""Objects in the list, and in the set, after which they are folded into what is smaller and slower."""

FEW = 16
"""Objects up to which it is faster to do one after the other than to make a bitmap."""


class Interest:
    """The objects that one client may have. Used by the server's thread alone.

    A list is the fastest to append to, a set to ask for some, and a bitmap the smallest: what is noted goes from the
    list to the set when others' commits ask for some, and to the bitmap when it gets much.
    """

    __slots__ = ("_anything", "_has", "_lacks", "_loaded", "_recent", "add")

    def __init__(self, *, anything: bool = False) -> None:
        """Begin with nothing, or, for a client that comes back with a cache, with anything."""
        self._anything = anything
        self._has = BitMap64()
        self._lacks = BitMap64()  # with `_anything`: what it does not have, but for what is in `_recent`
        self._recent: set[bytes] = set()
        self._loaded: list[bytes] = []
        self.add = self._loaded.append
        """Note an object that the client is sent."""

    def __bool__(self) -> bool:
        """Tell whether there may be any."""
        return self._anything or bool(self._loaded) or bool(self._recent) or bool(self._has)

    def _gather(self) -> None:
        """Go on to the set, and from there to the bitmap where that gets large."""
        if self._loaded:
            self._recent.update(self._loaded)
            self._loaded.clear()
            if len(self._recent) > FOLDED:
                self._fold(self._recent)

    def _fold(self, oids: list[bytes] | set[bytes]) -> None:
        """Go on to the bitmap with all of these."""
        numbers = unpack_oids(oids)
        oids.clear()
        if self._anything:
            _change(self._lacks, numbers, has=False)
        else:
            _change(self._has, numbers, has=True)

    def tidy(self) -> None:
        """Keep the list short. To be called now and then."""
        if len(self._loaded) > FOLDED:
            self._fold(self._loaded)

    def update(self, oids: Iterable[bytes]) -> None:
        """Note objects that the client has stored."""
        self._loaded.extend(oids)
        self.tidy()

    def drop(self, oids: list[bytes]) -> None:
        """Note that the client was told to drop these."""
        if oids:
            self._gather()
            self._recent.difference_update(oids)
            if self._anything:
                _change(self._lacks, unpack_oids(oids), has=True)
            elif self._has:
                _change(self._has, unpack_oids(oids), has=False)

    def has(self, oid: bytes) -> bool:
        """Tell whether the client may have an object."""
        self._gather()
        number = unpack_uint64(oid)
        return oid in self._recent or (number not in self._lacks if self._anything else number in self._has)

    def meets(self, oids: list[bytes]) -> bool:
        """Tell whether the client may have one of these objects."""
        self._gather()
        if not self._recent.isdisjoint(oids):
            return True
        return bool(oids) and (self._anything or bool(self._has)) and self._met(unpack_oids(oids))

    def _met(self, numbers: tuple[int, ...]) -> bool:
        """Tell whether one of these, which are not in the set, is in the bitmap."""
        has, lacks, anything = self._has, self._lacks, self._anything
        if len(numbers) <= FEW:
            return any(number not in lacks if anything else number in has for number in numbers)
        many = BitMap64(numbers)
        return bool(many - lacks) if anything else not has.isdisjoint(many)


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
