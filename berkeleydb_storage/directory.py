"""The directory of a storage: who owns it, and what is known about its files before Berkeley DB opens them.

Owns two files: ``lock``, held with flock by the owner, with its pid inside; and ``storage.json``, replaced whole.
May be called by any thread; one `Directory` belongs to one storage.

Invariants:

1. While a process writes to any file of the storage, it holds the lock exclusively; readers hold it shared.
2. ``storage.json`` says "closed" only if nothing was written since a checkpoint that completed; it is changed to
   "open", and that is on the disk, before the first write.
3. A directory whose state is "creating" never held a commit.
4. Nothing is written to a directory that is not a storage, or that is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from berkeleydb_storage import failpoints, files, keys
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    DamagedError,
    DiskFullError,
    KeyNeeded,
    LibraryMismatch,
    NewerFormat,
    NotAStorage,
    OptionError,
    StorageInUse,
    StorageNotFound,
    WrongKey,
)
from berkeleydb_storage.files import TABLE_SUFFIX
from berkeleydb_storage.format import ENCRYPTED_VERSION, FORMAT_VERSION
from berkeleydb_storage.keys import mac_key
from berkeleydb_storage.options import TYPES

LOCK = "lock"
DESCRIPTION = "storage.json"
FRESH = DESCRIPTION + ".new"
"""What replaces it; left behind where that was interrupted."""

MANIFEST = "backup.json"
"""In a backup: what is noted of it. Once it is opened for writing, it is a storage like others."""
OPENED = MANIFEST + ".opened"
"""What that is called until the storage has an identity of its own."""

ASIDE = "kept."
"""Before the name of a log file that the library is not to see now."""

DURABLE_NOTED = 3
"""The first format whose ``storage.json`` has the key `durable`."""
CREATING, OPEN, CLOSED = "creating", "open", "closed"

_LIBRARY = re.compile(r"\d+(\.\d+)+")
_KEY_CHECK = re.compile(r"[0-9a-f]{32}:[0-9a-f]{64}")


@dataclass(frozen=True)
class Description:
    """What ``storage.json`` says."""

    format: int
    """Version of the layout of the tables."""
    library: str
    """Version of the Berkeley DB library that wrote the files, "major.minor.patch"."""
    type: str
    """Access method of the objects: "btree" or "hash"."""
    state: str
    """"creating", "open" (an owner has it, or did when it died) or "closed"."""
    first_log: int = 0
    """Number of the oldest log file that recovery may need; 0 when there is none yet."""
    last_log: int = 0
    """Number of the newest log file known; there may be newer ones when the state is "open"."""
    checkpoint_log: int = 0
    """Number of the log file that has the record of the newest known checkpoint; 0 when none is known."""
    checkpoint_offset: int = 0
    """Where that record begins in its file, in bytes."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File name -> bytes of each table: when the storage was closed, or else as of the newest checkpoint that found no
    transaction under way. Empty where that is not known."""
    durable: bool = False
    """Whether the log has all that was acknowledged, if it was not closed: its owner waits for the disk before, and it
    was not found damaged. Otherwise a recovery gives the storage a new identity. Formats 1 and 2 do not say it."""
    encrypted: bool = False
    """Whether the tables and the log are. Only `ENCRYPTED_VERSION` says it."""
    key_check: str = ""
    """What recognises the key, by `keys.fits`; empty where nothing is encrypted."""

    def __post_init__(self) -> None:
        """Refuse what this package does not write.

        Raises:
            ValueError: it names the value.
        """
        numbers = (self.first_log, self.last_log, self.checkpoint_log, self.checkpoint_offset)
        sizes = self.sizes if isinstance(self.sizes, dict) else {"sizes": None}
        right = {
            "format": type(self.format) is int and self.format >= 0,
            "library": isinstance(self.library, str) and _LIBRARY.fullmatch(self.library) is not None,
            "type": self.type in TYPES,
            "state": self.state in (CREATING, OPEN, CLOSED),
            "durable": type(self.durable) is bool,
            "encrypted": self.encrypted is False or (self.encrypted is True and self.format >= ENCRYPTED_VERSION),
            "key_check": bool(_KEY_CHECK.fullmatch(str(self.key_check))) is self.encrypted,
            "a number": all(type(number) is int and number >= 0 for number in (*numbers, *sizes.values())),
        }
        for what, holds in right.items():
            if not holds:
                raise ValueError(f"{what} has an impossible value")

    def values(self) -> dict[str, Any]:
        """Return what ``storage.json`` says in this format."""
        known = asdict(self)
        if self.format < DURABLE_NOTED:
            del known["durable"]  # the release that is to read it, if an upgrade does not succeed, does not know it
        if not self.encrypted:
            del known["encrypted"], known["key_check"]
        return known


class Directory:
    """A directory that is, or is to become, a storage. It is locked from `acquire` to `release`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at the path, without touching it.

        Raises:
            StorageNotFound: there is nothing at `path`.
            NotAStorage: it is not a directory.
        """
        self.path = Path(path)
        self._lock: int | None = None
        self._owner: int | None = None
        self._found = b""
        self._in_doubt = False
        if not self.path.exists():
            raise StorageNotFound(f"{self.path} does not exist: create the directory first, for example with mkdir")
        if not self.path.is_dir():
            raise NotAStorage(f"{self.path} is not a directory: a storage is a directory{self._hint()}")

    def _hint(self) -> str:
        if not self.path.is_file():
            return ""
        try:
            with self.path.open("rb") as file:
                start = file.read(16)
        except OSError:
            return ""
        if start.startswith((b"SHELF-1\n", b"DFS20\0", b"SQLite format ")):
            return f"; this is a Durus storage file, which `durus-bdb migrate {self.path} DIRECTORY` copies into one"
        return ""

    def has_lock(self) -> bool:
        """Tell whether there is a lock file: whoever has opened the directory made one."""
        return (self.path / LOCK).exists()

    def acquire(self, *, read_only: bool) -> None:
        """Lock the directory: for this process alone, or shared with other readers.

        Raises:
            StorageInUse: another opener holds it; its pid is named.
            StorageNotFound: `read_only`, and there is no storage in it.
            NotAStorage: it holds files of something else.
            DamagedError: it holds a storage without its description.
            DiskFullError: there is no room for the lock.
        """
        self.refuse_foreign(read_only)
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        try:
            lock = os.open(self.path / LOCK, flags | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            lacks = "has no lock file" if (self.path / DESCRIPTION).exists() else "holds no storage yet"
            raise StorageNotFound(f"{self.path} {lacks}: open it for writing once") from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise BerkeleyDBStorageError(
                    f"{self.path} is not writable for this process ({error.strerror}): "
                    "open it with read_only=True, or mend its permissions"
                ) from error
            raise self._explained(error) from error
        self._lock = lock
        _watch_forks()
        _locked_here.add(self)  # before it is locked: a child that is forked meanwhile is not to keep the lock
        try:
            if not _locked(lock, exclusively=not read_only):
                raise self._in_use(_owner(lock))
            self.refuse_foreign(read_only)
        except BaseException:
            self._lock = None
            os.close(lock)
            raise
        if not read_only:
            self._found = os.pread(lock, 32, 0)
            self._owner = os.getpid()
            _replace(lock, b"%d\n" % os.getpid())

    def _in_use(self, pid: int | None) -> StorageInUse:
        if pid == os.getpid():
            who = f"this process ({pid}), which has opened it already"
        else:
            who = f"process {pid}" if pid is not None else "another process that reads it"
        return StorageInUse(
            f"{self.path} is in use by {who}: close it there, or share it between processes through a server", pid
        )

    def refuse_foreign(self, read_only: bool) -> None:
        """Look whether all that is there is a storage's.

        Raises:
            NotAStorage: it holds files of something else.
            DamagedError: it holds a storage without its description.
        """
        try:
            names = set(os.listdir(self.path))
        except OSError as error:
            raise self._explained(error) from error
        if DESCRIPTION in names:
            return
        ours = ("lost+found", LOCK, FRESH)
        foreign = sorted(name for name in names if not name.startswith(".") and name not in ours)
        foreign = [name for name in foreign if self._is_file(name)]
        if not foreign:
            return
        if LOCK in names and all(_is_librarys(name) for name in foreign):
            raise DamagedError(
                f"{self.path / DESCRIPTION} is missing, and the tables of a storage are there: restore it from a backup"
            )
        if any(name.startswith(("__db.", "log.")) or name.endswith(TABLE_SUFFIX) for name in foreign):
            what = (
                "a Berkeley DB environment that this package did not write; a directory of the durus-berkeleydbstorage "
                "of 2007 is migrated as UPGRADING says"
            )
        else:
            what = "files of something else"
        raise NotAStorage(
            f"{self.path} holds {what} ({', '.join(foreign[:3])}): a new storage needs an empty directory"
        )

    def _is_file(self, name: str) -> bool:
        """Tell whether a name stands for more than a socket, which those who share a storage make and remove."""
        try:
            return not stat.S_ISSOCK((self.path / name).lstat().st_mode)
        except FileNotFoundError:
            return False  # one that was removed just now

    def release(self, *, refused: bool = False) -> None:
        """Unlock the directory. Does nothing when it is not locked.

        Args:
            refused: the directory could not be opened; the lock file gets the contents that it had.
        """
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            if self._owner == os.getpid():
                _replace(lock, self._found if refused else b"")
            fcntl.flock(lock, fcntl.LOCK_UN)  # whoever inherited the descriptor would keep it locked
        finally:
            os.close(lock)

    def lost(self) -> DamagedError | None:
        """Return what to say if the lock was removed, and perhaps all the rest with it; None where it is there."""
        if self._lock is None or os.fstat(self._lock).st_nlink:
            return None
        return DamagedError(
            f"{self.path / LOCK} was removed while the storage is in use, and perhaps everything with it, so nothing "
            "is acknowledged any more: close it; then open it again, if it is whole, or restore it from a backup"
        )

    def let_go(self) -> None:
        """Forget the lock in a forked child: it is the parent's, and must not outlive it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def read(self) -> Description | None:
        """Return what ``storage.json`` says; None where there is no storage yet.

        Raises:
            NewerFormat: a later version of this package wrote it.
            DamagedError: it is not what this package writes.
        """
        where = self.path / DESCRIPTION
        try:
            text = where.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._explained(error) from error
        try:
            values = json.loads(text)
            version = values["format"]
            known = ENCRYPTED_VERSION if values.get("encrypted") else FORMAT_VERSION
            if type(version) is int and version > known:
                raise NewerFormat(
                    f"{self.path} has format {version}, and this version of the package reads up to {known}: "
                    "install a newer durus-berkeleydbstorage"
                )
            return Description(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where} is damaged ({error}): restore it from a backup") from error

    def write(self, description: Description) -> None:
        """Replace ``storage.json``; when this returns, the new one is on the disk.

        Raises:
            DiskFullError: there is no room for it; the old one is there.
        """
        self._in_doubt = True
        self.replace_file(DESCRIPTION, description.values())
        self._in_doubt = False

    def replace_file(self, name: str, values: object) -> None:
        """Replace a file whole, by values as JSON; when this returns, it is on the disk.

        Raises:
            DiskFullError: there is no room for it; the old one is there.
        """
        fresh = self.path / (name + ".new")
        try:
            with fresh.open("w") as file:
                json.dump(values, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path / name)
            self.sync()
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Exception:
        """Return what an error of the system means, where something can be done about it, or else the error itself."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(f"no room on the disk of {self.path}: free some, then go on ({error.strerror})")
        if error.errno in (errno.EACCES, errno.EPERM):
            return BerkeleyDBStorageError(
                f"{error.filename or self.path} may not be accessed by this process: mend its permissions"
            )
        return error

    def update(self, **changes: object) -> Description:
        """Replace single values of ``storage.json``, and return all of them."""
        current = self.read()
        if current is None:
            raise DamagedError(f"{self.path / DESCRIPTION} is gone: restore it from a backup")
        changed = replace(current, **changes)  # type: ignore[arg-type]
        if changed != current or self._in_doubt:
            self.write(changed)
        return changed

    def was_backup(self) -> bool:
        """Tell whether this is a backup, or was one and has no identity of its own yet. From now on it is none."""
        if (self.path / MANIFEST).exists():
            (self.path / MANIFEST).replace(self.path / OPENED)
            self.sync()
        return (self.path / OPENED).exists()

    def forget_backup(self) -> None:
        """Note that the storage has an identity of its own, if it was a backup."""
        (self.path / OPENED).unlink(missing_ok=True)

    def sync(self) -> None:
        """Bring the names of the files in the directory to the disk."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove what an interrupted creation left behind: every table and log, never anything else."""
        for name in os.listdir(self.path):
            if _is_librarys(name):
                (self.path / name).unlink()

    def copy_to(self, target: Path) -> None:
        """Copy the files of the storage that recovery may need, without its lock, into the existing `target`."""
        logs = {files.log_name(number) for number in self.needed_logs()}
        for name in os.listdir(self.path):
            if name in logs or name.endswith(TABLE_SUFFIX) or name == DESCRIPTION:
                shutil.copyfile(self.path / name, target / name)

    def needed_logs(self) -> list[int]:
        """Return the numbers of the log files that recovery may need. Older ones may be there: see `holding`."""
        description = self.read()
        first = 0 if description is None else description.first_log
        return [number for number in files.log_numbers(self.path) if number >= first]

    @contextmanager
    def only_needed_logs(self) -> Iterator[None]:
        """Rename the log files that recovery does not need, until the block is left.

        Where the oldest that it finds is damaged, the library recovers nothing: with an error, or without.
        """
        needed = self.needed_logs()
        try:
            for number in files.log_numbers(self.path):
                if needed and number < needed[0]:
                    name = files.log_name(number)
                    (self.path / name).replace(self.path / (ASIDE + name))
            failpoints.reached("hold.aside")
            yield
        finally:
            self.bring_logs_back()

    def bring_logs_back(self) -> None:
        """Undo what `only_needed_logs` did, also where that was killed."""
        for name in os.listdir(self.path):
            plain = name.removeprefix(ASIDE)
            if plain != name and files.log_number(plain) is not None and not (self.path / plain).exists():
                (self.path / name).rename(self.path / plain)

    def sizes(self, tables: Iterable[str]) -> dict[str, int]:
        """Return the bytes of the pages of each table, by the name of its file.

        Raises:
            DamagedError: one is gone.
        """
        try:
            return {name + TABLE_SUFFIX: files.noted_size(self.path / (name + TABLE_SUFFIX)) for name in tables}
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename} is gone: restore the storage from a backup") from error

    def shortened(self, description: Description) -> list[Path]:
        """Return the tables that are shorter than what is noted. A transaction that was undone may do that, too."""
        noted = ((self.path / name, size) for name, size in description.sizes.items())
        try:
            return [where for where, size in noted if where.stat().st_size < size]
        except FileNotFoundError as error:
            raise DamagedError(
                f"{self.path / DESCRIPTION} is damaged: it names {error.filename}, which is not there. Put an "
                "undamaged copy back, or restore the storage from a backup"
            ) from error

    def verify_library(self, description: Description, library: str) -> None:
        """Compare the version of the library with the one that wrote the files; the patch level may differ.

        Raises:
            LibraryMismatch: they differ.
        """
        if description.library.split(".")[:2] != library.split(".")[:2]:
            raise LibraryMismatch(
                f"{self.path} was written by Berkeley DB {description.library}, and this is {library}: open it with "
                f"{description.library}, or migrate it there with `durus-bdb export` and here with `durus-bdb migrate`"
            )

    def verify_key(self, description: Description, key: str | None) -> None:
        """Look whether this is the key; before the library is let near the files, which a wrong one would damage.

        Raises:
            KeyNeeded: it is None, and the storage is encrypted. WrongKey: it is encrypted with another one.
            OptionError: the storage is not encrypted.
        """
        if key is None:
            if description.encrypted:
                raise KeyNeeded(f"{self.path} is encrypted: give the key, as `key` or with --key-file")
        elif not description.encrypted:
            raise OptionError(
                f"{self.path} is not encrypted: leave the key out, or copy it into an encrypted one by a restore"
            )
        elif not keys.fits(key, description.key_check):
            raise WrongKey(f"{self.path} is encrypted with another key: give the right one")

    def verify_files(self, description: Description, tables: list[str], key: str | None = None) -> None:
        """Look whether every file is there that the library will need.

        Args:
            description: what ``storage.json`` says.
            tables: names.
            key: the right one.

        Raises:
            DamagedError: one is missing or too short; it is named.
        """
        for name in tables:
            where = self.path / (name + TABLE_SUFFIX)
            if not where.exists():
                raise DamagedError(f"{where} is missing: restore the storage from a backup")
            if where.stat().st_size < files.PAGE_SIZE:
                raise DamagedError(f"{where} is cut off: restore the storage from a backup")
            if not self._first_page_is_sound(where, key):
                raise DamagedError(f"the first page of {where} is damaged: restore the storage from a backup")
        for where in self.shortened(description) if description.state == CLOSED else ():
            raise DamagedError(
                f"{where} is cut off, it has {where.stat().st_size} of {description.sizes[where.name]} bytes: restore "
                "the storage from a backup"
            )
        present = set(files.log_numbers(self.path))
        last = max(present | {description.last_log})
        for number in range(description.first_log, last + 1):
            if number and number not in present:
                raise DamagedError(
                    f"{self.path / files.log_name(number)} is missing, and log files {description.first_log} to {last} "
                    "are needed: put it back, or restore the storage from a backup"
                )
        self._verify_checkpoint(description, key)

    def _first_page_is_sound(self, where: Path, key: str | None) -> bool:
        """Tell whether it is; the library takes its word for whether the pages of the table have checksums."""
        try:
            with where.open("rb", buffering=0) as file:
                return files.page_is_sound(file.read(files.PAGE_SIZE), mac_key(key))
        except OSError as error:
            raise self._explained(error) from error

    def _verify_checkpoint(self, description: Description, key: str | None) -> None:
        """Look for the record of the newest known checkpoint: the tables may hold whatever happened up to there.

        The library takes a log that ends before it for complete, and would then write records with positions that
        pages have already.
        """
        if not description.checkpoint_log:
            return
        where, offset = self.path / files.log_name(description.checkpoint_log), description.checkpoint_offset
        if not (where.exists() and files.is_checkpoint(where, offset, key)):
            raise DamagedError(
                f"{where} is damaged, or not the one that belongs here: the checkpoint at offset {offset} is not in "
                "it. Put the right one back, or restore the storage from a backup"
            )


def _is_librarys(name: str) -> bool:
    """Tell whether Berkeley DB gives files such a name: tables, also while they are being made, and logs."""
    return files.log_number(name) is not None or name.endswith(TABLE_SUFFIX) or name.startswith("__db.")


_locked_here: weakref.WeakSet[Directory] = weakref.WeakSet()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_let_go_of_all)


def _let_go_of_all() -> None:
    for directory in list(_locked_here):
        directory.let_go()


def _locked(lock: int, *, exclusively: bool) -> bool:
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _owner(lock: int) -> int | None:
    """Return the pid of the owner who keeps us out; None where readers do: the pid is then of an owner who died."""
    if _locked(lock, exclusively=False):
        return None
    digits = os.pread(lock, 32, 0).strip()
    return int(digits) if digits.isdigit() else None


def _replace(lock: int, contents: bytes) -> None:
    """Write who the owner is. It is for error messages alone, so a full disk is no reason to fail."""
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, contents, 0)
