"""What the README tells of the results: a few rows, chosen by hand; each number is of the results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.method.measure import Result
from benchmarks.method.pages import number, ratio, table
from benchmarks.method.results import BadResults

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
"""Between these lines of the README is what this module writes."""
MOST = 30
"""Rows that a reader can be asked to read."""
LONGER = "takes {} times as long"

Found = Mapping[str, tuple[Result, Any, Any]]
"""As `merged` returns it."""


@dataclass(frozen=True)
class Line:
    """A row of the README."""

    what: str
    """{} stand for numbers of `own`, in order."""
    result: str
    beside: dict[str, str]
    """With whom it is compared -> title of the figure."""
    durability: str = ""
    own: tuple[tuple[str, str], ...] = ()
    """(row, column) of the result."""
    how: str = "{}"
    """Around the ratios."""


CHOSEN: tuple[Line, ...] = ()
"""The rows, in order."""


def rows(found: Found, chosen: tuple[Line, ...]) -> list[list[str]]:
    """Return the cells of all rows.

    Raises:
        BadResults: something is not in the results.
    """
    return [_row(line, found) for line in chosen]


def _row(line: Line, found: Found) -> list[str]:
    if line.result not in found:
        raise BadResults(f"the README asks for {line.result!r}, which was not measured; run that benchmark, too")
    result = found[line.result][0]
    own = [number(_own(result, *where)) for where in line.own]
    ratios = [ratio(_figure(result, title)) for title in line.beside.values()]
    return [line.what.format(*own), "; ".join(line.beside), line.how.format("; ".join(ratios)), line.durability]


def _own(result: Result, name: str, column: str) -> float:
    for row in result.rows:
        if row.name == name and column in row.values:
            return row.values[column].median
    raise BadResults(f"the README asks for {column!r} of {name!r} in {result.name!r}; correct selection.py")


def _figure(result: Result, title: str) -> float:
    for figure in result.figures:
        if figure.title == title:
            return figure.value.median
    raise BadResults(
        f"the README asks for the figure {title!r} of {result.name!r}; install that peer and measure again"
    )


def replaced(readme: str, found: Found) -> str:
    """Return the text of the README with a new table; BadResults as `rows`, and where it has no place for it."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise BadResults(f"the README lacks the lines {BEGIN} and {END}; put them around the table of figures")
    made = table(["what", "beside", "ratio", "durability"], rows(found, CHOSEN))
    block = f"{BEGIN}\n{made}\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, readme, flags=re.DOTALL)
