"""How long backups and restores take, beside ``cp -a`` and beside the way of repozo on a FileStorage.

All contestants bring what they wrote to the disk before they are done. What is read is in the system's cache.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from durus.file_storage import FileStorage
from durus.serialize import pack_record

from benchmarks.method.measure import Result, Series, progress, ratios
from benchmarks.objects.records import FOLDER, records
from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual, list_backups, restore, verify_backups
from berkeleydb_storage.format import pack_uint64

DATA = 500
"""Bytes of data in a record."""
CHANGED = 100
"""One of so many records is changed."""
COMMIT = 100
"""Records of a commit that changes them."""
CHUNK = 1 << 18
MEGABYTE = 1_000_000

OURS, CP, REPOZO = "ours", "cp -a", "repozo's way"
ABOUT = {
    OURS: "open and in use, pages and files verified; synced",
    CP: "the closed directory; each file synced",
    REPOZO: "a FileStorage of the same records, open; SHA-256 of what is copied; synced",
}


def _records(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the objects of `records`, with more data."""
    for oid, record in records(count):
        yield oid, _record(oid, 0) if len(record) < DATA else record


def _record(oid: bytes, version: int) -> bytes:
    return pack_record(oid, hashlib.shake_128(b"%s%d" % (oid, version)).digest(DATA), b"")


