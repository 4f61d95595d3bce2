"""Results as files: JSON, one or several runs in each.

    {"format": 1, "runs": [{"facts": {name: text}, "size": "quick", "parts": [
        {"part": name, "began": text, "busy": {…} or null, "results": [
            {"name", "what", "rows": [{"name", "about", "values": {column: spread}}],
             "figures": [{"title", "value": spread, "unit", "least", "most", "met"}], "notes": [text],
             "charts": [{"name", "title", "x", "y", "series": {name: [[x, y]]}}]}]}]}]}

A spread is [median, lower quartile, upper quartile, lowest, highest, rounds]. The numbers have 6 digits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.method.busy import Busy
from benchmarks.method.facts import differing
from benchmarks.method.measure import Chart, Figure, Result, Row, Spread

FORMAT = 1
DEEP = 8
"""Level from which on JSON is in one line: that of a row."""
DIGITS = 6
"""Digits of a number that are kept."""


class BadResults(Exception):
    """Raised when a file is not what we wrote, or of something else; the message names it and what to do."""


@dataclass
class Part:
    """What one benchmark found."""

    name: str
    began: str
    results: list[Result]
    busy: Busy | None = None
    """What the machine did meanwhile, if it was watched."""


@dataclass
class Run:
    """What was measured by one command."""

    facts: dict[str, str]
    size: str
    parts: list[Part] = field(default_factory=list)

    @property
    def results(self) -> list[Result]:
        """All of them, in order."""
        return [result for part in self.parts for result in part.results]

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON knows."""
        return {"facts": self.facts, "size": self.size, "parts": [_part(part) for part in self.parts]}


def write(path: Path, runs: Sequence[Run]) -> None:
    """Write runs into a file, whole or not at all.

    Raises:
        OSError: that failed; what was in the file before is there.
    """
    found = {"format": FORMAT, "runs": [run.as_json() for run in runs]}
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(_dumped(found) + "\n", encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> list[Run]:
    """Return the runs in a file.

    Raises:
        BadResults: it is damaged, or something else.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadResults(
            f"{path} is damaged, or no JSON: {error}; measure once more with --json {path.name}"
        ) from error
    if not isinstance(found, dict) or "format" not in found:
        raise BadResults(f"{path} is JSON, but no result of benchmarks; give a file that --json wrote")
    if found["format"] != FORMAT:
        raise BadResults(f"{path} has format {found['format']!r}, not {FORMAT}; measure once more, or use its version")
    try:
        return [_run(run) for run in found["runs"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadResults(f"{path} is damaged: {error!r}; measure once more with --json {path.name}") from error


def read_all(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in all of these files, in order; the same exceptions as of `read`."""
    return [run for path in paths for run in read(path)]


def to_be_continued(path: Path, facts: dict[str, str], size: str) -> Run:
    """Return the run that a file has, to go on with by another command, too; a new one where there is no file.

    Raises:
        BadResults: it is damaged, has several runs, or was measured with other sizes, versions or on another machine.
    """
    if not path.exists():
        return Run(facts, size)
    runs = read(path)
    if len(runs) != 1:
        raise BadResults(f"{path} has {len(runs)} runs, so none can go on; give another file")
    run = runs[0]
    other = differing(run.facts, facts) + differing(run.facts, facts, ["commit"])
    if run.size != size:
        other.insert(0, f"sizes: {run.size} -> {size}")
    if other:
        raise BadResults(f"{path} was measured otherwise ({'; '.join(other)}); remove it, or give another file")
    commands = [each.get("command", "") for each in (run.facts, facts)]
    if commands[1] not in commands[0].split("; "):
        run.facts["command"] = "; ".join(commands)
    return run


def merged(runs: Sequence[Run]) -> dict[str, tuple[Result, Part, Run]]:
    """Return each result by its name, and where it is from. Of those that were measured twice, the last one."""
    return {result.name: (result, part, run) for run in runs for part in run.parts for result in part.results}


def _dumped(value: Any, level: int = 0) -> str:
    """Return it as JSON, a line for each row, figure and chart: so that two files can be compared by eye."""
    if not isinstance(value, dict | list) or not value or level >= DEEP:
        return json.dumps(value, ensure_ascii=False)
    new = "\n" + " " * (level + 1)
    if isinstance(value, dict):
        inside = [f"{json.dumps(name, ensure_ascii=False)}: {_dumped(each, level + 1)}" for name, each in value.items()]
        return f"{{{new}{f',{new}'.join(inside)}{new[:-1]}}}"
    return f"[{new}{f',{new}'.join(_dumped(each, level + 1) for each in value)}{new[:-1]}]"


def _part(part: Part) -> dict[str, Any]:
    busy = part.busy.as_json() if part.busy else None
    return {"part": part.name, "began": part.began, "busy": busy, "results": [_result(each) for each in part.results]}


def _result(result: Result) -> dict[str, Any]:
    rows = [
        {
            "name": row.name,
            "about": row.about,
            "values": {column: _numbers(each) for column, each in row.values.items()},
        }
        for row in result.rows
    ]
    figures = [asdict(figure) | {"value": _numbers(figure.value), "met": figure.met} for figure in result.figures]
    charts = [_short(asdict(chart)) for chart in result.charts]
    found = {"name": result.name, "what": result.what, "rows": rows, "figures": figures, "notes": result.notes}
    return found | ({"charts": charts} if charts else {})


def _numbers(spread: Spread) -> list[float]:
    return [_short(each) for each in astuple(spread)]


def _short(value: Any) -> Any:
    """Return it with fewer digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def _run(found: dict[str, Any]) -> Run:
    facts = {str(name): str(value) for name, value in found["facts"].items()}
    return Run(facts, str(found["size"]), [_read_part(part) for part in found["parts"]])


def _read_part(found: dict[str, Any]) -> Part:
    busy = Busy.from_json(found["busy"]) if found["busy"] else None
    return Part(found["part"], found["began"], [_read_result(each) for each in found["results"]], busy)


def _read_result(found: dict[str, Any]) -> Result:
    return Result(
        found["name"],
        found["what"],
        [Row(row["name"], row["about"], _spreads(row["values"])) for row in found["rows"]],
        [_figure(each) for each in found["figures"]],
        [str(note) for note in found["notes"]],
        [_chart(each) for each in found.get("charts", [])],
    )


def _spreads(found: dict[str, Any]) -> dict[str, Spread]:
    return {column: _spread(spread) for column, spread in found.items()}


def _spread(found: list[float]) -> Spread:
    *numbers, rounds = found
    median, lower, upper, lowest, highest = map(float, numbers)
    return Spread(median, lower, upper, lowest, highest, int(rounds))


def _figure(found: dict[str, Any]) -> Figure:
    return Figure(found["title"], _spread(found["value"]), found["unit"], found["least"], found["most"])


def _chart(found: dict[str, Any]) -> Chart:
    series = {name: [(float(x), float(y)) for x, y in points] for name, points in found["series"].items()}
    return Chart(found["name"], found["title"], found["x"], found["y"], series)
