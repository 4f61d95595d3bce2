"""`SharedStorage`: a storage that several processes of one machine use at the same time, with no server to run."""

from __future__ import annotations

import os
from typing import Any

from berkeleydb_storage.client.storage import DEFAULT_TIMEOUT, ClientStorage
from berkeleydb_storage.sharing.owner import SharedOpener


class SharedStorage(ClientStorage):
    """A storage in a directory, for several processes.

    The first one to open it owns the directory, and serves the others over a Unix socket in it. When the owner closes
    it, or is killed, another one takes over, recovers the storage, and the rest come to it by themselves, within
    `timeout`; a commit that was under way is carried through or sent again. To the application it is a
    `BerkeleyDBStorage`, but for conflicts with the other processes. Each ``Connection``, and so each thread, takes one
    of its own.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = DEFAULT_TIMEOUT, **options: Any) -> None:
        """Open the storage in the directory `path`, or create it there.

        Args:
            path: an existing directory, empty or with a storage; on a local file system.
            timeout: seconds to wait for an answer of the owner, and for another one to take over.
            options: those of `BerkeleyDBStorage`, for when this process owns it. Give all processes the same.

        Raises:
            OptionError: an option makes no sense.
            StorageNotFound, NotAStorage, DamagedError, …: as `BerkeleyDBStorage`, if it is this process that opens it.
            ServerUnreachable: who owns it does not answer.
        """
        self._connect(SharedOpener(path, options), timeout, 0)
