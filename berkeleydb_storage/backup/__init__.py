"""Hot backups: each a whole copy of a storage that is in use, itself a storage that is closed.

`Backups` makes them for one storage, asked for or by a policy. Layout and names: `shelf`; how the copy is made:
`copying`. Every method may be called from any thread.

Killed at any point: there is nothing that looks like a backup, and the next one removes what is left.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress

from berkeleydb_storage.backup.copying import Copying, Report, digests
from berkeleydb_storage.backup.policy import Every
from berkeleydb_storage.backup.shelf import Backup, Manifest, Shelf, list_backups
from berkeleydb_storage.checkpoint import Checkpointer
from berkeleydb_storage.directory import Directory
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.errors import BackupError, StorageClosed

__all__ = ["Backup", "Backups", "Every", "list_backups"]

logger = logging.getLogger(__name__)

RETRY = 300.0
"""Seconds after which a policy tries again what failed; its own if they are less."""
LOOK = 1.0
"""Seconds between two looks whether a backup is due, at most."""


class Backups:
    """Makes the backups of one storage, one at a time."""

    def __init__(
        self, engine: Engine, checkpointer: Checkpointer, directory: Directory, policy: Every | None = None
    ) -> None:
        """Make none yet."""
        self.policy = policy
        self._engine = engine
        self._checkpointer = checkpointer
        self._directory = directory
        self._running = threading.Lock()
        self._runner: int | None = None  # the thread that holds _running
        self._stopped = False
        self._due: float | None = None  # used by the thread of the policy alone; None: nothing was looked at yet

    @property
    def interval(self) -> float:
        """Seconds between two calls of `turn`."""
        return LOOK if self.policy is None else min(LOOK, self.policy.seconds / 4)

    def make(
        self, target: str | os.PathLike[str], progress: Report | None = None, *, keep: int | None = None
    ) -> Backup:
        """Make a backup in a new sub-directory of `target`, and remove all but the newest `keep`; None: remove none.

        Raises:
            BackupError: another one is being made, or it cannot be made; there is nothing of it then.
            CommitRefused, DiskFullError, DamagedError, StorageClosed: as `Copying.into` says.
        """
        if not self._running.acquire(blocking=False):
            raise BackupError(f"a backup of {self._directory.path} is being made: wait until it is done")
        self._runner = threading.get_ident()
        try:
            return self._make(Shelf(target), progress or _silent, keep)
        finally:
            self._runner = None
            self._running.release()

    def _make(self, shelf: Shelf, progress: Report, keep: int | None) -> Backup:
        started = time.monotonic()

        def report(activity: str, size: int) -> None:
            self._require_running()
            progress(activity, size)

        self._require_running()
        source = self._directory.path
        with shelf.locked(source), shelf.making(source) as path:
            with shelf.explaining():
                moment = Copying(self._engine, self._checkpointer, self._directory, report).into(path)
                noted = digests(path, report)
            manifest = Manifest(
                tid=moment.tid,
                time=moment.time,
                objects=moment.objects,
                seconds=round(time.monotonic() - started, 3),
                storage=str(source.absolute()),
                identity=moment.identity.hex(),
                log=moment.log,
                files=noted,
            )
            made = shelf.publish(path, manifest, source)
            logger.info("backup of %s to %s in %.1f s", source, made.path, made.seconds)
            if keep is not None:
                for gone in shelf.prune(keep, manifest.storage, manifest.identity):
                    logger.info("%s is removed: there are %d newer backups", gone, keep)
        return made

    def _require_running(self) -> None:
        if self._stopped:
            raise StorageClosed(f"{self._directory.path} is being closed: there is no backup")

    def turn(self) -> None:
        """Do what the policy says; called by its thread.

        Raises:
            As `make`: it is tried again later.
        """
        policy = self.policy
        if policy is None or self._stopped:
            return
        if self._due is None:
            self._due = time.monotonic() + min(self._wait(policy), RETRY)
        if time.monotonic() < self._due:
            return
        if (wait := self._wait(policy)) > 0:
            self._due = time.monotonic() + min(wait, RETRY)
            return
        self._due = time.monotonic() + min(policy.seconds, RETRY)
        with suppress(StorageClosed):
            self.make(policy.to, keep=policy.keep)

    def _wait(self, policy: Every) -> float:
        """Return how many seconds to wait for the next backup, as far as those tell that are there."""
        storage, identity = str(self._directory.path.absolute()), self._engine.identity.hex()
        mine = [manifest for _, manifest in Shelf(policy.to).manifests() if manifest.is_of(storage, identity)]
        if not mine:
            return 0.0
        newest = mine[-1]
        age = (self._engine.time() - newest.time) / 1e6
        if newest.identity == identity and newest.tid == self._engine.journal.tid:
            return policy.seconds
        return min(max(policy.seconds - age, 0.0), policy.seconds)

    def stop(self) -> None:
        """Refuse every later backup, and end the one under way; wait for that, unless it is this thread's."""
        self._stopped = True
        if self._runner != threading.get_ident():
            with self._running:
                pass


def _silent(activity: str, size: int) -> None:
    """Show no progress."""
