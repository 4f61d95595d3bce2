"""Figure 3: commits of one record, on the storage itself: begin, store, end."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count as counter
from pathlib import Path

from durus.storage import Storage

from benchmarks.method.measure import Result, in_turn, progress, ratios, scaled, seconds
from benchmarks.objects.records import fill, record, records
from benchmarks.peers.bare import Bare
from benchmarks.peers.durus import BARE, BUFFERS, FILE, FILE2, HANDS_OVER, NEVER_SYNCS, OPENERS, OURS, SYNCS, ours

OBJECTS = 10_000
"""Objects that are there, and of which one is chosen at random for each commit."""

Committer = Callable[[bytes, bytes], None]


def committer(storage: Storage) -> Committer:
    """Return what commits one record to a storage."""
    begin, store, end = storage.begin, storage.store, storage.end

    def commit(oid: bytes, changed: bytes) -> None:
        begin()
        store(oid, changed)
        end()

    return commit


def commits(commit: Committer, number: int) -> Callable[[], float]:
    """Return what times commits of `number` new versions of items, a different one each time."""
    chosen, versions = random.Random(2), counter(1)
    items = [n for n in range(OBJECTS) if n % 1000 > 1]

    def run() -> float:
        changes = [(n.to_bytes(8, "big"), record(n, next(versions))) for n in chosen.choices(items, k=number)]

        def work() -> None:
            for oid, changed in changes:
                commit(oid, changed)

        return seconds(work) / number

    return run


def commit(directory: Path, durable: int, unsynced: int, rounds: int) -> list[Result]:
    """Compare commits that are on the disk when they return, and those that are not."""
    with ExitStack() as stack:
        return [
            _durable(directory, durable, rounds, stack),
            _unsynced(directory, unsynced, rounds, stack),
        ]


def _filled(storage: Storage, stack: ExitStack) -> Committer:
    stack.enter_context(closing(storage))
    fill(storage, OBJECTS)
    return committer(storage)


def _bare(directory: Path, stack: ExitStack) -> Bare:
    bare = stack.enter_context(closing(Bare(directory)))
    bare.fill(records(OBJECTS))
    return bare


def _what(number: int) -> str:
    return (
        f"begin, store of one record of {len(record(1))} bytes, end; {number:,} of them, each a new version of one of "
        f"{OBJECTS:,} objects, chosen at random. Microseconds a commit."
    )


def _durable(directory: Path, number: int, rounds: int, stack: ExitStack) -> Result:
    about = {
        FILE2: SYNCS,
        OURS: f"the default, durable=True: {SYNCS}",
        BARE: f"put in a transaction: {SYNCS}",
    }
    contestants = {
        FILE2: commits(_filled(OPENERS[FILE2](directory / FILE2), stack), number),
        OURS: commits(_filled(ours(directory / OURS), stack), number),
        BARE: commits(_bare(directory / BARE, stack).commit, number),
    }
    progress("commit: durable")
    in_turn(contestants, 1)
    found = in_turn(contestants, rounds)
    result = Result("commit, durable", _what(number))
    for name, series in found.items():
        result.row(name, about[name], µs_a_commit=scaled(series, 1e6))
    result.figure("FileStorage2 / ours", ratios(found[FILE2], found[OURS]), least=1.2)
    result.figure("ours / bare Berkeley DB put and synced commit", ratios(found[OURS], found[BARE]), most=1.4)
    return result


def _unsynced(directory: Path, number: int, rounds: int, stack: ExitStack) -> Result:
    over, buffered = "ours, async_log_write=True", "ours, async_log_write=False"
    about = {
        FILE: NEVER_SYNCS,
        over: HANDS_OVER,
        buffered: BUFFERS,
        BARE: "put in a transaction: hands each commit to the system, never syncs",
    }
    contestants = {
        FILE: commits(_filled(OPENERS[FILE](directory / FILE), stack), number),
        over: commits(_filled(ours(directory / over, durable=False), stack), number),
        buffered: commits(_filled(ours(directory / buffered, durable=False, async_log_write=False), stack), number),
        BARE: commits(_bare(directory / "bare unsynced", stack).commit_unsynced, number),
    }
    progress("commit: not synced")
    in_turn(contestants, 1)
    found = in_turn(contestants, rounds)
    result = Result("commit, not synced", _what(number))
    for name, series in found.items():
        result.row(name, about[name], µs_a_commit=scaled(series, 1e6))
    result.figure("FileStorage / ours, async_log_write=True", ratios(found[FILE], found[over]), least=1.5)
    result.figure("FileStorage / ours, async_log_write=False", ratios(found[FILE], found[buffered]), least=1.5)
    result.figure("ours, async_log_write=True / bare Berkeley DB", ratios(found[over], found[BARE]))
    return result
