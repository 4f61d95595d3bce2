"""The first steps: read the standard library into a FileStorage, migrate it, ask questions of both."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durus.connection import Connection
from durus.file_storage import FileStorage

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.progress import Progress
from demo.library import Reader, choose, find_modules, standard_library
from demo.model import Library
from demo.questions import QUESTIONS
from demo.show import Story, megabytes, seconds

CACHE_OBJECTS = 1_000_000
"""Objects that a connection keeps: all, so that the second look at one costs nothing anywhere."""


def library_of(storage: Any) -> Library:
    """Return the library in a storage, by a new connection."""
    library = Connection(storage, cache_size=CACHE_OBJECTS).get_root()["library"]
    assert isinstance(library, Library)
    return library


def read(story: Story, file: Path, limit: int | None) -> None:
    """Read the standard library into a FileStorage."""
    directory = standard_library()
    story.step(
        "read the standard library into a Durus FileStorage",
        f"Every module in {directory} (no tests) becomes a tree of persistent objects: packages, modules, classes, "
        "functions and statements, each with a pointer to what it is in; modules refer to those they import.",
    )
    found = choose(list(find_modules(directory)), limit)
    storage = FileStorage(str(file))
    started = time.perf_counter()
    reader = Reader(Connection(storage, cache_size=CACHE_OBJECTS))
    with Progress(sys.stderr, {"reading": len(found)}, unit="modules") as progress:
        reader.read(found, progress)
    elapsed = time.perf_counter() - started
    storage.close()
    objects = reader.objects
    story.figure("objects read", objects.total())
    rows = [["class", "objects"], *([name, f"{number:,}"] for name, number in objects.most_common())]
    story.table([*rows, ["all of them", f"{objects.total():,}"]])
    story.line(
        f"{megabytes(reader.characters)} of source text; {seconds(elapsed)} with the parsing, {reader.commits} "
        f"commits; a file of {megabytes(file.stat().st_size)}."
    )
    if reader.unreadable:
        story.say(f"Left out, because they cannot be parsed: {', '.join(reader.unreadable)}.")
    story.check("every module was read", len(reader.library.modules) + len(reader.unreadable) == len(found))


def migrate(story: Story, file: Path, directory: Path) -> None:
    """Migrate the FileStorage into a new storage."""
    story.step(
        "migrate it to Berkeley DB",
        "One call, destination.migrate(source.gen_oid_record()): it streams the records, counts the references to "
        "each, and reads everything back to compare. Interrupted, it would leave the destination empty.",
    )
    source = FileStorage(str(file), readonly=True)
    expected = sum(1 for _ in source.gen_oid_record())
    directory.mkdir()
    with BerkeleyDBStorage(directory) as storage:
        started = time.perf_counter()
        with Progress(sys.stderr, dict.fromkeys(("loading", "verifying"), expected), unit="records") as progress:
            moved = storage.migrate(source.gen_oid_record(), progress)
        elapsed = story.figure("migration seconds", time.perf_counter() - started)
        garbage = storage.statistics().garbage
    source.close()
    story.figure("objects migrated", moved)
    rate = story.figure("records migrated per second", moved / elapsed)
    story.line(f"{moved:,} records in {seconds(elapsed)}, verified: {rate:,.0f} a second.")
    if garbage:
        story.line(f"{garbage:,} of them are garbage that the file still had; it goes by itself later.")
    story.check("the storage has as many objects as the file", moved == expected)


def ask(story: Story, file: Path, directory: Path) -> None:
    """Ask the same questions of both."""
    story.step(
        "open it, and ask a few questions",
        "The same code asks both storages. Cold: the system was asked to forget the files, and the time includes that "
        "of opening them. Warm: a new connection, which has no objects yet, to the same open storage.",
    )
    peers: list[tuple[str, Callable[[], Any], Path]] = [
        ("FileStorage", lambda: FileStorage(str(file), readonly=True), file),
        ("ours", lambda: BerkeleyDBStorage(directory), directory),
    ]
    rows = [["question", "FileStorage, cold", "ours, cold", "FileStorage, warm", "ours, warm"]]
    answers: list[list[str]] = []
    totals = dict.fromkeys(((name, heat) for heat in ("cold", "warm") for name, *_ in peers), 0.0)
    for question, ask_it in QUESTIONS.items():
        times: dict[tuple[str, str], float] = {}
        given: list[str] = []
        for name, opened, path in peers:
            forget_files(path)
            storage: Any = None
            for heat in ("cold", "warm"):
                gc.collect()
                started = time.perf_counter()
                storage = storage or opened()
                given.append(ask_it(library_of(storage)))
                times[name, heat] = time.perf_counter() - started
                totals[name, heat] += times[name, heat]
            storage.close()
        answers.append(given)
        rows.append([question, *(seconds(times[key]) for key in totals)])
    story.table([*rows, ["all of them", *(seconds(total) for total in totals.values())]])
    for question, given in zip(QUESTIONS, answers, strict=True):
        story.line(f"{question} {given[0]}")
    for (name, heat), total in totals.items():
        story.figure(f"questions {name} {heat}", total)
    story.check("both give the same answers", all(len(set(given)) == 1 for given in answers))


def forget_files(path: Path) -> None:
    """Ask the system to drop what it keeps of a file, or of the files in a directory, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in [path] if path.is_file() else list(path.iterdir()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
