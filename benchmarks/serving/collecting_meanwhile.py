"""What clients notice while garbage is collected or packed: ours beside all else that can do it meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method.caches import settle
from benchmarks.method.contest import Found, rows
from benchmarks.method.measure import Result, progress
from benchmarks.method.workers import Worker, together
from benchmarks.peers.registry import present
from benchmarks.serving.beside import clients, entered, users
from benchmarks.serving.collectors import Collector, DurusPack, OurPack, Ours, ZodbPack
from benchmarks.serving.crowd import spread
from benchmarks.serving.littered import DURUS, FIRST, ZODB, items, littered
from benchmarks.serving.stores import Place
from benchmarks.serving.ways import DURUS_FILE, DURUS_FILE2, OURS, RELSTORAGE, ZEO, Way

SETTLE = 0.1
"""Seconds of work before anything counts."""
RESTLESS, STEADY = "without a rest", "steadily"
LOAD, COMMIT = 0.005, 0.04
"""Seconds from one load, and from one commit, of a client to its next, of those who work steadily."""
LEAST = 3 * COMMIT
"""Seconds that count as the collection where it is shorter: everybody does something meanwhile."""
GOAL = 3.0
"""At most so many times as long."""
ENDED = "ended"
HOW = {
    RESTLESS: "all without a rest",
    STEADY: f"a load every {LOAD * 1e3:g} ms, a commit every {COMMIT * 1e3:g} ms each: counted from when it was due",
}


@dataclass(frozen=True)
class Collecting:
    """One way to collect garbage while others work."""

    name: str
    durability: str
    way: Way
    how: type[Collector]
    kind: str = DURUS
    """Of records."""
    at_once: bool = False
    """Whether our server collects without a grace."""

    @property
    def package(self) -> str:
        """The distribution that it needs."""
        return self.way.package


THREAD = Collecting("ours, as it goes", "the default policy but for its grace, which is 0", OURS, Ours, at_once=True)
PACK = Collecting("ours, full pack", "the default policy; a client asks for pack()", OURS, OurPack)
THEIRS = [
    Collecting(DURUS_FILE.name, "a client asks for pack(): done while nobody asks for anything", DURUS_FILE, DurusPack),
    Collecting(DURUS_FILE2.name, "the same", DURUS_FILE2, DurusPack),
    Collecting(ZEO.name, "a client asks for pack(), as zeopack does", ZEO, ZodbPack, ZODB),
    Collecting(
        RELSTORAGE.name, "another process packs, as zodbpack does; history is not kept", RELSTORAGE, ZodbPack, ZODB
    ),
]
ALL = [THREAD, PACK, *THEIRS]


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    live: int
    """Objects that stay; half as many are collected."""
    users: int
    """An even number: each second one commits."""
    own: int
    """Objects that each of those changes."""
    before: float
    """Seconds of work without a collection."""
    limit: float
    """Seconds that a collection may take."""
    rounds: int
    usages: tuple[str, ...] = (RESTLESS, STEADY)


SIZES = {
    "tiny": Sizes(600, 2, 3, 0.05, 0.1, 1, (RESTLESS,)),
    "quick": Sizes(4000, 8, 20, 0.3, 1.5, 1),
    "full": Sizes(16_000, 8, 100, 1.5, 6.0, 3),
}


def collecting_meanwhile(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare what clients notice, who work without a rest, and who work steadily."""
    holder = littered(sizes.live)[1]
    found = {usage: Found() for usage in sizes.usages}
    with ExitStack() as stack:
        stored(directory, sizes.live)
        working = users(stack, sizes.users)
        for _ in range(sizes.rounds):
            for usage, rows_found in found.items():
                for each in present(ALL):
                    progress(f"collect-busy: {each.name}, {usage}")
                    trial = Trial(each, directory, working, holder, sizes)
                    for column, number in trial.run(usage).items():
                        rows_found.setdefault(each.name, {}).setdefault(column, []).append(number)
    return [_result(usage, thing, found[usage], sizes) for usage in found for thing in ("commit", "load")]


def filled(directory: Path, way: Way) -> Path:
    """Return where a way's objects are, which are copied for each trial."""
    return directory / f"{way.name} filled"


def stored(directory: Path, live: int) -> None:
    """Store the objects, once for each way; all at the same time."""
    progress(f"collect-busy: storing {live:,} objects that stay, and half as many that do not")
    started = {}
    for way in dict.fromkeys(each.way for each in present(ALL)):
        contents = "ZODB litter" if way in (ZEO, RELSTORAGE) else "litter"
        started[way.name] = way.start(filled(directory, way), live, contents)
    with ExitStack() as stack:
        entered(stack, started)


