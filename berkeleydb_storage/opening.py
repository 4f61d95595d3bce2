"""From a path to an open environment: lock, look, create or recover or copy, open; and back.

Killed at any point: the next open finds a directory that is being created, and creates it anew, or one whose owner
did not close it, and recovers it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from berkeleydb_storage import engine, failpoints, files
from berkeleydb_storage.directory import CLOSED, CREATING, OPEN, Description, Directory
from berkeleydb_storage.environment import LIBRARY, TABLES, Environment
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    DiskFullError,
    OptionError,
    RecoveryNeeded,
    StorageNotFound,
)
from berkeleydb_storage.format import ENCRYPTED_VERSION, FORMAT_VERSION
from berkeleydb_storage.identity import renew_identity
from berkeleydb_storage.keys import make_check
from berkeleydb_storage.options import Options
from berkeleydb_storage.recovery import recover, recover_copy, rehearse, require_pages_in_place
from berkeleydb_storage.upgrade import upgrade, verify_format

logger = logging.getLogger(__name__)

LOOKED_AT = 8 << 20
"""Bytes of a table whose pages are all looked at when it is opened: 5 milliseconds; of a larger one the holes."""


@dataclass
class Opened:
    """What `open_storage` hands over, and `close_storage` takes back."""

    directory: Directory
    environment: Environment
    type: str
    """Access method of the objects: "btree" or "hash"."""
    recovered: bool
    """Whether the last owner had not closed it."""
    copy: tempfile.TemporaryDirectory[str] | None = None
    """The recovered private copy that a reader works on, if it needs one."""


def open_storage(path: str | os.PathLike[str], options: Options) -> Opened:
    """Open the storage at `path`, or create it in an empty directory.

    Raises:
        StorageNotFound, NotAStorage, StorageInUse, NewerFormat, LibraryMismatch, WrongKey, KeyNeeded, RecoveryNeeded,
        DamagedError, OptionError, DiskFullError: as their descriptions say; whatever was there is left as it was.
    """
    directory = Directory(path)
    if not directory.has_lock():
        _look(directory, options)
    directory.acquire(read_only=options.read_only)
    try:
        description = directory.read()
        if options.read_only:
            return _read(directory, description, options)
        if description is None or description.state == CREATING:
            return _create(directory, options)
        return _open(directory, description, options)
    except BaseException:
        directory.release(refused=True)
        raise


def _look(directory: Directory, options: Options) -> None:
    """Refuse what will be refused before there is a lock file, which nobody else can have locked."""
    description = directory.read()
    if description is not None and description.state != CREATING:
        _verify(directory, description, options)


def _create(directory: Directory, options: Options) -> Opened:
    type = options.type or "btree"
    directory.clear()
    directory.write(_new_description(type, options.key))
    failpoints.reached("create.begun")
    environment = Environment.create(directory.path, options.cachesize, type, engine.new_storage, key=options.key)
    failpoints.reached("create.tables")
    log, offset = environment.last_checkpoint()
    _mark(directory, OPEN, checkpoint_log=log, checkpoint_offset=offset, durable=options.durable)
    failpoints.reached("create.done")
    logger.info("created a storage in %s", directory.path)
    return Opened(directory, environment, type, False)


def _new_description(type: str, key: str | None) -> Description:
    if key is None:
        return Description(FORMAT_VERSION, LIBRARY, type, CREATING)
    return Description(ENCRYPTED_VERSION, LIBRARY, type, CREATING, encrypted=True, key_check=make_check(key))


def _verify(directory: Directory, description: Description, options: Options) -> None:
    directory.verify_library(description, LIBRARY)
    verify_format(directory, description, read_only=options.read_only)
    directory.verify_key(description, options.key)
    directory.verify_files(description, list(TABLES), options.key)
    if description.state == CLOSED:
        require_pages_in_place(directory.path, LOOKED_AT)
    if options.type not in (None, description.type):
        raise OptionError(
            f"{directory.path} was created with type={description.type!r}, which stays; leave the option out, or "
            "migrate into a new directory"
        )


def _open(directory: Directory, description: Description, options: Options) -> Opened:
    directory.bring_logs_back()
    _verify(directory, description, options)
    unclean = description.state != CLOSED
    if unclean and options.do_recover is False:
        raise _recovery_needed(directory)
    restored = directory.was_backup()
    if not unclean:
        _mark(directory, OPEN, durable=True)
        failpoints.reached("open.marked")
    doubtful = False
    try:
        if unclean or options.do_recover:
            reason = "was not closed" if unclean else "is to be recovered"
            doubtful = _recover(directory, description, options, reason)
        environment = Environment.open(directory.path, options.cachesize, key=options.key)
    except BaseException:
        if not unclean:
            directory.write(description)
        raise
    try:
        if unclean:
            environment.checkpoint()
        if description.format < FORMAT_VERSION:
            upgrade(directory, description, environment)
        if doubtful or restored:
            renew_identity(environment)
        directory.update(durable=options.durable)
        directory.forget_backup()
    except BaseException:
        environment.abandon()
        raise
    return Opened(directory, environment, description.type, unclean)


def _recover(directory: Directory, description: Description, options: Options, reason: str) -> bool:
    """Recover it; return whether transactions may be missing that were acknowledged.

    ``storage.json`` says so until there is a new identity: killed in between, the next open knows it too.
    """
    noted = directory.update()

    def doubt(missing: bool) -> None:
        directory.update(durable=noted.durable and not missing)

    failpoints.reached("recover.begin")
    if shortened := directory.shortened(description):
        rehearse(directory, options.cachesize, shortened, key=options.key)
    recover(directory.path, options.cachesize, reason, doubt, key=options.key)
    failpoints.reached("recover.done")
    return not directory.update().durable


def _recovery_needed(directory: Directory) -> RecoveryNeeded:
    return RecoveryNeeded(
        f"{directory.path} was not closed by its last owner, and do_recover=False was given: leave that out"
    )


def _read(directory: Directory, description: Description | None, options: Options) -> Opened:
    if description is None or description.state == CREATING:
        raise StorageNotFound(f"{directory.path} holds no storage yet: open it for writing once")
    _verify(directory, description, options)
    if description.state == CLOSED:
        environment = Environment.read(directory.path, options.cachesize, key=options.key)
        return Opened(directory, environment, description.type, False)
    if options.do_recover is False:
        raise _recovery_needed(directory)
    copy = tempfile.TemporaryDirectory(prefix="berkeleydb_storage-")
    try:
        started = time.monotonic()
        logger.warning("%s was not closed: reading a recovered copy of it in %s", directory.path, copy.name)
        try:
            directory.copy_to(Path(copy.name))
        except OSError as error:
            raise BerkeleyDBStorageError(
                f"{directory.path} cannot be copied into {copy.name} ({error}): set TMPDIR to a directory with room "
                "for it, or open it for writing, which recovers it in place"
            ) from error
        logger.info("copied in %.1f s", time.monotonic() - started)
        recover_copy(directory, Path(copy.name), options.cachesize, key=options.key)
        environment = Environment.read(Path(copy.name), options.cachesize, key=options.key)
    except BaseException:
        copy.cleanup()
        raise
    return Opened(directory, environment, description.type, True, copy)


def _mark(directory: Directory, state: str, **changes: object) -> None:
    numbers = files.log_numbers(directory.path)
    if state == CLOSED:
        changes["sizes"] = directory.sizes(TABLES)
    noted = directory.update()
    directory.update(state=state, last_log=numbers[-1], first_log=noted.first_log or numbers[0], **changes)


def close_storage(opened: Opened) -> None:
    """Close the environment, note that it was closed, and unlock the directory.

    A checkpoint must have been made before. After a failure everything is freed all the same, and the next open
    recovers.
    """
    directory, environment = opened.directory, opened.environment
    try:
        environment.close()
        failpoints.reached("close.environment")
        if environment.writable:
            _mark_closed(directory)
    except BaseException:
        environment.abandon()
        raise
    finally:
        if opened.copy is not None:
            opened.copy.cleanup()
        directory.release()


def _mark_closed(directory: Directory) -> None:
    try:
        _mark(directory, CLOSED)
    except DiskFullError as error:
        logger.warning("%s is whole, and recovered at the next open all the same: %s", directory.path, error)
    failpoints.reached("close.marked")


def abandon_storage(opened: Opened) -> None:
    """Free everything without noting that it was closed: the next open recovers."""
    opened.environment.abandon()
    if opened.copy is not None:
        opened.copy.cleanup()
    opened.directory.release()
