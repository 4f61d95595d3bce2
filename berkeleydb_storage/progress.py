"""Shows how far a long work is: a bar on a terminal, now and then a line of text anywhere else.

A `Progress` is what ``migrate``, ``check`` and the functions of `inspection` take as their `progress`: they call it
with what they are doing and how far they are. For one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

EVERY = 5.0
"""Seconds between two lines where there is no terminal."""
COLUMNS = 80
"""Of a terminal that does not tell its width."""


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no thread


def rate_text(count: int, seconds: float) -> str:
    """Return how many there were a second, for people to read."""
    return f"{count / seconds:,.0f}/s" if seconds > 0 else "at once"


def _columns(stream: TextIO | None) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream is not None else 0
    except (OSError, ValueError):
        return 0


class Progress:
    """How far the work is. Leave it, or call `close`, when the work is over; what is shown stays there."""

    def __init__(
        self,
        stream: TextIO | None,
        totals: Mapping[str, int] | None = None,
        *,
        unit: str = "objects",
        every: float = EVERY,
        poll: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet.

        Args:
            stream: where to show it; None: nowhere.
            totals: activity -> the number at which it ends, where that is known.
            unit: what is counted, in the plural.
            every: seconds between two lines where `stream` is not a terminal.
            poll: called at every step; what it raises ends the work at a point where that is safe.
            clock: seconds.
        """
        self.totals = dict(totals or {})
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()
        self._unit = unit
        self._every = every
        self._poll = poll
        self._clock = clock
        self._activity: str | None = None
        self._bar: _Bar | None = None
        self._started = self._shown = 0.0

    def __call__(self, activity: str, count: int) -> None:
        """Take note that `activity` has got to `count`.

        Raises:
            Exception: what `poll` raises.
        """
        if self._stream is not None:
            if activity != self._activity:
                self._begin(activity)
            if self._bar is not None:
                self._bar.update(count - self._bar.n)
            elif self._clock() - self._shown >= self._every:
                self._line(count)
        if self._poll is not None:
            self._poll()

    def _begin(self, activity: str) -> None:
        self.close()
        self._activity = activity
        self._started = self._shown = self._clock()
        if self._terminal:
            width = _columns(self._stream)
            self._bar = _Bar(
                desc=activity,
                total=self.totals.get(activity),
                unit=f" {self._unit}",
                file=self._stream,
                dynamic_ncols=width > 0,
                ncols=None if width else COLUMNS,
            )

    def _line(self, count: int) -> None:
        self._shown = self._clock()
        seconds = self._shown - self._started
        total = self.totals.get(self._activity or "")
        of = f" of {total:,} ({count / total:.0%})" if total else ""
        text = f"{self._activity}: {count:,}{of} {self._unit}, {seconds:.0f} s, {rate_text(count, seconds)}"
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """End the bar. Works twice; another activity may follow."""
        bar, self._bar, self._activity = self._bar, None, None
        if bar is not None:
            bar.close()

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bar."""
        self.close()
