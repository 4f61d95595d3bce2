"""A slow network: a proxy that holds back what it forwards, each way for half of a round trip, at any bandwidth."""

from __future__ import annotations

import ctypes
import socket
import sys
import threading
import time
from queue import SimpleQueue

CHUNK = 1 << 18
"""Bytes that are read at once."""
PR_SET_TIMERSLACK = 29


class Proxy:
    """Forwards connections to one port of this machine. Runs in a process of its own, with threads."""

    def __init__(self, port: int, round_trip: float) -> None:
        """Listen.

        Args:
            port: where to forward to.
            round_trip: seconds.
        """
        self._target = port
        self._delay = round_trip / 2
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def port(self) -> int:
        """Return where it listens."""
        port: int = self._socket.getsockname()[1]
        return port

    def _accept(self) -> None:
        while True:
            near = self._socket.accept()[0]
            far = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                threading.Thread(target=self._read, args=(one, way), daemon=True).start()
                threading.Thread(target=self._write, args=(other, way), daemon=True).start()

    def _read(self, sock: socket.socket, way: SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = sock.recv(CHUNK)
            except OSError:
                data = b""
            way.put((time.perf_counter() + self._delay, data))

    def _write(self, sock: socket.socket, way: SimpleQueue[tuple[float, bytes]]) -> None:
        """Forward when it is due; nothing is the end."""
        _sleep_exactly()
        data = b"-"
        while data:
            due, data = way.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                sock.sendall(data) if data else sock.shutdown(socket.SHUT_WR)
            except OSError:
                return

    def close(self) -> None:
        """Nothing: the process ends."""


def _sleep_exactly() -> None:
    """Have this thread woken when it is due, and not 50 microseconds later (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1))
