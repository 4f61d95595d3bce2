"""Work that nothing else may be done beside: a migration.

Owns who does what exclusively. `during` may be called from any thread; the rest by the one that holds the mutex.

Invariants:

1. One thread at a time does something exclusively.
2. Meanwhile every commit is refused, and every other transaction of another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from berkeleydb_storage.errors import CommitRefused
from berkeleydb_storage.gate import Gate


class Exclusion:
    """What is done exclusively, if there is something."""

    def __init__(self, gate: Gate) -> None:
        """Begin with nothing."""
        self._gate = gate
        self.under_way: tuple[int, str] | None = None
        """By which thread, and what; guarded by the gate's mutex."""

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Refuse all commits, and other transactions of other threads, while the calling one does `what`.

        Raises:
            CommitRefused: something is done exclusively already.
        """
        with self._gate.lock:
            self.require_idle()
            self.under_way = (threading.get_ident(), what)
        try:
            yield
        finally:
            self.under_way = None

    def require_idle(self) -> None:
        """Raise `CommitRefused` while something is done exclusively. The caller holds the mutex."""
        if self.under_way is not None:
            raise CommitRefused(
                f"{self._gate.path} is busy with {self.under_way[1]}: nothing was stored, try again later"
            )

    def admit(self) -> None:
        """Raise `CommitRefused` while another thread does something exclusively. The caller holds the mutex."""
        if self.under_way is not None and self.under_way[0] != threading.get_ident():
            self.require_idle()
