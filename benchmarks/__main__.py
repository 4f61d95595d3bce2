"""The command: ``python -m benchmarks [names] [--full] [--json FILE] [--directory DIRECTORY]``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import backing, collecting, report, serving, serving_more
from benchmarks.archiving import archive
from benchmarks.building import build_objects
from benchmarks.committing import commit
from benchmarks.encrypting import encryption
from benchmarks.facts import facts, in_memory, load_average, on_disk, quiet_durus
from benchmarks.loading import load
from benchmarks.measure import Result, progress
from benchmarks.migrating import migrate
from benchmarks.opening import opening
from benchmarks.stores import Stores
from benchmarks.updating import update


@dataclass(frozen=True)
class Size:
    """How much is done."""

    name: str
    rounds: int
    few_rounds: int
    """Of what takes long."""
    objects: int
    """Loaded and built."""
    durable_commits: int
    unsynced_commits: int
    large: int
    """Objects of a large storage: opened, and migrated from a FileStorage."""
    updates: int
    migrated: int
    """Objects migrated from a generator."""
    collected: collecting.Sizes
    served: serving.Sizes
    backed_up: backing.Sizes


QUICK = Size(
    "quick",
    7,
    3,
    20_000,
    1000,
    5000,
    large=200_000,
    updates=50_000,
    migrated=200_000,
    collected=collecting.QUICK,
    served=serving.QUICK,
    backed_up=backing.QUICK,
)
FULL = Size(
    "full",
    15,
    7,
    100_000,
    3000,
    20_000,
    large=1_000_000,
    updates=1_000_000,
    migrated=5_000_000,
    collected=collecting.FULL,
    served=serving.FULL,
    backed_up=backing.FULL_SIZES,
)
TINY = Size(
    "tiny: the numbers mean nothing",
    2,
    1,
    2000,
    20,
    20,
    large=2000,
    updates=200,
    migrated=2000,
    collected=collecting.TINY,
    served=serving.TINY,
    backed_up=backing.TINY,
)


@dataclass(frozen=True)
class Run:
    """What a benchmark gets."""

    path: Path
    """An empty directory of its own."""
    stores: Stores
    size: Size


BENCHMARKS: dict[str, Callable[[Run], list[Result]]] = {
    "load": lambda run: load(run.path, run.size.objects, run.size.rounds),
    "build": lambda run: build_objects(run.path, run.size.objects, run.size.few_rounds),
    "commit": lambda run: commit(run.path, run.size.durable_commits, run.size.unsynced_commits, run.size.rounds),
    "encryption": lambda run: encryption(
        run.path, run.size.objects, run.size.durable_commits, run.size.unsynced_commits, run.size.rounds
    ),
    "archive": lambda run: archive(run.path, 0.2 if run.size is TINY else 5, run.size.few_rounds),
    "open": lambda run: opening(run.stores, run.size.large, run.size.few_rounds),
    "update": lambda run: update(run.path, run.size.updates),
    "migrate": lambda run: migrate(
        run.path, run.stores, run.size.migrated, run.size.large, 1 if run.size is FULL else run.size.few_rounds
    ),
    "collect": lambda run: collecting.collect(run.path, run.size.collected),
    "backup": lambda run: backing.backup(run.path, run.size.backed_up),
    "serve-loads": lambda run: serving.loads(run.path, run.size.served),
    "serve-commits": lambda run: serving.commits(run.path, run.size.served),
    "serve-slow": lambda run: serving.slow(run.path, run.size.served),
    "serve-large": lambda run: serving_more.large(run.path, run.size.served),
    "serve-link": lambda run: serving_more.link(run.path, run.size.served),
    "serve-shared": lambda run: serving_more.shared(run.path, run.size.served),
    "serve-tls": lambda run: serving_more.tls(run.path, run.size.served),
}

GROUPS = {"serve": [name for name in BENCHMARKS if name.startswith("serve-")]}
"""What stands for several benchmarks."""


def run(names: Sequence[str], size: Size, directory: Path, out: Callable[[str], object] = print) -> dict[str, object]:
    """Run benchmarks below `directory`, print what they found as they find it, and return it all."""
    known = facts(directory)
    out(report.heading(known, size.name))
    results: list[Result] = []
    stores = Stores(directory)
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=directory) as scratch:
            found = BENCHMARKS[name](Run(Path(scratch), stores, size))
        for result in found:
            out(report.text(result))
        results += found
    known["load average at the end"] = load_average()
    out(report.summary(results))
    out(f"load average: {known['load average']} at the beginning, {known['load average at the end']} at the end")
    return report.as_json(known, size.name, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this package beside its peers.")
    parser.add_argument("names", nargs="*", help=f"which ({', '.join([*BENCHMARKS, *GROUPS])}); all by default")
    parser.add_argument("--full", action="store_true", help="the sizes that are reported: an hour; else minutes")
    parser.add_argument("--tiny", action="store_true", help="so small that the numbers mean nothing: to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--directory", type=Path, help="where to work, on a real disk; a temporary one by default")
    chosen = parser.parse_args(arguments)
    names = [name for given in chosen.names for name in GROUPS.get(given, [given])]
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(
            f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join([*BENCHMARKS, *GROUPS])}"
        )
    quiet_durus()
    size = FULL if chosen.full else TINY if chosen.tiny else QUICK
    directory = chosen.directory or on_disk()
    if in_memory(directory):
        progress(f"{directory} is in memory: syncs cost nothing there, so the durable commits mean nothing")
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=directory) as scratch:
        found = run(names or list(BENCHMARKS), size, Path(scratch))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
