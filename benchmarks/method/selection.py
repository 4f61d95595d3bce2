"""Writes the table of the README: a few rows, chosen by hand (`chosen`), each number of which is of the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.method.chosen import CHOSEN, Line
from benchmarks.method.measure import Result
from benchmarks.method.pages import number, ratio, table
from benchmarks.method.results import BadResults

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
"""Between these lines of the README is what this module writes."""

SIZE = re.compile(r"\d+(?:,\d{3})+")
"""A number of things, in the text of a row: it must be in that of the result."""

Found = Mapping[str, tuple[Result, Any, Any]]
"""As `merged` returns it."""


def rows(found: Found, chosen: Sequence[Line]) -> list[list[str]]:
    """Return the cells of all rows.

    Raises:
        BadResults: something is not in the results; all of it is named.
    """
    missing = [each for line in chosen for each in lacking(line, found)]
    if missing:
        raise BadResults(
            f"the README asks for what was not measured: {'; '.join(missing)}; run them, with all peers and --full, "
            "or correct benchmarks/method/chosen.py"
        )
    return [_row(line, found[line.result][0]) for line in chosen]


def lacking(line: Line, found: Found) -> list[str]:
    """Return what a row asks for and the results have not."""
    if line.result not in found:
        return [line.result]
    result = found[line.result][0]
    titles = {figure.title for figure in result.figures}
    there = {(row.name, column) for row in result.rows for column in row.values}
    said = " ".join([result.what, *line.beside.values()])
    return [
        *(f"{line.result}: {title}" for title in line.beside.values() if title not in titles),
        *(f"{line.result}: {name}: {column}" for name, column in line.own if (name, column) not in there),
        *(f"{line.result}: with {size}" for size in SIZE.findall(line.what) if size not in SIZE.findall(said)),
    ]


def _row(line: Line, result: Result) -> list[str]:
    figures = {figure.title: figure.value.median for figure in result.figures}
    rows = {row.name: row.values for row in result.rows}
    own = [number(rows[name][column].median) for name, column in line.own]
    ratios = [ratio(figures[title]) for title in line.beside.values()]
    return [line.what.format(*own), "; ".join(line.beside), line.how.format("; ".join(ratios)), line.durability]


def replaced(readme: str, found: Found) -> str:
    """Return the text of the README with a new table.

    Raises:
        BadResults: something is not in the results, or the README has no place for the table.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise BadResults(f"the README lacks the lines {BEGIN} and {END}; put them around the table of figures")
    made = table(["what", "beside", "ratio", "durability"], rows(found, CHOSEN))
    block = f"{BEGIN}\n{made}\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, readme, flags=re.DOTALL)
