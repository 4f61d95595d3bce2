"""Figure 6: filling a storage with the records of another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.method.measure import Result, Series, progress, ratios, scaled
from benchmarks.method.process import in_a_process, processes_in_turn
from benchmarks.objects.records import fill, record
from benchmarks.peers.durus import BARE, FILE, OPENERS, OURS
from benchmarks.work import probes

WRITTEN = "FileStorage, written like pack()"
LOADS = 200_000
"""Random loads after reopening."""

Probe = Callable[[], dict[str, float]]


SIZES = {"tiny": (2000, 2000, 1), "quick": (200_000, 200_000, 3), "full": (5_000_000, 1_000_000, 1)}
"""Objects that are migrated from a generator, and from a FileStorage; rounds."""


def migrate(directory: Path, sizes: tuple[int, int, int]) -> list[Result]:
    """Compare `migrate` from a generator, and from a FileStorage, with other ways to write so many records."""
    generated, copied, rounds = sizes
    return [_generated(directory, generated, rounds), _copied(directory, copied, rounds)]


def _once(path: Path, write: Probe, read: Callable[..., dict[str, float]] | None, count: int) -> dict[str, float]:
    """Write a store in a fresh process, read from it in another one, and remove it."""
    progress(f"migrate: {count:,} objects: {path.name}")
    found = write()
    if read is not None:
        loads = in_a_process(read, path, count, min(LOADS, count))
        found |= {"loads at first": loads["first"], "loads": loads["again"], "reader": loads["peak"]}
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def _generated(directory: Path, count: int, rounds: int) -> Result:
    mine, theirs, bare = directory / OURS, directory / WRITTEN, directory / BARE
    contestants: dict[str, Probe] = {
        WRITTEN: partial(
            _once, theirs, partial(in_a_process, probes.shelf_records, theirs, count), probes.load_file_storage, count
        ),
        OURS: partial(_once, mine, partial(in_a_process, probes.migrate_records, mine, count), probes.load_ours, count),
        BARE: partial(_once, bare, partial(in_a_process, probes.bare_records, bare, count), None, count),
    }
    found = processes_in_turn(contestants, rounds)
    result = Result(
        "migrate",
        f"{count:,} objects of {len(record(1))} bytes, in order of their oids, from a generator (whose time is "
        "included) into an empty storage; each time in a fresh process. MB of memory at most, in all and more than "
        "before; random loads in a fresh process after reopening, the files in the system's cache: the first "
        f"{min(LOADS, count):,}, and the same once more.",
    )
    about = {
        WRITTEN: "Shelf(file, items=records): no references are looked at, nothing is verified",
        OURS: "storage.migrate(records): references counted, everything verified, durable",
        BARE: "puts of 2,000 a transaction, and a checkpoint: the limit",
    }
    for name, series in found.items():
        _row(result, name, about[name], series, count)
    _figures(result, found[OURS], count)
    result.figure("time, FileStorage / ours", ratios(found[WRITTEN]["seconds"], found[OURS]["seconds"]))
    result.figure("time, ours / bare Berkeley DB", ratios(found[OURS]["seconds"], found[BARE]["seconds"]))
    result.figure("random loads/s, ours / FileStorage", ratios(found[OURS]["loads"], found[WRITTEN]["loads"]))
    return result


def _copied(directory: Path, count: int, rounds: int) -> Result:
    source = directory / f"{FILE} to migrate"
    with closing(OPENERS[FILE](source)) as storage:
        fill(storage, count)
    path = directory / "ours from FileStorage"
    write = partial(in_a_process, probes.migrate_file_storage, path, source)
    found = processes_in_turn({OURS: partial(_once, path, write, probes.load_ours, count)}, rounds)
    theirs = processes_in_turn({FILE: partial(in_a_process, probes.load_file_storage, source, count, LOADS)}, rounds)
    result = Result(
        "migrate a FileStorage",
        f"{count:,} objects from a FileStorage as it was built, open already; otherwise as above.",
    )
    _row(result, OURS, "storage.migrate(source.gen_oid_record()), durable", found[OURS], count)
    rates = theirs[FILE]
    result.row(
        FILE,
        "the source",
        **{"thousand_loads/s_at_first": scaled(rates["first"], 1e-3)},
        **{"thousand_loads/s": scaled(rates["again"], 1e-3)},
        reader_MB=rates["peak"],
    )
    _figures(result, found[OURS], count)
    result.figure("random loads/s, ours / FileStorage", ratios(found[OURS]["loads"], rates["again"]))
    return result


def _row(result: Result, name: str, about: str, series: dict[str, Series], count: int) -> None:
    columns = {
        "seconds": series["seconds"],
        "thousand records/s": [count / taken / 1e3 for taken in series["seconds"]],
        "peak MB": series["peak"],
        "increase MB": series["increase"],
        "bytes/object": scaled(series["data"], 1e6 / count),
        "log MB": series["logs"],
    }
    if "loads" in series:
        columns["thousand loads/s at first"] = scaled(series["loads at first"], 1e-3)
        columns["thousand loads/s"] = scaled(series["loads"], 1e-3)
        columns["reader MB"] = series["reader"]
    result.row(name, about, **columns)


def _figures(result: Result, series: dict[str, Series], count: int) -> None:
    result.figure("seconds", series["seconds"])
    result.figure("records/s", [count / taken for taken in series["seconds"]], least=100_000)
    result.figure("peak memory", series["peak"], unit="MB")
    result.figure("memory more than before", series["increase"], unit="MB")
    result.figure("data on the disk", scaled(series["data"], 1e6 / count), unit="bytes/object")
    result.figure("random loads after reopening", series["loads"], unit="a second")
