"""Commands that look at a storage: check, stat, census."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from berkeleydb_storage import inspection
from berkeleydb_storage.backup.archive import Archived
from berkeleydb_storage.check import Fault, check_pages
from berkeleydb_storage.commands.command import Command, add_directory, add_key, key_of
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.directory import CLOSED, CREATING, Directory
from berkeleydb_storage.environment import LOG_FILE_SIZE
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.figures import Inside
from berkeleydb_storage.files import Position
from berkeleydb_storage.holding import Held
from berkeleydb_storage.inspection import ClassCount, FileSize, Outside
from berkeleydb_storage.progress import Progress
from berkeleydb_storage.storage import BerkeleyDBStorage


class _Findings:
    """What a check has found so far."""

    def __init__(self) -> None:
        self.objects = self.references = self.garbage = 0
        self.faults: list[Fault] = []
        self.count = self.unrepairable = 0
        self.repaired: list[Fault] = []
        self.repaired_count = 0
        self.pages = False

    def add(self, faults: list[Fault]) -> None:
        """Note faults that cannot be repaired."""
        self.faults += faults
        self.count += len(faults)
        self.unrepairable += len(faults)

    def look_inside(self, storage: BerkeleyDBStorage, repair: bool, progress: Progress) -> None:
        """Check what an open storage holds; what was repaired is checked again."""
        report = storage.check(repair=repair, progress=progress)
        if report.repaired:
            self.repaired = [fault for fault in report.faults if fault.repairable]
            self.repaired_count = report.found - report.unrepairable
            report = storage.check(progress=progress)
        self.objects, self.references, self.garbage = report.objects, report.references, report.garbage
        self.faults += report.faults
        self.count += report.found
        self.unrepairable += report.unrepairable

    def look_at_files(self, path: str, key: str | None, progress: Progress) -> None:
        """Check the pages of a storage that is closed, and stays so meanwhile; those of a damaged one as they are."""
        with _locked(path) as directory:
            description = directory.read()
            if description is None or not (description.state == CLOSED or self.count):
                return
            directory.verify_key(description, key)
            with suppress(FileNotFoundError):  # opening it names what is missing
                self.add(check_pages(directory.path, progress, key=key))
                self.pages = True


@contextmanager
def _locked(path: str) -> Iterator[Directory]:
    directory = Directory(path)
    directory.acquire(read_only=True)
    try:
        yield directory
    finally:
        directory.release()


def _check(arguments: argparse.Namespace, console: Console) -> int:
    found, started, key = _Findings(), time.monotonic(), key_of(arguments)
    with console.progress() as progress:
        if arguments.pages:
            found.look_at_files(arguments.directory, key, progress)
        if not found.count:
            _check_inside(arguments, key, found, progress)
        if arguments.pages and not found.pages:
            found.look_at_files(arguments.directory, key, progress)
    _report(arguments, console, found, time.monotonic() - started)
    return 1 if found.count else 0


def _check_inside(arguments: argparse.Namespace, key: str | None, found: _Findings, progress: Progress) -> None:
    """Check what the files hold, if they are whole: in a page of zeros the library would search forever."""
    try:
        with inspection.open_gently(
            arguments.directory,
            read_only=arguments.read_only,
            cachesize=arguments.cachesize,
            repair=arguments.repair,
            key=key,
        ) as storage:
            progress.totals["objects"] = storage.get_size()
            found.look_inside(storage, arguments.repair, progress)
    except DamagedError as error:
        found.add([Fault("page", str(error), repairable=False)])


def _report(arguments: argparse.Namespace, console: Console, found: _Findings, seconds: float) -> None:
    values = {
        "directory": arguments.directory,
        "sound": not found.count,
        "objects": found.objects,
        "references": found.references,
        "garbage": found.garbage,
        "pages": found.pages,
        "seconds": round(seconds, 3),
        "found": found.count,
        "faults": [asdict(fault) for fault in found.faults],
        "repaired": [asdict(fault) for fault in found.repaired],
    }
    lines = [
        *_fault_lines("repaired", found.repaired, found.repaired_count),
        *_fault_lines("fault", found.faults, found.count),
        f"{arguments.directory}: {_verdict(found)}, in {seconds:.1f} s",
    ]
    console.result(values, "\n".join(lines), essential=bool(found.count or found.repaired_count))


def _fault_lines(what: str, faults: Sequence[Fault], count: int) -> Iterator[str]:
    for fault in faults:
        yield f"{what}: {fault.kind}: {fault.message}"
    if count > len(faults):
        yield f"{what}: and {count - len(faults):,} more, which are not listed"


def _verdict(found: _Findings) -> str:
    pages = "every page" if found.pages else "the pages not looked at one by one"
    if not found.count:
        return f"sound; {found.objects:,} objects, {found.garbage:,} of them garbage, {pages}"
    mendable = found.count - found.unrepairable
    advice = f"{mendable:,} of which --repair mends" if mendable else "none of which can be repaired: restore a backup"
    return f"{found.count:,} faults, {advice}"


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("--repair", action="store_true", help="rebuild counts, queues and totals where they are wrong")
    parser.add_argument("--read-only", action="store_true", help="never write: what crashed is checked in a copy")
    parser.add_argument(
        "--pages",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify the checksum of every page of the closed files, about 100 MB/s (default: yes)",
    )


CHECK = Command(
    "check",
    "verify everything in a storage",
    "Pages, records, references, counts, queues and "
    "totals. Every fault is printed. A storage that was not closed is recovered first, in place. "
    "Exit code: 0 sound, 1 faults, 2 it could not be checked.",
    "durus-bdb check db --repair",
    _check_arguments,
    _check,
)


def _stat(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.outside:
        outside, inside = inspection.outside(arguments.directory), None
    else:
        outside, inside = inspection.stat(arguments.directory, key=key_of(arguments))
    values = {**asdict(outside), "disk": outside.disk, "inside": None}
    if inside is not None:
        values["inside"] = {**asdict(inside), "cache_hit_rate": inside.cache_hit_rate}
        del values["inside"]["holds"]
        values["inside"]["packing"] = inside.packing and inside.packing._asdict()
    console.result(values, "\n".join(_stat_lines(outside, inside)), essential=True)
    return 0


def _stat_lines(outside: Outside, inside: Inside | None) -> Iterator[str]:
    encrypted = ", encrypted" if outside.encrypted else ""
    written = f"{outside.type}, format {outside.format}{encrypted}, Berkeley DB {outside.library}"
    yield f"{outside.path}: {written}, {_state(outside)}"
    if inside is None:
        yield "what it holds is not known without opening it"
    else:
        yield from _inside_lines(inside)
        yield f"cache          {_cache(inside)} since it was opened{'' if outside.pid else ', for this'}"
        if outside.pid:
            yield from _live_lines(inside)
    yield _log_line(outside)
    end = None if inside is None else inside.end
    yield from (_hold_line(held, end) for held in outside.holds)
    yield from _file_lines((*outside.tables, *outside.logs))


def _state(outside: Outside) -> str:
    if outside.pid is not None:
        return f"in use by process {outside.pid}"
    if outside.state == CLOSED:
        return "closed"
    return "being created" if outside.state == CREATING else "not closed: in use, or to be recovered when it is opened"


def _inside_lines(inside: Inside) -> Iterator[str]:
    waiting = "" if inside.garbage_age is None else f", the oldest for {inside.garbage_age:,.0f} s"
    doomed = f"; {inside.doomed:,} more are being deleted together" if inside.doomed else ""
    when = _when(inside.last_transaction)
    yield f"objects        {inside.objects:,}"
    yield f"garbage        {inside.garbage:,} waiting{waiting}{doomed}"
    yield f"suspects       {inside.suspects:,}{_of_suspects(inside)}"
    yield f"searched       {'never' if inside.last_search is None else f'last at {_when(inside.last_search)}'}"
    yield f"packed         {_last_pack(inside.last_pack)}"
    yield f"transactions   {inside.transactions:,}, the last at {when}"


def _cache(inside: Inside) -> str:
    rate = "" if inside.cache_hit_rate is None else f" ({inside.cache_hit_rate:.1%})"
    return f"{inside.cache_hits:,} hits of {inside.cache_hits + inside.cache_misses:,}{rate}"


def _live_lines(inside: Inside) -> Iterator[str]:
    """Yield what only the process knows that has it open."""
    yield f"collected      {inside.collected:,} objects, {inside.collected_bytes:,} bytes since it was opened"
    if inside.archive is not None:
        yield f"archive        {_archive(inside.archive)}"
    if inside.packing is not None:
        activity, done, total = inside.packing
        yield f"packing        {activity}: {done:,}{'' if total is None else f' of about {total:,}'}"
    log = f"{inside.log_since_checkpoint:,} bytes of log since the last"
    yield f"checkpoints    {inside.checkpoints:,} since it was opened; {log}"


def _archive(archive: Archived) -> str:
    """Return how far an archive is."""
    newest = "nothing is there yet" if archive.time is None else f"all up to {_when(archive.time)} is there"
    behind = f", {archive.behind_seconds:,.1f} s behind" if archive.behind_seconds else ""
    copying = "" if archive.copying is None else f"; everything is copied, {archive.copying:,} bytes so far"
    failing = f"; it fails: {archive.failing}" if archive.failing else ""
    return f"{archive.url}: {newest}{behind}{copying}{failing}"


def _last_pack(seconds: float | None) -> str:
    return "not known" if seconds is None else f"completely at {_when(seconds)}, or else created or upgraded then"


def _of_suspects(inside: Inside) -> str:
    """Return what is known of the suspects."""
    if not inside.suspects:
        return ""
    if inside.suspects_waiting is None or inside.suspects_unsettled is None:
        return ", too many to tell what is known of them"
    known = inside.suspects - inside.suspects_waiting - inside.suspects_unsettled
    return (
        f": {inside.suspects_waiting:,} to be looked at, {inside.suspects_unsettled:,} left to a full pack, "
        f"{known:,} found alive"
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


def _log_line(outside: Outside) -> str:
    size = sum(file.disk for file in outside.logs)
    needed = "nothing to recover" if outside.state == CLOSED else "what a recovery would read is in them"
    files = f"{len(outside.logs):,} file{'' if len(outside.logs) == 1 else 's'}"
    return f"log            {files}, {size / 1e6:,.1f} MB; {needed}"


def _hold_line(held: Held, end: Position | None) -> str:
    size = f"{held.bytes / 1e6:,.1f} of at most {held.limit / 1e6:,.1f} MB"
    behind = "" if end is None else f", {_behind(held, end) / 1e6:,.1f} MB behind"
    since = f"from {held.log}/{held.offset} since {_when(held.since)}{behind}"
    return f"held           {size} of log, {since}, for {held.holder}"


def _behind(held: Held, end: Position) -> int:
    return max(0, (end.log - held.log) * LOG_FILE_SIZE + end.offset - held.offset)


def _file_lines(sizes: Sequence[FileSize]) -> Iterator[str]:
    yield f"{'file':<15}{'bytes':>18}{'on disk':>18}"
    for size in sizes:
        yield f"{size.name:<15}{size.bytes:>18,}{size.disk:>18,}"
    yield f"{'':<15}{sum(size.bytes for size in sizes):>18,}{sum(size.disk for size in sizes):>18,}"


def _stat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIRECTORY", help="the directory of the storage")
    add_key(parser)
    parser.add_argument("--outside", action="store_true", help="do not open it: only what its files tell")


STAT = Command(
    "stat",
    "show size, cache, log, garbage and files of a storage",
    "Nothing is written "
    "to DIRECTORY. When another process has it open, that one is asked; where it does not answer, what the files tell "
    "is shown. One that was not "
    "closed is copied into the temporary directory and recovered there, unless --outside is given.",
    "durus-bdb stat db",
    _stat_arguments,
    _stat,
)


def _census(arguments: argparse.Namespace, console: Console) -> int:
    with (
        BerkeleyDBStorage(
            arguments.directory, read_only=True, cachesize=arguments.cachesize, key=key_of(arguments)
        ) as storage,
        console.progress(counting=storage.get_size()) as progress,
    ):
        counts = inspection.census(storage, progress)
    if arguments.by != "bytes":
        counts.sort(key=lambda line: line.name if arguments.by == "class" else -line.objects)
    values: dict[str, Any] = {
        "directory": arguments.directory,
        "objects": sum(line.objects for line in counts),
        "bytes": sum(line.bytes for line in counts),
        "classes": [{"class": line.name, "objects": line.objects, "bytes": line.bytes} for line in counts],
    }
    total = ClassCount("in all", values["objects"], values["bytes"])
    console.result(values, "\n".join(_census_lines([*counts, total])), essential=True)
    return 0


def _census_lines(counts: Sequence[ClassCount]) -> Iterator[str]:
    yield f"{'objects':>15}{'bytes':>18}  class"
    for line in counts:
        yield f"{line.objects:>15,}{line.bytes:>18,}  {line.name}"


def _census_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("--by", choices=("bytes", "objects", "class"), default="bytes", help="order (default: bytes)")


CENSUS = Command(
    "census",
    "count objects and bytes of each class",
    "All objects are read, garbage included; memory does not grow with their number. DIRECTORY is not written to.",
    "durus-bdb census db --by objects",
    _census_arguments,
    _census,
)
