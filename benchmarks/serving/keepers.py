"""The servers of others that are no server of Durus, and files that processes share without one: a process each."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.objects.records import batches
from benchmarks.peers.contract import Record
from benchmarks.serving.littered import DURUS, ZODB, litter_batches
from benchmarks.serving.servers import Serving, free_port
from benchmarks.serving.stores import HOST, PASSWORD, Place, opened, quiet_zeo

PATIENCE = 20
"""Seconds for a server to answer."""
BACKUP = 900
"""Seconds from one backup of CyberDB's to the next: those of its documents' example."""

Contents = Callable[[int], Iterator[Sequence[Record]]]

CONTENTS: dict[str, Contents] = {
    "records": batches,
    "litter": lambda live: litter_batches(DURUS, live),
    "ZODB litter": lambda live: litter_batches(ZODB, live),
}
"""What is stored, by name; "" for what is there."""


def filled(store: str, place: Place, objects: int, contents: str) -> None:
    """Store the first objects, unless they are there."""
    if contents:
        client = opened(store, place)
        client.fill(CONTENTS[contents](objects))
        client.close()


class Files:
    """Nobody serves: what the clients share is files."""

    def __init__(self, path: str, objects: int, contents: str, store: str) -> None:
        """Make them.

        Args:
            path: file or directory.
            objects: how many to make.
            contents: of what kind: a name of `CONTENTS`.
            store: what it is: a name of `STORES`.
        """
        if store == "shared":
            Path(path).mkdir(exist_ok=True)
        self._path = path
        filled(store, path, objects, contents)

    def place(self) -> str:
        """Return what clients open."""
        return self._path

    def close(self) -> None:
        """Leave them to the clients."""


class ZeoServer(Serving):
    """ZEO's server over a FileStorage, made by ``ZEO.server``, which does what ``runzeo`` does.

    https://zeo.readthedocs.io/en/latest/server.html: a file, an address, and the defaults.
    """

    def __init__(self, path: str, objects: int, contents: str) -> None:
        """Serve a file on a port of loopback, by a thread, while this one waits.

        Args:
            path: the file.
            objects: how many to make.
            contents: of what kind: a name of `CONTENTS`.
        """
        import ZEO

        quiet_zeo()
        filled("ZODB file", path, objects, contents)
        os.chdir(Path(path).parent)  # it leaves its configuration where it is
        (_, self._port), self._stop = ZEO.server(storage_conf=_FILE.format(path=path), port=0)

    def port(self) -> int:
        """Return where it listens."""
        return int(self._port)

    def close(self) -> None:
        """End it."""
        self._stop()


_FILE = """
<filestorage>
  path {path}
  pack-keep-old false
</filestorage>
"""


class CyberServer(Serving):
    """CyberDB's server, as its documents begin it: a password, and a backup every 15 minutes."""

    def __init__(self, path: str, objects: int, contents: str) -> None:
        """Serve a dict on a port of loopback, by a thread, while this one waits.

        Args:
            path: for its backups.
            objects: how many to make.
            contents: of what kind: a name of `CONTENTS`.
        """
        import cyberdb

        self._port = free_port()
        server = cyberdb.Server()
        server.set_backup(f"{path}.cdb", cycle=BACKUP)
        server.start(host=HOST, port=self._port, password=PASSWORD)
        answering(self._port)
        filled("cyberdb", self._port, objects, contents)

    def port(self) -> int:
        """Return where it listens."""
        return self._port

    def close(self) -> None:
        """End it, with its process: it has no other way."""
        os._exit(0)


def answering(port: int) -> None:
    """Wait until somebody listens on a port of loopback."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
