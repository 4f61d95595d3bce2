"""What is measured at each number of objects, and the table and the chart of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.growth.dropping import GONE, READ, TENTH, UNIT, WORK
from benchmarks.growth.using import BUILT, COMMITTED, GROWN, LOADED, LOADED_COLD, OPENED, OPENED_COLD, SIZE
from benchmarks.method.contest import Found
from benchmarks.method.measure import Chart, Result, Series
from benchmarks.peers.registry import (
    BARE,
    FILE,
    FILE2,
    LMDB,
    OURS,
    RELSTORAGE,
    SHELVE,
    SQLITE3,
    SQLITE_STORAGE,
    ZODB_FILE,
    Peer,
    present,
)

PEERS = (OURS, FILE, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE, BARE, LMDB, SQLITE3, SHELVE)
PACK = (FILE, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE)
"""Those that collect garbage by a pack; who keeps records or a table has no garbage."""
IN_USE = "MB in use"
WORDS = {"s": "seconds", "ms": "milliseconds", "µs": "microseconds"}
"""What stands beside an axis for a unit."""
GOAL_AT = 1_000_000
"""Objects at which opening is held against FileStorage's."""

Grown = Mapping[int, Found]
"""Number of objects -> what was found."""


def _durability(peer: Peer) -> str:
    return peer.durability


def _way(peer: Peer) -> str:
    return "by its background thread" if peer is OURS else "by a pack, which reads all that lives"


@dataclass(frozen=True)
class Measure:
    """A column, which has a result of its own: a table of who and how many objects, and a chart."""

    name: str
    column: str
    unit: str
    title: str
    what: str
    peers: tuple[Peer, ...] = PEERS
    """Whom it concerns."""
    about: Callable[[Peer], str] = _durability
    each: bool = False
    """Whether more objects are more work: then it is the number for each object that may stay the same."""
    beside: Peer = FILE
    """Whom ours is held against."""
    most: float | None = None
    """The goal: ours grows at most so many times from the first number of objects to the last."""


MEASURES = (
    Measure(
        "open",
        OPENED,
        "ms",
        "Opening, after it was closed",
        "Milliseconds until the storage is open and the root is loaded, in a process of its own that has imported all "
        "that it takes; the files are in the system's cache.",
        most=2.0,
    ),
    Measure(
        "open cold",
        OPENED_COLD,
        "ms",
        "Opening, nothing in the system's cache",
        "The same after what the system's cache had of the files was dropped.",
    ),
    Measure(
        "memory",
        GROWN,
        "MB",
        "Memory that opening takes",
        "MB of memory (RSS), at most, that the process has more than before while it opens and loads the root.",
        most=1.5,
    ),
    Measure(
        "memory in use",
        IN_USE,
        "MB",
        "Memory of the process in use",
        "MB of memory (RSS), at most, of the whole process that loads and commits: interpreter, imports, caches "
        "as they come; of LMDB also those pages of its file that it has looked at.",
    ),
    Measure(
        "load",
        LOADED,
        "µs",
        "Loading a random object",
        "Microseconds to load a random object, others in each round, the first of which is not measured; the files are "
        "in the system's cache. Ours, Berkeley DB, sqlite3, RelStorage and shelve have caches of 64 MiB besides, our "
        "default; what does not fit in there is read from the system's.",
    ),
    Measure(
        "load cold",
        LOADED_COLD,
        "µs",
        "Loading a random object, nothing in the system's cache",
        "The same right after opening, when what the system's cache had of the files was dropped before. Durus' "
        "FileStorage has read its whole file by then.",
    ),
    Measure(
        "commit",
        COMMITTED,
        "µs",
        "Committing a new version of a random object",
        "Microseconds to commit a new version of one random object.",
        beside=FILE2,
    ),
    Measure(
        "disk",
        SIZE,
        "bytes",
        "Size on the disk, for each object",
        "Bytes on the disk for each object, when it was built and closed.",
    ),
    Measure(
        "build",
        BUILT,
        "s",
        "Building",
        "Seconds to store them, in commits of 1,000 or as large as the peer likes its first ones, and to close.",
        each=True,
    ),
    Measure(
        "collect",
        GONE,
        "s",
        f"Collecting {UNIT:,} objects of garbage",
        f"Seconds from the commit that drops {UNIT:,} objects, in subtrees and a ring, until they are gone: ours by "
        "its background thread, without grace; the others by a pack, ZODB's with a "
        "faster way to find references than its own, RelStorage's with a fault mended that would end it.",
        (OURS, *PACK),
        _way,
        most=3.0,
    ),
    Measure(
        "collect work",
        WORK,
        "ms",
        f"Work to collect {UNIT:,} objects of garbage",
        "Milliseconds for the same where the thread that commits does it at once: what it takes without the rests of "
        "the background thread.",
        (OURS,),
        lambda _: "a policy that collects in the thread that commits",
        most=3.0,
    ),
    Measure(
        "collect reads",
        READ,
        "records",
        f"Records read to collect {UNIT:,} objects of garbage",
        "Records that ours reads to collect them, the deleted ones themselves included; a pack reads all that live.",
        (OURS,),
        _way,
        most=1.5,
    ),
    Measure(
        "collect tenth",
        TENTH,
        "s",
        "Collecting a tenth as much garbage as lives",
        f"Seconds as above, for a tenth of the number that live, in units of {UNIT:,}.",
        (OURS, *PACK),
        _way,
        each=True,
    ),
)


