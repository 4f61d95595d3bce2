"""The commands that make a storage smaller: pack and compact."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from berkeleydb_storage.commands.command import Command, add_directory, key_of
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.garbage.requests import Packing
from berkeleydb_storage.progress import Progress, rate_text
from berkeleydb_storage.storage import BerkeleyDBStorage

ALONE = 0.1
"""Seconds that a step of `compact` may take: nobody else uses the storage."""


def _pack(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = (
        "what was deleted is gone, and a deletion that has begun goes on when the storage is opened or packed again; "
        "to go on, run the same command"
    )
    with BerkeleyDBStorage(
        arguments.directory,
        cachesize=arguments.cachesize,
        garbage_collection=GarbageManual(),
        key=key_of(arguments),
    ) as storage:
        started = time.monotonic()
        with console.progress() as progress:
            storage.pack(lambda packing: _show(packing, progress))
        seconds = time.monotonic() - started
        collected, left = storage.statistics().collected, storage.get_size()
    values = {
        "directory": arguments.directory,
        "collected": collected.objects,
        "bytes": collected.bytes,
        "objects": left,
        "seconds": round(seconds, 3),
    }
    console.result(
        values,
        f"packed {arguments.directory}: {collected.objects:,} objects of {collected.bytes:,} bytes deleted in "
        f"{seconds:.1f} s ({rate_text(collected.objects, seconds)}), {left:,} left",
    )
    return 0


def _show(packing: Packing, progress: Progress) -> None:
    if packing.total is not None:
        progress.totals[packing.activity] = packing.total
    progress(packing.activity, packing.done)


def _compact(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "what was given back is; to go on, run the same command"
    with BerkeleyDBStorage(
        arguments.directory,
        cachesize=arguments.cachesize,
        garbage_collection=GarbageManual(),
        key=key_of(arguments),
    ) as storage:
        before, started = _bytes(arguments.directory), time.monotonic()
        with console.progress(unit="pages given back") as progress:
            storage.compact(progress, hold=ALONE)
        seconds, after = time.monotonic() - started, _bytes(arguments.directory)
    values = {"directory": arguments.directory, "before": before, "after": after, "seconds": round(seconds, 3)}
    console.result(
        values,
        f"compacted {arguments.directory}: {before:,} bytes before, {after:,} after, in {seconds:.1f} s",
    )
    return 0


def _bytes(directory: str) -> int:
    """Return the bytes of the tables."""
    return sum((Path(directory) / (name + TABLE_SUFFIX)).stat().st_size for name in TABLES)


PACK = Command(
    "pack",
    "delete all garbage now",
    "That is every object that the root does not reach, whatever its age, cycles too. Memory: about two bits an "
    "object. The room is used again for new objects; `compact` makes the files smaller. Interrupted or killed, it has "
    "lost nothing.",
    "durus-bdb pack db",
    add_directory,
    _pack,
)

COMPACT = Command(
    "compact",
    "give the room of deleted objects back to the file system",
    "Run `pack` before, if there is garbage. Nothing is lost when it is interrupted or killed. It needs some room "
    "itself, for the log: 32 MiB, or a tenth of a small file system, and 120 MB at most.",
    "durus-bdb compact db",
    add_directory,
    _compact,
)
