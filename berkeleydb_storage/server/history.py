"""What was changed since when, for all clients of a server at once.

Its methods are called by the thread that holds the engine's mutex.

Invariants:

1. Every transaction since the server began is in `_entries` or, if it is one of the older ones, in the bitmap `_old`.
2. `_latest` has, for each object in `_entries`, the newest entry that names it, but for the large entries, which are
   bitmaps: these are in `_large`, too, and looked at one by one.
3. A client's own commits are not news to it: it is their author. It can only have stored an object that others had not
   changed since it was told, so that nothing of theirs hides behind an entry of its own.

For each client there is but a number, the newest transaction that it was told of: a commit costs the same with one
client and with a thousand. Who falls far behind is told of everything that is in the bitmap, more than is necessary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from itertools import chain

from pyroaring import BitMap64

from berkeleydb_storage.engine import Engine
from berkeleydb_storage.format import pack_oids, unpack_oids, unpack_uint64

KEPT = 200_000
"""Objects named by the entries that are kept one by one: about 40 MB."""
LARGE = 4096
"""Objects from which on an entry is a bitmap: to name 100,000 one by one would hold everybody up for 25 to 100 ms."""
LIGHT = 32
"""Objects in a bitmap that count as one that is named."""


class Entry:
    """What one transaction stored or deleted."""

    __slots__ = ("author", "numbers", "oids", "tid", "weight")

    def __init__(self, tid: int, oids: list[bytes], author: object, large: int) -> None:
        self.tid = tid
        self.oids = oids if len(oids) < large else []
        self.numbers = BitMap64(unpack_oids(oids)) if len(oids) >= large else None
        self.weight = len(oids) if self.numbers is None else 1 + len(oids) // LIGHT
        self.author = author

    def names(self) -> list[bytes]:
        """Return the objects."""
        return self.oids if self.numbers is None else pack_oids(self.numbers)


class History:
    """A listener of the engine that remembers."""

    def __init__(self, engine: Engine, kept: int = KEPT, large: int = LARGE) -> None:
        """Begin, with the newest transaction."""
        self._engine = engine
        self._size_of_large = large
        self._large: deque[Entry] = deque()
        self._kept = kept
        self._entries: deque[Entry] = deque()
        self._named = 0
        self._latest: dict[bytes, Entry] = {}
        self._old = BitMap64()
        self.old_until = 0
        self.author: object = None
        """Whose commit is being applied; None: not that of a client."""
        self.latest: Callable[[bytes], Entry | None] = self._latest.get
        """Return the newest entry that names an object; None where there is none."""
        engine.listen(self)
        with engine.lock:
            self.began = engine.journal.tid

    def invalidate(self, oids: Collection[bytes]) -> None:
        """Note what a transaction changed."""
        changed = list(oids)
        if not changed:
            return
        entry = Entry(self._engine.journal.tid, changed, self.author, self._size_of_large)
        self._entries.append(entry)
        self._named += entry.weight
        if entry.numbers is None:
            self._latest.update(dict.fromkeys(changed, entry))
        else:
            self._large.append(entry)
            self.latest = self._search
        while self._named > self._kept and len(self._entries) > 1:
            self._forget(self._entries.popleft())

    def _search(self, oid: bytes) -> Entry | None:
        """Do what `latest` does, where there are large entries."""
        found, number = self._latest.get(oid), unpack_uint64(oid)
        for entry in reversed(self._large):
            if found is not None and found.tid > entry.tid:
                break
            if entry.numbers is not None and number in entry.numbers:
                return entry
        return found

    def _forget(self, entry: Entry) -> None:
        self._named -= entry.weight
        self.old_until = entry.tid
        if entry.numbers is not None:
            self._old |= entry.numbers
            self._large.popleft()
            if not self._large:
                self.latest = self._latest.get
            return
        self._old.update(unpack_oids(entry.oids))
        for oid in entry.oids:
            if self._latest[oid] is entry:
                del self._latest[oid]

    def trim(self, told: int) -> None:
        """Drop what all clients were told, who have all been told of the transaction `told`, if it is on the disk."""
        if self._old and told >= self.old_until and not self._doubts():
            self._old = BitMap64()

    def _doubts(self) -> bool:
        """Tell whether some of what is in the bitmap may not be on the disk yet."""
        return self._engine.durable and self._engine.flushed < self.old_until

    def is_doubtful(self, oid: bytes) -> bool:
        """Tell whether an object that no entry names may have been changed by a transaction that is not on the disk."""
        return self._doubts() and unpack_uint64(oid) in self._old

    def is_news(self, oid: bytes, told: int, client: object) -> bool:
        """Tell whether an object was changed since `client` was told."""
        entry = self.latest(oid)
        if entry is not None and entry.tid > told and entry.author is not client:
            return True
        return told < self.old_until and unpack_uint64(oid) in self._old

    def since(self, told: int, client: object) -> list[bytes]:
        """Return what was changed since `client` was told; each object once."""
        found: list[list[bytes]] = []
        for entry in reversed(self._entries):
            if entry.tid <= told:
                break
            if entry.author is not client:
                found.append(entry.oids or entry.names())
        if told < self.old_until:
            found.append(pack_oids(self._old))
        return list(dict.fromkeys(chain.from_iterable(found))) if found else []
