"""What can be migrated: the storage files of Durus, recognised by their contents, and our own directories.

Nothing is written to a source. The two formats of Durus' own are read here, not through Durus: its classes keep an
index of all that was committed since the last pack in memory, and read at a third of the speed. Formats: the docstrings
of ``durus.shelf`` and ``durus.file_storage2``.

Invariants:

1. Each object comes once, in the order of the oids, as it was committed last.
2. A file is read whole or refused: what is cut off or inconsistent raises an error that names the place.
3. Memory does not grow with the source: an index of eight bytes an object is in a temporary file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sqlite3
import tempfile
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from berkeleydb_storage.errors import MigrationError, OptionError, StorageInUse, StorageNotFound
from berkeleydb_storage.format import pack_uint64
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.window import Window

SHELF = b"SHELF-1\n"
DFS20 = b"DFS20\0"
SQLITE = b"SQLite format 3\0"

REPORT_EVERY = 10_000
"""Records between two calls of `progress`."""
PAGE = 4096
"""Oids that share a page of the index."""

_uint32 = Struct(">L").unpack
_uint64 = Struct(">Q").unpack
_length_and_oid = Struct(">QQ").unpack
_short_length_and_oid = Struct(">LQ").unpack
_map_header = Struct(">QQQ").unpack
_pack_length = Struct(">L").pack
_position_at = Struct("=Q").unpack_from
_set_position = Struct("=Q").pack_into

Progress = Callable[[str, int], None]
Found = Generator[tuple[int, int], None, int]
"""Yields (oid, offset) of what is in a part of a file, and returns the offset behind that part."""


class Source(NamedTuple):
    """A source that is open."""

    kind: str
    """What it is: "FileStorage", "FileStorage2", "SqliteStorage" or "BerkeleyDBStorage"."""
    total: int
    """The number of its objects."""
    records: Iterator[tuple[bytes, bytes]]
    """(oid, record) of each; to be iterated over once."""


_Opener = Callable[[Path, Progress], AbstractContextManager[Source]]


@contextmanager
def open_source(
    path: str | os.PathLike[str], progress: Progress | None = None, *, key: str | None = None
) -> Iterator[Source]:
    """Open a storage file of Durus, or a directory of ours, for reading.

    Args:
        path: the file or directory.
        progress: called now and then while an index is made, with "indexing" and the number of records seen.
        key: what the directory is encrypted with.

    Raises:
        OptionError: there is a key, and it is a file.
        StorageNotFound: there is nothing at `path`.
        MigrationError: it is no storage, or it is cut off or damaged; the message says where. Iterating over the
            records raises it, too.
        StorageInUse: another process has it open for writing.
        BerkeleyDBStorageError: as ``BerkeleyDBStorage`` does, for a directory.
    """
    where = Path(path)
    if not where.exists():
        raise StorageNotFound(f"{where} does not exist")
    if where.is_dir():
        with BerkeleyDBStorage(where, read_only=True, key=key) as storage:
            yield Source("BerkeleyDBStorage", storage.get_size(), storage.gen_oid_record(batch_size=1000))
        return
    if key is not None:
        raise OptionError(f"{where} is a file of Durus, which is never encrypted: leave its key out")
    with _opener(where)(where, progress or _silent) as source:
        yield source


def _opener(path: Path) -> _Opener:
    with path.open("rb") as file:
        start = file.read(16)
    for magic, opener in _KINDS.items():
        if start.startswith(magic):
            return opener
    what = "is empty" if not start else f"begins with {start[:8]!r}"
    raise MigrationError(
        f"{path} is not a storage of Durus: it {what}; FileStorage, FileStorage2, SqliteStorage and the directories of "
        "this package are"
    )


@contextmanager
def _open_file_storage(path: Path, progress: Progress) -> Iterator[Source]:
    with _locked(path) as file, closing(_index(_in_shelf(file), progress)) as index:
        yield Source("FileStorage", len(index), _shelf_records(file, index))


@contextmanager
def _open_file_storage2(path: Path, progress: Progress) -> Iterator[Source]:
    with _locked(path) as file, closing(_index(_in_dfs20(file), progress)) as index:
        yield Source("FileStorage2", len(index), _dfs20_records(file, index))


@contextmanager
def _locked(path: Path) -> Iterator[_File]:
    with path.open("rb", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageInUse(
                f"{path} is in use by another process, which may commit to it: stop that first", None
            ) from None
        yield _File(path, file.fileno())


class _File(Window):
    """A file of Durus."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self.size = os.fstat(descriptor).st_size

    def cut_off(self, what: str, offset: int) -> MigrationError:
        return MigrationError(
            f"{self.path} is cut off or damaged: {what} at offset {offset:,} goes on beyond its end. If the last "
            "commit was interrupted, open a copy of the file with Durus' repair=True, which drops it, and migrate that"
        )

    def damaged(self, what: str) -> MigrationError:
        return MigrationError(f"{self.path} is damaged: {what}")


