"""Several clients at once: ours beside all else that shares objects between processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from benchmarks.method.caches import settle
from benchmarks.method.contest import SYNCS_A_COMMIT, Found, against, rows
from benchmarks.method.measure import Result, progress
from benchmarks.method.syncs import CannotCount, counted
from benchmarks.method.workers import Worker, together
from benchmarks.peers.registry import present
from benchmarks.serving.clients import Measured
from benchmarks.serving.crowd import summed
from benchmarks.serving.keepers import Files
from benchmarks.serving.users import TRANSACTION, User
from benchmarks.serving.ways import CYBERDB, DURUS_FILE, DURUS_FILE2, OURS, RELSTORAGE, SHARED, SQLITE3, ZEO, Way

WAYS = [OURS, SHARED, DURUS_FILE, DURUS_FILE2, ZEO, RELSTORAGE, CYBERDB, SQLITE3]
CACHED = [ZEO, RELSTORAGE]
"""Whose clients have a cache of records."""
SERVER_PEAK = "server's peak MB"

NOTICE = 0.02
"""Seconds from telling users what to do to when they begin, all at once."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    users: int
    own: int
    """Objects that each user changes, one after the other."""
    hot: int
    """Objects that each loads again and again, where that is from a cache."""
    window: float
    """Seconds of each work in each round."""
    rounds: int


SIZES = {
    "tiny": Sizes(2000, 2, 3, 5, 0.01, 1),
    "quick": Sizes(20_000, 8, 40, 100, 0.12, 2),
    "full": Sizes(100_000, 8, 200, 500, 1.0, 4),
}


Done = tuple[str, str, dict[str, float]]
"""A work, who did it, and what was measured."""


