"""How opening, memory, loads, commits, size and collection grow with the number of objects: ours beside its peers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.growth.dropping import UNIT, Collects
from benchmarks.growth.measures import IN_USE, MEASURES, PACK, PEERS, result
from benchmarks.growth.using import OPENED_COLD, Builds, Opens, Uses
from benchmarks.method.contest import PEAK, Found, contest
from benchmarks.method.measure import Result
from benchmarks.peers.registry import BARE, FILE, LMDB, OURS, SHELVE, SQLITE3, SQLITE_STORAGE, Peer

FEW = (OURS, FILE, BARE, LMDB, SQLITE3)
"""Those that are measured with more objects than the others are."""
QUICK = tuple(peer for peer in PEERS if peer not in (SQLITE_STORAGE, BARE, SHELVE))
QUICK_FEW = tuple(peer for peer in FEW if peer in QUICK)
"""Where there is no time for everyone."""
TWO = (OURS, FILE)
ONE = (OURS,)


@dataclass(frozen=True)
class Step:
    """What is done with so many objects."""

    objects: int
    peers: tuple[Peer, ...]
    opens: int
    """Rounds of opening."""
    rounds: int
    """Of using."""
    collections: int
    """Of collecting, ours."""
    collecting: tuple[Peer, ...]
    """Those that collect a unit of garbage."""
    tenths: tuple[Peer, ...]
    """Those that collect a tenth as much as lives, too."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    steps: tuple[Step, ...]
    loads: int
    """Of a round."""
    commits: int
    """Of a round."""
    cold: int
    """Loads after the system's cache was dropped."""


SIZES = {
    "tiny": Sizes((Step(300, TWO, 1, 1, 1, (), ()), Step(3000, TWO, 1, 1, 1, TWO, ONE)), 50, 2, 10),
    "quick": Sizes(
        (
            Step(3162, QUICK, 1, 1, 1, QUICK, ONE),
            Step(31_623, QUICK, 1, 1, 1, QUICK, ONE),
            Step(316_228, QUICK_FEW, 1, 1, 1, ONE, ONE),
        ),
        5000,
        20,
        50,
    ),
    "full": Sizes(
        (
            Step(10_000, PEERS, 5, 5, 3, PEERS, PEERS),
            Step(100_000, PEERS, 5, 5, 3, PEERS, PEERS),
            Step(1_000_000, PEERS, 3, 5, 2, PEERS, ONE),
            Step(10_000_000, FEW, 2, 5, 3, ONE, ()),
        ),
        20_000,
        50,
        300,
    ),
}


def growing(directory: Path, sizes: Sizes) -> list[Result]:
    """Measure all of it at each step, smallest first."""
    grown = {step.objects: _step(directory / str(step.objects), step, sizes) for step in sizes.steps}
    results = [result(measure, grown) for measure in MEASURES]
    if not all(OPENED_COLD in found[OURS.name] for found in grown.values()):
        results[0].notes.append("the system's cache could not be dropped, so nothing cold was measured")
    return [made for made in results if made.rows]


def _step(directory: Path, step: Step, sizes: Sizes) -> Found:
    """Build, use, collect, and remove everything again."""
    directory.mkdir()
    count, peers, found = step.objects, step.peers, Found()
    _add(found, contest(Builds, peers, directory, [count], 1, warm=False))
    _add(found, contest(Opens, peers, directory, [count, sizes.cold], step.opens, warm=False, fresh=True))
    _add(found, contest(Uses, peers, directory, [count, sizes.loads, sizes.commits], step.rounds), IN_USE)
    for way, rounds in ((ONE, step.collections), (PACK, 1)):
        collecting = [peer for peer in way if peer in step.collecting]
        units = max(1, count // 10 // UNIT) if way[0] in step.tenths else 0
        _add(found, contest(Collects, collecting, directory, [count, units], rounds, warm=False))
    shutil.rmtree(directory)
    return found


def _add(found: Found, more: Found, peak: str = "") -> None:
    """Add columns; the highest memory under the name `peak`, if there is one."""
    for name, columns in more.items():
        highest = columns.pop(PEAK)
        found.setdefault(name, {}).update(columns | ({peak: highest} if peak else {}))
