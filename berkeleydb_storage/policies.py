"""Whether what an application gives as policies are some.

Owns nothing; any thread may call it.
"""

from __future__ import annotations

import math
from typing import TypeGuard

from berkeleydb_storage.backup.archive import Archive
from berkeleydb_storage.backup.policy import Every
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.checkpoint import checkpoint_interface
from berkeleydb_storage.errors import OptionError
from berkeleydb_storage.garbage.policy import garbage_collection_interface


def verify_policies(
    checkpoint: checkpoint_interface | None,
    garbage_collection: garbage_collection_interface | None,
    backup: Every | None,
    archive: Archive | None = None,
) -> None:
    """Refuse what are no policies.

    Raises:
        OptionError: one of them. BackupError: an archive that cannot be: what its URL needs is not installed.
    """
    if checkpoint is not None:
        _require(checkpoint, "checkpoint", "due", "interval")
    if garbage_collection is not None:
        _require(garbage_collection, "garbage_collection", "amount", "interval", "grace")
    if not (backup is None or isinstance(backup, Every)):
        raise OptionError(f"backup is Every(seconds, to, keep), or None, not {backup!r}")
    if not (archive is None or isinstance(archive, Archive)):
        raise OptionError(f"archive is Archive(to, interval, queue, keep), or None, not {archive!r}")
    if archive is not None:
        open_store(archive.to, options=archive.options, timeout=archive.timeout, require=False)


def _require(policy: object, option: str, *members: str) -> None:
    for member in members:
        if not hasattr(policy, member):
            raise OptionError(f"{option} is a policy with {', '.join(members)}; {policy!r} has no {member}")
    interval, grace = getattr(policy, "interval"), getattr(policy, "grace", 0)  # noqa: B009 - it is any object
    if interval is not None and not (_is_seconds(interval) and interval > 0):
        raise OptionError(f"the interval of {option} is a positive number of seconds, or None, not {interval!r}")
    if not (_is_seconds(grace) and grace >= 0):
        raise OptionError(f"the grace of {option} is a number of seconds, and not negative; it is {grace!r}")


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
