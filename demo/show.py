"""How the demo speaks: headings, paragraphs, checks and tables, in plain text. Keeps what was measured."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

WIDTH = 100
INDENT = "   "


class Story:
    """The demo as it is told. `figures` has what was measured, by name; `failures` the checks that failed."""

    def __init__(self, steps: int) -> None:
        """Begin a story of so many steps."""
        self.figures: dict[str, float] = {}
        self.checks = 0
        self.failures: list[str] = []
        self._steps = steps
        self._step = 0

    def step(self, title: str, explanation: str) -> None:
        """Begin the next step, and say what it is about."""
        self._step += 1
        head = f"-- {self._step} of {self._steps}: {title} "
        print(f"\n{head:-<{WIDTH}}\n")
        self.say(explanation)
        print()

    def say(self, text: str) -> None:
        """Print a paragraph."""
        print(textwrap.fill(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT), flush=True)

    def line(self, text: str) -> None:
        """Print a line as it is."""
        print(f"{INDENT}{text}", flush=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows of as many cells each, the first row as the heading; all columns but the first flush right."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            cells = [first, *(cell.strip().rjust(len(cell)) for cell in others)]
            self.line("  ".join(cells).rstrip())
            if number == 0:
                self.line("  ".join("-" * width for width in widths))
        print(flush=True)

    def check(self, claim: str, holds: bool) -> None:
        """Say that something is so, or that it is not, which makes the demo fail."""
        self.checks += 1
        if not holds:
            self.failures.append(claim)
        self.line(f"{'[ok]' if holds else '[FAILED]'} {claim}")

    def figure(self, name: str, value: float) -> float:
        """Keep a measured value, and return it."""
        self.figures[name] = value
        return value


class LogLines(logging.Handler):
    """Shows what the package logs as part of the story."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        text = f"log: {record.getMessage()}"
        indent = INDENT + "  "
        print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "     "), flush=True)


@contextmanager
def log_shown() -> Iterator[None]:
    """Show the warnings of the package meanwhile."""
    handler, logger = LogLines(logging.WARNING), logging.getLogger("berkeleydb_storage")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def seconds(value: float) -> str:
    """Return a duration in a unit that suits it."""
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1e3:.{0 if value >= 0.1 else 1}f} ms"
    return f"{value:.1f} s"


def megabytes(value: float) -> str:
    """Return bytes as MB."""
    return f"{value / 1e6:.1f} MB"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share (0 to 1) of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
