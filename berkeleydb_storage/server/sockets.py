"""Where a server listens: its addresses or the sockets that it was given, opened, accepting, closed.

Used by the server's thread alone, but for what tells the addresses, and `filenos`.

Invariants:

1. Passwords are asked for over TLS, or where nobody but this machine can listen; unless it was said that it is meant.
2. Either all sockets are open, or none is; each is closed once, and the file of a Unix socket removed before that.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from berkeleydb_storage.errors import OptionError
from berkeleydb_storage.events import Sparing
from berkeleydb_storage.server.door import Door, Listener, Visitor
from berkeleydb_storage.transport import unix
from berkeleydb_storage.transport.addresses import Address, bound_address, is_loopback, listen, parse_address
from berkeleydb_storage.transport.tls import ServerCertificates

Addresses = str | tuple[str, int] | Address


class Sockets:
    """The listening sockets of a server."""

    def __init__(
        self,
        address: Addresses | Sequence[Addresses],
        given: Sequence[socket.socket],
        certificates: ServerCertificates | None,
        file: dict[str, Any],
    ) -> None:
        """Open none yet.

        Args:
            address: where to listen; or several.
            given: listening sockets in place of these.
            certificates: for TLS; None: none.
            file: owner, group and umask of the files of Unix sockets, as `listen` takes them.

        Raises:
            OptionError: the options contradict each other.
        """
        self.addresses: list[Address] = []
        """Where it listens, once it does."""
        self._certificates = certificates
        self._given = list(given)
        self._file = file
        one = isinstance(address, (str, Address)) or (
            isinstance(address, tuple) and len(address) == 2 and isinstance(address[1], int)
        )
        wanted: Any = [address] if one else address
        self._wanted = [] if given else [parse_address(each) for each in wanted]
        self._open: list[socket.socket] = []
        self._listeners: list[Listener] = []
        if any(each.tls for each in self._wanted) and certificates is None:
            raise OptionError(
                "an address with tls:// takes certificates=ServerCertificates(…), or --tls-cert and --tls-key"
            )

    def require_privacy(self) -> None:
        """Refuse passwords where others could read them.

        Raises:
            OptionError: it names where.
        """
        if self._certificates is not None:
            return
        open_ones = [str(each) for each in self._wanted if not is_loopback(each)]
        open_ones += [str(each.getsockname()) for each in self._given if each.family != socket.AF_UNIX]
        if open_ones:
            raise OptionError(
                f"passwords are asked for at {', '.join(open_ones)} without TLS: give a certificate, listen on "
                "loopback or a Unix socket, or say that it is meant (insecure)"
            )

    def listen(self) -> None:
        """Open them.

        Raises:
            ListenError: one of them cannot be.
        """
        sockets = list(self._given)
        try:
            for address in self._wanted:
                sockets.append(listen(address, **self._file))
        except BaseException:
            _close(sockets)
            raise
        if self._given:
            self.addresses = [_address_of(sock, self._certificates is not None) for sock in sockets]
        else:
            self.addresses = [bound_address(*pair) for pair in zip(self._wanted, sockets, strict=True)]
        self._open = sockets

    def accept(
        self,
        loop: asyncio.AbstractEventLoop,
        door: Door,
        log: Sparing,
        make: Callable[[Visitor], asyncio.Protocol],
        handshake: float,
    ) -> None:
        """Begin to accept; the arguments are those of `Listener`."""
        for sock in self._open:
            secure = self._certificates is not None and sock.family != socket.AF_UNIX
            context = self._certificates.context if secure and self._certificates is not None else None
            listener = Listener(loop, sock, door, log, make=make, context=context, handshake=handshake)
            self._listeners.append(listener)

    def close(self) -> None:
        """Accept no more, and close them."""
        for listener in self._listeners:
            listener.close()
        _close(self._open)

    def filenos(self) -> list[int]:
        """Return their descriptors; -1: it is closed. Any thread."""
        return [sock.fileno() for sock in self._open]


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        unix.unlink(sock)
        sock.close()


def _address_of(sock: socket.socket, tls: bool) -> Address:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return Address(path=name if isinstance(name, str) else f"@{os.fsdecode(name[1:])}")
    return Address(name[0], name[1], tls=tls)
