"""A client that sends half a commit and waits: what others must not notice."""

from __future__ import annotations

import socket
import time

from berkeleydb_storage.protocol import COMMIT, EXTENDED, EXTENDED_VERSION, HEADER, LENGTH, MARK_LENGTH, RESUME, frame

HALF = bytes(5000)


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the server hung up")
        data += more
    return data


def _read_frame(sock: socket.socket) -> None:
    _read(sock, LENGTH.unpack(_read(sock, LENGTH.size))[0])


def _begin(sock: socket.socket) -> None:
    """Send half a commit in Durus' protocol."""
    sock.sendall(b"C")
    _read(sock, 8 * LENGTH.unpack(_read(sock, LENGTH.size))[0])
    sock.sendall(LENGTH.pack(2 * len(HALF)) + HALF)


def _begin_extended(sock: socket.socket) -> None:
    """Send half a commit in the extended protocol."""
    sock.sendall(b"V" + EXTENDED + bytes([EXTENDED_VERSION]))
    _read(sock, 4)
    _read_frame(sock)
    sock.sendall(frame(RESUME))
    _read_frame(sock)
    sock.sendall(HEADER.pack(1 + MARK_LENGTH + 2 * len(HALF), COMMIT) + bytes(MARK_LENGTH) + HALF)


def stall(port: int, seconds: float, *, extended: bool) -> None:
    """Send half a commit, wait, and hang up."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        (_begin_extended if extended else _begin)(sock)
        time.sleep(seconds)
