"""Stores that a part looks at several times: each is made once, by a process of its own, and verified."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from benchmarks.method.usage import parts
from benchmarks.peers.contract import Store
from benchmarks.peers.registry import BARE, FILE, FILE2, OURS, OURS_UNSYNCED, Peer, open_database, open_store

LOOKED_AT = 10_000
"""Records of a store that are compared with what was stored."""


def some(peers: Sequence[Peer], few: bool) -> list[Peer]:
    """Return those who take part: all of these, or only a few, to try a benchmark out."""
    return [peer for peer in peers if not few or peer in (OURS, OURS_UNSYNCED, FILE, FILE2, BARE)]


def apart(work: Callable[[], object]) -> None:
    """Do something in a process of its own, which begins as this one is now: here, nothing is left of it.

    Call it before there are threads, as each fork.

    Raises:
        RuntimeError: it failed; its traceback is on the standard error.
    """
    pid = forked(work)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a process of the benchmark failed: see above")


def forked(work: Callable[[], object]) -> int:
    """Begin to do something in a process that begins as this one is now; return its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def filled(peer: str, path: Path, count: int) -> None:
    """Leave a closed store of so many `records`, if there is nothing yet."""
    if not parts(path):
        apart(lambda: _fill(peer, path, count))


def built(peer: str, path: Path, count: int) -> None:
    """Leave a closed database of so many objects, as `building.build` makes them, if there is nothing yet."""
    if not parts(path):
        apart(lambda: _build(peer, path, count))


def _fill(peer: str, path: Path, count: int) -> None:
    from benchmarks.objects.records import batches

    store = open_store(peer, path)
    store.fill(batches(count))
    store.close()
    store = open_store(peer, path)
    verify(store, peer, items(count, LOOKED_AT))
    store.close()


def _build(peer: str, path: Path, count: int) -> None:
    from benchmarks.work.building import build

    database = open_database(peer, path)
    build(database, count)
    database.close()


def items(count: int, number: int, seed: int = 0) -> list[int]:
    """Return so many random items, all different, of `count` objects; fewer where there are not so many."""
    from benchmarks.objects.records import is_item

    found = [each for each in range(count) if is_item(each)]
    return Random(seed).sample(found, min(number, len(found)))


def verify(store: Store, peer: str, numbers: list[int]) -> None:
    """Have these items loaded, which nobody changed.

    Raises:
        AssertionError: one of them is not what was stored.
    """
    from benchmarks.objects.records import record
    from berkeleydb_storage.format import pack_uint64

    for number in numbers:
        if store.load(pack_uint64(number)) != record(number):
            raise AssertionError(f"{peer} does not give back object {number} as it was stored")
