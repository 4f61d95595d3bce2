"""Named points on the write paths at which tests kill the process or make it fail.

In production `hook` is None and a point costs one comparison. The names are listed in `NAMES`, so that a test can
visit all of them.
"""

from __future__ import annotations

from collections.abc import Callable

NAMES: tuple[str, ...] = (
    "create.begun",
    "create.tables",
    "create.done",
    "open.marked",
    "recover.begin",
    "recover.done",
    "oids.reserved",
    "commit.begun",
    "commit.written",
    "commit.committed",
    "commit.flushed",
    "collect.begun",
    "collect.written",
    "collect.committed",
    "search.begun",
    "search.written",
    "search.committed",
    "doom.begun",
    "doom.written",
    "doom.committed",
    "sweep.begun",
    "sweep.written",
    "sweep.committed",
    "clear.begun",
    "clear.written",
    "checkpoint.begun",
    "checkpoint.done",
    "checkpoint.logs-noted",
    "checkpoint.logs-removed",
    "hold.begun",
    "hold.noted",
    "hold.forgotten",
    "hold.removed",
    "hold.aside",
    "compact.begun",
    "compact.merged",
    "compact.returned",
    "compact.done",
    "store.written",
    "store.named",
    "archive.shipped",
    "archive.joined",
    "archive.switching",
    "backup.begun",
    "backup.tables",
    "backup.copied",
    "backup.noted",
    "backup.piece",
    "backup.added",
    "backup.removing",
    "restore.base",
    "restore.log",
    "restore.assembled",
    "restore.done",
    "restore.placed",
    "rekey.begun",
    "rekey.checkpoint",
    "rekey.closed",
    "rekey.described",
    "rekey.done",
    "migrate.begun",
    "migrate.batch",
    "migrate.counted",
    "migrate.done",
    "undo.begun",
    "close.checkpointed",
    "close.environment",
    "close.marked",
)

hook: Callable[[str], None] | None = None
"""Called with the name of each point that is reached. Set it only in tests, before the storage is opened."""


def reached(name: str) -> None:
    """Tell the hook, if there is one, that the point `name` was reached."""
    if hook is not None:
        hook(name)
