"""A source that can be taken away from threads which may still be using it, without waiting for what they wait for.

A thread that archives may hang in a request of a store for a minute, when the storage is to be closed. It must not be
in the source from then on; where else it is does not matter.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from berkeleydb_storage.backup.source import Chunk, Copied, Moment, Source
from berkeleydb_storage.errors import StorageClosed
from berkeleydb_storage.files import Position


class GuardedSource:
    """Passes everything on to another source, until `stop`. Any thread."""

    def __init__(self, source: Source) -> None:
        """Let everybody in."""
        self._source = source
        self._changed = threading.Condition()
        self._inside = 0  # guarded by _changed
        self._stopped = False  # guarded by _changed

    @property
    def path(self) -> Path:
        """The directory of the storage."""
        return self._source.path

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._changed:
            if self._stopped:
                raise StorageClosed(f"{self.path} is being closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody in any more, and wait until nobody is. Who is stays there for a read or a flush."""
        with self._changed:
            self._stopped = True
            while self._inside:
                self._changed.wait()

    def look(self) -> Moment:
        """Do as `Source` says."""
        with self._entered():
            return self._source.look()

    def copy(self) -> Generator[Chunk, None, Copied]:
        """Do as `Source` says."""
        copying = self._source.copy()
        try:
            while True:
                with self._entered():
                    try:
                        chunk = next(copying)
                    except StopIteration as end:
                        return end.value  # type: ignore[no-any-return]
                yield chunk
        finally:
            copying.close()

    def log(self, start: Position, end: Position) -> Iterator[Chunk]:
        """Do as `Source` says."""
        chunks = iter(self._source.log(start, end))
        while True:
            with self._entered():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def hold(self, holder: str, start: Position, limit: int) -> None:
        """Do as `Source` says."""
        with self._entered():
            self._source.hold(holder, start, limit)

    def release(self, holder: str) -> None:
        """Do as `Source` says."""
        with self._entered():
            self._source.release(holder)

    def held(self, holder: str) -> Position | None:
        """Do as `Source` says."""
        with self._entered():
            return self._source.held(holder)
