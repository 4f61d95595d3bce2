"""The commands that make a storage smaller: pack and compact."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from berkeleydb_storage.commands.command import Command, add_directory
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.progress import rate_text
from berkeleydb_storage.storage import BerkeleyDBStorage

ALONE = 0.1
"""Seconds that a step of `compact` may take: nobody else uses the storage."""


def _pack(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "what was deleted is gone; to go on, run the same command"
    with BerkeleyDBStorage(
        arguments.directory, cachesize=arguments.cachesize, garbage_collection=GarbageManual()
    ) as storage:
        started = time.monotonic()
        _collect(storage, console)
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


def _collect(storage: BerkeleyDBStorage, console: Console) -> None:
    """Run the packer to its end; it tells of a failure by a message, because it must not end a Durus server."""
    with console.progress() as progress:
        for message in storage.get_packer():
            if message is not None and message.startswith("stopped: "):
                raise BerkeleyDBStorageError(message.removeprefix("stopped: "))
            progress("collecting", storage.statistics().collected.objects)


def _compact(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "what was given back is; to go on, run the same command"
    with BerkeleyDBStorage(
        arguments.directory, cachesize=arguments.cachesize, garbage_collection=GarbageManual()
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
    "That is every object that nothing refers to, and what hangs on "
    "it, whatever its age. The room is used again for new objects; `compact` makes the files smaller.",
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
