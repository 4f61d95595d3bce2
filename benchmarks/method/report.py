"""Results as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.method.measure import Figure, Result, Spread

SAME = 0.01
"""Quartiles that are closer than this share of the median are not shown."""


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _spread(spread: Spread) -> str:
    if spread.upper - spread.lower <= SAME * abs(spread.median):
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.lower)} - {_number(spread.upper)})"


def verdict(figure: Figure) -> str:
    """Return the goal of a figure, and whether it is met."""
    if figure.met is None:
        return "no goal"
    goal = f">= {figure.least:g}" if figure.least is not None else f"<= {figure.most:g}"
    return f"goal {goal}: {'met' if figure.met else 'NOT MET'}"


def _line(figure: Figure) -> str:
    spread = figure.value
    line = f"{figure.title}: {_spread(spread)}{figure.unit and ' ' + figure.unit}; {verdict(figure)}"
    if spread.rounds == 1:
        return f"{line}; measured once"
    return f"{line}; {spread.rounds} rounds, {_number(spread.lowest)} to {_number(spread.highest)}"


def text(result: Result) -> str:
    """Return a benchmark's table and figures."""
    columns = list(dict.fromkeys(column for row in result.rows for column in row.values))
    table = [["", *columns, "durability and state"]]
    for row in result.rows:
        cells = [_spread(row.values[column]) if column in row.values else "" for column in columns]
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
            lines.append(f"{result.name}: {figure.title}: {_number(figure.value.median)}{unit}; {verdict(figure)}")
    missed = sum(figure.met is False for result in results for figure in result.figures)
    goals = sum(figure.met is not None for result in results for figure in result.figures)
    return "\n".join([*lines, f"{goals - missed} of {goals} goals met"])


def as_json(facts: dict[str, str], mode: str, results: list[Result]) -> dict[str, Any]:
    """Return everything that was measured."""
    found = [asdict(result) for result in results]
    for result, entry in zip(results, found, strict=True):
        for figure, described in zip(result.figures, entry["figures"], strict=True):
            described["met"] = figure.met
    return {"facts": facts, "mode": mode, "results": found}
