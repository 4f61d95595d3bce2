"""A store behind a URL, through fsspec: Azure Blob Storage, S3, Google Cloud Storage, SFTP and others.

Owns the connection, which is made when it is needed, and made anew after it failed.

Invariants:

1. An object that has its name is whole: an object store shows what was put there when all of it is, and elsewhere it
   is written under ``.making`` and renamed. Where neither is offered, it is removed again if writing it failed.
2. Nothing is overwritten: the store itself refuses that where it can, elsewhere it is looked first.
3. What was written is looked at, whether it has all of its bytes, before `write` returns.
4. No message and no line of the log holds credentials.
5. No listing comes from a cache.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

from berkeleydb_storage.backup.stores.patience import Patience
from berkeleydb_storage.backup.stores.store import HIDDEN, verify_name, without_credentials
from berkeleydb_storage.errors import BackupError, ObjectExists, StoreUnreachable

TIMEOUT = 60.0
"""Seconds that a request may take: a part of `PART` bytes in one."""
PART = 8 << 20
"""Bytes that are sent or fetched in one request; what is shorter is put in one. A part of S3 has at least 5 MiB."""
MANY, GROWN = 1000, 8
"""Parts after which they grow, and how much: an object of S3 has 10,000 at most."""
OLD = 86400.0
"""Seconds after which what is under ``.making`` was left by a writer that was killed."""

PACKAGES = {
    **dict.fromkeys(("abfs", "abfss", "az"), ("azure", "adlfs")),
    **dict.fromkeys(("s3", "s3a"), ("s3", "s3fs")),
    **dict.fromkeys(("gs", "gcs"), ("gcs", "gcsfs")),
    **dict.fromkeys(("sftp", "ssh"), ("sftp", "paramiko")),
}
"""Scheme -> the extra of this package that installs what it needs, and the package that does the work."""
ATOMIC = {"abfs", "abfss", "az", "s3", "s3a", "gs", "gcs"}
"""Object stores: they show what is whole, and can be told to refuse what exists."""
Found = list[tuple[str, int]]
"""Paths and bytes."""
_SECRET = re.compile("key|secret|token|pass|sas|cred|connection", re.IGNORECASE)
_REFUSED = re.compile("401|403|auth|credential|forbidden|denied|permission", re.IGNORECASE)


class _Line:
    """A connection: fsspec's file system, and the path of the root in it."""

    def __init__(self, system: Any, root: str, patience: Patience) -> None:
        self.system = system
        self.root = root
        self._patience = patience
        self._turn = nullcontext() if getattr(system, "async_impl", False) else threading.Lock()

    def call(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what `work` returns; one at a time where the file system is not made for more: SFTP mixes up answers.

        Raises:
            TimeoutError: it took too long, with the wait for others.
        """

        def wait_and_work() -> Any:
            with self._turn:
                return work(*arguments, **named)

        return self._patience.call(wait_and_work)


class FsspecStore:
    """Objects below a URL."""

    compressed = True

    def __init__(self, url: str, options: Mapping[str, Any], *, timeout: float = TIMEOUT) -> None:
        """Connect to nothing yet.

        Args:
            url: where; what fsspec knows.
            options: for its file system.
            timeout: seconds that a request may take.

        Raises:
            BackupError: a package is not installed, or nothing is known of such URLs.
        """
        self.url = without_credentials(url).rstrip("/")
        self._where = url
        self._scheme = urlsplit(url).scheme
        self._options = dict(options)
        self._patience = Patience(timeout)
        self._lock = threading.RLock()
        self._connection: _Line | None = None  # guarded by _lock
        self._tidied = False  # set once, by any thread
        self._verify_installed()

    def _verify_installed(self) -> None:
        extra, package = PACKAGES.get(self._scheme, ("archive", "fsspec"))
        install = f"pip install 'durus-berkeleydbstorage[{extra}]'"
        try:
            fsspec = importlib.import_module("fsspec")
            fsspec.get_filesystem_class(self._scheme)
        except ValueError:
            raise BackupError(f"{self.url} is of no use: fsspec knows no URLs that begin with {self._scheme}") from None
        except ImportError as error:
            raise BackupError(f"{self.url} needs {package}, which is not installed: {install} ({error})") from None

    # -- the connection ------------------------------------------------------------------------------------------------

    def _connected(self) -> _Line:
        with self._lock:
            if self._connection is None:
                self._connection = self._patience.call(self._connect)
            return self._connection

    def _connect(self) -> _Line:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self._where, skip_instance_cache=True, **self._options)
        return _Line(system, root.rstrip("/"), self._patience)

    def _forget(self) -> None:
        with self._lock:
            self._connection = None

    @property
    def _atomic(self) -> bool:
        return self._scheme in ATOMIC

    # -- the methods of Store ------------------------------------------------------------------------------------------

    def list(self, prefix: str = "") -> dict[str, int]:
        """Do what `Store.list` says."""
        prefix = prefix.strip("/")
        if prefix:
            verify_name(prefix)
        with self._explaining():
            line = self._connected()
            start = f"{line.root}/{prefix}".rstrip("/")
            find = self._find_at_once if self._atomic else self._walk
            found = line.call(find, line.system, start)
        named = ((path.removeprefix(line.root).strip("/"), size) for path, size in found)
        return {name: size for name, size in sorted(named) if name and not name.startswith(".")}

    def _find_at_once(self, system: Any, start: str) -> Found:
        system.invalidate_cache()
        try:
            found = system.find(start, detail=True)
        except FileNotFoundError:
            return []
        if not isinstance(found, dict):
            return []
        return [(path, info["size"]) for path, info in found.items() if info["type"] == "file"]

    def _walk(self, system: Any, start: str) -> Found:
        """Do what fsspec's own walk does, which takes a directory that cannot be read for one that is empty."""
        system.invalidate_cache()
        try:
            entries = system.ls(start, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found: Found = []
        for entry in entries:
            path = entry["name"].rstrip("/")
            if path == start or path.rpartition("/")[2].startswith("."):
                continue
            found += self._walk(system, path) if entry["type"] == "directory" else [(path, entry["size"])]
        return found

    def read(self, name: str) -> Iterator[bytes]:
        """Do what `Store.read` says."""
        verify_name(name)
        with self._explaining(name):
            line = self._connected()
            size = self._size(line, f"{line.root}/{name}")
        for start in range(0, size, PART):
            end = min(start + PART, size)
            with self._explaining(name):
                part = line.call(line.system.cat_file, f"{line.root}/{name}", start=start, end=end)
                if len(part) != end - start:
                    raise OSError(f"{len(part)} bytes came, and not {end - start}")
            yield part

    def _size(self, line: _Line, path: str) -> int:
        line.system.invalidate_cache()
        info = line.call(line.system.info, path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return int(info["size"])

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Do what `Store.write` says."""
        verify_name(name)
        parts = _parts(chunks)
        first = list(islice(parts, 2))
        with self._explaining(name):
            line = self._connected()
            path = f"{line.root}/{name}"
            if not self._atomic:
                self._refuse(line, path)
        if self._renames(line):
            size = self._write_hidden(line, name, chain(first, parts))
        elif len(first) < 2:
            size = self._put(line, name, b"".join(first))
        else:
            size = self._write_there(line, name, chain(first, parts))
        with self._explaining(name):
            if (found := self._size(line, path)) != size:
                raise OSError(f"{size} bytes were written, and {found} are there")

    def _refuse(self, line: _Line, path: str) -> None:
        line.system.invalidate_cache()
        if line.call(line.system.exists, path):
            raise FileExistsError(path)

    def _renames(self, line: _Line) -> bool:
        """Tell whether to rename what is whole, which whoever has no `mv` of his own does by copying."""
        from fsspec import AbstractFileSystem

        return not self._atomic and type(line.system).mv is not AbstractFileSystem.mv

    def _put(self, line: _Line, name: str, data: bytes) -> int:
        """Make an object by one request."""
        path = f"{line.root}/{name}"
        with self._explaining(name):
            if self._atomic:
                line.call(line.system.pipe_file, path, data, mode="create")
            else:
                self._make_parent(line, path)
                line.call(line.system.pipe_file, path, data)
        return len(data)

    def _write_there(self, line: _Line, name: str, parts: Iterable[bytes]) -> int:
        """Write under the final name."""
        path = f"{line.root}/{name}"
        if self._atomic:
            return self._stream(line, path, name, parts)
        try:
            with self._explaining(name):
                self._make_parent(line, path)
            return self._stream(line, path, name, parts)
        except BaseException:
            self._discard(line, path)
            raise

    def _write_hidden(self, line: _Line, name: str, parts: Iterable[bytes]) -> int:
        """Write under another name, and rename that."""
        path, hidden = f"{line.root}/{name}", f"{line.root}/{HIDDEN}"
        temporary = f"{hidden}/{os.getpid()}-{secrets.token_hex(8)}"
        with self._explaining(name):
            self._make_parent(line, temporary)
            self._remove_leftovers(line, hidden)
        try:
            size = self._stream(line, temporary, name, parts)
            with self._explaining(name):
                self._make_parent(line, path)
                self._refuse(line, path)
                line.call(_rename, line.system, temporary, path)
        except BaseException:
            self._discard(line, temporary)
            raise
        return size

    def _make_parent(self, line: _Line, path: str) -> None:
        with suppress(FileExistsError):
            line.call(line.system.makedirs, path.rpartition("/")[0], exist_ok=True)

    def _discard(self, line: _Line, path: str) -> None:
        with suppress(Exception):
            line.call(line.system.rm_file, path)

    def _remove_leftovers(self, line: _Line, hidden: str) -> None:
        """Remove, once, what writers left that were killed long ago, as far as the store tells how old it is."""
        if self._tidied:
            return
        with suppress(FileNotFoundError):
            for entry in line.call(line.system.ls, hidden, detail=True):
                if _age(entry) > OLD:
                    self._discard(line, entry["name"])
        self._tidied = True

    def _stream(self, line: _Line, path: str, name: str, parts: Iterable[bytes]) -> int:
        """Write part by part; what is not whole is dropped, if something fails."""
        size = 0
        with self._explaining(name):
            file = line.call(line.system.open, path, "xb" if self._atomic else "wb", block_size=PART)
            if hasattr(file, "set_pipelined"):
                file.set_pipelined(True)  # else SFTP waits for the answer to each 32 KiB: 40 milliseconds
        try:
            for part in parts:
                with self._explaining(name):
                    line.call(file.write, part)
                size += len(part)
            with self._explaining(name):
                line.call(file.close)
        except BaseException:
            self._drop(line, file)
            raise
        return size

    def _drop(self, line: _Line, file: Any) -> None:
        """Close a file without making the object that it was to become."""
        with suppress(Exception):
            if self._atomic:
                try:
                    line.call(file.discard)
                finally:
                    file.closed = True
            else:
                line.call(file.close)

    def remove(self, *names: str) -> None:
        """Do what `Store.remove` says."""
        with self._explaining():
            line = self._connected()
            for name in names:
                with suppress(FileNotFoundError):
                    line.call(line.system.rm_file, f"{line.root}/{verify_name(name)}")

    # -- errors --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _explaining(self, name: str = "") -> Iterator[None]:
        """Raise one of our errors in place of what fsspec and the packages below it raise."""
        try:
            yield
        except BackupError:
            raise
        except Exception as error:
            raise self._explained(error, name) from None  # the original may hold credentials

    def _explained(self, error: Exception, name: str) -> BackupError:
        what = f"{self.url}/{name}" if name else self.url
        reason = self._cleaned(f"{type(error).__name__}: {error}".rstrip(": "))
        if isinstance(error, FileExistsError):
            return ObjectExists(f"{what} exists already: it is never overwritten, another one writes there too")
        if isinstance(error, FileNotFoundError):
            return BackupError(f"{what} is missing: see whether the container is there; else use an older backup")
        if isinstance(error, PermissionError) or _REFUSED.search(reason):
            return StoreUnreachable(f"{what} refuses us: mend the credentials, or what they allow ({reason})")
        if isinstance(error, (TypeError, ValueError)):
            return BackupError(f"{what} cannot be used: look at the URL and the options ({reason})")
        self._forget()
        return StoreUnreachable(f"{what} cannot be reached, try again later: {reason}")

    def _cleaned(self, text: str) -> str:
        """Return a message, in one line, without anything that is a secret."""
        parts = urlsplit(self._where)
        secret = [str(value) for key, value in self._options.items() if _SECRET.search(key)]
        for value in (*secret, parts.password, parts.query):
            if value:
                text = text.replace(value, "…")
        return without_credentials(" ".join(text.split())[:250])


def _parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what comes in parts of `PART` bytes, later `GROWN` times that, and the rest."""
    gathered = bytearray()
    number, size = 0, PART
    for chunk in chunks:
        gathered += chunk
        while len(gathered) >= size:
            yield bytes(gathered[:size])
            del gathered[:size]
            number += 1
            size = PART if number < MANY else PART * GROWN
    if gathered:
        yield bytes(gathered)


def _rename(system: Any, old: str, new: str) -> None:
    """Rename, if possible by what refuses a name that exists."""
    rename: Callable[[str, str], object] = getattr(getattr(system, "ftp", None), "rename", system.mv)
    rename(old, new)


def _age(entry: Mapping[str, Any]) -> float:
    made = entry.get("mtime", entry.get("created"))
    made = made.timestamp() if hasattr(made, "timestamp") else made
    return time.time() - made if isinstance(made, (int, float)) else 0.0
