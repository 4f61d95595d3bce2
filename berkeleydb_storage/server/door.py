"""Who comes in: connections are accepted, and counted or sent away, before a byte of them is read.

Used by the server's thread alone.

Invariants:

1. Whoever is not admitted, or is one too many, costs no handshake of TLS, and no more than being accepted and closed.
2. Each visitor that `Door.enter` let in leaves once, by `Door.leave`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from berkeleydb_storage.auth.networks import Networks
from berkeleydb_storage.events import Event, Sparing
from berkeleydb_storage.server.limits import Limits
from berkeleydb_storage.server.metrics import Metrics
from berkeleydb_storage.transport.unix import peer_uid

AT_ONCE = 64
"""Connections that are accepted before others have a turn."""
PAUSE = 0.1
"""Seconds without accepting where the process has no descriptor left for another connection."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Visitor(NamedTuple):
    """Who is at the other end of a connection."""

    host: str
    """Address, empty for a Unix socket."""
    peer: str
    """What the log calls it."""
    uid: int | None
    """User of a process at a Unix socket, where the system tells it."""


def visitor_at(sock: socket.socket, address: Any) -> Visitor:
    """Return who is at the other end of an accepted socket."""
    if sock.family == socket.AF_UNIX:
        uid = peer_uid(sock)
        return Visitor("", f"unix:uid={uid}", uid)
    host, port = address[:2]
    return Visitor(host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", None)


def _keep_alive(sock: socket.socket) -> None:
    """Have the system notice that a client's machine is gone, in two minutes where it can be told when."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Door:
    """Counts who is there."""

    def __init__(self, networks: Networks, limits: Limits, metrics: Metrics) -> None:
        """Begin with nobody."""
        self._networks = networks
        self._limits = limits
        self._metrics = metrics
        self.present = 0
        """Connections there are, those included that are shaking hands or take their last answers."""
        self._hosts: Counter[str] = Counter()

    def enter(self, visitor: Visitor) -> str:
        """Let a visitor in, and return nothing; or return the reason for which he may not."""
        self._metrics.accepted += 1
        reason = self._unwelcome(visitor)
        if reason:
            self._metrics.turned_away += 1
        else:
            self.present += 1
            self._hosts[visitor.host] += 1
        return reason

    def _unwelcome(self, visitor: Visitor) -> str:
        limits = self._limits
        if visitor.host and not self._networks.admits(visitor.host):
            return "its address is not admitted"
        if self.present >= limits.connections:
            return f"there are {limits.connections} connections"
        if self._hosts[visitor.host] >= limits.connections_per_address:
            return f"there are {limits.connections_per_address} connections from its address"
        return ""

    def leave(self, visitor: Visitor) -> None:
        """Count a visitor no more."""
        self.present -= 1
        self._hosts[visitor.host] -= 1
        if not self._hosts[visitor.host]:
            del self._hosts[visitor.host]


class Listener:
    """Accepts the connections of one listening socket, which is not its own."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        door: Door,
        log: Sparing,
        *,
        make: Callable[[Visitor], asyncio.Protocol],
        context: ssl.SSLContext | None,
        handshake: float,
    ) -> None:
        """Begin to accept.

        Args:
            loop: the event loop, whose thread this is.
            sock: listening and non-blocking.
            door: asked for each connection.
            log: for what strangers cause.
            make: makes the protocol of a visitor who came in; it has him leave by the door.
            context: for TLS; None: none.
            handshake: seconds that a handshake of TLS may take.
        """
        self._loop = loop
        self._sock = sock
        self._door = door
        self._log = log
        self._make = make
        self._context = context
        self._handshake = handshake
        self._coming: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._open()

    def _open(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and send away those whose handshake goes on; who has none arrives right after this."""
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._sock.fileno())
        if self._context is not None:
            for task in self._coming:
                task.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(error)
                return
            try:
                self._greet(sock, address)
            except OSError:  # it is gone already
                sock.close()

    def _rest(self, error: OSError) -> None:
        """Accept nothing for a while: until somebody has left, if it is descriptors that are lacking."""
        if error.errno in EXHAUSTED:
            self._log.log(logging.ERROR, Event("not-accepting", reason=error.strerror, remedy="raise ulimit -n"))
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(PAUSE, self._open)

    def _greet(self, sock: socket.socket, address: Any) -> None:
        visitor = visitor_at(sock, address)
        reason = self._door.enter(visitor)
        if reason:
            sock.close()
            self._log.log(logging.WARNING, Event("refused", peer=visitor.peer, reason=reason))
            return
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _keep_alive(sock)
        except BaseException:
            self._door.leave(visitor)
            raise
        task = self._loop.create_task(self._let_in(sock, visitor))
        self._coming.add(task)
        task.add_done_callback(partial(self._came, sock, visitor))

    def _came(self, sock: socket.socket, visitor: Visitor, task: asyncio.Task[None]) -> None:
        self._coming.discard(task)
        if task.cancelled():  # before it began
            sock.close()
            self._door.leave(visitor)

    async def _let_in(self, sock: socket.socket, visitor: Visitor) -> None:
        made: list[asyncio.Protocol] = []

        def make() -> asyncio.Protocol:
            made.append(self._make(visitor))
            return made[0]

        options: dict[str, Any] = {}
        if self._context is not None:
            options = {"ssl": self._context, "ssl_handshake_timeout": self._handshake}
        try:
            await self._loop.connect_accepted_socket(make, sock, **options)
        except (OSError, asyncio.CancelledError) as error:
            sock.close()
            came_in = bool(made) and getattr(made[0], "arrived", False)
            if not came_in:
                self._door.leave(visitor)
            self._log.log(logging.INFO, Event("handshake-failed", peer=visitor.peer, reason=error))


__all__ = ["Door", "Listener", "Visitor"]
