"""Verifies everything that a storage holds, and repairs what can be computed anew: counts, queues and totals.

The caller holds nothing; the check takes the engine's mutex from its beginning to its end, because it compares tables
with each other. Memory: two bits an object, and 64 MiB.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyroaring import BitMap64

from berkeleydb_storage import files
from berkeleydb_storage.engine import META_FORMAT, META_NEXT_OID, Change, Engine
from berkeleydb_storage.environment import (
    GARBAGE,
    JOURNAL,
    LIBRARY_ERRORS,
    META,
    REFCOUNTS,
    SUSPECTS,
    TABLES,
    Table,
    scratch_table,
)
from berkeleydb_storage.errors import DamagedError
from berkeleydb_storage.format import (
    FORMAT_VERSION,
    ROOT_OID,
    State,
    pack_condemned,
    pack_garbage_key,
    pack_uint64,
    unpack_count,
    unpack_garbage_key,
    unpack_journal,
    unpack_uint64,
)
from berkeleydb_storage.tally import Tally

logger = logging.getLogger(__name__)

SCRATCH_CACHE = 64 << 20
FLUSH_EVERY = 10_000

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Fault:
    """Something that is not as it must be."""

    kind: str
    """"page", "record", "dangling", "count", "queue", "suspect", "total", "journal" or "meta"."""
    message: str
    repairable: bool
    """Whether ``repair`` can mend it: it can be computed from the records."""
    oid: int | None = None
    """The object it is about."""


@dataclass
class Report:
    """What a check found."""

    objects: int = 0
    references: int = 0
    garbage: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    repaired: bool = False
    """Whether counts, queues and totals were rebuilt."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or everything that was wrong was repaired."""
        return all(self.repaired and fault.repairable for fault in self.faults)


