"""Removes from a repository what no backup that is kept has need for. One at a time for each storage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import takewhile

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.retention import Keep, needless

logger = logging.getLogger(__name__)


def prune(repository: Repository, identity: str, keep: Keep, ended: Callable[[], bool] = lambda: False) -> int:
    """Remove what is needless, and return how many objects that were. Killed meanwhile, what is kept can be restored.

    What a storage of another identity left stays, also where that had the same path: it may be another machine's.

    Args:
        repository: where.
        identity: of the storage, in hexadecimal digits.
        keep: what stays.
        ended: asked before each is removed, of which there may be many: True leaves the rest to the next time.

    Raises:
        BackupError: the store cannot be read, or does not remove something.
    """
    names = needless(repository.bases(identity), keep, time.time_ns() // 1000)
    removed = 0
    for name in takewhile(lambda _: not ended(), names):
        repository.store.remove(name)
        removed += 1
        failpoints.reached("backup.removing")
    if removed:
        logger.info("%d objects of older backups are removed from %s", removed, repository.store.url)
    return removed
