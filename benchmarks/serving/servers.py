"""The servers that are compared, each in a process of its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durus.connection import Connection
from durus.storage import Storage
from durus.storage_server import StorageServer

from benchmarks.method.facts import quiet_durus
from benchmarks.method.usage import memory
from benchmarks.method.workers import Worker
from benchmarks.objects.records import build, fill
from benchmarks.objects.shapes import build_shapes
from benchmarks.peers.durus import OPENERS, OURS, DurusDatabase, ours
from benchmarks.serving.littered import litter
from berkeleydb_storage import GarbageThread
from berkeleydb_storage.server import Server
from berkeleydb_storage.transport.tls import ServerCertificates


def _through(builder: Callable[[Connection, int], None]) -> Callable[[Storage, int], None]:
    return lambda storage, count: builder(Connection(storage), count)


def _nothing(storage: Storage, count: int) -> None:
    """Leave it as it is."""


BUILDERS: dict[str, Callable[[Storage, int], None]] = {
    "items": _through(build),
    "shapes": lambda storage, count: build_shapes(DurusDatabase(storage), count),
    "records": fill,
    "litter": litter,
    "": _nothing,
}
"""What a storage is filled with; with nothing where it is there."""


class Serving:
    """What all servers tell."""

    def port(self) -> int:
        """Return where it listens."""
        raise NotImplementedError

    def place(self) -> int:
        """Return the same."""
        return self.port()

    def peak(self) -> float:
        """Return the highest memory of this process so far, in MB."""
        return memory()[1]


class OurServer(Serving):
    """Ours, durable, with the default policies."""

    def __init__(
        self, path: str, objects: int, contents: str = "items", certificate: str = "", at_once: bool = False
    ) -> None:
        """Serve a storage on a port of loopback, and over TLS if there is a certificate with its key.

        Args:
            path: the directory.
            objects: how many to make.
            contents: of what kind: a name of `BUILDERS`.
            certificate: a file with both.
            at_once: whether garbage is collected without a grace.
        """
        options = {"garbage_collection": GarbageThread(grace=0)} if at_once else {}
        self._storage = ours(Path(path), **options)
        BUILDERS[contents](self._storage, objects)
        pair = ServerCertificates(certificate, certificate) if certificate else None
        scheme = "tls://" if certificate else ""
        self._server = Server(self._storage, f"{scheme}127.0.0.1:0", certificates=pair)
        self._server.start()

    def port(self) -> int:
        """Return where it listens."""
        return int(self._server.address.rpartition(":")[2])

    def statistics(self) -> dict[str, Any]:
        """Return what it counts."""
        found: dict[str, Any] = self._server.information()["server"]
        return found

    def close(self) -> None:
        """End it."""
        self._server.close()
        self._storage.close()


class DurusServer(Serving):
    """Durus' own."""

    def __init__(self, name: str, path: str, objects: int, contents: str = "items") -> None:
        """Serve a storage of Durus on a port of loopback.

        Args:
            name: of the storage's class.
            path: its file.
            objects: how many to make.
            contents: of what kind: a name of `BUILDERS`.
        """
        quiet_durus()
        storage = OPENERS[name](Path(path))
        BUILDERS[contents](storage, objects)
        self._port = free_port()
        server = StorageServer(storage, host="127.0.0.1", port=self._port)
        listening = server.address.get_listening_socket()
        server.address.get_listening_socket = lambda: listening
        threading.Thread(target=server.serve, daemon=True).start()

    def port(self) -> int:
        """Return where it listens."""
        return self._port

    def close(self) -> None:
        """End it, with its process: it has no other way."""
        os._exit(0)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server(name: str, path: Path, *arguments: object, environment: dict[str, str] | None = None) -> Worker:
    """Return the process of a server, by the name of the storage that it serves."""
    if name == OURS:
        return Worker(OurServer, path, *arguments, environment=environment)
    return Worker(DurusServer, name, path, *arguments, environment=environment)
