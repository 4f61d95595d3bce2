"""Addresses: as text, connected to, listened on.

1. ``parse_address(str(address)) == address``, for every address that was parsed.
2. No error repeats a text that may hold a password.

The functions may be called from any thread, and block; under gevent's monkey patching they block a greenlet only.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass

from berkeleydb_storage.errors import ListenError, OptionError
from berkeleydb_storage.transport import unix
from berkeleydb_storage.transport.tls import client_context
from berkeleydb_storage.transport.unix import ABSTRACT, peer_uid, unlink

__all__ = [
    "DEFAULT_PORT",
    "Address",
    "bound_address",
    "connect",
    "is_loopback",
    "listen",
    "parse_address",
    "peer_uid",
    "unlink",
]

DEFAULT_PORT = 2972
"""Durus'."""
LARGEST_PORT = 65535
FORMS = 'such as "host:2972", "[::1]:2972", "tls://host:2972", "unix:/run/app.sock" or "unix:@name"'

_HOST_AND_PORT = re.compile(r"(?:\[(?P<ip6>[^\[\]]*)\]|(?P<host>[^\[\]:]*))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_HOST = re.compile(r"[^\s/@\[\]?#\x00]{1,253}")


@dataclass(frozen=True)
class Address:
    """Where a server is: a host and a port, or the name of a Unix socket. ``str()`` gives the text."""

    host: str = ""
    """A name or a number, an IPv6 one without brackets; empty where it is a Unix socket."""
    port: int = 0
    """0, to listen: any that is free."""
    path: str = ""
    """Of a Unix socket: a path, or "@name" in the abstract namespace of Linux."""
    tls: bool = False

    @property
    def is_unix(self) -> bool:
        """Whether it is that of a Unix socket."""
        return bool(self.path)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls://' if self.tls else ''}{host}:{self.port}"


def parse_address(text: str | tuple[str, int] | Address) -> Address:
    """Return the address that a text means.

    Args:
        text: "host:port", "host", "[::1]:port", "tcp://host:port", "tls://host:port", "unix:/path", "unix:@name",
            "@name", or a tuple of host and port as Durus has it. Without a port: 2972.

    Raises:
        OptionError: it is none of these.
    """
    if isinstance(text, Address):
        return text
    if isinstance(text, tuple):
        return _of_tuple(text)
    if not isinstance(text, str):
        raise OptionError(f"an address is a text, {FORMS}, not a {type(text).__name__}")
    if text.startswith(ABSTRACT):
        return _of_name(text)
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "unix":
        return _of_name(rest)
    if rest.startswith("//"):
        if scheme not in ("tcp", "tls"):
            raise OptionError(f"an address begins with tcp://, tls:// or unix:, not {scheme!r}: {FORMS}")
        return _of_host(rest[2:].removesuffix("/"), tls=scheme == "tls")
    return _of_host(text, tls=False)


def _of_tuple(pair: tuple[str, int]) -> Address:
    if len(pair) != 2 or not isinstance(pair[0], str) or type(pair[1]) is not int:
        raise OptionError(f"an address as a tuple is a host and a number, such as ('localhost', {DEFAULT_PORT})")
    return _checked(pair[0], pair[1], tls=False)


def _of_name(name: str) -> Address:
    if name.startswith("//"):
        if not name.startswith("///"):
            raise OptionError(f"a path after unix:// begins with a third slash; or write unix:path, {FORMS}")
        name = name[2:]
    if name in ("", ABSTRACT) or "\0" in name or name.endswith("/"):
        raise OptionError(f"unix: is followed by the path of a socket, or by @ and a name, {FORMS}")
    return Address(path=name)


def _of_host(text: str, *, tls: bool) -> Address:
    if "@" in text:
        raise OptionError(f"an address holds no user and no password, {FORMS}: they are arguments of their own")
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        hint = "; an IPv6 address stands in brackets" if text.count(":") > 1 else ""
        raise OptionError(f"{text!r} is no address, {FORMS}{hint}")
    if found["ip6"] is not None and not _is_ip6(found["ip6"]):
        raise OptionError(f"{text!r} is no address, {FORMS}: what is in brackets is no IPv6 address")
    port = DEFAULT_PORT if found["port"] is None else int(found["port"])
    return _checked(found["host"] if found["ip6"] is None else found["ip6"], port, tls=tls)


def _checked(host: str, port: int, *, tls: bool) -> Address:
    if _HOST.fullmatch(host) is None or (":" in host and not _is_ip6(host)):
        raise OptionError(f"an address needs a host, 0.0.0.0 or [::] to listen everywhere, {FORMS}")
    if not 0 <= port <= LARGEST_PORT:
        raise OptionError(f"a port is a number up to {LARGEST_PORT}, not {port}: {FORMS}")
    return Address(host, port, tls=tls)


def _is_ip6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def is_loopback(address: Address) -> bool:
    """Return whether only this machine can reach the address. No name but "localhost" is looked up, or trusted."""
    if address.is_unix or address.host.lower() == "localhost":
        return True
    try:
        found = ipaddress.ip_address(address.host)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def connect(address: Address, *, timeout: float, context: ssl.SSLContext | None = None) -> socket.socket:
    """Return a connected, blocking socket, over TLS with the handshake done where the address or a context says so.

    Args:
        address: the server's.
        timeout: seconds for all of it but the look-up of a name, which the system limits. The socket has it too.
        context: for TLS; None: where the address asks for TLS, one that verifies by the system's authorities.

    Raises:
        OSError: it was not possible (``TimeoutError``, ``ConnectionRefusedError``, ``ssl.SSLError``, …); the message
            names the address.
        OptionError: the name of a Unix socket is too long.
    """
    deadline = time.monotonic() + timeout
    try:
        sock = unix.connect(address.path, deadline) if address.is_unix else _connect_tcp(address, deadline)
        if address.tls or context is not None:
            sock = _secure(sock, context or client_context(), address.host or "localhost", deadline)
    except OSError as error:
        raise _named(error, address) from error
    sock.settimeout(timeout)
    return sock


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    return left


def _connect_tcp(address: Address, deadline: float) -> socket.socket:
    """Try all that the name means; each has its share of the time."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, "the name means no address")
    for number, (family, kind, protocol, _, target) in enumerate(found):
        try:
            share = _left(deadline) / (len(found) - number)
            return _connect_to(socket.socket(family, kind, protocol), target, share)
        except OSError as error:
            failure = error
    raise failure


def _connect_to(sock: socket.socket, target: object, timeout: float) -> socket.socket:
    try:
        sock.settimeout(timeout)
        sock.connect(target)  # type: ignore[arg-type]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _secure(sock: socket.socket, context: ssl.SSLContext, host: str, deadline: float) -> socket.socket:
    try:
        sock.settimeout(_left(deadline))
        name = host.partition("%")[0]
        sock = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        sock.settimeout(_left(deadline))
        sock.do_handshake()
    except BaseException:
        sock.close()
        raise
    return sock


def _named(error: OSError, address: Address) -> OSError:
    """Return an error of the same class that names the address."""
    if isinstance(error, ssl.SSLError):
        error.strerror = f"{address}: {error.strerror or error}"
        return error
    text = f"{address}: {error.strerror or error}"
    if isinstance(error, socket.gaierror):
        return socket.gaierror(error.errno, text)
    return OSError(errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno, text)


def listen(
    address: Address,
    *,
    backlog: int = 1024,
    owner: str | int | None = None,
    group: str | int | None = None,
    umask: int | None = None,
) -> socket.socket:
    """Return a listening, non-blocking socket; `unlink` removes the file of a Unix one at the end.

    Args:
        address: where; a name that means several addresses stands for its first, an IPv4 one if there is one; [::]
            does not include IPv4.
        backlog: how many connections may wait to be accepted; the system may have a smaller limit.
        owner: of the file of a Unix socket: a name or a number; None: the process's.
        group: likewise.
        umask: the permissions that this file does not get, such as 0o117; None: the process's.

    Raises:
        ListenError: the address is in use, or cannot be listened on for another reason.
        OptionError: the name of a Unix socket is too long, or the owner or group does not exist.
    """
    try:
        if address.is_unix:
            return unix.listen(address.path, backlog, owner=owner, group=group, umask=umask)
        return _listen_tcp(address, backlog)
    except ListenError:
        raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ListenError(f"{address} is in use: stop what listens there, or choose another address") from error
        raise ListenError(f"{address}: {error.strerror or error}") from error


def _listen_tcp(address: Address, backlog: int) -> socket.socket:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    family, kind, protocol, _, target = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
        sock.setblocking(False)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def bound_address(address: Address, sock: socket.socket) -> Address:
    """Return where a socket listens that was made for an address: with the port that port 0 became."""
    if address.is_unix:
        return address
    return Address(address.host, sock.getsockname()[1], tls=address.tls)
