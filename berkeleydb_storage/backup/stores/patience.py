"""Calls that may hang, as whatever goes over a network may: each in a thread of its own, and waited for so long.

Owns those threads. A call that took too long goes on in its thread, and what it returns is dropped: it may yet have
done what it was to do. Threads that hang are counted, and when they are too many, nothing more is begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

HANGING = 8
"""Calls that may hang at once."""


class Patience:
    """Waits for calls; any thread."""

    def __init__(self, seconds: float) -> None:
        """Wait that long for each."""
        self.seconds = seconds
        self._lock = threading.Lock()
        self._late = 0  # guarded by _lock

    def call(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Return what `work` returns.

        Raises:
            TimeoutError: it did not in time, or too many others did not yet.
            Whatever it raises.
        """
        with self._lock:
            if self._late >= HANGING:
                raise TimeoutError(f"{self._late} requests hang")
        call = _Call(lambda: work(*arguments, **named), self._ended_late)
        try:
            threading.Thread(target=call.run, name="berkeleydb_storage store", daemon=True).start()
        except RuntimeError:  # the interpreter ends, or there are too many: it is waited for, however long it takes
            call.run()
        if not call.wait(self.seconds):
            with self._lock:
                self._late += 1
            call.give_up()
            raise TimeoutError(f"no answer within {self.seconds:g} seconds")
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[no-any-return]

    def _ended_late(self) -> None:
        with self._lock:
            self._late -= 1


class _Call:
    def __init__(self, work: Callable[[], Any], ended_late: Callable[[], None]) -> None:
        self._work = work
        self._ended_late = ended_late
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False  # guarded by _lock
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # of the caller, who gets it
            self.error = error
        with self._lock:
            self._done.set()
            late = self._given_up
        if late:
            self._ended_late()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def give_up(self) -> None:
        """Say that nobody waits any more."""
        with self._lock:
            self._given_up = True
            done = self._done.is_set()
        if done:
            self._ended_late()
