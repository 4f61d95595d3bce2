"""Figure 1: `load`, everything in memory, the background threads of the default policies running."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from durus.connection import Connection
from durus.file_storage import FileStorage

from benchmarks.method.measure import Result, in_turn, progress, ratios, scaled, seconds
from benchmarks.objects.records import build
from benchmarks.peers.bare import Bare
from benchmarks.peers.durus import BARE, FILE, OPENERS, OURS, ours

PACKED = "FileStorage, packed"


def _pass(load: Callable[[bytes], object], oids: Sequence[bytes]) -> Callable[[], float]:
    def run() -> None:
        for oid in oids:
            load(oid)

    return lambda: seconds(run) / len(oids)


def _built(directory: Path, count: int) -> None:
    """Leave the same objects in each of them, closed."""
    for name in (OURS, FILE, PACKED):
        opener = OPENERS[OURS if name == OURS else FILE]
        with closing(opener(directory / name)) as storage:
            build(Connection(storage), count)
            if name == PACKED:
                storage.pack()


def load(directory: Path, count: int, rounds: int) -> list[Result]:
    """Compare `load` in random order and in that of the oids."""
    progress(f"load: building {count:,} objects three times")
    _built(directory, count)
    with ExitStack() as stack:
        storage = stack.enter_context(closing(ours(directory / OURS)))
        plain = stack.enter_context(closing(FileStorage(str(directory / FILE))))
        packed = stack.enter_context(closing(FileStorage(str(directory / PACKED))))
        bare = stack.enter_context(closing(Bare(directory / BARE)))
        bare.fill(storage.gen_oid_record())
        oids = [oid for oid, _ in storage.gen_oid_record()]
        shuffled = random.Random(1).sample(oids, len(oids))
        average = sum(len(storage.load(oid)) for oid in oids) / len(oids)
        return [
            _compare("random order", shuffled, rounds, average, storage.load, plain.load, packed.load, bare),
            _compare("in order of oids", oids, rounds, average, storage.load, plain.load, packed.load, bare),
        ]


def _compare(
    order: str,
    oids: Sequence[bytes],
    rounds: int,
    average: float,
    load: Callable[[bytes], bytes],
    plain: Callable[[bytes], bytes],
    packed: Callable[[bytes], bytes],
    bare: Bare,
) -> Result:
    item = f"{BARE}, table[oid]"
    contestants = {
        FILE: _pass(plain, oids),
        PACKED: _pass(packed, oids),
        OURS: _pass(load, oids),
        BARE: _pass(bare.table.get, oids),
        item: _pass(bare.table.__getitem__, oids),
    }
    progress(f"load: {order}")
    in_turn(contestants, 1)  # warms caches
    found = in_turn(contestants, rounds)
    result = Result(
        f"load, {order}",
        f"storage.load(oid) of {len(oids):,} objects, {average:.0f} bytes each on average, built through Connection, "
        "closed and reopened; all in memory. Microseconds a record.",
    )
    about = {
        FILE: "as built: offsets in memory",
        PACKED: "after pack(): offsets in the file",
        OURS: "default policies, their threads running",
        BARE: "table.get(oid), same options, no locking",
        item: "the binding's fastest way to read",
    }
    for name, series in found.items():
        result.row(name, about[name], µs_a_record=scaled(series, 1e6))
    result.figure("FileStorage / ours", ratios(found[FILE], found[OURS]), least=2.0)
    result.figure("FileStorage packed / ours", ratios(found[PACKED], found[OURS]), least=2.0)
    result.figure("ours / bare Berkeley DB get", ratios(found[OURS], found[BARE]), most=1.4)
    result.figure("ours / bare Berkeley DB table[oid]", ratios(found[OURS], found[item]))
    if order != "random order":
        result.notes.append("as built, FileStorage has neighbours in one read buffer; few programs load in this order")
    return result
