"""The paths that are profiled, each with what limits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.method.workers import Worker, together
from benchmarks.profiling import network
from benchmarks.profiling.contestants import (
    BareBatches,
    BareDeletes,
    BareGets,
    BareItems,
    BarePuts,
    MadeAndPickled,
    OurBuild,
    OurCollection,
    OurCommits,
    OurLoads,
    Syncs,
)
from benchmarks.profiling.network import COMMIT, LOAD, Answering, OurServer, RoundTrips, ServedCommits, ServedLoads

TREE = 500
"""Objects in a tree that is collected."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    """In a storage, loaded or changed."""
    rounds: int
    """In which all take turns."""
    batch: float
    """Share of a path's usual batch that is done in a round."""
    deletes: int
    """Records a second that are there to be collected while that is sampled."""


QUICK = Sizes(20_000, 15, 1.0, 40_000)
TINY = Sizes(3000, 2, 0.01, 5000)


class Running:
    """A contestant's processes: those that do the operations, and a server, where there is one."""

    def __init__(self, workers: Sequence[Worker], server: Worker | None = None) -> None:
        self._workers = workers
        self.server = server

    @property
    def client(self) -> Worker:
        """The first of those that do the operations."""
        return self._workers[0]

    def round(self, number: int) -> float:
        """Do some operations; return the seconds for each, all that are done at the same time together."""
        each = max(1, number // len(self._workers))
        return mean(together(self._workers, "round", each)) / len(self._workers)

    def start(self, seconds: float, number: int) -> None:
        """Begin to work for some seconds."""
        for worker in self._workers:
            worker.start("work", seconds, max(1, number // len(self._workers)))

    def wait(self) -> list[dict[str, float]]:
        """Wait until that is over; return what each of those that do the operations says."""
        return [worker.wait() for worker in self._workers]


@dataclass(frozen=True)
class Setting:
    """What contestants are started with."""

    stack: ExitStack
    """Ends them."""
    directory: Path
    sizes: Sizes
    clients: int
    """Of a server, at the same time."""
    seconds: int
    """For which one is sampled."""


Start = Callable[[Setting, Path], Running]
"""Starts a contestant, which may keep things at a path of its own."""


def _alone(kind: type, *arguments: object, objects: bool = True) -> Start:
    """Return what starts a contestant without a server."""

    def start(setting: Setting, path: Path) -> Running:
        given = [setting.sizes.objects, *arguments] if objects else arguments
        return Running([setting.stack.enter_context(Worker(kind, path, *given))])

    return start


def _served(kind: type) -> Start:
    """Return what starts our server, and clients of it."""

    def start(setting: Setting, path: Path) -> Running:
        server = setting.stack.enter_context(Worker(OurServer, path, setting.sizes.objects))
        return _with_clients(setting, server, kind, setting.sizes.objects)

    return start


def _answered(request: int, answer: int, *, syncs: bool) -> Start:
    """Return what starts a server that does nothing, and clients of it."""

    def start(setting: Setting, path: Path) -> Running:
        arguments = path, request, answer, setting.clients, syncs
        server = setting.stack.enter_context(Worker(Answering, *arguments))
        return _with_clients(setting, server, RoundTrips, request, answer)

    return start


def _with_clients(setting: Setting, server: Worker, kind: type, *arguments: object) -> Running:
    port = server.call("port")
    clients = [Worker(kind, port, number, setting.clients, *arguments) for number in range(setting.clients)]
    return Running([setting.stack.enter_context(client) for client in clients], server)


def _garbage(kind: type, *arguments: object) -> Start:
    """Return what starts a contestant that needs something to delete."""

    def start(setting: Setting, path: Path) -> Running:
        sizes = setting.sizes
        rounds = (sizes.rounds + 2) * round(PATHS["collect"].batch * sizes.batch + TREE)
        objects = rounds + sizes.deletes * setting.seconds
        return Running([setting.stack.enter_context(Worker(kind, path, objects, *arguments))])

    return start


@dataclass(frozen=True)
class Limit:
    """The same operation, or a part of it, without us."""

    name: str
    about: str
    start: Start


@dataclass(frozen=True)
class Profiled:
    """A path."""

    name: str
    what: str
    unit: str
    """What an operation is called."""
    batch: int
    """Operations a round."""
    start: Start
    limits: tuple[Limit, ...]
    served: bool = False
    """Whether there is a server, with one client or several."""


SYNC_ALONE = Limit("the sync alone", "1 KiB appended to a file, fdatasync", _alone(Syncs, objects=False))
LOOPBACK = "loopback round trip"
_TRIPS = "two processes, blocking sockets, the same number of bytes; with several clients, one thread and a selector"

_ALL = (
    Profiled(
        "load",
        "load(oid) in random order, everything in memory, default policies",
        "load",
        10_000,
        _alone(OurLoads),
        (
            Limit("bare get", "table.get(oid) of a bare Berkeley DB, same options, no locking", _alone(BareGets)),
            Limit("bare item", "table[oid]: the binding's fastest way to read", _alone(BareItems)),
        ),
    ),
    Profiled(
        "commit",
        "begin, store of one small object, end; durable",
        "commit",
        300,
        _alone(OurCommits),
        (Limit("bare put + sync", "put in a transaction of a bare Berkeley DB, synced", _alone(BarePuts)), SYNC_ALONE),
    ),
    Profiled(
        "commit-unsynced",
        "begin, store of one small object, end; durable=False",
        "commit",
        2000,
        _alone(OurCommits, False),
        (Limit("bare put", "put in a transaction of a bare Berkeley DB, not synced", _alone(BarePuts, False)),),
    ),
    Profiled(
        "build",
        "small objects made and stored through Connection, a commit every 1,000; durable",
        "object",
        5000,
        _alone(OurBuild, objects=False),
        (
            Limit(
                "making and pickling alone",
                "the same through Connection, into a storage that keeps nothing",
                _alone(MadeAndPickled, objects=False),
            ),
            Limit(
                "bare puts + sync",
                "records that are there already, 1,000 in a transaction of a bare Berkeley DB, synced",
                _alone(BareBatches, objects=False),
            ),
        ),
    ),
    Profiled(
        "collect",
        f"trees of {TREE} objects with pointers to their parents that were dropped, collected in one thread, no grace",
        "record",
        5000,
        _garbage(OurCollection, TREE),
        (
            Limit(
                "bare get + delete",
                "each record read and deleted, 50 in a transaction of a bare Berkeley DB, not synced",
                _garbage(BareDeletes),
            ),
        ),
    ),
    Profiled(
        "serve-load",
        "load(oid) in random order by clients of our server, over loopback TCP",
        "load",
        4000,
        _served(ServedLoads),
        (
            Limit(LOOPBACK, _TRIPS, _answered(*LOAD, syncs=False)),
            Limit("load without a server", "load(oid) of the same storage in one process", _alone(OurLoads)),
        ),
        served=True,
    ),
    Profiled(
        "serve-commit",
        "begin, store of one small object, end, by clients of our server, over loopback TCP; durable",
        "commit",
        300,
        _served(ServedCommits),
        (
            Limit(LOOPBACK, _TRIPS, _answered(*COMMIT, syncs=False)),
            Limit("loopback round trip + sync", f"{_TRIPS}; 1 KiB synced before", _answered(*COMMIT, syncs=True)),
            Limit("commit without a server", "the same in one process", _alone(OurCommits)),
        ),
        served=True,
    ),
)
PATHS = {each.name: each for each in _ALL}
__all__ = ["PATHS", "QUICK", "TINY", "Limit", "Profiled", "Running", "Setting", "Sizes", "network"]
