"""Runs contestants in turn, and makes figures of what they took. Touches no storage.

A *contestant* is one way to do the work of a benchmark. They run in turn, round after round (A B C A B C ...), so that
what else the machine does meets all of them; a ratio is that of two neighbours in one round, and a figure the median of
the ratios of all rounds. Compare medians: the spread tells how quiet the machine was.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

Series = list[float]
"""One number a round."""


@dataclass(frozen=True)
class Spread:
    """What a series comes to."""

    median: float
    lower: float
    """A quarter of the rounds is below."""
    upper: float
    """A quarter of the rounds is above."""
    lowest: float
    highest: float
    rounds: int

    @classmethod
    def of(cls, series: Sequence[float]) -> Spread:
        """Return that of a series with at least one number."""
        quarters = quantiles(series, n=4, method="inclusive") if len(series) > 1 else [series[0]] * 3
        return cls(median(series), quarters[0], quarters[2], min(series), max(series), len(series))


@dataclass(frozen=True)
class Row:
    """One contestant in the table of a benchmark."""

    name: str
    about: str
    """Its durability, or whatever else must be known to compare it."""
    values: dict[str, Spread]
    """Column, with its unit, -> what was measured."""


@dataclass(frozen=True)
class Figure:
    """A number to report, and the goal that it is held against."""

    title: str
    value: Spread
    unit: str = ""
    least: float | None = None
    """The goal: at least this."""
    most: float | None = None
    """The goal: at most this."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.least is None and self.most is None:
            return None
        above = self.least is None or self.value.median >= self.least
        return above and (self.most is None or self.value.median <= self.most)


@dataclass(frozen=True)
class Chart:
    """Lines to be drawn; both axes are logarithmic."""

    name: str
    """Of its file, without an ending."""
    title: str
    x: str
    """What the axis says, with the unit."""
    y: str
    series: dict[str, list[tuple[float, float]]]
    """Who -> points, from left to right; all above 0."""


@dataclass
class Result:
    """What one benchmark has to say."""

    name: str
    what: str
    """What was done, with the numbers that matter."""
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)

    def row(self, name: str, about: str, **columns: Sequence[float]) -> None:
        """Add a contestant; in the names of the columns, underscores stand for spaces."""
        values = {column.replace("_", " "): Spread.of(series) for column, series in columns.items()}
        self.rows.append(Row(name, about, values))

    def figure(self, title: str, series: Sequence[float] | None, **goal: Any) -> None:
        """Add a figure; of None, where somebody took no part, nothing."""
        if series is not None:
            self.figures.append(Figure(title, Spread.of(series), **goal))


def progress(text: str) -> None:
    """Say on the standard error what goes on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a piece of work takes. Python's own collector rests meanwhile, and is let run before."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    finally:
        gc.enable()


def in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, Series]:
    """Let each contestant measure itself once a round; return the numbers of each, one a round."""
    found: dict[str, Series] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> Series:
    """Return the ratios of two series, round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]


def scaled(series: Sequence[float], factor: float) -> Series:
    """Return a series in another unit."""
    return [number * factor for number in series]
