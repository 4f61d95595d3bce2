"""Verifies everything that a storage holds, and repairs what can be computed anew: counts, queues, totals, journal.

The caller holds nothing; the check takes the engine's mutex from its beginning to its end, because it compares tables
with each other. Memory: two bits an object, 64 MiB, and the faults that are listed.

How it works: one pass over the records counts their references. That gives the rows that the other tables must have,
in the order of their keys, to be compared with those they do have. Each row that is wrong is a fault, and comes with
its mend: the row to be written in its place, or none. A repair writes the mends and the totals, in one transaction.

A record that cannot be read may refer to anything. While there is one, a count that is higher than what was found may
be right: it is no fault, and nothing is condemned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from berkeleydb_storage import files
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import (
    GARBAGE,
    JOURNAL,
    LIBRARY_ERRORS,
    META,
    REFCOUNTS,
    SUSPECTS,
    TABLES,
    rows,
    scratch_table,
)
from berkeleydb_storage.errors import DamagedError, DiskFullError
from berkeleydb_storage.format import (
    ACQUITTED,
    FORMAT_VERSION,
    META_DOOMED,
    META_DOOMED_FROM,
    META_FORMAT,
    META_IDENTITY,
    META_NEXT_OID,
    META_PACKED,
    META_SEARCHED,
    META_UNMARKED,
    OID_LENGTH,
    PENDING,
    ROOT_OID,
    UNSETTLED,
    State,
    Suspect,
    pack_condemned,
    pack_count,
    pack_garbage_key,
    pack_suspect,
    pack_uint64,
    unpack_count,
    unpack_garbage_key,
    unpack_journal,
    unpack_suspect,
    unpack_uint64,
)
from berkeleydb_storage.identity import is_identity, write_identity
from berkeleydb_storage.tally import Tally
from berkeleydb_storage.upgrade import READABLE

logger = logging.getLogger(__name__)

SCRATCH_CACHE = 32 << 20
"""Bytes of memory for each of two tables: the counts that were found, and the mends."""
FLUSH_EVERY = 10_000
LISTED = 10_000
"""Faults that a report lists one by one; more than that are only counted."""
MEND_SIZE = 64
"""Bytes of a mend, for the room that a repair needs."""

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
    """How many there are, each object's references to another one counted once, and those to itself not."""
    garbage: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    """The first 10,000 of them."""
    found: int = 0
    """How many there are in all."""
    unrepairable: int = 0
    """How many of them `repair` cannot mend."""
    repaired: bool = False
    """Whether what can be mended was."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or everything that was wrong was repaired."""
        return not self.found or (self.repaired and not self.unrepairable)


class _Mend(NamedTuple):
    """A row that a table must have: `value`, or none at all."""

    table: str
    key: bytes
    value: bytes | None


