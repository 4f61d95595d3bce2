"""The server beside Durus' own: each is a process, as is each of their clients, and they talk over loopback TCP."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from durus.connection import Connection

from benchmarks.method.measure import Result, progress, ratios
from benchmarks.method.slowsync import slow_disk
from benchmarks.method.workers import together
from benchmarks.objects.records import build
from benchmarks.peers.durus import FILE, FILE2, NEVER_SYNCS, OURS, SYNCS, ours
from benchmarks.serving.clients import DURUS, SHARED
from benchmarks.serving.clients import OURS as OUR_CLIENT
from benchmarks.serving.crowd import Contestant, Crowd, Found, compete, rows, summed
from benchmarks.serving.servers import server

OLD_CLIENT = "ours, Durus' client"
SLOW = 0.002
"""Seconds that a sync takes on a slow disk."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    """In the storages."""
    window: float
    """Seconds of work, in each round."""
    rounds: int
    loading: tuple[int, ...]
    """Numbers of clients that load."""
    committing: tuple[int, ...]
    """Numbers of clients that commit."""
    shared: int
    """Commits of each client where all have all objects."""
    few_rounds: int
    """Of what takes long."""
    large: int
    """Objects in a large commit."""
    stall: float
    """Seconds for which half a commit is all there is."""
    traversed: int
    traversed_slowly: int
    """Objects visited over a slow network, with prefetch and without."""
    prefetch: int
    sharing: int = 4
    """Processes with a storage that they share."""


SIZES = {
    "quick": Sizes(20_000, 0.5, 3, (1, 8), (1, 8, 32), 100, 2, 20_000, 1.0, 10_000, 1000, 300),
    "full": Sizes(100_000, 2.0, 7, (1, 8), (1, 8, 32), 500, 3, 100_000, 12.0, 100_000, 10_000, 300),
    "tiny": Sizes(300, 0.02, 1, (1, 2), (1, 2), 3, 1, 300, 0.05, 50, 20, 10),
}


class Field:
    """Servers that run side by side, and their clients. While one has work the others wait."""

    def __init__(
        self, directory: Path, objects: int, environment: dict[str, str] | None = None, contents: str = "items"
    ) -> None:
        """Start none yet.

        Args:
            directory: for their storages.
            objects: in each of them.
            environment: variables of the servers.
            contents: kind of the objects.
        """
        self._directory = directory
        self._objects = objects
        self._environment = environment
        self._contents = contents
        self._stack = ExitStack()
        self.crowd = self._stack.enter_context(Crowd())

    def ours(self, about: str, certificate: Path | str = "", authority: Path | str = "") -> Contestant:
        """Add our server with our client; over TLS, if there is a certificate, and the authority that signed it."""
        name = f"{OURS}, TLS" if certificate else OURS
        return Contestant(name, about, self._start(OURS, name, certificate), OUR_CLIENT, str(authority))

    def durus(self, storage: str, about: str) -> Contestant:
        """Add Durus' server, over a storage of its own."""
        name = f"Durus, {storage}"
        return Contestant(name, about, self._start(storage, name), DURUS)

    def shared(self) -> Contestant:
        """Add a storage that processes share without a server to run."""
        path = self._directory / SHARED
        with ours(path) as storage:
            build(Connection(storage), self._objects)
        return Contestant("SharedStorage", "durable; one of the processes is the owner", str(path), SHARED)

    def _start(self, storage: str, name: str, *more: object) -> int:
        arguments = self._directory / name, self._objects, self._contents, *more
        worker = self._stack.enter_context(server(storage, *arguments, environment=self._environment))
        port: int = worker.call("port")
        return port

    def __enter__(self) -> Field:
        """Return it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End all."""
        self._stack.close()


def clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


# --- loads


