"""The continuous archive of a storage: every second, what was committed since goes to a store.

An `Archiver` does that for one storage and one store; `turn` is called every second, by one thread after another.
`figures` may be called by any.

Invariants:

1. Nothing here is waited for by a commit: a look takes the engine's mutex for microseconds, and the log is read as a
   file.
2. What is in the store can be restored at any time, up to the last piece that came there. Nothing is overwritten.
3. While the store cannot be reached, the log is kept on the disk, up to a limit, by a hold that survives a crash.
   Beyond it there is a gap, which is logged, and everything is copied again.
4. While everything is copied, in a thread of its own, the chain before is continued.
5. One archives a storage to a place at a time; another one waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.archive import QUEUE, Archive, Archived
from berkeleydb_storage.backup.catalog import Base
from berkeleydb_storage.backup.chain import Chain, Joined, resume
from berkeleydb_storage.backup.claim import Claim
from berkeleydb_storage.backup.guarding import GuardedSource
from berkeleydb_storage.backup.making import is_outgrown, refuse_inside
from berkeleydb_storage.backup.pruning import prune
from berkeleydb_storage.backup.repository import Report, Repository
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.backup.source import Moment, Source
from berkeleydb_storage.backup.stores import Store, open_store
from berkeleydb_storage.environment import LOG_FILE_SIZE
from berkeleydb_storage.errors import (
    BackupError,
    BerkeleyDBStorageError,
    LogGone,
    OwnerGone,
    StorageClosed,
    StoreUnreachable,
)
from berkeleydb_storage.files import Position
from berkeleydb_storage.holding import holder_name
from berkeleydb_storage.maintenance import background

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""
TELL = 60.0
"""Seconds between two lines of the log that say that it still does not work."""
CHECK = 60.0
"""Seconds between two looks whether what is continued is still there."""
PRUNE = 3600.0
"""Seconds between two looks for what is needless in the store."""
FOREVER = Keep(within=1e10)
"""Every moment: what is removed then is in other pieces."""
PAUSE = 0.05
"""Seconds between two looks, at the end, whether everything is copied."""


class _Waiting:
    """How long to wait after something failed. For one thread."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        self._due = self._since = self._told = 0.0
        self.reason = ""

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._due

    def failed(self, error: Exception, note: str) -> None:
        now = time.monotonic()
        if not self._failures:
            self._since = now
        self._failures += 1
        self.reason = str(error) or repr(error)
        self._due = now + min(2.0**self._failures, LONGEST_WAIT) * random.uniform(0.5, 1.0)
        if self._failures == 1 or now - self._told >= TELL:
            self._told = now
            logger.warning("%s: %s; %s, and tried again", self._what, self.reason, note)

    def worked(self) -> None:
        if self._failures:
            seconds = time.monotonic() - self._since
            logger.warning("%s works again, after %.0f s", self._what, seconds)
        self.now()
        self._failures, self.reason = 0, ""

    def now(self) -> None:
        self._due = 0.0


