"""The signals of a process whose main thread serves: the first one ends it in order, another one at once.

Used by the server's thread alone, and only where that is the main thread.
"""

from __future__ import annotations

import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """What the event loop does at signals, and what was to be done before."""

    def __init__(self, loop: AbstractEventLoop, stop: Callable[[str], None], reload: Callable[[], None]) -> None:
        """Begin to watch; `stop` is called with the reason when the server is to end, `reload` at SIGHUP."""
        self._loop = loop
        self._stop = stop
        self._before: dict[signal.Signals, Any] = {
            number: signal.getsignal(number) for number in (*ENDING, signal.SIGHUP)
        }
        for number in ENDING:
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, reload)

    def _signalled(self, number: signal.Signals) -> None:
        """End; from now on another such signal ends the process at once."""
        for each in ENDING:
            self._loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
            self._before.pop(each, None)
        self._stop(f"signal {number.name}")

    def restore(self) -> None:
        """Do at signals what was done before, but for those that were to end the process. When the loop is closed."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
