"""The commands that make backups, and list and remove them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from berkeleydb_storage.backup.making import Backup, back_up
from berkeleydb_storage.backup.pruning import prune
from berkeleydb_storage.backup.recalling import list_backups, select
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.commands.command import Command, add_directory, key_of
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.commands.places import add_options, add_place, place, store_options
from berkeleydb_storage.control.access import open_source
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.errors import BackupError, OptionError, OwnerGone, StorageClosed
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.progress import Progress

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times that a backup is begun, where the process that has the storage open ends in the middle."""

PERIODS = ("last", "hourly", "daily", "weekly", "monthly")


def _backup(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "there is nothing of this backup, and those that were there are; to start again, run it again"
    keep = _keep(arguments)
    repository = Repository(place(arguments, create=True))
    with console.progress(unit="bytes") as progress:
        made = _made(arguments, repository, progress)
        removed = 0 if keep is None else prune(repository, made.identity, keep)
    console.result(
        {"directory": arguments.directory, **asdict(made), "removed": removed},
        f"backed up {arguments.directory} as of {_when(made)}, transaction {made.tid}, to {made.where}: {made.kind}, "
        f"{made.bytes:,} bytes in {made.seconds:.1f} s",
    )
    return 0


def _made(arguments: argparse.Namespace, repository: Repository, progress: Progress) -> Backup:
    """Make a backup; begin anew where who had the storage open closes it, or is killed, in the middle."""
    for left in reversed(range(ATTEMPTS)):
        with suppress(OSError):
            tables = (Path(arguments.directory) / (name + TABLE_SUFFIX) for name in TABLES)
            progress.totals.update(copying=sum(table.stat().st_size for table in tables))
        try:
            with open_source(arguments.directory, key=key_of(arguments), cachesize=arguments.cachesize) as source:
                return back_up(source, repository, progress, full=arguments.full)
        except (OwnerGone, StorageClosed) as error:
            if not left:
                raise
            logger.warning("%s; it begins anew", error)
    raise AssertionError("it returned, or raised")


def _keep(arguments: argparse.Namespace) -> Keep | None:
    """Return what is to be kept; None where nothing is said."""
    given = {name: value for name in PERIODS if (value := getattr(arguments, f"keep_{name}")) is not None}
    if arguments.keep_days is not None:
        given["within"] = arguments.keep_days * 86400.0
    return Keep(**given) if given else None


def _when(made: Backup) -> str:
    return datetime.fromtimestamp(made.time).isoformat(" ", "seconds")


def _add_keep(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what stays of the backups of this storage; if nothing is said, all")
    group.add_argument("--keep-last", type=int, metavar="N", help="the newest N")
    for name in PERIODS[1:]:
        what = {"hourly": "hours", "daily": "days", "weekly": "weeks", "monthly": "months"}[name]
        group.add_argument(f"--keep-{name}", type=int, metavar="N", help=f"the newest of each of the last N {what}")
    group.add_argument("--keep-days", type=float, metavar="DAYS", help="all, and every commit, of the last DAYS days")


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    add_place(parser, "where the backups are, a directory, made if missing, or a URL")
    parser.add_argument("--full", action="store_true", help="copy everything again, not only what is new")
    add_options(parser)
    _add_keep(parser)


def _backups(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "what was to stay is there; to go on, run it again"
    keep = _keep(arguments)
    repository = Repository(place(arguments))
    removed = 0
    if keep is not None:
        base = select(repository.bases(), arguments.of, repository.store.url)[-1]
        removed = prune(repository, base.identity, keep)
    elif arguments.of is not None:
        raise OptionError("--of says whose backups --keep-… is about: give one of those, too")
    found = list_backups(arguments.place, options=store_options(arguments))
    values = {"where": repository.store.url, "removed": removed, "backups": [asdict(backup) for backup in found]}
    console.result(values, "\n".join(_lines(found, removed)), essential=True)
    return 0


def _lines(found: Sequence[Backup], removed: int) -> list[str]:
    if not found:
        return ["no backups"]
    head = f"{'state of':19}  {'transaction':>11}  {'kind':11}  {'bytes':>15}  storage"
    rows = [f"{_when(b)}  {b.tid:>11}  {b.kind:11}  {b.bytes:>15,}  {b.storage}" for b in found]
    return [head, *rows, *([f"{removed} objects removed"] if removed else [])]


def _backups_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser, "where the backups are, a directory or a URL")
    parser.add_argument("--of", metavar="STORAGE", help="the path, or identity, of the storage that --keep-… is about")
    add_options(parser)
    _add_keep(parser)


def _release(arguments: argparse.Namespace, console: Console) -> int:
    with open_source(arguments.directory, key=key_of(arguments), cachesize=arguments.cachesize) as source:
        position = source.held(arguments.holder)
        if position is None:
            raise BackupError(
                f"{arguments.directory} keeps no log for {arguments.holder!r}: `durus-bdb stat {arguments.directory}` "
                "shows for whom it does"
            )
        source.release(arguments.holder)
    console.result(
        {"directory": arguments.directory, "holder": arguments.holder, "log": position.log, "offset": position.offset},
        f"{arguments.directory} keeps no log for {arguments.holder} any more; the next checkpoint removes it",
    )
    return 0


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("holder", metavar="HOLDER", help='as `stat` shows it, such as "backup to /backups/db"')


BACKUP = Command(
    "backup",
    "make a backup: of everything the first time, then of what is new",
    "The storage may be in use: who has it open is asked for what is in it, while commits go on. Every commit that was "
    "acknowledged before is in the backup. PLACE must be outside of DIRECTORY, better on another disk; several "
    "storages may share it. Killed at any point, it leaves what was there before.",
    "durus-bdb backup db /backups/db --keep-daily 14 --keep-weekly 8",
    _backup_arguments,
    _backup,
)
BACKUPS = Command(
    "backups",
    "list the backups in a place, and remove old ones",
    "What has to stay for others to be restored stays.",
    "durus-bdb backups /backups/db",
    _backups_arguments,
    _backups,
)
RELEASE = Command(
    "release",
    "keep no log any more for a backup or an archive that will not come back",
    "The log after a backup is kept for the next one to the same place. Where there will be none, it is kept for "
    "nothing, until it has more bytes than the storage. If there is one after all, it copies everything.",
    'durus-bdb release db "backup to /backups/db"',
    _release_arguments,
    _release,
)
