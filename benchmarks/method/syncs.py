"""Counts how often a process asks for something to be on the disk."""

from __future__ import annotations

from collections.abc import Callable


def counted(pid: int, work: Callable[[], object]) -> float:
    """Return the syncs of a process while something is done."""
    raise NotImplementedError
