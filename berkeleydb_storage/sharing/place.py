"""A shared directory as the storages of one process see it: they have one `Place`, which has one `Owner` or none.

Any thread may call everything.

Invariants:

1. `owner` is open, or has stopped by itself; it is closed when the last storage of this process is, at the latest when
   the interpreter ends.
2. A forked child begins without an owner.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from berkeleydb_storage.errors import BerkeleyDBStorageError, StorageClosed, StorageInUse
from berkeleydb_storage.sharing.owner import Owned, Owner

logger = logging.getLogger(__name__)

PAUSE = 0.005
"""Seconds between two attempts, to open a storage that somebody has who does not share it, or to get the lock."""
LAST_PATIENCE = 2.0
"""Seconds that the end of the interpreter waits for a thread that is opening the storage."""

_lock = threading.Lock()
_places: WeakValueDictionary[str, Place] = WeakValueDictionary()  # guarded by _lock
_exiting = threading.Event()


class Place:
    """A directory that this process shares."""

    def __init__(self, path: Path) -> None:
        """Begin without an owner."""
        self.path = path
        self.users = 0
        """Storages of this process that are open; guarded by `_lock`."""
        self._owning = threading.Lock()
        self._owner: Owner | None = None  # guarded by _owning

    def owner(self) -> Owner | None:
        """Return who owns it in this process; None: it does not."""
        with self._alone():
            if self._owner is not None and self._owner.has_stopped:
                self._close()
            return self._owner

    def own(self, options: Mapping[str, Any], until: float, ending: threading.Event) -> Owner | None:
        """Become the owner.

        Args:
            options: of `BerkeleyDBStorage`.
            until: of ``time.monotonic()``; so long who has the storage and does not share it is waited for.
            ending: set, it ends the waiting.

        Returns:
            None: another process has the right.

        Raises:
            BerkeleyDBStorageError: the storage cannot be opened, or not be served.
        """

        def wait(error: StorageInUse) -> None:
            if time.monotonic() >= until:
                raise error
            if ending.wait(PAUSE) or _exiting.is_set():
                raise StorageClosed(f"{self.path} was closed before it was open") from error

        with self._alone():
            if self._owner is None:
                try:
                    self._owner = Owner(self.path, options, wait, self._ended)
                except Owned:
                    return None
                except OSError as error:
                    if isinstance(error, BerkeleyDBStorageError):
                        raise
                    raise self._explained(error) from error
                _close_at_exit()
            if ending.is_set() and not self.users:
                self._close()
                raise StorageClosed(f"{self.path} was closed while it was opened")
            return self._owner

    def _explained(self, error: OSError) -> BerkeleyDBStorageError:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return BerkeleyDBStorageError(
                f"{self.path} is not writable for this process ({error.strerror}): mend its permissions"
            )
        return BerkeleyDBStorageError(f"{self.path} cannot be opened: {error}")

    def _ended(self, owner: Owner) -> None:
        """Close an owner that was ended by a client, or because the storage has stopped."""
        with self._alone():
            if self._owner is owner:
                self._close()

    def give_up(self) -> None:
        """Own it no more; another process does so next, or this one again."""
        with self._alone():
            self._close()

    def _close(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.close()

    def enter(self) -> None:
        """Count one more storage."""
        with _lock:
            self.users += 1

    def leave(self) -> None:
        """Count one less; the last one closes the owner."""
        with _lock:
            self.users -= 1
            if self.users:
                return
        with self._alone():
            if not self.users:
                self._close()

    def leave_later(self) -> None:
        """Leave in another thread: this one may hold any lock, as it was collecting garbage."""
        if not _exiting.is_set():
            threading.Thread(target=self.leave, name="berkeleydb_storage close").start()

    def at_exit(self) -> None:
        """Close the owner, unless a thread is just opening it: the next one recovers that."""
        with suppress(TimeoutError), self._alone(LAST_PATIENCE):
            self._close()

    @contextmanager
    def _alone(self, patience: float = float("inf")) -> Iterator[None]:
        """Keep other threads from changing the owner.

        The lock may be older than gevent's in a process that was forked and patched then: who waits in it keeps all
        other greenlets from running, also the one that has it.

        Raises:
            TimeoutError: others did so for `patience` seconds.
        """
        until = time.monotonic() + patience
        while not self._owning.acquire(blocking=False):
            if time.monotonic() >= until:
                raise TimeoutError
            time.sleep(PAUSE)
        try:
            yield
        finally:
            self._owning.release()

    def forked(self) -> None:
        """Leave everything to the parent. Called in the child."""
        self._owning = threading.Lock()
        self._owner = None


def place(path: Path) -> Place:
    """Return the place of a directory, whose path has no symbolic links in it."""
    with _lock:
        found = _places.get(str(path))
        if found is None:
            found = _places[str(path)] = Place(path)
        return found


@cache
def _close_at_exit() -> None:
    """Have what is open closed at the end: before the storages beneath, which are told of it after this."""
    atexit.register(_exit)


def _exit() -> None:
    _exiting.set()
    for each in list(_places.values()):
        try:
            each.at_exit()
        except Exception:
            logger.exception("closing %s", each.path)


def _forked() -> None:
    global _lock, _exiting
    _lock = threading.Lock()
    _exiting = threading.Event()
    for each in list(_places.values()):
        each.forked()


os.register_at_fork(after_in_child=_forked)
