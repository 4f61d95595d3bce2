"""`Pool`: connections for the threads or greenlets of a program.

Every method may be called from any thread or greenlet; nobody waits with the lock held, but for the lock.

Invariants:

1. At most `size` connections are open, those that are being made included.
2. A connection is in one place: with whoever took it, or in `_idle`, the one that was used last on top.
3. What is handed out has seen everything that was committed before, and holds no change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError

from berkeleydb_storage.client import forks
from berkeleydb_storage.client.dialing import DEFAULT_ADDRESS
from berkeleydb_storage.client.storage import ClientStorage
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    OptionError,
    PoolExhausted,
    ServerUnreachable,
    StorageClosed,
)

DEFAULT_CACHE_SIZE = 100_000
"""Durus'."""
ATTEMPTS = 100
"""To load the root object for a new connection; each fails only if somebody has just stored it."""


@dataclass(frozen=True)
class PoolStatistics:
    """A snapshot of a pool. The numbers of events count from its beginning, or from the fork."""

    size: int
    """Connections that may be open."""
    in_use: int
    """Connections that are handed out, or being made."""
    idle: int
    """Connections that wait for the next user."""
    waiting: int
    """Threads or greenlets that wait for a connection."""
    handed_out: int
    """Times that a connection was handed out."""
    made: int
    """Connections made."""
    expired: int
    """Connections closed because nobody used them."""
    broken: int
    """Connections given up after an error."""
    exhausted: int
    """Times that somebody waited in vain."""


class _Entry:
    """A connection, and when it was used last."""

    def __init__(self, connection: Connection, generation: int) -> None:
        self.connection = connection
        self.generation = generation
        self.since = 0.0


