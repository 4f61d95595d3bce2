"""Which objects were touched by transactions meanwhile, for whoever looks at the storage in several steps.

Owns the watches that are under way. Written and read by the thread that holds the engine's mutex.
"""

from __future__ import annotations

from collections.abc import Collection

from pyroaring import BitMap64

from berkeleydb_storage.format import unpack_oids


class Watch:
    """What was touched since it began: stored or deleted, or it gained or lost a reference."""

    def __init__(self) -> None:
        """Begin."""
        self.touched = BitMap64()
        self.spoiled = False
        """Whether everything may have changed: what was seen before is of no use."""

    def note(self, oids: Collection[bytes]) -> None:
        """Add objects."""
        self.touched.update(unpack_oids(oids))


class Watches:
    """Those that are under way: `active`."""

    def __init__(self) -> None:
        """Begin with none."""
        self.active: list[Watch] = []

    def begin(self) -> Watch:
        """Begin to note what is touched, until `end`."""
        watch = Watch()
        self.active.append(watch)
        return watch

    def end(self, watch: Watch) -> None:
        """End a watch, which may have ended already."""
        if watch in self.active:
            self.active.remove(watch)

    def note(self, oids: Collection[bytes]) -> None:
        """Let each know of objects that were touched."""
        for watch in self.active:
            watch.note(oids)

    def spoil(self) -> None:
        """Let each know that everything may have changed."""
        for watch in self.active:
            watch.spoiled = True
