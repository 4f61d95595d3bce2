"""Where the commits of all clients are put in order, applied, and brought to the disk in groups.

Used by the server's thread alone, but for `Flusher`.

Invariants:

1. Commits are applied one after the other, in the order in which they were handed in, but for those of a client that
   has the turn: they come first.
2. A commit is applied only if nothing that its client has was changed since it was told; else it is asked, or refused.
3. What is acknowledged is on the disk, and what is shown of an object as well (with a durable storage).
4. While `holding`, the engine's mutex is held from one turn of the event loop to the next: then objects may be loaded
   through `read`, and nothing else may be done with the engine in this thread.

Killed anywhere: a commit that was not acknowledged is there whole, or not at all.
"""

from __future__ import annotations

import logging
import queue
import threading
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Protocol

from durus.error import ConflictError

from berkeleydb_storage.engine import SLICE_BYTES, Engine
from berkeleydb_storage.environment import LIBRARY_ERRORS
from berkeleydb_storage.errors import BerkeleyDBStorageError, CommitInDoubt, CommitRefused, describe_oids
from berkeleydb_storage.events import Event, Sparing
from berkeleydb_storage.server.history import History
from berkeleydb_storage.server.interest import Interest
from berkeleydb_storage.server.metrics import Metrics

logger = logging.getLogger(__name__)

TURN = 0.02
"""Seconds that a client has for its answer while it has the turn and other commits wait."""
PENALTY = 1.0
"""Seconds without a turn for one who let the time run out; doubled each time, up to `LONGEST_PENALTY`."""
LONGEST_PENALTY = 64.0
QUICK_TURN = 0.005
"""Seconds that a turn of a client takes at most that is quick."""
SLOW_TURNS = 0.1
"""Seconds that the turns of all clients together may take longer than that, before nobody gets one for a while: then
conflicts are found at the end of a commit, and nobody waits for a crowd that takes the turn and does nothing."""
FORGIVEN = 0.1
"""Seconds of slow turns that are forgotten in a second."""
TRIES = 1
"""How often a client is asked about what others changed before it gets the turn."""
AT_ONCE = 64
"""Records of a commit up to which it is applied without letting others in between."""
STRETCH = 0.0005
"""Seconds for which the thread works on something long before it looks at other clients."""
SLOW = 0.25
"""Seconds from which on a flush is worth a warning."""
QUICK = 0.0003
"""Seconds that a flush usually takes at most where it is done right here: a hop to another thread and back costs 50 to
100 microseconds, and others wait for no longer than for any other request."""
MOST_HERE = 256 << 10
"""Bytes of commits up to which a flush is as quick as usual."""
ABANDONED = 16_384
"""Marks of commits that are not to be stored any more; as many as there are transactions whose fate can be told."""

Pending = Mapping[bytes, tuple[bytes, tuple[bytes, ...]]]


class Client(Protocol):
    """What the desk knows of a connection."""

    told: int
    """The newest transaction that it was told of."""
    interest: Interest
    ended: bool
    can_be_asked: bool
    """Whether it can be asked about what others changed after it has sent a commit."""

    def proceed(self) -> None:
        """Go on with its requests."""

    def give_up(self, error: Exception) -> None:
        """What it waits for does not come: it is not brought to the disk."""

    def take_turn(self) -> None:
        """It has the turn."""

    def ask(self, commit: Commit, news: list[bytes]) -> None:
        """Ask whether it still wants its commit, given what others changed."""

    def stored(self, commit: Commit) -> None:
        """Take note that a commit was applied: from now on others may change its objects."""

    def finish(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge a commit."""

    def refuse(self, commit: Commit, error: Exception) -> None:
        """Tell that nothing of it was stored, or, with a `CommitInDoubt`, that it is not on the disk."""


class Commit:
    """A commit of a client, whole and well-formed."""

    __slots__ = ("client", "mark", "overwrites", "records", "size", "started", "tries")

    def __init__(self, client: Client, records: Pending, size: int, mark: bytes | None) -> None:
        self.client = client
        self.records = records
        self.size = size
        self.mark = mark
        self.tries = 0
        self.overwrites: list[bytes] = []
        self.started = perf_counter()


class Wish:
    """A client's wish to have the turn."""

    __slots__ = ("client",)

    def __init__(self, client: Client) -> None:
        self.client = client


class Flusher:
    """A thread that brings what was committed to the disk."""

    def __init__(self, engine: Engine, done: Callable[[Exception | None, float], None]) -> None:
        """Prepare it; `done` is called by it, with what went wrong, and how many seconds that took."""
        self._engine = engine
        self._done = done
        # gevent's, where the process is patched after this was imported
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="berkeleydb_storage flush", daemon=True)
        self._thread.start()  # now: when the interpreter ends, none can be started any more

    def flush(self) -> None:
        """Begin to flush; `done` is called after that."""
        self._wanted.put(True)

    def close(self) -> None:
        """End the thread, when it has flushed."""
        self._wanted.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.get():
            started = perf_counter()
            error = flush(self._engine)
            self._done(error, perf_counter() - started)