class _Index:
    """oid -> offset of its last record, in a temporary file; pages of oids that do not occur take no room."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._file.truncate(8 * PAGE)
        self._data = mmap.mmap(self._file.fileno(), 0)
        self._pages: dict[int, int] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, number: int, offset: int) -> None:
        """Note where the record of an object is; `offset` is not 0."""
        page = self._pages.get(number // PAGE)
        if page is None:
            page = self._add_page(number // PAGE)
        where = page + number % PAGE * 8
        if not _position_at(self._data, where)[0]:
            self._length += 1
        _set_position(self._data, where, offset)

    def _add_page(self, page: int) -> int:
        offset = self._pages[page] = 8 * PAGE * len(self._pages)
        if offset == len(self._data):
            self._data.close()
            self._file.truncate(2 * offset)
            self._data = mmap.mmap(self._file.fileno(), 0)
        return offset

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (oid, offset) in the order of the oids."""
        for page in sorted(self._pages):
            start = self._pages[page]
            for index, offset in enumerate(array("Q", self._data[start : start + 8 * PAGE])):
                if offset:
                    yield page * PAGE + index, offset

    def close(self) -> None:
        self._data.close()
        self._file.close()


def _index(found: Iterator[tuple[int, int]], progress: Progress) -> _Index:
    index, seen = _Index(), 0
    try:
        for number, offset in found:
            index.add(number, offset)
            seen += 1
            if seen % REPORT_EVERY == 0:
                progress("indexing", seen)
    except BaseException:
        index.close()
        raise
    return index


def _in_shelf(file: _File) -> Iterator[tuple[int, int]]:
    """Yield (oid, offset) of every record of a FileStorage: a transaction, the offset map, more transactions."""
    position = yield from _shelf_transaction(file, len(SHELF))
    position = _after_map(file, position)
    while position < file.size:
        position = yield from _shelf_transaction(file, position)


def _shelf_transaction(file: _File, start: int) -> Found:
    position = start + 8
    if position > file.size:
        raise file.cut_off("the transaction", start)
    end: int = position + _uint64(file.at(start, 8))[0]
    if end > file.size:
        raise file.cut_off("the transaction", start)
    at = file.at
    while position < end:
        if position + 16 > end:
            raise _impossible_length(file, position)
        length, number = _length_and_oid(at(position, 16))
        if length < 8 or position + 8 + length > end:
            raise _impossible_length(file, position)
        yield number, position
        position += 8 + length
    return end


def _impossible_length(file: _File, offset: int) -> MigrationError:
    return file.damaged(f"the record at offset {offset:,} has an impossible length")


def _after_map(file: _File, start: int) -> int:
    """Return where the map of offsets ends; it is not used, because it lacks what was committed after the last pack."""
    if start + 24 > file.size:
        raise file.cut_off("the map of offsets", start)
    length, word, words = _map_header(file.at(start, 24))
    if length != 16 + word * words:
        raise file.damaged(f"the map of offsets at offset {start:,} contradicts itself")
    end: int = start + 8 + length
    if end > file.size:
        raise file.cut_off("the map of offsets", start)
    return end


def _shelf_records(file: _File, index: _Index) -> Iterator[tuple[bytes, bytes]]:
    at = file.at
    for number, offset in index:
        yield pack_uint64(number), at(offset + 16, _uint64(at(offset, 8))[0] - 8)


def _in_dfs20(file: _File) -> Iterator[tuple[int, int]]:
    """Yield (oid, offset) of every record of a FileStorage2: transactions, with an index among them."""
    position = len(DFS20) + 8
    index = _uint64(file.at(len(DFS20), 8))[0] if file.size >= position else 0
    if not position <= index <= file.size - 8:
        raise file.cut_off("the index", index)
    while position < file.size:
        if position == index:
            position += 8 + _uint64(file.at(position, 8))[0]
        else:
            position = yield from _dfs20_transaction(file, position)
    if position > file.size:
        raise file.cut_off("the index", index)


def _dfs20_transaction(file: _File, start: int) -> Found:
    position, size, at = start, file.size, file.at
    while position + 4 <= size:
        length = _uint32(at(position, 4))[0]
        if not length:
            return position + 4
        if position + 4 + length > size:
            break
        if length < 12:
            raise _impossible_length(file, position)
        yield _short_length_and_oid(at(position, 12))[1], position
        position += 4 + length
    raise file.cut_off("the transaction", start)


def _dfs20_records(file: _File, index: _Index) -> Iterator[tuple[bytes, bytes]]:
    at = file.at
    for number, offset in index:
        yield pack_uint64(number), at(offset + 4, _uint32(at(offset, 4))[0])


@contextmanager
def _open_sqlite_storage(path: Path, _: Progress) -> Iterator[Source]:
    """Open a SqliteStorage; both statements see the same state."""
    with _sqlite_errors(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    with closing(connection):
        connection.text_factory = bytes
        with _sqlite_errors(path):
            connection.execute("BEGIN")
            total = connection.execute("SELECT count(*) FROM objects").fetchone()[0]
        yield Source("SqliteStorage", total, _sqlite_records(path, connection))


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise MigrationError(f"{path} cannot be read as a SqliteStorage of Durus: {error}") from error


def _sqlite_records(path: Path, connection: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
    with _sqlite_errors(path):
        for number, data, refs in connection.execute("SELECT id, data, refs FROM objects ORDER BY id"):
            if number < 0 or not isinstance(data, bytes) or not isinstance(refs, bytes):
                raise MigrationError(f"{path} is damaged: the row of object {number} is not one of Durus")
            oid = pack_uint64(number)
            yield oid, b"".join((oid, _pack_length(len(data)), data, refs))


_KINDS: dict[bytes, _Opener] = {SHELF: _open_file_storage, DFS20: _open_file_storage2, SQLITE: _open_sqlite_storage}


def _silent(activity: str, number: int) -> None:
    """Show no progress."""
