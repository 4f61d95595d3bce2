"""The clients of the servers that are compared, each in a process of its own."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from itertools import count, cycle
from typing import Any

from durus.client_storage import ClientStorage as DurusClientStorage
from durus.connection import Connection
from durus.storage import Storage

from benchmarks.records import FOLDER, Item, record
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.format import pack_uint64

OURS, DURUS = "our client", "Durus' client"

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


def paced(step: Callable[[], object], seconds: float, every: float) -> Measured:
    """Do something every so many seconds; what begins late because of the one before has waited since it was due."""
    clock, taken = time.perf_counter, []
    started = due = clock()
    while due < started + seconds:
        early = due - clock()
        if early > 0:
            time.sleep(early)
            begun = clock()
        else:
            begun = due
        step()
        taken.append(clock() - begun)
        due += every
    return {"rate": len(taken) / (clock() - started), "taken": [round(each * 1e6, 1) for each in taken]}


def ignore(oids: Sequence[bytes]) -> None:
    """Have nothing against what others changed."""


def connected(kind: str, port: int, authority: str = "", prefetch: int = 0) -> Storage:
    """Return a storage at a server of this machine."""
    if kind == DURUS:
        return DurusClientStorage("127.0.0.1", port)
    if authority:
        return ClientStorage(f"tls://127.0.0.1:{port}", ca=authority, prefetch=prefetch)
    return ClientStorage(f"127.0.0.1:{port}", prefetch=prefetch)


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

    def connect(self, kind: str, port: int, authority: str = "", prefetch: int = 0) -> None:
        """Connect to a server of this machine, with our client or with Durus'; over TLS if there is an authority."""
        self._storage = connected(kind, port, authority, prefetch)

    def disconnect(self) -> None:
        """Hang up."""
        self._storage.close()

    def connecting(self, kind: str, port: int, authority: str, seconds: float) -> Measured:
        """Connect, load an object, and hang up, again and again."""

        def step() -> None:
            storage = connected(kind, port, authority)
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

    def paced_loads(self, objects: int, seconds: float, every: float) -> Measured:
        """Load an object every so many seconds."""
        return paced(self._load(objects), seconds, every)

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

    def commits(self, objects: int, clients: int, seconds: float, most: int | None = None) -> Measured:
        """Commit new versions of objects, one by one."""
        storage, chosen = self._storage, cycle(self.own(objects, clients)).__next__
        begin, store, end = storage.begin, storage.store, storage.end

        def step() -> None:
            number = chosen()
            begin()
            store(pack_uint64(number), record(number, next(self._versions)))
            end(ignore)

        return timed(step, seconds, most)

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
