"""One backup: what is new since the last one, or everything.

What is new is the log. It is enough if the source still has it from the place on where the chain in the repository
ends, and the chain is its own: who made it holds the log from there on. Everything is copied where there is no such
chain; where the log in it has outgrown the storage, so that a copy takes less room and restores faster; and where the
copy is older than `FRESH`, so that old ones can go.

Killed at any point: what is in the repository can be restored as before, and the next backup goes on from there.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.catalog import DIGITS, Base, Run, moment_name
from berkeleydb_storage.backup.repository import Report, Repository
from berkeleydb_storage.backup.source import Moment, Source
from berkeleydb_storage.backup.stores import is_url
from berkeleydb_storage.directory import DESCRIPTION
from berkeleydb_storage.environment import LOG_FILE_SIZE, TABLES
from berkeleydb_storage.errors import BackupError, DamagedError, LogGone
from berkeleydb_storage.files import TABLE_SUFFIX, Position, log_name
from berkeleydb_storage.holding import holder_name

logger = logging.getLogger(__name__)

FRESH = 7 * 86400.0
"""Seconds after which everything is copied again."""
SMALL = 64 << 20
"""Bytes of log that are kept, and that a chain may have, however small the storage is."""
FULL, INCREMENTAL = "full", "incremental"


@dataclass(frozen=True)
class Backup:
    """A backup that is complete."""

    where: str
    """The directory or URL that it is in."""
    name: str
    """The time (UTC) and the newest transaction of its state: names sort by time."""
    kind: str
    """"full", or "incremental": it goes on from the one before."""
    storage: str
    """The path of the storage that it was made of."""
    identity: str
    """The identity of that storage, in hexadecimal digits."""
    tid: int
    """The newest transaction in it."""
    objects: int
    """Objects in it, garbage included."""
    bytes: int
    """That were copied for it."""
    seconds: float
    """How long it took."""
    time: float
    """Whose state it is, in seconds since the epoch: every commit that was acknowledged before is in it."""


def back_up(source: Source, repository: Repository, report: Report, *, full: bool = False) -> Backup:
    """Make a backup, and return what was made.

    Args:
        source: of what.
        repository: where to.
        report: called with what is being done, and how many bytes of it are.
        full: copy everything in any case.

    Raises:
        BackupError: it cannot be made; what was there before can be restored. As `Source` says.
    """
    started = time.monotonic()
    refuse_inside(source, repository)
    moment = source.look()
    base = newest(repository.bases(moment.identity.hex()))
    holder = holder_name("backup", repository.store.url)
    position = source.held(holder)
    if base is None or position is None or not is_mine(source, base, position):
        return _everything(source, repository, report, holder, moment, None)
    reached = base.reach()[0]
    if full or is_outgrown(base, moment):
        return _everything(source, repository, report, holder, moment, (base, reached))
    try:
        pieces = repository.add_pieces(source, base, reached, moment, report)
    except LogGone as error:
        logger.warning("%s: everything is copied", error)
        return _everything(source, repository, report, holder, moment, None)
    failpoints.reached("backup.added")
    _go_on_holding(source, holder, moment.end, limit(base))
    size = sum(_length(piece.start, piece.end) for piece in pieces)
    values = {"seconds": round(time.monotonic() - started, 3), "bytes": size, "objects": moment.objects}
    run = Run(moment.tid, moment.time)
    repository.add_run(base, run, values)
    failpoints.reached("backup.noted")
    made = described(repository, base, run, values)
    logger.info("backup of what is new in %s to %s in %.1f s", source.path, made.where, made.seconds)
    return made


def refuse_inside(source: Source, repository: Repository) -> None:
    """Refuse to write backups into the directory of a storage, where they are lost with it and would be in its way.

    Raises:
        BackupError: that would happen.
    """
    if is_url(repository.store.url):
        return
    target, storage = Path(repository.store.url).resolve(), source.path.resolve()
    if storage in (target, *target.parents) or (target / DESCRIPTION).exists():
        raise BackupError(f"{repository.store.url} is in a storage: give a directory of its own for the backups")


def _everything(
    source: Source,
    repository: Repository,
    report: Report,
    holder: str,
    moment: Moment,
    before: tuple[Base, Position] | None,
) -> Backup:
    base = renew(source, repository, report, holder, moment, before)
    made = described(repository, base)
    logger.info("backup of everything in %s to %s in %.1f s", source.path, made.where, made.seconds)
    return made


def renew(
    source: Source,
    repository: Repository,
    report: Report,
    holder: str,
    moment: Moment,
    before: tuple[Base, Position] | None,
) -> Base:
    """Copy everything, and hold the log from there on.

    Args:
        source: of what.
        repository: where to.
        report: called with what is being done.
        holder: for whom the log is held.
        moment: a state of now.
        before: the base whose chain comes before, and where that ends: it is continued up to the new one, so that
            each commit in between can be restored. None where there is none, or its log is lost.

    Raises:
        As `back_up`.
    """
    if before is not None:
        try:
            repository.add_pieces(source, *before, moment, report)
        except LogGone as error:
            logger.warning("%s: what was committed since the last backup is in the next one alone", error)
            before = None
    start = _held(source, holder, moment)
    if before is not None and start != moment.end:
        logger.warning("%s: the log was removed meanwhile, some of it is in the next backup alone", source.path)
        before = None
    base = repository.add_base(source, report)
    manifest = base.noted
    if before is not None:
        reached = Moment(manifest.tid, manifest.time, manifest.objects, moment.identity, manifest.end)
        with suppress(LogGone):
            repository.add_pieces(source, before[0], start, reached)
    _go_on_holding(source, holder, manifest.end, limit(base))
    return base


def _held(source: Source, holder: str, moment: Moment) -> Position:
    """Hold the log from a state on, or a later one, where files were removed since it was looked at; return which.

    What is held may be as much as the tables have: they take a while to copy.
    """
    room = SMALL
    for name in TABLES:
        with suppress(OSError):
            room += (source.path / (name + TABLE_SUFFIX)).stat().st_size
    while True:
        try:
            source.hold(holder, moment.end, room)
            return moment.end
        except LogGone:
            moment = source.look()


def _go_on_holding(source: Source, holder: str, end: Position, size: int) -> None:
    """Hold the log from the end of a backup on, which is complete: where it is gone, the next copies everything."""
    try:
        source.hold(holder, end, size)
    except LogGone as error:
        logger.warning("%s: so the next backup copies everything", error)


def newest(bases: list[Base]) -> Base | None:
    """Return the newest base that is complete, of those of one storage: its log never goes back, as clocks may."""
    whole = [base for base in bases if base.manifest is not None]
    return max(whole, key=lambda base: (base.noted.end, base.name), default=None)


def is_mine(source: Source, base: Base, position: Position) -> bool:
    """Tell whether the chain of a base is of the log that the source has, so that it may be continued.

    The log is held from its end on, or from before, where who wrote the last pieces was killed then, or another writes
    there too. What is not before the place that is held is compared, and the last piece in any case: a disk that
    forgot writes may have taken the storage back to a state before it, and not the note of what is held.

    Args:
        source: of what.
        base: the base.
        position: from where on the source holds the log.
    """
    chain = base.chain()
    if position > base.reach()[0]:
        return False
    unheld = [piece for piece in chain if piece.end > position]
    try:
        return ((bool(chain) and position >= base.noted.end) or _ends_as(source, base)) and all(
            _digest(source, piece.start, piece.end)[:DIGITS] == piece.digest for piece in unheld or chain[-1:]
        )
    except (LogGone, DamagedError):
        return False


def _ends_as(source: Source, base: Base) -> bool:
    """Compare the last log file in a base: that of a copy of the storage, which has its identity, is another one."""
    end = base.noted.end
    noted = base.noted.files.get(log_name(end.log))
    return noted is not None and _digest(source, Position(end.log, 0), end) == noted["sha256"]


def _digest(source: Source, start: Position, end: Position) -> str:
    hashed = hashlib.sha256()
    for chunk in source.log(start, end):
        hashed.update(chunk.data)
    return hashed.hexdigest()


def is_outgrown(base: Base, moment: Moment) -> bool:
    """Tell whether a chain is too long, or too old, to be continued."""
    manifest = base.noted
    return _length(manifest.end, moment.end) > limit(base) or moment.time - manifest.time > FRESH * 1e6


def limit(base: Base) -> int:
    """Return how many bytes of log are worth keeping for a backup: as many as the storage has, or `SMALL`."""
    sizes = base.noted.files
    tables: int = sum(sizes[name + TABLE_SUFFIX]["bytes"] for name in TABLES if name + TABLE_SUFFIX in sizes)
    return max(SMALL, tables)


def _length(start: Position, end: Position) -> int:
    """Return about how many bytes of log that is: of files that end in between, it counts as much as they can have."""
    return (end.log - start.log) * LOG_FILE_SIZE + end.offset - start.offset


def described(
    repository: Repository, base: Base, run: Run | None = None, values: Mapping[str, object] | None = None
) -> Backup:
    """Return what is told of a base, or of an incremental backup that ends in its chain."""
    manifest = base.noted
    if run is None:
        state = (FULL, manifest.tid, manifest.objects, manifest.bytes, manifest.seconds, manifest.time)
    else:
        noted = values or {}
        objects, size, seconds = (_number(noted.get(name)) for name in ("objects", "bytes", "seconds"))
        state = (INCREMENTAL, run.tid, int(objects), int(size), float(seconds), run.time)
    kind, tid, objects, size, seconds, when = state
    return Backup(
        repository.store.url,
        moment_name(tid, when),
        kind,
        manifest.storage,
        base.identity,
        tid,
        objects,
        size,
        seconds,
        when / 1e6,
    )


def _number(value: object) -> float:
    """Return what is noted, 0 where that is no number: it is for people alone."""
    return value if isinstance(value, (int, float)) and 0 <= value < 1 << 64 else 0
