"""Which of two numbers is better, and whether they differ at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from benchmarks.method.measure import Figure, Result, Row, Spread

LEAST = 0.05
"""Share of a median below which nothing is said to differ."""
ONCE = 0.3
"""The same, of times that were measured once: what they differ by themselves is not known."""
WIDTH = 1.57
"""Of the interval of a median, in quartile ranges over the root of the rounds: that of the notches of box plots."""
DRIFT = 0.02
"""Share of a median that one run may be off as a whole."""
STEADY = ("MB", "bytes", "syncs", "reads", "records", "objects")
"""Words of columns whose numbers do not differ by themselves."""
TIMES = ("s", "ms", "\u00b5s", "\u03bcs", "seconds")
"""Words of those whose numbers do. The Greek letter and the sign for micro look alike."""
AMONG = re.compile(r"\bat [\d,]+ objects")
"""Where something was measured: not what."""
SYNCED = "syncs each commit"
"""What the durability of a row says whose commits are on the disk when they return."""


def is_ours(name: str) -> bool:
    """Tell whether a row is about this package."""
    return any(part.split(" ")[0] in ("ours", "our") for part in re.split(", |: ", name))


def is_rate(name: str) -> bool:
    """Tell whether a column, or a unit, is better when it is higher: things a second."""
    return name.endswith("a second") or any(word.endswith("/s") for word in name.split())


def is_steady(column: str) -> bool:
    """Tell whether a column is the same each time: sizes and counts."""
    words = AMONG.sub("", column).split()
    return any(word in STEADY for word in words) and not any(word in TIMES for word in words)


def higher_is_better(figure: Figure) -> bool | None:
    """Tell which way a figure is better; None where nobody knows."""
    if figure.least is not None or figure.most is not None:
        return figure.least is not None
    above, divided, below = figure.title.rpartition(" / ")
    if divided:
        of_rates = any(is_rate(part) for part in above.split(", "))
        below = below.partition(", ")[0]  # "collecting / not, ours" is no ratio of somebody to ours
        return None if is_ours(above) == is_ours(below) else is_ours(above) == of_rates
    if is_rate(figure.unit) or is_rate(figure.title):
        return True
    return False if figure.unit or figure.title == "seconds" else None


def differ(one: Spread, other: Spread, steady: bool, least: float = LEAST) -> bool:
    """Tell whether two medians differ beyond what numbers differ by themselves.

    Args:
        one: of one contestant, or run.
        other: of the other.
        steady: whether such a number is the same each time, so that measuring it once is enough.
        least: share of the median below which they do not.
    """
    once = min(one.rounds, other.rounds) == 1
    far = abs(one.median - other.median) >= (max(least, ONCE) if once and not steady else least) * abs(one.median)
    return far and one.median != other.median and not _meet(one, other)


def _meet(one: Spread, other: Spread) -> bool:
    """Tell whether the medians may be the same."""
    (_, high), (low, _) = sorted([_interval(one), _interval(other)])
    return high >= low


def _interval(spread: Spread) -> tuple[float, float]:
    half = WIDTH * (spread.upper - spread.lower) / spread.rounds**0.5
    off = DRIFT * abs(spread.median)
    return min(spread.lower, spread.median - half) - off, max(spread.upper, spread.median + half) + off


@dataclass(frozen=True)
class Beside:
    """A number of ours beside that of a peer with the same durability, if we have one."""

    column: str
    ours: Row
    peer: Row

    @property
    def factor(self) -> float | None:
        """Return how many times better the peer is, below 1 where ours is; None where both are 0."""
        mine, theirs = (each.median for each in self._spreads())
        above, below = (theirs, mine) if is_rate(self.column) else (mine, theirs)
        if below > 0:
            return above / below
        return inf if above > 0 else None

    @property
    def less_durable(self) -> bool:
        """Tell whether ours syncs, and the peer does not."""
        return syncs(self.ours) and not syncs(self.peer)

    @property
    def differ(self) -> bool:
        """Tell whether they differ beyond noise."""
        return differ(*self._spreads(), is_steady(self.column))

    def _spreads(self) -> tuple[Spread, Spread]:
        return self.ours.values[self.column], self.peer.values[self.column]


def beside(result: Result) -> Iterator[Beside]:
    """Yield each number of each peer in a table, beside ours."""
    mine = [row for row in result.rows if is_ours(row.name)]
    for peer in result.rows:
        if mine and not is_ours(peer.name):
            chosen = _like(mine, peer)
            yield from (Beside(column, chosen, peer) for column in peer.values if column in chosen.values)


def _like(mine: list[Row], peer: Row) -> Row:
    """Return the row of ours that a peer is to be compared with.

    "full, ours" is for "full, cp -a"; else the first that syncs where the peer does, or the first.
    """
    parts = set(peer.name.split(", "))
    same = [row for row in mine if (kind := _kind(row)) and kind <= parts] or mine
    return next((row for row in same if syncs(row) == syncs(peer)), same[0])


def _kind(row: Row) -> set[str]:
    return {part for part in row.name.split(", ") if not is_ours(part)}


def syncs(row: Row) -> bool:
    """Tell whether what a row is about has its commits on the disk when they return."""
    return SYNCED in row.about
