"""Gets every record out of a damaged storage that can still be read, and says what is missing.

It works on a directory that does not open, and never writes to it. For one thread.

How it works: where the storage was not closed, a copy of it is brought to the end of its log (`recovering`). Then the
table of objects is read page by page, without the library, which stops at the first bad page and trusts pages that are
another's (`tables`, `pages`). Every record is validated. The new storage is filled by a migration, which refuses
records that refer to what is not there: so each object that is missing gets a `Missing` in its place (`making`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyroaring import BitMap64

from berkeleydb_storage import files
from berkeleydb_storage.directory import Description, Directory
from berkeleydb_storage.doomed import unpack_doomed
from berkeleydb_storage.environment import GARBAGE, JOURNAL, META, OBJECTS, TABLES, scratch_directory
from berkeleydb_storage.errors import BerkeleyDBStorageError, DamagedError, NewerFormat
from berkeleydb_storage.format import (
    META_DOOMED,
    OID_LENGTH,
    ROOT_OID,
    State,
    pack_uint64,
    references,
    unpack_garbage_key,
    unpack_journal,
    unpack_oids,
    unpack_uint64,
)
from berkeleydb_storage.salvage import making
from berkeleydb_storage.salvage.ciphers import decryption
from berkeleydb_storage.salvage.recovering import Prepared, prepare
from berkeleydb_storage.salvage.tables import DamagedTable

logger = logging.getLogger(__name__)

REPORT_EVERY = 1000
REFERRERS = 3
"""Of a missing object, that the report names."""

Progress = Callable[[str, int], None]


@dataclass
class Report:
    """What was found, and what is missing."""

    objects: int = 0
    """Records that could be read."""
    expected: int | None = None
    """How many objects the storage had after its last known transaction; None: not known."""
    transaction: int | None = None
    """The number of that transaction."""
    time: float | None = None
    """When it was, in seconds since the epoch."""
    missing: dict[int, list[int]] = field(default_factory=dict)
    """Objects that are referred to, and lost -> up to three that refer to them. Each has a `Missing` in its place."""
    malformed: dict[int, str] = field(default_factory=dict)
    """Objects whose records were found, and are none -> what is wrong with them."""
    uncertain: list[int] = field(default_factory=list)
    """Objects that may be older than the last commit, or deleted: their pages were changed after the last known
    checkpoint, and the log could not be applied; or several versions of them were found."""
    adopted: int = 0
    """Objects that nothing refers to any more, because what did is lost: the list `lost_and_found` does."""
    lost_and_found: int | None = None
    """The oid of that list, None where there is none."""
    root_lost: bool = False
    pages: dict[str, list[int]] = field(default_factory=dict)
    """Files of tables -> their damaged pages."""
    absent: list[str] = field(default_factory=list)
    """Files that are not there."""
    log: str = ""
    """What became of the log."""
    up_to_date: bool = True
    """Whether what was read holds all commits that the directory knows of, but for what is damaged."""

    @property
    def unknown(self) -> int:
        """How many objects are missing that nothing refers to, so that their oids are not known."""
        if self.expected is None:
            return 0
        return max(0, self.expected - self.objects - len(self.missing))

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, and nothing uncertain."""
        return not (self.missing or self.malformed or self.uncertain or self.unknown) and self.up_to_date


