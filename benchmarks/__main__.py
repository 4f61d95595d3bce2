"""The command: ``python -m benchmarks [run] [names] [--full] [--json FILE]``, and those of `COMMANDS`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.catalog import FULL, GROUPS, PARTS, QUICK, TINY, named
from benchmarks.method import report, results
from benchmarks.method.busy import Watch
from benchmarks.method.facts import facts, in_memory, load_average, on_disk, quiet_durus
from benchmarks.method.measure import progress

INTERRUPTED = 130


def run(chosen: results.Run, names: Sequence[str], directory: Path, kept: Callable[[], object]) -> list[str]:
    """Run benchmarks below `directory`, and print what they found as they find it.

    Args:
        chosen: gets what is found; its parts that are there already are not run again.
        names: which.
        directory: where, on a disk.
        kept: called after each part.

    Returns:
        The names of those that failed.
    """
    failed = []
    done = {part.name for part in chosen.parts}
    for number, name in enumerate(names, 1):
        if name in done:
            progress(f"{name}: was measured before")
            continue
        progress(f"{name}, {number} of {len(names)}")
        try:
            chosen.parts.append(part(name, chosen.size, directory))
        except Exception:  # what the others find is worth having
            progress(f"{name} failed\n{traceback.format_exc()}")
            failed.append(name)
            continue
        print(report.part(chosen.parts[-1]), flush=True)
        kept()
    return failed


def part(name: str, size: str, directory: Path) -> results.Part:
    """Run one benchmark, and watch the machine meanwhile."""
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=directory) as scratch:
        watch = Watch(directory)
        found = PARTS[name].run(Path(scratch), PARTS[name].sizes[size])
        return results.Part(name, began, found, watch.end())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this package beside its peers.",
        epilog="Other commands: compare OLD NEW, document RESULTS, profile; each has --help.",
    )
    parser.add_argument("names", nargs="*", help=f"which ({', '.join([*PARTS, *GROUPS])}); compared by default")
    parser.add_argument("--full", action="store_true", help="the sizes that are reported: an hour; else minutes")
    parser.add_argument("--tiny", action="store_true", help="so small that the numbers mean nothing: to try it out")
    parser.add_argument(
        "--json", type=Path, metavar="FILE",
        help="write what was measured to FILE, after each benchmark; if it is there, only those that it lacks are run",
    )  # fmt: skip
    parser.add_argument("--directory", type=Path, help="where to work, on a real disk; a temporary one by default")
    return parser


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        names = named(chosen.names)
    except KeyError as unknown:
        parser.error(f"no benchmark is called {unknown.args[0]}; there are {', '.join([*PARTS, *GROUPS])}")
    quiet_durus()
    directory = chosen.directory or on_disk()
    if in_memory(directory):
        progress(f"{directory} is in memory: syncs cost nothing there, so the durable commits mean nothing")
    try:
        with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=directory) as scratch:
            return _measure(chosen, names, Path(scratch))
    except results.BadResults as error:
        print(f"benchmarks: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("benchmarks: interrupted; with --json FILE, the same command goes on later", file=sys.stderr)
        return INTERRUPTED
    return 1


def _measure(chosen: argparse.Namespace, names: Sequence[str], directory: Path) -> int:
    size = FULL if chosen.full else TINY if chosen.tiny else QUICK
    command = " ".join(["python -m benchmarks", *chosen.names, *([f"--{size}"] if size != QUICK else [])])
    known = facts(directory, command)
    measured = results.to_be_continued(chosen.json, known, size) if chosen.json else results.Run(known, size)

    def keep() -> None:
        measured.facts["load average at the end"] = load_average()
        if chosen.json:
            results.write(chosen.json, [measured])

    print(report.heading(measured.facts, size), flush=True)
    failed = run(measured, names, directory, keep)
    print(report.summary(measured.results), report.warnings([measured]), sep="\n")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _of(module: str) -> Callable[[Sequence[str]], int]:
    def command(arguments: Sequence[str]) -> int:
        done: int = import_module(module).main(arguments)
        return done

    return command


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "compare": _of("benchmarks.method.compare"),
    "document": _of("benchmarks.method.document"),
    "profile": _of("benchmarks.profiling.command"),
}
"""What the first word may say; without one of these it is a run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        return COMMANDS[given[0]](given[1:])
    return _run(given)


if __name__ == "__main__":
    sys.exit(main())