def loads(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare loads, object by object."""
    progress("serve-loads: starting the servers")
    with Field(directory, sizes.objects) as field:
        mine = field.ours("the default: durable")
        theirs = field.durus(FILE, NEVER_SYNCS)
        old = Contestant(OLD_CLIENT, "plain Durus clients at our server", mine.place, DURUS)
        return [_loads(field, [theirs, mine, old], number, sizes) for number in sizes.loading]


def _loads(field: Field, contestants: list[Contestant], number: int, sizes: Sizes) -> Result:
    progress(f"serve-loads: {clients(number)}")
    found = compete(
        contestants,
        sizes.rounds,
        lambda each: field.crowd.work(each, number, "loads", sizes.objects, sizes.window),
    )
    result = Result(
        f"serve-loads, {clients(number)}",
        f"load(oid) of {sizes.objects:,} small objects in random order, each client in one of its own, for "
        f"{sizes.window:g} s. Loads a second of all clients together; how long a load takes its client.",
    )
    rows(result, contestants, found, "loads/s")
    theirs, mine, old = (found[each.name]["rate"] for each in contestants)
    goal = {1: 2.0, 8: 1.6}.get(number)
    result.figure(f"loads/s, ours / Durus, {clients(number)}", ratios(mine, theirs), least=goal)
    result.figure(f"loads/s, ours with Durus' client / Durus, {clients(number)}", ratios(old, theirs))
    p99 = ratios(found[contestants[1].name]["p99"], found[contestants[0].name]["p99"])
    result.figure(f"p99, ours / Durus, {clients(number)}", p99)
    return result


# --- commits


def commits(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare commits of one object, each on the disk when it is acknowledged."""
    return _all_commits("serve-commits", directory, sizes, {1: 1.0, 8: 2.0}, None)


def slow(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare commits where a sync takes 2 ms."""
    return _all_commits("serve-slow", directory, sizes, {32: 8.0}, slow_disk(directory, SLOW))


def _all_commits(
    name: str, directory: Path, sizes: Sizes, goals: dict[int, float], environment: dict[str, str] | None
) -> list[Result]:
    progress(f"{name}: starting the servers")
    with Field(directory, sizes.objects, environment) as field:
        pair = [field.durus(FILE2, SYNCS), field.ours(f"the default, durable=True: {SYNCS}")]
        how = f"; each sync takes {SLOW * 1e3:g} ms" if environment else ""
        found = []
        for number in sizes.committing:
            goal = goals.get(number)
            found.append(_commits(name, how, field, pair, number, sizes, goal))
            found.append(_shared(name, how, field, pair, number, sizes))
            found.append(_connections(name, how, field, pair, number, sizes))
        return found


def _commits(
    name: str, how: str, field: Field, pair: list[Contestant], number: int, sizes: Sizes, goal: float | None
) -> Result:
    progress(f"{name}: {clients(number)}")
    result = Result(
        f"{name}, {clients(number)}",
        f"begin, store of one small object, end, by each client of objects that only it has, for {sizes.window:g} s"
        f"{how}. Commits a second of all clients together; how long a commit takes its client.",
    )
    arguments = ["commits", sizes.objects, number, sizes.window]
    found = compete(pair, sizes.rounds, lambda each: field.crowd.work(each, number, *arguments))
    return _compared(result, pair, found, goal)


def _compared(result: Result, pair: list[Contestant], found: Found, goal: float | None = None) -> Result:
    rows(result, pair, found, "commits/s")
    theirs, mine = (found[each.name] for each in pair)
    about = result.name.partition(", ")[2]
    result.figure(f"commits/s, ours / Durus, {about}", ratios(mine["rate"], theirs["rate"]), least=goal)
    result.figure(f"p99, ours / Durus, {about}", ratios(mine["p99"], theirs["p99"]))
    return result


def _shared(name: str, how: str, field: Field, pair: list[Contestant], number: int, sizes: Sizes) -> Result:
    progress(f"{name}: {clients(number)} that have everything")
    objects = min(sizes.objects, 2 * sizes.shared * number)
    result = Result(
        f"{name}, {clients(number)} that have everything",
        f"The same, where all clients have loaded all {objects:,} objects before, so that the server has to ask them "
        f"about what others changed; {sizes.shared:,} commits each{how}.",
    )

    def work(each: Contestant) -> dict[str, float]:
        workers = field.crowd.get(number)
        together(workers, "connect", *each.where)
        together(workers, "have_all", objects)
        found = together(workers, "commits", objects, number, 60, sizes.shared)
        together(workers, "disconnect")
        return summed(found)

    return _compared(result, pair, compete(pair, sizes.rounds, work))


def _connections(name: str, how: str, field: Field, pair: list[Contestant], number: int, sizes: Sizes) -> Result:
    progress(f"{name}: {clients(number)}, through Connection")
    result = Result(
        f"{name}, {clients(number)} through Connection",
        f"The same, as a program does it: an attribute of an object is set, and commit() of a Connection called{how}.",
    )
    workers = field.crowd.get(number)
    for each in pair:
        for worker in workers:
            worker.call("connect", *each.where)
            worker.call("make_item")
            worker.call("disconnect")
    work = "connection_commits", sizes.window
    return _compared(result, pair, compete(pair, sizes.rounds, lambda each: field.crowd.work(each, number, *work)))