class Pool:
    """Up to `size` connections to one server, each for one thread or greenlet at a time."""

    def __init__(
        self,
        address: str | tuple[str, int] | Callable[[], ClientStorage] = DEFAULT_ADDRESS,
        *,
        size: int = 10,
        wait: float = 30.0,
        idle_timeout: float = 900.0,
        cache_size: int = DEFAULT_CACHE_SIZE,
        root_class: type | None = None,
        **options: Any,
    ) -> None:
        """Prepare a pool; connections are made when they are needed.

        Args:
            address: of the server, as for `ClientStorage`; or a function that returns a new storage, such as a
                `SharedStorage`, for each connection.
            size: connections at the same time; default 10.
            wait: seconds to wait for one when all are in use; default 30.
            idle_timeout: seconds after which one that nobody uses is closed; default 900.
            cache_size: objects that each connection keeps, as Durus' ``Connection`` has it.
            root_class: of the root object, as Durus' ``Connection`` has it.
            options: what `ClientStorage` takes beside: ``password``, ``ca``, ``timeout``, ``prefetch``, …

        Raises:
            OptionError: a number is not positive.
        """
        if size < 1 or wait < 0 or idle_timeout <= 0:
            raise OptionError(
                "size and idle_timeout of the pool are positive, and wait is not negative; "
                f"they are {size}, {idle_timeout} and {wait}"
            )
        self._address = address
        self._size = size
        self._wait = wait
        self._idle_timeout = idle_timeout
        self._cache_size = cache_size
        self._root_class = root_class
        self._options = options
        self._generation = 0
        self._closed = False
        self._begin()
        forks.note(self)

    def _begin(self) -> None:
        """Begin without connections."""
        self._changed = threading.Condition()  # guards everything below
        self._first = threading.Lock()  # held while a connection is made until one was: the root is made once
        self._rooted = False
        self._idle: list[_Entry] = []
        self._open = 0
        self._waiting = 0
        self._handed_out = self._made = self._expired = self._broken = self._exhausted = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection, for a ``with`` statement. Whatever is not committed at its end is aborted.

        Raises:
            PoolExhausted: all were in use for too long.
            StorageClosed: the pool was closed.
            ServerUnreachable, …: as `ClientStorage`.
        """
        entry = self._take()
        try:
            yield entry.connection
        except BaseException as error:
            self._give_back(entry, broken=isinstance(error, BerkeleyDBStorageError) and not _is_conflict(error))
            raise
        self._give_back(entry, broken=False)

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of what the pool does."""
        with self._changed:
            return PoolStatistics(
                size=self._size,
                in_use=self._open - len(self._idle),
                idle=len(self._idle),
                waiting=self._waiting,
                handed_out=self._handed_out,
                made=self._made,
                expired=self._expired,
                broken=self._broken,
                exhausted=self._exhausted,
            )

    def close(self) -> None:
        """Close all connections, those in use when they are given back. Works twice."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._open -= len(idle)
            timer, self._timer = self._timer, None
            self._changed.notify_all()
        if timer is not None:
            timer.cancel()
        _close(idle)

    def __enter__(self) -> Pool:
        """Return the pool."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    # --- taking

    def _take(self) -> _Entry:
        entry = self._reserve()
        try:
            entry = self._fresh(entry) if entry is not None else self._make()
        except BaseException:
            self._release()
            raise
        with self._changed:
            self._handed_out += 1
        return entry

    def _reserve(self) -> _Entry | None:
        """Take an idle connection, or the right to make one, which is None."""
        deadline = time.monotonic() + self._wait
        with self._changed:
            while not self._closed and not self._idle and self._open >= self._size:
                self._waiting += 1
                try:
                    in_time = self._changed.wait(max(deadline - time.monotonic(), 0))
                finally:
                    self._waiting -= 1
                if not in_time and time.monotonic() >= deadline and not self._idle and self._open >= self._size:
                    self._exhausted += 1
                    raise PoolExhausted(
                        f"all {self._size} connections of the pool were in use for {self._wait:g} s: "
                        "give them back sooner, or make the pool larger"
                    )
            if self._closed:
                raise StorageClosed("the pool was closed")
            if self._idle:
                return self._idle.pop()
            self._open += 1
            return None

    def _release(self) -> None:
        """Let another connection be made in place of one that is gone."""
        with self._changed:
            self._open -= 1
            self._changed.notify()

    def _fresh(self, entry: _Entry) -> _Entry:
        """Let an idle connection see what is new; one that cannot is replaced."""
        try:
            entry.connection.abort()
        except ServerUnreachable:
            self._give_up(entry)
            raise
        except Exception:
            self._give_up(entry)
            return self._make()
        except BaseException:
            self._give_up(entry)
            raise
        return entry

    def _give_up(self, entry: _Entry) -> None:
        with self._changed:
            self._broken += 1
        _close([entry])

    def _make(self) -> _Entry:
        if self._rooted:
            return self._connect()
        with self._first:
            entry = self._connect()
            self._rooted = True
            return entry

    def _connect(self) -> _Entry:
        generation = self._generation
        storage = self._address() if callable(self._address) else ClientStorage(self._address, **self._options)
        try:
            connection = self._open_connection(storage)
        except BaseException:
            storage.close()
            raise
        with self._changed:
            self._made += 1
        return _Entry(connection, generation)

    def _open_connection(self, storage: ClientStorage) -> Connection:
        """Have Durus load the root. Where others store that all the time it may be too old twice in a row."""
        for _ in range(ATTEMPTS):
            try:
                return Connection(storage, cache_size=self._cache_size, root_class=self._root_class)
            except ReadConflictError:
                storage.sync()
        return Connection(storage, cache_size=self._cache_size, root_class=self._root_class)

    # --- giving back

    def _give_back(self, entry: _Entry, *, broken: bool) -> None:
        if entry.generation != self._generation:  # it is of the parent process
            _close([entry])
            return
        _forget_changes(entry.connection)
        entry.since = time.monotonic()
        with self._changed:
            kept = not broken and not self._closed
            self._broken += broken
            if kept:
                self._idle.append(entry)
                self._changed.notify()
                self._set_timer()
        if not kept:
            _close([entry])
            self._release()

    def _set_timer(self) -> None:
        """Have the idle ones looked at when the first of them may be due. The lock is held."""
        if self._timer is None and self._idle and not self._closed:
            delay = self._idle[0].since + self._idle_timeout - time.monotonic()
            self._timer = threading.Timer(max(delay, 0), self._expire)
            self._timer.daemon = True
            self._timer.name = "berkeleydb_storage pool"
            self._timer.start()

    def _expire(self) -> None:
        """Close what nobody used for long: that is at the bottom."""
        due = time.monotonic() - self._idle_timeout
        with self._changed:
            self._timer = None
            expired = [entry for entry in self._idle if entry.since <= due]
            self._idle = [entry for entry in self._idle if entry.since > due]
            self._expired += len(expired)
            self._open -= len(expired)
            self._changed.notify(len(expired))
            self._set_timer()
        _close(expired)

    # --- forking

    def forked(self) -> None:
        """Begin anew in a forked child; the connections are the parent's."""
        self._generation += 1
        for entry in self._idle:
            entry.connection.storage.forked()
        self._begin()


def _is_conflict(error: BaseException) -> bool:
    """Tell whether a connection goes on after an error as soon as it is aborted."""
    return isinstance(error, (ConflictError, PoolExhausted))


def _forget_changes(connection: Connection) -> None:
    """Do what ``abort`` does without asking the server: that follows when the connection is handed out again."""
    for changed in connection.changed.values():
        changed._p_set_status_ghost()
    connection.changed.clear()


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        with suppress(BerkeleyDBStorageError, OSError):
            entry.connection.storage.close()