def copies(directory: Path, megabytes: int, rounds: int) -> list[Result]:
    """Back up and restore so many MB of records."""
    copying = _Copying(directory, max(2 * FOLDER, megabytes * MEGABYTE // DATA))
    for turn in range(rounds):
        progress(f"backup: {megabytes:,} MB, round {turn + 1} of {rounds}")
        copying.round()
    return [copying.result(megabytes)]


class _Copying:
    """A storage, a FileStorage with the same objects, and what was measured."""

    def __init__(self, directory: Path, count: int) -> None:
        self._ours, self._file = directory / "storage", directory / "file"
        self._scratch = directory / "scratch"
        self._count = count
        self._version = 0
        self._found: dict[str, dict[str, Series]] = {}
        self._ours.mkdir(parents=True)
        progress(f"backup: building {count:,} objects, twice")
        with BerkeleyDBStorage(self._ours, durable=False) as storage:
            storage.migrate(_records(count))
        with closing(FileStorage(str(self._file))) as file:
            file.begin()
            for number, (_, record) in enumerate(_records(count), 1):
                file.store(file.new_oid(), record)
                if number % FOLDER == 0:
                    file.end()
                    file.begin()
            file.end()

    def round(self) -> None:
        """Do everything once."""
        for name in ("backups", "closed", "repozo"):
            (self._scratch / name).mkdir(parents=True)
        os.sync()
        backups, closed, repozo = (self._scratch / name for name in ("backups", "closed", "repozo"))
        self._measure(f"full, {CP}", CP, lambda: _copy_directory(self._ours, closed))
        options = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
        with BerkeleyDBStorage(self._ours, **options) as storage:
            self._measure(f"full, {OURS}", OURS, lambda: storage.backup(backups).bytes)
            size = self._file.stat().st_size
            self._measure(f"full, {REPOZO}", REPOZO, lambda: _copy_range(self._file, repozo / "1", 0, size))
            commits = self._change(storage)
            self._measure(f"incremental, {OURS}", OURS, lambda: storage.backup(backups).bytes)
            more = self._file.stat().st_size
            self._measure(f"incremental, {REPOZO}", REPOZO, lambda: _copy_range(self._file, repozo / "2", size, more))
        first, last = (backup.tid for backup in list_backups(backups))
        if last != first + commits:
            raise AssertionError(f"{commits} commits are not those between {first} and {last}")
        self._measure(f"restore, {CP}", CP, lambda: _copy_directory(closed, self._scratch / "cp"))
        self._measure(f"restore, {OURS}", OURS, lambda: self._restore(backups, "restored", last))
        self._measure(f"restore, {REPOZO}", REPOZO, lambda: _join(self._scratch / "file", repozo / "1", repozo / "2"))
        self._measure(
            f"restore to a commit, {OURS}", OURS, lambda: self._restore(backups, "middle", last, first + commits // 2)
        )
        self._measure(f"verify, {OURS}", OURS, lambda: _verify(backups, self._scratch))
        shutil.rmtree(self._scratch)

    def _measure(self, row: str, about: str, work: Callable[[], int]) -> None:
        """Measure one step; it returns how many bytes it wrote or read."""
        started = time.perf_counter()
        size = work()
        taken = time.perf_counter() - started
        found = self._found.setdefault(row, {"seconds": [], "MB": [], "MB/s": []})
        found["seconds"].append(taken)
        found["MB"].append(size / MEGABYTE)
        found["MB/s"].append(size / MEGABYTE / taken)
        os.sync()

    def _change(self, storage: BerkeleyDBStorage) -> int:
        """Change a share of all records, in both storages; return in how many commits."""
        self._version += 1
        chosen = random.Random(self._version).sample(range(2, self._count, 3), self._count // CHANGED)
        oids = [pack_uint64(number) for number in chosen if number % FOLDER > 1]
        with closing(FileStorage(str(self._file))) as file:
            for first in range(0, len(oids), COMMIT):
                for each in (storage, file):
                    each.begin()
                    for oid in oids[first : first + COMMIT]:
                        each.store(oid, _record(oid, self._version))
                    each.end()
        return len(range(0, len(oids), COMMIT))

    def _restore(self, backups: Path, name: str, last: int, to: int | None = None) -> int:
        done = restore(backups, self._scratch / name, to_commit=to)
        if (done.tid, done.objects) != (last if to is None else to, self._count):
            raise AssertionError(f"{done} is not what was backed up")
        return done.bytes

    def result(self, megabytes: int) -> Result:
        """Return what was found."""
        result = Result(
            "backup, times and sizes",
            f"{self._count:,} records of {DATA} bytes, {megabytes:,} MB; then one of {CHANGED} is changed, at random, "
            f"in commits of {COMMIT}. A restore applies that; to a commit: half of it. verify: reads everything, "
            "restores it, and checks each object. All that is written is synced, by each of them. MB: copied.",
        )
        for row, columns in self._found.items():
            contestant = next(name for name in ABOUT if row.endswith(f", {name}"))
            result.row(row, ABOUT[contestant], **columns)
        seconds = {row: columns["seconds"] for row, columns in self._found.items()}
        size = {row: columns["MB"] for row, columns in self._found.items()}
        for what in ("full", "restore"):
            mine = seconds[f"{what}, {OURS}"]
            result.figure(f"time of {what}, {OURS} / {CP}", ratios(mine, seconds[f"{what}, {CP}"]), most=3.0)
            result.figure(f"time of {what}, {OURS} / {REPOZO}", ratios(mine, seconds[f"{what}, {REPOZO}"]))
        for what, found in (("time", seconds), ("bytes", size)):
            mine, theirs = found[f"incremental, {OURS}"], found[f"incremental, {REPOZO}"]
            result.figure(f"{what} of incremental, {OURS} / {REPOZO}", ratios(mine, theirs))
            result.figure(f"{what} of {OURS}, incremental / full", ratios(mine, found[f"full, {OURS}"]))
        return result


def _copy_directory(source: Path, target: Path) -> int:
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
    for path in (*target.iterdir(), target):
        _sync(path)
    return sum(path.stat().st_size for path in target.iterdir())


def _copy_range(source: Path, target: Path, start: int, end: int) -> int:
    hashed = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as copy:
        file.seek(start)
        while data := file.read(min(CHUNK, end - file.tell())):
            hashed.update(data)
            copy.write(data)
    target.with_suffix(".sha256").write_text(hashed.hexdigest())
    for path in (target, target.with_suffix(".sha256"), target.parent):
        _sync(path)
    return end - start


def _join(target: Path, *parts: Path) -> int:
    with target.open("wb") as joined:
        for part in parts:
            hashed = hashlib.sha256()
            with part.open("rb") as file:
                while data := file.read(CHUNK):
                    hashed.update(data)
                    joined.write(data)
            if hashed.hexdigest() != part.with_suffix(".sha256").read_text():
                raise AssertionError(f"{part} is damaged")
    _sync(target)
    _sync(target.parent)
    return target.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(backups: Path, scratch: Path) -> int:
    found = verify_backups(backups, scratch=scratch)
    if not found.sound:
        raise AssertionError(f"{found} is not sound")
    return found.bytes
