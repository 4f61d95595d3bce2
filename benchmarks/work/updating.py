"""Figure 5: what is left on the disk after many updates of few objects."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from durus.storage import Storage

from benchmarks.method.measure import Result, progress
from benchmarks.method.usage import disk
from benchmarks.objects.records import fill, record
from benchmarks.peers.durus import FILE, HANDS_OVER, NEVER_SYNCS, OPENERS, OURS, ours

OBJECTS = 10_000
PACKED = "FileStorage, after pack()"


def _update(storage: Storage, updates: int, batch: int, watch: Callable[[], object]) -> None:
    """Update random items, `batch` a commit; `watch` is called a hundred times meanwhile."""
    items = [n for n in range(OBJECTS) if n % 1000 > 1]
    chosen = random.Random(4)
    every = max(batch, updates // 100 // batch * batch)
    for first in range(0, updates, batch):
        storage.begin()
        for version, number in enumerate(chosen.sample(items, batch), first + 1):
            storage.store(number.to_bytes(8, "big"), record(number, version))
        storage.end()
        if first % every == 0:
            watch()


def update(directory: Path, updates: int) -> list[Result]:
    """Compare sizes after updates one by one, and by the hundred."""
    return [_compare(directory, updates, batch) for batch in (1, 100)]


def _compare(directory: Path, updates: int, batch: int) -> Result:
    openers: dict[str, tuple[str, Callable[[Path], Storage]]] = {
        FILE: (NEVER_SYNCS, OPENERS[FILE]),
        OURS: (HANDS_OVER, lambda path: ours(path, durable=False)),
    }
    result = Result(
        f"update, {batch} a commit",
        f"{updates:,} updates of {OBJECTS:,} objects of {len(record(1))} bytes, {batch} a commit. MB on the disk in "
        "allocated blocks (and as the files seem to be long): after closing; and the most that was seen meanwhile. "
        "Once each: sizes hardly vary. Durability does not change them.",
    )
    sizes: dict[str, dict[str, float]] = {}
    for name, (about, opener) in openers.items():
        progress(f"update: {updates:,}, {batch} a commit: {name}")
        path = directory / f"{name} {batch}"
        seen: list[float] = []

        def watch(path: Path = path, seen: list[float] = seen) -> None:
            found = disk(path)
            seen.append(found["data"] + found["logs"])

        with closing(opener(path)) as storage:
            fill(storage, OBJECTS)
            started = time.perf_counter()
            _update(storage, updates, batch, watch)
            taken = time.perf_counter() - started
        watch()
        sizes[name] = disk(path)
        _row(result, name, about, sizes[name], most=[max(seen)], µs_an_update=[taken / updates * 1e6])
    with closing(OPENERS[FILE](directory / f"{FILE} {batch}")) as storage:
        storage.pack()
    (directory / f"{FILE} {batch}.prepack").unlink()
    sizes[PACKED] = disk(directory / f"{FILE} {batch}")
    _row(result, PACKED, "to be called by hand; meanwhile it takes both sizes", sizes[PACKED])
    theirs, mine = sizes[FILE], sizes[OURS]
    result.figure("data and logs, FileStorage / ours", [theirs["data"] / (mine["data"] + mine["logs"])])
    result.figure("data, FileStorage / ours", [theirs["data"] / mine["data"]])
    result.figure("ours, data", [mine["data"]], unit="MB")
    result.figure("ours, logs", [mine["logs"]], unit="MB")
    result.figure("FileStorage", [theirs["data"]], unit="MB")
    return result


def _row(result: Result, name: str, about: str, size: dict[str, float], **more: list[float]) -> None:
    columns = {key.replace(" ", "_"): [value] for key, value in size.items()}
    result.row(name, about, **columns, **more)