class Trial:
    """Clients work with a copy of what is stored, first without a collection, and then with one."""

    def __init__(
        self, collecting: Collecting, directory: Path, working: Sequence[Worker], holder: int, sizes: Sizes
    ) -> None:
        """Do nothing yet.

        Args:
            collecting: what is to be done.
            directory: where all is stored.
            working: the processes of the clients.
            holder: number of the object that leads to the garbage.
            sizes: how much is done.
        """
        self._collecting = collecting
        self._way = collecting.way
        self._directory = directory
        self._path = directory / f"{collecting.name} copied"
        self._more = ("", True) if collecting.at_once else ()
        self._working = working
        self._holder = holder
        self._sizes = sizes

    def run(self, usage: str) -> dict[str, float]:
        """Do it; return what the clients noticed, and what was collected."""
        self._copy()
        settle(self._directory)
        try:
            with self._way.start(self._path, 0, "", *self._more) as keeper:
                return self._connected(keeper.call("place"), usage)
        finally:
            for path in self._directory.glob(f"{self._path.name}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _copy(self) -> None:
        template = filled(self._directory, self._way)
        for path in self._directory.glob(f"{template.name}*"):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, f"{self._path}{path.name.removeprefix(template.name)}")

    def _connected(self, place: Place, usage: str) -> dict[str, float]:
        sizes, working = self._sizes, self._working
        known = items(sizes.live)
        given = self._way.store, place, self._path, self._collecting.kind, self._holder
        starting = Worker(self._collecting.how, *given)
        together(working, "connect", self._way.store, place, FIRST, len(known), self._collecting.kind)
        together(working, "prepare", sizes.users, sizes.own, 0)
        with starting as collector:
            found = self._observed(collector, usage)
        changed = [each for user in working for each in user.call("changed")]
        together(working, "disconnect")
        self._verify(place, changed)
        return found

    def _observed(self, collector: Worker, usage: str) -> dict[str, float]:
        for number, user in enumerate(self._working):
            user.call("begin_work", *_doing(number, usage))
            time.sleep(COMMIT / len(self._working))  # so that those who work steadily do not come all at once
        time.sleep(SETTLE)
        before = time.perf_counter()
        time.sleep(self._sizes.before)
        after = time.perf_counter()
        began, ended, done = collector.call("collect", self._sizes.limit)
        enough = max(ended, began + LEAST)
        time.sleep(max(0.0, enough - time.perf_counter()))
        times = together(self._working, "end_work")
        found: dict[str, float] = {}
        for thing, taken in (("load", times[::2]), ("commit", times[1::2])):
            every = [each for one in taken for each in one]
            found |= noticed(thing, within(every, before, after), within(every, began, enough))
        left = plausible(collector.call("left"), done)
        return found | {"seconds until collected": ended - began, "garbage left": left, ENDED: float(done)}

    def _verify(self, place: Place, changed: list[list[int]]) -> None:
        """Let one of the users make sure that all that was committed is there, by a connection of its own."""
        user = self._working[0]
        user.call("connect", self._way.store, place, FIRST, 1, self._collecting.kind)
        user.call("verify", changed)
        user.call("disconnect")


def _doing(number: int, usage: str) -> tuple[bool, float]:
    """Return what one of the users does: whether it commits, and how often."""
    committing = number % 2 == 1
    return committing, 0.0 if usage == RESTLESS else COMMIT if committing else LOAD


def within(every: Sequence[tuple[float, float]], first: float, last: float) -> list[float]:
    """Return how long what went on between two times had taken by the second of them; given when each began, too."""
    return [min(lasted, last - begun) for begun, lasted in every if begun < last and begun + lasted > first]


def plausible(left: int, done: bool) -> int:
    """Return how much garbage is left.

    Raises:
        AssertionError: what should stay was collected, or garbage is left of a collection that is done.
    """
    if left < 0 or (done and left):
        raise AssertionError(f"{left} objects more than should be are there; the collection was done: {done}")
    return left


def noticed(thing: str, alone: Sequence[float], meanwhile: Sequence[float]) -> dict[str, float]:
    """Return the columns of what loads or commits took, without a collection and with one; given in seconds.

    Raises:
        AssertionError: nothing was done in one of the two.
    """
    if not (alone and meanwhile):
        raise AssertionError(f"{len(alone)} {thing}s were done without a collection, {len(meanwhile)} with one")
    without, together_with = spread(alone), spread(meanwhile)
    found = {}
    for quantile, name in (("p50", "p50"), ("p99", "p99"), ("max", "longest")):
        found[f"{name} ms a {thing}"] = without[quantile] * 1e3
        found[f"{name} ms a {thing}, collecting"] = together_with[quantile] * 1e3
    return found | {f"p99 of {thing}s, collecting / not": together_with["p99"] / without["p99"]}


def _result(usage: str, thing: str, found: Found, sizes: Sizes) -> Result:
    half = clients(sizes.users // 2)
    result = Result(
        f"collect-busy, {thing}s, {usage}",
        f"{sizes.live:,} objects stay, and half as many become garbage by one commit; half of those that stay are "
        f"items, the others and the garbage trees with pointers to the parents. {half} load items, {half} commit new "
        f"versions of items, one a commit, {HOW[usage]}; {sizes.before:g} s without a collection, and then from the "
        f"commit that makes the garbage to the end of the collection, at least {LEAST:g}, at most {sizes.limit:g} s. "
        "The same records, for ZODB as pickles; clients use their caches where they have some. Verified: each record "
        "that was loaded, each object that was committed, and the number of objects that are left.",
    )
    other = {"load": "commit", "commit": "load"}[thing]
    shown = {
        name: {column: series for column, series in columns.items() if column != ENDED and other not in column}
        for name, columns in found.items()
    }
    rows(result, ALL, shown)
    for name in (name for name, columns in found.items() if min(columns[ENDED]) == 0):
        result.notes.append(f"{name}: the collection did not end within {sizes.limit:g} s")
    for each in present(ALL):
        goal = {"most": GOAL} if thing == "commit" and each.way is OURS else {}
        column = f"p99 of {thing}s, collecting / not"
        result.figure(f"{column}, {each.name}", shown[each.name][column], **goal)
    return result
