"""When to write changed pages into the tables, so that recovery stays short and old log files can go.

The policies get numbers and return decisions; the `Checkpointer` carries them out. Users may write their own policy:
a subclass of `checkpoint_interface`, or anything with its two members.

Invariants:

1. A log file is removed only after a checkpoint that makes it needless has completed, and after ``storage.json``
   says that it is not needed.
2. One checkpoint runs at a time. Commits go on meanwhile.
3. While a backup or an archive needs log files, none of those is removed: `holding` says which. Recovery does not
   depend on them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from berkeleydb_storage import failpoints, files
from berkeleydb_storage.directory import Directory
from berkeleydb_storage.environment import Environment
from berkeleydb_storage.errors import OptionError, StorageClosed
from berkeleydb_storage.holding import Holds, Pin

logger = logging.getLogger(__name__)

LOG_BYTES = 32 << 20
"""Default of the policies: recovery from this much log takes about a second."""
SECONDS = 60.0


class CheckpointNumbers(NamedTuple):
    """What a checkpoint policy is told."""

    log_bytes: int
    """Bytes of log written since the last checkpoint; 0 where nothing was committed."""
    seconds: float
    """Seconds since the last checkpoint."""


class checkpoint_interface:  # noqa: N801 - the name that the original release gave it
    """A policy that decides when there is a checkpoint. Subclass it, and override `due` and perhaps `interval`."""

    interval: float | None = None
    """Seconds between two questions, asked from a background thread, which then also does the work. None: asked by
    every commit, after it, in the committing thread: about 10 microseconds, and the commit that meets a "yes" waits
    for the checkpoint."""

    def due(self, numbers: CheckpointNumbers) -> bool:
        """Decide whether to make a checkpoint now.

        Args:
            numbers: how much log there is, and how old the last checkpoint.

        Returns:
            True for a checkpoint. It must not call the storage, and must return at once.
        """
        raise NotImplementedError


class CheckpointNever(checkpoint_interface):
    """No checkpoints but those at close: the log grows, and so does the time that a recovery takes."""

    def due(self, numbers: CheckpointNumbers) -> bool:
        """Return False."""
        return False


class CheckpointInline(checkpoint_interface):
    """A checkpoint by the commit that makes the log too long, or comes too late after the last one."""

    def __init__(self, log_bytes: int = LOG_BYTES, seconds: float = SECONDS) -> None:
        """Set the limits; either is enough, if anything was written at all, and infinity is none.

        Args:
            log_bytes: bytes of log since the last checkpoint; default 32 MiB.
            seconds: since the last checkpoint; default 60.

        Raises:
            OptionError: one of them is not positive.
        """
        if not (log_bytes > 0 and seconds > 0):
            raise OptionError(f"log_bytes and seconds are positive, not {log_bytes!r} and {seconds!r}")
        self.log_bytes = log_bytes
        self.seconds = seconds

    def due(self, numbers: CheckpointNumbers) -> bool:
        """Compare with the limits."""
        return numbers.log_bytes >= self.log_bytes or (numbers.seconds >= self.seconds and numbers.log_bytes > 0)


class CheckpointThread(CheckpointInline):
    """The default: the same limits, looked at by a background thread, which rests between the pages that it writes."""

    interval = 0.5


class Checkpointer:
    """Makes checkpoints of one environment and removes the logs that they make needless. Any thread may call it."""

    def __init__(
        self, environment: Environment, directory: Directory, holds: Holds, policy: checkpoint_interface
    ) -> None:
        """Start counting now."""
        self.policy = policy
        self._environment = environment
        self._directory = directory
        self._holds = holds
        self._running = threading.Lock()
        self._position = environment.log_position()  # guarded by _running
        self._transactions = environment.transactions()  # guarded by _running
        self._time = time.monotonic()  # guarded by _running
        self.completed = 0  # guarded by _running
        self._stopped = False  # guarded by _running
        self._noted = 0  # guarded by _running: the newest log file that is noted
        self._needed = 0  # guarded by _running: the oldest log file that recovery needs since the last checkpoint

    def numbers(self) -> CheckpointNumbers:
        """Return what the policy is told. What a checkpoint itself writes into the log does not count."""
        environment = self._environment
        idle = environment.transactions() == self._transactions
        written = 0 if idle else environment.log_position() - self._position
        return CheckpointNumbers(written, time.monotonic() - self._time)

    def turn(self) -> None:
        """Ask the policy, and do what it says; nothing while a checkpoint runs already, or after `stop`."""
        if self._running.locked():
            return
        with self._running:
            if self._stopped:
                return
            self._note_log()
            if self.policy.due(self.numbers()):
                self._checkpoint()

    def _note_log(self) -> None:
        """Note a log file of which something is on the disk, so that it is missed at an open that does not find it.

        Where that fails, the next checkpoint does it, or says why not.
        """
        newest = min(self._environment.log_on_disk(), files.log_numbers(self._directory.path)[-1])
        if newest > self._noted:
            self._noted = newest
            with suppress(OSError):
                self._directory.sync()  # the file's name first
                self._directory.update(last_log=newest)

    def checkpoint(self) -> None:
        """Make a checkpoint, and remove the log files that recovery no longer needs.

        Raises:
            DiskFullError: there is no room for the pages; nothing is lost, it can be tried again.
            StorageClosed: it is closed.
        """
        with self._running:
            self._require_running()
            self._checkpoint()

    @contextmanager
    def keeping_logs(self) -> Iterator[Pin]:
        """Make a checkpoint, and remove no log file from there on until the block is left, if there is room for them.

        Gives from which one on recovery needs them from now on, and whether they were lost.

        Raises:
            As `checkpoint`.
        """
        with self._running:
            self._require_running()
            self._checkpoint()
            pinned = ExitStack()
            pin = pinned.enter_context(self._holds.pinned(self._needed))
        with pinned:
            yield pin

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Wait until no checkpoint is under way, and keep the next from beginning; for some milliseconds at a time.

        Who asks for a checkpoint meanwhile waits. A policy does not, and is asked again.
        """
        with self._running:
            yield

    def _require_running(self) -> None:
        if self._stopped:
            raise StorageClosed(f"{self._directory.path} is closed")

    def stop(self) -> None:
        """Make the last checkpoint; every later one is refused.

        Raises:
            DiskFullError, DamagedError: it could not be made.
        """
        with self._running:
            self._stopped = True
            self._checkpoint()

    def halt(self) -> None:
        """Refuse every later checkpoint, once the one under way is done."""
        with self._running:
            self._stopped = True

    def _checkpoint(self) -> None:
        if (lost := self._directory.lost()) is not None:
            raise lost  # another process may own what is there now
        transactions, position = self._environment.transactions(), self._environment.log_position()
        started = time.monotonic()
        quiet = self._environment.quiet_since()
        before = self._sizes_if_quiet(quiet)
        failpoints.reached("checkpoint.begun")
        self._environment.checkpoint()
        failpoints.reached("checkpoint.done")
        sizes = self._sizes_if_quiet(quiet) or before
        self._remove_logs({"sizes": sizes} if sizes else {})
        self._transactions, self._position, self._time = transactions, position, started
        self.completed += 1
        logger.debug("checkpoint of %s in %.3f s", self._directory.path, time.monotonic() - started)

    def _sizes_if_quiet(self, quiet: int | None) -> dict[str, int]:
        """Return the sizes of the tables; nothing where transactions began since `quiet`, which may take pages back."""
        sizes = self._directory.sizes(self._environment.tables)
        return sizes if quiet is not None and quiet == self._environment.quiet_since() else {}

    def _remove_logs(self, changes: dict[str, object]) -> None:
        path = self._directory.path
        present = files.log_numbers(path)
        needed = self._first_needed(present)
        log, offset = self._environment.last_checkpoint()
        with self._holds.settling(needed) as kept:
            self._directory.update(
                first_log=needed, last_log=present[-1], checkpoint_log=log, checkpoint_offset=offset, **changes
            )
            failpoints.reached("checkpoint.logs-noted")
            for number in present:
                if number < kept:
                    (path / files.log_name(number)).unlink(missing_ok=True)
        self._needed, self._noted = needed, present[-1]
        failpoints.reached("checkpoint.logs-removed")

    def _first_needed(self, present: list[int]) -> int:
        """Return the oldest log file that recovery needs. The library does not name those before a gap."""
        needless = self._environment.removable_logs()
        first = needless[-1] + 1 if needless else files.oldest_without_gap(self._directory.path)
        return min(max(first, self._holds.needed), present[-1])