def flush(engine: Engine) -> Exception | None:
    """Bring what was committed to the disk; return what went wrong."""
    try:
        engine.make_durable()
    except Exception as error:  # whatever it is: those who wait for the disk are not to wait for ever
        return error
    return None


class Desk:
    """The commits of a server."""

    def __init__(
        self,
        engine: Engine,
        loop: AbstractEventLoop,
        metrics: Metrics,
        *,
        committed: Callable[[int], None],
        alone: Callable[[], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        """Begin.

        Args:
            engine: what the commits are for.
            loop: the event loop whose thread this is.
            metrics: what is counted.
            committed: called after each commit with the number of records.
            alone: tells whether there is only one client.
            failed: called when the engine can do nothing more.
        """
        self.engine = engine
        self.history = History(engine)
        self.holding = False
        self._loop = loop
        self._metrics = metrics
        self._log = Sparing(logger)
        self._committed = committed
        self._alone = alone
        self._failed = failed
        self._queue: deque[Commit | Wish] = deque()
        self._holder: Client | None = None
        self._timer: TimerHandle | None = None
        self._turn_began = 0.0
        self._slow = 0.0  # seconds of slow turns, at the time `_slow_at`
        self._slow_at = 0.0
        self._late: dict[int, tuple[float, float]] = {}  # id of a client -> no turn until, the penalty
        self._abandoned: dict[bytes, None] = {}
        self._group: list[tuple[Commit, list[bytes], int]] = []
        self._grouped = 0  # bytes of the commits in the group
        self._readers: list[Client] = []
        self._blocked: list[Client] = []
        self._scheduled = False
        self._flushing: tuple[list[tuple[Commit, list[bytes], int]], list[Client]] | None = None
        self._flusher = Flusher(engine, self._flushed_there)
        self._usual = 0.0  # seconds that a flush takes
        self._applying: Pending = {}  # while `holding`
        self._uncounted = 0  # records whose policies have not been asked yet

    # --- reading

    def read(self, client: Client, oid: bytes) -> bytes | int | None:
        """Return the record of an object.

        Returns:
            None: there is no such object. `NEWS`: others changed it since the client was told. `LATER`: it is not
            on the disk yet, call `when_durable`.

        Raises:
            BerkeleyDBStorageError: it cannot be read.
        """
        if self.holding:
            return self._read(client, oid)
        with self.engine.lock:
            return self._read(client, oid)

    def _read(self, client: Client, oid: bytes) -> bytes | int | None:
        history, engine = self.history, self.engine
        entry = history.latest(oid)
        if entry is not None:
            if entry.tid > client.told and entry.author is not client:
                return NEWS
            if entry.tid > engine.flushed and engine.durable:
                return LATER
        elif client.told < history.old_until and history.is_news(oid, client.told, client):
            return NEWS
        elif engine.flushed < history.old_until and history.is_doubtful(oid):
            return LATER
        if self.holding and oid in self._applying:
            return LATER
        try:
            return engine.objects[oid]
        except KeyError:
            return None
        except LIBRARY_ERRORS as error:
            raise engine.failed(error) from error

    def when_durable(self, client: Client) -> None:
        """Have a client proceed when everything that is committed now is on the disk."""
        self._readers.append(client)
        self._schedule()

    def when_free(self, client: Client) -> None:
        """Have a client proceed when the mutex is not held any more by this thread."""
        self._blocked.append(client)

    def news(self, client: Client) -> tuple[list[bytes], int]:
        """Return what others changed since the client was told, and the transaction that it knows everything up to.

        That one is on the disk. From now on the client counts as told.
        """
        if self.holding:
            return self._tell(client)
        with self.engine.lock:
            return self._tell(client)

    def _tell(self, client: Client) -> tuple[list[bytes], int]:
        news = self.history.since(client.told, client)
        client.told = self.engine.journal.tid
        client.interest.drop(news)
        return news, self.known(client.told)

    def known(self, tid: int) -> int:
        """Return the newest transaction up to `tid` that is known to be on the disk."""
        return min(tid, self.engine.flushed) if self.engine.durable else tid

    # --- commits

    def abandon(self, mark: bytes) -> None:
        """See to it that a commit of this mark, which was not stored, never will be."""
        self._abandoned[mark] = None
        while len(self._abandoned) > ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]

    def submit(self, request: Commit | Wish) -> None:
        """Take a commit, or the wish for the turn."""
        if request.client is self._holder:
            self._begin(request)
        else:
            self._queue.append(request)
        self._pump()

    def _pump(self) -> None:
        while self._queue and self._holder is None and not self.holding:
            request = self._queue.popleft()
            if not request.client.ended:
                self._begin(request)

    def _begin(self, request: Commit | Wish) -> None:
        if isinstance(request, Wish):
            self._give_turn(request.client)
            request.client.take_turn()
            return
        if request.client is self._holder:
            self.end_turn(request.client)
        self.engine.lock.acquire()
        try:
            self._decide(request)
        except Exception as error:  # whatever it is: the others in the queue are not to wait for ever
            if not isinstance(error, (BerkeleyDBStorageError, ConflictError)):
                logger.exception(Event("fault", doing="applying a commit"))
            self._metrics.refused += 1
            request.client.refuse(request, error)
        finally:
            if not self.holding:
                self.engine.lock.release()

    def _decide(self, commit: Commit) -> None:
        """Apply a commit, or ask its client. The mutex is held."""
        client = commit.client
        if commit.mark in self._abandoned:
            raise CommitRefused("the client asked for the fate of this commit before it came: it is not stored")
        news = self.history.since(client.told, client)
        overwrites = [oid for oid in news if oid in commit.records]
        if overwrites or (news and client.interest.meets(news)):
            if not client.can_be_asked:
                raise CommitRefused("others changed objects meanwhile that the client has loaded: nothing was stored")
            client.told = self.engine.journal.tid
            client.interest.drop(news)
            commit.overwrites += overwrites
            commit.tries += 1
            if commit.tries > TRIES:
                self._give_turn(client)
            client.ask(commit, news)
        elif commit.overwrites:
            raise CommitRefused(
                f"others changed {describe_oids(commit.overwrites)} meanwhile: nothing was stored", commit.overwrites
            )
        else:
            self._apply(commit, news)

    def _apply(self, commit: Commit, news: list[bytes]) -> None:
        job = self.engine.applying(commit.records, commit.size, mark=commit.mark)
        if len(commit.records) <= AT_ONCE and commit.size <= SLICE_BYTES:
            self.history.author = commit.client
            try:
                for _ in job:
                    pass
            finally:
                self.history.author = None
            self._applied(commit, news)
            return
        self.holding = True
        self._applying = commit.records
        self._loop.call_soon(self._continue, commit, news, job)

    def _continue(self, commit: Commit, news: list[bytes], job: Iterator[None]) -> None:
        """Apply some more of a large commit, with the mutex held since `_apply`."""
        until = perf_counter() + STRETCH
        self.history.author = commit.client
        error: Exception | None = None
        try:
            while perf_counter() < until:
                next(job)
            self._loop.call_soon(self._continue, commit, news, job)
            return
        except StopIteration:
            self._applied(commit, news)
        except Exception as failure:
            error = failure
        finally:
            self.history.author = None
        self._release()
        if error is not None:
            self._metrics.refused += 1
            commit.client.refuse(commit, error)
        self._pump()

    def _release(self) -> None:
        """Let go of the mutex, and have all go on that waited for that."""
        self.holding = False
        self._applying = {}
        self.engine.lock.release()
        self._count()
        if self._group or self._readers:
            self._schedule()
        blocked, self._blocked = self._blocked, []
        for client in blocked:
            client.proceed()

    def _applied(self, commit: Commit, news: list[bytes]) -> None:
        """Put an applied commit among those that wait for the disk. The mutex is held."""
        client, tid = commit.client, self.engine.journal.tid
        if client.can_be_asked or not news:  # the others learn of it by their next sync
            client.told = tid
            client.interest.drop(news)
        client.interest.update(commit.records)
        client.stored(commit)
        self._group.append((commit, news, tid))
        self._grouped += commit.size
        self._schedule()

    # --- the turn

    def may_have_turn(self, client: Client) -> bool:
        """Tell whether a client, and all of them together, have not let others wait in vain lately."""
        until, _ = self._late.get(id(client), (0.0, 0.0))
        return self._loop.time() >= until and self._slow_turns(0.0) < SLOW_TURNS

    def _slow_turns(self, more: float) -> float:
        """Return the seconds of slow turns that are not forgotten yet, with some more."""
        now = self._loop.time()
        self._slow = max(0.0, self._slow - (now - self._slow_at) * FORGIVEN) + more
        self._slow_at = now
        return self._slow

    def _give_turn(self, client: Client) -> None:
        if self.may_have_turn(client):
            self._turn_began = self._loop.time()
            self._holder = client
            self._timer = self._loop.call_later(TURN, self._overrun, client)

    def _overrun(self, client: Client) -> None:
        _, penalty = self._late.get(id(client), (0.0, PENALTY / 2))
        penalty = min(2 * penalty, LONGEST_PENALTY)
        self._late[id(client)] = self._loop.time() + penalty, penalty
        self.end_turn(client)

    def end_turn(self, client: Client) -> None:
        """End the turn of a client, if it has it."""
        if self._holder is client:
            self._holder = None
            self._slow_turns(max(0.0, self._loop.time() - self._turn_began - QUICK_TURN))
            if self._timer is not None:
                self._timer.cancel()
            self._loop.call_soon(self._pump)

    def forget(self, client: Client) -> None:
        """Forget a client that is gone. What it has handed in whole, and not been asked about, is still done."""
        self._late.pop(id(client), None)
        self.end_turn(client)

    # --- the disk

    def _schedule(self) -> None:
        if not self._scheduled and self._flushing is None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def flush_now(self) -> None:
        """Flush what is committed without waiting for more, if there is but one client. Not while `holding`."""
        if self._group and self._flushing is None and not self.holding and self._alone():
            self._flush()

    def _flush(self) -> None:
        self._scheduled = False
        if self._flushing is not None or not (self._group or self._readers):
            return
        if not self.engine.durable:
            self._take_group()
            self._flushed(None, 0.0)
        elif self.holding:
            return  # flushing needs the mutex for a moment: `_release` schedules it again
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
        self._flushed(flush(self.engine), perf_counter() - started)

    def _flushed_there(self, error: Exception | None, seconds: float) -> None:
        """Pass on what the flusher says, in its thread."""
        self._loop.call_soon_threadsafe(self._flushed, error, seconds)

    def _flushed(self, error: Exception | None, seconds: float) -> None:
        assert self._flushing is not None
        (group, readers), self._flushing = self._flushing, None
        if error is not None and not isinstance(error, CommitInDoubt):  # what it was, these commits were applied
            error = CommitInDoubt(f"the commit was applied, and could not be brought to the disk: {error}")
        self._usual += (seconds - self._usual) / 8
        if seconds >= QUICK and error is None and self._group and not self.holding:
            self._take_group()  # so that the disk has work while these are acknowledged
            self._flusher.flush()
        self._metrics.flushed(len(group), seconds)
        if seconds >= SLOW:
            self._log.log(logging.WARNING, Event("slow-flush", seconds=seconds, commits=len(group)))
        self._acknowledge(group, error)
        self._uncounted += sum(len(commit.records) for commit, _, _ in group)
        if not self.holding:
            self._count()
        for client in readers:
            if error is None:
                client.proceed()
            else:  # to try again at once would be to try without end
                client.give_up(error)
        if self._group or self._readers:
            self._schedule()

    def _acknowledge(self, group: list[tuple[Commit, list[bytes], int]], error: Exception | None) -> None:
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

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._queue or self._group or self._flushing or self.holding)

    def close(self) -> None:
        """End the flusher."""
        self._flusher.close()


NEWS, LATER, RETRY = 1, 2, 3
"""What is returned in place of a record: others changed it; it is not on the disk yet; somebody is making it."""
