"""Makes a link to whoever owns a shared storage, or has this process become that."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berkeleydb_storage.client.dialing import AddressDialer, Credentials, open_link
from berkeleydb_storage.client.link import Link, Welcome
from berkeleydb_storage.errors import BerkeleyDBStorageError, StorageClosed
from berkeleydb_storage.sharing.local import LocalLink
from berkeleydb_storage.sharing.owner import SOCKET, Owner
from berkeleydb_storage.sharing.place import Place

PAUSE = 0.002
"""Seconds between two looks whether the next owner is there, or whether this process can be it: each takes 50 us."""
HOPELESS = 2.0
"""Seconds for which the first opening waits for one who has the storage and does not share it."""


class SharedOpener:
    """An `Opener` for one storage."""

    def __init__(self, place: Place, options: Mapping[str, Any]) -> None:
        """Take note of the directory, and of how to open the storage."""
        self._place = place
        self._options = options
        self._dial = AddressDialer(f"unix:{place.path / SOCKET}")
        self._nobody = Credentials("shared")
        self._ending = threading.Event()

    def __str__(self) -> str:
        """Return the directory."""
        return str(self._place.path)

    def end(self) -> None:
        """End waiting."""
        self._ending.set()

    def __call__(self, dialing: float, timeout: float, identity: bytes, tid: int) -> tuple[Link, Welcome]:
        """See `Opener`.

        Raises:
            OSError: another process has had the right to own it for `dialing` seconds, and does not serve.
            StorageInUse: somebody has it who does not share it.
            BerkeleyDBStorageError: it cannot be opened, or used.
        """
        started = time.monotonic()
        deadline = started + dialing
        hopeless = deadline if identity else min(deadline, started + HOPELESS)
        while True:
            owner = self._place.owner()
            if owner is not None:
                return _local(owner, identity, tid)
            left = max(deadline - time.monotonic(), PAUSE)
            try:
                return open_link(self._dial, self._nobody, dialing=left, timeout=timeout, identity=identity, tid=tid)
            except BerkeleyDBStorageError:
                raise
            except OSError as error:
                failure = error
            owner = self._place.own(self._options, hopeless, self._ending)
            if owner is not None:
                return _local(owner, identity, tid)
            self._pause(deadline, failure)

    def _pause(self, deadline: float, failure: OSError) -> None:
        if isinstance(failure, PermissionError):
            raise BerkeleyDBStorageError(
                f"{self._place.path / SOCKET} belongs to another user, and this process may not use it: have all "
                "processes run as one user, or as one group with a umask of 007"
            ) from failure
        if time.monotonic() >= deadline:
            raise failure
        if self._ending.wait(PAUSE):
            raise StorageClosed(f"the storage in {self} was closed") from failure

    def forked(self) -> None:
        """Begin anew in a forked child."""
        ended, self._ending = self._ending.is_set(), threading.Event()
        if ended:
            self._ending.set()


def _local(owner: Owner, identity: bytes, tid: int) -> tuple[Link, Welcome]:
    link = LocalLink(owner)
    return link, link.welcome(identity, tid)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same after a change of the working directory."""
    return Path(os.path.realpath(path))
