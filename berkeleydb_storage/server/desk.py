"""Where the commits of all clients are put in order, compared with what others changed, and applied.

Used by the server's thread alone. Its parts are there for the connections, too: `reading` what they are shown, `turns`
who comes first, `groups` who waits for the disk, `hold` whether the engine's mutex is held.

Invariants:

1. Commits are applied one after the other, in the order in which they were handed in, but for those of a client that
   has the turn: they come first.
2. A commit is applied only if nothing that its client has was changed since it was told; else it is asked, or refused.
3. A large commit is applied in slices, with the mutex held in between; no other one is looked at until it is done.

Killed anywhere: a commit that was not acknowledged is there whole, or not at all.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter

from durus.error import ConflictError

from berkeleydb_storage.engine import SLICE_BYTES, Engine
from berkeleydb_storage.errors import BerkeleyDBStorageError, CommitRefused, describe_oids
from berkeleydb_storage.events import Event
from berkeleydb_storage.server.commits import Client, Commit, Wish
from berkeleydb_storage.server.groups import Groups
from berkeleydb_storage.server.history import History
from berkeleydb_storage.server.hold import Hold
from berkeleydb_storage.server.limits import STRETCH
from berkeleydb_storage.server.metrics import Metrics
from berkeleydb_storage.server.reading import Reading
from berkeleydb_storage.server.turns import Turns

logger = logging.getLogger(__name__)

TRIES = 1
"""How often a client is asked about what others changed before it gets the turn."""
CONTENDED = 0.1
"""Seconds after such a case for which every client gets the turn with the first question: where all clients have what
all others change, each commit would make all other answers worthless, and most be asked for again and again."""
AT_ONCE = 64
"""Records of a commit up to which it is applied without letting others in between."""
ABANDONED = 16_384
"""Marks of commits that are not to be stored any more; as many as there are transactions whose fate can be told."""


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
        self.hold = Hold(engine)
        self.reading = Reading(engine, self.history, self.hold)
        self.groups = Groups(engine, loop, metrics, self.hold, committed=committed, alone=alone, failed=failed)
        self.turns = Turns(loop, self._pump)
        self._loop = loop
        self._metrics = metrics
        self._queue: deque[Commit | Wish] = deque()
        self._abandoned: dict[bytes, None] = {}
        self._contended_until = 0.0

    def abandon(self, mark: bytes) -> None:
        """See to it that a commit of this mark, which was not stored, never will be."""
        self._abandoned[mark] = None
        while len(self._abandoned) > ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]

    def submit(self, request: Commit | Wish) -> None:
        """Take a commit, or the wish for the turn."""
        if request.client is self.turns.holder:
            self._begin(request)
        else:
            self._queue.append(request)
        self._pump()

    def _pump(self) -> None:
        while self._queue and self.turns.holder is None and not self.hold.held:
            request = self._queue.popleft()
            if not request.client.ended:
                self._begin(request)

    def _begin(self, request: Commit | Wish) -> None:
        client, turns = request.client, self.turns
        if isinstance(request, Wish):
            turns.give(client)
            client.take_turn()
            return
        if client is turns.holder:
            turns.end(client)
        lock = self.engine.lock
        lock.acquire()
        try:
            self._decide(request)
        except Exception as error:  # whatever it is: the others in the queue are not to wait for ever
            if not isinstance(error, (BerkeleyDBStorageError, ConflictError)):
                logger.exception(Event("fault", doing="applying a commit"))
            self._metrics.refused += 1
            client.refuse(request, error)
        finally:
            if not self.hold.held:
                lock.release()

    # --- with the mutex

    def _decide(self, commit: Commit) -> None:
        """Apply a commit, or ask its client."""
        client = commit.client
        if commit.mark in self._abandoned:
            raise CommitRefused("the client asked for the fate of this commit before it came: it is not stored")
        news = self.history.since(client.told, client)
        records = commit.records
        overwrites = [] if records.keys().isdisjoint(news) else [oid for oid in news if oid in records]
        if overwrites or (news and client.interest.meets(news)):
            if not client.can_be_asked:
                raise CommitRefused("others changed objects meanwhile that the client has loaded: nothing was stored")
            client.told = self.engine.journal.tid
            client.interest.drop(news)
            commit.overwrites += overwrites
            commit.tries += 1
            self._give_turn(commit)
            client.ask(commit, news)
        elif commit.overwrites:
            raise CommitRefused(
                f"others changed {describe_oids(commit.overwrites)} meanwhile: nothing was stored", commit.overwrites
            )
        else:
            self._apply(commit, news)

    def _give_turn(self, commit: Commit) -> None:
        """Let a client that is about to be asked have the turn, if it would lose the race otherwise."""
        now = self._loop.time()
        if commit.tries > TRIES:
            self._contended_until = now + CONTENDED
        if now < self._contended_until:
            self.turns.give(commit.client)

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
        self.hold.begin(commit.records)
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
        blocked = self.hold.end()
        self.groups.go_on()
        for client in blocked:
            client.proceed()
        if error is not None:
            self._metrics.refused += 1
            commit.client.refuse(commit, error)
        self._pump()

    def _applied(self, commit: Commit, news: list[bytes]) -> None:
        """Put an applied commit among those that wait for the disk."""
        client, tid = commit.client, self.engine.journal.tid
        if client.can_be_asked or not news:  # the others learn of it by their next sync
            client.told = tid  # it has nothing of that: there is nothing to drop
        client.interest.update(commit.records)
        client.stored(commit)
        self.groups.add(commit, news, tid)

    # --- the end

    def forget(self, client: Client) -> None:
        """Forget a client that is gone. What it has handed in whole, and not been asked about, is still done."""
        self.turns.forget(client)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._queue and self.groups.idle and not self.hold.held

    def close(self) -> None:
        """End the threads."""
        self.groups.close()
