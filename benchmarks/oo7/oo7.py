"""Compares databases by OO7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method.contest import PEAK, Found, against, contest, rows
from benchmarks.method.measure import Result
from benchmarks.oo7.plan import MEDIUM, SMALL, TINY, Configuration
from benchmarks.oo7.running import (
    BUILD,
    COLD,
    DISK,
    EVERYTHING,
    HOT,
    OO7,
    READING,
    STRUCTURAL,
    UPDATING,
    column,
)
from benchmarks.peers.registry import FILE, FILE2, OURS, OURS_UNSYNCED, RELSTORAGE, ZODB_FILE, Peer, is_here
from benchmarks.work.stores import some
from benchmarks.work.traversing import mean_against, undropped
from benchmarks.work.updating import LOGS

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
    every: int = 1
    """Of how many composite parts one is looked at in the end."""


def _without(names: Sequence[str], *others: str) -> list[str]:
    return [name for name in names if name not in others]


SIZES = {
    "tiny": [Run(TINY, ["T1", "T3a", "Q1", *STRUCTURAL], EVERYTHING, 1)],
    "quick": [Run(SMALL, [*LIGHT, *STRUCTURAL], _without(EVERYTHING, "T2c", "T3b", "T3c"), 1, 10)],
    "full": [
        Run(SMALL, [*READING, *STRUCTURAL], _without(EVERYTHING, "T3c"), 2),
        Run(MEDIUM, [*LIGHT, *STRUCTURAL], _without(EVERYTHING, "T2c", "T3a", "T3b", "T3c"), 1, 25),
    ],
}


def oo7(directory: Path, runs: Sequence[Run]) -> list[Result]:
    """Compare all operations."""
    return [result for run in runs for result in _results(directory, run)]


def _results(directory: Path, run: Run) -> list[Result]:
    where = directory / run.configuration.name
    where.mkdir()
    arguments = [run.configuration.name, list(run.cold), list(run.hot), run.every]
    found = contest(OO7, some(PEERS, run.configuration is TINY), where, arguments, run.rounds, warm=False, fresh=True)
    notes = {COLD: undropped(found), HOT: []}
    results = [_built(found, run)]
    for group, names in GROUPS.items():
        for state, done in ((COLD, run.cold), (HOT, run.hot)):
            if chosen := [name for name in names if name in done]:
                results.append(_compared(found, run, group, state, chosen))
                results[-1].notes += notes[state]
    return results


def _selected(found: Found, columns: Mapping[str, str]) -> Found:
    """Return these columns under other names."""
    chosen = Found()
    for peer, series in found.items():
        chosen[peer] = {new: series[old] for old, new in columns.items() if old in series}
    return chosen


def _built(found: Found, run: Run) -> Result:
    size = run.configuration
    result = Result(
        f"oo7, {size.name}",
        f"OO7's configuration '{size.name}': {size.modules} module, {size.levels} levels of assemblies, "
        f"{size.composites} composite parts of {size.atomic} atomic parts with {size.connections} connections each. "
        "Seconds to make and commit all objects, about 1,000 a commit; MB after closing it then; and the highest "
        "memory of the process during everything, with all objects in the cache.",
    )
    rows(
        result,
        some(PEERS, run.configuration is TINY),
        _selected(found, {name: name for name in (BUILD, DISK, LOGS, PEAK)}),
    )
    for other in _others():
        for name in (BUILD, DISK):
            result.figure(f"{name}, {other.name} / {_ours(other).name}", against(found, name, other, _ours(other)))
    for state, done in ((COLD, run.cold), (HOT, run.hot)):
        if omitted := _without(EVERYTHING, *done):
            result.notes.append(f"{state}, these are not done here, for they take long: {', '.join(omitted)}")
    return result


def _compared(found: Found, run: Run, group: str, state: str, names: Sequence[str]) -> Result:
    result = Result(
        f"oo7, {run.configuration.name}, {group}, {state}",
        f"OO7's {group}, milliseconds an operation, with the commit of what changes something. {STATES[state]} "
        "What each returned and left is verified.",
    )
    columns = [column(name, state) for name in names]
    rows(
        result,
        some(PEERS, run.configuration is TINY),
        _selected(found, {name: name.replace(f" {state}", "") for name in columns}),
    )
    if state == HOT and set(names) <= set(READING):
        result.notes.append("no storage takes part in this: what differs is the toolkit")
        return result
    for other in _others():
        pair = f"{other.name} / {_ours(other).name}"
        result.figure(f"geometric mean of {len(names)}, {pair}", mean_against(found, columns, other, _ours(other)))
    return result


def _others() -> list[Peer]:
    """Return those that ours are compared with."""
    return [peer for peer in PEERS if peer not in (OURS, OURS_UNSYNCED) and is_here(peer)]


def _ours(other: Peer) -> Peer:
    """Return ours with the same durability."""
    return OURS if other.synced else OURS_UNSYNCED
