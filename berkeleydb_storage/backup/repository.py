"""A place with backups: what is in it is written once, verified whenever it is read, and never overwritten.

Joins a store, which keeps objects by name, and the catalog, which knows what the names mean. For one thread.

Invariants:

1. A base counts from its manifest on, which is written when all else is there.
2. What is read is compared with its checksum before it is used, or, of large files, before the reading ends.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.catalog import (
    COMPRESSED,
    DIGITS,
    FORMAT,
    MANIFEST,
    PIECES,
    RUNS,
    UNKNOWN,
    Base,
    Manifest,
    Piece,
    Run,
    catalog,
    moment_name,
)
from berkeleydb_storage.backup.source import Chunk, Copied, Moment, Source
from berkeleydb_storage.backup.stores import Store
from berkeleydb_storage.errors import BackupError, DamagedBackup, ObjectExists, StoreUnreachable
from berkeleydb_storage.files import Position

PIECE = 16 << 20
"""Bytes of a piece at most: it is kept in memory."""
LARGEST = 64 << 20
"""Bytes of a piece, and of a manifest, that are read at most."""

Report = Callable[[str, int], None]
"""Called with what is being done, and how many bytes of it are; what it raises ends the work."""


class Repository:
    """What is in a store."""

    def __init__(self, store: Store) -> None:
        """Read nothing yet."""
        self.store = store

    def bases(self, identity: str | None = None) -> list[Base]:
        """Return the bases of a storage, or of all, with their manifests, oldest first.

        Raises:
            BackupError: the store cannot be read.
        """
        found = catalog(self.store.list(f"{identity}/" if identity else ""))
        return [noted for base in found if (noted := self._noted(base)) is not None]

    def _noted(self, base: Base) -> Base | None:
        """Return a base with its manifest, if it has one that is sound; None where that was removed just now."""
        if MANIFEST not in base.names:
            return base
        try:
            return replace(base, manifest=self.manifest(base))
        except DamagedBackup:  # `verify` says so
            return base
        except StoreUnreachable:
            raise
        except BackupError:
            if f"{base.folder}/{MANIFEST}" in self.store.list(base.folder):
                raise
            return None

    def again(self, base: Base) -> Base:
        """Return a base with what is in its folder now: pieces may have come, and those that are in them gone."""
        now = catalog(self.store.list(base.folder))
        return replace(now[0], manifest=base.manifest) if now else replace(base, pieces=(), runs=(), names=frozenset())

    def manifest(self, base: Base) -> Manifest:
        """Return what is noted of a base.

        Raises:
            DamagedBackup: it is not what this package writes. BackupError: a later version wrote it, or as `bases`.
        """
        name = f"{base.folder}/{MANIFEST}"
        try:
            values = json.loads(_limited(self.store.read(name)))
            sound = values.pop("sha256") == digest_of(values)
            version = values.pop("format")
            if sound and version > FORMAT:
                raise BackupError(
                    f"{self.store.url}/{name} has format {version}, and this version of the package reads up to "
                    f"{FORMAT}: install a newer durus-berkeleydbstorage"
                )
            if not sound:
                raise ValueError("its checksum is wrong")
            known = {name: values.pop(name) for name in list(values) if name in Manifest.__dataclass_fields__}
            positions = {name: Position(*map(int, known[name])) for name in ("first", "end")}
            manifest = Manifest(**{**known, **positions}, extra=values)
            if manifest.identity != base.identity or manifest.bytes < 0:
                raise ValueError("it is of another storage")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedBackup(
                f"{self.store.url}/{name} is damaged ({error}): restore from an earlier backup"
            ) from error
        return manifest

    def add_base(self, source: Source, report: Report) -> Base:
        """Copy a storage, and return what was made of it.

        Raises:
            BackupError: it cannot be written; what there is of it does not count. As `Source.copy`.
        """
        started = time.monotonic()
        moment = source.look()
        base = Base(moment.identity.hex(), moment_name(moment.tid, moment.time))
        compressed = self.store.compressed
        failpoints.reached("backup.begun")
        files = _Files(source.copy(), report)
        for name, chunks in files:
            self._write(f"{base.folder}/{name}", chunks, compressed=compressed)
        copied = files.copied
        if copied is None or copied.moment.identity != moment.identity:
            raise BackupError(f"{source.path} got a new identity while it was copied: make the backup again")
        failpoints.reached("backup.copied")
        manifest = Manifest(
            tid=copied.moment.tid,
            time=copied.moment.time,
            objects=copied.moment.objects,
            seconds=round(time.monotonic() - started, 3),
            storage=str(source.path),
            identity=base.identity,
            first=copied.first,
            end=copied.moment.end,
            description=copied.description,
            files=files.noted,
            compressed=compressed,
        )
        values = {"format": FORMAT, **asdict(manifest)}
        values.update(values.pop("extra"))
        values["sha256"] = digest_of(values)
        self.store.write(f"{base.folder}/{MANIFEST}", [json.dumps(values, indent=1).encode() + b"\n"])
        failpoints.reached("backup.noted")
        return replace(base, manifest=manifest)

    def add_pieces(
        self, source: Source, base: Base, start: Position, moment: Moment, report: Report | None = None
    ) -> list[Piece]:
        """Continue a base with the log from `start` to the end of a state of the same storage; return what was added.

        Raises:
            LogGone: the log from `start` on is not there any more. BackupError: it cannot be written. As `Source.log`.
        """
        added: list[Piece] = []
        done = 0
        for position, end, data in _slices(source, start, moment.end):
            last = end == moment.end
            digest = hashlib.sha256(data).hexdigest()[:DIGITS]
            tid, when = (moment.tid, moment.time) if last else (UNKNOWN, UNKNOWN)
            piece = Piece(position, end, tid, when, digest)
            with suppress(ObjectExists):  # another writes there too, the same bytes: the name has their checksum
                self._write(f"{base.folder}/{PIECES}/{piece.name}", [data], compressed=self.store.compressed)
            failpoints.reached("backup.piece")
            added.append(piece)
            done += len(data)
            if report is not None:
                report("copying the log", done)
        return added

    def add_run(self, base: Base, run: Run, values: dict[str, Any]) -> None:
        """Note that an incremental backup was made, which ends with a piece of `base`."""
        text = json.dumps({"format": FORMAT, "tid": run.tid, "time": run.time, **values}, indent=1)
        self.store.write(f"{base.folder}/{RUNS}/{run.name}", [text.encode() + b"\n"])

    def run_values(self, base: Base, run: Run) -> dict[str, Any]:
        """Return what is noted of an incremental backup; nothing where that is damaged: it is for people alone."""
        try:
            values = json.loads(_limited(self.store.read(f"{base.folder}/{RUNS}/{run.name}")))
            return values if isinstance(values, dict) else {}
        except (ValueError, RecursionError, DamagedBackup):
            return {}

    def read_file(self, base: Base, name: str) -> Iterator[bytes]:
        """Give the bytes of a file of a base, and compare them with its checksum at the end.

        Raises:
            DamagedBackup: it is missing or damaged. BackupError: it cannot be read.
        """
        noted, hashed, size = base.noted.files[name], hashlib.sha256(), 0
        where = self._present(base, name + (COMPRESSED if base.noted.compressed else ""))
        for data in self._read(where):
            hashed.update(data)
            size += len(data)
            if size > noted["bytes"]:
                break
            yield data
        if (size, hashed.hexdigest()) != (noted["bytes"], noted["sha256"]):
            raise DamagedBackup(
                f"{self.store.url}/{where} is damaged, its checksum is wrong: restore an earlier backup"
            )

    def read_piece(self, base: Base, piece: Piece) -> bytes:
        """Return the log that is in a piece.

        Raises:
            DamagedBackup: it is missing or damaged. BackupError: it cannot be read.
        """
        inner = f"{PIECES}/{piece.name}"
        where = self._present(base, inner + COMPRESSED if inner + COMPRESSED in base.names else inner)
        data = _limited(self._read(where))
        if hashlib.sha256(data).hexdigest()[:DIGITS] != piece.digest or not _fits(piece, len(data)):
            raise DamagedBackup(f"{self.store.url}/{where} is damaged, its checksum is wrong: use an earlier state")
        return data

    def _present(self, base: Base, name: str) -> str:
        where = f"{base.folder}/{name}"
        if name not in base.names:
            raise DamagedBackup(f"{self.store.url}/{where} is missing: restore an earlier state, or another backup")
        return where

    def _write(self, name: str, chunks: Iterable[bytes], *, compressed: bool) -> None:
        if compressed:
            self.store.write(name + COMPRESSED, _compressed(chunks))
        else:
            self.store.write(name, chunks)

    def _read(self, name: str) -> Iterator[bytes]:
        chunks = self.store.read(name)
        if not name.endswith(COMPRESSED):
            yield from chunks
            return
        decompress = zlib.decompressobj(wbits=31)
        try:
            for chunk in chunks:
                while chunk:
                    yield decompress.decompress(chunk, PIECE)
                    chunk = decompress.unconsumed_tail
            yield decompress.flush()
        except zlib.error as error:
            raise DamagedBackup(f"{self.store.url}/{name} is damaged ({error}): restore an earlier backup") from error
        if not decompress.eof:
            raise DamagedBackup(f"{self.store.url}/{name} is cut off: restore an earlier backup")


def digest_of(values: dict[str, Any]) -> str:
    """Return the checksum of a manifest: it is of what is in it, and not of how that is written."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class _Files:
    """The chunks of a copy, by file: (name, its chunks), which are to be used up before the next one."""

    def __init__(self, copying: Generator[Chunk, None, Copied], report: Report) -> None:
        self.copied: Copied | None = None
        """What was copied, when all is."""
        self.noted: dict[str, dict[str, Any]] = {}
        self._copying = copying
        self._report = report
        self._done = 0
        self._next: Chunk | None = None

    def __iter__(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        try:
            self._advance()
            while self._next is not None:
                yield self._next.name, self._file(self._next.name)
        finally:
            self._copying.close()

    def _file(self, name: str) -> Iterator[bytes]:
        hashed, size = hashlib.sha256(), 0
        while self._next is not None and self._next.name == name:
            data = self._next.data
            hashed.update(data)
            size += len(data)
            yield data
            self._done += len(data)
            self._report("copying", self._done)
            self._advance()
        self.noted[name] = {"bytes": size, "sha256": hashed.hexdigest()}

    def _advance(self) -> None:
        try:
            self._next = next(self._copying)
        except StopIteration as end:
            self._next, self.copied = None, end.value


def _slices(source: Source, start: Position, end: Position) -> Iterator[tuple[Position, Position, bytes]]:
    """Yield the log from `start` to `end` as (start, end, bytes) of one file each, and of `PIECE` bytes at most."""
    number, offset = start
    while (number, offset) < end:
        stop = Position(number, end.offset) if number == end.log else Position(number + 1, 0)
        at, parts, size = offset, [], 0
        for chunk in source.log(Position(number, offset), stop):
            parts.append(chunk.data)
            size += len(chunk.data)
            if size >= PIECE:
                yield Position(number, at), Position(number, at + size), b"".join(parts)
                at, parts, size = at + size, [], 0
        if size or stop.log > number:
            yield Position(number, at), stop, b"".join(parts)
        number, offset = (number + 1, 0) if number < end.log else end


def _fits(piece: Piece, size: int) -> bool:
    """Tell whether a piece can have that many bytes; of the end of a log file it is not known how many there are."""
    return piece.end.log != piece.start.log or piece.end.offset - piece.start.offset == size


def _compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compress = zlib.compressobj(1, wbits=31)
    for chunk in chunks:
        yield compress.compress(chunk)
    yield compress.flush()


def _limited(chunks: Iterable[bytes]) -> bytes:
    """Return all that is given.

    Raises:
        DamagedBackup: it is more than a piece or a manifest has.
    """
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > LARGEST:
            raise DamagedBackup(
                f"a piece or manifest has over {LARGEST} bytes: it is none of ours, use an earlier state"
            )
    return b"".join(parts)
