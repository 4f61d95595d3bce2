"""`ClientStorage`: a Durus storage at a server. See docs/PROTOCOL.md for what it says to it.

One lock guards everything: a request, with its answer, is made by one thread at a time. Every method may be called from
any thread or greenlet; a commit, from `begin` to `end`, belongs to one of them. It is for one ``Connection``.

Invariants:

1. What is loaded between two calls of `sync` or `end` belongs together, also where the connection was lost in between:
   an object that was changed meanwhile cannot be loaded before the application was told.
2. Nothing that others changed is kept from the application: it is told by `sync`, or by the handler given to `end`.
3. A forked child never uses its parent's connection, nor its oids.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from durus.error import ConflictError
from durus.storage import Storage

from berkeleydb_storage.client import forks
from berkeleydb_storage.client.committing import FATES, Commit, Fate, Invalidator
from berkeleydb_storage.client.dialing import (
    DEFAULT_ADDRESS,
    AddressDialer,
    Credentials,
    Dialer,
    Opener,
    Password,
    RemoteOpener,
    target_of,
)
from berkeleydb_storage.client.iteration import in_order, reachable
from berkeleydb_storage.client.line import Line
from berkeleydb_storage.client.link import Link, Welcome
from berkeleydb_storage.client.loading import Loader
from berkeleydb_storage.client.news import News
from berkeleydb_storage.client.pending import Oids, Pending
from berkeleydb_storage.errors import CommitRefused, CommitUnknown, OptionError
from berkeleydb_storage.format import ROOT_OID

DEFAULT_USER = "durus"
DEFAULT_TIMEOUT = 30.0
BULK = 256
"""Objects that are asked for at once."""


class ClientStorage(Storage):
    """A Durus storage at a server, for one ``Connection``."""

    def __init__(
        self,
        address: str | tuple[str, int] = DEFAULT_ADDRESS,
        port: int | None = None,
        *,
        host: str | None = None,
        user: str = DEFAULT_USER,
        password: Password = None,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        verify: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
        prefetch: int = 0,
        dialer: Dialer | None = None,
    ) -> None:
        """Connect.

        Args:
            address: "host:2972", "tls://host:2972", "unix:/run/app.sock", …; or a tuple of host and port.
            port: of the host that `address` or `host` names, as Durus' client has it.
            host: in place of `address`.
            user: whom the password is of; default "durus".
            password: a text, or a function that returns it, called at each connecting; None: there is none.
            ca: file or directory with the authorities for a ``tls://`` address; default: the system's.
            certificate: the client's own, for servers that ask for one.
            key: its key; default: in the same file.
            verify: whether the server's certificate is verified; default True.
            timeout: seconds to wait for an answer, and for a server that went away; default 30.
            prefetch: objects that a load asks the server for beside its own, default 0. What follows a loaded object is
                then there already when it is asked for, which is what counts where the network is slow; a few hundred
                are a good number. Cost: up to 32 MiB of memory, and traffic for what is never used.
            dialer: makes the connections, in place of `address` and what belongs to TLS.

        Raises:
            OptionError, CertificateError: an argument is wrong.
            ServerUnreachable: the server cannot be reached within `timeout`.
            AuthenticationError, AccessDenied, ServerError, WireError: it does not let us in.
        """
        if timeout <= 0 or prefetch < 0:
            raise OptionError(
                f"timeout is a positive number of seconds, not {timeout!r}; "
                f"prefetch is a number of objects, or 0, not {prefetch!r}"
            )
        if dialer is None:
            target = target_of(address, host, port)
            dialer = AddressDialer(target, ca=ca, certificate=certificate, key=key, verify=verify)
        self._connect(RemoteOpener(dialer, Credentials(user, password)), timeout, prefetch)

    def _connect(self, opener: Opener, timeout: float, prefetch: int) -> None:
        self._lock = threading.RLock()
        self._line = Line(opener, timeout, self._welcomed)  # guarded by _lock, all of these
        self._news = News()
        self._loader = Loader(self._line, self._news, prefetch)
        self._oids = Oids()
        self._pending = Pending()
        self._under_way: Pending | None = None
        self._line.link()
        forks.note(self)

    def __repr__(self) -> str:
        """Return the address."""
        return f"{type(self).__name__}({self._line.where})"

    # --- loading

    def load(self, oid: bytes) -> bytes:
        """Return the record of an object.

        Args:
            oid: 8 bytes.

        Raises:
            DurusKeyError: there is no such object.
            ReadConflictError: it was changed since the last `sync`.
            ValueError: `oid` is not 8 bytes.
            ServerUnreachable, StorageClosed, DamagedError, ServerError, WireError: it cannot be read.
        """
        with self._lock:
            return self._loader.load(oid)

    def bulk_load(self, oids: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the records of these objects, in this order.

        They are asked for 256 at a time, when the first of them is due.

        Raises:
            DurusKeyError, ReadConflictError, …: as `load`, at the object that it is about.
        """
        left = iter(oids)
        while batch := list(islice(left, BULK)):
            with self._lock:
                records = self._loader.load_all(batch)
            for found in records:
                if isinstance(found, Exception):
                    raise found
                yield found

    def prefetch(self, oids: Iterable[bytes]) -> None:
        """Fetch objects that are going to be loaded; those that do not exist, or have been changed, are passed over.

        Raises:
            ServerUnreachable, StorageClosed, ServerError, WireError: as `load`.
        """
        left = iter(oids)
        while batch := list(islice(left, BULK)):
            with self._lock:
                self._loader.fetch_ahead(batch)

    def gen_oid_record(self, start_oid: bytes | None = None, batch_size: int = 100) -> Iterator[tuple[bytes, bytes]]:
        """Yield (oid, record) of every object, or of those that can be reached from one.

        Args:
            start_oid: None: all objects, in the order of their oids, as they are when their turn comes; those that are
                made meanwhile are left out. Else what it leads to, itself first, nearly breadth first; about a bit of
                memory for each. Durus' own server knows no order: there, None means what the root leads to.
            batch_size: records that are read at once, or as many as are prefetched, if those are more.

        Raises:
            DurusKeyError: while iterating from `start_oid`, an object was deleted before it was reached.
            ReadConflictError: likewise, it was changed since the last `sync`.
            ValueError: `batch_size` is less than 1.
            ServerUnreachable, StorageClosed, ServerError, WireError: as `load`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size!r}")
        batch_size = max(batch_size, self._loader.ahead)
        if start_oid is None:
            return self._in_order(batch_size)
        return reachable(self.bulk_load, start_oid, batch_size)

    def _in_order(self, batch_size: int) -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            ordered = self._line.repeat(lambda link: link.ordered)
        if not ordered:
            yield from reachable(self.bulk_load, ROOT_OID, batch_size)
            return
        yield from in_order(self._rows, batch_size)

    def _rows(self, number: int, count: int) -> list[bytes]:
        with self._lock:
            return self._loader.rows(number, count)

    # --- committing

    def new_oid(self) -> bytes:
        """Return an oid that was never returned before.

        Raises:
            ServerUnreachable, StorageClosed, AccessDenied, ServerError, WireError: there is none to be had.
        """
        with self._lock:
            self._line.require_open()
            if not self._oids:
                self._oids.fill(self._line.repeat(lambda link: link.new_oids(self._oids.batch)))
            oid = self._oids.take()
            self._pending.new.append(oid)
            return oid

    def begin(self) -> None:
        """Begin a commit; what was stored and not ended is dropped."""
        with self._lock:
            self._pending.clear()

    def store(self, oid: bytes, record: bytes) -> None:
        """Include a record in the commit.

        Args:
            oid: 8 bytes that `new_oid` returned, or those of an object that exists.
            record: as ``durus.serialize.pack_record`` makes it.

        Raises:
            ValueError: the record is malformed, or another object's. The commit under way is dropped.
        """
        with self._lock:
            self._pending.store(oid, record)

    def end(self, handle_invalidations: Invalidator | None = None) -> None:
        """Conclude the commit: store its records, all or nothing.

        If the connection breaks meanwhile, the server is asked what became of the commit as soon as it is back, and
        the commit is sent again if it is not stored.

        Args:
            handle_invalidations: called with the oids that others changed since the last `sync`; it raises a
                ``ConflictError`` where that matters, and then nothing is stored. None: the records are stored unless
                others changed the same objects; the next `sync` tells what else they changed.

        Raises:
            ConflictError: what `handle_invalidations` raised; or others changed one of the records. Nothing was stored.
            DanglingReferenceError: a record refers to an object that does not exist. Nothing was stored.
            ReadOnlyError, DiskFullError, CommitRefused: nothing was stored.
            CommitInDoubt: stored, but not brought to the disk yet.
            CommitUnknown: the server went away and did not come back in time: nobody knows; see `fate`.
            ServerUnreachable: it was away before anything was sent. Nothing was stored.
            StorageClosed, AccessDenied, DamagedError, ServerError: nothing was stored.
        """
        with self._lock:
            self._line.require_open()
            pending, self._pending = self._pending, Pending()
            try:
                self._end(pending, handle_invalidations)
            except ConflictError as error:
                if type(error) is CommitRefused and not set(pending.new).isdisjoint(error.oids):
                    self._oids.clear()  # the server takes them for another client's
                elif not pending.foreign:
                    self._oids.take_back(pending.new)
                raise

    def _end(self, pending: Pending, handle: Invalidator | None) -> None:
        records = pending.records
        commit = Commit(self._line, self._news, self._told, records, pending.size, handle)
        if records:
            self._news.saw(records)
            self._loader.drop(records)
            self._under_way = pending
            try:
                commit.run(pending.require_own)
            finally:
                self._under_way = None
        elif handle is not None:
            self._line.repeat(self._sync)
            commit.tell()

    def sync(self) -> list[bytes]:
        """Return the oids of the objects that others changed, or that were collected, since the last call.

        Raises:
            ServerUnreachable, StorageClosed, ServerError, WireError: it is not known.
        """
        with self._lock:
            self._line.require_open()
            self._line.repeat(self._sync)
            return self._news.take()

    def _sync(self, link: Link) -> None:
        self._told(*link.sync())

    def _told(self, tid: int, oids: list[bytes]) -> None:
        """Take note of what the server told; if that is interrupted, it tells it again."""
        try:
            self._changed(oids)
            self._line.tid = tid
        except BaseException:
            self._line.drop()
            raise

    def _changed(self, oids: list[bytes]) -> None:
        if oids:
            self._news.add(oids)
            self._loader.drop(oids)

    def _welcomed(self, welcome: Welcome, same: bool) -> None:
        """Take note of what a server says after the connection was lost."""
        if not same:
            self._oids.clear()
            self._pending.estrange()
            if self._under_way is not None:
                self._under_way.estrange()
        if same and welcome.changed is not None:
            self._changed(welcome.changed)
        else:
            self._news.forget()
            self._loader.clear()

    def fate(self, commit: CommitUnknown | bytes, since: int = 0) -> Fate:
        """Return what became of a commit.

        Args:
            commit: the error that `end` raised, or its `mark`.
            since: with a mark: the error's `since`.

        Raises:
            ServerUnreachable: the server is still away. StorageClosed, ServerError, WireError: as `load`.
        """
        mark, since = (commit.mark, commit.since) if isinstance(commit, CommitUnknown) else (commit, since)
        with self._lock:
            return FATES.get(self._line.repeat(lambda link: link.fate(mark, since)), Fate.UNKNOWN)

    # --- the server

    def get_size(self) -> int:
        """Return the number of objects, garbage included, in constant time.

        Raises:
            ServerError: the server is one of Durus. ServerUnreachable, StorageClosed, WireError: as `load`.
        """
        with self._lock:
            return self._line.repeat(lambda link: link.size())

    def ping(self) -> float:
        """Return the seconds that the server takes to answer. Raises: as `load`."""
        with self._lock:
            self._line.link()
            started = time.perf_counter()
            self._line.repeat(lambda link: link.ping())
            return time.perf_counter() - started

    def information(self) -> dict[str, Any]:
        """Return statistics of the server and its storage. Raises: as `get_size`."""
        with self._lock:
            return self._line.repeat(lambda link: link.information())

    def pack(self) -> None:
        """Have the server delete all that the root does not lead to. Returns at once.

        Raises:
            AccessDenied, ReadOnlyError: it must not. ServerUnreachable, StorageClosed, WireError: as `load`.
        """
        with self._lock:
            self._line.repeat(lambda link: link.pack())

    def backup(self, progress: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Have the server make a backup, where and how its configuration says, and return what was made.

        Args:
            progress: called now and then with how far it is.

        Raises:
            AccessDenied: that is for administrators. ServerError: it failed, or the server is one of Durus.
            ServerUnreachable: the connection was lost; whether the backup was made is not known.
            StorageClosed, WireError: as `load`.
        """
        with self._lock:
            return self._line.once(lambda link: link.backup(progress or _silent))

    def shutdown(self) -> None:
        """End the server, in order.

        Raises:
            AccessDenied: that is for administrators.
            ServerUnreachable, StorageClosed, ServerError, WireError: whether it ends is not known.
        """
        with self._lock:
            self._line.once(lambda link: link.shutdown())

    # --- ending

    def close(self) -> None:
        """End the connection. Works twice. Whoever waits in another thread for a server that is away gets an error."""
        self._line.end()
        with self._lock:
            self._line.drop()
            self._pending.clear()
            self._loader.clear()

    def __enter__(self) -> ClientStorage:
        """Return the storage."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def forked(self) -> None:
        """Begin anew in a forked child: a connection and oids of its own. What was loaded stays valid."""
        self._lock = threading.RLock()
        self._line.forked()
        self._oids.clear()
        self._pending.estrange()


def _silent(progress: dict[str, Any]) -> None:
    """Show no progress."""
