"""`Server`: its options, its thread, and the order in which everything begins and ends.

`start`, `run` and `close` may be called from any thread; all else happens in the thread of the event loop.

Invariants:

1. It listens before anybody is told that it does, and accepts only when everything behind it is there.
2. However it ends, it does so in order: no more is accepted, what is under way is finished, the threads end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from berkeleydb_storage.auth.networks import Networks
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import Users
from berkeleydb_storage.errors import BerkeleyDBStorageError, OptionError
from berkeleydb_storage.events import Event
from berkeleydb_storage.server.connection import Connection
from berkeleydb_storage.server.ending import finish
from berkeleydb_storage.server.limits import Limits
from berkeleydb_storage.server.loops import new_loop
from berkeleydb_storage.server.service import Service
from berkeleydb_storage.server.signals import Signals
from berkeleydb_storage.server.sockets import Addresses, Sockets
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.transport import systemd
from berkeleydb_storage.transport.tls import ServerCertificates
from berkeleydb_storage.version import __version__

if TYPE_CHECKING:
    from berkeleydb_storage.server.prometheus import Exporter

logger = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks at time-outs."""
GRACE = 10.0
"""Seconds that requests under way have at the end."""


class Server:
    """Serves an open storage to clients: those of this package, and plain Durus clients."""

    def __init__(
        self,
        storage: BerkeleyDBStorage,
        address: Addresses | Sequence[Addresses] = "127.0.0.1:2972",
        *,
        certificates: ServerCertificates | None = None,
        users: Users | str | os.PathLike[str] | None = None,
        allow: Iterable[str] = (),
        rights: str = "write",
        limits: Limits | None = None,
        insecure: bool = False,
        sockets: Sequence[socket.socket] = (),
        owner: str | int | None = None,
        group: str | int | None = None,
        umask: int | None = None,
        backup_to: str | os.PathLike[str] | None = None,
        metrics: str | None = None,
        grace: float = GRACE,
    ) -> None:
        """Prepare a server.

        Args:
            storage: open; it stays open when the server has ended.
            address: where to listen, such as "0.0.0.0:2972" or "unix:/run/app.sock"; or several. Default: loopback.
            certificates: with these, whatever comes over TCP is TLS. Cost: see docs/OPERATIONS.md.
            users: who may come in: the file that ``durus-bdb passwd`` writes. Default None: whoever can connect.
            allow: networks that clients may come from, such as "10.0.0.0/8". Default: all.
            rights: "read" or "write": what clients may do where there are no `users`; whoever comes over a Unix
                socket as the user that the server runs as may do everything.
            limits: what clients may take up.
            insecure: allow passwords without TLS on addresses that are not this machine's alone.
            sockets: listening sockets, such as systemd hands over, in place of `address`.
            owner: of the file of a Unix socket; None: the process's.
            group: likewise.
            umask: the permissions that it does not get; None: the process's.
            backup_to: the directory for backups that clients with the right to administer ask for; None: they cannot.
            metrics: where to listen for Prometheus, such as "127.0.0.1:9100"; None: nowhere. It takes the extra
                ``metrics``. There is no password: whoever can connect can read the numbers.
            grace: seconds that requests under way have when the server ends; default 10.

        Raises:
            OptionError: the options contradict each other.
            PasswordFileError: the users cannot be read.
        """
        self.storage = storage
        self._certificates = certificates
        self._users = users if users is None or isinstance(users, Users) else Users(users)
        self._networks = Networks(allow)
        self._rights = Rights.parse(rights)
        if Rights.ADMIN in self._rights:
            raise OptionError('rights are "read" or "write" here: to administer a server takes a user, or its socket')
        self._limits = limits or Limits()
        self._sockets = Sockets(address, sockets, certificates, {"owner": owner, "group": group, "umask": umask})
        if self._users is not None and not insecure:
            self._sockets.require_privacy()
        self._backup_to = backup_to
        self._grace = grace
        self._exporter = None if metrics is None else self._new_exporter(metrics)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._stopping = asyncio.Event()
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._signals: Signals | None = None
        _servers.add(self)

    def _new_exporter(self, address: str) -> Exporter:
        try:
            from berkeleydb_storage.server.prometheus import Exporter
        except ImportError as error:
            remedy = "pip install 'durus-berkeleydbstorage[metrics]'"
            raise OptionError(f"metrics need prometheus-client: {remedy}") from error
        return Exporter(address, self.information)

    @property
    def metrics_address(self) -> str | None:
        """Where it answers Prometheus; None: nowhere."""
        return None if self._exporter is None else self._exporter.address

    @property
    def address(self) -> str:
        """Where it listens, the first one if there are several; with the port that port 0 became."""
        return str(self._sockets.addresses[0])

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        return [str(each) for each in self._sockets.addresses]

    @property
    def service(self) -> Service:
        """What its connections share; for the modules of this package."""
        if self._service is None:
            raise BerkeleyDBStorageError("the server was not started: call start() or run()")
        return self._service

    def start(self) -> None:
        """Serve in a thread of its own; returns when it listens.

        Raises:
            ListenError: it cannot.
        """
        self._begin()
        self._thread = threading.Thread(target=self._run, name="berkeleydb_storage server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            error, self._error = self._error, None
            raise error

    def run(self) -> None:
        """Serve in this thread until `close`, or a client or a signal, ends it.

        In the main thread SIGTERM and SIGINT end it, and SIGHUP has it read certificates and users again. After one of
        the former another ends the process at once, as if it were killed, also when this has returned: so whoever is
        impatient does not wait for the storage to be closed, either.

        Raises:
            ListenError: it cannot listen.
        """
        self._begin()
        self._run()
        if self._error is not None:
            raise self._error

    def _begin(self) -> None:
        if self._loop is not None:
            raise BerkeleyDBStorageError("a server is started once: make a new one")
        self._loop = new_loop()

    def close(self) -> None:
        """End it: accept no more, finish what is under way, hang up. Does nothing when it has ended."""
        loop = self._loop
        if loop is None:
            return
        if not self._ended.is_set():
            with suppress(RuntimeError):  # it is closed already
                loop.call_soon_threadsafe(self._stop, "closed")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def join(self) -> None:
        """Wait until it has ended."""
        self._ended.wait()

    def forked(self) -> None:
        """Let go of all sockets in a forked child, or else nobody would notice the end of its parent."""
        descriptors = self._sockets.filenos()
        if self._service is not None:
            descriptors += [connection.descriptor for connection in self._service.connections]
        if self._exporter is not None:
            descriptors.append(self._exporter.fileno())
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in descriptors:
            if descriptor >= 0:
                os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        self._thread = self._loop = None
        self._ended = threading.Event()
        self._ended.set()

    def reload(self) -> None:
        """Read certificates and users again, for the connections to come; what cannot be used is logged."""
        for each in (self._certificates, self._users):
            if each is not None:
                try:
                    each.reload()
                except BerkeleyDBStorageError as error:
                    logger.error(Event("not-reloaded", what=type(each).__name__.lower(), reason=error))
                else:
                    logger.info(Event("reloaded", what=type(each).__name__.lower()))

    def information(self) -> dict[str, Any]:
        """Return statistics of the server and of the storage, as values for JSON."""
        return self.service.information()

    def __enter__(self) -> Server:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # --- in the thread of the event loop

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve(loop))
        except BaseException as error:
            self._error = error
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            if self._signals is not None:
                self._signals.restore()
            self._ended.set()
            self._ready.set()

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(_note_fault)
        self._sockets.listen()
        service: Service | None = None
        try:
            service = self._service = Service(
                self.storage,
                loop,
                limits=self._limits,
                users=self._users,
                networks=self._networks,
                rights=self._rights,
                stop=self._stop,
                backup_to=self._backup_to,
            )
            self._accept(loop, service)
            if self._exporter is not None:
                self._exporter.start()
                logger.info(Event("metrics", address=self._exporter.address))
            self._watch_signals(loop)
            ticking = loop.create_task(self._tick(service))
            self._ready.set()
            logger.info(Event("listening", addresses=",".join(self.addresses), pid=os.getpid(), version=__version__))
            self._notify("READY=1")
            await self._stopping.wait()
            ticking.cancel()
        finally:
            self._sockets.close()
            if service is not None:
                await finish(service, self._grace)
            if self._exporter is not None:
                self._exporter.close()

    def _accept(self, loop: asyncio.AbstractEventLoop, service: Service) -> None:
        self._sockets.accept(
            loop, service.door, service.log, lambda visitor: Connection(service, visitor), self._limits.handshake
        )

    def _watch_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is None and threading.current_thread() is threading.main_thread():
            self._signals = Signals(loop, self._stop, self._reload)

    def _reload(self) -> None:
        self._notify("RELOADING=1")
        self.reload()
        self._notify("READY=1")

    def _notify(self, state: str) -> None:
        """Tell systemd, where this server is what the process is for, and not a thread of something else."""
        if self._thread is None:
            systemd.notify(state)

    async def _tick(self, service: Service) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                service.tick()
            except Exception:
                logger.exception(Event("fault", doing="looking after the connections"))

    def _stop(self, reason: str) -> None:
        if not self._stopping.is_set():
            logger.info(Event("ending", reason=reason))
            self._notify("STOPPING=1")
            self._stopping.set()


_servers: WeakSet[Server] = WeakSet()


def _forked() -> None:
    for server in list(_servers):
        server.forked()


os.register_at_fork(after_in_child=_forked)


def _note_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop could not tell anybody else."""
    error = context.get("exception")
    expected = error is None or isinstance(error, OSError)
    logger.error(Event("fault", doing=context.get("message"), reason=error), exc_info=None if expected else error)


__all__ = ["Server"]