class Salvage:
    """One damaged storage, from which records are taken. Use it as a context; it locks the directory if it can."""

    def __init__(
        self, path: str | os.PathLike[str], *, key: str | None = None, progress: Progress | None = None
    ) -> None:
        """Take note of what to read.

        Args:
            path: the directory.
            key: what it is encrypted with, if it is.
            progress: called now and then with what is being done and how far it is; what it raises ends the work.

        Raises:
            StorageNotFound, NotAStorage: there is no directory.
        """
        self._directory = Directory(path)
        self._key = key
        self._progress = progress or _silent
        self._stack = ExitStack()
        self.report = Report()
        self.type: str | None = None
        """Access method of the objects, if ``storage.json`` tells."""

    def __enter__(self) -> Salvage:
        """Find out where everything is.

        Raises:
            StorageInUse: somebody has it open.
            NewerFormat: a newer version of this package wrote it.
            DamagedError: there is nothing to be read.
            BerkeleyDBStorageError: there is no room in the temporary directory, or no way to decrypt.
        """
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Free everything."""
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        if self._directory.has_lock():
            with suppress(DamagedError):
                self._directory.acquire(read_only=True)
                stack.callback(self._directory.release)
        path, report = self._directory.path, self.report
        report.absent = [f"{name}.db" for name in TABLES if not (path / f"{name}.db").exists()]
        scratch = stack.enter_context(scratch_directory(f"a copy of {path}"))
        description = self._description()
        prepared = prepare(path, scratch, description, self._key)
        report.log, report.up_to_date = prepared.log, prepared.up_to_date
        self._note_pages()
        where = prepared.path / f"{OBJECTS}.db"
        if not where.exists():
            raise DamagedError(f"{path / where.name} is missing, and the log does not make up for it: restore a backup")
        self._table = stack.enter_context(closing(self._damaged(where)))
        self._table.index(self._progress, "pages")
        self._doomed = self._known_doomed(prepared)
        self._waiting = BitMap64(self._garbage(prepared))
        self._read_journal(prepared)
        self._checkpoint = (0, 0)
        if description is not None:
            self.type = description.type
            self._checkpoint = (description.checkpoint_log, description.checkpoint_offset)
        self._look()

    def _damaged(self, path: Path) -> DamagedTable:
        return DamagedTable(path, self._key, None if self._key is None else decryption(self._key))

    def _description(self) -> Description | None:
        try:
            return self._directory.read()
        except NewerFormat:
            raise
        except BerkeleyDBStorageError:
            self.report.absent.append("storage.json, which is damaged")
            return None

    def _note_pages(self) -> None:
        for name in TABLES:
            where = self._directory.path / f"{name}.db"
            bad = list(files.bad_pages(where, self._key, zeros=True)) if where.exists() else []
            if bad:
                self.report.pages[where.name] = bad

    def _rows(self, prepared: Prepared, name: str) -> Iterator[tuple[bytes, bytes]]:
        where = prepared.path / f"{name}.db"
        if where.exists():
            with closing(self._damaged(where)) as table:
                table.index(_silent, name)
                yield from table.rows()

    def _known_doomed(self, prepared: Prepared) -> BitMap64:
        """Return the objects whose deletion is committed, though their records are still there."""
        for key, value in self._rows(prepared, META):
            if key == META_DOOMED:
                with suppress(ValueError):
                    return unpack_doomed(value)
        return BitMap64()

    def _garbage(self, prepared: Prepared) -> Iterator[int]:
        for key, _ in self._rows(prepared, GARBAGE):
            with suppress(ValueError):
                yield unpack_uint64(unpack_garbage_key(key)[1])

    def _read_journal(self, prepared: Prepared) -> None:
        newest: tuple[int, State] | None = None
        for key, row in self._rows(prepared, JOURNAL):
            with suppress(ValueError):
                newest = unpack_uint64(key), unpack_journal(row).state
        if newest is not None:
            tid, state = newest
            self.report.transaction, self.report.time, self.report.expected = tid, state.time / 1e6, state.objects

    def _look(self) -> None:
        """Read everything once; find out what is there, what is missing, and what is in doubt."""
        report = self.report
        self.stored, self._referenced = BitMap64(), BitMap64([unpack_uint64(ROOT_OID)])
        for oid, place, several in self._table.places():
            if len(oid) != OID_LENGTH or (number := unpack_uint64(oid)) in self._doomed:
                continue
            try:
                refs = references(oid, self._record(oid))
            except ValueError as error:
                report.malformed[number] = str(error)
                continue
            self.stored.add(number)
            self._referenced.update(unpack_oids(refs))
            if several or (not report.up_to_date and (place.log, place.offset) > self._checkpoint):
                report.uncertain.append(number)
            if len(self.stored) % REPORT_EVERY == 0:
                self._progress("reading", len(self.stored))
        report.objects = len(self.stored)
        if not self.stored:
            raise DamagedError(f"no object can be read in {self._directory.path}: restore it from a backup")
        report.missing = {number: [] for number in self._referenced - self.stored}
        report.root_lost = unpack_uint64(ROOT_OID) in report.missing
        for number in BitMap64(report.malformed) - BitMap64(report.missing):
            report.missing[number] = []
        if report.missing:
            self._name_referrers()
            self._adopted = self._orphans()
            report.adopted = len(self._adopted)

    def _record(self, oid: bytes) -> bytes:
        """Return the record of an object.

        Raises:
            ValueError: a part of it cannot be read.
        """
        record = self._table.get(oid)
        if record is None:
            raise ValueError(f"a part of the record of object {unpack_uint64(oid)} is lost")
        return record

    def _refs(self, number: int) -> tuple[int, ...]:
        oid = pack_uint64(number)
        return unpack_oids(references(oid, self._record(oid)))

    def _name_referrers(self) -> None:
        missing = self.report.missing
        for done, number in enumerate(self.stored):
            for target in self._refs(number):
                if target in missing and len(missing[target]) < REFERRERS:
                    missing[target].append(number)
            if done % REPORT_EVERY == 0:
                self._progress("referrers", done)

    def _orphans(self) -> BitMap64:
        """Return objects from which all is reached that the root does not reach any more, but for known garbage."""
        seen = BitMap64()
        if not self.report.root_lost:
            self._reach(unpack_uint64(ROOT_OID), seen)
        found = self.stored - self._referenced - seen - self._waiting
        for number in found:
            self._reach(number, seen)
        for number in self._waiting & (self.stored - self._referenced):
            self._reach(number, seen)
        for number in self.stored - seen:  # what is left are cycles
            if number not in seen:
                found.add(number)
                self._reach(number, seen)
        return found

    def _reach(self, start: int, seen: BitMap64) -> None:
        waiting = [start]
        while waiting:
            number = waiting.pop()
            if number in seen or number not in self.stored:
                continue
            seen.add(number)
            if len(seen) % REPORT_EVERY == 0:
                self._progress("reachable", len(seen))
            waiting.extend(self._refs(number))

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every record that was found, then what takes the place of those that are missing."""
        for number in self.stored:
            oid = pack_uint64(number)
            yield oid, self._record(oid)
        if not self.report.missing:
            return
        container: list[bytes] = []
        if self._adopted or self.report.root_lost:
            start = max(self.stored.max(), max(self.report.missing)) + 1
            members = ((pack_uint64(number), self._class(number)) for number in self._adopted)
            for record in making.lists(start, members):
                yield record[:OID_LENGTH], record
            container = [record[:OID_LENGTH]]
            self.report.lost_and_found = unpack_uint64(record[:OID_LENGTH])
        for number in sorted(self.report.missing):
            oid = pack_uint64(number)
            yield oid, making.root(container[0]) if oid == ROOT_OID else making.stand_in(number, container)

    def _class(self, number: int) -> bytes:
        return making.class_pickle(self._record(pack_uint64(number)))


def write_list(report: Report, path: Path) -> None:
    """Write every oid that is missing or uncertain into a new file, a line each, for people and programs.

    Raises:
        FileExistsError: there is something at `path`.
        OSError: it cannot be written.
    """
    with path.open("x") as file:
        file.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')} missing, malformed and uncertain objects\n")
        for number, referrers in sorted(report.missing.items()):
            by = ", ".join(map(str, referrers)) or "nothing that was found"
            file.write(f"missing\t{number}\treferred to by {by}\n")
        for number, message in sorted(report.malformed.items()):
            file.write(f"malformed\t{number}\t{message}\n")
        for number in report.uncertain:
            file.write(f"uncertain\t{number}\tmay be older than the last commit, or deleted\n")


def _silent(activity: str, number: int) -> None:
    """Show no progress."""
