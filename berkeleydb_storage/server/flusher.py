"""Bringing what was committed to the disk, in the thread that asks for it or in one that is there for that.

Invariants:

1. The thread calls `done` once for each `flush`, whatever goes wrong.
2. It shares nothing with others but the queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from time import perf_counter

from berkeleydb_storage.engine import Engine


class Flusher:
    """A thread that brings what was committed to the disk. Its methods may be called by any other."""

    def __init__(self, engine: Engine, done: Callable[[Exception | None, float], None]) -> None:
        """Prepare it; `done` is called by it, with what went wrong, and how many seconds that took."""
        self._engine = engine
        self._done = done
        # gevent's, where the process is patched after this was imported
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="berkeleydb_storage flush", daemon=True)
        self._thread.start()  # now: when the interpreter ends, none can be started any more

    def flush(self) -> None:
        """Begin to flush; `done` is called after that."""
        self._wanted.put(True)

    def close(self) -> None:
        """End the thread, when it has flushed."""
        self._wanted.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.get():
            started = perf_counter()
            error = flush(self._engine)
            self._done(error, perf_counter() - started)


def flush(engine: Engine) -> Exception | None:
    """Bring what was committed to the disk; return what went wrong. Any thread."""
    try:
        engine.make_durable()
    except Exception as error:  # whatever it is: those who wait for the disk are not to wait for ever
        return error
    return None
