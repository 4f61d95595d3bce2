"""The command pack."""

from __future__ import annotations

import argparse
import time

from berkeleydb_storage.commands.command import Command, add_directory
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.progress import rate_text
from berkeleydb_storage.storage import BerkeleyDBStorage


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


PACK = Command(
    "pack",
    "delete all garbage now",
    "That is every object that nothing refers to, and what hangs on "
    "it, whatever its age. The room is used again for new objects; the files do not shrink.",
    "durus-bdb pack db",
    add_directory,
    _pack,
)
