"""What is in a repository: bases, the pieces of log that continue them, the backups that were made. Pure.

A base with the pieces that follow it without a gap is a chain: it is what any state from the end of the base to the
end of the chain can be restored from. Names, layout: docs/FORMAT.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from berkeleydb_storage.errors import DamagedBackup
from berkeleydb_storage.files import Position

FORMAT = 1
"""Of a repository."""
MANIFEST = "backup.json"
PIECES, RUNS = "pieces", "runs"
COMPRESSED = ".gz"
UNKNOWN = 0
"""The tid and time of a piece that does not end at a commit."""
DIGITS = 16
"""Of the SHA-256 of a piece, in hexadecimal digits, in its name: so that two of the same place are two names."""

LATEST = 253_402_300_800_000_000
"""Times are before the year 10,000: in microseconds since the epoch."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"[0-9a-f]{32}")
_MOMENT = re.compile(r"(\d{8}T\d{6}\.\d{6})Z-(\d{12,20})")
_PIECE = re.compile(r"(\d{10})-(\d{8,10})-(\d{10})-(\d{8,10})-(\d{12,20})-(\d{16,20})-([0-9a-f]{16})")


def moment_name(tid: int, time: int) -> str:
    """Return the name of a state: names sort by time, which is in microseconds since the epoch."""
    when = datetime.fromtimestamp(time // 1_000_000, timezone.utc)
    return f"{when:%Y%m%dT%H%M%S}.{time % 1_000_000:06d}Z-{tid:012d}"


def parse_moment(name: str) -> tuple[int, int] | None:
    """Return tid and time of a name that `moment_name` gave, None where it is another one."""
    found = _MOMENT.fullmatch(name)
    if found is None:
        return None
    try:
        when = datetime.strptime(found[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    seconds = int(when.replace(microsecond=0).timestamp())
    return int(found[2]), seconds * 1_000_000 + when.microsecond


@dataclass(frozen=True)
class Piece:
    """Some log, of one log file."""

    start: Position
    end: Position
    """Where the next one begins: in the same file, or at the beginning of the next one if the file ends here."""
    tid: int
    """The newest transaction before the end, if that is at a commit, or else `UNKNOWN`."""
    time: int
    """Of the state at the end, in microseconds since the epoch, or `UNKNOWN`."""
    digest: str
    """How the SHA-256 of its bytes begins: `DIGITS` hexadecimal digits."""

    @property
    def name(self) -> str:
        """Its name in the folder of pieces, without a suffix."""
        (log, offset), (to, until) = self.start, self.end
        return f"{log:010d}-{offset:08d}-{to:010d}-{until:08d}-{self.tid:012d}-{self.time:016d}-{self.digest}"

    def covers(self, other: Piece) -> bool:
        """Tell whether all that is in another piece is in this one, and more."""
        return (
            self.start <= other.start and other.end <= self.end and (self.start, self.end) != (other.start, other.end)
        )


def parse_piece(name: str) -> Piece | None:
    """Return the piece with that name, None where it is not one's."""
    found = _PIECE.fullmatch(name.removesuffix(COMPRESSED))
    if found is None:
        return None
    log, offset, to, until, tid, time = map(int, found.groups()[:6])
    piece = Piece(Position(log, offset), Position(to, until), tid, time, found[7])
    return piece if piece.start < piece.end else None


@dataclass(frozen=True)
class Run:
    """An incremental backup that was made: it ends where one of the pieces does."""

    tid: int
    time: int
    """In microseconds since the epoch."""

    @property
    def name(self) -> str:
        """Its name in the folder of runs."""
        return moment_name(self.tid, self.time) + ".json"


@dataclass(frozen=True)
class Manifest:
    """What ``backup.json`` says of a base."""

    tid: int
    time: int
    """In microseconds since the epoch."""
    objects: int
    seconds: float
    """How long it took to make."""
    storage: str
    """The path of the storage that it was made of."""
    identity: str
    """The identity of that storage, in hexadecimal digits."""
    first: Position
    """Where the log in the base begins."""
    end: Position
    """Where it ends, and the pieces go on."""
    description: dict[str, Any]
    """What ``storage.json`` said."""
    files: dict[str, dict[str, Any]]
    """Name of a file -> its "bytes" and "sha256", as they were in the storage."""
    compressed: bool
    """Whether the files are compressed by gzip, and their names end in ".gz"."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What is not known here: a later version wrote it."""

    def __post_init__(self) -> None:
        """Refuse what nobody writes: all of it comes from a file.

        Raises:
            ValueError: it names the value.
        """
        limits = {"tid": 1 << 64, "time": LATEST, "objects": 1 << 64, "seconds": float("inf")}
        wrong = [name for name, limit in limits.items() if not 0 <= getattr(self, name) < limit]
        kinds = {
            "tid": int,
            "time": int,
            "objects": int,
            "storage": str,
            "identity": str,
            "description": dict,
            "files": dict,
            "compressed": bool,
        }
        wrong += [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        wrong += [name for name in ("first", "end") if min(getattr(self, name)) < 0]
        if not wrong:
            wrong += [name for name, entry in self.files.items() if not _is_entry(entry)]
        if wrong:
            raise ValueError(f"{', '.join(map(repr, wrong))} cannot be so")

    @property
    def bytes(self) -> int:
        """Of all files, as they were in the storage."""
        return sum(entry["bytes"] for entry in self.files.values())


def _is_entry(entry: object) -> bool:
    """Tell whether this is what is noted of a file."""
    if not isinstance(entry, dict):
        return False
    size, digest = entry.get("bytes"), entry.get("sha256")
    return type(size) is int and size >= 0 and isinstance(digest, str) and _SHA256.fullmatch(digest) is not None


@dataclass(frozen=True)
class Base:
    """A copy of the tables, and the log that goes with them and after them."""

    identity: str
    """Of the storage, in hexadecimal digits."""
    name: str
    """Of its folder: the state when it was begun."""
    pieces: tuple[Piece, ...] = ()
    """By start, the longer first."""
    runs: tuple[Run, ...] = ()
    """By time."""
    names: frozenset[str] = frozenset()
    """All that is in its folder, without the folder."""
    manifest: Manifest | None = None
    """None where it is not complete: it is being made, or was interrupted, or the manifest is damaged."""

    @property
    def folder(self) -> str:
        """Where it is, below the root of the repository."""
        return f"{self.identity}/{self.name}"

    @property
    def noted(self) -> Manifest:
        """Its manifest.

        Raises:
            DamagedBackup: it has none.
        """
        if self.manifest is None:
            raise DamagedBackup(f"{self.folder}/{MANIFEST} is missing or damaged: use an earlier backup")
        return self.manifest

    @property
    def is_damaged(self) -> bool:
        """Whether there is a manifest that cannot be used."""
        return self.manifest is None and MANIFEST in self.names

    @property
    def begun(self) -> int:
        """When it was begun, in microseconds since the epoch."""
        return (parse_moment(self.name) or (0, 0))[1]

    def chain(self) -> list[Piece]:
        """Return the fewest pieces that continue it without a gap."""
        return [] if self.manifest is None else follow(self.pieces, self.manifest.end)

    def reach(self) -> tuple[Position, int, int]:
        """Return where its chain ends, and the newest transaction and time that are known to be in it."""
        if self.manifest is None:
            return Position(0, 0), UNKNOWN, UNKNOWN
        chain = self.chain()
        end = chain[-1].end if chain else self.manifest.end
        known = [(piece.tid, piece.time) for piece in self.pieces if piece.tid != UNKNOWN and piece.end <= end]
        return end, *max([(self.manifest.tid, self.manifest.time), *known])

    def lacks(self) -> int:
        """Return the newest transaction that a backup had, and that is not in the chain any more; 0: there is none."""
        newest = max((run.tid for run in self.runs), default=0)
        return newest if newest > self.reach()[1] else 0


def catalog(names: Iterable[str]) -> list[Base]:
    """Return the bases of all storages, without manifests, oldest first, from the names of all that is in a repository.

    Names that are not of this format are left out.
    """
    folders: dict[tuple[str, str], set[str]] = {}
    for name in names:
        identity, _, rest = name.partition("/")
        folder, _, inner = rest.partition("/")
        if inner and _IDENTITY.fullmatch(identity) and parse_moment(folder):
            folders.setdefault((identity, folder), set()).add(inner)
    bases = [_base(identity, folder, frozenset(found)) for (identity, folder), found in folders.items()]
    return sorted(bases, key=lambda base: (base.begun, base.folder))


def _base(identity: str, folder: str, names: frozenset[str]) -> Base:
    pieces = [found for name in names if (found := parse_piece(name.removeprefix(f"{PIECES}/"))) and "/" in name]
    pieces.sort(key=lambda piece: (piece.start, -piece.end.log, -piece.end.offset, piece.digest))
    runs = [Run(*moment) for name in names if name.startswith(f"{RUNS}/") and (moment := _run(name[len(RUNS) + 1 :]))]
    runs.sort(key=lambda run: (run.time, run.tid))
    return Base(identity, folder, tuple(pieces), tuple(runs), names)


def _run(name: str) -> tuple[int, int] | None:
    return parse_moment(name.removesuffix(".json")) if name.endswith(".json") else None


def follow(pieces: Iterable[Piece], start: Position) -> list[Piece]:
    """Return the fewest pieces that go on from `start` without a gap, as far as there are any.

    Args:
        pieces: by start.
        start: the end of a base.
    """
    chosen: list[Piece] = []
    reached, best = start, None
    for piece in pieces:
        if best is not None and piece.start > reached:
            chosen.append(best)
            reached, best = best.end, None
        if piece.start > reached:
            break
        if piece.end > (reached if best is None else best.end):
            best = piece
    if best is not None:
        chosen.append(best)
    return chosen
