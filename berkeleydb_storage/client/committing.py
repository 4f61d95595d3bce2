"""How a client commits: in one round trip where nothing is in the way, and never twice.

1. The application is told of everything that others changed before its records are stored, or they are not stored.
2. A commit whose fate is unknown is never sent again before the server has said that it is not stored and will not be.
3. What the server has told is not lost: the application learns of it from its handler, or from the next ``sync``.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping

from durus.error import ConflictError, DurusError, WriteConflictError

from berkeleydb_storage.client.channel import ConnectionLost
from berkeleydb_storage.client.line import Line, Patience
from berkeleydb_storage.client.link import Decision, Link
from berkeleydb_storage.client.news import News
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    CommitRefused,
    CommitUnknown,
    WireError,
    describe_oids,
)
from berkeleydb_storage.protocol import COMMITTED, MARK_LENGTH, NOT_COMMITTED

Lost = ConnectionLost | WireError
Invalidator = Callable[[list[bytes]], None]


class Fate(enum.Enum):
    """What became of a commit."""

    STORED = "stored"
    NOT_STORED = "not stored"
    """And it never will be."""
    UNKNOWN = "unknown"
    """The server cannot tell: it is too long ago, or the server is one of Durus."""


FATES = {COMMITTED: Fate.STORED, NOT_COMMITTED: Fate.NOT_STORED}


class Commit:
    """One commit, from the first attempt to its end."""

    def __init__(
        self,
        line: Line,
        news: News,
        told: Callable[[int, list[bytes]], None],
        records: Mapping[bytes, bytes],
        size: int,
        handle: Invalidator | None,
    ) -> None:
        """Prepare it.

        Args:
            line: the way to the server.
            news: what the application was not told yet.
            told: takes note of what the server tells.
            records: what is to be stored.
            size: bytes of that.
            handle: tells the application what others changed; it may raise a ``ConflictError``. None: what it is not
                told now it learns from ``sync``.
        """
        self._line = line
        self._news = news
        self._told = told
        self._records = records
        self._size = size
        self._handle = handle

    def run(self, check: Callable[[], None]) -> None:
        """Commit.

        Args:
            check: called when there is a link, before anything is sent; what it raises ends the commit.

        Raises:
            ConflictError, StorageClosed: nothing was stored.
            ServerUnreachable: likewise; the server is away, or ends the connection whenever the commit is sent.
            CommitUnknown: nobody knows.
            CommitInDoubt: stored, but not on the disk.
        """
        patience: Patience | None = None
        while True:
            link = self._line.link(patience)
            check()
            self.tell()
            mark, since = os.urandom(MARK_LENGTH), self._line.tid
            lost = self._negotiate(link, mark)
            if lost is None:
                return
            self._line.drop()
            patience = patience or self._line.patience()
            if self._is_stored(mark, since, patience, lost):
                return
            patience.pause(lost)  # what the server does not take now it may never take

    def _negotiate(self, link: Link, mark: bytes) -> Lost | None:
        """Send everything, and answer the server's questions, until it is stored; else return how the link was lost."""
        answer = self._try(lambda: link.commit(mark, self._records, self._size))
        while isinstance(answer, Decision):
            self._told(answer.tid, answer.oids)
            if answer.stored:
                self._tell_afterwards()
                return None
            self._ask_application(link)
            answer = self._try(link.go_on)
        return answer

    def _try(self, step: Callable[[], Decision]) -> Decision | Lost:
        try:
            return step()
        except (ConnectionLost, WireError) as error:
            return error
        except DurusError:
            raise
        except BaseException:
            self._line.drop()
            raise

    def _ask_application(self, link: Link) -> None:
        try:
            self.tell()
        except Exception:
            self._cancel(link)
            raise
        except BaseException:
            self._line.drop()
            raise

    def _cancel(self, link: Link) -> None:
        """Tell the server that the commit is not wanted; it forgets it as well if the connection is lost."""
        try:
            link.cancel()
        except (BerkeleyDBStorageError, ConnectionLost):
            self._line.drop()
        except BaseException:
            self._line.drop()
            raise

    def _tell_afterwards(self) -> None:
        """Hand on what the server told by the way. By its account the application has none of that.

        Raises:
            WireError: the application finds a conflict nevertheless. It is stored: no ``ConflictError`` may say
                otherwise.
        """
        if self._handle is None or not self._news:
            return
        oids = self._news.take()
        try:
            self._handle(oids)
        except ConflictError as error:
            self._news.add(oids)
            raise WireError(
                "the server stored a commit without asking, although others had changed objects that this client has: "
                f"{error}; abort, and see what was stored"
            ) from error
        except BaseException:
            self._news.add(oids)
            raise

    def tell(self) -> None:
        """Tell the application what others changed, and let it decide.

        Raises:
            ConflictError: it does not want the commit any more, or others changed one of the records.
        """
        if not self._news:
            return
        overwritten = self._news.among(self._records)
        if self._handle is None:
            if overwritten:
                raise WriteConflictError(overwritten)
            return
        oids = self._news.take()
        try:
            self._handle(oids)
        except ConflictError:
            raise
        except BaseException:
            self._news.add(oids)
            raise
        if overwritten:
            message = f"others changed {describe_oids(overwritten)} meanwhile: nothing was stored"
            raise CommitRefused(message, overwritten)

    def _is_stored(self, mark: bytes, since: int, patience: Patience, error: Lost) -> bool:
        """Find out what became of a commit after the connection was lost.

        Raises:
            CommitUnknown: that is not to be found out.
        """
        if isinstance(error, ConnectionLost) and error.unsent:
            return False
        try:
            fate = self._line.repeat(lambda link: link.fate(mark, since), patience)
        except BerkeleyDBStorageError as failure:
            raise _unknown(mark, since, failure) from error
        if fate not in FATES:
            raise _unknown(mark, since, error) from error
        return fate == COMMITTED


def _unknown(mark: bytes, since: int, error: Exception) -> CommitUnknown:
    return CommitUnknown(
        f"whether the commit is stored is not known, because the connection broke: {error}; "
        "fate() of the storage tells when the server is back",
        mark,
        since,
    )
