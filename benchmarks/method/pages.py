"""The text of docs/BENCHMARKS.md: nothing but what results say. The same results give the same text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import inf

from benchmarks.method.contest import PEAK
from benchmarks.method.facts import MACHINE, RUN
from benchmarks.method.judging import SYNCED, Beside, beside
from benchmarks.method.measure import Chart, Figure, Result, Row, Spread
from benchmarks.method.results import Part, Run, merged

PROFILE = "profile "
"""How the parts begin that say where the time goes."""
SHARE, MOST_LAYERS = "%", 6
"""The column of a profile that is shown, and how many layers."""
FUNCTIONS = ": functions of ours"
MANY = 5
"""Tables from which on the same durability is given once."""
NEVER, NO_SYNC = "never syncs", "does not sync"
UNSYNCED = "†"
"""Beside the name of a peer that does not sync where ours does."""

METHOD = """\
- Everyone does the same work in the same run: rounds in turn (A B C A B C …), each in a process of its own. What was
  read and written is verified, outside of the timing. Each peer is set up as its own documents advise.
- A number is the median of the rounds; ± is half of the range from quartile to quartile. A ratio is the median of the
  ratios within each round. No ± : measured once, or the same each time.
- Durability stands beside each number: who does not sync is not compared with who does, unless the table says so.
- "Warm": a round that is not counted came before. "Cold": a fresh process, after the system's cache of the files was
  dropped, which is verified; of a virtual machine, the machine below may still have them.
- Syncs are counted by strace, in a round of their own. Memory is the highest RSS of the process ("peak MB").
- `python -m benchmarks compare OLD.json NEW.json` says what changed beyond noise. On made-up rounds, 7 a run, on which
  its constants were chosen, too: it reports 0 to 1.4 of 100 numbers that did not change (of 3 rounds, up to 5.3), and
  finds a tenth more in 100, 96 and 72 of 100 where rounds differ by 1, 2 and 3 %; in 73 where they differ by 1 % and
  one of ten is slow. It was not held against two real runs of the same code yet.
