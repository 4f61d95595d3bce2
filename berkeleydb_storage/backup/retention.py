"""Which backups stay, and what of a repository they need. Pure but for warnings in the log.

A *point* is a state that was asked for: of a base, or of an incremental backup. It can be restored while its base is
there, complete, and pieces from the end of that on to the point, without a gap. `Keep` says which points stay, and
`needless` names the rest.

Invariants:

1. Of the newest base that is complete nothing goes but pieces that are in others whole.
2. Whatever number of the names were removed, in that order: every point that stays can be restored, and nothing says
   that there are others which cannot be. What is half removed is named again the next time, at the latest a day later.
3. A name that is not understood stays.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import date
from itertools import accumulate, groupby
from typing import NamedTuple

from berkeleydb_storage.backup.catalog import COMPRESSED, MANIFEST, PIECES, RUNS, UNKNOWN, Base, Piece, Run, parse_piece
from berkeleydb_storage.errors import OptionError
from berkeleydb_storage.files import TABLE_SUFFIX, Position, log_number

logger = logging.getLogger(__name__)

SECOND = 1_000_000
"""In microseconds, as all times here are."""
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
INTERRUPTED = DAY
"""Age from which on a base that is not complete, and older than one that is, is taken for interrupted."""
BEYOND = Position(1 << 62, 0)
"""After all pieces."""


@dataclass(frozen=True)
class Keep:
    """Which backups stay: those that at least one of the rules names. Hours, days, weeks and months are those of UTC.

    The newest backup of everything stays in any case, with the log after it.
    """

    last: int | None = None
    """The newest so many, and each moment from the oldest of them on, as far as the log tells."""
    hourly: int | None = None
    """The newest of each hour, of the newest so many hours that have any."""
    daily: int | None = None
    """The same by days."""
    weekly: int | None = None
    """The same by weeks, which begin on Monday."""
    monthly: int | None = None
    """The same by months."""
    within: float | None = None
    """Each moment from so many seconds ago on, not only the backups that were made."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: a number is not positive, or there is none.
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if all(value is None for value in given.values()):
            raise OptionError(f"keep needs one of {', '.join(given)}: give a number, such as last=10")
        within = given.pop("within")
        for name, value in given.items():
            if value is not None and (type(value) is not int or value < 1):
                raise OptionError(f"keep: {name} is a number of backups, at least 1, not {value!r}")
        number = isinstance(within, (int, float)) and not isinstance(within, bool)
        if within is not None and not (number and math.isfinite(within) and within > 0):
            raise OptionError(f"keep: within is a positive number of seconds, not {within!r}")

    @classmethod
    def of(cls, value: Keep | int) -> Keep:
        """Return what a user gave, where a number stands for the newest so many.

        Raises:
            OptionError: it is neither.
        """
        return value if isinstance(value, Keep) else cls(last=value)


class Point(NamedTuple):
    """A state that was asked for, and can be restored. They are compared by their times."""

    time: int
    tid: int
    folder: str
    """Of its base."""
    run: Run | None
    """None: it is that of the base itself."""


def needless(bases: Iterable[Base], keep: Keep, now: int) -> list[str]:
    """Return the names, below the root of a repository, that no backup needs which stays, in the order to remove them.

    Args:
        bases: all of one storage, with their manifests.
        keep: what stays.
        now: the time in microseconds since the epoch.
    """
    known = sorted(bases, key=lambda base: (base.begun, base.folder))
    whole = [_Chain(base) for base in known if base.manifest is not None]
    if not whole:
        return []
    whole.sort(key=lambda chain: (chain.time, chain.tid, chain.folder))
    points = sorted((point for chain in whole for point in chain.points()), key=lambda point: point[:3])
    kept = set(_chosen(points, keep, now))
    needed = _needed(whole, kept, _begin(points, keep, now))
    newest = whole[-1]
    names: list[str] = []
    for base in known:
        if base.folder in needed:
            end = needed[base.folder]
            names += _needless_runs(base, kept, newest if base is newest.base else None)
            names += _needless_pieces(base, end)
        elif base.manifest is not None or _is_interrupted(base, newest.base, now):
            names += _removed(base)
    return names


