"""The figures of an open storage that an operator looks at: its statistics, and what is known of its garbage.

Owns nothing. Any thread may take them; the engine's mutex is held for half a millisecond at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from berkeleydb_storage.backup.archive import Archived
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.files import Position
from berkeleydb_storage.format import PENDING, UNSETTLED
from berkeleydb_storage.garbage.requests import Packing
from berkeleydb_storage.holding import Held
from berkeleydb_storage.statistics import Statistics

SUSPECTS = 1_000_000
"""Suspects that are counted by what is known of them: a second. Where there are more, they are not."""
BATCH = 500
"""Suspects that are read at once: half a millisecond with the mutex."""


@dataclass(frozen=True)
class Inside:
    """The figures of an open storage, at one moment."""

    objects: int
    """Garbage included."""
    garbage: int
    """Objects without referrers, not deleted yet."""
    garbage_age: float | None
    """Seconds since the one that has waited for longest lost its last referrer; None where there is none."""
    doomed: int
    """Objects that are being deleted together, not deleted yet; they are neither in `garbage` nor there for anybody."""
    suspects: int
    """Objects that lost a referrer, and have another, since the last full pack."""
    suspects_waiting: int | None
    """Those that are still to be looked at; None where there are too many suspects to count them."""
    suspects_unsettled: int | None
    """Those that were looked at, and of which only a full pack can tell whether they are garbage; None as above."""
    last_search: float | None
    """When a suspect was last looked at, in seconds since the epoch; None: never."""
    last_pack: float | None
    """When a full pack was last complete; where there was none, when the storage was created or upgraded. None: not
    known, because an older format is read that does not say so."""
    transactions: int
    """Ever; those of the collector included."""
    last_transaction: float
    """When that was, in seconds since the epoch: a commit, or a step of the collector."""
    cache_bytes: int
    cache_hits: int
    """Pages found in the cache since the storage was opened."""
    cache_misses: int
    checkpoints: int
    """Since the storage was opened."""
    log_since_checkpoint: int
    """Bytes that a recovery would have to read."""
    collected: int
    """Objects that the collector deleted since the storage was opened."""
    collected_bytes: int
    """In the records of these."""
    recovered: bool
    """Whether its last owner had not closed it."""
    holds: tuple[Held, ...] = ()
    """The backups and archives that log files are kept for, which recovery does not need; who holds most first."""
    archive: Archived | None = None
    """How far the archive is that the owner makes; None: it makes none."""
    packing: Packing | None = None
    """How far the full pack under way is, None where there is none."""
    end: Position | None = None
    """Where the log ends; None where nobody writes any."""

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of the pages that were in the cache, None where none was asked for."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else None


def take_figures(engine: Engine, known: Statistics) -> Inside:
    """Return the figures of an open storage. Any thread may call it.

    It reads all suspects, if they are not more than `SUSPECTS`.

    Raises:
        StorageClosed, DamagedError: it cannot be read.
    """
    states = _states(engine) if known.suspects <= SUSPECTS else None
    with engine.lock:
        oldest = engine.counts.next_condemned()
        last = engine.journal.state.time
        end = Position(*engine.environment.end_of_log()) if engine.environment.writable else None
    return Inside(
        objects=known.objects,
        garbage=known.garbage,
        garbage_age=None if oldest is None else max(0.0, time.time() - oldest[0] / 1e6),
        doomed=known.doomed,
        suspects=known.suspects,
        suspects_waiting=None if states is None else states[PENDING],
        suspects_unsettled=None if states is None else states[UNSETTLED],
        last_search=known.last_search,
        last_pack=known.last_pack,
        transactions=known.transactions,
        last_transaction=last / 1e6,
        cache_bytes=known.cache_bytes,
        cache_hits=known.cache_hits,
        cache_misses=known.cache_misses,
        checkpoints=known.checkpoints,
        log_since_checkpoint=known.log_since_checkpoint,
        collected=known.collected.objects,
        collected_bytes=known.collected.bytes,
        recovered=known.recovered,
        holds=known.holds,
        archive=known.archive,
        packing=known.packing,
        end=end,
    )


def _states(engine: Engine) -> Counter[int]:
    """Count the suspects by what is known of them: in memory it is not known of all."""
    states: Counter[int] = Counter()
    start: bytes | None = b""
    while start is not None:
        with engine.lock, engine.gate.explaining():
            engine.require_open()
            found = engine.counts.suspected(start, BATCH)
        states.update(suspect.state for _, suspect in found)
        start = found[-1][0] + b"\0" if len(found) == BATCH else None
    return states
