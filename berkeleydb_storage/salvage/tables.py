"""A table that may be damaged, as a file of pages: takes what can be read, and leaves the rest.

Invariants:

1. Only pages with a right checksum, in the place that their number says, are read.
2. Of several versions of a row, that in the page that was changed last is taken.
3. Nothing is written but a temporary table. Memory: `PAGES` pages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from berkeleydb_storage.environment import rows as rows_of
from berkeleydb_storage.environment import scratch_table
from berkeleydb_storage.files import PAGE_SIZE, PAGE_TYPE, page_is_sound
from berkeleydb_storage.keys import mac_key
from berkeleydb_storage.salvage import pages
from berkeleydb_storage.salvage.pages import Chain

PAGES = 256
INDEX_CACHE = 64 << 20
REPORT_EVERY = 1000
"""Pages between two calls of `progress`."""

_PLACE = Struct(">IIII")

Decrypt = Callable[[bytes], bytes]
Progress = Callable[[str, int], None]


class Place(NamedTuple):
    """Where a row is. Places are ordered as the changes of their pages."""

    log: int
    offset: int
    page: int
    row: int


class DamagedTable:
    """A file of pages, for reading. For one thread; close it."""

    def __init__(self, path: Path, key: str | None = None, decrypt: Decrypt | None = None) -> None:
        """Open it.

        Args:
            path: the file.
            key: what its checksums take, if it is encrypted.
            decrypt: makes of an encrypted page one that can be read.

        Raises:
            OSError: it cannot be read.
        """
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._mac = mac_key(key)
        self._decrypt = decrypt
        self._start = pages.PLAIN_START if key is None else pages.ENCRYPTED_START
        self.pages = -(-os.fstat(self._file).st_size // PAGE_SIZE)
        self.bad: list[int] = []
        """The pages that cannot be read, as `index` found them; those of zeros are not among them."""
        self.zeros = 0
        """How many pages are of zeros: they may be lost, or not."""
        self._index = scratch_table(INDEX_CACHE)
        self._rows = lru_cache(PAGES)(self._read_rows)

    def close(self) -> None:
        """Free everything."""
        self._index.close()
        os.close(self._file)

    def page(self, number: int) -> bytes | None:
        """Return a page that can be trusted, decrypted; None where it cannot. One of zeros can."""
        page = os.pread(self._file, PAGE_SIZE, number * PAGE_SIZE)
        if not page_is_sound(page, self._mac):
            return None
        if not any(page) or not number:
            return page.ljust(PAGE_SIZE, b"\0")
        if pages.header(page).number != number:
            return None
        return page if self._decrypt is None else self._decrypt(page)

    def index(self, progress: Progress, activity: str) -> None:
        """Find out where the newest version of each row is.

        Args:
            progress: called now and then with the activity and the number of pages so far.
            activity: what to call it.
        """
        for number in range(self.pages):
            page = self.page(number)
            if page is None:
                self.bad.append(number)
            elif not any(page):
                self.zeros += 1
            elif number and page[PAGE_TYPE] in pages.LEAVES:
                self._add(number, page)
            if number % REPORT_EVERY == 0:
                progress(activity, number)
        progress(activity, self.pages)

    def _add(self, number: int, page: bytes) -> None:
        try:
            found = list(pages.rows(page, self._start))
        except ValueError:
            self.bad.append(number)
            return
        known = pages.header(page)
        for row, (key, _) in enumerate(found):
            place = Place(known.log, known.offset, number, row)
            before = self._index.get(key)
            if before is None or Place._make(_PLACE.unpack(before[: _PLACE.size])) < place:
                self._index.put(key, _PLACE.pack(*place) + (b"" if before is None else b"+"))
            else:
                self._index.put(key, before[: _PLACE.size] + b"+")

    def places(self) -> Iterator[tuple[bytes, Place, bool]]:
        """Yield the key of each row in order, where it is, and whether there were several versions. `index` before."""
        for key, value in rows_of(self._index):
            yield key, Place._make(_PLACE.unpack(value[: _PLACE.size])), len(value) > _PLACE.size

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what can be read of the rows, in the order of their keys."""
        for key, place, _ in self.places():
            value = self.value(place)
            if value is not None:
                yield key, value

    def get(self, key: bytes) -> bytes | None:
        """Return a row's value; None where there is none, or it cannot be read."""
        found = self._index.get(key)
        return None if found is None else self.value(Place._make(_PLACE.unpack(found[: _PLACE.size])))

    def value(self, place: Place) -> bytes | None:
        """Return the value of a row; None where a part of it cannot be read."""
        value = self._rows(place.page)[place.row]
        if isinstance(value, bytes):
            return value
        try:
            return self._chained(value)
        except ValueError:
            return None

    def _read_rows(self, number: int) -> list[bytes | Chain]:
        page = self.page(number)
        return [] if page is None else [value for _, value in pages.rows(page, self._start)]

    def _chained(self, chain: Chain) -> bytes:
        """Put a value together.

        Raises:
            ValueError: a part is lost.
        """
        parts, length, previous, number = [], 0, 0, chain.page
        while number and length < chain.length:
            page = self.page(number) if number < self.pages else None
            if page is None:
                raise ValueError(f"page {number} is lost")
            found, following = pages.part(page, number, previous, self._start)
            parts.append(found)
            length += len(found)
            previous, number = number, following
        if number or length != chain.length:
            raise ValueError(f"{length} of {chain.length} bytes")
        return b"".join(parts)
