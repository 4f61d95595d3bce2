"""``python -m benchmarks document RESULT…``: writes docs/BENCHMARKS.md, its plots, and the figures of the README.

The results are kept beside the plots, so that a test can tell that nobody changed a number by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.method import pages, selection
from benchmarks.method.results import BadResults, Part, Run, merged, read, read_all, write

ROOT = Path(__file__).parents[2]
PAGE, PLOTS, KEPT = "docs/BENCHMARKS.md", "docs/benchmarks", "docs/benchmarks/results.json"
NUMBERS = "docs/benchmarks/NUMBERS.md"
README = "README"


class Documents:
    """The documents below a directory: those of the project, or of a test."""

    def __init__(self, root: Path = ROOT) -> None:
        """Change nothing yet."""
        self.root = root

    def kept(self) -> list[Run]:
        """Return the results that the documents are written from; OSError where there are none, or as `read`."""
        return read(self.root / KEPT)

    def write(self, runs: Sequence[Run], readme: bool) -> list[str]:
        """Write everything; return the files.

        Args:
            runs: the results; where one is in several, the last counts.
            readme: whether the table in the README is written, too.

        Raises:
            BadResults: a row of the README asks for what is not in the results, or the README has no place for it.
            ImportError: matplotlib is not installed.
        """
        runs = needed(runs)
        page, new = self.page(runs), self.readme(runs) if readme else None
        (self.root / PLOTS).mkdir(parents=True, exist_ok=True)
        drawn = self._draw(runs)
        write(self.root / KEPT, runs)
        (self.root / PAGE).write_text(page, encoding="utf-8")
        (self.root / NUMBERS).write_text(pages.numbers(runs), encoding="utf-8")
        if new is not None:
            (self.root / README).write_text(new, encoding="utf-8")
        return [KEPT, PAGE, NUMBERS, *drawn, *([README] if readme else [])]

    def page(self, runs: Sequence[Run]) -> str:
        """Return the page that results give."""
        return pages.document(runs, KEPT.removeprefix("docs/"), NUMBERS.removeprefix("docs/"))

    def readme(self, runs: Sequence[Run]) -> str:
        """Return the README with the table that results give; BadResults as `write`."""
        return selection.replaced((self.root / README).read_text(encoding="utf-8"), merged(runs))

    def plots(self, runs: Sequence[Run]) -> list[str]:
        """Return the names of the files of all plots."""
        return [f"{chart.name}.svg" for run in runs for result in run.results for chart in result.charts]

    def _draw(self, runs: Sequence[Run]) -> list[str]:
        """Draw all charts, and remove the plots that are no more."""
        charts = [chart for run in runs for result in run.results for chart in result.charts]
        if charts:
            from benchmarks.method.plots import draw

            for chart in charts:
                draw(chart, self.root / PLOTS / f"{chart.name}.svg")
        for old in (self.root / PLOTS).glob("*.svg"):
            if old.name not in self.plots(runs):
                old.unlink()
        return [f"{PLOTS}/{name}" for name in self.plots(runs)]


def needed(runs: Sequence[Run]) -> list[Run]:
    """Return the runs without the results that a later one has, too."""
    last = merged(runs)
    found = []
    for run in runs:
        parts = []
        for part in run.parts:
            results = [result for result in part.results if last[result.name][0] is result]
            if results:
                parts.append(Part(part.name, part.began, results, part.busy))
        if parts:
            found.append(Run(run.facts, run.size, parts))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks document", description=f"Write {PAGE}, its plots, and the figures of the README."
    )
    parser.add_argument(
        "results", nargs="+", type=Path, help="files that --json wrote; of what is in several, the last"
    )
    parser.add_argument("--readme", action="store_true", help="write the table of the README, too: all of its figures")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the documents are; by default, the project")
    chosen = parser.parse_args(arguments)
    try:
        written = Documents(chosen.root).write(read_all(chosen.results), chosen.readme)
    except (BadResults, OSError) as error:
        print(f"document: {error}", file=sys.stderr)
    except ImportError as error:
        print(f"document: {error}; install what draws the plots: pip install -e '.[bench]'", file=sys.stderr)
    else:
        print(*written, sep="\n")
        return 0
    return 1
