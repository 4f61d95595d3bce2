"""Which objects were touched by transactions meanwhile, for whoever looks at the storage in several steps.

Written and read by the thread that holds the engine's mutex.
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