- The machine is called busy where others used more than 0.1 of a processor, the machine below took 2 %, or syncs got
  1.5 times slower or faster meanwhile. These limits are chosen, not measured."""


def document(runs: Sequence[Run], kept: str, tables: str) -> str:
    """Return the page: what is met, lost and won, how it grows, and how it was measured.

    Args:
        runs: what was measured; where a result is in several, the last one counts.
        kept: where the results are, from its directory.
        tables: where `numbers` is, from its directory.
    """
    found = merged(runs)
    parts = _by_part(found.values())
    compared = {name: results for name, results in parts.items() if not name.startswith(PROFILE)}
    profiles = {name: results for name, results in parts.items() if name.startswith(PROFILE)}
    results = [result for each in compared.values() for result in each]
    blocks = [
        "# Benchmarks",
        f"Written by `python -m benchmarks document` from [the results]({kept}), with nothing by hand; "
        f"[all numbers]({tables}) are beside them.",
        *_busy(found.values()),
        "## Goals",
        *_goals(results),
        "## What we lose",
        "Numbers of a peer that are better than ours beyond noise, and how many times; ours with the same durability, "
        f"where that was measured. {UNSYNCED} does not sync each commit, as ours does.",
        *_sides(results, peers=True),
        "## What we win",
        "The same the other way round: how many times better ours is.",
        *_sides(results, peers=False),
        *_growth(results),
        *_profiles(profiles),
        "## Method",
        METHOD,
        "## Machine and versions",
        *_facts(runs),
    ]
    return "\n\n".join(blocks) + "\n"


def numbers(runs: Sequence[Run]) -> str:
    """Return the page with all tables, but for those of profiles."""
    parts = {name: results for name, results in _by_part(merged(runs).values()).items() if not name.startswith(PROFILE)}
    common = _common([result for each in parts.values() for result in each])
    blocks = [
        "# All numbers",
        "The tables behind [the benchmarks](../BENCHMARKS.md), which say how they are measured, and on what.",
        *_legend(common),
        *(block for name, each in parts.items() for block in _part(name, each, common)),
    ]
    return "\n\n".join(blocks) + "\n"


def _by_part(found: Iterable[tuple[Result, Part, Run]]) -> dict[str, list[Result]]:
    parts: dict[str, list[Result]] = {}
    for result, part, _ in found:
        parts.setdefault(part.name, []).append(result)
    return parts


def _busy(found: Iterable[tuple[Result, Part, Run]]) -> list[str]:
    """Return a warning, where others used the machine."""
    parts = {part.name: part.busy for _, part, _ in found if part.busy and part.busy.warnings}
    if not parts:
        return []
    lines = [f"- {name}: {'; '.join(busy.warnings)}" for name, busy in parts.items()]
    return ["\n".join(["**The machine was busy, so these numbers are doubtful:**\n", *lines])]


def _goals(results: Sequence[Result]) -> list[str]:
    lines = [
        [result.name, figure.title, value(figure), goal(figure), "yes" if figure.met else "**no**"]
        for result in results
        for figure in result.figures
        if figure.met is not None
    ]
    met = sum(line[-1] == "yes" for line in lines)
    lines.sort(key=lambda line: line[-1] == "yes")
    return (
        [f"{met} of {len(lines)} are met.", table(["work", "figure", "value", "goal", "met"], lines)] if lines else []
    )


def _sides(results: Sequence[Result], *, peers: bool) -> list[str]:
    """Return the table of what the peers do better, or ours."""
    lines: list[list[str]] = []
    memory: dict[str, list[float]] = {}
    for result in results:
        columns: dict[str, list[Beside]] = {}
        for each in beside(result):
            if not each.differ or each.factor is None or (each.factor > 1) != peers:
                continue
            if each.column == PEAK:
                memory.setdefault(each.peer.name, []).append(_times(each))
            else:
                columns.setdefault(each.column, []).append(each)
        if columns:
            lines.append([result.name, "; ".join(f"{name}: {_who(each)}" for name, each in columns.items())])
    if memory:
        lines.append([f"{PEAK}, in some of all these", " · ".join(f"{name} {_range(n)}" for name, n in memory.items())])
    return [table(["work", "who is better, times" if peers else "than whom, times"], lines)] if lines else ["Nothing."]


def _times(found: Beside) -> float:
    return max(found.factor, 1 / found.factor) if found.factor else inf


def _range(factors: Sequence[float]) -> str:
    low, high = ratio(min(factors)), ratio(max(factors))
    return low if low == high else f"{low} to {high}"


def _who(found: Sequence[Beside]) -> str:
    ordered = sorted(found, key=lambda each: -_times(each))
    return " · ".join(f"{each.peer.name}{UNSYNCED * each.less_durable} {ratio(_times(each))}" for each in ordered)


def _growth(results: Sequence[Result]) -> list[str]:
    pictures = [picture(chart) for result in results for chart in result.charts]
    pairs = [[*pictures[n : n + 2], ""][:2] for n in range(0, len(pictures), 2)]
    return ["## How it grows", table(["", ""], pairs)] if pictures else []


def picture(chart: Chart) -> str:
    """Return the reference to the picture of a chart."""
    return f"![{chart.title}: {chart.y}, by {chart.x}](benchmarks/{chart.name}.svg)"


def _profiles(parts: dict[str, list[Result]]) -> list[str]:
    """Return where the time goes, and how far that is from the limits."""
    if not parts:
        return []
    distances, layers = [], []
    for results in parts.values():
        for result in results:
            name = result.name.removeprefix(PROFILE)
            if result.figures:
                distances.append(_distance(name.partition(", distance")[0], result))
            elif not name.endswith(FUNCTIONS):
                layers.append([name.replace(", layers", ""), _layers(result.rows)])
    return [
        "## Where the time goes",
        "How far our paths are from what limits them:",
        table(["path", "ours", "times what limits it"], distances),
        "Own time of each layer, by samples of the stack:",
        table(["path", "percent"], layers),
    ]


def _distance(name: str, result: Result) -> list[str]:
    column, spread = next(iter(result.rows[0].values.items()))
    limits = (f"{figure.title.partition(' / ')[2]} {ratio(figure.value.median)}" for figure in result.figures)
    return [name, f"{number(spread.median)} {column}", ", ".join(limits)]


def _layers(rows: Sequence[Row]) -> str:
    named = [(row.name, row.values[SHARE].median) for row in rows if SHARE in row.values]
    return ", ".join(f"{name} {share:.0f}" for name, share in named[:MOST_LAYERS])


def _facts(runs: Sequence[Run]) -> list[str]:
    """Return what was used, once where it is the same in several runs."""
    machines: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        machine = "; ".join(f"{name}: {run.facts[name]}" for name in MACHINE if name in run.facts)
        versions = "; ".join(f"{name} {text}" for name, text in run.facts.items() if name not in (*MACHINE, *RUN))
        told = ", ".join(f"{name}: {run.facts[name]}" for name in RUN[1:] if name in run.facts)
        command = f"- `{run.facts.get('command', 'python -m benchmarks')}` (sizes: {run.size}; {told})"
        machines.setdefault(machine, {}).setdefault(versions, []).append(command)
    blocks = []
    for machine, found in machines.items():
        blocks.append(f"{machine}.")
        for versions, commands in found.items():
            blocks += [f"{versions}:", "\n".join(commands)]
    return blocks


def _common(results: Sequence[Result]) -> dict[str, str]:
    """Return the names of rows that have the same durability in many tables -> that."""
    found = Counter((row.name, row.about) for result in results for row in result.rows)
    common = [pair for pair, times in found.most_common() if times >= MANY]
    return dict(reversed(common))  # of a name with several, the first counts


def _legend(common: dict[str, str]) -> list[str]:
    lines = [f"- {name}: {about}" for name, about in common.items()]
    return ["Durability, where a table has it in short:", "\n".join(lines)] if lines else []


def _in_short(row: Row, common: dict[str, str]) -> str:
    if common.get(row.name) != row.about:
        return row.about
    return "syncs" if SYNCED in row.about else NO_SYNC if NEVER in row.about else row.about.partition(";")[0]


def _part(name: str, results: Sequence[Result], common: dict[str, str]) -> list[str]:
    blocks = [f"### {name}"]
    for result in results:
        if result.name != name:
            blocks.append(f"**{result.name}**")
        blocks += [result.what, *_table(result, common), *_figures(result.figures)]
        if result.notes:
            blocks.append("\n".join(f"- {note}" for note in result.notes))
    return blocks


def _table(result: Result, common: dict[str, str]) -> list[str]:
    columns = list(dict.fromkeys(column for row in result.rows for column in row.values))
    lines = [
        [
            row.name,
            *(cell(row.values[column]) if column in row.values else "" for column in columns),
            _in_short(row, common),
        ]
        for row in result.rows
    ]
    return [table(["", *columns, "durability and state"], lines)] if lines else []


def _figures(figures: Sequence[Figure]) -> list[str]:
    """Return the figures without a goal, in a line; those with one have a table."""
    named = [f"{figure.title}: {value(figure)}" for figure in figures if figure.met is None]
    return [f"{'; '.join(named)}."] if named else []


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    made = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in made)


def number(found: float) -> str:
    """Return a number with three digits, or all that are before its point."""
    if abs(found) >= 1000:
        return f"{found:,.0f}"
    return f"{float(f'{found:.3g}'):g}"


def cell(spread: Spread) -> str:
    """Return a median, and half of the range from quartile to quartile in percent, where that is 1 or more."""
    if not spread.median:
        return "0"
    half = (spread.upper - spread.lower) / 2 / abs(spread.median)
    return f"{number(spread.median)} ± {half:.0%}" if half >= 0.01 else number(spread.median)


def ratio(found: float) -> str:
    """Return a ratio with two digits after the point at most; that of something to nothing is ∞."""
    if found == inf:
        return "∞"
    return f"{found:.3g}" if found < 100 else f"{found:,.0f}"


def value(figure: Figure) -> str:
    """Return a figure with its spread and unit."""
    return f"{cell(figure.value)}{figure.unit and ' ' + figure.unit}"


def goal(figure: Figure) -> str:
    """Return the goal of a figure."""
    return f"≥ {number(figure.least)}" if figure.least is not None else f"≤ {number(figure.most or 0)}"
