"""The last step: what was measured, beside FileStorage where it does the same."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durus.file_storage import FileStorage

from berkeleydb_storage import BerkeleyDBStorage
from demo.show import Story, megabytes, seconds

ROUNDS = 5
LOADS = 20_000


def compare(story: Story, file: Path, directory: Path) -> None:
    """Measure opening, loading and size of the same objects in both, and print everything."""
    story.step(
        "what was measured",
        "The objects of step 2 once more: in the file of Durus' FileStorage as it was built, in that file after a "
        f"pack, and in a fresh storage of ours. Opening and loading: the best of {ROUNDS} rounds, in turns, with the "
        "files in the system's cache.",
    )
    packed, fresh = file.with_suffix(".packed.durus"), directory.with_suffix(".fresh")
    _prepare(file, packed, fresh)
    peers: dict[str, Callable[[], Any]] = {
        "as built": lambda: FileStorage(str(file), readonly=True),
        "packed": lambda: FileStorage(str(packed), readonly=True),
        "ours": lambda: BerkeleyDBStorage(fresh),
    }
    opening, loading = _measure(peers)
    sizes = {"as built": _disk(file), "packed": _disk(packed), "ours": _disk(fresh)}
    for name in peers:
        story.figure(f"open {name}", opening[name])
        story.figure(f"load {name}", loading[name])
        story.figure(f"bytes {name}", sizes[name])
    rows = [["", "FileStorage, as built", "FileStorage, packed", "ours"]]
    rows.append(["open", *(seconds(opening[name]) for name in peers)])
    rows.append(["load a record, warm", *(f"{loading[name] * 1e6:.2f} us" for name in peers)])
    rows.append(["size on disk", *(megabytes(sizes[name]) for name in peers)])
    figures = story.figures
    for heat in ("cold", "warm"):
        file_storage, ours = figures[f"questions FileStorage {heat}"], figures[f"questions ours {heat}"]
        rows.append([f"the questions, {heat}", seconds(file_storage), "", seconds(ours)])
    story.table(rows)
    log = megabytes(_disk(fresh, "log.*"))
    story.line(f"Of ours, {log} are log, which is cut by itself and does not grow with the objects.")
    print()
    _alone(story)


def _alone(story: Story) -> None:
    """Print what has no peer."""
    figures = story.figures
    rows = [["what FileStorage does not do, or not so", ""]]
    rows.append(["migrated and verified", f"{figures['records migrated per second']:,.0f} records/s"])
    rows.append(["durable commits, served to two processes", f"{figures['served commits per second']:,.0f} /s"])
    rows.append(["conflicts found, done again", f"{figures['served conflicts']:,.0f}"])
    rows.append(["objects collected in the background", f"{figures['objects collected']:,.0f}"])
    pair = f"{seconds(figures['quiet commit p99'])} / {seconds(figures['collecting commit p99'])}"
    rows.append(["99 % of the commits below, quiet / meanwhile", pair])
    rows.append(["recovery after a kill", seconds(figures["recovery seconds"])])
    lost = f"{figures['acknowledged commits lost']:,.0f} of {figures['acknowledged commits']:,.0f}"
    rows.append(["acknowledged commits lost", lost])
    rows.append(["everything checked", seconds(figures["check seconds"])])
    story.table(rows)


def _prepare(file: Path, packed: Path, fresh: Path) -> None:
    shutil.copyfile(file, packed)
    storage = FileStorage(str(packed))
    storage.pack()
    storage.close()
    packed.with_name(packed.name + ".prepack").unlink(missing_ok=True)
    fresh.mkdir()
    source = FileStorage(str(packed), readonly=True)
    with BerkeleyDBStorage(fresh) as destination:
        destination.migrate(source.gen_oid_record())
    source.close()


def _measure(peers: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the best seconds to open each, and to load a record from each."""
    opening = dict.fromkeys(peers, float("inf"))
    loading = dict.fromkeys(peers, float("inf"))
    oids: list[bytes] = []
    for _ in range(ROUNDS):
        for name, opened in peers.items():
            started = time.perf_counter()
            storage = opened()
            opening[name] = min(opening[name], time.perf_counter() - started)
            if not oids:
                everything = [oid for oid, _ in storage.gen_oid_record(start_oid=b"\0" * 8)]
                oids = random.Random(1).choices(everything, k=LOADS)
            for oid in oids:
                storage.load(oid)
            started = time.perf_counter()
            for oid in oids:
                storage.load(oid)
            loading[name] = min(loading[name], (time.perf_counter() - started) / LOADS)
            storage.close()
    return opening, loading


def _disk(path: Path, pattern: str = "*") -> int:
    """Return the bytes on disk of a file, or of the files in a directory whose names match."""
    files = [path] if path.is_file() else list(path.glob(pattern))
    return sum(file.stat().st_blocks * 512 for file in files)
