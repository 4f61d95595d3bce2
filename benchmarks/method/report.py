"""Results as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.method.measure import Figure, Result, Spread
from benchmarks.method.results import Part, Run

SAME = 0.01
"""Quartiles that are closer than this share of the median are not shown."""


def number(value: float) -> str:
    """Return a number with as many digits as one reads."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def spread(found: Spread) -> str:
    """Return the median, with the quartiles where they are not the same."""
    if found.upper - found.lower <= SAME * abs(found.median):
        return number(found.median)
    return f"{number(found.median)} ({number(found.lower)} - {number(found.upper)})"


def verdict(figure: Figure) -> str:
    """Return the goal of a figure, and whether it is met."""
    if figure.met is None:
        return "no goal"
    goal = f">= {figure.least:g}" if figure.least is not None else f"<= {figure.most:g}"
    return f"goal {goal}: {'met' if figure.met else 'NOT MET'}"


def _line(figure: Figure) -> str:
    value = figure.value
    line = f"{figure.title}: {spread(value)}{figure.unit and ' ' + figure.unit}; {verdict(figure)}"
    if value.rounds == 1:
        return f"{line}; measured once"
    return f"{line}; {value.rounds} rounds, {number(value.lowest)} to {number(value.highest)}"


def text(result: Result) -> str:
    """Return a benchmark's table and figures."""
    columns = list(dict.fromkeys(column for row in result.rows for column in row.values))
    table = [["", *columns, "durability and state"]]
    for row in result.rows:
        cells = [spread(row.values[column]) if column in row.values else "" for column in columns]
        table.append([row.name, *cells, row.about])
    widths = [max(len(line[n]) for line in table) for n in range(len(columns) + 1)]
    lines = ["", f"== {result.name}", result.what, ""]
    for line in table:
        cells = [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:], strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *cells, line[-1]]).rstrip())
    lines += ["", *(f"-> {_line(figure)}" for figure in result.figures), *(f"   {note}" for note in result.notes)]
    return "\n".join(lines)


def heading(facts: dict[str, str], mode: str) -> str:
    """Return what the figures were measured on, and how to read them."""
    width = max(map(len, facts))
    lines = [f"{name.ljust(width)}  {value}" for name, value in facts.items()]
    explained = (
        f"Sizes: {mode}. Contestants take turns; a number is the median of the rounds (with its quartiles), a ratio\n"
        "the median of the ratios within each round. Durus' logger is at WARNING."
    )
    return "\n".join([*lines, explained])


def summary(results: list[Result]) -> str:
    """Return a line for each figure."""
    lines = ["", "== all figures"]
    for result in results:
        for figure in result.figures:
            unit = figure.unit and f" {figure.unit}"
            lines.append(f"{result.name}: {figure.title}: {number(figure.value.median)}{unit}; {verdict(figure)}")
    missed = sum(figure.met is False for result in results for figure in result.figures)
    goals = sum(figure.met is not None for result in results for figure in result.figures)
    return "\n".join([*lines, f"{goals - missed} of {goals} goals met"])


def part(found: Part) -> str:
    """Return all that a benchmark found, and whether the machine was busy."""
    lines = [text(result) for result in found.results]
    if found.busy:
        busy = found.busy
        used = f"{busy.ours:.2f}" if busy.others is None else f"{busy.ours:.2f}; by others: {busy.others:.2f}"
        lines.append(f"\n{found.name}: {busy.seconds:.0f} s; processors used: {used}")
        lines += [f"BUSY: {warning}" for warning in busy.warnings]
    return "\n".join(lines)


def warnings(runs: Sequence[Run]) -> str:
    """Return what makes numbers doubtful, a line for each."""
    parts = [part for run in runs for part in run.parts if part.busy and part.busy.warnings]
    lines = [f"BUSY during {part.name}: {'; '.join(part.busy.warnings)}" for part in parts if part.busy]
    return "\n".join(lines) or "The machine was quiet."
