"""Who has to begin anew in a forked child process."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """What holds connections."""

    def forked(self) -> None:
        """Begin anew. Called in the child, by its only thread; the locks may be held by threads of the parent."""


_forkable: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registered = False


def note(holder: Forkable) -> None:
    """Have `forked` called in each child of this process, as long as somebody else refers to the holder."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_forked)
    _forkable.add(holder)


def _forked() -> None:
    for holder in list(_forkable):
        holder.forked()
