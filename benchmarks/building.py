"""Figure 2: storing new objects through ``Connection``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from durus.connection import Connection
from durus.storage import Storage

from benchmarks.measure import Result, in_turn, progress, ratios, scaled, seconds
from benchmarks.peers import FILE, FILE2, HANDS_OVER, NEVER_SYNCS, OPENERS, OURS, SYNCS, ours
from benchmarks.records import FOLDER, build


def _building(path: Path, opener: Callable[[Path], Storage], count: int) -> Callable[[], float]:
    def run() -> float:
        with closing(opener(path)) as storage:
            connection = Connection(storage)
            taken = seconds(lambda: build(connection, count))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return taken / count

    return run


def build_objects(directory: Path, count: int, rounds: int) -> list[Result]:
    """Compare how long new objects take, from their construction to the last commit."""
    progress(f"build: {count:,} objects")
    unsynced = "ours, not synced"
    openers: dict[str, tuple[str, Callable[[Path], Storage]]] = {
        FILE: (NEVER_SYNCS, OPENERS[FILE]),
        OURS: (f"the default, durable=True: {SYNCS}", ours),
        FILE2: (SYNCS, OPENERS[FILE2]),
        unsynced: (HANDS_OVER, lambda path: ours(path, durable=False)),
    }
    contestants = {name: _building(directory / name, opener, count) for name, (_, opener) in openers.items()}
    found = in_turn(contestants, rounds)
    result = Result(
        "build",
        f"{count:,} small objects made and stored through Connection into an empty storage, a commit every {FOLDER:,}; "
        "default policies. Microseconds an object, making and pickling it included.",
    )
    for name, series in found.items():
        result.row(name, openers[name][0], µs_an_object=scaled(series, 1e6))
    result.figure("FileStorage / ours", ratios(found[FILE], found[OURS]), least=1.1)
    result.figure("FileStorage2 / ours", ratios(found[FILE2], found[OURS]))
    result.figure("FileStorage / ours, not synced", ratios(found[FILE], found[unsynced]))
    return [result]
