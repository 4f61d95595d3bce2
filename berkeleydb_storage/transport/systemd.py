"""What systemd hands to a service and wants to hear from it: inherited sockets, notifications."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time

from berkeleydb_storage.errors import ListenError

__all__ = ["inherited_sockets", "notify"]

FIRST_DESCRIPTOR = 3
MOST = 1024
"""Sockets; more is a mistake."""
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
NOTIFY_TIMEOUT = 2.0
"""Seconds that a full queue of notifications may hold us up."""

_logger = logging.getLogger(__name__)


def inherited_sockets() -> list[socket.socket]:
    """Return the listening sockets that were handed to this process, none where there are none.

    They are closed on exec, and do not block. The variables that tell of them are removed, so that no child takes them
    for its own and a second call returns none: call it once, early, before there are threads that start processes.

    Raises:
        ListenError: what was handed over is no listening stream socket, or LISTEN_FDS no number.
    """
    pid, count, _ = (os.environ.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdecimal()) or int(count) > MOST:
        raise ListenError(f"the variable LISTEN_FDS={count!r}: a number of sockets is expected, at most {MOST}")
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    return [_socket(descriptor) for descriptor in descriptors]


def _socket(descriptor: int) -> socket.socket:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(f"descriptor {descriptor} of LISTEN_FDS: {error.strerror}") from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ListenError(f"descriptor {descriptor} of LISTEN_FDS does not listen: use ListenStream=, and Accept=no")
    sock.setblocking(False)
    return sock


def notify(state: str) -> bool:
    """Tell systemd how the service is; return whether it was told. Nothing happens where nobody wants to know.

    Args:
        state: "READY=1", "RELOADING=1", "STOPPING=1", or lines of such. To "RELOADING=1" the time is added, which
            ``Type=notify-reload`` wants to have.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return False
    if "RELOADING=1" in state.split("\n"):
        state += f"\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
    target = b"\0" + os.fsencode(name[1:]) if name.startswith("@") else os.fsencode(name)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_TIMEOUT)
            sock.sendto(state.encode(), target)
    except OSError as error:
        _logger.warning("systemd could not be told %r at %s: %s", state, name, error)
        return False
    return True
