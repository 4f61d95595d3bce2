"""When what is committed is on the disk.

Owns the flushing of the log, and the threads that are about to do it. Methods may be called from any thread, without
the mutex unless they say that the caller holds it.

Invariants:

1. `flush` returns when the log of all that was applied before is on the disk.
2. The log is flushed without the mutex; the library makes one sync of concurrent flushes.
3. A sync that fails for another reason than a full disk shuts the gate: nothing is acknowledged after it.
4. `finish` returns when no thread is between its transaction and the end of its flush.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from berkeleydb_storage import failpoints
from berkeleydb_storage.environment import LIBRARY_ERRORS, explain
from berkeleydb_storage.errors import CommitInDoubt
from berkeleydb_storage.gate import Gate
from berkeleydb_storage.journal import Journal


class Durability:
    """How transactions get to the disk."""

    def __init__(self, gate: Gate, journal: Journal, *, durable: bool) -> None:
        """Begin with all that is in the journal on the disk."""
        self._gate = gate
        self._journal = journal
        self.durable = durable
        self.flushed = journal.tid
        """A transaction that is on the disk; written by all threads that flush, so that the newest may be missed."""
        self.closing = False
        """Whether the storage is to be closed: who is in the middle of long work ends it."""
        self.flushing: set[int] = set()
        """Threads that flush or are about to. One adds itself under the mutex under which it applied something, takes
        itself out at the end, whatever happens, and then calls `tell` if `closing`."""
        self._ended = threading.Condition(gate.lock)
        self.lost_place: Callable[[], Exception | None] = _never
        """Tells what to say if the files were removed: what is written to them then is nowhere. 0.4 microseconds."""

    def make_durable(self) -> None:
        """Bring everything that is committed to the disk, if the engine is durable.

        Raises:
            CommitInDoubt, DamagedError, StorageClosed: it cannot.
        """
        thread = threading.get_ident()
        try:
            with self._gate.lock:
                self._gate.require_open()
                if not self.durable:
                    return
                self.flushing.add(thread)
            self.flush("a transaction")
        finally:
            self.flushing.discard(thread)
            if self.closing:
                self.tell()

    def flush(self, what: str) -> None:
        """Bring `what` was applied, and all before it, to the disk.

        Raises:
            CommitInDoubt: it was applied, and could not be brought there.
        """
        gate, tid = self._gate, self._journal.tid
        try:
            gate.environment.flush()
            self.flushed = max(self.flushed, tid)
        except LIBRARY_ERRORS as error:
            stopped = gate.environment.distrust(error)
            if stopped is not None:
                with gate.lock:
                    gate.refuse(stopped)
            reason = stopped or explain(error, gate.path)
            raise CommitInDoubt(f"{what} was applied, and could not be brought to the disk: {reason}") from error
        if (lost := self.lost_place()) is not None:
            with gate.lock:
                gate.refuse(lost)
            raise CommitInDoubt(f"{what} was applied, and could not be brought to the disk: {lost}")
        failpoints.reached("commit.flushed")

    def tell(self) -> None:
        """Let `finish` look again, after a thread took itself out of `flushing`."""
        with self._gate.lock:
            self._ended.notify_all()

    def flush_now(self) -> None:
        """Bring everything that is committed to the disk, whatever `durable` says. The caller holds the mutex.

        Raises:
            DiskFullError, DamagedError: it is not.
        """
        gate = self._gate
        try:
            gate.environment.flush()
        except LIBRARY_ERRORS as error:
            stopped = gate.environment.distrust(error)
            if stopped is None:
                raise gate.failed(error) from error
            gate.refuse(stopped)
            raise stopped from error

    def finish(self) -> None:
        """Let the flushes under way end. The caller holds the mutex, which is released meanwhile."""
        self.closing = True
        self.flushing.discard(threading.get_ident())  # closing in a signal handler, within a commit
        while self.flushing:
            self._ended.wait()


def _never() -> None:
    """Say that the files are there."""
