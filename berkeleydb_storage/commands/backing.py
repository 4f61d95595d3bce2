"""The command that makes a backup of a storage that nobody uses."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from berkeleydb_storage.commands.command import Command, add_directory
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.errors import BackupError, StorageInUse
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.storage import BerkeleyDBStorage


def _backup(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "there is nothing of this backup, and those that were there are; to start again, run it again"
    with _opened(arguments) as storage, console.progress(unit="bytes") as progress:
        Path(arguments.target).mkdir(parents=True, exist_ok=True)
        tables = (Path(arguments.directory) / (name + TABLE_SUFFIX) for name in TABLES)
        progress.totals.update(copying=sum(table.stat().st_size for table in tables))
        made = storage.backup(arguments.target, progress)
    values = {"directory": arguments.directory, **asdict(made), "path": str(made.path)}
    when = datetime.fromtimestamp(made.time).isoformat(" ", "seconds")
    console.result(
        values,
        f"backed up {arguments.directory} as of {when} to {made.path}: {made.objects:,} objects, {made.bytes:,} bytes "
        f"in {made.seconds:.1f} s",
    )
    return 0


def _opened(arguments: argparse.Namespace) -> BerkeleyDBStorage:
    try:
        return BerkeleyDBStorage(arguments.directory, cachesize=arguments.cachesize, garbage_collection=GarbageManual())
    except StorageInUse as error:
        raise BackupError(
            f"{arguments.directory} is in use by process {error.pid or '(unknown)'}, and only who has it open can back "
            "it up: there, call backup() of the storage, or give it the option backup=Every(seconds, to, keep)"
        ) from error


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("target", metavar="TARGET", help="where the backups are, each in a directory; made if missing")


BACKUP = Command(
    "backup",
    "make a backup: a whole copy in a new directory below TARGET",
    "Its name is the time (UTC) and the newest transaction in it. It is a storage itself: to restore it, copy its "
    "directory to where it is to be used. The storage must not be in use: who has it open makes the backups, while "
    "commits go on. Killed, it leaves nothing that looks like a backup; the next one removes what is left.",
    "durus-bdb backup db /backups/db",
    _backup_arguments,
    _backup,
)
