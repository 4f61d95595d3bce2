"""The command that archives a storage continuously, in a process of its own: archive.

Whoever has the storage open is asked for what was committed. While nobody has, what is missing is copied with the
storage opened here, for as short as possible: nobody else can open it then. So that is done once at the beginning, and
later only when something is new and nobody has come for a while.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from berkeleydb_storage import files
from berkeleydb_storage.backup.archive import QUEUE, Archived
from berkeleydb_storage.backup.archiving import Archiver
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.backup.source import Source
from berkeleydb_storage.commands.command import Command, add_directory, key_of, size
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.commands.places import add_options, add_place, place
from berkeleydb_storage.control.access import open_source
from berkeleydb_storage.control.asking import ControlSource
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.errors import (
    AccessDenied,
    BackupError,
    BerkeleyDBStorageError,
    OptionError,
    OwnerGone,
    StorageInUse,
    StorageNotFound,
    StoreUnreachable,
    WireError,
)
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.progress import Progress

logger = logging.getLogger("berkeleydb_storage.archive")

GRACE = 10.0
"""Seconds without anybody who has the storage open, before it is opened here."""
AGAIN = 60.0
"""Seconds until it is opened here again, where the store could not be reached."""
ENDING = 5.0
"""Seconds that the end waits for the last commits to be copied."""
STATUS = 60.0
"""Seconds between two lines that say how far it is."""
SLICE = 0.1
"""Seconds of sleep after which a signal is noticed."""


class _Refused(BackupError):
    """Raised when another one archives the storage to the same place: there is nothing to do here."""


class _Archiving:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace, console: Console, progress: Progress) -> None:
        self._arguments = arguments
        self._console = console
        self._progress = progress
        self._path = Path(arguments.directory)
        self._store = place(arguments, create=True)
        self.url = self._store.url
        self._keep = None if arguments.keep_days is None else Keep(within=arguments.keep_days * 86400.0)
        self._copying: tuple[str, int] | None = None  # set by the thread that copies everything
        self._told = time.monotonic()
        self._known: object = None
        self.figures: Archived | None = None

    @property
    def _ended(self) -> bool:
        return self._console.interrupts.noted

    def once(self) -> None:
        """Copy what is missing.

        Raises:
            BackupError: it cannot be copied.
        """
        with self._opened() as source:
            self._alone(source)
        assert self.figures is not None
        if self.figures.failing:
            raise StoreUnreachable(self.figures.failing)

    def follow(self) -> None:
        """Copy what is committed until a signal comes."""
        due = 0.0
        while not self._ended:
            try:
                if self._has_owner():
                    self._beside(ControlSource(self._path))
                    due = time.monotonic() + GRACE
                elif time.monotonic() >= due and self._fingerprint() != self._known:
                    due = time.monotonic() + (GRACE if self._catch_up() else AGAIN)
            except (OwnerGone, StorageInUse):
                due = time.monotonic() + GRACE
            except (_Refused, AccessDenied, StorageNotFound, WireError, OptionError):
                raise
            except BerkeleyDBStorageError as error:
                logger.warning("%s: %s; it is tried again", self._path, error)
                self._sleep(GRACE)
            self._sleep(self._arguments.interval)

    def _opened(self) -> AbstractContextManager[Source]:
        return open_source(self._path, key=key_of(self._arguments), cachesize=self._arguments.cachesize)

    def _has_owner(self) -> bool:
        with suppress(OwnerGone):
            return ControlSource(self._path).ping() > 0
        return False

    def _catch_up(self) -> bool:
        """Copy what is missing while nobody has the storage open; return whether all is copied."""
        logger.info("nobody has %s open: it is opened here until what is missing is copied", self._path)
        with self._opened() as source:
            if isinstance(source, ControlSource):
                return True  # somebody came
            self._alone(source)
        assert self.figures is not None
        if not self.figures.failing:
            self._known = self._fingerprint()
        return not self.figures.failing

    def _fingerprint(self) -> object:
        """Return what changes when something is committed."""
        found = ((number, self._path / files.log_name(number)) for number in files.log_numbers(self._path))
        return [(number, where.stat().st_size, where.stat().st_mtime_ns) for number, where in found]

    def _archiver(self, source: Source) -> Archiver:
        def report(activity: str, count: int) -> None:
            self._copying = activity, count

        archiver = Archiver(source, self._store, queue=self._arguments.queue, keep=self._keep, report=report)
        try:
            archiver.claim()
        except BackupError as error:
            raise _Refused(str(error)) from error
        return archiver

    def _alone(self, source: Source) -> None:
        """Copy what is missing, and then no more; or give up as soon as the store fails."""
        archiver = self._archiver(source)
        try:
            while not self._ended:
                archiver.turn()
                self._show(archiver)
                if archiver.is_complete or archiver.figures().failing:
                    break
                archiver.wait(SLICE)
        finally:
            self._note(archiver.figures())
            archiver.release()

    def _beside(self, source: Source) -> None:
        """Copy what its owner commits until it is gone, or a signal comes."""
        archiver = self._archiver(source)
        try:
            while not self._ended:
                began = time.monotonic()
                archiver.turn()
                self._show(archiver)
                took = time.monotonic() - began
                self._sleep(max(self._arguments.interval - 2 * took, self._arguments.interval / 4), archiver)
            archiver.finish(ENDING)
        finally:
            self._note(archiver.figures())
            archiver.release()

    def _sleep(self, seconds: float, archiver: Archiver | None = None) -> None:
        until = time.monotonic() + seconds
        while not self._ended and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))
            if archiver is not None:
                self._show(archiver)

    def _note(self, figures: Archived) -> None:
        """Keep the newest figures that say something: an archiver whose owner went at once knows nothing yet."""
        if self.figures is None or figures.time is not None or figures.failing:
            self.figures = figures

    def _show(self, archiver: Archiver) -> None:
        """Show how far it is: a bar while everything is copied, else a line a minute."""
        figures = archiver.figures()
        self._note(figures)
        if figures.copying is not None:
            if self._copying is not None:
                self._progress(*self._copying)
        elif self._copying is not None:
            self._copying = None
            self._progress.close()
        if time.monotonic() - self._told >= STATUS and not self._console.quiet:
            self._told = time.monotonic()
            logger.warning("%s", _line(figures))


def _line(figures: Archived) -> str:
    if figures.failing:
        return f"{figures.url} is {figures.behind_seconds:.0f} s behind: {figures.failing}"
    if figures.time is None:
        return f"{figures.url}: nothing is there yet"
    when = datetime.fromtimestamp(figures.time).isoformat(" ", "seconds")
    behind = f"{figures.behind_bytes or 0:,} bytes, {figures.behind_seconds:.1f} s behind"
    return f"{figures.url}: as of {when}, transaction {figures.tid}; {behind}; {figures.pieces:,} pieces so far"


def _archive(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "what came there stays, and is continued the next time"
    if not 0 < arguments.interval < math.inf:
        raise OptionError(f"--interval takes a positive number of seconds, not {arguments.interval:g}")
    with Progress(None if console.quiet else sys.stderr, unit="bytes") as progress:
        with suppress(OSError):
            tables = (Path(arguments.directory) / (name + TABLE_SUFFIX) for name in TABLES)
            progress.totals.update(copying=sum(table.stat().st_size for table in tables))
        archiving = _Archiving(arguments, console, progress)
        if arguments.once:
            archiving.once()
        else:
            archiving.follow()
    if arguments.once and console.interrupts.noted:
        console.interrupts.poll()
    figures = archiving.figures
    values = {"url": archiving.url} if figures is None else asdict(figures)
    text = f"{archiving.url}: nothing was copied" if figures is None else _line(figures)
    console.result({"directory": arguments.directory, **values}, text)
    return 0


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    add_place(parser, "where to, a directory, made if missing, or a URL that fsspec knows")
    add = parser.add_argument
    add("--once", action="store_true", help="copy what is missing, and end")
    add(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="of commits that may be missing when the machine is lost (default: 1)",
    )
    add(
        "--queue",
        type=size,
        default=QUEUE,
        metavar="BYTES",
        help="log that is kept while PLACE cannot be reached, such as 1G (default)",
    )
    add("--keep-days", type=float, metavar="DAYS", help="every commit of so many days stays (default: of all)")
    add_options(parser)


ARCHIVE = Command(
    "archive",
    "copy what is committed to PLACE, every second, until SIGTERM or SIGINT",
    "The storage may be in use: who has it open is asked for what was committed, while commits go on. While nobody "
    "has, it is opened here for as long as it takes to copy what is missing. Everything is copied first, and again "
    "when the log since then takes more than that. PLACE may be away: log files are kept until it is back. Any commit "
    "can be restored, by `restore`. One at a time for each PLACE.",
    "durus-bdb archive db abfs://container/folder",
    _arguments,
    _archive,
)