class _Task(Generic[T]):
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self._work = work
        self._done = threading.Event()
        self._result: T | None = None
        self._error: Exception | None = None
        background(self._run, name).start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:  # of who asks for the result
            self._error = error
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, seconds: float) -> None:
        """Wait until it is done, for so long at most."""
        self._done.wait(seconds)

    def result(self) -> T:
        """Return what came out of it, or raise that; it is done."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class Archiver:
    """Archives one storage to one store."""

    def __init__(
        self,
        source: Source,
        store: Store,
        *,
        queue: int = QUEUE,
        keep: Keep | None = None,
        report: Report | None = None,
    ) -> None:
        """Do nothing yet.

        Args:
            source: of what.
            store: where to.
            queue: bytes of log that are kept while the store cannot be reached.
            keep: what stays in the store; None: all.
            report: called by a thread of its own, while everything is copied.
        """
        self.url = store.url
        self._source = source
        self._store = store
        self._repository = Repository(store)
        self._queue = queue
        self._keep = keep or FOREVER
        self._report = report
        self._holder = holder_name("archive", store.url)
        what = f"the archive of {source.path} to {store.url}"
        self._what = what
        self._claim = Claim(source.path, store.url)
        self._refused = False
        self._released = False  # what runs in a thread of its own then ends
        self._turning = threading.Lock()
        # what follows is changed by who holds _turning, and read by any thread
        self._chain: Chain | None = None
        self._reached: Position | None = None  # where it ended when it was known
        self._known = False  # whether the repository was looked at since something failed
        self._base: _Task[Base] | None = None
        self._base_from = 0
        self._copied: int | None = None
        self._joining: _Task[Joined] | None = None
        self._pruning: _Task[int] | None = None
        self._prune_due = time.monotonic() + PRUNE
        self._check_due = 0.0
        self._held: int | None = None
        self._shipping = _Waiting(what)
        self._copying = _Waiting(f"{what}, copying everything,")
        self._moment: Moment | None = None
        self._safe = time.monotonic()  # when it was looked that all of that is in the store
        self._shipped: Moment | None = None
        self._bytes = self._pieces = self._bases = self._gaps = 0

    # -- what it is asked for ----------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what is to be done now. What fails in the store is logged, and tried again by a later call.

        Raises:
            StorageClosed, OwnerGone: the storage is not there any more. DamagedError, CommitRefused, DiskFullError:
                it does not tell how far it is.
        """
        with self._turning:
            if not self._claimed():
                return
            now = time.monotonic()
            moment = self._source.look()
            self._moment = moment
            if self._is_shipped(moment):
                self._safe, self._shipped = now, moment
            if not self._shipping.over:
                return
            try:
                self._work(moment, now)
            except (StorageClosed, OwnerGone):
                self._forget()
                raise
            except LogGone as error:
                self._lost(error)
            except (BerkeleyDBStorageError, OSError) as error:
                self._forget()
                self._shipping.failed(error, f"{self._lag()} is kept on the disk, up to {self._queue:,} bytes")
            except BaseException:
                self._forget()
                raise
            else:
                self._shipping.worked()

    def finish(self, seconds: float) -> bool:
        """Copy what is left, for so long at most, and let another archive. Return whether everything is copied.

        Raises:
            As `turn`.
        """
        deadline = time.monotonic() + seconds
        try:
            while True:
                self._shipping.now()
                self.turn()
                if self.is_shipped:
                    return True
                if time.monotonic() >= deadline:
                    return False
                if self._base is not None:
                    self._base.wait(PAUSE)
                else:
                    time.sleep(PAUSE)
        finally:
            self.release()

    def release(self) -> None:
        """Let another archive."""
        self._released = True
        with self._turning:
            self._forget()
            self._claim.release()

    @property
    def is_shipped(self) -> bool:
        """Whether all that there was at the last look is in the store."""
        moment = self._moment
        return moment is not None and self._is_shipped(moment)

    @property
    def is_complete(self) -> bool:
        """Whether, beside that, nothing is under way, nor everything to be copied."""
        return self.is_shipped and self._base is None and self._joining is None and self._pruning is None

    def wait(self, seconds: float) -> None:
        """Wait until something that is under way in a thread of its own is done, for so long at most."""
        task = self._base or self._joining or self._pruning
        if task is not None:
            task.wait(seconds)

    def figures(self) -> Archived:
        """Return how far it is. Any thread may call it."""
        chain, moment, shipped = self._chain, self._moment, self._shipped
        reached = self._reached if chain is None else chain.position
        behind = None if reached is None or moment is None else distance(reached, moment.end)
        return Archived(
            url=self.url,
            tid=None if shipped is None else shipped.tid,
            time=None if shipped is None else shipped.time / 1e6,
            behind_bytes=behind,
            behind_seconds=0.0 if behind == 0 else round(time.monotonic() - self._safe, 3),
            shipped_bytes=self._bytes,
            pieces=self._pieces,
            bases=self._bases,
            copying=self._copied,
            gaps=self._gaps,
            failing=self._shipping.reason or self._copying.reason,
        )

    def claim(self) -> None:
        """Have the right to archive from now on, or be refused.

        Raises:
            BackupError: another one archives this storage to the same place.
        """
        with self._turning:
            if not self._claim.take():
                raise self._refusal()

    # -- the work: the caller holds _turning --------------------------------------------------------------------------

    def _claimed(self) -> bool:
        if self._claim.take():
            self._refused = self._released = False
            return True
        if not self._refused:
            self._refused = True
            logger.warning("%s", self._refusal())
        return False

    def _refusal(self) -> BackupError:
        who = self._claim.holder() or "(unknown)"
        return BackupError(
            f"{self._what} is made by process {who} already: one at a time; end that one, or leave it so"
        )

    def _forget(self) -> None:
        """Look into the repository again before going on."""
        if self._chain is not None:
            self._reached = self._chain.position
        self._chain, self._known, self._joining = None, False, None

    def _is_shipped(self, moment: Moment) -> bool:
        chain = self._chain
        return chain is not None and chain.identity == moment.identity.hex() and chain.position == moment.end

    def _lag(self) -> str:
        figures = self.figures()
        if figures.behind_bytes is None:
            return "what was committed since"
        return f"what was committed in the last {figures.behind_seconds:.0f} s"

    def _work(self, moment: Moment, now: float) -> None:
        self._end_base()
        if not self._known:
            refuse_inside(self._source, self._repository)
            self._chain, self._known = resume(self._repository, self._source, moment), True
        chain = self._chain
        if chain is not None and chain.identity != moment.identity.hex():
            logger.warning("%s: the storage has a new identity, everything is copied again", self._what)
            chain = self._chain = None
        if self._base is None and (chain is None or is_outgrown(chain.base, moment)) and self._copying.over:
            self._begin_base(moment)
        if chain is not None and moment.end != chain.position and now >= self._check_due:
            chain = self._checked(chain, moment, now)
        if chain is not None:
            self._ship(chain, moment, now)
        self._tidy(moment)

    def _checked(self, chain: Chain, moment: Moment, now: float) -> Chain | None:
        """Return what is to be continued: another chain, if somebody removed the base of this one."""
        try:
            self._repository.manifest(chain.base)
        except StoreUnreachable:
            raise
        except BackupError as error:
            logger.error("%s: what was continued is gone from there: %s", self._what, error)
            self._chain = resume(self._repository, self._source, moment)
        self._check_due = now + CHECK
        return self._chain

    def _ship(self, chain: Chain, moment: Moment, now: float) -> None:
        if moment.end != chain.position:
            bytes, pieces = chain.shipped, chain.pieces
            try:
                chain.ship(moment)
            finally:
                self._bytes += chain.shipped - bytes
                self._pieces += chain.pieces - pieces
            self._keep_log(chain)
        elif self._held is None:
            self._keep_log(chain)
        self._safe, self._shipped = now, moment
        self._join(chain)

    def _join(self, chain: Chain) -> None:
        """Have the pieces of a log file joined, in a thread of its own; where that fails, they stay as they are."""
        if self._joining is not None:
            if not self._joining.done:
                return
            task, self._joining = self._joining, None
            try:
                done = task.result()
            except (BerkeleyDBStorageError, OSError) as error:
                logger.debug("%s: pieces are not joined: %s", self._what, error)
            else:
                logger.debug("%s: the pieces of log file %d are joined", self._what, done.start.log)
            if chain.joins:
                chain.joins.popleft()
                self._keep_log(chain)
        if chain.joins:
            joined = chain.joins[0]

            def work() -> Joined:
                chain.join(joined)
                return joined

            self._joining = _Task(work, "archive joining")

    def _keep_log(self, chain: Chain) -> None:
        """Keep the log that is needed to go on."""
        needed = chain.needed if self._base is None else min(chain.needed, self._base_from)
        if needed == self._held and self._source.held(self._holder) is not None:
            return
        try:
            self._source.hold(self._holder, Position(needed, 0), self._queue)
        except BackupError:
            chain.joins.clear()
            needed = chain.position.log
            self._source.hold(self._holder, Position(needed, 0), self._queue)
        self._held = needed

    def _lost(self, error: LogGone) -> None:
        """Go on after a gap."""
        self._gaps += 1
        before = "" if self._shipped is None else f" after transaction {self._shipped.tid}"
        logger.error(
            "%s has a gap: %s. What was committed%s can be restored only with what is copied next, which is everything",
            self._what,
            error,
            before,
        )
        self._chain, self._reached, self._known, self._held = None, None, True, None

    # -- copying everything -------------------------------------------------------------------------------------------

    def _begin_base(self, moment: Moment) -> None:
        chain = self._chain
        self._base_from = moment.end.log
        needed = self._base_from if chain is None else min(self._base_from, chain.needed)
        self._source.hold(self._holder, Position(needed, 0), self._queue)
        self._held = needed
        self._copied = 0
        logger.info("%s: everything is copied", self._what)
        self._base = _Task(self._copy, "archive copying")

    def _copy(self) -> Base:
        """Copy everything; in a thread of its own."""

        def report(activity: str, size: int) -> None:
            self._copied = size
            if self._report is not None:
                self._report(activity, size)

        return Repository(self._store).add_base(self._source, report)

    def _end_base(self) -> None:
        """Go on with what was copied, if it is complete."""
        task = self._base
        if task is None or not task.done:
            return
        try:
            base = task.result()
        except StorageClosed:
            self._base = self._copied = None
            raise
        except (BerkeleyDBStorageError, OSError) as error:
            self._base = self._copied = None
            self._copying.failed(error, "it is begun anew")
            return
        chain, manifest = self._chain, base.manifest
        assert manifest is not None
        identity = bytes.fromhex(base.identity)
        if chain is not None and chain.identity == base.identity and chain.position < manifest.end:
            chain.ship(Moment(manifest.tid, manifest.time, manifest.objects, identity, manifest.end))
        failpoints.reached("archive.switching")
        self._chain, self._known = Chain(self._repository, self._source, base, []), True
        self._base = self._copied = None
        self._bases += 1
        self._prune_due = 0.0
        self._copying.worked()
        logger.info("%s: everything is copied, %d bytes in %.1f s", self._what, manifest.bytes, manifest.seconds)

    # -- retention ----------------------------------------------------------------------------------------------------

    def _tidy(self, moment: Moment) -> None:
        """Have removed what is needless, now and then, in a thread of its own."""
        task = self._pruning
        if task is not None and task.done:
            self._pruning = None
            try:
                task.result()
            except (BerkeleyDBStorageError, OSError) as error:
                logger.warning("%s: what is needless is not removed: %s; tried again later", self._what, error)
        if self._pruning is None and time.monotonic() >= self._prune_due:
            self._prune_due = time.monotonic() + PRUNE
            identity = moment.identity.hex()
            self._pruning = _Task(lambda: self._prune(identity), "archive retention")

    def _prune(self, identity: str) -> int:
        return prune(Repository(self._store), identity, self._keep, lambda: self._released)


