"""What the connections of a server share: the storage, the desk, the limits, the users, and who is there.

Used by the server's thread alone, but for what says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from time import monotonic, perf_counter
from typing import Any

from berkeleydb_storage.auth.handshake import ServerHandshake
from berkeleydb_storage.auth.networks import Networks
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.throttle import Throttle
from berkeleydb_storage.auth.users import Users
from berkeleydb_storage.errors import AccessDenied, AuthenticationError, BerkeleyDBStorageError
from berkeleydb_storage.events import Event, Sparing
from berkeleydb_storage.format import ROOT_OID, JournalRow, pack_uint64, unpack_uint64
from berkeleydb_storage.protocol import (
    COMMITTED,
    EXTENDED,
    EXTENDED_VERSION,
    FORGOTTEN,
    HELLO,
    NOT_COMMITTED,
    OK,
    frame,
    pack_json,
)
from berkeleydb_storage.server.chores import Chores
from berkeleydb_storage.server.connection import ADMIN, READ, WRITE, Connection
from berkeleydb_storage.server.creation import PAUSE, Creation
from berkeleydb_storage.server.desk import Desk
from berkeleydb_storage.server.door import Door
from berkeleydb_storage.server.durus import Durus
from berkeleydb_storage.server.extended import Extended
from berkeleydb_storage.server.limits import Limits
from berkeleydb_storage.server.metrics import Metrics
from berkeleydb_storage.server.oids import Oids
from berkeleydb_storage.server.reading import NEWS, RETRY
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.version import __version__

logger = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds after which the client of a backup hears of it again: it would not wait for long if it heard nothing."""
LEVELS = {"disconnected": logging.INFO, "refused": logging.WARNING, "violated": logging.WARNING}
"""Of the events with which connections end."""
CAUGHT_UP = 64
"""Transactions that a client who comes back is told of at a time."""
SCANNED = 256
"""Oids that are looked up at once in a table without an order."""


