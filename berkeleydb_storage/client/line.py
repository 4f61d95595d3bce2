"""A link that comes back: what was lost is connected again, with patience, and resumed where it was.

Its storage's lock guards it; `close` alone may be called at any time, and ends waiting.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from durus.error import DurusError

from berkeleydb_storage.client.channel import ConnectionLost
from berkeleydb_storage.client.dialing import Opener
from berkeleydb_storage.client.link import Link, Welcome
from berkeleydb_storage.errors import BerkeleyDBStorageError, ServerUnreachable, StorageClosed, WireError

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.01
LONGEST_DELAY = 1.0
"""Seconds between attempts; each waits about twice as long as the one before. The first one follows at once."""

Result = TypeVar("Result")
Welcomed = Callable[[Welcome, bool], None]
"""Called with the welcome of a new link, and whether it is from the same history of the same storage as before."""


class Patience:
    """How long a server that is away is waited for."""

    def __init__(self, where: object, timeout: float, ending: threading.Event) -> None:
        """Begin to wait.

        Args:
            where: the server, for messages.
            timeout: seconds in all.
            ending: set, it ends the waiting.
        """
        self._where = where
        self._timeout = timeout
        self._ending = ending
        self._deadline = time.monotonic() + timeout
        self._delay = 0.0

    @property
    def left(self) -> float:
        """Seconds, at least a few."""
        return max(self._deadline - time.monotonic(), FIRST_DELAY)

    def pause(self, error: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            ServerUnreachable: it has lasted too long, or the error is not one that goes away.
            StorageClosed: the client was closed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ServerUnreachable(f"{self._where} cannot be reached for {self._timeout:g} s: {error}") from error
        if _is_final(error):
            raise ServerUnreachable(f"{self._where} cannot be reached: {error}{_remedy(error)}") from error
        if self._ending.wait(min(self._delay * random.uniform(0.5, 1), left)):
            raise StorageClosed(f"the client of {self._where} was closed") from error
        self._delay = min(max(2 * self._delay, FIRST_DELAY), LONGEST_DELAY)


def _is_final(error: BaseException | None) -> bool:
    """Tell whether TLS failed for a reason other than that the connection broke."""
    while isinstance(error, ConnectionLost):
        error = error.__cause__
    transient = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(error, ssl.SSLError) and not isinstance(error, (*transient, TimeoutError))


def _remedy(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "; name the authority that signed the server's certificate (ca=…, --ca), or have it mended"
    return ""


class Line:
    """The way to one server."""

    def __init__(self, opener: Opener, timeout: float, welcomed: Welcomed) -> None:
        """Begin without a link.

        Args:
            opener: makes links.
            timeout: seconds for an answer, and for the server to come back.
            welcomed: takes note of what the server says when a lost connection was made again.
        """
        self.where = opener
        self._timeout = timeout
        self._welcomed = welcomed
        self._link: Link | None = None
        self._ending = threading.Event()
        self._identity: bytes | None = None
        self.tid = 0
        """Up to which transaction the server has told what others changed."""

    def patience(self) -> Patience:
        """Return the patience for one operation."""
        return Patience(self.where, self._timeout, self._ending)

    def link(self, patience: Patience | None = None) -> Link:
        """Return the link, a new one where there was none.

        Raises:
            ServerUnreachable, StorageClosed: there is none. BerkeleyDBStorageError: the server does not let us in.
        """
        return self._link or self._connect(patience or self.patience())

    def _connect(self, patience: Patience) -> Link:
        while True:
            self.require_open()
            try:
                return self._resume(patience)
            except BerkeleyDBStorageError:
                raise
            except OSError as error:
                patience.pause(error)

    def _resume(self, patience: Patience) -> Link:
        link, welcome = self.where(min(patience.left, self._timeout), self._timeout, self._identity or b"", self.tid)
        try:
            if self._identity is not None:
                logger.info("connected to %s again", self.where)
                self._welcomed(welcome, bool(welcome.identity) and welcome.identity == self._identity)
            self._identity, self.tid = welcome.identity, welcome.tid
        except BaseException:
            link.close()
            raise
        self._link = link
        return link

    def repeat(self, work: Callable[[Link], Result], patience: Patience | None = None) -> Result:
        """Do what may be done twice, until it was done once without losing the connection.

        Args:
            work: what is to be done with a link.
            patience: what is left of it, where something else failed before.

        Raises:
            ServerUnreachable: that did not succeed in time.
            StorageClosed: the client was closed.
            WireError: the server sent nonsense; the next request will use a new connection.
        """
        while True:
            link = self._link or self._connect(patience or self.patience())
            try:
                return work(link)
            except ConnectionLost as error:
                self.drop()
                patience = patience or self.patience()
                patience.pause(error)
            except WireError:
                self.drop()
                raise
            except DurusError:
                raise
            except BaseException:
                self.drop()
                raise

    def once(self, work: Callable[[Link], Result]) -> Result:
        """Do what must not be done twice.

        Raises:
            ServerUnreachable: the connection was lost; whether it was done is not known. Else as `repeat`.
        """
        self.repeat(lambda link: link.ping())
        return self.repeat(lambda link: self._only_once(link, work))

    def _only_once(self, link: Link, work: Callable[[Link], Result]) -> Result:
        try:
            return work(link)
        except ConnectionLost as error:
            self.drop()
            raise ServerUnreachable(
                f"the connection to {self.where} was lost, with the request sent: {error}"
            ) from error

    def drop(self) -> None:
        """Close the link: what it is about to say is unknown."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def end(self) -> None:
        """End waiting; the next request is refused. Any thread may call it, without the lock."""
        self._ending.set()

    def require_open(self) -> None:
        """Raise `StorageClosed` after `end`."""
        if self._ending.is_set():
            raise StorageClosed(f"the client of {self.where} was closed")

    def forked(self) -> None:
        """Leave the connection to the parent process. Called in the child."""
        ended, self._ending = self._ending.is_set(), threading.Event()
        if ended:
            self._ending.set()
        self.drop()
