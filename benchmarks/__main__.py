"""The command: ``python -m benchmarks [run] [names] [--full] [--json FILE] [--directory DIRECTORY]``, and others."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.catalog import FULL, GROUPS, PARTS, QUICK, TINY, named
from benchmarks.method import report
from benchmarks.method.facts import facts, in_memory, load_average, on_disk, quiet_durus
from benchmarks.method.measure import Result, progress


def run(names: Sequence[str], size: str, directory: Path, out: Callable[[str], object] = print) -> dict[str, object]:
    """Run benchmarks below `directory`, print what they found as they find it, and return it all."""
    known = facts(directory)
    out(report.heading(known, size))
    results: list[Result] = []
    for name in names:
        progress(name)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=directory) as scratch:
            found = PARTS[name].run(Path(scratch), PARTS[name].sizes[size])
        for result in found:
            out(report.text(result))
        results += found
    known["load average at the end"] = load_average()
    out(report.summary(results))
    out(f"load average: {known['load average']} at the beginning, {known['load average at the end']} at the end")
    return report.as_json(known, size, results)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this package beside its peers.")
    parser.add_argument("names", nargs="*", help=f"which ({', '.join([*PARTS, *GROUPS])}); compared by default")
    parser.add_argument("--full", action="store_true", help="the sizes that are reported: an hour; else minutes")
    parser.add_argument("--tiny", action="store_true", help="so small that the numbers mean nothing: to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--directory", type=Path, help="where to work, on a real disk; a temporary one by default")
    chosen = parser.parse_args(arguments)
    try:
        names = named(chosen.names)
    except KeyError as unknown:
        parser.error(f"no benchmark is called {unknown.args[0]}; there are {', '.join([*PARTS, *GROUPS])}")
    quiet_durus()
    directory = chosen.directory or on_disk()
    if in_memory(directory):
        progress(f"{directory} is in memory: syncs cost nothing there, so the durable commits mean nothing")
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=directory) as scratch:
        found = run(names, FULL if chosen.full else TINY if chosen.tiny else QUICK, Path(scratch))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"run": _run}
"""What the first word may say; without one of these it is a run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        return COMMANDS[given[0]](given[1:])
    return _run(given)


if __name__ == "__main__":
    sys.exit(main())