def distance(start: Position, end: Position) -> int:
    """Return about how many bytes of log there are in between: files that end there count as much as they can have."""
    return max(0, (end.log - start.log) * LOG_FILE_SIZE + end.offset - start.offset)


class ArchiveThread:
    """Archives an open storage as a policy says, from `start` to `stop`."""

    def __init__(self, source: Source, policy: Archive) -> None:
        """Prepare the thread.

        Raises:
            BackupError: there is something wrong with the store, for good.
        """
        store = open_store(policy.to, options=policy.options, timeout=policy.timeout, require=False)
        self._source = GuardedSource(source)
        keep = None if policy.keep is None else Keep.of(policy.keep)
        self._archiver = Archiver(self._source, store, queue=policy.queue, keep=keep)
        self._interval = policy.interval
        self._closing = policy.closing
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._failing = False
        self._begun = 0.0  # of the last turn; used by the thread alone, as what follows
        self._took = 0.0  # seconds that a turn takes
        self._thread = background(self._run, "archive")

    def start(self) -> None:
        """Start it."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._pause()):
                started = time.monotonic()
                self._turn(self._archiver.turn)
                self._begun, self._took = started, (self._took + time.monotonic() - started) / 2
            self._turn(self._finish)
        finally:
            self._ended.set()

    def _pause(self) -> float:
        """Return how long to rest: what is committed now is to be in the store within the interval."""
        period = max(self._interval - 2 * self._took, self._interval / 4)
        return max(0.0, self._begun + period - time.monotonic())

    def _finish(self) -> None:
        if not self._archiver.finish(self._closing):
            figures = self._archiver.figures()
            logger.warning(
                "the archive to %s does not have everything: the storage is closed, and what is missing comes when it "
                "is opened again%s",
                figures.url,
                f" ({figures.failing})" if figures.failing else "",
            )

    def _turn(self, work: Callable[[], object]) -> None:
        try:
            work()
        except StorageClosed:
            logger.debug("the archive to %s ends with the storage", self._archiver.url)
        except Exception as error:
            if not self._failing:
                logger.error("the archive to %s: %s; it is tried again", self._archiver.url, error)
            logger.debug("the archive to %s failed", self._archiver.url, exc_info=True)
            self._failing = True
        else:
            self._failing = False

    def figures(self) -> Archived:
        """Return how far it is. Any thread may call it."""
        return self._archiver.figures()

    def stop(self) -> None:
        """Copy what is left, and end, or leave the thread to itself after `closing` seconds. Works twice."""
        self._stopping.set()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._ended.wait(self._closing + PAUSE)

    def leave(self) -> None:
        """Have the thread out of the storage, where it may still hang in a request of the store. Works twice."""
        self._stopping.set()
        self._source.stop()
