"""The backups of a storage that is open: asked for, or made by a policy. One at a time; any thread may call it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from berkeleydb_storage.backup.guarding import GuardedSource
from berkeleydb_storage.backup.making import Backup, back_up
from berkeleydb_storage.backup.policy import Every
from berkeleydb_storage.backup.pruning import prune
from berkeleydb_storage.backup.repository import Report, Repository
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.backup.source import LocalSource
from berkeleydb_storage.backup.stores import Store, open_store
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.errors import BackupError, StorageClosed

logger = logging.getLogger(__name__)

RETRY = 300.0
"""Seconds after which a policy tries again what failed; its own if they are less."""
LOOK = 1.0
"""Seconds between two looks whether a backup is due, at most."""
CLOSING = 5.0
"""Seconds that `stop` waits for a backup to end, which may hang in a request of the store."""


class Backups:
    """Makes the backups of one storage."""

    def __init__(self, engine: Engine, source: LocalSource, policy: Every | None = None) -> None:
        """Make none yet."""
        self.policy = policy
        self.source = source
        self._engine = engine
        self._guarded = GuardedSource(source)
        self._running = threading.Lock()
        self._runner: int | None = None  # the thread that holds _running
        self._stopped = False
        self._due: float | None = None  # used by the thread of the policy alone; None: nothing was looked at yet

    @property
    def interval(self) -> float:
        """Seconds between two calls of `turn`."""
        return LOOK if self.policy is None else min(LOOK, self.policy.seconds / 4)

    def make(
        self,
        target: str | os.PathLike[str],
        progress: Report | None = None,
        *,
        full: bool = False,
        keep: Keep | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Backup:
        """Make a backup, and remove what `keep` has no need for; None: remove nothing.

        Raises:
            BackupError: another one is being made, or it cannot be made; there is nothing of it then.
            CommitRefused, DiskFullError, DamagedError, StorageClosed: as `Source` says.
        """
        if not self._running.acquire(blocking=False):
            raise BackupError(f"a backup of {self.source.path} is being made: wait until it is done")
        self._runner = threading.get_ident()
        if options is None and self.policy is not None and os.fspath(target) == os.fspath(self.policy.to):
            options = self.policy.options
        try:
            return self._make(open_store(target, options=options), progress or _silent, full, keep)
        finally:
            self._runner = None
            self._running.release()

    def _make(self, store: Store, progress: Report, full: bool, keep: Keep | None) -> Backup:
        def report(activity: str, size: int) -> None:
            self._require_running()
            progress(activity, size)

        self._require_running()
        repository = Repository(store)
        made = back_up(self._guarded, repository, report, full=full)
        if keep is not None:
            prune(repository, made.identity, keep, lambda: self._stopped)
        return made

    def _require_running(self) -> None:
        if self._stopped:
            raise StorageClosed(f"{self.source.path} is being closed: there is no backup")

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
            self.make(policy.to, keep=policy.kept, options=policy.options)

    def _wait(self, policy: Every) -> float:
        """Return how many seconds to wait for the next backup, as far as those tell that are there."""
        bases = Repository(open_store(policy.to, options=policy.options)).bases(self._engine.identity.hex())
        ends = [(base.manifest.tid, base.manifest.time) for base in bases if base.manifest is not None]
        ends += [(run.tid, run.time) for base in bases for run in base.runs]
        if not ends:
            return 0.0
        tid, newest = max(ends)
        if tid == self._engine.journal.tid:
            return policy.seconds
        age = (self._engine.time() - newest) / 1e6
        return max(policy.seconds - age, 0.0) if age >= 0 else 0.0  # else the clock was set back: nobody knows

    def stop(self) -> None:
        """Refuse every later backup, and end the one under way; wait for that a while, unless it is this thread's.

        Whoever still hangs in a request of the store does not come back into the storage.
        """
        self._stopped = True
        if self._runner != threading.get_ident() and self._running.acquire(timeout=CLOSING):
            self._running.release()
        self._guarded.stop()


def _silent(activity: str, size: int) -> None:
    """Show no progress."""
