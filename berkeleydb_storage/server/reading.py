"""What clients are shown: objects, what others changed, and nothing that a crash could take back.

Used by the server's thread alone.

Invariants:

1. No client sees an object that others changed since it was told, before it is told of that.
2. What is shown of an object is on the disk (with a durable storage), and so is the transaction that a client is told
   it knows everything up to.
"""

from __future__ import annotations

from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import LIBRARY_ERRORS
from berkeleydb_storage.server.commits import Client
from berkeleydb_storage.server.history import History
from berkeleydb_storage.server.hold import Hold

NEWS, LATER, RETRY = 1, 2, 3
"""What is returned in place of a record: others changed it; it is not on the disk yet; somebody is making it."""


class Reading:
    """The view of an engine that clients have."""

    def __init__(self, engine: Engine, history: History, hold: Hold) -> None:
        """Begin; `history` is what was changed since when, `hold` says whether this thread has the mutex."""
        self.engine = engine
        self.history = history
        self._hold = hold
        self._lock = engine.lock  # it is another one in a forked child only, where nobody is served

    def read(self, client: Client, oid: bytes) -> bytes | int | None:
        """Return the record of an object.

        Returns:
            None: there is no such object. `NEWS`: others changed it since the client was told. `LATER`: it is not
            on the disk yet, call `Groups.when_durable`.

        Raises:
            BerkeleyDBStorageError: it cannot be read.
        """
        if self._hold.held:
            return self._read(client, oid)
        with self._lock:
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
        if oid in self._hold.records:
            return LATER
        try:
            return engine.objects[oid]
        except KeyError:
            return None
        except LIBRARY_ERRORS as error:
            raise engine.failed(error) from error

    def news(self, client: Client) -> tuple[list[bytes], int]:
        """Return what others changed since the client was told, and the transaction that it knows everything up to.

        That one is on the disk. From now on the client counts as told.
        """
        if self._hold.held:
            return self._tell(client)
        with self._lock:
            return self._tell(client)

    def _tell(self, client: Client) -> tuple[list[bytes], int]:
        news = self.history.since(client.told, client)
        client.told = self.engine.journal.tid
        client.interest.drop(news)
        return news, self.known(client.told)

    def known(self, tid: int) -> int:
        """Return the newest transaction up to `tid` that is known to be on the disk."""
        return min(tid, self.engine.flushed) if self.engine.durable else tid
