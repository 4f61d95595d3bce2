"""The chain in a repository that an archive goes on with: a base, and pieces of log after it, every second some.

For one thread.

Invariants:

1. A piece is added only where the one before ends, and only to a log that is the one the archive has: the identity of
   the storage is that of the base, and the bytes of the last piece, or of the log in the base, are those of the log.
2. Many small pieces are joined: another one has all of them. They go by retention. A thousand are joined to one, and
   when the log file is complete, all of it is: so a restore has a hundred or so to fetch of the newest log file, and a
   few of each other one.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from typing import NamedTuple

from berkeleydb_storage import failpoints, files
from berkeleydb_storage.backup.catalog import DIGITS, UNKNOWN, Base, Piece
from berkeleydb_storage.backup.making import newest
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.source import Moment, Source
from berkeleydb_storage.errors import DamagedError, LogGone
from berkeleydb_storage.files import Position

logger = logging.getLogger(__name__)

MANY = 8
"""Pieces of a log file that is complete which are left as they are."""
RUN = 1000
"""Pieces after which they are joined although the log file is not complete."""


class Joined(NamedTuple):
    """What is to become one piece."""

    start: Position
    moment: Moment


class Chain:
    """A base, complete, and how far the log after it is archived."""

    def __init__(self, repository: Repository, source: Source, base: Base, pieces: list[Piece]) -> None:
        """Go on after `pieces`, the fewest that follow the base."""
        assert base.manifest is not None
        self.base = base
        self.identity = base.identity
        self.position = base.manifest.end
        """Where the archive ends."""
        self.shipped = 0
        """Bytes of log."""
        self.pieces = 0
        """That were added."""
        self._repository = repository
        self._source = source
        self._file = self.position  # where the pieces begin that may be joined
        self._count = 0  # of these
        self._boundary: Moment | None = None  # the end of the last of them that is at a commit
        self._run = self.position  # where those begin that are joined before the log file is complete
        self._run_count = 0
        self._last = self.position.log  # the log file that the last piece is of
        self.joins: deque[Joined] = deque()
        """Of complete log files; who joined the first one takes it out."""
        for piece in pieces:
            self._add(piece)

    def ship(self, moment: Moment) -> None:
        """Add the log up to `moment`.

        Raises:
            LogGone: it is not there any more. BackupError: it cannot be written; some of it may be.
        """
        before = self.shipped

        def report(_: str, size: int) -> None:
            self.shipped = before + size

        for piece in self._repository.add_pieces(self._source, self.base, self.position, moment, report):
            self._add(piece)
            self.pieces += 1
        failpoints.reached("archive.shipped")

    def _add(self, piece: Piece) -> None:
        self.position, self._last = piece.end, piece.start.log
        self._count += 1
        self._run_count += 1
        if piece.tid != UNKNOWN and piece.end.log == piece.start.log:
            self._boundary = Moment(piece.tid, piece.time, 0, bytes.fromhex(self.identity), piece.end)
            if self._run_count >= RUN:
                self.joins.append(Joined(self._run, self._boundary))
                self._run, self._run_count = piece.end, 0
        if piece.end.log != self._file.log:
            if self._count > MANY and self._boundary is not None:
                self.joins.append(Joined(self._file, self._boundary))
            self._file, self._count, self._boundary = piece.end, 0, None
            self._run, self._run_count = piece.end, 0

    def join(self, joined: Joined) -> None:
        """Make one piece of many, which is the first of `joins`. Another thread may do that.

        Raises:
            BackupError: it cannot be written, or the log is not there any more.
        """
        repository = Repository(self._repository.store)
        repository.add_pieces(self._source, self.base, joined.start, joined.moment)
        failpoints.reached("archive.joined")

    @property
    def needed(self) -> int:
        """The number of the oldest log file that is needed to go on, and to see later that it is the same log."""
        return min(self._last, self.joins[0].start.log) if self.joins else self._last


def resume(repository: Repository, source: Source, moment: Moment) -> Chain | None:
    """Return the newest chain of a storage if its log goes on where that ends, else None.

    Raises:
        BackupError: the store cannot be read.
    """
    base = newest(repository.bases(moment.identity.hex()))
    if base is None:
        return None
    pieces = base.chain()
    try:
        if _agrees(source, base, pieces, moment):
            return Chain(repository, source, base, pieces)
        reason = "the log of the storage is not the one that is archived"
    except (LogGone, DamagedError) as error:
        reason = str(error)
    where = f"{repository.store.url}/{base.folder}"
    logger.warning(
        "%s: the archive in %s cannot be continued: %s. Everything is copied again", source.path, where, reason
    )
    return None


def _agrees(source: Source, base: Base, pieces: list[Piece], moment: Moment) -> bool:
    """Compare the last bytes that are archived with those of the log."""
    assert base.manifest is not None
    if pieces:
        start, end, expected = pieces[-1].start, pieces[-1].end, pieces[-1].digest
    else:
        end = base.manifest.end
        start = Position(end.log, 0)
        expected = base.manifest.files.get(files.log_name(end.log), {}).get("sha256", "")[:DIGITS]
    if end > moment.end:
        return False
    hashed = hashlib.sha256()
    for chunk in source.log(start, end):
        hashed.update(chunk.data)
    return hashed.hexdigest()[:DIGITS] == expected
