"""What a storage holds and did, as numbers.

Owns nothing. Any thread may take them; the engine's mutex is held for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from berkeleydb_storage.backup.archive import Archived
from berkeleydb_storage.garbage.collector import Collected
from berkeleydb_storage.garbage.requests import Packing
from berkeleydb_storage.holding import Held

if TYPE_CHECKING:
    from berkeleydb_storage.running import Running


@dataclass(frozen=True)
class Statistics:
    """A snapshot of what a storage holds and did since it was opened."""

    objects: int
    """Objects stored, garbage included."""
    garbage: int
    """Objects without referrers that wait to be deleted."""
    doomed: int
    """Objects that are being deleted together; for everybody else they are gone."""
    suspects: int
    """Objects that lost a referrer, but not all, since the last full pack; most of them are known to live."""
    unsettled: int
    """Suspects of which only a full pack can tell whether they are garbage, as far as they were looked at since the
    storage was opened."""
    packing: Packing | None
    """How far the full pack under way is, None where there is none."""
    last_search: float | None
    """When a cycle was last looked for, in seconds since the epoch; None: never."""
    last_pack: float | None
    """When a full pack was last complete, in seconds since the epoch; where there was none, when the storage was
    created or upgraded. None: not known, because an older format is read that does not say so."""
    transactions: int
    """Transactions ever, those of the collector included."""
    collected: Collected
    """What the collector deleted since the storage was opened."""
    checkpoints: int
    """Checkpoints since the storage was opened."""
    log_since_checkpoint: int
    """Bytes of log that a recovery would have to read."""
    cache_hits: int
    """Pages found in the cache since the storage was opened."""
    cache_misses: int
    """Pages that had to be read."""
    cache_bytes: int
    """Size of the cache."""
    type: str
    """Access method of the objects."""
    recovered: bool
    """Whether the last owner had not closed the storage."""
    holds: tuple[Held, ...]
    """The backups and archives that log files are kept for, which recovery does not need; who holds most first."""
    archive: Archived | None
    """How far the archive is that the option `archive` asks for; None: it does not."""


def take_statistics(running: Running) -> Statistics:
    """Return a snapshot.

    Raises:
        DamagedError, StorageClosed: the storage cannot be used.
    """
    checkpointer, engine = running.checkpointer, running.engine
    with engine.lock:
        engine.require_open()
        state = engine.journal.state
        doomed, unsettled = engine.doomed.left, len(engine.counts.unsettled)
        cache = engine.environment.cache_statistics()
        unchecked = checkpointer.numbers().log_bytes if checkpointer else 0
    return Statistics(
        objects=state.objects,
        garbage=state.garbage,
        doomed=doomed,
        suspects=state.suspects,
        unsettled=unsettled,
        packing=running.collector.packing,
        last_search=running.collector.searched(),
        last_pack=running.collector.packed or None,
        transactions=engine.journal.tid,
        collected=running.collector.collected,
        checkpoints=checkpointer.completed if checkpointer else 0,
        log_since_checkpoint=unchecked,
        cache_hits=cache["cache_hit"],
        cache_misses=cache["cache_miss"],
        cache_bytes=(cache["gbytes"] << 30) + cache["bytes"],
        type=running.opened.type,
        recovered=running.opened.recovered,
        holds=running.holds.figures(),
        archive=running.archive.figures() if running.archive else None,
    )
