"""`SharedStorage`: a storage that several processes of one machine use at the same time, with no server to run."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from berkeleydb_storage.client.storage import DEFAULT_TIMEOUT, ClientStorage
from berkeleydb_storage.directory import CREATING, Directory
from berkeleydb_storage.errors import OptionError
from berkeleydb_storage.options import Options
from berkeleydb_storage.policies import verify_policies
from berkeleydb_storage.sharing.opener import SharedOpener, real_path
from berkeleydb_storage.sharing.place import place
from berkeleydb_storage.storage import BerkeleyDBStorage


class SharedStorage(ClientStorage):
    """A storage in a directory, for several processes.

    The first one to open it owns the directory, and serves the others over a Unix socket in it. When the owner closes
    it, or is killed, another one takes over, recovers the storage, and the rest come to it by themselves, within
    `timeout`; a commit that was under way is carried through or sent again. To the application it is a
    `BerkeleyDBStorage`, but for conflicts with the other processes. Each ``Connection``, and so each thread, takes one
    of its own. It may be opened before a fork, and used by parent and children.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = DEFAULT_TIMEOUT, **options: Any) -> None:
        """Open the storage in the directory `path`, or create it there.

        Args:
            path: an existing directory, empty or with a storage; on a local file system.
            timeout: seconds to wait for an answer of the owner, and for another one to take over; default 30.
            options: those of `BerkeleyDBStorage` but `read_only`. They are for when this process owns it, and a change
                of the owner is a new opening: so give all processes the same, and neither `repair` nor
                `do_recover=False`, unless each opening is to repair, or a kill to need somebody's hand.

        Raises:
            OptionError: an option makes no sense.
            StorageInUse: for 2 seconds, somebody has had it who does not share it; his pid is named.
            StorageNotFound, NotAStorage, NewerFormat, LibraryMismatch, RecoveryNeeded, DamagedError, DiskFullError: as
                `BerkeleyDBStorage`, if it is this process that opens it.
            BerkeleyDBStorageError: the directory, or the socket in it, may not be used by this process.
            ServerUnreachable: who owns it does not answer.
        """
        if timeout <= 0:
            raise OptionError(f"timeout is a positive number of seconds, not {timeout!r}")
        _verify_options(path, options)
        directory = Directory(real_path(path))
        directory.refuse_foreign(read_only=False)
        _verify_type(directory, options.get("type"))
        shared = place(directory.path)
        self._opener = SharedOpener(shared, options)
        shared.enter()
        self._leave = weakref.finalize(self, shared.leave_later)
        self._leave.atexit = False
        try:
            self._connect(self._opener, timeout, 0)
        except BaseException:
            self._leave.detach()
            shared.leave()
            raise
        self._shared = shared

    def close(self) -> None:
        """Close it for this user. The last one in a process that owns the directory leaves it to another process.

        Works twice. Whoever waits in another thread for a server that is away gets an error.
        """
        self._opener.end()
        super().close()
        if self._leave.detach() is not None:
            self._shared.leave()

    def forked(self) -> None:
        """Begin anew in a forked child: a connection and oids of its own. What was loaded stays valid."""
        self._opener.forked()
        super().forked()


def _verify_options(path: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
    """Refuse now what would be refused when this process comes to own the directory.

    Raises:
        OptionError, TypeError: an option makes no sense, or is none.
    """
    if options.get("read_only") or options.get("readonly"):
        raise OptionError("read_only=True is not for sharing: any number of processes may open BerkeleyDBStorage so")
    given = inspect.signature(BerkeleyDBStorage).bind(path, **options).arguments
    Options(**{each.name: given[each.name] for each in fields(Options) if given.get(each.name) is not None})
    verify_policies(given.get("checkpoint"), given.get("garbage_collection"), given.get("backup"), given.get("archive"))


def _verify_type(directory: Directory, type: str | None) -> None:
    """Refuse another type than that of the storage that is there.

    Raises:
        OptionError: it is another one. DamagedError, NewerFormat: what is there cannot be used.
    """
    description = directory.read()
    if type is not None and description is not None and description.state != CREATING and type != description.type:
        raise OptionError(f"{directory.path} was created with type={description.type!r}, which stays: leave it out")
