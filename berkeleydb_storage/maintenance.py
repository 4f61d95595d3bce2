"""A background thread that does one kind of work again and again, and stops when told to.

Owns the thread. Errors of the work are logged, and it goes on at the next turn: what failed for want of disk space
works again when there is room.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from weakref import WeakSet

logger = logging.getLogger(__name__)


_threads: WeakSet[threading.Thread] = WeakSet()
"""Those of `background`. No class of their own: gevent replaces that of threads, perhaps after this was imported."""


def in_worker() -> bool:
    """Tell whether the calling thread is that of a `Worker`, or another of `background`."""
    return threading.current_thread() in _threads


def background(target: Callable[[], None], name: str) -> threading.Thread:
    """Return a daemon thread, not started yet, that `in_worker` knows."""
    thread = threading.Thread(target=target, name=f"berkeleydb_storage {name}", daemon=True)
    _threads.add(thread)
    return thread


class Worker:
    """Calls `turn` every `interval` seconds in a thread of its own, from `start` to `stop`."""

    def __init__(self, name: str, interval: float, turn: Callable[[], None], patience: float | None = None) -> None:
        """Prepare the thread; nothing runs yet.

        Args:
            name: of the thread.
            interval: seconds between two turns.
            turn: what to do.
            patience: seconds that `stop` waits for a turn that may hang; None: until it ends.
        """
        self._interval = interval
        self._patience = patience
        self._turn = turn
        self._stopping = threading.Event()
        self._failing = False
        self._thread = background(self._run, name)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the turn under way end, and wait for it. Works from the thread itself, and twice."""
        self._stopping.set()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(self._patience)

    @property
    def stopping(self) -> bool:
        """Whether the thread was told to stop; a long turn looks at it."""
        return self._stopping.is_set()

    def pause(self, seconds: float) -> bool:
        """Rest within a turn; True when it is to end."""
        return self._stopping.wait(seconds)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self._turn()
            except Exception as error:
                if not self._failing:
                    logger.error("%s: %s; it is tried again", self._thread.name, error)
                logger.debug("%s failed", self._thread.name, exc_info=True)
                self._failing = True
            else:
                if self._failing:
                    logger.warning("%s works again", self._thread.name)
                self._failing = False