class _Check:
    """One check under way, and the repair that follows from it."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self._engine = engine
        self._tables = engine.environment.tables
        self._progress = progress
        self._several = scratch_table(SCRATCH_CACHE)
        self._mends = scratch_table(SCRATCH_CACHE)
        self._mended = 0
        self._tally = Tally(self._several)
        self._now = engine.tick()
        self._unreadable = False
        self._suspected = 0
        self._doomed = engine.doomed.closed
        self.report = Report()

    def close(self) -> None:
        self._several.close()
        self._mends.close()

    def run(self) -> None:
        if self._pages():
            return  # in a page of zeros the library would search forever
        self._records()
        self._zero = self._tally.garbage() - self._doomed
        self._dangling()
        self._counts()
        self._queue()
        self._suspects()
        self._journal()
        self._meta()
        self._doom()

    def _pages(self) -> int:
        """Look for pages that are not in their place; return how many there are."""
        path = self._engine.environment.path
        found = _strange_pages(path)
        if found and self._engine.environment.writable:
            found = self._written(path)
        for where, page in found:
            self._lost("page", f"page {page} of {where} is not what belongs there")
        return len(found)

    def _written(self, path: Path) -> list[tuple[Path, int]]:
        """Look again when everything is written; where there is no room for that, what is missing may be in memory."""
        try:
            self._engine.environment.checkpoint()
        except DiskFullError:
            return []
        return _strange_pages(path)

    def _wrong(self, kind: str, message: str, oid: bytes | None, *mends: _Mend) -> None:
        """Note a fault that the mends, or new totals, put right."""
        self._note(kind, message, oid, True)
        self._mend(mends)

    def _mend(self, mends: Iterable[_Mend]) -> None:
        for mend in mends:
            self._mended += 1
            key = bytes([TABLES.index(mend.table)]) + mend.key
            self._mends.put(key, b"" if mend.value is None else b"=" + mend.value)

    def _lost(self, kind: str, message: str, oid: bytes | None = None) -> None:
        """Note a fault that nothing puts right."""
        self.report.unrepairable += 1
        self._note(kind, message, oid, False)

    def _note(self, kind: str, message: str, oid: bytes | None, repairable: bool) -> None:
        self.report.found += 1
        if self.report.found <= LISTED:
            number = unpack_uint64(oid) if oid is not None and len(oid) == OID_LENGTH else None
            self.report.faults.append(Fault(kind, message, repairable, number))

    def _is_stored(self, oid: bytes) -> bool:
        return len(oid) == OID_LENGTH and unpack_uint64(oid) in self._tally.stored

    def _is_doomed(self, oid: bytes) -> bool:
        return bool(self._doomed) and len(oid) == OID_LENGTH and unpack_uint64(oid) in self._doomed

    def _records(self) -> None:
        tally, report = self._tally, self.report
        for oid, record in rows(self._engine.objects):
            report.objects += 1
            try:
                tally.add(oid, record, self._doomed if self._is_doomed(oid) else ())
            except ValueError as error:
                self._unreadable = True
                self._lost("record", str(error), oid)
                tally.stored.update([unpack_uint64(oid)] if len(oid) == OID_LENGTH else [])
            if report.objects % FLUSH_EVERY == 0:
                tally.flush()
                self._progress("objects", report.objects)
        tally.flush()
        repeated = sum(unpack_count(row)[0] - 1 for _, row in rows(self._several))
        report.references = len(tally.referenced) - 1 + repeated
        self._progress("objects", report.objects)

    def _dangling(self) -> None:
        if not self._tally.stored:
            return
        for number in self._tally.referenced & self._doomed:
            self._lost("dangling", f"object {number} is being deleted, and is referred to", pack_uint64(number))
        for number in self._tally.referenced - self._tally.stored - self._doomed:
            oid = pack_uint64(number)
            what = "the root does not exist" if oid == ROOT_OID else f"object {number} does not exist"
            self._lost("dangling", f"{what}, and is referred to", oid)

    def _counts(self) -> None:
        """Compare every count that is noted with the one that was found, and look whether one is not noted."""
        noted = self._tables[REFCOUNTS]
        for number, (oid, row) in enumerate(rows(noted)):
            if self._is_stored(oid):
                self._count(oid, row)
            else:
                message = f"{describe(oid)} has a reference count and does not exist"
                self._wrong("count", message, oid, _Mend(REFCOUNTS, oid, None))
            if number % FLUSH_EVERY == 0:
                self._progress("reference counts", number)
        for oid in chain(map(pack_uint64, self._zero), (oid for oid, _ in rows(self._several))):
            if self._is_stored(oid) and not noted.exists(oid):
                self._count(oid, None)

    def _count(self, oid: bytes, row: bytes | None) -> None:
        """Compare the row of an object with the count that was found; no row stands for 1."""
        name, found = describe(oid), 0 if unpack_uint64(oid) in self._zero else self._tally.several_of(oid) or 1
        try:
            noted, since = read_count(row)
        except ValueError as error:
            self._wrong("count", f"{name}: {error}", oid, *self._mends_of_count(oid, found))
            return
        if self._is_doomed(oid):
            found = noted  # what referred to it may be deleted already
        if noted < found or (noted > found and not self._unreadable):
            message = f"{name} has {found} referrers and a reference count of {noted}"
            self._wrong("count", message, oid, *self._mends_of_count(oid, found))
        elif noted == 1 and row is not None:
            self._wrong("count", f"{name} has a row for a reference count of 1", oid, _Mend(REFCOUNTS, oid, None))
        elif noted == 0 and not self._tables[GARBAGE].exists(key := pack_garbage_key(since, oid)):
            message = f"{name} has no referrer since {since} and is not in the garbage queue"
            self._wrong("queue", message, oid, _Mend(GARBAGE, key, b""))

    def _mends_of_count(self, oid: bytes, found: int) -> Iterator[_Mend]:
        if found:
            yield _Mend(REFCOUNTS, oid, None if found == 1 else pack_count(found))
        else:
            yield _Mend(REFCOUNTS, oid, pack_condemned(self._now))
            yield _Mend(GARBAGE, pack_garbage_key(self._now, oid), b"")

    def _queue(self) -> None:
        for key, _ in rows(self._tables[GARBAGE]):
            self.report.garbage += 1
            try:
                since, oid = unpack_garbage_key(key)
            except ValueError as error:
                self._wrong("queue", str(error), None, _Mend(GARBAGE, key, None))
                continue
            condemned = unpack_uint64(oid) in self._zero or self._is_doomed(oid)
            if not condemned or self._tables[REFCOUNTS].get(oid) != pack_condemned(since):
                message = f"{describe(oid)} is in the garbage queue since {since} and must not be"
                self._wrong("queue", message, oid, _Mend(GARBAGE, key, None))

    def _suspects(self) -> None:
        for oid, row in rows(self._tables[SUSPECTS]):
            self._suspected += 1
            if not self._is_stored(oid):
                message = f"{describe(oid)} is a suspect and does not exist"
                self._wrong("suspect", message, oid, _Mend(SUSPECTS, oid, None))
            elif (fault := _fault_of_suspect(row)) is not None:
                mend = pack_suspect(Suspect(self._now, 0, PENDING))
                self._wrong("suspect", f"{describe(oid)}: {fault}", oid, _Mend(SUSPECTS, oid, mend))

    def _journal(self) -> None:
        """Look for what is missing or malformed in the journal. The mend is to forget all that came before it."""
        newest: State | None = None
        last: int | None = None
        keys: list[bytes] = []
        needless = 0
        for key, row in rows(self._tables[JOURNAL]):
            try:
                tid = unpack_uint64(key)
                if last is not None and tid != last + 1:
                    self._wrong("journal", f"transaction {tid} follows {last} in the journal", None)
                    needless = len(keys)
                last, newest = tid, None
                newest = unpack_journal(row).state
            except ValueError as error:
                self._wrong("journal", f"row {key.hex()} of the journal: {error}", None)
                needless = len(keys) + 1
            keys.append(key)
        if last != self._engine.journal.tid:
            message = f"the journal ends with transaction {last}, and the newest is {self._engine.journal.tid}"
            self._wrong("journal", message, None)
            needless = len(keys)
        self._mend(_Mend(JOURNAL, key, None) for key in keys[:needless])
        self._totals(newest)

    def _totals(self, newest: State | None) -> None:
        """Compare what was counted with the newest row of the journal, and with what the engine has in memory."""
        counted = State(0, self.report.objects, self.report.garbage, self._suspected)
        noted = self._engine.journal.state
        for what, number, *totals in zip(State._fields, counted, noted, newest or noted, strict=True):
            wrong = [total for total in totals if total != number]
            if what != "time" and wrong:
                self._wrong("total", f"{number} {what} are stored, and the total says {wrong[-1]}", None)

    def _meta(self) -> None:
        stored, meta = self._tally.stored, self._tables[META]
        version, row = meta.get(META_FORMAT), meta.get(META_NEXT_OID)
        if version not in self._versions():
            self._lost("meta", f"the table meta says format {version!r}")
        self._times(version != pack_uint64(1))
        if version == pack_uint64(FORMAT_VERSION) and not is_identity(identity := meta.get(META_IDENTITY)):
            self._wrong("meta", f"the identity of the storage is {identity!r:.80}", None)
        if not stored or (row is not None and len(row) == OID_LENGTH and unpack_uint64(row) > stored.max()):
            return
        following = pack_uint64(min(max(stored.max() + 1, self._engine.next_oid), (1 << 64) - 1))
        message = f"the next oid is {row!r}, and object {stored.max()} exists"
        self._wrong("meta", message, None, _Mend(META, META_NEXT_OID, following))

    def _versions(self) -> list[bytes]:
        """Return the formats that the table meta may say: one that is read may be older."""
        older = () if self._engine.environment.writable else READABLE
        return [pack_uint64(version) for version in (FORMAT_VERSION, *older)]

    def _times(self, has_packed: bool) -> None:
        """Look at the times of the last pack, which is there from format 2 on, and of the last search."""
        packed, searched = (self._tables[META].get(key) for key in (META_PACKED, META_SEARCHED))
        if packed is None and has_packed:
            mend = _Mend(META, META_PACKED, pack_uint64(self._now))
            self._wrong("meta", "the table meta does not say when the storage was packed", None, mend)
        for key, row in ((META_PACKED, packed), (META_SEARCHED, searched)):
            if row is not None and len(row) != len(pack_uint64(0)):
                message = f'the time "{key.decode()}" in the table meta has {len(row)} bytes'
                mend = _Mend(META, key, pack_uint64(self._now) if key == META_PACKED else None)
                self._wrong("meta", message, None, mend)

    def _doom(self) -> None:
        """Compare what the table meta says of doomed objects with what is being deleted, and with what is left."""
        known = self._engine.doomed
        if not known.noted():
            sought = (META_DOOMED, known.closed.serialize()), (META_DOOMED_FROM, pack_uint64(known.start))
            mends = [_Mend(META, key, value if known.closed else None) for key, value in sought]
            self._wrong("doomed", "the table meta does not say what is being deleted", None, *mends)
        left = self._tally.stored & known.closed
        if left and left.min() < known.start:
            oid = pack_uint64(left.min())
            message = f"{describe(oid)} was to be deleted, and was passed over"
            self._wrong("doomed", message, oid, _Mend(META, META_DOOMED_FROM, oid))

    def repair(self) -> None:
        """Write the mends, the totals and a new identity, in one transaction."""
        with self._engine.change(MEND_SIZE * self._mended) as change:
            for key, value in rows(self._mends):
                table = self._tables[TABLES[key[0]]]
                if value:
                    table.put(key[1:], value[1:], txn=change.transaction)
                    if table is self._tables[SUSPECTS]:
                        self._engine.counts.remember(key[1:], unpack_suspect(value[1:]))
                else:
                    with suppress(KeyError):
                        table.delete(key[1:], txn=change.transaction)
            garbage, suspects = (sum(1 for _ in rows(self._tables[name])) for name in (GARBAGE, SUSPECTS))
            self._engine.set_meta(META_UNMARKED, b"1", change.transaction)
            write_identity(self._tables, change.transaction)  # transactions may be gone that clients know of
            state = State(change.now, self.report.objects, garbage, suspects)
            self._engine.journal.append(state, None, change.transaction)
        self._engine.reload_all()
        self.report.repaired = True


def _strange_pages(path: Path) -> list[tuple[Path, int]]:
    tables = [path / f"{name}{files.TABLE_SUFFIX}" for name in TABLES]
    try:
        return [(where, page) for where in tables for page in files.strange_pages(where)]
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is gone: restore the storage from a backup") from error


def describe(oid: bytes) -> str:
    """Return "object 7" for its key, whatever that is."""
    return f"object {unpack_uint64(oid) if len(oid) == OID_LENGTH else oid[:16]!r}"


def read_count(row: bytes | None) -> tuple[int, int]:
    """Return (count, time) of a row of the table refcounts; none stands for 1.

    Raises:
        ValueError: the row is not what this package writes.
    """
    if row is None:
        return 1, 0
    count, since = unpack_count(row)
    if row != (pack_count(count) if count else pack_condemned(since)):
        raise ValueError(f"a reference count row of {len(row)} bytes for a count of {count}")
    return count, since


def _fault_of_suspect(row: bytes) -> str | None:
    """Return what is wrong with the row of a suspect, None where nothing is."""
    try:
        state = unpack_suspect(row).state
    except ValueError as error:
        return str(error)
    return None if state in (PENDING, ACQUITTED, UNSETTLED) else f"a suspect in a state {state}"


def check_engine(engine: Engine, *, repair: bool = False, progress: Progress | None = None) -> Report:
    """Verify everything, and with `repair` write anew what is wrong and can be computed.

    Raises:
        DamagedError: a page cannot be read, so that nothing more can be said.
        ReadOnlyError: something is to be repaired in a storage that was opened read-only.
        DiskFullError: there is no room for the repair; nothing was repaired.
        CommitRefused: a migration is under way, so that nothing fits together yet.
    """
    started = time.monotonic()
    with engine.lock:
        engine.require_open()
        engine.require_idle()
        checking = _Check(engine, progress or _silent)
        try:
            checking.run()
            report = checking.report
            if repair and report.found > report.unrepairable:
                checking.repair()
        except LIBRARY_ERRORS as error:
            raise engine.failed(error) from error
        finally:
            checking.close()
    report.seconds = time.monotonic() - started
    if report.repaired:
        engine.make_durable()
    return report


def _silent(activity: str, number: int) -> None:
    """Show no progress."""


def check_pages(path: Path, progress: Progress | None = None, *, key: str | None = None) -> list[Fault]:
    """Verify the checksum of every page in the files of a storage that nobody has open; free pages too."""
    faults: list[Fault] = []
    for number, name in enumerate(TABLES):
        where = path / f"{name}{files.TABLE_SUFFIX}"
        if where.exists():
            bad = files.bad_pages(where, key)
            faults += [Fault("page", f"page {page} of {where} is damaged", False) for page in bad]
        else:
            faults.append(Fault("page", f"{where} is missing", False))
        if progress is not None:
            progress("files", number + 1)
    return faults


def repair_at_open(engine: Engine) -> None:
    """Do what Durus' ``repair=True`` asks for: check, mend, and refuse what cannot be mended.

    Raises:
        DamagedError: it names a fault that cannot be repaired.
    """
    report = check_engine(engine, repair=True)
    for fault in report.faults:
        logger.warning("%s: %s%s", engine.environment.path, fault.message, ", repaired" if fault.repairable else "")
    if report.found > len(report.faults):
        logger.warning("%s: and %d more faults", engine.environment.path, report.found - len(report.faults))
    if report.unrepairable:
        lost = [fault.message for fault in report.faults if not fault.repairable]
        raise DamagedError(
            f"{engine.environment.path} has {report.unrepairable} faults that cannot be repaired"
            f"{', such as: ' + lost[0] if lost else ''}; restore from a backup, or open it without repair=True"
        )
