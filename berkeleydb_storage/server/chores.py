"""What a server does for its clients in threads of its own: full packs, backups.

`pack` and `backup` are called by the server's thread, `end` too; the rest by any.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from time import monotonic, sleep
from typing import Any

from berkeleydb_storage.errors import AccessDenied, BackupError, BerkeleyDBStorageError, StorageClosed
from berkeleydb_storage.events import Event
from berkeleydb_storage.server.metrics import Metrics
from berkeleydb_storage.storage import BerkeleyDBStorage

logger = logging.getLogger(__name__)

TELL = 0.25
"""Seconds between two reports how far a backup is."""

REST = 0.001
"""Seconds between two steps of a pack while clients ask for something: so the server's thread gets the storage's mutex,
and the interpreter. Without them the 99th percentile of loads is three times as high during a pack."""

Told = Callable[[Any], None]


class Chores:
    """The packs and backups of one server, at most one of each at a time."""

    def __init__(self, storage: BerkeleyDBStorage, metrics: Metrics, backup_to: str | os.PathLike[str] | None) -> None:
        """Do nothing yet.

        Args:
            storage: what is packed and backed up.
            metrics: what is counted.
            backup_to: the directory for backups; None: clients cannot ask for one.
        """
        self._storage = storage
        self._metrics = metrics
        self._backup_to = backup_to
        self._packing: threading.Thread | None = None
        self._pack_failed = ""
        self._ending = False

    def information(self) -> dict[str, Any]:
        """Return what clients may know: whether a pack is under way, and why the last one failed, if it did."""
        return {"packing": self._is_packing(), "pack_failed": self._pack_failed}

    def end(self) -> None:
        """Have the backup under way end at its next step. A pack goes on until the storage is closed."""
        self._ending = True

    # --- packs

    def _is_packing(self) -> bool:
        return self._packing is not None and self._packing.is_alive()

    def pack(self) -> None:
        """Begin a full pack, if there is none under way."""
        if not self._is_packing():
            self._packing = threading.Thread(target=self._pack, name="berkeleydb_storage pack", daemon=True)
            self._packing.start()

    def finish_packing(self) -> None:
        """Wait until the pack under way is done, if there is one. Any thread but that of the server."""
        if self._packing is not None:
            self._packing.join()

    def _pack(self) -> None:
        started = monotonic()
        logger.info(Event("pack-began"))
        try:
            before = self._storage.statistics().collected
            self._storage.pack(self._resting())
            deleted = self._storage.statistics().collected.objects - before.objects
        except StorageClosed:
            logger.info(Event("pack-ended", reason="the storage is closed"))
        except Exception as error:
            self._pack_failed = str(error)
            self._metrics.failed_packs += 1
            logger.error(Event("pack-failed", reason=error), exc_info=_unless_expected(error))
        else:
            self._pack_failed = ""
            self._metrics.packs += 1
            logger.info(Event("packed", deleted=deleted, seconds=monotonic() - started))

    def _resting(self) -> Callable[[object], None]:
        """Return what a pack is to call between its steps: it rests where something has come since the last one."""
        received = self._metrics.received

        def rest(_: object) -> None:
            nonlocal received
            if self._metrics.received != received:
                received = self._metrics.received
                sleep(REST)

        return rest

    # --- backups

    def backup(self, progress: Told, done: Told) -> None:
        """Begin a backup.

        Args:
            progress: called now and then, by another thread, with how far it is, as values for JSON.
            done: called at the end, by that thread, with what was made, or with a `BerkeleyDBStorageError`.

        Raises:
            AccessDenied: nobody said where to.
        """
        if self._backup_to is None:
            raise AccessDenied("this server was not told where to put backups: start it with --backup-to")
        work = threading.Thread(
            target=self._back_up, args=(self._backup_to, progress, done), name="berkeleydb_storage backup", daemon=True
        )
        work.start()

    def _back_up(self, target: str | os.PathLike[str], progress: Told, done: Told) -> None:
        try:
            made = self._storage.backup(target, self._reports(progress))
        except Exception as error:
            self._metrics.failed_backups += 1
            logger.error(Event("backup-failed", to=target, reason=error), exc_info=_unless_expected(error))
            done(error if isinstance(error, BerkeleyDBStorageError) else BackupError(f"the backup failed: {error!r}"))
        else:
            self._metrics.backups += 1
            logger.info(Event("backed-up", to=made.where, objects=made.objects, bytes=made.bytes, seconds=made.seconds))
            done({**asdict(made), "path": made.where})

    def _reports(self, progress: Told) -> Callable[[str, int], None]:
        """Return what the backup is to call: it reports now and then, and ends the backup when the server ends."""
        told: tuple[str, float] = ("", 0.0)

        def report(activity: str, size: int) -> None:
            nonlocal told
            if self._ending:
                raise BackupError("the server ends: there is no backup")
            now = monotonic()
            if activity != told[0] or now - told[1] >= TELL:
                told = activity, now
                progress({"activity": activity, "bytes": size})

        return report


def _unless_expected(error: Exception) -> Exception | None:
    """Return an error whose traceback belongs into the log: a fault of ours."""
    return None if isinstance(error, (BerkeleyDBStorageError, OSError)) else error
