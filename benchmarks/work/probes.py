"""What runs in a process of its own. Each imports what it needs inside, to measure what that takes, too."""

from __future__ import annotations

import time

from benchmarks.method.usage import disk, forget_highest, memory


def _loads(storage, count: int, number: int) -> float:
    """Return how many random objects a second are loaded."""
    import random

    oids = [n.to_bytes(8, "big") for n in random.Random(3).choices(range(count), k=number)]
    load = storage.load
    started = time.perf_counter()
    for oid in oids:
        load(oid)
    return number / (time.perf_counter() - started)


def load_ours(path: str, count: int, number: int) -> dict[str, float]:
    """Load random objects from our storage: right after it was opened, and once more."""
    from berkeleydb_storage import BerkeleyDBStorage

    with BerkeleyDBStorage(path) as storage:
        return {"first": _loads(storage, count, number), "again": _loads(storage, count, number), "peak": memory()[1]}


def load_file_storage(path: str, count: int, number: int) -> dict[str, float]:
    """Load random objects from a FileStorage: right after it was opened, and once more."""
    from durus.file_storage import FileStorage

    storage = FileStorage(path, readonly=True)
    return {"first": _loads(storage, count, number), "again": _loads(storage, count, number), "peak": memory()[1]}


def migrate_records(path: str, count: int) -> dict[str, float]:
    """Migrate made-up records into our storage."""
    from pathlib import Path

    from benchmarks.objects.records import records
    from benchmarks.peers.durus import ours

    before = memory()[0]
    started = time.perf_counter()
    with ours(Path(path)) as storage:
        storage.migrate(records(count))
        taken = time.perf_counter() - started
    return _migrated(path, taken, before)


def migrate_file_storage(path: str, source: str) -> dict[str, float]:
    """Migrate a FileStorage into our storage; opening the source is not counted."""
    from pathlib import Path

    from durus.file_storage import FileStorage

    from benchmarks.peers.durus import ours

    opened = FileStorage(source, readonly=True)
    before = memory()[0]
    started = time.perf_counter()
    with ours(Path(path)) as storage:
        storage.migrate(opened.gen_oid_record())
        taken = time.perf_counter() - started
    return _migrated(path, taken, before)


def shelf_records(path: str, count: int) -> dict[str, float]:
    """Write made-up records as a FileStorage, the way that its pack() does."""
    from durus.file import File
    from durus.shelf import Shelf

    from benchmarks.objects.records import records

    before = memory()[0]
    started = time.perf_counter()
    shelf = Shelf(File(path), items=records(count))
    taken = time.perf_counter() - started
    shelf.close()
    return _migrated(path, taken, before)


def bare_records(path: str, count: int) -> dict[str, float]:
    """Put made-up records into a table of Berkeley DB, nothing else."""
    from pathlib import Path

    from benchmarks.objects.records import records
    from benchmarks.peers.bare import Bare

    before = memory()[0]
    started = time.perf_counter()
    bare = Bare(Path(path))
    bare.fill(records(count))
    taken = time.perf_counter() - started
    bare.close()
    return _migrated(path, taken, before)


def _migrated(path: str, taken: float, before: float) -> dict[str, float]:
    peak = memory()[1]
    return {"seconds": taken, "peak": peak, "increase": peak - before, **disk(path)}


def pack_ours(path: str, live: int) -> dict[str, float]:
    """Pack our storage, of which `live` objects are to stay, while nobody else uses it."""
    from berkeleydb_storage import BerkeleyDBStorage, GarbageManual

    with BerkeleyDBStorage(path, garbage_collection=GarbageManual()) as storage:
        found = _packed(storage, live)
        if faults := storage.check().faults:
            raise AssertionError(faults[0])
    return found


def pack_file_storage(path: str, live: int) -> dict[str, float]:
    """Pack a FileStorage, of which `live` objects are to stay."""
    from durus.file_storage import FileStorage

    storage = FileStorage(path)
    found = _packed(storage, live)
    storage.close()
    return found


def _packed(storage, live: int) -> dict[str, float]:
    """Pack what is in the system's cache and, as far as it fits, in that of the storage."""
    before = sum(1 for _ in storage.gen_oid_record())
    forget_highest()
    opened = memory()[0]
    started = time.perf_counter()
    storage.pack()
    taken = time.perf_counter() - started
    peak = memory()[1]
    if (left := sum(1 for _ in storage.gen_oid_record())) != live:
        raise AssertionError(f"{left} objects are left, not {live}")
    return {"seconds": taken, "objects": before, "open": opened, "increase": peak - opened}