def result(measure: Measure, grown: Grown) -> Result:
    """Return the table of a measure, with its figures and its chart."""
    made = Result(f"growth, {measure.name}", measure.what)
    for peer in measure.peers:
        if series := _series(measure, grown, peer):
            columns = {f"{measure.unit} at {count:,}": numbers for count, numbers in series.items()}
            made.row(peer.name, measure.about(peer), **columns)
    made.notes += [*_absent(measure, grown)]
    _ours_grows(made, measure, grown)
    _beside(made, measure, grown)
    made.charts.append(_chart(measure, grown))
    return made


def _series(measure: Measure, grown: Grown, peer: Peer) -> dict[int, Series]:
    """Return what was measured of a peer, by the number of objects."""
    return {
        count: found[peer.name][measure.column]
        for count, found in grown.items()
        if measure.column in found.get(peer.name, {})
    }


def _absent(measure: Measure, grown: Grown) -> list[str]:
    """Say who was not measured where."""
    notes = []
    here = present(measure.peers)
    for count in grown:
        missing = [peer.name for peer in here if count not in _series(measure, grown, peer)]
        if missing:
            notes.append(
                f"at {count:,} objects not measured (it takes long, or was not possible): {', '.join(missing)}"
            )
    if lacking := [peer.name for peer in measure.peers if peer not in here]:
        notes.append(f"not installed, so not measured: {', '.join(lacking)} (pip install -e '.[bench]')")
    return notes


def _ours_grows(made: Result, measure: Measure, grown: Grown) -> None:
    """Add the figure of how ours grows."""
    points = _line(measure, grown, OURS)
    if len(points) > 1:
        (few, first), (many, last) = points[0], points[-1]
        ratio = last / first / (many / few if measure.each else 1)
        each = " for each object" if measure.each else ""
        made.figure(f"ours{each}, at {many:,} / at {few:,} objects", [ratio], most=measure.most)


def _beside(made: Result, measure: Measure, grown: Grown) -> None:
    """Add the figure of a peer beside ours, at the number of objects for which there is a goal, or the last."""
    theirs, mine = (_series(measure, grown, peer) for peer in (measure.beside, OURS))
    both = [count for count in theirs if count in mine]
    if not both:
        return
    count = GOAL_AT if GOAL_AT in both else both[-1]
    goal = {"least": 20.0} if measure.column == OPENED and count >= GOAL_AT else {}
    made.figure(f"{measure.beside.name} / ours at {count:,} objects", _ratios(theirs[count], mine[count]), **goal)


def _ratios(above: Sequence[float], below: Sequence[float]) -> Series:
    """Return the ratios round by round; that of the medians where the rounds are not as many."""
    if len(above) == len(below):
        return [one / other for one, other in zip(above, below, strict=True)]
    return [median(above) / median(below)]


def _line(measure: Measure, grown: Grown, peer: Peer) -> list[tuple[float, float]]:
    return [(count, median(numbers)) for count, numbers in _series(measure, grown, peer).items()]


def _chart(measure: Measure, grown: Grown) -> Chart:
    lines = {peer.name: line for peer in measure.peers if (line := _line(measure, grown, peer))}
    name, unit = f"growth-{measure.name.replace(' ', '-')}", WORDS.get(measure.unit, measure.unit)
    return Chart(name, measure.title, "objects", unit, lines)
