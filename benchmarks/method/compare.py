"""``python -m benchmarks compare OLD NEW``: what got slower or faster, beyond what numbers differ by themselves.

A number has changed where both are so:

- its median is at least `LEAST` better or worse; where it was measured once, `ONCE`;
- the intervals of both medians do not meet: `median ± WIDTH · (upper quartile - lower quartile) / √rounds`, or from
  quartile to quartile where that is more, and `DRIFT` of the median on both sides: what two runs differ by, and the
  rounds of none show. The constants are in `judging`.

How often that is wrong, `tests/test_bench_compare.py` measures with made-up numbers; the constants were chosen among
eight variants on the same kinds of noise, and were not held against two real runs of the same code yet.

Only ours count: rows that name "ours" (all rows of a table that has no such row) and figures. Where `ENOUGH` others are
in the same table, what they changed by, their median, is taken out before: that was the machine, or what all are built
on. Figures are ratios within a round already.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from statistics import median

from benchmarks.method.facts import MACHINE, differing
from benchmarks.method.judging import LEAST, differ, higher_is_better, is_ours, is_rate, is_steady
from benchmarks.method.measure import Result, Row, Spread
from benchmarks.method.report import number
from benchmarks.method.results import BadResults, Part, Run, merged, read

ENOUGH = 3
"""Others in a table, to know what the machine changed."""


class Verdict(Enum):
    """What became of a number."""

    WORSE = "worse"
    BETTER = "better"
    CHANGED = "changed"
    SAME = "same"


@dataclass(frozen=True)
class Change:
    """One number in both."""

    result: str
    what: str
    """Row and column, or the title of the figure."""
    old: Spread
    new: Spread
    more_is_better: bool | None
    """None where nobody knows."""
    machine: float = 1.0
    """What others in the same table changed by."""

    @property
    def share(self) -> float:
        """Return by how much it changed: 0.1 is a tenth more."""
        return self.new.median / self.old.median / self.machine - 1 if self.old.median else float(self.new.median > 0)

    def verdict(self, least: float = LEAST) -> Verdict:
        """Return what became of it."""
        if not differ(_times(self.old, self.machine), self.new, is_steady(self.what), least):
            return Verdict.SAME
        if self.more_is_better is None:
            return Verdict.CHANGED
        return Verdict.BETTER if (self.share > 0) == self.more_is_better else Verdict.WORSE


def _times(spread: Spread, factor: float) -> Spread:
    numbers = (spread.median, spread.lower, spread.upper, spread.lowest, spread.highest)
    return Spread(*(each * factor for each in numbers), spread.rounds)


def changes(old: Result, new: Result) -> Iterator[Change]:
    """Yield all numbers of ours that both have."""
    rows, figures = {row.name: row for row in old.rows}, {figure.title: figure for figure in old.figures}
    beside_others = any(is_ours(row.name) for row in new.rows)
    for row in new.rows:
        if row.name in rows and (is_ours(row.name) or not beside_others):
            yield from _of_row(old, new, rows[row.name], row)
    for figure in new.figures:
        if figure.title in figures:
            value = figures[figure.title].value
            yield Change(new.name, figure.title, value, figure.value, higher_is_better(figure))


def _of_row(old: Result, new: Result, before: Row, after: Row) -> Iterator[Change]:
    for column, spread in after.values.items():
        if column in before.values:
            machine = 1.0 if is_steady(column) else _machine(old, new, column)
            yield Change(new.name, f"{after.name}: {column}", before.values[column], spread, is_rate(column), machine)


def _machine(old: Result, new: Result, column: str) -> float:
    """Return what others in a table changed by; 1.0 where there are too few of them."""
    before = {row.name: row.values[column].median for row in old.rows if column in row.values and not is_ours(row.name)}
    after = {row.name: row.values[column].median for row in new.rows if column in row.values}
    changed = [after[name] / before[name] for name in before if name in after and before[name] and after[name]]
    return median(changed) if len(changed) >= ENOUGH else 1.0


@dataclass
class Comparison:
    """What two files say about each other."""

    warnings: list[str]
    """What differs beside the numbers."""
    missing: list[str]
    """What only one of them has, or what is not comparable."""
    changes: list[Change]


def compare(old: Sequence[Run], new: Sequence[Run]) -> Comparison:
    """Compare two files, each with at least one run."""
    before, after = merged(old), merged(new)
    found = Comparison(_warnings(old, new), _missing(before, after), [])
    for name, (result, _, run) in after.items():
        if name not in before:
            continue
        other, _, other_run = before[name]
        if other_run.size != run.size or other.what != result.what:
            found.missing.append(f"{name}: not the same work, so not compared")
        else:
            found.changes += changes(other, result)
    return found


def _missing(before: dict[str, tuple[Result, Part, Run]], after: dict[str, tuple[Result, Part, Run]]) -> list[str]:
    old, new = {name: each[0] for name, each in before.items()}, {name: each[0] for name, each in after.items()}
    found = _only(old, new)
    for name in old:
        if name in new:
            rows, others = ({row.name: row for row in each[name].rows} for each in (old, new))
            found += [f"{name}: {line}" for line in _only(rows, others)]
    return found


def _only(old: Collection[str], new: Collection[str]) -> list[str]:
    return [f"{name}: only in the old" for name in old if name not in new] + [
        f"{name}: only in the new" for name in new if name not in old
    ]


def _warnings(old: Sequence[Run], new: Sequence[Run]) -> list[str]:
    found = {}
    for one, other in ((one, other) for one in old for other in new):
        for line in differing(one.facts, other.facts):
            found[f"another machine: {line}" if line.partition(":")[0] in MACHINE else f"another version: {line}"] = (
                None
            )
    for which, runs in (("old", old), ("new", new)):
        for part in (part for run in runs for part in run.parts if part.busy):
            found |= dict.fromkeys(f"busy, {which}, {part.name}: {each}" for each in part.busy.warnings)
    return list(found)


def text(found: Comparison, least: float = LEAST) -> str:
    """Return all of it."""
    lines = [f"WARNING {line}" for line in found.warnings] + found.missing
    for verdict in (Verdict.WORSE, Verdict.BETTER, Verdict.CHANGED):
        chosen = [change for change in found.changes if change.verdict(least) is verdict]
        lines += [
            f"{verdict.value.upper()} {_line(change)}" for change in sorted(chosen, key=lambda each: -abs(each.share))
        ]
    same = sum(change.verdict(least) is Verdict.SAME for change in found.changes)
    return "\n".join([*lines, f"{same} of {len(found.changes)} numbers of ours are the same, as far as one can tell."])


def _line(change: Change) -> str:
    numbers = f"{number(change.old.median)} -> {number(change.new.median)}, {change.share:+.1%}"
    others = f" beyond the others ({change.machine - 1:+.1%})" if change.machine != 1 else ""
    return f"{change.result}, {change.what}: {numbers}{others}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says: 0 where nothing got worse, 1 where something did, 2 where that is not known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description="Say what got slower or faster.")
    parser.add_argument("old", type=Path, help="a file that --json wrote")
    parser.add_argument("new", type=Path, help="a later one")
    parser.add_argument("--threshold", type=float, default=LEAST * 100, help="least change, in percent; default 5")
    chosen = parser.parse_args(arguments)
    try:
        found = compare(read(chosen.old), read(chosen.new))
    except (BadResults, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    least = chosen.threshold / 100
    print(text(found, least))
    if not found.changes:
        print("compare: nothing of ours is in both files", file=sys.stderr)
        return 2
    return int(any(change.verdict(least) is Verdict.WORSE for change in found.changes))
