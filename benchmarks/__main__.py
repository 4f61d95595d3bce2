"""The command: ``python -m benchmarks [names] [--full] [--json FILE] [--directory DIRECTORY]``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.building import build_objects
from benchmarks.committing import commit
from benchmarks.facts import facts, quiet_durus
from benchmarks.loading import load
from benchmarks.measure import Result


@dataclass(frozen=True)
class Size:
    """How much is done."""

    name: str
    rounds: int
    objects: int
    durable_commits: int
    unsynced_commits: int


QUICK = Size("quick", rounds=7, objects=20_000, durable_commits=1000, unsynced_commits=5000)
FULL = Size("full", rounds=15, objects=100_000, durable_commits=3000, unsynced_commits=20_000)
TINY = Size("tiny, meaningless", rounds=2, objects=2000, durable_commits=20, unsynced_commits=20)

BENCHMARKS: dict[str, Callable[[Path, Size], list[Result]]] = {
    "load": lambda directory, size: load(directory, size.objects, size.rounds),
    "build": lambda directory, size: build_objects(directory, size.objects, max(3, size.rounds // 2)),
    "commit": lambda directory, size: commit(directory, size.durable_commits, size.unsynced_commits, size.rounds),
}


def run(names: Sequence[str], size: Size, directory: Path, out: Callable[[str], object] = print) -> dict[str, object]:
    """Run benchmarks below `directory`, print what they found as they find it, and return it all."""
    known = facts(directory)
    out(report.heading(known, size.name))
    results: list[Result] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=directory) as scratch:
            found = BENCHMARKS[name](Path(scratch), size)
        for result in found:
            out(report.text(result))
        results += found
    out(report.summary(results))
    return report.as_json(known, size.name, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this package beside its peers.")
    parser.add_argument("names", nargs="*", help=f"which ({', '.join(BENCHMARKS)}); all by default")
    parser.add_argument("--full", action="store_true", help="the sizes that are reported: half an hour; else minutes")
    parser.add_argument("--tiny", action="store_true", help="so small that the numbers mean nothing: to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--directory", type=Path, help="where to work, on a real disk; a temporary one by default")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    quiet_durus()
    size = FULL if chosen.full else TINY if chosen.tiny else QUICK
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=chosen.directory) as scratch:
        found = run(chosen.names or list(BENCHMARKS), size, Path(scratch))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
