"""The contestants that talk to a server over loopback TCP: at ours, and at one that does nothing but answer."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.objects.records import fill, record
from benchmarks.profiling.contestants import Batch, Commits, Contestant, Loads, Syncs, committer
from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.protocol import HEADER, LENGTH, MARK_LENGTH
from berkeleydb_storage.server import Server

LOAD = HEADER.size + 8, HEADER.size + len(record(1))
"""Bytes of a request for an object, and of the answer."""
COMMIT = HEADER.size + MARK_LENGTH + LENGTH.size + 8 + len(record(1)), HEADER.size + 8
"""Bytes of a commit of one object, and of the answer."""


class OurServer:
    """Ours, durable, with the default policies."""

    def __init__(self, path: str, objects: int) -> None:
        Path(path).mkdir()
        self._storage = BerkeleyDBStorage(path)
        fill(self._storage, objects)
        self._server = Server(self._storage, "127.0.0.1:0")
        self._server.start()

    def port(self) -> int:
        """Return where it listens."""
        return int(self._server.address.rpartition(":")[2])

    def close(self) -> None:
        """End it."""
        self._server.close()
        self._storage.close()


class ServedLoads(Loads):
    """A client of ours that loads."""

    def __init__(self, port: int, number: int, of: int, objects: int) -> None:
        self._storage = ClientStorage(f"127.0.0.1:{port}")
        super().__init__(self._storage.load, objects, number)

    def close(self) -> None:
        """Hang up."""
        self._storage.close()


class ServedCommits(Commits):
    """A client of ours that commits new versions of objects that only it changes."""

    def __init__(self, port: int, number: int, of: int, objects: int) -> None:
        self._storage = ClientStorage(f"127.0.0.1:{port}")
        super().__init__(committer(self._storage), objects, number, of)

    def close(self) -> None:
        """Hang up."""
        self._storage.close()


class Answering:
    """A server that reads so many bytes, and sends so many, in one thread."""

    def __init__(self, path: str, request: int, answer: int, clients: int, syncs: bool) -> None:
        """Listen.

        Args:
            path: of a file.
            request: bytes that are read.
            answer: bytes that are sent.
            clients: one is waited for with a blocking socket, several with the system's selector.
            syncs: whether a little is brought to the disk before an answer; with several clients, before the answers to
                all that have asked by then.
        """
        self._request, self._answer = request, bytes(answer)
        self._sync: Callable[[], None] = Syncs(path).one if syncs else lambda: None
        self._listening = socket.create_server(("127.0.0.1", 0))
        serve = self._one if clients == 1 else self._several
        threading.Thread(target=serve, name="answering", daemon=True).start()

    def port(self) -> int:
        """Return where it listens."""
        port: int = self._listening.getsockname()[1]
        return port

    def _accept(self) -> socket.socket:
        accepted = self._listening.accept()[0]
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return accepted

    def _one(self) -> None:
        with self._accept() as client:
            while client.recv(self._request, socket.MSG_WAITALL):
                self._sync()
                client.sendall(self._answer)

    def _several(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            while True:
                asked = [key.fileobj for key, _ in selector.select() if self._asks(key.fileobj, selector)]
                if asked:
                    self._sync()
                for client in asked:
                    client.sendall(self._answer)  # type: ignore[union-attr]

    def _asks(self, sock: Any, selector: selectors.BaseSelector) -> bool:
        """Tell whether there is a request on a socket; let in or forget a client."""
        if sock is self._listening:
            selector.register(self._accept(), selectors.EVENT_READ)
            return False
        if not sock.recv(self._request, socket.MSG_WAITALL):
            selector.unregister(sock)
            sock.close()
            return False
        return True

    def close(self) -> None:
        """Nothing: the process ends."""


class RoundTrips(Contestant):
    """A client of it."""

    def __init__(self, port: int, number: int, of: int, request: int, answer: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request, self._answer = bytes(request), answer

    def batch(self, number: int) -> Batch:
        """Prepare nothing."""
        send, receive, request, answer = self._socket.sendall, self._socket.recv, self._request, self._answer

        def run() -> None:
            for _ in range(number):
                send(request)
                receive(answer, socket.MSG_WAITALL)

        return run

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