def beside(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare loads, commits and both, of one client and of several."""
    with Ring(directory, sizes) as ring:
        for number in range(sizes.rounds):
            ring.round(last=0 < number == sizes.rounds - 1)
        ring.verify()
        results = [_result(work, ring.found[work], sizes) for work in sorted(ring.found, key=_order)]
        results[0].notes += ring.notes
        return results


class Ring:
    """All ways that are here, side by side, and the processes of users, which go from one to the next."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        """Start none yet."""
        self._directory = directory
        self._sizes = sizes
        self._stack = ExitStack()
        self._keepers: dict[str, Worker] = {}
        self._users: list[Worker] = []
        self._committed: dict[str, dict[int, int]] = {}
        self.found: dict[str, Found] = {}
        """Work -> what was found."""
        self.notes: set[str] = set()
        """What else is to be said."""

    def __enter__(self) -> Ring:
        """Start all."""
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        progress("serve-peers: storing the objects")
        directory, objects = self._directory, self._sizes.objects
        started = {way.name: way.start(directory / way.name, objects, "records") for way in present(WAYS)}
        self._keepers = entered(self._stack, started)
        self._users = users(self._stack, self._sizes.users)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all."""
        self._stack.close()

    def round(self, *, last: bool) -> None:
        """Let users work with each way; in the last round of several, count syncs as well."""
        for way in present(WAYS):
            progress(f"serve-peers: {way.name}")
            settle(self._directory)
            for work, name, numbers in self._visited(way, last):
                columns = self.found.setdefault(work, {}).setdefault(name, {})
                for column, number in numbers.items():
                    columns.setdefault(column, []).append(number)

    def _visited(self, way: Way, last: bool) -> list[Done]:
        """Let users work with one: the first of them alone, and then all; return what they did."""
        place, sizes = self._keepers[way.name].call("place"), self._sizes
        connected: list[Worker] = []
        found: list[Done] = []
        for number in (1, sizes.users):
            new = self._users[len(connected) : number]
            together(new, "connect", way.store, place, 0, sizes.objects)
            together(new, "prepare", sizes.users, sizes.own, sizes.hot)
            connected += new
            found += self._works(way, connected)
        found += self._syncs(way) if last else []
        for user in connected:
            self._committed.setdefault(way.name, {}).update(user.call("changed"))
        together(connected, "disconnect")
        return found

    def _works(self, way: Way, connected: Sequence[Worker]) -> list[Done]:
        who, window = clients(len(connected)), self._sizes.window
        loads = columns("load", together(connected, "loads", soon(connected), window, False))
        found = [
            (f"loads, {who}", way.name, loads | self._peak(way)),
            (f"commits, {who}", way.name, columns("commit", together(connected, "commits", soon(connected), window))),
        ]
        if way in CACHED:
            loads = columns("load", together(connected, "loads", soon(connected), window, True))
            found.append((f"loads, {who}", from_cache(way).name, loads))
        if len(connected) > 1:
            found.append((f"both, {who}", way.name, _both(connected, window)))
        return found

    def _syncs(self, way: Way) -> list[Done]:
        """Return the syncs of all processes, for each commit, while all users commit once more."""
        measured: list[Measured] = []
        pids = [worker.pid for worker in (self._keepers[way.name], *self._users)]

        def work() -> None:
            measured.extend(together(self._users, "commits", soon(self._users), self._sizes.window))

        try:
            number = counted(pids[0], work, *pids[1:])
        except CannotCount as error:
            self.notes.add(f"Syncs were not counted: {error}.")
            return []
        commits = sum(len(each["taken"]) for each in measured)
        return [(f"commits, {clients(self._sizes.users)}", way.name, {SYNCS_A_COMMIT: number / commits})]

    def _peak(self, way: Way) -> dict[str, float]:
        return {} if way.keeper is Files else {SERVER_PEAK: self._keepers[way.name].call("peak")}

    def verify(self) -> None:
        """Make sure that all that was committed is there, by a new process."""
        with Worker(User, 0) as user:
            for way in present(WAYS):
                changed = list(self._committed[way.name].items())
                user.call("connect", way.store, self._keepers[way.name].call("place"), 0, self._sizes.objects)
                user.call("verify", changed)
                user.call("disconnect")


def users(stack: ExitStack, number: int) -> list[Worker]:
    """Start so many users."""
    return list(entered(stack, {str(n): Worker(User, n) for n in range(number)}).values())


def entered(stack: ExitStack, started: dict[str, Worker]) -> dict[str, Worker]:
    """Wait for processes that begin at the same time; all are ended with `stack`, also where one does not begin."""
    for worker in started.values():
        stack.callback(worker.close)
    return {name: worker.__enter__() for name, worker in started.items()}


def soon(connected: Sequence[Worker]) -> float:
    """Return when all users can begin, by the clock of all processes."""
    together(connected, "ready")
    return time.perf_counter() + NOTICE


def columns(thing: str, measured: Sequence[Measured]) -> dict[str, float]:
    """Return what users did as the columns of a row."""
    numbers = summed(measured)
    return {
        f"{thing}s/s": numbers["rate"],
        f"slowest client's {thing}s/s": numbers["slowest"],
        f"p50 µs a {thing}": numbers["p50"],
        f"p99 µs a {thing}": numbers["p99"],
    }


def _both(connected: Sequence[Worker], window: float) -> dict[str, float]:
    """Let each second user load, and the others commit."""
    at = soon(connected)
    for number, user in enumerate(connected):
        user.start("works", at, window, number % 2 == 1)
    measured = [user.wait() for user in connected]
    return columns("load", measured[::2]) | columns("commit", measured[1::2])


def from_cache(way: Way) -> Way:
    """Return the row of loads from the client's cache."""
    return replace(way, name=f"{way.name}, cached", durability="loads from the client's cache: nobody is asked")


# --- what comes out


def _order(work: str) -> int:
    return ["loads", "commits", "both"].index(work.split(",")[0])


def _result(work: str, found: Found, sizes: Sizes) -> Result:
    result = Result(f"serve-peers, {work}", _what(work, sizes))
    shown = [row for way in WAYS for row in ([way, from_cache(way)] if way in CACHED and _loads(work) else [way])]
    rows(result, shown, found)
    for thing in ("load", "commit"):
        for other in shown:
            if other is not OURS and f"{thing}s/s" in found[OURS.name]:
                result.figure(f"{thing}s/s, ours / {other.name}", against(found, f"{thing}s/s", OURS, other))
    return result


def _loads(work: str) -> bool:
    return work.startswith("loads")


def _what(work: str, sizes: Sizes) -> str:
    doing = {
        "loads": "load",
        "commits": "commit new versions of objects that only they change, one object a commit",
        "both": "load, one half of them, and commit, the other half, one object a commit",
    }[work.split(",")[0]]
    return (
        f"{sizes.objects:,} small objects, the same bytes for all; processes that {doing}, for {sizes.window:g} s a "
        f"round, without a rest. Loads are of objects that the client has not loaded before, in random order, "
        f"{TRANSACTION} in a transaction; what the server or the system has of the files is in memory. Records, not "
        "objects of Python: load and store of a storage; get and set of CyberDB's dict; a row of sqlite3. Of all "
        "clients together, of the slowest one, and what each load or commit took. Verified: each record that was "
        "loaded, and, by a new process, each object that was committed."
    )


def clients(number: int) -> str:
    """Return how many in words."""
    return "1 client" if number == 1 else f"{number} clients"