class _Check:
    """One check under way."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self._engine = engine
        self._tables = engine.environment.tables
        self._progress = progress
        self._scratch = scratch_table(SCRATCH_CACHE)
        self._tally = Tally(self._scratch)
        self.report = Report()

    def fault(self, kind: str, message: str, oid: bytes | None = None, *, repairable: bool = True) -> None:
        number = None if oid is None else unpack_uint64(oid)
        self.report.faults.append(Fault(kind, message, repairable, number))

    def run(self) -> None:
        self._records()
        self._dangling()
        self._counts()
        self._queue()
        self._suspects()
        self._totals()
        self._journal()
        self._meta()

    def close(self) -> None:
        self._scratch.close()

    def _records(self) -> None:
        tally, report = self._tally, self.report
        for oid, record in rows(self._engine.objects):
            report.objects += 1
            try:
                tally.add(oid, record)
            except ValueError as error:
                self.fault("record", str(error), repairable=False)
                if len(oid) == 8:
                    tally.stored.add(unpack_uint64(oid))
            if report.objects % FLUSH_EVERY == 0:
                tally.flush()
                self._progress("objects", report.objects)
        tally.flush()
        self._progress("objects", report.objects)

    def _dangling(self) -> None:
        if not self._tally.stored:
            return
        for oid in self._tally.dangling():
            what = "the root does not exist" if oid == ROOT_OID else f"object {unpack_uint64(oid)} does not exist"
            self.fault("dangling", f"{what}, and is referred to", oid, repairable=False)

    def _counts(self) -> None:  # noqa: C901 - one table, one pass
        tally = self._tally
        zero = tally.garbage()
        pending_zero, several = BitMap64(zero), 0
        for oid, row in rows(self._tables[REFCOUNTS]):
            number = unpack_uint64(oid)
            try:
                count, since = unpack_count(row)
            except ValueError as error:
                self.fault("count", str(error), oid)
                continue
            right = 0 if number in zero else tally.several_of(oid) or 1
            if number not in tally.stored:
                self.fault("count", f"object {number} has a reference count and does not exist", oid)
            elif count != right:
                self.fault("count", f"object {number} has {right} referrers and a reference count of {count}", oid)
            elif count == 1:
                self.fault("count", f"object {number} has a row for a reference count of 1", oid)
            elif count > 1:
                several += 1
            elif not self._tables[GARBAGE].exists(pack_garbage_key(since, oid)):
                self.fault("queue", f"object {number} has no referrer and is not in the garbage queue", oid)
            if count == 0:
                pending_zero.discard(number)
        for number in pending_zero:
            self.fault("count", f"object {number} has no referrer and no row that says so", pack_uint64(number))
        if several < tally.several - self._wrong_several():
            self._missing_several()
        self._progress("reference counts", several)

    def _wrong_several(self) -> int:
        return sum(1 for fault in self.report.faults if fault.kind == "count")

    def _missing_several(self) -> None:
        for oid, row in rows(self._scratch):
            if unpack_uint64(oid) in self._tally.stored and not self._tables[REFCOUNTS].exists(oid):
                right = unpack_count(row)[0]
                self.fault("count", f"object {unpack_uint64(oid)} has {right} referrers and no reference count", oid)

    def _queue(self) -> None:
        for key, _ in rows(self._tables[GARBAGE]):
            self.report.garbage += 1
            try:
                since, oid = unpack_garbage_key(key)
            except ValueError as error:
                self.fault("queue", str(error))
                continue
            if self._tables[REFCOUNTS].get(oid) != pack_condemned(since):
                self.fault("queue", f"object {unpack_uint64(oid)} is in the garbage queue and must not be", oid)

    def _suspects(self) -> None:
        self.suspects = 0
        for oid, _ in rows(self._tables[SUSPECTS]):
            self.suspects += 1
            if unpack_uint64(oid) not in self._tally.stored:
                self.fault("suspect", f"object {unpack_uint64(oid)} is a suspect and does not exist", oid)

    def _totals(self) -> None:
        state = self._engine.journal.state
        found = (self.report.objects, self.report.garbage, self.suspects)
        for what, noted, counted in zip(("objects", "garbage", "suspects"), state[1:], found, strict=True):
            if noted != counted:
                self.fault("total", f"{counted} {what} are stored, and the total says {noted}")

    def _journal(self) -> None:
        expected: int | None = None
        for key, row in rows(self._tables[JOURNAL]):
            tid = unpack_uint64(key)
            if expected is not None and tid != expected:
                self.fault("journal", f"transaction {tid} follows {expected - 1} in the journal", repairable=False)
            expected = tid + 1
            try:
                unpack_journal(row)
            except ValueError as error:
                self.fault("journal", f"transaction {tid}: {error}", repairable=False)

    def _meta(self) -> None:
        version = self._tables[META].get(META_FORMAT)
        if version != pack_uint64(FORMAT_VERSION):
            self.fault("meta", f"the table meta says format {version!r}", repairable=False)
        stored = self._tally.stored
        following = self._tables[META].get(META_NEXT_OID)
        if stored and (following is None or unpack_uint64(following) <= stored.max()):
            self.fault("meta", f"the next oid is {following!r}, and object {stored.max()} exists", repairable=True)

    def repair(self) -> None:
        """Write counts, queues and totals anew, in one transaction."""
        tally, tables = self._tally, self._tables
        garbage = tally.garbage()
        with Change(self._engine, 64 * (tally.several + len(garbage))) as change:
            for name in (REFCOUNTS, GARBAGE):
                tables[name].truncate(txn=change.transaction)
            for oid, row in rows(self._scratch):
                if unpack_uint64(oid) in tally.stored:
                    tables[REFCOUNTS].put(oid, row, txn=change.transaction)
            for number in garbage:
                oid = pack_uint64(number)
                tables[REFCOUNTS].put(oid, pack_condemned(change.now), txn=change.transaction)
                tables[GARBAGE].put(pack_garbage_key(change.now, oid), b"", txn=change.transaction)
            suspects = self._repair_suspects(change)
            self._repair_next_oid(change)
            state = State(change.now, len(tally.stored), len(garbage), suspects)
            self._engine.journal.append(state, None, change.transaction)
        self._engine.reload_all()
        self.report.repaired = True

    def _repair_suspects(self, change: Change) -> int:
        suspects = list(rows(self._tables[SUSPECTS]))
        kept = 0
        for oid, _ in suspects:
            if unpack_uint64(oid) in self._tally.stored:
                kept += 1
            else:
                self._tables[SUSPECTS].delete(oid, txn=change.transaction)
        return kept

    def _repair_next_oid(self, change: Change) -> None:
        stored = self._tally.stored
        following = self._tables[META].get(META_NEXT_OID)
        if stored and (following is None or unpack_uint64(following) <= stored.max()):
            self._engine.set_meta(META_NEXT_OID, pack_uint64(stored.max() + 1), change.transaction)


def rows(table: Table) -> Iterator[tuple[bytes, bytes]]:
    """Yield all rows of a table in its order; nobody writes to it meanwhile."""
    cursor = table.cursor()
    try:
        row = cursor.first()
        while row is not None:
            yield row
            row = cursor.next()
    finally:
        cursor.close()


def check_engine(engine: Engine, *, repair: bool = False, progress: Progress | None = None) -> Report:
    """Verify everything, and with `repair` rebuild counts, queues and totals where they are wrong.

    Raises:
        DamagedError: a page cannot be read, so that nothing more can be said.
        ReadOnlyError: something is to be repaired in a storage that was opened read-only.
    """
    started = time.monotonic()
    with engine.lock:
        checking = _Check(engine, progress or _silent)
        try:
            checking.run()
            if repair and any(fault.repairable for fault in checking.report.faults):
                checking.repair()
        except LIBRARY_ERRORS as error:
            raise engine.failed(error) from error
        finally:
            checking.close()
    checking.report.seconds = time.monotonic() - started
    return checking.report


def _silent(activity: str, number: int) -> None:
    """Show no progress."""


def check_pages(path: Path, progress: Progress | None = None) -> list[Fault]:
    """Verify the checksum of every page in the files of a storage that nobody has open; free pages too."""
    faults: list[Fault] = []
    for number, name in enumerate(TABLES):
        where = path / f"{name}{files.TABLE_SUFFIX}"
        faults += [Fault("page", f"page {page} of {where} is damaged", False) for page in files.bad_pages(where)]
        if progress is not None:
            progress("files", number + 1)
    return faults


def repair_at_open(engine: Engine) -> None:
    """Do what Durus' ``repair=True`` asks for: check, mend, and refuse what cannot be mended.

    Raises:
        DamagedError: it names the first fault that cannot be repaired.
    """
    report = check_engine(engine, repair=True)
    for fault in report.faults:
        logger.warning("%s: %s%s", engine.environment.path, fault.message, ", repaired" if fault.repairable else "")
    lost = [fault for fault in report.faults if not fault.repairable]
    if lost:
        raise DamagedError(
            f"{engine.environment.path} has {len(lost)} faults that cannot be repaired, such as: {lost[0].message}; "
            "restore from a backup, or open it without repair=True"
        )
