"""The command: ``python -m demo [--modules N] [--transactions N] [--directory DIRECTORY] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from durus.logger import logger as durus_logger

from berkeleydb_storage import __version__
from berkeleydb_storage.environment import LIBRARY
from demo import building, comparing, crashing, forgetting, serving
from demo.show import Story

STEPS = 7
MARK = ".demo"
"""A file that says that a directory is the demo's, to be removed with everything in it."""


def prepare(directory: Path) -> Path:
    """Make the demo's directory anew.

    Raises:
        FileExistsError: there are things in it that are not the demo's.
    """
    if directory.exists():
        if not (directory / MARK).exists() and any(directory.iterdir()):
            raise FileExistsError(f"{directory} has files of something else: name another directory")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARK).touch()
    return directory


def tell(directory: Path, modules: int | None, transactions: int) -> Story:
    """Run all steps in a directory; return what was found."""
    story = Story(STEPS)
    file, storage = directory / "library.durus", directory / "storage"
    building.read(story, file, modules)
    building.migrate(story, file, storage)
    building.ask(story, file, storage)
    serving.serve(story, storage, transactions)
    forgetting.forget(story, storage)
    crashing.check(story, storage)
    comparing.compare(story, file, storage)
    return story


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="The main job on real input, step by step.")
    parser.add_argument("--modules", type=int, help="read only so many modules (at least 40)")
    parser.add_argument("--transactions", type=int, default=1000, help="of each client process; default 1000")
    parser.add_argument("--directory", type=Path, default=Path("demo-data"), help="made anew; default demo-data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to FILE")
    chosen = parser.parse_args(arguments)
    durus_logger.setLevel(logging.WARNING)
    started = time.monotonic()
    print(f"berkeleydb_storage {__version__}: Durus on Berkeley DB, with the Python standard library as its data.")
    print(f"Python {platform.python_version()}, Durus {version('durus')}, Berkeley DB {LIBRARY}.", end=" ")
    print(f"Everything is kept in {chosen.directory}/.")
    story = tell(prepare(chosen.directory), chosen.modules, chosen.transactions)
    if chosen.json:
        chosen.json.write_text(json.dumps(story.figures, indent=1) + "\n")
    good = story.checks - len(story.failures)
    print(f"{good} of {story.checks} checks hold; {time.monotonic() - started:.0f} s in all.")
    for failure in story.failures:
        print(f"FAILED: {failure}")
    print(f"The storage stays in {chosen.directory / 'storage'}: try `.venv/bin/durus-bdb census` on it.")
    return 1 if story.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the next run begins anew")
    except FileExistsError as error:
        sys.exit(str(error))
