"""Deleting half of the objects by dropping the references to them, and collecting what that leaves."""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.method.caches import settle
from benchmarks.method.contest import Contender, against, contest, rows
from benchmarks.method.measure import Result, seconds
from benchmarks.method.usage import forget_highest, parts
from benchmarks.peers.contract import Database
from benchmarks.peers.registry import (
    FILE,
    FILE2,
    OURS,
    RELSTORAGE,
    SQLITE_STORAGE,
    ZODB_FILE,
    open_database,
    open_store,
)
from benchmarks.work.stores import built, some
from benchmarks.work.updating import logs, occupied

BY_ITSELF = replace(OURS, durability=f"{OURS.durability}; its thread collects, here without the grace of 60 s")
BY_PACK = replace(OURS, name="ours, pack", durability=f"{OURS.durability}; nothing is collected but by pack()")
PEERS = [BY_ITSELF, BY_PACK, FILE, FILE2, SQLITE_STORAGE, ZODB_FILE, RELSTORAGE]
DROP, COLLECT = "s to drop", "s until collected"
BEFORE, DROPPED, AFTER = "MB before", "MB when dropped", "MB after"
PATIENCE, WATCH = 300, 0.005
"""Seconds to wait for the thread, and from one look to the next."""
PIECE = 4096
"""Bytes of a block of a file."""
SEED = 5


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    objects: int
    rounds: int
    few: bool = False


SIZES = {"tiny": Sizes(1500, 1, few=True), "quick": Sizes(20_000, 1), "full": Sizes(100_000, 3)}


@dataclass
class Halves:
    """The oids of what is to stay, and of what is to go."""

    stays: list[bytes]
    goes: list[bytes]


def drop_half(database: Database) -> Halves:
    """Let each folder forget half of its items, chosen at random, a commit for each."""
    chance, halves = random.Random(SEED), Halves([], [])
    for first in sorted(database.root.keys()):
        folder = database.root[first]
        gone = set(chance.sample(range(len(folder.items)), len(folder.items) // 2))
        halves.stays.append(folder._p_oid)
        for n, item in enumerate(folder.items):
            (halves.goes if n in gone else halves.stays).append(item._p_oid)
        folder.items = [item for n, item in enumerate(folder.items) if n not in gone]
        database.commit()
    return halves


class Halving(Contender):
    """Begins with a database, drops half of it, and collects that."""

    def __init__(self, peer: str, path: str, objects: int) -> None:
        """Build it, if a round before has not."""
        super().__init__(peer, path)
        self._peer = OURS.name if peer in (BY_ITSELF.name, BY_PACK.name) else peer
        self._built = self.path.with_name("built")
        self._objects = objects
        built(self._peer, self._built, objects)

    def round(self) -> dict[str, float]:
        """Drop and collect."""
        self._copy()
        settle(self.path.parent)
        before = occupied(self.path)
        database = self._open()
        forget_highest()
        started = time.perf_counter()
        halves = drop_half(database)
        dropped = time.perf_counter()
        size = occupied(self.path)
        taken = self._until_collected(database, 1 + len(halves.stays)) - dropped
        database.close()
        self.verify(halves)
        after, kept = occupied(self.path), logs(self.path)
        return {DROP: dropped - started, COLLECT: taken, BEFORE: before, DROPPED: size, AFTER: after, **kept}

    def _copy(self) -> None:
        for part in parts(self.path):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        for part in parts(self._built):
            copy = self.path.with_name(part.name.replace(self._built.name, self.path.name, 1))
            shutil.copytree(part, copy, copy_function=copy_sparsely) if part.is_dir() else copy_sparsely(part, copy)

    def _open(self) -> Database:
        if self._peer != OURS.name:
            return open_database(self._peer, self.path)
        from benchmarks.peers.durus import DurusDatabase, ours
        from berkeleydb_storage import GarbageManual, GarbageThread

        policy = GarbageThread(grace=0) if self.peer == BY_ITSELF.name else GarbageManual()
        return DurusDatabase(ours(self.path, garbage_collection=policy))

    def _until_collected(self, database: Any, live: int) -> float:
        """Collect, or wait until it is done; return when that was."""
        if self.peer != BY_ITSELF.name:
            seconds(database.collect)
            return time.perf_counter()
        storage = database.connection.storage
        started = time.perf_counter()
        while (left := storage.statistics().objects - live) > 0:
            if time.perf_counter() - started > PATIENCE:
                raise AssertionError(f"{left} objects that were dropped are there after {PATIENCE} seconds")
            time.sleep(WATCH)
        return time.perf_counter()

    def verify(self, halves: Halves) -> None:
        """Look for what must be there, and for what must be gone.

        Raises:
            AssertionError: something is missing, or left.
        """
        with closing(open_store(self._peer, self.path)) as store:
            left = sum(_is_there(store, oid) for oid in halves.goes)
            missing = sum(not _is_there(store, oid) for oid in halves.stays)
        if left or missing or not halves.goes:
            raise AssertionError(f"{self.peer}: {left} of {len(halves.goes)} objects are left, {missing} missing")
        with closing(open_database(self._peer, self.path)) as database:
            items = import_module(f"benchmarks.objects.{database.toolkit}_classes").Item
            for folder in database.root.values():
                if not all(isinstance(item, items) and item.name == f"item {item.number}" for item in folder.items):
                    raise AssertionError(f"{self.peer}: a folder does not have what it had")


def copy_sparsely(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file; what is zeros takes no room in the copy, as the end of a log file that was made long at once."""
    with open(source, "rb") as old, open(target, "wb") as new:
        while piece := old.read(PIECE):
            new.seek(len(piece), os.SEEK_CUR) if piece.count(0) == len(piece) else new.write(piece)
        new.truncate()


def _is_there(store: Any, oid: bytes) -> bool:
    try:
        store.load(oid)
    except KeyError:
        return False
    return True


def halve(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare how long it takes, and what is left on the disk."""
    peers = [
        BY_ITSELF,
        BY_PACK,
        *(peer for peer in some(PEERS, sizes.few) if peer not in (BY_ITSELF, BY_PACK)),
    ]
    found = contest(Halving, peers, directory, [sizes.objects], sizes.rounds, warm=False, fresh=True)
    result = Result(
        "halve",
        f"{sizes.objects:,} small objects in folders of 1,000; each folder drops half of its items, chosen at random, "
        "a commit each. Then what is garbage is collected: by a pack with what else gives room back (ours: compact; "
        "sqlite3: VACUUM; Durus: its old file is removed), or by itself. MB in allocated blocks, after closing; what "
        "must be gone is, and the rest is there: verified.",
    )
    rows(result, peers, found)
    for peer in PEERS[2:]:
        result.figure(f"{COLLECT}, {peer.name} / {BY_PACK.name}", against(found, COLLECT, peer, BY_PACK))
    for peer in PEERS[2:]:
        result.figure(f"{AFTER}, {peer.name} / {BY_PACK.name}", against(found, AFTER, peer, BY_PACK))
    return [result]