class Service:
    """The middle of a server."""

    def __init__(
        self,
        storage: BerkeleyDBStorage,
        loop: asyncio.AbstractEventLoop,
        *,
        limits: Limits,
        users: Users | None,
        networks: Networks,
        rights: Rights,
        stop: Callable[[str], None],
        backup_to: str | os.PathLike[str] | None = None,
    ) -> None:
        """Begin.

        Args:
            storage: what is served.
            loop: the event loop.
            limits: what clients may take up.
            users: who may come in; None: whoever connects.
            networks: from where.
            rights: of clients where there are no users.
            stop: called when the server is to end, with the reason.
            backup_to: the directory for backups that clients ask for; None: they cannot.
        """
        self.storage = storage
        self.engine = storage.engine
        self.loop = loop
        self.limits = limits
        self.users = users
        self.metrics = Metrics()
        self.oids = Oids()
        self.door = Door(networks, limits, self.metrics)
        self.held = 0
        self.connections: set[Connection] = set()
        self.lingering: dict[Connection, float] = {}
        """Those that have ended, but for their last answers, and when they are cut off."""
        self.began = monotonic()
        self._rights = rights
        self._stop = stop
        self._throttle = Throttle()
        self._handshakes: dict[Connection, ServerHandshake] = {}
        self.creation = Creation(self.engine)
        self._threads = ThreadPoolExecutor(2, "berkeleydb_storage server")
        self.chores = Chores(storage, self.metrics, backup_to)
        self.log = Sparing(logger)
        """For what strangers can cause."""
        self.desk = Desk(
            self.engine,
            loop,
            self.metrics,
            committed=storage.committed,
            alone=lambda: len(self.connections) == 1,
            failed=self._failed,
        )
        self.reading = self.desk.reading

    # --- who is there

    def greet(self, connection: Connection) -> Durus:
        """Return what a new connection speaks, until it says otherwise."""
        return Durus(connection)

    def arrived(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Take in a client that the door has let in."""
        connection.descriptor = transport.get_extra_info("socket").fileno()
        self.connections.add(connection)
        connection.granted = self._rights.value if self.users is None else 0
        if self.users is None and connection.visitor.uid in (0, os.geteuid()):
            connection.granted = READ | WRITE | ADMIN
        logger.debug(Event("connected", peer=connection.peer))

    def left(self, connection: Connection, reason: str) -> None:
        """Forget a client."""
        self.connections.discard(connection)
        self._handshakes.pop(connection, None)
        self.oids.left(connection)
        self.desk.forget(connection)
        self.creation.left(connection)
        level = logging.DEBUG if reason == "hung up" else LEVELS[connection.verdict]
        self.log.log(level, Event(connection.verdict, peer=connection.peer, user=connection.user, reason=reason))

    def linger(self, connection: Connection, seconds: float) -> None:
        """Give a client that has ended this time to take its last answers."""
        self.lingering[connection] = perf_counter() + seconds

    def gone(self, connection: Connection) -> None:
        """Count a client no more: its socket is closed."""
        self.lingering.pop(connection, None)
        self.door.leave(connection.visitor)

    def welcome(self, connection: Connection) -> None:
        """Begin to serve a client that may come in."""
        connection.welcome = True
        connection.rights = connection.granted
        connection.told = self.engine.journal.tid

    def speak_extended(self, connection: Connection, wanted: int) -> None:
        """Go over to the extended protocol."""
        connection.can_be_asked = True
        connection.speak(Extended(connection))
        hello = {
            "software": "durus-berkeleydbstorage",
            "version": __version__,
            "password": self.users is not None,
            "frame": self.limits.frame,
        }
        version = bytes([max(1, min(wanted, EXTENDED_VERSION))])
        connection.write(EXTENDED + version + frame(HELLO, pack_json(hello)))

    def authenticate(self, connection: Connection, message: bytes) -> None:
        """Take the next message of a client's proof who it is."""
        if self.users is None or connection.user:
            raise AccessDenied("the server asks for no password: go on without")
        handshake = self._handshakes.get(connection)
        first = handshake is None
        if handshake is None:
            handshake = self._handshakes[connection] = ServerHandshake(self.users)
        host = connection.host or connection.peer
        try:
            reply = handshake.receive(message)
        except AuthenticationError as error:
            self._refuse(connection, handshake, host, error)
            return
        if handshake.done:
            connection.user = handshake.user or ""
            connection.granted = handshake.rights.value
            self._throttle.succeeded(host, handshake.claimed, self.loop.time())
            logger.info(Event("logged-in", peer=connection.peer, user=connection.user))
        delay = self._throttle.delay(host, handshake.claimed, self.loop.time()) if first else 0.0
        answer = frame(OK, reply)
        if delay:
            connection.busy = True
            self.loop.call_later(delay, connection.answer, answer)
        else:
            connection.write(answer)

    def _refuse(
        self, connection: Connection, handshake: ServerHandshake, host: str, error: AuthenticationError
    ) -> None:
        self.metrics.failed_passwords += 1
        self._throttle.failed(host, handshake.claimed, self.loop.time())
        self.log.log(logging.WARNING, Event("password-refused", peer=connection.peer, reason=error.reason))
        connection.reject(error)

    def lacks(self, right: str) -> AccessDenied:
        """Return the error of a client that has not got a right."""
        return AccessDenied(f"the right to {right} is missing: a user of the server must have it")

    # --- objects

    def read(self, connection: Connection, oid: bytes) -> bytes | int | None:
        """Read an object for a client, as `Reading.read` does."""
        found = self.reading.read(connection, oid)
        if type(found) is bytes:
            return found
        if found == NEWS and not connection.synced and not connection.interest:
            self.reading.news(connection)  # it has nothing yet that this could contradict: it begins here
            found = self.reading.read(connection, oid)
        if found is None and oid == ROOT_OID and connection.rights & WRITE and not self.creation.may(connection):
            return RETRY
        return found

    def wait(self, connection: Connection, why: object) -> None:
        """Have a connection proceed when what `read` returned in place of an object may have changed."""
        if why == RETRY:
            connection.busy = True
            self.loop.call_later(PAUSE, connection.proceed)
        else:
            self.when_durable(connection)

    def when_durable(self, connection: Connection) -> None:
        """Have a connection proceed when everything that is committed now is on the disk."""
        connection.busy = True
        self.desk.groups.when_durable(connection)

    def when_free(self, connection: Connection) -> None:
        """Have a connection proceed when the engine's mutex is not held any more by this thread."""
        connection.busy = True
        self.desk.hold.when_free(connection)

    def rows(self, start: bytes, limit: int, size: int) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Return some objects from an oid on, in the order of the oids; at most so many, and about so many bytes.

        Not while `held`. It may find none without being at the end.

        Returns:
            The objects, and where to go on; None: that was all.
        """
        engine = self.engine
        if self.storage.ordered:
            rows = engine.reader.rows(start, limit, size)
            return engine.reader.living(rows), rows[-1][0] + b"\0" if rows else None
        found: list[tuple[bytes, bytes]] = []
        number = unpack_uint64(start)
        end = min(number + SCANNED, engine.next_oid)
        while number < end and len(found) < limit and size > 0:
            record = engine.get(oid := pack_uint64(number))
            number += 1
            if record is not None:
                found.append((oid, record))
                size -= len(record)
        return engine.reader.living(found), pack_uint64(number) if number < engine.next_oid else None

    def new_oids(self, connection: Connection, count: int) -> list[bytes] | None:
        """Hand out oids; None: not now, the connection proceeds later."""
        if not connection.rights & WRITE:
            raise self.lacks("write")
        if self.desk.hold.held:
            self.when_free(connection)
            return None
        oids = self.creation.new_oids(connection, count)
        self.oids.handed_out(connection, oids)
        return oids

    # --- those that come back

    def changed_since(self, identity: bytes, tid: int) -> list[bytes] | None:
        """Return what was changed since a client was there; None: anything may have been. Not while `held`."""
        engine = self.engine
        if identity != engine.identity:
            return None
        with engine.lock:
            rows = engine.journal.since(tid)
        if rows is None or any(row.oids is None for row in rows):
            return None
        return list(dict.fromkeys(oid for row in rows for oid in row.oids or ()))

    def catch_up(self, connection: Connection, since: int) -> list[JournalRow] | None:
        """Return some of the transactions after `since`; None: anything may have been changed. Not while `held`.

        Where no more than these are left, or None is returned, the client is welcome, and told of everything up to now.
        """
        journal = self.engine.journal
        with self.engine.lock:
            rows = journal.after(since, CAUGHT_UP)
            if rows is not None and any(row.oids is None for row in rows):
                rows = None
            if rows is None or since + len(rows) == journal.tid:
                self.welcome(connection)
        return rows

    def fate(self, mark: bytes, since: int) -> tuple[int, int]:
        """Tell what became of a commit: the state, and its transaction if it was stored. Not while `held`."""
        fate = self.engine.fate(mark, since)
        if fate.tid is not None:
            return COMMITTED, fate.tid
        return (NOT_COMMITTED if fate.known else FORGOTTEN), 0

    # --- the storage as a whole

    def in_thread(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do something long in another thread; `done` gets what it returns or raises, in this one."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                result = error
            self.call_soon(done, result)

        self._threads.submit(run)

    def information(self) -> dict[str, Any]:
        """Return what `INFORMATION` tells, as values for JSON. Any thread; waits for the engine's mutex."""
        storage = asdict(self.storage.statistics())
        for name in ("collected", "packing"):
            if storage[name] is not None:
                storage[name] = storage[name]._asdict()
        return {
            "version": __version__,
            "seconds": monotonic() - self.began,
            "connections": len(self.connections),
            **self.chores.information(),
            "server": self.metrics.values(),
            "storage": storage,
        }

    def pack(self) -> None:
        """Begin a full pack, if there is none under way."""
        self.chores.pack()

    def finish_packing(self) -> None:
        """Wait until the pack under way is done, if there is one. Any thread but that of the server."""
        self.chores.finish_packing()

    def backup(self, progress: Callable[[Any], None], done: Callable[[Any], None]) -> None:
        """Begin a backup, as `Chores.backup` does; both are called by this thread, `progress` every few seconds."""
        last: dict[str, Any] = {"activity": "copying", "bytes": 0}
        beat: asyncio.TimerHandle | None = None

        def told(values: dict[str, Any]) -> None:
            last.update(values)
            progress(last)

        def again() -> None:
            nonlocal beat
            progress(last)
            beat = self.loop.call_later(BEAT, again)

        def finished(values: Any) -> None:
            if beat is not None:
                beat.cancel()
            done(values)

        self.chores.backup(lambda values: self.call_soon(told, values), lambda values: self.call_soon(finished, values))
        again()

    def call_soon(self, function: Callable[[Any], None], argument: Any) -> None:
        """Call a function in the server's thread, if there still is one. Any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(function, argument)

    def shut_down(self, connection: Connection) -> None:
        """End the server, if the client has the right to that."""
        if not connection.rights & ADMIN:
            error = self.lacks("shut the server down")
            connection.reject(error)
        else:
            self._stop(f"asked by {connection.peer} {connection.user}".rstrip())

    def _failed(self, error: Exception) -> None:
        """Take note that something could not be brought to the disk."""
        self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        """End the server if the storage has stopped: whatever is asked of it, it could only refuse."""
        try:
            self.engine.require_open()
        except BerkeleyDBStorageError as reason:
            self._stop(f"the storage has stopped: {reason}")

    # --- time

    def tick(self) -> None:
        """Look after the connections. Called about once a second."""
        self._end_if_stopped()
        now = perf_counter()
        for connection in list(self.connections):
            connection.check_time(now)
        for connection, until in list(self.lingering.items()):
            if now > until:
                connection.cut_off()
        if not self.desk.hold.held:
            with self.engine.lock:
                told = min((each.told for each in self.connections if each.welcome), default=self.engine.journal.tid)
                self.desk.history.trim(told)

    def close(self) -> None:
        """End the threads."""
        self.desk.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
