"""The command salvage."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from berkeleydb_storage.commands.command import Command, add_directory, add_key, key_of
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.errors import StorageNotEmpty
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.options import TYPES
from berkeleydb_storage.progress import Progress, rate_text
from berkeleydb_storage.salvage import Report, Salvage, write_list
from berkeleydb_storage.storage import BerkeleyDBStorage

SHOWN = 10
"""Missing objects, and damaged pages, that the result in words names."""


def _salvage(arguments: argparse.Namespace, console: Console) -> int:
    started = time.monotonic()
    target = Path(arguments.new_directory)
    listed = target.with_name(target.name + ".missing.txt")
    _require_free(target, listed)
    console.advice = f"nothing was written to {arguments.directory}; to start again, run the same command"
    with (
        console.progress() as progress,
        Salvage(arguments.directory, key=key_of(arguments), progress=progress) as found,
    ):
        progress.totals.update(loading=found.report.objects, verifying=found.report.objects)
        garbage = _write(arguments, target, found, progress)
    report = found.report
    complete = report.complete
    if not complete:
        write_list(report, listed)
    seconds = time.monotonic() - started
    values = {"directory": arguments.directory, "new_directory": str(target), **asdict(report)}
    values |= {"unknown": report.unknown, "complete": complete, "garbage": garbage, "seconds": round(seconds, 3)}
    values["list"] = None if complete else str(listed)
    lines = [*_lines(report), f"{target}: {_written(report, seconds)}"]
    if not complete:
        lines.append(f"{listed}: every object that is missing or uncertain")
    console.result(values, "\n".join(lines), essential=not complete)
    return 0 if complete else 1


def _require_free(target: Path, listed: Path) -> None:
    """Refuse what is not to be overwritten before hours are spent on it."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not _is_empty(target):
        raise StorageNotEmpty(f"{target} is not empty: salvage into a new directory")
    if listed.exists():
        raise FileExistsError(17, "File exists: remove it, or choose another name", str(listed))


def _is_empty(target: Path) -> bool:
    """Tell whether it is a storage without objects, such as an interrupted salvage leaves."""
    if not (target / "storage.json").exists():
        return False
    with BerkeleyDBStorage(target, garbage_collection=GarbageManual()) as storage:
        return not storage.get_size()


def _write(arguments: argparse.Namespace, target: Path, found: Salvage, progress: Progress) -> int:
    """Fill the new storage, and return how many of its objects are garbage."""
    target.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"type": arguments.type or found.type, "cachesize": arguments.cachesize}
    key = key_of(arguments, "new-") or key_of(arguments)
    with BerkeleyDBStorage(target, key=key, garbage_collection=GarbageManual(), **options) as storage:
        storage.migrate(found.records(), progress)
        return storage.statistics().garbage


def _lines(report: Report) -> Iterator[str]:
    for name, pages in report.pages.items():
        yield f"damaged: {len(pages):,} pages of {name}: {_some(pages)}"
    for name in report.absent:
        yield f"absent: {name}"
    yield f"log: {report.log}"
    if report.transaction is not None and report.time is not None:
        when = datetime.fromtimestamp(report.time, timezone.utc)
        yield f"newest transaction known: {report.transaction:,}, of {when:%Y-%m-%d %H:%M:%S} UTC"
    if not report.up_to_date:
        yield "NOT UP TO DATE: commits after the last checkpoint may be missing, or be there in part"
    if report.root_lost:
        yield "missing: THE ROOT; the new one is a PersistentDict with the key 'lost+found'"
    if report.missing:
        yield f"missing: {len(report.missing):,} objects that others refer to: {_some(sorted(report.missing))}"
    if report.unknown:
        yield f"missing: {report.unknown:,} objects that nothing refers to that was found: their numbers are not known"
    if report.uncertain:
        yield f"uncertain: {len(report.uncertain):,} objects, which may be older than the last commit, or deleted"
    if report.lost_and_found is not None:
        yield (
            f"lost+found: object {report.lost_and_found:,}, a PersistentList of lists, has {report.adopted:,} objects "
            "whose referrers are missing"
        )


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return shown if len(numbers) <= SHOWN else f"{shown} and {len(numbers) - SHOWN:,} more"


def _written(report: Report, seconds: float) -> str:
    what = "nothing is missing" if report.complete else "opens, and what is missing raises DamagedError when it is used"
    return f"{report.objects:,} objects in {seconds:.1f} s ({rate_text(report.objects, seconds)}); {what}"


def _salvage_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser, "the damaged storage; it is not written to")
    parser.add_argument("new_directory", metavar="NEW-DIRECTORY", help="where to: empty, or created")
    parser.add_argument("--type", choices=TYPES, help="access method of the objects (default: as it was)")
    add_key(parser, "new-", "NEW-DIRECTORY, if not the same")


SALVAGE = Command(
    "salvage",
    "get what can be read out of a damaged storage",
    "Works on a directory that does not open, whatever is damaged or missing, but for objects.db. The "
    "log is applied to a copy in the temporary directory, if the storage was not closed. In "
    "NEW-DIRECTORY, each object that is missing has one in its place that raises DamagedError when it is "
    "used; NEW-DIRECTORY.missing.txt lists them. If you have a backup, restore that, and take from here "
    "what is newer. Exit code 1 if anything is missing.",
    "durus-bdb salvage damaged-db new-db",
    _salvage_arguments,
    _salvage,
)
