"""The directory that backups are in: their names, what is noted of each, which of them go.

Owns, in a target: ``.lock``, held with flock while one is made; ``.making-…`` and ``.removing-…``, which are no backups
and are removed by the next that is made; and a sub-directory for each backup, a closed storage with a manifest.

Invariants:

1. A directory that has the name of a backup is complete, and on the disk: it was renamed to that at the end.
2. What is removed loses that name first.
3. Only who holds the lock makes, renames or removes something.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from berkeleydb_storage import failpoints
from berkeleydb_storage.directory import DESCRIPTION, MANIFEST
from berkeleydb_storage.errors import BackupError

logger = logging.getLogger(__name__)

MANIFEST_FORMAT = 1
FULL = "full"
"""The kind of a backup that needs no other."""
LOCK = ".lock"
MAKING, REMOVING = ".making-", ".removing-"
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-\d{12,}")
_NOT_LOCKABLE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True)
class Backup:
    """A backup that is complete."""

    path: Path
    """Its directory: a storage, closed."""
    tid: int
    """The newest transaction in it."""
    objects: int
    """Objects in it, garbage included."""
    bytes: int
    """Of all its files."""
    seconds: float
    """How long it took."""
    time: float
    """Whose state it is, in seconds since the epoch: every commit that was acknowledged before is in it."""


@dataclass(frozen=True)
class Manifest:
    """What ``backup.json`` says."""

    tid: int
    time: int
    """In microseconds since the epoch."""
    objects: int
    seconds: float
    storage: str
    """The path of the storage that it was made of."""
    identity: str
    """The identity of that storage, in hexadecimal digits."""
    log: tuple[int, int]
    """Where the log of that storage goes on: the number of the file, and the offset in it."""
    files: dict[str, dict[str, Any]]
    """File name -> its "bytes" and "sha256"."""
    format: int = MANIFEST_FORMAT
    kind: str = FULL
    extra: dict[str, Any] = field(default_factory=dict)
    """What is not known here: a later version wrote it."""

    @property
    def name(self) -> str:
        """The name of the backup's directory: names sort by time."""
        when = datetime.fromtimestamp(self.time // 1_000_000, timezone.utc)
        return f"{when:%Y%m%dT%H%M%S}.{self.time % 1_000_000:06d}Z-{self.tid:012d}"

    def backup(self, path: Path) -> Backup:
        """Return what is told of it."""
        size = sum(entry["bytes"] for entry in self.files.values())
        return Backup(path, self.tid, self.objects, size, self.seconds, self.time / 1e6)

    def is_of(self, storage: str, identity: str) -> bool:
        """Tell whether it was made of that storage: by its identity, or, if it got a new one, by its path."""
        return identity == self.identity or storage == self.storage

    def write(self, directory: Path) -> None:
        """Write it, to the disk."""
        values = asdict(self)
        values.update(values.pop("extra"))
        with (directory / MANIFEST).open("w") as file:
            json.dump(values, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """Return what is noted of a backup.

    Raises:
        ValueError: it is not what this package writes. OSError: it cannot be read.
    """
    values = json.loads((directory / MANIFEST).read_bytes())
    try:
        if values["format"] > MANIFEST_FORMAT:
            raise ValueError(f"its format is {values['format']}, and this version of the package reads up to 1")
        known = {name: values.pop(name) for name in Manifest.__dataclass_fields__ if name in values}
        manifest = Manifest(**{**known, "log": tuple(known["log"])}, extra=values)
        manifest.backup(directory)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it is malformed ({error!r})") from error
    return manifest


def list_backups(target: str | os.PathLike[str]) -> list[Backup]:
    """Return the backups in the directory `target`, of all storages, newest last.

    One whose files are not all there, or have other sizes than is noted, is left out, and logged as a warning. Their
    contents are not read.

    Raises:
        BackupError: `target` cannot be read.
    """
    return [manifest.backup(path) for path, manifest in Shelf(target).manifests()]


class Shelf:
    """A directory with backups. What writes is for one thread at a time, which holds `locked`."""

    def __init__(self, target: str | os.PathLike[str]) -> None:
        """Look at nothing yet."""
        self.path = Path(target)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise a `BackupError` that says what to do in place of an error of the system."""
        try:
            yield
        except OSError as error:
            raise BackupError(_complaint(self.path, error)) from error

    def manifests(self) -> list[tuple[Path, Manifest]]:
        """Do what `list_backups` does."""
        with self.explaining():
            names = sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        found = ((self.path / name, self._whole(self.path / name)) for name in names)
        return [(path, manifest) for path, manifest in found if manifest is not None]

    def _whole(self, path: Path) -> Manifest | None:
        try:
            manifest = read_manifest(path)
            for name, entry in manifest.files.items():
                if (size := (path / name).stat().st_size) != entry["bytes"]:
                    raise ValueError(f"{name} has {size} bytes, not {entry['bytes']}")
        except (OSError, ValueError) as error:
            if path.exists():  # else it was removed meanwhile
                logger.warning("%s is not counted as a backup: %s", path, error)
            return None
        return manifest

    @contextmanager
    def locked(self, storage: Path) -> Iterator[None]:
        """Keep all others from writing here, and remove what those left that were killed.

        Args:
            storage: the directory of the storage, which may not hold the target.

        Raises:
            BackupError: it is not there, not writable, in use, or no place for backups.
        """
        with self.explaining():
            resolved, forbidden = self.path.resolve(strict=True), storage.resolve()
            if resolved == forbidden or forbidden in resolved.parents or (self.path / DESCRIPTION).exists():
                raise BackupError(f"{self.path} is in a storage: give a directory of its own for the backups")
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with self.explaining():
                self._lock(lock)
                self._remove_leftovers()
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)  # whoever inherited the descriptor would keep it locked
            os.close(lock)

    def _lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"another backup is being made in {self.path}: wait until it is done") from None
        except OSError as error:
            if error.errno not in _NOT_LOCKABLE:
                raise
            logger.warning("%s cannot be locked (%s): see to it that one backup at a time is made there", lock, error)

    def _remove_leftovers(self) -> None:
        for name in os.listdir(self.path):
            if name.startswith((MAKING, REMOVING)):
                logger.info("%s was left by a backup that was interrupted: it is removed", self.path / name)
                shutil.rmtree(self.path / name)

    @contextmanager
    def making(self, storage: Path) -> Iterator[Path]:
        """Give a new directory to make a backup in, which is gone at the end, unless it was published."""
        path = self.path / f"{MAKING}{os.getpid()}"
        try:
            with self.explaining():
                path.mkdir(mode=0o700)
                failpoints.reached("backup.begun")
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, path: Path, manifest: Manifest, like: Path) -> Backup:
        """Give a directory the name of a backup; it is one when this returns, on the disk.

        Args:
            path: what was made.
            manifest: what to note.
            like: the directory whose permissions it gets.
        """
        done = self.path / manifest.name
        with self.explaining():
            manifest.write(path)
            path.chmod(like.stat().st_mode & 0o777)
            _sync(path)
            failpoints.reached("backup.noted")
            path.rename(done)
            failpoints.reached("backup.renamed")
            _sync(self.path)
        return manifest.backup(done)

    def prune(self, keep: int, storage: str, identity: str) -> list[Path]:
        """Remove all backups of a storage but the newest `keep`, at least 1, and return which."""
        mine = [path for path, manifest in self.manifests() if manifest.is_of(storage, identity)]
        for path in mine[:-keep]:
            with self.explaining():
                removed = path.rename(self.path / (REMOVING + path.name))
                failpoints.reached("backup.removing")
                shutil.rmtree(removed)
        return mine[:-keep]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complaint(target: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room for a backup on the disk of {target}: free some, or keep fewer ({reason})"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{target} is not writable for this process: mend its permissions ({reason})"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return f"{target} is no directory, or is gone: make it, or mount its disk ({reason})"
    return f"the backup in {target} failed: {error}"