class _Chain:
    """A base that is complete, with what follows it."""

    def __init__(self, base: Base) -> None:
        assert base.manifest is not None
        self.base = base
        self.folder = base.folder
        self.identity = base.identity
        self.time, self.tid, self.begin = base.manifest.time, base.manifest.tid, base.manifest.end
        self.end = base.reach()[0]
        ends = sorted((piece.tid, piece.end) for piece in base.pieces if piece.tid > UNKNOWN and piece.end <= self.end)
        self._tids = [tid for tid, _ in ends]
        self._ends = list(accumulate((end for _, end in reversed(ends)), min))[::-1]

    def end_of(self, tid: int) -> Position | None:
        """Return the first known place with all transactions up to `tid`; None: there is none."""
        if tid <= self.tid:
            return self.begin
        place = bisect_left(self._tids, tid)
        return self._ends[place] if place < len(self._ends) else None

    def points(self) -> Iterator[Point]:
        """Yield the points that can be restored."""
        yield Point(self.time, self.tid, self.folder, None)
        for run in self.base.runs:
            if self.end_of(run.tid) is not None:
                yield Point(run.time, run.tid, self.folder, run)


def _chosen(points: Sequence[Point], keep: Keep, now: int) -> Iterator[Point]:
    """Yield the points, which are sorted, that stay by one of the rules."""
    rules: list[tuple[int | None, Callable[[Point], object]]] = [
        (keep.last, lambda point: point),
        (keep.hourly, lambda point: point.time // HOUR),
        (keep.daily, lambda point: point.time // DAY),
        (keep.weekly, lambda point: (point.time // DAY + 3) // 7),  # the epoch began on a Thursday
        (keep.monthly, lambda point: _month(point.time // DAY)),
    ]
    for count, period in rules:
        if count is not None:
            newest = {period(point): point for point in points}
            yield from list(newest.values())[-count:]
    if keep.within is not None:
        yield from (point for point in points if point.time >= now - keep.within * SECOND)


def _month(day: int) -> tuple[int, int]:
    """Return year and month of a day since the epoch; those of times that nobody can have been given are one."""
    epoch = date(1970, 1, 1).toordinal()
    when = date.fromordinal(max(1, min(epoch + day, date.max.toordinal())))
    return when.year, when.month


def _begin(points: Sequence[Point], keep: Keep, now: int) -> float:
    """Return the time from which on each moment stays; infinity where none does."""
    begins = [math.inf]
    if keep.within is not None:
        begins.append(now - keep.within * SECOND)
    if keep.last is not None:
        begins.append(points[-keep.last :][0].time)
    return min(begins)


def _needed(whole: list[_Chain], kept: set[Point], begin: float) -> dict[str, Position]:
    """Return the folders of the bases that are needed, with the end of the log that is needed after each.

    Args:
        whole: the bases that are complete, oldest first.
        kept: the points that stay.
        begin: the time from which on each moment stays.
    """
    chains = {chain.folder: chain for chain in whole}
    needed = {whole[-1].folder: BEYOND}

    def need(chain: _Chain, tid: int | None = None) -> None:
        end = None if tid is None else chain.end_of(tid)
        end = chain.end if end is None else end
        needed[chain.folder] = max(end, needed.get(chain.folder, end))

    for point in kept:
        need(chains[point.folder], point.tid)
    for chain in _since(whole, begin):
        need(chain)
    left = [chain for chain in whole if chain.folder in needed]
    for point in kept:
        need(_begun_with(point, chains[point.folder], left), point.tid)
    return needed


def _since(whole: list[_Chain], begin: float) -> list[_Chain]:
    """Return the bases that are needed for every moment from a time on, of all, oldest first."""
    before = sum(1 for chain in whole if chain.time <= begin)
    return whole[max(0, before - 1) :] if math.isfinite(begin) else []


def _begun_with(point: Point, own: _Chain, left: list[_Chain]) -> _Chain:
    """Return the base, of those that stay, that a restore of a point begins with: the newest that is not later.

    It need not be the one that was continued when the point was made.
    """
    before = [chain for chain in left if chain.time <= point.time and chain.tid <= point.tid]
    same = [chain for chain in before if chain.identity == own.identity]
    return max(same, key=lambda chain: (chain.tid, chain.time), default=own)


def _is_interrupted(base: Base, newest: Base, now: int) -> bool:
    """Tell whether the making of a base without a manifest was given up, or its removal not finished."""
    if MANIFEST in base.names:
        logger.warning("%s/%s is damaged: nothing of that backup is removed", base.folder, MANIFEST)
        return False
    return base.begun < min(now - INTERRUPTED, newest.begun)


def _needless_runs(base: Base, kept: set[Point], newest: _Chain | None) -> Iterator[str]:
    """Yield the incremental backups that do not stay, of a base that does; if it is the newest, `newest` is it."""
    stay = {point.run for point in kept if point.folder == base.folder}
    for run in base.runs:
        lacks_log = newest is not None and newest.end_of(run.tid) is None
        if run not in stay and not lacks_log:
            yield f"{base.folder}/{RUNS}/{run.name}"


def _needless_pieces(base: Base, end: Position) -> Iterator[str]:
    """Yield the pieces, the last first, that begin at `end` or later, or are in the base, or whole in another one."""
    assert base.manifest is not None
    begin = base.manifest.end
    useless = {piece for piece in base.pieces if not begin < end or piece.start >= end or piece.end <= begin}
    useless |= _replaced([piece for piece in base.pieces if piece not in useless])
    for piece in sorted(useless, key=lambda piece: (piece.start, piece.end), reverse=True):
        yield from _piece_names(base, piece)


def _replaced(pieces: list[Piece]) -> set[Piece]:
    """Return the pieces of which all that they have, and say, is in another one; the same bytes twice are not."""
    found = set()
    told = untold = Position(0, 0)  # how far those go that begin earlier, or there and are longer
    in_order = sorted(pieces, key=lambda piece: (piece.start, -piece.end.log, -piece.end.offset))
    for _, group in groupby(in_order, key=lambda piece: (piece.start, piece.end)):
        same = list(group)
        found |= {piece for piece in same if piece.end <= told or (piece.tid == UNKNOWN and piece.end <= untold)}
        untold = max(untold, same[0].end)
        told = max([told, *(piece.end for piece in same if piece.tid != UNKNOWN)])
    return found


def _piece_names(base: Base, piece: Piece) -> Iterator[str]:
    for suffix in ("", COMPRESSED):
        if (name := f"{PIECES}/{piece.name}{suffix}") in base.names:
            yield f"{base.folder}/{name}"


def _removed(base: Base) -> Iterator[str]:
    """Yield all of a base: first the manifest, without which it does not count; and last the files."""
    parts = [{MANIFEST} & base.names, {f"{RUNS}/{run.name}" for run in base.runs}]
    parts.append(
        {name for name in base.names if name.startswith(f"{PIECES}/") and parse_piece(name[len(PIECES) + 1 :])}
    )
    parts.append({name for name in base.names if _is_file(name)})
    for part in parts:
        yield from (f"{base.folder}/{name}" for name in sorted(part, reverse=True))
    if unknown := sorted(base.names.difference(*parts)):
        logger.warning("%s is not needed, but stays, for what is not known: %s", base.folder, ", ".join(unknown[:3]))


def _is_file(name: str) -> bool:
    """Tell whether a base has files of such a name."""
    plain = name.removesuffix(COMPRESSED)
    return log_number(plain) is not None or ("/" not in plain and plain.endswith(TABLE_SUFFIX))
