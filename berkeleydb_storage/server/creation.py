"""Who makes the root object of an empty storage, while the others wait.

A Durus ``Connection`` that finds no root object makes one, with the first oid that it gets, which must be 0. Of several
that find none at the same time only one can.

Any thread may call everything.
"""

from __future__ import annotations

import threading
from time import monotonic

from berkeleydb_storage.engine import Engine
from berkeleydb_storage.format import ROOT_OID

PATIENCE = 2.0
"""Seconds that a client may take to make the root object, while others that ask for it wait."""
PAUSE = 0.02
"""Seconds between two looks whether it is there."""


class Creation:
    """The making of the root object."""

    def __init__(self, engine: Engine) -> None:
        """Begin; nobody makes it."""
        self._engine = engine
        self._lock = threading.Lock()
        self._maker: tuple[object, float] | None = None  # guarded by _lock, with the end of his time
        self._holder: object = None  # guarded by _lock: who was handed the root's oid last

    def may(self, who: object) -> bool:
        """Tell whether a client that finds no root object is the one to make it, and not to wait for another one's."""
        now = monotonic()
        with self._lock:
            if self._maker is None or now > self._maker[1]:
                self._maker = who, now + PATIENCE
            return self._maker[0] is who

    def left(self, who: object) -> None:
        """Note that a client is gone, which need not be waited for any more."""
        with self._lock:
            if self._maker is not None and self._maker[0] is who:
                self._maker = None
            if self._holder is who:
                self._holder = None

    def new_oids(self, who: object, count: int) -> list[bytes]:
        """Return new oids; the root's comes first for the one who makes it, if he has not got it.

        Another one may have been handed it, and have gone without a commit.

        Raises:
            DiskFullError, DamagedError, StorageClosed, CommitInDoubt: none can be reserved.
        """
        oids = [self._engine.new_oid() for _ in range(count)]
        if not oids:
            return oids
        with self._lock:
            if oids[0] == ROOT_OID:
                self._holder = who
            elif self._maker is not None and self._maker[0] is who is not self._holder and not self._engine.size:
                self._holder = who
                oids = [ROOT_OID, *oids[:-1]]
        return oids
