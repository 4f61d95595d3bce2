"""The clients of the servers that are compared, each in a process of its own."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count, cycle, islice
from typing import Any

from durus.client_storage import ClientStorage as DurusClientStorage
from durus.connection import Connection
from durus.error import ReadConflictError
from durus.storage import Storage

from benchmarks.objects.durus_classes import Item
from benchmarks.objects.records import FOLDER, record
from benchmarks.objects.shapes import GOES_THROUGH
from berkeleydb_storage import SharedStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.format import pack_uint64, unpack_uint64

OURS, DURUS, SHARED = "our client", "Durus' client", "shared"

Measured = dict[str, Any]
"""Rate: things a second. Taken: microseconds of each."""


def timed(step: Callable[[], object], seconds: float, most: int | None = None) -> Measured:
    """Do something again and again for some seconds, or at most so many times."""
    clock, taken = time.perf_counter, []
    note = taken.append
    gc.collect()
    started = now = clock()
    until = started + seconds
    for _ in range(most) if most is not None else count():
        step()
        then, now = now, clock()
        note(now - then)
        if now > until:
            break
    return {"rate": len(taken) / (now - started), "taken": [round(each * 1e6, 1) for each in taken]}


class Restless:
    """Does something again and again without a rest, in a thread."""

    def __init__(self, step: Callable[[], object]) -> None:
        """Begin."""
        self._step = step
        self._ended = threading.Event()
        self._taken: list[tuple[float, float]] = []
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._try, daemon=True)
        self._thread.start()

    def _try(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._failed = error

    def _run(self) -> None:
        clock, step, note, ended = time.perf_counter, self._step, self._taken.append, self._ended.is_set
        now = clock()
        while not ended():
            step()
            then, now = now, clock()
            note((then, now - then))

    def end(self) -> list[tuple[float, float]]:
        """End; return when each began and what it took, in seconds.

        Raises:
            RuntimeError: it failed.
        """
        self._ended.set()
        self._thread.join()
        if self._failed is not None:
            raise RuntimeError(f"a client failed: {self._failed!r}") from self._failed
        return self._taken


class Paced(Restless):
    """Does something every so many seconds, in a thread. What begins late has waited since it was due."""

    def __init__(self, step: Callable[[], object], every: float) -> None:
        """Begin."""
        self._every = every
        super().__init__(step)

    def _run(self) -> None:
        clock = time.perf_counter
        due = clock()
        while not self._ended.is_set():
            now = clock()
            if now < due:
                time.sleep(due - now)
            begun = max(due, clock()) if now < due else due
            self._step()
            self._taken.append((begun, clock() - begun))
            due += self._every


def ignore(oids: Sequence[bytes]) -> None:
    """Have nothing against what others changed."""


def connected(kind: str, place: int | str, authority: str = "", prefetch: int = 0) -> Storage:
    """Return a storage at a server of this machine, over TLS if there is an authority; or one that is shared.

    Args:
        kind: `OURS`, `DURUS` or `SHARED`.
        place: the server's port, or the directory of a shared storage.
        authority: who signed the server's certificate: a file.
        prefetch: objects that a load asks for beside its own.
    """
    if kind == SHARED:
        return SharedStorage(place)
    if kind == DURUS:
        return DurusClientStorage("127.0.0.1", place)
    if authority:
        return ClientStorage(f"tls://127.0.0.1:{place}", ca=authority, prefetch=prefetch)
    return ClientStorage(f"127.0.0.1:{place}", prefetch=prefetch)


class Client:
    """One client of one server."""

    def __init__(self, number: int) -> None:
        """Do not connect yet.

        Args:
            number: that of this client among those that work together.
        """
        self._number = number
        self._name = f"of client {number}"
        self._versions = count(1)

    def connect(self, *where: Any) -> None:
        """Open a storage; the arguments are those of `connected`."""
        self._storage = connected(*where)

    def disconnect(self) -> None:
        """Hang up."""
        self._storage.close()

    def connecting(self, seconds: float, *where: Any) -> Measured:
        """Connect, load an object, and hang up, again and again."""

        def step() -> None:
            storage = connected(*where)
            storage.load(pack_uint64(0))
            storage.close()

        return timed(step, seconds)

    # --- loads

    def _load(self, objects: int) -> Callable[[], object]:
        """Return what loads the objects in an order of its own."""
        numbers = random.Random(self._number).sample(range(objects), objects)
        following, load = cycle(list(map(pack_uint64, numbers))).__next__, self._storage.load
        return lambda: load(following())

    def loads(self, objects: int, seconds: float) -> Measured:
        """Load objects one by one."""
        return timed(self._load(objects), seconds)

    def pace_loads(self, objects: int, every: float) -> None:
        """Begin to load an object every so many seconds; where others changed it, as a program does: after a sync."""
        load = self._load(objects)

        def step() -> None:
            try:
                load()
            except ReadConflictError:
                self._storage.sync()
                load()

        self._paced = Paced(step, every)

    def pace_commits(self, objects: int, clients: int, every: float) -> None:
        """Begin to commit a new version of an object every so many seconds."""
        self._paced = Paced(self._commit(objects, clients), every)

    def pause(self) -> list[tuple[float, float]]:
        """End that; return when each began, by the clock of all processes, and how many seconds it took."""
        return self._paced.end()

    def have_all(self, objects: int) -> None:
        """Load all objects, so that the client counts as having them; learn of all that others changed."""
        self._storage.sync()
        for first in range(0, objects, FOLDER):
            for _ in self._storage.bulk_load(list(map(pack_uint64, range(first, min(first + FOLDER, objects))))):
                pass

    # --- commits

    def own(self, objects: int, clients: int) -> list[int]:
        """Return the objects that only this client changes; no folders."""
        return [number for number in range(self._number, objects, clients) if number % FOLDER > 1]

    def _commit(self, objects: int, clients: int) -> Callable[[], object]:
        """Return what commits a new version of one of its objects after the other."""
        storage, chosen = self._storage, cycle(self.own(objects, clients)).__next__
        begin, store, end = storage.begin, storage.store, storage.end

        def step() -> None:
            number = chosen()
            begin()
            store(pack_uint64(number), record(number, next(self._versions)))
            end(ignore)

        return step

    def commits(self, objects: int, clients: int, seconds: float, most: int | None = None) -> Measured:
        """Commit new versions of objects, one by one."""
        return timed(self._commit(objects, clients), seconds, most)

    def prepare_large(self, objects: int, clients: int, number: int) -> None:
        """Prepare to commit so many new objects at once, in folders that one of its objects refers to."""
        storage = self._storage
        storage.begin()
        oids = [storage.new_oid() for _ in range(number)]
        folders = oids[::FOLDER]
        holder = self.own(objects, clients)[0]
        storage.store(pack_uint64(holder), record(holder, 0, b"".join(folders)))
        for at, oid in enumerate(oids):
            inside = b"" if at % FOLDER else b"".join(oids[at + 1 : at + FOLDER])
            storage.store(oid, record(unpack_uint64(oid), 0, inside))

    def commit_large(self) -> tuple[float, float]:
        """Commit them; return when that began and ended, by the clock of all processes."""
        started = time.perf_counter()
        self._storage.end(ignore)
        return started, time.perf_counter()

    # --- through a connection

    def traverse(self, shape: str, most: int) -> Measured:
        """Go through one of the shapes, or the first objects of it, with an empty cache."""
        started = time.perf_counter()
        connection = Connection(self._storage, cache_size=1 << 30)
        seen = sum(1 for _ in islice(GOES_THROUGH[shape](connection.get_root()[shape]), most))
        return {"rate": seen / (time.perf_counter() - started), "seen": seen}

    def make_item(self) -> None:
        """Store an object of its own, through a connection."""
        connection = Connection(self._storage)
        connection.get_root()[self._name] = Item(self._number)
        connection.commit()

    def connection_commits(self, seconds: float) -> Measured:
        """Change an object of its own and commit, through a connection."""
        connection = Connection(self._storage)
        item, version, commit = connection.get_root()[self._name], self._versions, connection.commit

        def step() -> None:
            item.price = next(version)
            commit()

        return timed(step, seconds)

    def close(self) -> None:
        """Nothing: the process ends."""
