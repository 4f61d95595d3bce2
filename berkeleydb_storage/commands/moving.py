"""Commands that bring data in and out: migrate, export, dump, load."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from berkeleydb_storage import inspection
from berkeleydb_storage.commands.command import Command, add_directory, add_key, key_of, oid
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.export import export, new_file
from berkeleydb_storage.garbage.policy import GarbageManual
from berkeleydb_storage.migration import Records
from berkeleydb_storage.options import TYPES
from berkeleydb_storage.progress import Progress, rate_text
from berkeleydb_storage.sources import open_source
from berkeleydb_storage.storage import BerkeleyDBStorage

REPORT_EVERY = 1000
"""Records between two reports of the progress of a dump."""


def _migrate(arguments: argparse.Namespace, console: Console) -> int:
    key = key_of(arguments, "source-")
    with console.progress() as progress, open_source(arguments.source, progress, key=key) as source:
        progress.totals.update(loading=source.total, verifying=source.total)
        values = _fill(arguments, console, progress, source.records)
    values = {"source": arguments.source, "kind": source.kind, **values}
    console.result(values, f"migrated {arguments.source} ({source.kind}) {_filled(values)}")
    return 0


def _fill(arguments: argparse.Namespace, console: Console, progress: Progress, records: Records) -> dict[str, Any]:
    """Migrate records into the directory of the arguments, and return what was done."""
    Path(arguments.directory).mkdir(parents=True, exist_ok=True)
    with BerkeleyDBStorage(
        arguments.directory,
        type=arguments.type,
        cachesize=arguments.cachesize,
        garbage_collection=GarbageManual(),
        key=key_of(arguments),
    ) as storage:
        console.advice = f"{arguments.directory} is empty, as before; to start again, run the same command"
        started = time.monotonic()
        objects = storage.migrate(records, progress)
        seconds = time.monotonic() - started
        garbage = storage.statistics().garbage
    return {"directory": arguments.directory, "objects": objects, "garbage": garbage, "seconds": round(seconds, 3)}


def _filled(values: dict[str, Any]) -> str:
    objects, seconds, garbage = values["objects"], values["seconds"], values["garbage"]
    found = f"{garbage:,} of them garbage, to be collected" if garbage else "no garbage"
    return (
        f"into {values['directory']}: {objects:,} objects in {seconds:.1f} s ({rate_text(objects, seconds)}), {found}"
    )


def _add_destination(parser: argparse.ArgumentParser) -> None:
    add_directory(parser, "where to: empty, or created")
    parser.add_argument("--type", choices=TYPES, help="access method of the objects (default: btree)")


def _migrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a storage file of Durus, or a directory of this package")
    _add_destination(parser)
    add_key(parser, "source-", "SOURCE, if that is an encrypted directory")


MIGRATE = Command(
    "migrate",
    "copy a Durus storage file into a new storage",
    "SOURCE is a "
    "FileStorage, FileStorage2 or SqliteStorage, recognised by its contents, or a directory of "
    "this package; it is not written to. Everything is counted, compared, and on the disk at the end. "
    "After an error or an interruption DIRECTORY is an empty storage: run the command again.",
    "durus-bdb migrate old.durus new-db",
    _migrate_arguments,
    _migrate,
)


def _export(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = f"there is no {arguments.file}; to start again, run the same command"
    with _reading(arguments) as storage:
        total = storage.get_size()
        started = time.monotonic()
        with console.progress(exporting=total, verifying=total) as progress:
            objects = export(storage, arguments.file, progress)
        seconds = time.monotonic() - started
    values = {
        "directory": arguments.directory,
        "file": arguments.file,
        "objects": objects,
        "bytes": Path(arguments.file).stat().st_size,
        "seconds": round(seconds, 3),
    }
    console.result(
        values,
        f"exported {arguments.directory} into {arguments.file}, a FileStorage of Durus: {objects:,} objects, "
        f"{values['bytes']:,} bytes in {seconds:.1f} s, read back and compared",
    )
    return 0


@contextmanager
def _reading(arguments: argparse.Namespace) -> Iterator[BerkeleyDBStorage]:
    with BerkeleyDBStorage(
        arguments.directory, read_only=True, cachesize=arguments.cachesize, key=key_of(arguments)
    ) as storage:
        yield storage


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("file", metavar="FILE", help="the new file")


EXPORT = Command(
    "export",
    "write a storage into a FileStorage of Durus",
    "FILE must not exist; it "
    "appears under its name when it is complete, read back by Durus, compared, and on the disk. "
    "DIRECTORY is not written to.",
    "durus-bdb export db home.durus",
    _export_arguments,
    _export,
)


def _dump(arguments: argparse.Namespace, console: Console) -> int:
    with _reading(arguments) as storage:
        rows = inspection.select(storage, arguments.oid)
        if arguments.file == "-":
            with console.progress(hidden=True) as progress:
                inspection.dump(_watched(rows, progress), sys.stdout.write, text=arguments.text)
            return 0
        console.advice = f"there is no {arguments.file}"
        with console.progress(dumping=storage.get_size()) as progress, new_file(arguments.file) as (file, _):
            objects = inspection.dump(
                _watched(rows, progress),
                lambda text: file.write(text.encode("utf-8", "backslashreplace")),
                text=arguments.text,
            )
    values = {"directory": arguments.directory, "file": arguments.file, "objects": objects}
    console.result(values, f"dumped {objects:,} objects of {arguments.directory} into {arguments.file}")
    return 0


def _watched(rows: Iterator[tuple[bytes, bytes]], progress: Progress) -> Iterator[tuple[bytes, bytes]]:
    for number, row in enumerate(rows):
        if number % REPORT_EVERY == 0:
            progress("dumping", number)
        yield row


def _dump_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="a new file; without one: standard output")
    parser.add_argument("--oid", type=oid, nargs="+", action="extend", metavar="N", help="only these objects")
    parser.add_argument("--text", action="store_true", help="text for people, with the state of each object")


DUMP = Command(
    "dump",
    "write objects as lines of JSON, or as text",
    "One line for each object, in the "
    "order of the oids: oid, class, size, references, and the record as base64; `load` reads that "
    "back. With --text, its state as Python shows it. No class of the application is needed.",
    "durus-bdb dump db records.jsonl\n  durus-bdb dump db --text --oid 0",
    _dump_arguments,
    _dump,
)


def _load(arguments: argparse.Namespace, console: Console) -> int:
    with _lines(arguments.file) as (file, name), console.progress() as progress:
        values = _fill(arguments, console, progress, inspection.loaded(file, name))
    values = {"file": arguments.file, **values}
    console.result(values, f"loaded {name} {_filled(values)}")
    return 0


@contextmanager
def _lines(name: str) -> Iterator[tuple[BinaryIO, str]]:
    if name == "-":
        yield sys.stdin.buffer, "standard input"
        return
    with Path(name).open("rb") as file:
        yield file, name


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="what `dump` wrote; -: standard input")
    _add_destination(parser)


LOAD = Command(
    "load",
    "read a dump into a new storage",
    "FILE is what `dump` wrote without --text. A malformed "
    "line is named by its number; DIRECTORY is then an empty storage.",
    "durus-bdb load records.jsonl new-db",
    _load_arguments,
    _load,
)
