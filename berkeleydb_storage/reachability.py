"""Why an object is still there: a shortest path of references from the root to it, or what else keeps it.

`why` may be called from any thread, on a storage that is written to. It holds the engine's mutex for a batch of records
at a time. Memory: about two bits an object, and 60 bytes for each level of less than `SMALL` objects.

How it works: breadth first from the root, level by level, until the object turns up; then back, looking in each level
for one that refers to what was found in the next. An object that a commit changes after it was read is put into the
level that comes next, and read again.

Invariants:

1. Between two levels, every object reached was read as it is now, or is in the level to come, or among the changes.
2. So whatever was not reached when there is no level to come, and no change to an object reached, is garbage then.
3. In the path of an answer each object referred to the next at one moment: when the search was over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from struct import unpack
from typing import NamedTuple

from pyroaring import BitMap64

from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import LIBRARY_ERRORS, REFCOUNTS
from berkeleydb_storage.errors import BerkeleyDBStorageError, DamagedError, missing
from berkeleydb_storage.format import OID_LENGTH, ROOT_OID, pack_uint64, references, unpack_count, unpack_uint64
from berkeleydb_storage.records import class_name
from berkeleydb_storage.session import Session

BATCH = 100
"""Records that are read at once, with the mutex: about 0.1 ms."""
REPORT_EVERY = 2000
"""Records between two calls of `progress`."""
ATTEMPTS = 5
"""Searches, if commits take away again and again what was found."""
LISTED = 10
"""Referrers of an object of garbage that are named."""
SEARCHING, RETURNING, READING, REFERRERS = ("searching", "going back", "reading the path", "looking for referrers")
"""What `progress` is told that is being done."""
SMALL = 64
"""Objects in a level from which on a bitmap takes less memory than their oids."""

Progress = Callable[[str, int], None]


class Node(NamedTuple):
    """An object, as one of a graph."""

    oid: int
    name: str
    """Module and name of its class."""
    size: int
    """Bytes of its record."""
    since: float | None = None
    """Since when it waits in the garbage queue, in seconds since the epoch; None where it does not."""
    doomed: bool = False
    """Whether it is being deleted, with others: for everybody else it is gone."""


@dataclass(frozen=True)
class Why:
    """Why an object is still there."""

    node: Node
    path: tuple[Node, ...] = ()
    """A shortest path of references: the root first, the object last. Empty: it is garbage."""
    count: int = 0
    """Of garbage: how many other objects refer to it, none of which the root reaches. 0 where it is being deleted."""
    referrers: tuple[Node, ...] = ()
    """The first `LISTED` of them, in the order of their oids, but those that are being deleted last."""

    @property
    def reachable(self) -> bool:
        """Whether the root reaches it."""
        return bool(self.path)


def why(session: Session, oids: Iterable[int], progress: Progress | None = None) -> list[Why]:
    """Tell of each of these objects why it is still there. One search serves them all.

    Reads no more of the storage than what is as near to the root as they are, twice; of garbage whose count is not 0,
    everything. If commits come in between, a path is one there was at the end, and need not be a shortest one.

    Args:
        session: any session of the storage.
        oids: their numbers.
        progress: called now and then with what is being done and the number of records read for it; what it raises
            ends the search.

    Returns:
        The answers in the order of `oids`.

    Raises:
        DurusKeyError: there is no such object, or it was collected meanwhile.
        ValueError: there can be no such oid.
        DamagedError: a record on the way is malformed.
        BerkeleyDBStorageError: commits broke each path that was found before it could be told.
        CommitRefused: a migration is under way, so that nothing fits together yet.
        StorageClosed: it cannot be read.
    """
    numbers = list(oids)
    wanted = dict.fromkeys(map(_oid, numbers))
    answers: dict[bytes, Why] = {}
    for _ in range(ATTEMPTS):
        search = _Search(session, progress or _silent)
        answers.update(search.answer([oid for oid in wanted if oid not in answers]))
        if len(answers) == len(wanted):
            return [answers[pack_uint64(number)] for number in numbers]
    raise BerkeleyDBStorageError(
        f"{session._engine.environment.path} is written to so fast that {ATTEMPTS} paths from the root were gone "
        "before they could be told: ask again when less is written"
    )


def _oid(number: int) -> bytes:
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is not an oid: they have 64 bits")
    return pack_uint64(number)


def _silent(activity: str, records: int) -> None:
    """Show no progress."""


def _node(oid: bytes, record: bytes, since: float | None = None, *, doomed: bool = False) -> Node:
    return Node(unpack_uint64(oid), sys.intern(class_name(record)), len(record), since, doomed)


class _Search:
    """One search from the root, by one thread."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self._session = session
        self._engine: Engine = session._engine
        self._progress = progress
        self._activity, self._read = "", 0
        self._reached = BitMap64([unpack_uint64(ROOT_OID)])
        self._levels: list[BitMap64 | bytes] = []
        self._changed = BitMap64()  # guarded by the engine's mutex
        self._engine.listen(self)

    def invalidate(self, oids: Collection[bytes]) -> None:
        """Note what a commit or the collector changed. Called by the engine, under its mutex."""
        self._changed.update(map(unpack_uint64, oids))

    def answer(self, oids: Sequence[bytes]) -> dict[bytes, Why]:
        """Return the answers for these objects; none for one whose path a commit broke."""
        with self._engine.lock:
            self._engine.require_idle()
            answers = {oid: told for oid in oids if _is_told(told := self._condemned(oid))}
        sought = [oid for oid in oids if oid not in answers]
        if not sought:
            return answers
        garbage = self._descend(set(sought) - {ROOT_OID})
        parents = self._ascend([oid for oid in sought if oid not in garbage])
        for oid in sought:
            if oid not in garbage and (path := self._path(oid, parents)):
                answers[oid] = Why(path[-1], path)
        return answers | self._with_referrers(garbage)

    def _condemned(self, oid: bytes) -> Why:
        """Return what is known of an object if it is garbage. The caller holds the mutex.

        Raises:
            DurusKeyError: there is none.
        """
        record = self._get([oid])[0]
        if record is None:
            raise missing(oid)
        return Why(*self._known(oid, record))

    def _known(self, oid: bytes, record: bytes) -> tuple[Node, tuple[Node, ...], int]:
        """Return an object, no path to it, and its count. The caller holds the mutex."""
        if unpack_uint64(oid) in self._engine.doomed.closed:
            return _node(oid, record, doomed=True), (), 0
        count, since = self._count(oid)
        return _node(oid, record, since), (), count

    def _count(self, oid: bytes) -> tuple[int, float | None]:
        """Return an object's count, and since when it is 0, in seconds. The caller holds the mutex."""
        try:
            row = self._engine.environment.tables[REFCOUNTS].get(oid)
            count, since = (1, 0) if row is None else unpack_count(row)
        except LIBRARY_ERRORS as error:
            raise self._engine.failed(error) from error
        except ValueError as error:
            raise self._damaged(f"object {unpack_uint64(oid)}: {error}") from error
        return count, None if count else since / 1e6

    def _descend(self, sought: set[bytes]) -> dict[bytes, Why]:
        """Go from the root from level to level until all these are reached, or all that can be.

        Returns:
            What is known of those that were not reached, at the moment when it was certain.
        """
        level = self._reached.copy()
        while True:
            self._levels.append(_compact(level))
            level = self._expand(level, sought)
            if not sought:
                self._levels.append(_compact(level))
                return {}
            with self._engine.lock:
                level |= self._reached & self._changed
                self._changed.clear()
                if not level:
                    return {oid: self._condemned(oid) for oid in sought}

    def _expand(self, level: BitMap64, sought: set[bytes]) -> BitMap64:
        """Return what a level refers to and was not reached before; take that out of `sought`, end when it is empty."""
        reached, fresh = self._reached, BitMap64()
        for oid, record in self._records(map(pack_uint64, level), SEARCHING):
            if not sought:
                break
            for ref in self._references(oid, record):
                number = unpack_uint64(ref)
                if number not in reached:
                    reached.add(number)
                    fresh.add(number)
                    sought.discard(ref)
        return fresh

    def _ascend(self, oids: Iterable[bytes]) -> dict[bytes, bytes]:
        """Go back from the last level to the root; return for each object the one by which it was reached.

        An object that was changed is in several levels. Where it leads to something, what led to it is looked for in
        the levels below, even if that was found before: so the parents never form a cycle.
        """
        wanted, parents = set(oids), dict[bytes, bytes]()
        while wanted and len(self._levels) > 1:
            level = _expanded(self._levels.pop())
            here = {oid for oid in wanted if unpack_uint64(oid) in level}
            if not here:
                continue
            for oid, record in self._records(map(pack_uint64, _expanded(self._levels[-1])), RETURNING):
                found = here.intersection(self._references(oid, record))
                if found:
                    parents.update(dict.fromkeys(found, oid))
                    parents.pop(oid, None)
                    wanted = (wanted - found) | {oid}
                    here = here - found
                if not here:
                    break
        return parents

    def _path(self, oid: bytes, parents: dict[bytes, bytes]) -> tuple[Node, ...]:
        """Return the path to an object, nothing where a commit broke it."""
        path = [oid]
        while path[-1] != ROOT_OID:
            if path[-1] not in parents:
                return ()
            path.append(parents[path[-1]])
        path.reverse()
        nodes = tuple(_node(oid, record) for oid, record in self._records(path, READING))
        return nodes if self._holds(path) else ()

    def _holds(self, path: Sequence[bytes]) -> bool:
        """Tell whether each object of a path refers to the next at this moment: those that were changed may not."""
        numbers = BitMap64(map(unpack_uint64, path))
        with self._engine.lock:
            changed = {pack_uint64(number) for number in numbers & self._changed}
            links = [(oid, following) for oid, following in pairwise(path) if oid in changed] if changed else []
            records = self._get(oid for oid, _ in links)
            return all(
                record is not None and following in self._references(oid, record)
                for (oid, following), record in zip(links, records, strict=True)
            )

    def _with_referrers(self, garbage: dict[bytes, Why]) -> dict[bytes, Why]:
        """Add to each answer the first of the objects that refer to it, as they were when the search was over."""
        missed = {oid: min(told.count, LISTED) for oid, told in garbage.items() if told.count}
        found: dict[bytes, list[Node]] = {oid: [] for oid in garbage}
        rows = self._garbage() if missed else iter(())
        for oid, record in self._counted(rows, REFERRERS):
            refs = () if unpack_uint64(oid) in self._reached else missed.keys() & _readable_references(oid, record)
            for ref in refs:
                with self._engine.lock:
                    if unpack_uint64(oid) in self._changed:
                        break
                    found[ref].append(self._known(oid, record)[0])
                missed[ref] -= 1
                if not missed[ref]:
                    del missed[ref]
            if not missed:
                break
        return {oid: Why(told.node, (), told.count, tuple(found[oid])) for oid, told in garbage.items()}

    def _garbage(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (oid, record) of all objects, and then of those that are being deleted."""
        yield from self._session.gen_oid_record(batch_size=BATCH)
        with self._engine.lock:
            doomed = self._engine.doomed.closed
        yield from self._batches(map(pack_uint64, doomed))

    def _records(self, oids: Iterable[bytes], activity: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield (oid, record) of those of these objects that there are; a batch is read at a time."""
        return self._counted(self._batches(iter(oids)), activity)

    def _batches(self, oids: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
        while batch := list(islice(oids, BATCH)):
            with self._engine.lock:
                records = self._get(batch)
            yield from ((oid, record) for oid, record in zip(batch, records, strict=True) if record is not None)

    def _counted(self, rows: Iterator[tuple[bytes, bytes]], activity: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows, and report how many there were for an activity."""
        if activity != self._activity:
            self._activity, self._read = activity, 0
        for row in rows:
            if self._read % REPORT_EVERY == 0:
                self._progress(activity, self._read)
            self._read += 1
            yield row

    def _get(self, oids: Iterable[bytes]) -> list[bytes | None]:
        """Return the records of these objects, None for one that there is not. The caller holds the mutex."""
        try:
            return list(map(self._engine.objects.get, oids))
        except LIBRARY_ERRORS as error:
            raise self._engine.failed(error) from error

    def _references(self, oid: bytes, record: bytes) -> tuple[bytes, ...]:
        try:
            return references(oid, record)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(f"{self._engine.environment.path}: {what}; run `durus-bdb check`")


def _is_told(answer: Why) -> bool:
    """Tell whether nothing more needs to be known of an object: it waits to be deleted, or that goes on."""
    return answer.node.doomed or answer.node.since is not None


def _readable_references(oid: bytes, record: bytes) -> tuple[bytes, ...]:
    """Return what an object of garbage refers to, nothing where that cannot be read."""
    try:
        return references(oid, record)
    except ValueError:
        return ()


def _compact(level: BitMap64) -> BitMap64 | bytes:
    """Return a level in the form that takes less memory."""
    return level if len(level) >= SMALL else b"".join(map(pack_uint64, level))


def _expanded(level: BitMap64 | bytes) -> BitMap64:
    """Return what `_compact` made smaller."""
    return level if isinstance(level, BitMap64) else BitMap64(unpack(f">{len(level) // OID_LENGTH}Q", level))
