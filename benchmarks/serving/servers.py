"""The servers that are compared, each in a process of its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durus.connection import Connection
from durus.storage_server import StorageServer

from benchmarks.method.facts import quiet_durus
from benchmarks.method.workers import Worker
from benchmarks.objects.records import build
from benchmarks.objects.shapes import build_shapes
from benchmarks.peers.durus import OPENERS, OURS, ours
from berkeleydb_storage.server import Server
from berkeleydb_storage.transport.tls import ServerCertificates

BUILDERS: dict[str, Callable[[Connection, int], None]] = {"items": build, "shapes": build_shapes}
"""What a storage is filled with."""


class OurServer:
    """Ours, durable, with the default policies."""

    def __init__(self, path: str, objects: int, contents: str = "items", certificate: str = "") -> None:
        """Serve a storage on a port of loopback, and over TLS if there is a certificate with its key.

        Args:
            path: the directory.
            objects: how many to make.
            contents: of what kind: a name of `BUILDERS`.
            certificate: a file with both.
        """
        self._storage = ours(Path(path))
        BUILDERS[contents](Connection(self._storage), objects)
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


class DurusServer:
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
        BUILDERS[contents](Connection(storage), objects)
        self._port = _free_port()
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server(name: str, path: Path, *arguments: object, environment: dict[str, str] | None = None) -> Worker:
    """Return the process of a server, by the name of the storage that it serves."""
    if name == OURS:
        return Worker(OurServer, path, *arguments, environment=environment)
    return Worker(DurusServer, name, path, *arguments, environment=environment)
