"""What is in a repository, and getting it back: the functions that applications and commands call. Any thread may."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from berkeleydb_storage.backup.catalog import Base
from berkeleydb_storage.backup.making import Backup, described
from berkeleydb_storage.backup.repository import Report, Repository
from berkeleydb_storage.backup.restoring import Restored, Restoring, Wanted, before, choose
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.errors import BackupError, DamagedBackup, OptionError
from berkeleydb_storage.rekeying import rekey


def list_backups(where: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> list[Backup]:
    """Return the backups in a directory or at a URL, of all storages, oldest first. What is in them is not read.

    An archive has others besides: any commit after the first of its storage that is listed here can be restored.

    Args:
        where: a path, or a URL.
        options: what fsspec needs for the URL, such as credentials, where it does not find that by itself.

    Raises:
        BackupError: it cannot be read.
    """
    repository = Repository(open_store(where, options=options))
    found = []
    for base in repository.bases():
        if base.manifest is not None:
            found.append(described(repository, base))
            found += [described(repository, base, run, repository.run_values(base, run)) for run in base.runs]
    return sorted(found, key=lambda backup: (backup.time, backup.tid))


def named(bases: list[Base], of: str) -> list[Base]:
    """Return the bases of a storage by its path or identity; with a path, those that are complete."""
    wanted = {of, str(Path(of).absolute())}
    return [base for base in bases if base.identity == of or (base.manifest and base.manifest.storage in wanted)]


def select(bases: list[Base], of: str | None, where: str) -> list[Base]:
    """Return the bases of one storage: that with the path or identity `of`, or the only one there is.

    A storage that was restored and went on has another identity than before, and often the same path: with a path, it
    is the one that was backed up last, if the others were not any more since it was first. A copy of the files has the
    same identity, and another path.

    Raises:
        BackupError: there is none, or there are several.
    """
    known = [base for base in bases if base.manifest is not None]
    if of is not None:
        known = named(known, of)
    if not known:
        raise BackupError(
            f"{where} has no backup that is complete{f' of {of}' if of else ''}: make one, or look elsewhere"
        )
    paths = {base.manifest.storage for base in known if base.manifest}
    if len(paths) > 1:
        raise BackupError(f"{where} has backups of {', '.join(sorted(paths))}: say which, by --of")
    newest = max(known, key=lambda base: base.reach()[2])
    begun = min(base.begun for base in known if base.identity == newest.identity)
    beside = {base.identity for base in known if base.reach()[2] > begun}
    if len(beside) > 1:
        raise BackupError(
            f"{where} has backups of several storages that have the path {newest.noted.storage}, as those of several "
            f"machines: say which, by --of and the name of its folder ({', '.join(sorted(beside))})"
        )
    others = {base.folder for base in bases if base.manifest and of is not None and base not in known}
    return [base for base in bases if base.identity == newest.identity and base.folder not in others]


def restore(
    where: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: datetime | float | None = None,
    to_commit: int | None = None,
    of: str | None = None,
    key: str | None = None,
    new_key: str | None = None,
    decrypt: bool = False,
    progress: Callable[[str, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Restored:
    """Make a new storage of what a backup or an archive has: of all of it, or as of a time or a commit.

    Killed at any point, it leaves `target` as it was, and beside it a directory that the next call removes.

    Args:
        where: the directory or URL that the backups are in.
        target: a directory that is not there, or empty.
        to: a time, as a datetime (without a zone: local time) or in seconds since the epoch: every commit up to then
            is restored, and none after.
        to_commit: the number of a transaction: the last that is restored.
        of: the path, or identity, of the storage, if there are several.
        key: of the storage that was backed up, if that is encrypted.
        new_key: what the new one is to be encrypted with; default: what it was.
        decrypt: True for a new storage that is not encrypted.
        progress: called now and then with what is being done and a number of bytes; what it raises ends it.
        options: what fsspec needs for the URL, such as credentials.

    Raises:
        BackupError: the state wanted is not there, or `target` cannot be used.
        DamagedBackup: something in the backup is damaged or missing; it is named, and what can be restored.
        WrongKey, KeyNeeded: the key does not fit. LibraryMismatch: another version of Berkeley DB wrote it.
        OptionError: arguments contradict one another. DiskFullError, OSError: the new storage cannot be written.
    """
    if to is not None and to_commit is not None:
        raise OptionError("restore: to=… and to_commit=… are two points to go back to: give one of them")
    if new_key is not None and decrypt:
        raise OptionError("restore: new_key=… encrypts, and decrypt=True does not: give one of them")
    started = time.monotonic()
    repository = Repository(open_store(where, options=options))
    wanted = Wanted(to_commit, None if to is None else _microseconds(to))
    bases = select(repository.bases(), of, repository.store.url)
    base = choose(bases, wanted)
    report: Report = progress or _silent
    restoring = Restoring(repository, report, key=key)
    place = Path(target)

    def change_key(made: Path) -> Path:
        changed = made.with_name("changed")
        rekey(made, key, changed, new_key, report)
        return changed

    changes = change_key if decrypt or new_key is not None else None
    try:
        state, size = restoring.into(place, base, wanted, changes)
    except DamagedBackup as error:
        tid = before(base, bases)
        if tid is None or "--to-commit" in str(error):
            raise
        raise DamagedBackup(f"{error}; all up to transaction {tid} is elsewhere, give --to-commit {tid}") from error
    seconds = round(time.monotonic() - started, 3)
    storage = base.noted.storage
    return Restored(place, storage, state.tid, state.time / 1e6, state.objects, size, seconds)


def _microseconds(moment: datetime | float) -> int:
    seconds = moment.timestamp() if isinstance(moment, datetime) else moment
    return round(seconds * 1_000_000)


def _silent(activity: str, size: int) -> None:
    """Show no progress."""
