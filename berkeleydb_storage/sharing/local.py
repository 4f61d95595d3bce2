"""The owner's own way to the storage: what `ExtendedLink` is to the others, without a connection.

Used by one thread at a time, under the lock of its client storage.

Invariants:

1. Between it and the clients of the server conflicts are found as between any two of these.
2. What it shows is on the disk, as with them.
3. A storage that is closed, or has stopped before, is a lost connection: somebody opens it anew. Who finds out that it
   has to stop is told why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from durus.error import ReadConflictError

from berkeleydb_storage.client.channel import ConnectionLost
from berkeleydb_storage.client.link import ADMIN, READ, WRITE, Decision, Told, Welcome
from berkeleydb_storage.environment import LIBRARY_ERRORS
from berkeleydb_storage.errors import (
    AccessDenied,
    BerkeleyDBStorageError,
    CommitInDoubt,
    ServerError,
    StorageClosed,
    missing,
)
from berkeleydb_storage.format import ROOT_OID, references, unpack_uint64
from berkeleydb_storage.protocol import COMMITTED, FORGOTTEN, NOT_COMMITTED
from berkeleydb_storage.server.creation import PAUSE

if TYPE_CHECKING:
    from berkeleydb_storage.sharing.owner import Owner

ERRORS: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, BerkeleyDBStorageError)
Records = dict[bytes, tuple[bytes, tuple[bytes, ...]]]


class LocalLink:
    """A user of a storage that this process owns."""

    ordered = True

    def __init__(self, owner: Owner) -> None:
        """Begin."""
        self._owner = owner
        self._engine = owner.storage.engine
        self._service = owner.server.service
        self._session = owner.storage.session()
        self._pending: tuple[bytes, Records, int] | None = None

    def welcome(self, identity: bytes, tid: int) -> Welcome:
        """Return what a server would say to a client that comes with this."""
        with self._guarded():
            known = self._known()
            changed = self._service.changed_since(identity, tid) if identity else []
            return Welcome(self._engine.identity, known, READ | WRITE | ADMIN, changed)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        self._require_open()
        try:
            yield
        except ERRORS as error:
            explained = self._explained(error)
            if explained is error:
                raise
            raise explained from error

    def _require_open(self) -> None:
        try:
            self._engine.require_open()
        except BerkeleyDBStorageError as reason:
            raise _lost(reason) from reason

    def _explained(self, error: Exception) -> Exception:
        """Return what an error means that came in the middle of something."""
        if isinstance(error, LIBRARY_ERRORS):
            with self._engine.lock:
                error = self._engine.failed(error)
        return _lost(error) if isinstance(error, StorageClosed) else error

    def _known(self) -> int:
        """Return the newest transaction that is on the disk, or counts as that."""
        engine = self._engine
        return min(engine.journal.tid, engine.flushed) if engine.durable else engine.journal.tid

    # --- loading

    def load(self, oid: bytes) -> bytes:
        """Return a record."""
        try:
            return self._load(oid)
        except KeyError:
            if oid == ROOT_OID and self._wait_for_root():
                return self._load(oid)
            raise missing(oid) from None
        except LIBRARY_ERRORS as error:
            raise self._explained(error) from error
        except CommitInDoubt:
            raise
        except BerkeleyDBStorageError as error:
            raise _lost(error) from error

    def _load(self, oid: bytes) -> bytes:
        engine = self._engine
        with engine.lock:
            if self._session.is_invalid(oid):
                raise ReadConflictError([oid])
            record: bytes = engine.objects[oid]
            if engine.flushed >= engine.journal.tid or not engine.durable:
                return record
            history = self._service.desk.history
            entry = history.latest(oid)
            if not history.is_doubtful(oid) if entry is None else entry.tid <= engine.flushed:
                return record
        engine.make_durable()
        return record

    def _wait_for_root(self) -> bool:
        """Wait if another client is making the root object; return whether it is there now."""
        while not self._service.creation.may(self):
            time.sleep(PAUSE)
            if self._engine.get(ROOT_OID) is not None:
                return True
        return False

    def fetch(self, oid: bytes, objects: int, size: int) -> list[bytes]:
        """Return a record; there is nothing to be won by fetching more."""
        return [self.load(oid)]

    def bulk(self, oids: list[bytes]) -> list[bytes | Exception]:
        """Return for each object its record, or what `load` would raise."""
        return [self._load_or_error(oid) for oid in oids]

    def _load_or_error(self, oid: bytes) -> bytes | Exception:
        try:
            return self.load(oid)
        except (KeyError, ReadConflictError) as error:
            return error

    def rows(self, oid: bytes, count: int, size: int) -> list[bytes]:
        """Return the records of the next objects from this oid on."""
        start: bytes | None = oid
        rows: list[tuple[bytes, bytes]] = []
        with self._guarded():
            while start is not None and not rows:
                rows, start = self._service.rows(start, count, size)
            if self._known() != self._engine.journal.tid:
                self._engine.make_durable()
        return [record for _, record in rows]

    # --- committing

    def new_oids(self, count: int) -> list[bytes]:
        """Return new oids."""
        with self._guarded():
            return self._service.creation.new_oids(self, count)

    def sync(self) -> Told:
        """Return what others changed."""
        with self._guarded():
            with self._engine.lock:  # the session has learnt of all up to this
                known = self._known()
            return Told(known, self._session.sync())  # what comes in between is told twice, and not missed

    def commit(self, mark: bytes, records: Mapping[bytes, bytes], size: int) -> Decision:
        """Begin to store records."""
        pending = {}
        for oid, record in records.items():
            pending[oid] = (record, references(oid, record))
            if not self._engine.was_handed_out(oid):
                message = f"object {unpack_uint64(oid)} is a surprise: this storage never handed out its oid"
                raise ServerError(message, "ValueError")
        self._pending = mark, pending, size
        return self.go_on()

    def go_on(self) -> Decision:
        """Store them, unless others changed something that was not told."""
        assert self._pending is not None
        mark, records, size = self._pending
        with self._guarded():
            known, stale = self._known(), self._session.is_stale
            if stale() or not self._engine.commit(records, size, self._session, unless=stale, mark=mark):
                return Decision(False, *self.sync())
            self._pending = None
            self._session.committed(len(records))
            with self._engine.lock:
                if not stale():  # else there is something behind this commit that was not told
                    known = self._known()
            return Decision(True, known, [])

    def cancel(self) -> None:
        """Do not store them."""
        self._pending = None

    def fate(self, mark: bytes, since: int) -> int:
        """Tell what became of a commit, which can only have been made through an earlier link."""
        with self._guarded():
            fate = self._engine.fate(mark, since)
            self._engine.make_durable()
            return COMMITTED if fate.tid is not None else NOT_COMMITTED if fate.known else FORGOTTEN

    # --- the storage

    def ping(self) -> None:
        """Look whether the storage is there."""
        self._require_open()

    def size(self) -> int:
        """Return the number of objects."""
        self._require_open()
        return self._engine.size

    def information(self) -> dict[str, Any]:
        """Return statistics."""
        with self._guarded():
            return self._service.information()

    def pack(self) -> None:
        """Begin a full pack."""
        self._require_open()
        self._service.pack()

    def backup(self, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Make a backup where the option `backup` says."""
        target = self._owner.backup_to
        if target is None:
            raise AccessDenied("nobody said where to put backups: give all processes the option backup=Every(…)")
        with self._guarded():
            made = self._owner.storage.backup(
                target, lambda activity, size: progress({"activity": activity, "bytes": size})
            )
        return {**asdict(made), "path": made.where}

    def shutdown(self) -> None:
        """Give up the ownership; another process takes over, or this one again."""
        self._owner.server.close()

    def close(self) -> None:
        """End. The owner stays: it ends with the last storage of the process."""
        self._pending = None
        self._service.creation.left(self)


def _lost(error: Exception) -> ConnectionLost:
    return ConnectionLost(f"the storage has stopped: {error}")
