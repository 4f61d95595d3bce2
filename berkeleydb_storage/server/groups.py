"""Who waits for the disk: commits that were applied, and those who want to read them, flushed and answered in groups.

Used by the server's thread alone, but for `_flushed_there`.

Invariants:

1. What is acknowledged is on the disk (with a durable storage); what could not be brought there is in doubt.
2. One flush is under way at most; what comes meanwhile is the next group.
3. Nothing is flushed while the engine's mutex is held by this thread from turn to turn: flushing takes it for a moment.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from time import perf_counter

from berkeleydb_storage.engine import Engine
from berkeleydb_storage.errors import CommitInDoubt
from berkeleydb_storage.events import Event, Sparing
from berkeleydb_storage.server.commits import Client, Commit
from berkeleydb_storage.server.flusher import Flusher, flush
from berkeleydb_storage.server.hold import Hold
from berkeleydb_storage.server.metrics import Metrics

logger = logging.getLogger(__name__)

SLOW = 0.25
"""Seconds from which on a flush is worth a warning."""
QUICK = 0.0003
"""Seconds that a flush usually takes at most where it is done right here: a hop to another thread and back costs 50 to
100 microseconds, and others wait for no longer than for any other request."""
MOST_HERE = 256 << 10
"""Bytes of commits up to which a flush is as quick as usual."""

Group = list[tuple[Commit, list[bytes], int]]
"""Commits, what their clients have not been told, and their transactions."""


class Groups:
    """What is applied and not acknowledged yet."""

    def __init__(
        self,
        engine: Engine,
        loop: AbstractEventLoop,
        metrics: Metrics,
        hold: Hold,
        *,
        committed: Callable[[int], None],
        alone: Callable[[], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        """Begin with none; `hold` says whether this thread has the mutex, the rest is as the desk was given it."""
        self._engine = engine
        self._loop = loop
        self._metrics = metrics
        self._hold = hold
        self._log = Sparing(logger)
        self._committed = committed
        self._alone = alone
        self._failed = failed
        self._group: Group = []
        self._grouped = 0  # bytes of the commits in the group
        self._readers: list[Client] = []
        self._scheduled = False
        self._flushing: tuple[Group, list[Client]] | None = None
        self._flusher = Flusher(engine, self._flushed_there)
        self._usual = 0.0  # seconds that a flush takes
        self._uncounted = 0  # records whose policies have not been asked yet

    def add(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge an applied commit, of the transaction `tid`, when it is on the disk."""
        self._group.append((commit, news, tid))
        self._grouped += commit.size
        self._schedule()

    def when_durable(self, client: Client) -> None:
        """Have a client proceed when everything that is committed now is on the disk."""
        self._readers.append(client)
        self._schedule()

    def flush_now(self) -> None:
        """Flush what is committed without waiting for more, if there is but one client. Not while `held`."""
        if self._group and self._flushing is None and not self._hold.held and self._alone():
            self._flush()

    def go_on(self) -> None:
        """Do what had to wait until the mutex is not held any more."""
        self._count()
        if self._group or self._readers:
            self._schedule()

    @property
    def idle(self) -> bool:
        """Whether no commit waits."""
        return not (self._group or self._flushing)

    def close(self) -> None:
        """End the flusher."""
        self._flusher.close()

    def _schedule(self) -> None:
        if not self._scheduled and self._flushing is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._flushing is not None or not (self._group or self._readers):
            return
        if not self._engine.durable:
            self._take_group()
            self._flushed(None, 0.0)
        elif self._hold.held:
            return  # `go_on` schedules it again
        elif (self._usual < QUICK or self._alone()) and self._grouped <= MOST_HERE:
            self._flush_here()
        else:
            self._take_group()
            self._flusher.flush()

    def _take_group(self) -> None:
        self._grouped = 0
        self._flushing, self._group, self._readers = (self._group, self._readers), [], []

    def _flush_here(self) -> None:
        started = perf_counter()
        self._take_group()
        self._flushed(flush(self._engine), perf_counter() - started)

    def _flushed_there(self, error: Exception | None, seconds: float) -> None:
        """Pass on what the flusher says, in its thread."""
        self._loop.call_soon_threadsafe(self._flushed, error, seconds)

    def _flushed(self, error: Exception | None, seconds: float) -> None:
        assert self._flushing is not None
        (group, readers), self._flushing = self._flushing, None
        if error is not None and not isinstance(error, CommitInDoubt):  # what it was, these commits were applied
            error = CommitInDoubt(f"the commit was applied, and could not be brought to the disk: {error}")
        self._usual += (seconds - self._usual) / 8
        if seconds >= QUICK and error is None and self._group and not self._hold.held:
            self._take_group()  # so that the disk has work while these are acknowledged
            self._flusher.flush()
        self._metrics.flushed(len(group), seconds)
        if seconds >= SLOW:
            self._log.log(logging.WARNING, Event("slow-flush", seconds=seconds, commits=len(group)))
        self._acknowledge(group, error)
        self._uncounted += sum(len(commit.records) for commit, _, _ in group)
        if not self._hold.held:
            self._count()
        for client in readers:
            if error is None:
                client.proceed()
            else:  # to try again at once would be to try without end
                client.give_up(error)
        if self._group or self._readers:
            self._schedule()

    def _acknowledge(self, group: Group, error: Exception | None) -> None:
        for commit, news, tid in group:
            if error is None:
                commit.client.finish(commit, news, tid)
                self._metrics.committed(len(commit.records), commit.size, perf_counter() - commit.started)
            else:
                commit.client.refuse(commit, error)
        if error is not None:
            logger.critical(Event("flush-failed", commits=len(group), reason=error))
            self._failed(error)

    def _count(self) -> None:
        """Let the policies that work after commits do so; they take the mutex."""
        if self._uncounted:
            records, self._uncounted = self._uncounted, 0
            self._committed(records)
