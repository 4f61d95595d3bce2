"""What encryption costs: loads, commits, building and opening, with a key and without one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import count as counter
from pathlib import Path

from durus.connection import Connection
from durus.storage import Storage

from benchmarks.method.measure import Result, in_turn, progress, ratios, scaled, seconds
from benchmarks.objects.records import FOLDER, build, fill, record
from benchmarks.peers.durus import HANDS_OVER, SYNCS, DurusStore, ours
from benchmarks.work.stores import items

PLAIN, ENCRYPTED = "plain", "encrypted"
KEYS = {PLAIN: None, ENCRYPTED: "a key of which the length does not matter"}
OBJECTS = 10_000
"""Objects that are there, and of which one is chosen at random for each commit."""
SMALL = 1 << 20
"""Bytes of a cache that nothing stays in."""

Contestants = dict[str, Callable[[], float]]


SIZES = {"tiny": (2000, 20, 20, 2), "quick": (20_000, 1000, 5000, 7), "full": (100_000, 3000, 20_000, 15)}
"""Objects that are loaded and built, commits that are synced, and that are not, rounds."""


def encryption(directory: Path, sizes: tuple[int, int, int, int]) -> list[Result]:
    """Compare a storage with a key with one without."""
    objects, durable, unsynced, rounds = sizes
    return [
        *_loads(directory, objects, rounds),
        _commits(directory, "durable", durable, rounds, durable=True),
        _commits(directory, "not synced", unsynced, rounds, durable=False),
        _builds(directory, objects, rounds),
    ]


def _loads(directory: Path, objects: int, rounds: int) -> list[Result]:
    progress(f"encryption: {objects:,} objects, twice")
    for name, key in KEYS.items():
        with closing(ours(directory / name, key=key, durable=False)) as storage:
            fill(storage, objects)
    found = []
    for where, size in (("from the cache", 0), ("from a cache of 1 MiB", SMALL)):
        with ExitStack() as stack:
            options = {"cachesize": size} if size else {}
            storages = {
                name: stack.enter_context(closing(ours(directory / name, key=key, **options)))
                for name, key in KEYS.items()
            }
            oids = [oid for oid, _ in storages[PLAIN].gen_oid_record()]
            chosen = random.Random(3).sample(oids, len(oids))
            contestants = {name: _pass(storage, chosen) for name, storage in storages.items()}
            what = f"storage.load(oid) of {objects:,} objects in random order, {where}; microseconds each"
            found.append(_compared(f"load {where}", what, contestants, rounds, "a load"))
    return found


def _pass(storage: Storage, oids: Sequence[bytes]) -> Callable[[], float]:
    def run() -> None:
        for oid in oids:
            storage.load(oid)

    return lambda: seconds(run) / len(oids)


def _commits(directory: Path, what: str, number: int, rounds: int, *, durable: bool) -> Result:
    with ExitStack() as stack:
        contestants = {}
        for name, key in KEYS.items():
            storage = stack.enter_context(closing(ours(directory / f"{name} {what}", key=key, durable=durable)))
            fill(storage, OBJECTS)
            contestants[name] = _commits_of_one(storage, number)
        text = f"{number:,} commits of one record: {SYNCS if durable else HANDS_OVER}; microseconds each"
        return _compared(f"commit, {what}", text, contestants, rounds, "a commit")


def _commits_of_one(storage: Storage, number: int) -> Callable[[], float]:
    """Return what times commits of `number` new versions of items."""
    commit, versions, chosen = DurusStore(storage).commit, counter(1), random.Random(2)
    numbers = items(OBJECTS, OBJECTS)

    def run() -> float:
        changes = [[(n.to_bytes(8, "big"), record(n, next(versions)))] for n in chosen.choices(numbers, k=number)]

        def work() -> None:
            for change in changes:
                commit(change)

        return seconds(work) / number

    return run


def _builds(directory: Path, objects: int, rounds: int) -> Result:
    def building(name: str, key: str | None) -> Callable[[], float]:
        def run() -> float:
            with closing(ours(directory / f"{name} built", key=key, durable=False)) as storage:
                connection = Connection(storage)
                taken = seconds(lambda: (build(connection, objects), storage.checkpoint()))
            shutil.rmtree(directory / f"{name} built")
            return taken / objects

        return run

    contestants = {name: building(name, key) for name, key in KEYS.items()}
    what = f"{objects:,} small objects through Connection, {FOLDER:,} a commit, and a checkpoint; microseconds each"
    return _compared("build", what, contestants, rounds, "an object")


def _compared(name: str, what: str, contestants: Contestants, rounds: int, unit: str) -> Result:
    progress(f"encryption: {name}")
    in_turn(contestants, 1)
    found = in_turn(contestants, rounds)
    result = Result(f"encryption, {name}", what)
    about = {PLAIN: "no key", ENCRYPTED: "AES and HMAC, by the library"}
    for each, series in found.items():
        result.row(each, about[each], **{f"µs_{unit}".replace(" ", "_"): scaled(series, 1e6)})
    result.figure("encrypted / plain", ratios(found[ENCRYPTED], found[PLAIN]))
    return result
