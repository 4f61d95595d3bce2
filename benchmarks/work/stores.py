"""The large stores that several benchmarks look at: each is built once a run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from benchmarks.method.measure import progress
from benchmarks.objects.records import fill
from benchmarks.peers.durus import FILE, OPENERS, OURS

PACKED = "FileStorage, packed"


class Stores:
    """Keeps what was built in a directory. Whoever gets one must leave its objects as they are."""

    def __init__(self, directory: Path) -> None:
        """Build nothing yet."""
        self._directory = directory

    def get(self, name: str, count: int) -> Path:
        """Return the path of a closed store of `count` objects, built in commits of a thousand."""
        path = self._directory / f"{name} {count}"
        if not path.exists():
            progress(f"building {count:,} objects: {name}")
            with closing(OPENERS[OURS if name == OURS else FILE](path)) as storage:
                fill(storage, count)
                if name == PACKED:
                    storage.pack()
        return path
