"""Who has garbage collected while others work, and waits for the end: a process of its own, at a server or at files."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

from durus.file_storage import FileStorage
from durus.file_storage2 import FileStorage2
from durus.utils import ShortRead

from benchmarks.serving.littered import made
from benchmarks.serving.stores import Client, Place, opened
from berkeleydb_storage.format import pack_uint64

LOOK = 0.01
"""Seconds between two looks whether it is done."""
LOOKS = 100
"""At a file that a server writes to; most find that no transaction is half written just then."""

Observed = tuple[float, float, bool]
"""When it began and ended, by the clock of all processes, and whether all is done."""


class Collector:
    """Drops what is to be garbage, has it collected, and counts what is left. Subclasses say how."""

    def __init__(self, store: str, place: Place, path: str, kind: str, holder: int) -> None:
        """Connect.

        Args:
            store: a name of `STORES`.
            place: where that is.
            path: the file or directory of whoever keeps the objects.
            kind: of records.
            holder: number of the object that leads to the garbage, and the last of those that are to stay.
        """
        self._path = Path(path)
        self._kept = holder + 1
        self._open = lambda: opened(store, place)
        self._client: Client = self._open()
        oid = pack_uint64(holder)
        self._client.load(oid)
        self._dropping = [(oid, made(kind, holder, 1))]

    def collect(self, limit: float) -> Observed:
        """Drop, and wait until all is collected, at most so many seconds."""
        self._prepare()
        began = time.perf_counter()
        self._client.commit(self._dropping)
        self._begin()
        while not (done := self._is_done()) and time.perf_counter() < began + limit:
            time.sleep(LOOK)
        self._done = done
        return began, time.perf_counter(), done

    def _prepare(self) -> None:
        """Note what is there before."""

    def _begin(self) -> None:
        """Ask for the collection, once all is dropped."""

    def _is_done(self) -> bool:
        """Tell whether it is done."""
        raise NotImplementedError

    def left(self) -> int:
        """Return how many objects are there that should not be."""
        return self._stored() - self._kept

    def _stored(self) -> int:
        """Return the number of objects that are there, garbage included."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Hang up."""
        self._client.close()

    def close(self) -> None:
        """End, with what is still being waited for."""
        os._exit(0)


class Ours(Collector):
    """Nobody asks: our server does it by itself."""

    def _is_done(self) -> bool:
        return self.left() == 0

    def _stored(self) -> int:
        return self._client.storage.get_size()


class OurPack(Ours):
    """A client asks our server for a full pack."""

    def _begin(self) -> None:
        self._client.storage.pack()

    def _is_done(self) -> bool:
        return not self._client.storage.information()["packing"]


class DurusPack(Collector):
    """A client asks Durus' server for a pack. It tells nobody when that is done; but it replaces its file."""

    def _prepare(self) -> None:
        self._inode, self._before = self._path.stat().st_ino, self._counted()

    def _begin(self) -> None:
        self._client.storage.pack()

    def _is_done(self) -> bool:
        return self._path.exists() and self._path.stat().st_ino != self._inode

    def _stored(self) -> int:
        """Return all of before where it is not done, for by now it may be: nobody asks for anything."""
        return self._counted() if self._done else self._before

    def _counted(self) -> int:
        with self._path.open("rb") as file:
            kind = FileStorage2 if FileStorage2.has_format(file) else FileStorage
        for _ in range(LOOKS):
            with suppress(ShortRead), closing(kind(str(self._path), readonly=True)) as storage:
                return sum(1 for _ in storage.gen_oid_record())
        raise RuntimeError(f"{self._path} was never seen with whole transactions")


class ZodbPack(Collector):
    """A client waits for ZEO's server to pack, or packs the file of RelStorage itself."""

    def _begin(self) -> None:
        self._failed: list[BaseException] = []
        self._packing = threading.Thread(target=self._pack, daemon=True)
        self._packing.start()

    def _pack(self) -> None:
        try:
            self._client.pack()
        except BaseException as error:
            self._failed.append(error)

    def _is_done(self) -> bool:
        if self._failed:
            raise self._failed[0]
        return not self._packing.is_alive()

    def _stored(self) -> int:
        client = self._open()
        try:
            return client.size()
        finally:
            client.close()
