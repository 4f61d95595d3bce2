"""What runs behind an open storage: the policies at work, their threads, and the order in which all of it ends.

Owns the background threads. Made and started by the thread that opens the storage, closed once by any; `committed` is
called by whoever committed.

Invariants:

1. It does not refer to the storage itself: one that nobody has any more is closed.
2. At the end the threads stop first, then the engine; then comes the last checkpoint, and the files are closed.
3. A commit that is acknowledged does not fail by what a policy does afterwards.
4. A forked child lets go, and touches nothing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.archive import Archive
from berkeleydb_storage.backup.archiving import ArchiveThread
from berkeleydb_storage.backup.policy import Every
from berkeleydb_storage.backup.regular import CLOSING, Backups
from berkeleydb_storage.backup.source import LocalSource
from berkeleydb_storage.checkpoint import Checkpointer, checkpoint_interface
from berkeleydb_storage.control.serving import Control
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.errors import BerkeleyDBStorageError, DiskFullError
from berkeleydb_storage.figures import take_figures
from berkeleydb_storage.garbage.collector import Collector
from berkeleydb_storage.garbage.policy import garbage_collection_interface
from berkeleydb_storage.holding import Holds
from berkeleydb_storage.maintenance import Worker, in_worker
from berkeleydb_storage.opening import Opened, abandon_storage, close_storage
from berkeleydb_storage.statistics import take_statistics
from berkeleydb_storage.version import __version__

logger = logging.getLogger(__name__)


class Running:
    """The policies of a storage, with their threads."""

    def __init__(
        self,
        opened: Opened,
        engine: Engine,
        checkpoint: checkpoint_interface,
        garbage_collection: garbage_collection_interface,
        backup: Every | None,
        archive: Archive | None = None,
    ) -> None:
        """Put everything together; nothing runs yet."""
        self.opened = opened
        self.engine = engine
        self.holds = Holds(opened.directory, writable=opened.environment.writable)
        self.checkpointer: Checkpointer | None = None
        self.backups: Backups | None = None
        self.source: LocalSource | None = None
        """What backups are made from; None: it is read-only."""
        self.archive: ArchiveThread | None = None
        self._control: Control | None = None
        if opened.environment.writable:
            self.checkpointer = Checkpointer(opened.environment, opened.directory, self.holds, checkpoint)
            engine.transactions.room.relief = self.holds.relieve
            self.source = LocalSource(engine, self.checkpointer, opened.directory, self.holds)
            self.backups = Backups(engine, self.source, backup)
            self.archive = None if archive is None else ArchiveThread(self.source, archive)
            self._control = Control(self.source, self.figures)
        self.collector = Collector(
            engine,
            garbage_collection,
            ordered=opened.type == "btree",
            checkpoint=self.checkpointer.checkpoint if self.checkpointer else None,
        )
        if opened.environment.writable:
            engine.durability.lost_place = opened.directory.lost
        self._workers: list[Worker] = []
        self._inline: list[Callable[[int], object]] = []
        self._pid = os.getpid()
        checkpointer = self.checkpointer
        if checkpointer is None:
            return
        if garbage_collection.interval is None:
            self._inline.append(self.collector.turn)
        else:
            self._workers.append(Worker("garbage", garbage_collection.interval, self.collector.background_turn))
        if checkpoint.interval is None:
            self._inline.append(lambda _: checkpointer.turn())
        else:
            self._workers.append(Worker("checkpoint", checkpoint.interval, checkpointer.turn))
        if self.backups is not None and backup is not None:
            self._workers.append(Worker("backup", self.backups.interval, self.backups.turn, CLOSING))

    def start(self) -> None:
        """Start the threads."""
        for worker in self._workers:
            worker.start()
        if self._control is not None:
            self._control.start()
        if self.archive is not None:
            self.archive.start()

    def figures(self) -> dict[str, Any]:
        """Return what other processes are told, as JSON has it. Any thread may call it.

        Raises:
            DamagedError, StorageClosed: the storage cannot be used.
        """
        inside = take_figures(self.engine, take_statistics(self))
        return {"pid": os.getpid(), "version": __version__, "inside": asdict(inside)}

    def committed(self, records: int) -> None:
        """Do what the inline policies say after a commit. It is acknowledged: nothing here may make it fail."""
        for work in self._inline:
            try:
                work(records)
            except DiskFullError as error:
                logger.warning("after a commit: %s", error)
            except Exception:
                logger.exception("after a commit, in what a policy asked for")

    def close(self) -> None:
        """Close everything; called once. In a forked child: only let go of the lock, which the parent keeps."""
        if os.getpid() != self._pid:
            self.opened.directory.let_go()
        elif in_worker():  # as garbage, in the middle of a step, with mutexes held that closing must wait for
            threading.Thread(target=self._close, name="berkeleydb_storage close").start()
        else:
            self._close()

    def _close(self) -> None:
        try:
            self._stop()
        except BaseException as error:
            path, level = self.opened.directory.path, logging.WARNING if self.engine.durable else logging.ERROR
            lost = "" if self.engine.durable else "; with durable=False, commits that are not in the files yet are lost"
            logger.log(level, "%s is left to be recovered at the next open: %r%s", path, error, lost)
            self._abandon()
            if not isinstance(error, BerkeleyDBStorageError):
                raise
        else:
            close_storage(self.opened)

    def _stop(self) -> None:
        if self.archive is not None:
            self.archive.stop()
        self.engine.closing = True
        if self.archive is not None:
            self.archive.leave()
        if self._control is not None:
            self._control.stop()
        if self.backups is not None:
            self.backups.stop()
        for worker in self._workers:
            worker.stop()
        self.engine.stop()
        self.collector.close()
        self.holds.stop()
        if self.checkpointer is not None:
            self.checkpointer.stop()
            failpoints.reached("close.checkpointed")

    def _abandon(self) -> None:
        """Free everything as soon as no thread is in the library any more."""
        if self.archive is not None:
            self.archive.leave()
        if self._control is not None:
            self._control.stop()
        if self.backups is not None:
            self.backups.stop()
        for worker in self._workers:
            worker.stop()
        with suppress(BerkeleyDBStorageError):
            self.engine.stop()
        self.holds.stop()
        if self.checkpointer is not None:
            self.checkpointer.halt()
        abandon_storage(self.opened)
