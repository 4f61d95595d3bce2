"""Removes from a repository what no backup that is kept has need for. One at a time for each storage."""

from __future__ import annotations

import logging
import time

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.retention import Keep, needless

logger = logging.getLogger(__name__)


def prune(repository: Repository, identity: str, storage: str, keep: Keep) -> int:
    """Remove what is needless, and return how many objects that were. Killed meanwhile, what is kept can be restored.

    Args:
        repository: where.
        identity: of the storage, in hexadecimal digits.
        storage: its path. What another identity left that had the same path counts, too: it was restored there.
        keep: what stays.

    Raises:
        BackupError: the store cannot be read, or does not remove something.
    """
    bases = repository.bases()
    mine = [base for base in bases if base.identity == identity or (base.manifest and base.manifest.storage == storage)]
    names = needless(mine, keep, time.time_ns() // 1000)
    for name in names:
        repository.store.remove(name)
        failpoints.reached("backup.removing")
    if names:
        logger.info("%d objects of older backups are removed from %s", len(names), repository.store.url)
    return len(names)
