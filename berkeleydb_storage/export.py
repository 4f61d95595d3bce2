"""Writes a storage into a ``FileStorage`` of Durus: the way home.

Writes one file, under a temporary name until it is complete, verified and on the disk. Memory does not grow with the
number of objects. Format: the docstring of ``durus.shelf``.

Invariants:

1. The file appears under its name whole, or not at all; a file that exists is never replaced.
2. It holds every object of the storage, garbage included, and nothing else.
3. What Durus reads back from it is what was written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple
from zlib import crc32

from durus.file import File
from durus.file_storage import FileStorage
from durus.utils import ShortRead

from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.format import pack_uint64, unpack_uint64
from berkeleydb_storage.session import Session
from berkeleydb_storage.tally import record_digest
from berkeleydb_storage.window import Window

SHELF = b"SHELF-1\n"
BUFFER = 1 << 20
REPORT_EVERY = 2000
"""Records between two calls of `progress`."""
WORDS = 4096
"""Words of the map of offsets that are written at a time."""

_length_and_oid = Struct(">QQ").unpack
_map_header = Struct(">QQQ").pack

Progress = Callable[[str, int], None]


class _Written(NamedTuple):
    objects: int
    digest: int
    highest: int
    """The highest oid, -1 where there is no object."""


def export(storage: Session, path: str | os.PathLike[str], progress: Progress | None = None) -> int:
    """Write all objects of a storage into the new file `path`.

    Args:
        storage: it should not change meanwhile: what is committed while this runs may be in the file, or not.
        path: must not exist; its directory must.
        progress: called now and then with "exporting", "indexing" or "verifying" and the number of objects so far.

    Returns:
        The number of objects.

    Raises:
        FileExistsError: there is something at `path`.
        BerkeleyDBStorageError: the file, read back, is not what was written; or the storage cannot be read.
        OSError: it cannot be written.
    """
    progress = progress or _silent
    with new_file(path) as (file, temporary):
        written = _write_records(file, storage, progress)
        map_digest = _write_map(temporary, file, written, progress)
        file.flush()
        _verify(temporary, written, map_digest, progress)
    return written.objects


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file that gets its name, `path`, when the block has ended well and its contents are on the disk.

    Yields:
        The file, for reading and writing, and the path that it has until then, which ends in ``.new``.

    Raises:
        FileExistsError: there is something at `path`.
        BerkeleyDBStorageError: another process is writing there.
    """
    where = Path(path)
    _require_free(where)
    temporary = where.with_name(where.name + ".new")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=BUFFER) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BerkeleyDBStorageError(f"{temporary} is in use: another process is writing {where}") from None
        try:
            file.truncate(0)
            yield file, temporary
            file.flush()
            os.fsync(file.fileno())
            _require_free(where)
            temporary.rename(where)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_directory(where.parent)


def _require_free(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists, and is not replaced: remove it, or choose another name")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_records(file: BinaryIO, storage: Session, progress: Progress) -> _Written:
    """Write the first transaction, in the order of the oids."""
    count = digest = size = 0
    highest = -1
    file.write(SHELF + pack_uint64(0))
    for oid, record in storage.gen_oid_record(batch_size=1000):
        number = unpack_uint64(oid)
        if number <= highest:
            raise BerkeleyDBStorageError(f"object {number} follows object {highest}: the storage is out of order")
        highest = number
        file.write(b"".join((pack_uint64(8 + len(record)), oid, record)))
        size += 16 + len(record)
        count += 1
        digest += record_digest(record)
        if count % REPORT_EVERY == 0:
            progress("exporting", count)
    progress("exporting", count)
    file.seek(len(SHELF))
    file.write(pack_uint64(size))
    return _Written(count, digest, highest)


def _write_map(path: Path, file: BinaryIO, written: _Written, progress: Progress) -> int:
    """Write the map of offsets: a word for each oid, and one more, as Durus makes it; return a digest of it."""
    start = file.seek(0, os.SEEK_END)
    words = written.highest + 2 if written.objects else 0
    size = (start + words + 1).bit_length() + 7 >> 3
    header = _map_header(16 + words * size, size, words)
    digest = crc32(header)
    file.write(header)
    file.flush()
    content = _words(Window(path, file.fileno()), start, words)
    for done in range(0, words, WORDS):
        progress("indexing", done)
        part = b"".join([word.to_bytes(size, "big") for word in islice(content, WORDS)])
        digest = crc32(part, digest)
        file.write(part)
    return digest


def _words(file: Window, start: int, words: int) -> Iterator[int]:
    """Yield the words of the map: for an object its offset, for a hole the hole before it, plus `start`.

    The first hole leads to the last word, which is always one.
    """
    hole, following, position = words - 1, 0, len(SHELF) + 8
    while position < start:
        length, number = _length_and_oid(file.at(position, 16))
        for index in range(following, number):
            yield hole + start
            hole = index
        yield position
        following = number + 1
        position += 8 + length
    for index in range(following, words):
        yield hole + start
        hole = index


def _verify(path: Path, written: _Written, map_digest: int, progress: Progress) -> None:
    """Read the file with Durus and compare."""
    objects = digest = 0
    with closing(File(str(path), readonly=True)) as file:
        try:
            storage = FileStorage(file, readonly=True)
            for oid, record in storage.gen_oid_record():
                objects += 1
                digest += record_digest(record)
                if not record.startswith(oid):
                    break
                if objects % REPORT_EVERY == 0:
                    progress("verifying", objects)
            file.seek(storage.shelf.get_offset_map().get_start())
            found = (objects, digest, _digest_of_rest(file))
        except (AssertionError, ValueError, ShortRead) as error:
            raise _not_what_was_written(path) from error
    if found != (written.objects, written.digest, map_digest):
        raise _not_what_was_written(path)
    progress("verifying", objects)


def _digest_of_rest(file: File) -> int:
    digest = 0
    while part := file.read(BUFFER):
        digest = crc32(part, digest)
    return digest


def _not_what_was_written(path: Path) -> BerkeleyDBStorageError:
    return BerkeleyDBStorageError(f"{path}, read back, is not what was written: is the disk sound? It is removed")


def _silent(activity: str, number: int) -> None:
    """Show no progress."""
