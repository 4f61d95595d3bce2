"""A store that is a directory on this machine, or mounted here.

Owns, in it: ``.making``, with the objects that are being written, each under a name of its own and locked with flock
by its writer; and all that was made.

Invariants:

1. An object gets its name when all of it is on the disk; the name is on the disk when `write` returns.
2. What a writer left that was killed is removed by the next `write`: its lock is gone. Nobody else's is.
3. Nothing is written where ``.making`` was and is not any more: the disk is not mounted then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.stores.store import CHUNK, HIDDEN, verify_name
from berkeleydb_storage.errors import BackupError, ObjectExists, StoreUnreachable

_NOT_OFFERED = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL)
_NOT_LOCKABLE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
LOST = "lost+found"
"""A directory of the file system, at a mount point, that root alone may read."""
OLD = 86400.0
"""Seconds after which a leftover is removed where nothing can be locked."""


SYNC_EVERY = 256 << 10
"""Bytes after which what was written is brought to the disk, on which a storage may have commits to sync. While backups
were made one after another, the slowest hundredth of the commits took 3.4 times as long as alone (0.3 ms), and 5.3 with
1 MiB; 2.5 with 64 KiB, but then a backup takes twice as long. Asking for it to be written without a wait did less."""

SYNC_LEAST = 64 << 10
"""Bytes that are synced at the end of what was given at a time: who reads a storage in use gives that little."""


class LocalStore:
    """A directory."""

    compressed = False

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False, require: bool = True) -> None:
        """Look whether it is there.

        Args:
            path: the directory.
            create: make it where it is not there, though not those above it.
            require: whether it has to be there now, and not only when it is used.

        Raises:
            BackupError: it is not, or is no directory, or cannot be made.
        """
        self.path = Path(path).absolute()
        self.url = str(self.path)
        self._seen = False  # set once, by any thread
        with self._explaining():
            if create and not self.path.exists():
                with suppress(FileExistsError):
                    self.path.mkdir(mode=0o700)
                    _sync(self.path.parent)
            if require:
                os.listdir(self.path)
            self._seen = (self.path / HIDDEN).exists()

    def list(self, prefix: str = "") -> dict[str, int]:
        """Do what `Store.list` says."""
        start = self._where(prefix.strip("/")) if prefix.strip("/") else self.path
        with self._explaining():
            self._require_root()
            return dict(sorted(self._below(start)))

    def _below(self, directory: Path) -> Iterator[tuple[str, int]]:
        try:
            entries = list(os.scandir(directory))
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or never there
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name == LOST:
                continue
            if entry.is_dir():
                yield from self._below(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    yield str(Path(entry.path).relative_to(self.path)), entry.stat().st_size

    def read(self, name: str) -> Iterator[bytes]:
        """Do what `Store.read` says."""
        where = self._where(name)
        with self._explaining():
            self._require_root()
        try:
            file = where.open("rb", buffering=0)
        except FileNotFoundError:
            raise BackupError(f"{where} is missing: what needs it cannot be restored; use an older backup") from None
        except OSError as error:
            raise self._explained(error) from error
        with file:
            while chunk := self._chunk(file.fileno()):
                yield chunk

    def _chunk(self, descriptor: int) -> bytes:
        with self._explaining():
            return os.read(descriptor, CHUNK)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Do what `Store.write` says."""
        where = self._where(name)
        with self._explaining():
            self._require_root()
            self._refuse(where)
            making = self._hidden()
            self._remove_leftovers(making)
            descriptor, temporary = self._begin(making)
        try:
            self._append_all(descriptor, chunks)
            with self._explaining():
                os.fchmod(descriptor, self._mode() & 0o666)
                os.fsync(descriptor)
                failpoints.reached("store.written")
                self._name(temporary, where)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # whoever inherited the descriptor would keep it locked
            os.close(descriptor)

    def _append_all(self, descriptor: int, chunks: Iterable[bytes]) -> None:
        unsynced = 0
        for chunk in chunks:
            for start in range(0, len(chunk), SYNC_EVERY):
                part = memoryview(chunk)[start : start + SYNC_EVERY]
                self._append(descriptor, part)
                unsynced += len(part)
                if unsynced >= SYNC_LEAST:
                    with self._explaining():
                        os.fsync(descriptor)
                    unsynced = 0

    def _append(self, descriptor: int, left: memoryview) -> None:
        with self._explaining():
            while left:
                left = left[os.write(descriptor, left) :]

    def _name(self, temporary: Path, where: Path) -> None:
        """Give what is whole its name, and bring that to the disk."""
        for _ in range(3):
            self._make_parents(where.parent)
            try:
                self._link(temporary, where)
                break
            except FileNotFoundError:  # who removed the last object there removed its directory just now
                if not temporary.exists():
                    raise
        failpoints.reached("store.named")
        _sync(where.parent)

    def _link(self, temporary: Path, where: Path) -> None:
        try:
            os.link(temporary, where)
        except FileExistsError:
            raise _exists(where) from None
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            self._refuse(where)
            temporary.rename(where)

    def _refuse(self, where: Path) -> None:
        if where.exists():
            raise _exists(where)

    def _make_parents(self, directory: Path) -> None:
        """Make the directories down to this one, each on the disk before what is in it."""
        if directory == self.path or directory.is_dir():
            return
        self._make_parents(directory.parent)
        with suppress(FileExistsError):
            directory.mkdir()
            directory.chmod(self._mode())
        _sync(directory.parent)

    def _mode(self) -> int:
        return stat.S_IMODE(self.path.stat().st_mode)

    def _hidden(self) -> Path:
        making = self.path / HIDDEN
        if not self._seen:
            with suppress(FileExistsError):
                making.mkdir()
                making.chmod(self._mode())
            self._seen = True
        return making

    def _require_root(self) -> None:
        if not self.path.is_dir():
            raise StoreUnreachable(f"{self.path} is no directory, or is gone: make it, or mount its disk")
        if self._seen and not (self.path / HIDDEN).exists():
            raise StoreUnreachable(f"{self.path} is not what it was, {HIDDEN} is gone from it: mount its disk")

    def _begin(self, making: Path) -> tuple[int, Path]:
        """Make a file that is locked. Between making and locking it, another writer may take it for a leftover."""
        while True:
            temporary = making / f"{os.getpid()}-{secrets.token_hex(8)}"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if _locked(descriptor) is not False and os.fstat(descriptor).st_nlink:
                    return descriptor, temporary
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _remove_leftovers(self, making: Path) -> None:
        for name in os.listdir(making):
            with suppress(OSError):  # it is another's, or gone
                _remove_leftover(making / name)

    def remove(self, *names: str) -> None:
        """Do what `Store.remove` says."""
        with self._explaining():
            self._require_root()
            changed = dict.fromkeys(self._unlinked(self._where(name)) for name in names)
            for directory in changed:
                self._tidy(directory)

    def _unlinked(self, where: Path) -> Path:
        where.unlink(missing_ok=True)
        return where.parent

    def _tidy(self, directory: Path) -> None:
        """Bring to the disk that something was removed, and remove the directories that are empty now."""
        if directory.exists():
            _sync(directory)
        while directory != self.path:
            try:
                directory.rmdir()
            except OSError:
                return
            directory = directory.parent

    def _where(self, name: str) -> Path:
        return self.path / verify_name(name)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> BackupError:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreUnreachable(f"no room on the disk of {self.path}: free some, or keep fewer backups ({reason})")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            where = error.filename or self.path
            return BackupError(f"{where} is not writable, or not readable, for this process: mend that ({reason})")
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return StoreUnreachable(f"{self.path} is no directory, or is gone: make it, or mount its disk ({reason})")
        return StoreUnreachable(f"{self.path} cannot be used ({reason}): see what the system's log says of its disk")


def _exists(where: Path) -> ObjectExists:
    return ObjectExists(f"{where} exists already: it is never overwritten, another one writes there too")


def _locked(descriptor: int) -> bool | None:
    """Lock a file, and tell whether that worked; None where files cannot be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NOT_LOCKABLE:
            return None
        raise
    return True


def _remove_leftover(path: Path) -> None:
    """Remove what is being written by nobody any more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        locked, age = _locked(descriptor), time.time() - os.fstat(descriptor).st_mtime
        if locked or (locked is None and age > OLD):
            path.unlink()
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
