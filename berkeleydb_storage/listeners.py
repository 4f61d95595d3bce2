"""Who is told which objects changed: the sessions, and servers, of an open storage.

Owns the list of them. `listen` may be called from any thread; `tell` by the one that holds the mutex, right after its
transaction.

Invariants:

1. Each is told of every transaction that is applied after `listen` returned, but for its own.
2. None is kept alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Protocol

from berkeleydb_storage.gate import Gate


class Listener(Protocol):
    """Who wants to know which objects changed. Called by the thread that holds the mutex, right after a commit."""

    def invalidate(self, oids: Collection[bytes]) -> None:
        """Take note of them."""


class Listeners:
    """All that listen."""

    def __init__(self, gate: Gate) -> None:
        """Begin with none."""
        self._gate = gate
        self._known: list[weakref.ref[Listener]] = []  # guarded by the gate's mutex

    def __len__(self) -> int:
        """Return how many there are, with those that are gone and not forgotten yet."""
        return len(self._known)

    def listen(self, listener: Listener) -> None:
        """Tell `listener` about all changes that are not its own, for as long as it lives."""
        with self._gate.lock:
            self._known = [known for known in self._known if known() is not None]
            self._known.append(weakref.ref(listener))

    def tell(self, origin: Listener | None, stored: list[bytes], deleted: list[bytes]) -> None:
        """Tell all but `origin` what a transaction stored and deleted. The caller holds the mutex."""
        for reference in self._known:
            listener = reference()
            if listener is not None and listener is not origin:
                listener.invalidate(stored)
                listener.invalidate(deleted)
