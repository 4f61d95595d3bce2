"""Draws charts as SVG: the same numbers give the same bytes. Needs matplotlib, of the extra `bench`."""

from __future__ import annotations

from itertools import cycle
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.method.measure import Chart
from benchmarks.peers import registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
"""Okabe and Ito's colours, which the colour-blind tell apart; without their yellow, which nobody sees on white."""
GREY = "#777777"
INCHES = (7.2, 4.0)
LEFT = 0.125
"""Share of the width for the axis at the left, its numbers and its name."""
LABELS = 0.70
"""Where the names begin, as a share of the width."""
ROOM = 0.056
"""Between two names, as a share of the height of the axes."""
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
}


class Style(NamedTuple):
    """How a line looks: who is of one family has one colour, and other marks."""

    colour: str
    mark: str
    dash: str = "-"
    width: float = 1.4


STYLES = {
    registry.OURS.name: Style(RED, "o", width=3.2),
    registry.OURS_UNSYNCED.name: Style(RED, "o", "--", 2.4),
    registry.FILE.name: Style(BLUE, "s"),
    registry.FILE_SYNCED.name: Style(BLUE, "s", "-."),
    registry.FILE2.name: Style(BLUE, "^", "--"),
    registry.SQLITE_STORAGE.name: Style(SKY, "D"),
    registry.ZODB_FILE.name: Style(GREEN, "s"),
    registry.RELSTORAGE.name: Style(GREEN, "^", "--"),
    registry.RELSTORAGE_NORMAL.name: Style(GREEN, "v", ":"),
    registry.BARE.name: Style(BLACK, "o", ":"),
    registry.BARE_UNSYNCED.name: Style(BLACK, "o", "-."),
    registry.LMDB.name: Style(ORANGE, "s"),
    registry.SQLITE3.name: Style(PURPLE, "D"),
    registry.SQLITE3_NORMAL.name: Style(PURPLE, "D", "--"),
    registry.SHELVE.name: Style(GREY, "x"),
}
"""A peer looks the same in all charts."""
OTHERS = tuple(Style(colour, "P", "--") for colour in (BLUE, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY))


def draw(chart: Chart, path: Path) -> None:
    """Write a chart into a file, as SVG; its directory is there.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a number is 0 or less, which has no place on a logarithmic axis.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    _require_positive(chart)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(INCHES, facecolor="white")
        FigureCanvasSVG(figure)
        _fill(figure, chart)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    _trim(path)


def _trim(path: Path) -> None:
    """Take out the spaces at the ends of lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def _require_positive(chart: Chart) -> None:
    for name, points in chart.series.items():
        if any(number <= 0 for point in points for number in point):
            raise ValueError(f"{chart.name}: {name} has a number that is not above 0")


def _fill(figure: Figure, chart: Chart) -> None:
    axes = figure.add_axes((LEFT, 0.13, LABELS - LEFT, 0.77))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(chart.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda number, _: _plain(number))
        axis.set_minor_formatter("")
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    styles = _styles(list(chart.series))
    for name, points in chart.series.items():
        style = styles[name]
        axes.plot(
            *zip(*points, strict=True),
            color=style.colour,
            linestyle=style.dash,
            linewidth=style.width,
            marker=style.mark,
            markersize=4 if style.width < 2 else 6,
            zorder=3 if style.width < 2 else 4,
        )
    _show_two_powers(axes)
    _name_lines(axes, chart, styles)


def _plain(number: float) -> str:
    return f"{number / 1e6:,g} million" if number >= 1e6 else f"{number:,.10g}"


def _styles(names: list[str]) -> dict[str, Style]:
    others = cycle(OTHERS)
    return {name: STYLES.get(name) or next(others) for name in names}


def _show_two_powers(axes: Axes) -> None:
    """Let the axis at the left name two numbers at least, and what stays the same look flat."""
    low, high = axes.get_ylim()
    if floor(log10(high)) - ceil(log10(low)) < 1:
        axes.set_ylim(10 ** floor(log10(low)), 10 ** ceil(log10(high)))


def _name_lines(axes: Axes, chart: Chart, styles: dict[str, Style]) -> None:
    """Write each name at the right, at the height where its line ends or near it."""
    ends = {name: axes.transAxes.inverted().transform(axes.transData.transform(points[-1]))
            for name, points in chart.series.items()}  # fmt: skip
    heights = _apart({name: float(end[1]) for name, end in ends.items()})
    for name, height in heights.items():
        style = styles[name]
        axes.annotate(
            name,
            xy=tuple(ends[name]),
            xytext=(1.06, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=style.colour,
            fontsize=9.5,
            fontweight="bold" if style.width > 2 else "normal",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style.colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )


def _apart(heights: dict[str, float]) -> dict[str, float]:
    """Move names that are too near to each other up and down, as little as that takes."""
    groups = [([name], heights[name]) for name in sorted(heights, key=lambda name: (heights[name], name))]
    merged: list[tuple[list[str], float]] = []
    for names, middle in groups:
        while merged and _bottom(names, middle) - _top(*merged[-1]) < ROOM:
            before, height = merged.pop()
            middle = (height * len(before) + middle * len(names)) / (len(before) + len(names))
            names = before + names
        merged.append((names, middle))
    return {name: _bottom(names, middle) + ROOM * n for names, middle in merged for n, name in enumerate(names)}


def _bottom(names: list[str], middle: float) -> float:
    return middle - ROOM * (len(names) - 1) / 2


def _top(names: list[str], middle: float) -> float:
    return middle + ROOM * (len(names) - 1) / 2
