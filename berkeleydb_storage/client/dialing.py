"""Connecting: from an address to a link that was let in."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from berkeleydb_storage.auth.handshake import ClientHandshake
from berkeleydb_storage.client.channel import Channel, ConnectionLost
from berkeleydb_storage.client.durus_link import open_durus
from berkeleydb_storage.client.extended import ExtendedLink
from berkeleydb_storage.client.link import Link, Welcome
from berkeleydb_storage.client.refusals import failure
from berkeleydb_storage.errors import AccessDenied, AuthenticationError, WireError
from berkeleydb_storage.protocol import (
    DURUS_VERSION,
    ERROR,
    EXTENDED,
    EXTENDED_VERSION,
    HELLO,
    REFUSED_VERSION,
    VERSION,
    unpack_json,
)
from berkeleydb_storage.transport.addresses import DEFAULT_PORT, connect, parse_address
from berkeleydb_storage.transport.tls import client_context

_GREETING = b"%c%s%c" % (VERSION, EXTENDED, EXTENDED_VERSION)
_LONGEST = (1 << 32) - 1

DEFAULT_HOST = "127.0.0.1"
DEFAULT_ADDRESS = f"{DEFAULT_HOST}:{DEFAULT_PORT}"

Password = str | Callable[[], str] | None


class Dialer(Protocol):
    """Makes connections to one server. ``str()`` tells where that is."""

    def __call__(self, timeout: float) -> socket.socket:
        """Return a connected socket, within `timeout` seconds.

        Raises:
            OSError: it was not possible; it is tried again until the time is over.
            BerkeleyDBStorageError: it never will be.
        """


class Opener(Protocol):
    """Makes links to one server, or to what stands in its place. ``str()`` tells where that is."""

    def __call__(self, dialing: float, timeout: float, identity: bytes, tid: int) -> tuple[Link, Welcome]:
        """Return a link that the client was let in by, and what it was told there. See `open_link`."""


class RemoteOpener:
    """Comes in by a connection."""

    def __init__(self, dialer: Dialer, credentials: Credentials) -> None:
        """Take note of where to, and of who comes."""
        self._dialer = dialer
        self._credentials = credentials

    def __call__(self, dialing: float, timeout: float, identity: bytes, tid: int) -> tuple[Link, Welcome]:
        """See `Opener`."""
        return open_link(self._dialer, self._credentials, dialing=dialing, timeout=timeout, identity=identity, tid=tid)

    def __str__(self) -> str:
        """Return where to."""
        return str(self._dialer)


class AddressDialer:
    """Connects to an address, over TLS where it asks for that."""

    def __init__(
        self,
        address: str | tuple[str, int],
        *,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        verify: bool = True,
    ) -> None:
        """Take note of an address. For the arguments see `ClientStorage`.

        Raises:
            OptionError: the address is malformed.
            CertificateError: a file cannot be used.
        """
        self._address = parse_address(address)
        self._context = None
        if self._address.tls:
            self._context = client_context(ca=ca, certificate=certificate, key=key, verify=verify)

    def __call__(self, timeout: float) -> socket.socket:
        """See `Dialer`."""
        return connect(self._address, timeout=timeout, context=self._context)

    @property
    def secure(self) -> bool:
        """Whether it connects over TLS."""
        return self._context is not None

    def __str__(self) -> str:
        """Return the address."""
        return str(self._address)


@dataclass(frozen=True)
class Credentials:
    """Who the client is."""

    user: str
    password: Password = field(default=None, repr=False)

    def handshake(self) -> ClientHandshake:
        """Begin to prove it.

        Raises:
            AuthenticationError: there is no password.
        """
        password = self.password() if callable(self.password) else self.password
        if password is None:
            raise AuthenticationError("the server asks for a password, and none was given")
        return ClientHandshake(self.user, password)


def open_link(
    dialer: Dialer, credentials: Credentials, *, dialing: float, timeout: float, identity: bytes, tid: int
) -> tuple[Link, Welcome]:
    """Connect and come in, with Durus' protocol where the server knows no other.

    Args:
        dialer: to where.
        credentials: used if the server asks for a password.
        dialing: seconds for the connection.
        timeout: seconds for each answer.
        identity: of what the client's cache is of; empty if it has none.
        tid: up to which transaction the client was told.

    Raises:
        OSError: it was not possible now.
        BerkeleyDBStorageError: the server does not let this client in, or is none.
    """
    channel = Channel(dialer(dialing), timeout)
    try:
        channel.send_bytes(_GREETING)
        version = _version(channel, dialer)
        if version != DURUS_VERSION:
            return _come_in(channel, version, credentials, identity, tid)
        channel.close()
        channel = Channel(dialer(dialing), timeout)
        return open_durus(channel)
    except BaseException:
        channel.close()
        raise


def _version(channel: Channel, dialer: Dialer) -> bytes:
    try:
        return channel.read(len(DURUS_VERSION))
    except ConnectionLost as error:
        if isinstance(dialer, AddressDialer) and not dialer.secure:
            raise ConnectionLost(f"{error}; if the server wants TLS, its address begins with tls://") from error
        raise


def _come_in(
    channel: Channel, version: bytes, credentials: Credentials, identity: bytes, tid: int
) -> tuple[Link, Welcome]:
    if version == REFUSED_VERSION:
        raise AccessDenied("the server does not admit this client: it asks for a password, or for another address")
    if version[:3] != EXTENDED or version[3] != EXTENDED_VERSION:
        raise WireError(f"what answers is no server of Durus objects, or wants TLS (tls://…): {version!r}")
    asks_password, longest = _hello(channel)
    link = ExtendedLink(channel, longest)
    if asks_password:
        _prove(link, credentials)
    return link, link.resume(identity, tid)


def _hello(channel: Channel) -> tuple[bool, int]:
    """Return whether the server asks for a password, and the bytes of the longest frame that it takes."""
    kind, payload = channel.receive()
    if kind == ERROR:
        raise failure(payload)
    if kind != HELLO:
        raise WireError(f"the server began with a frame of type {bytes((kind,))!r}")
    values = unpack_json(payload)
    password, longest = values.get("password"), values.get("frame")
    if not isinstance(password, bool) or type(longest) is not int or not 0 < longest <= _LONGEST:
        raise WireError("the server's greeting lacks what it has to say about passwords and frames")
    return password, longest


def _prove(link: ExtendedLink, credentials: Credentials) -> None:
    handshake = credentials.handshake()
    message: bytes | None = handshake.start()
    while message is not None:
        message = handshake.receive(link.authenticate(message))
    if not handshake.done:
        raise WireError("the exchange about the password ended too early")


def target_of(address: str | tuple[str, int], host: str | None, port: int | None) -> str | tuple[str, int]:
    """Return the address that is meant, whichever way it was given."""
    if host is None and port is None:
        return address
    if host is None:
        host = DEFAULT_HOST if address == DEFAULT_ADDRESS else address  # type: ignore[assignment]
    return (host, DEFAULT_PORT if port is None else port)  # type: ignore[return-value]
