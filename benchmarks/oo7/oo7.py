"""Compares databases by OO7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from benchmarks.method.contest import PEAK, Found, contest, rows
from benchmarks.method.measure import Result, Series
from benchmarks.oo7.plan import MEDIUM, SMALL, TINY, Configuration
from benchmarks.oo7.running import (
    BUILD,
    COLD,
    DISK,
    DROPPED,
    EVERYTHING,
    HOT,
    OO7,
    READING,
    STRUCTURAL,
    UPDATING,
    column,
)
from benchmarks.peers.registry import FILE, FILE2, OURS, OURS_UNSYNCED, RELSTORAGE, ZODB_FILE, Peer, is_here

PEERS = [OURS, OURS_UNSYNCED, FILE, FILE2, ZODB_FILE, RELSTORAGE]
TRAVERSALS = [name for name in READING if name.startswith("T")]
QUERIES = [name for name in READING if name.startswith("Q")]
GROUPS = {
    "traversals": TRAVERSALS,
    "queries": QUERIES,
    "traversals that update": list(UPDATING),
    "insert and delete": STRUCTURAL,
}
STATES = {
    COLD: "Before each operation the database was closed and opened, and the system's cache of its files dropped.",
    HOT: "All objects are in the connection's cache.",
}
LIGHT = [name for name in READING if name not in ("Q7", "Q8")]
"""What does not go through all objects, but for T1."""


@dataclass(frozen=True)
class Run:
    """What is done with a configuration."""

    configuration: Configuration
    cold: Sequence[str]
    hot: Sequence[str]
    rounds: int


def _without(names: Sequence[str], *others: str) -> list[str]:
    return [name for name in names if name not in others]


SIZES = {
    "tiny": [Run(TINY, ["T1", "T3a", "Q1", *STRUCTURAL], EVERYTHING, 1)],
    "quick": [Run(SMALL, [*LIGHT, *STRUCTURAL], _without(EVERYTHING, "T2c", "T3c"), 1)],
    "full": [
        Run(SMALL, _without(EVERYTHING, "T2c", "T3c"), EVERYTHING, 1),
        Run(MEDIUM, [*LIGHT, "Q7", *STRUCTURAL], _without(EVERYTHING, "T2c", "T3c"), 1),
    ],
}


def oo7(directory: Path, runs: Sequence[Run]) -> list[Result]:
    """Compare all operations."""
    return [result for run in runs for result in _results(directory, run)]


def _results(directory: Path, run: Run) -> list[Result]:
    where = directory / run.configuration.name
    where.mkdir()
    arguments = [run.configuration.name, list(run.cold), list(run.hot)]
    found = contest(OO7, PEERS, where, arguments, run.rounds, warm=False, fresh=True)
    results = [_built(found, run)]
    for group, names in GROUPS.items():
        for state, done in ((COLD, run.cold), (HOT, run.hot)):
            if chosen := [name for name in names if name in done]:
                results.append(_compared(found, run, group, state, chosen, _without(names, *chosen)))
    return results


def _selected(found: Found, columns: Sequence[str]) -> Found:
    return {peer: {name: series[name] for name in columns} for peer, series in found.items()}


def _built(found: Found, run: Run) -> Result:
    size = run.configuration
    result = Result(
        f"oo7, {size.name}",
        f"OO7's configuration '{size.name}': {size.modules} module, {size.levels} levels of assemblies, "
        f"{size.composites} composite parts of {size.atomic} atomic parts with {size.connections} connections each. "
        "Seconds to make and commit all objects, about 1,000 a commit; MB after closing it then; and the highest "
        "memory of the process during everything, with all objects in the cache.",
    )
    rows(result, PEERS, _selected(found, [BUILD, DISK, PEAK]))
    for other in _others():
        for name in (BUILD, DISK):
            result.figure(f"{name}, {other.name} / {_ours(other).name}", _ratio(found, [name], other))
    if not all(flag for series in found.values() for flag in series[DROPPED]):
        result.notes.append("the system's cache could not be dropped whole: what is called cold was not quite")
    return result


def _compared(found: Found, run: Run, group: str, state: str, names: Sequence[str], omitted: Sequence[str]) -> Result:
    result = Result(
        f"oo7, {run.configuration.name}, {group}, {state}",
        f"OO7's {group}, milliseconds an operation, with the commit of what changes something. {STATES[state]} "
        "What each returned and left is verified.",
    )
    columns = [column(name, state) for name in names]
    shown = _selected(found, columns)
    rows(
        result, PEERS, {peer: {name.replace(f" {state}", ""): s for name, s in c.items()} for peer, c in shown.items()}
    )
    if state == HOT and not set(names) - set(READING):
        result.notes.append("no storage takes part in this: what differs is the toolkit")
        return result
    for other in _others():
        pair = f"{other.name} / {_ours(other).name}"
        result.figure(f"geometric mean of {len(names)}, {pair}", _ratio(found, columns, other))
    if omitted:
        result.notes.append(f"not done here, for they take long: {', '.join(omitted)}")
    return result


def _others() -> list[Peer]:
    """Return those that ours are compared with."""
    return [peer for peer in PEERS if peer not in (OURS, OURS_UNSYNCED) and is_here(peer)]


def _ours(other: Peer) -> Peer:
    """Return ours with the same durability."""
    return OURS if other.synced else OURS_UNSYNCED


def _ratio(found: Found, columns: Sequence[str], other: Peer) -> Series | None:
    """Return the geometric mean of all ratios other / ours, round by round."""
    theirs, mine = found.get(other.name), found.get(_ours(other).name)
    if theirs is None or mine is None:
        return None
    return [geometric_mean([theirs[name][n] / mine[name][n] for name in columns]) for n in range(len(mine[columns[0]]))]
