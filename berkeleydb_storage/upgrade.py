"""Brings a storage of an older format to the current one, in place and restartably.

A step from version n leads to n + 1. It works in transactions of bounded size, may be killed between any two of them,
and run again does what is left. Only after it, and when its work is on the disk, the version is raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from berkeleydb_storage.directory import Description, Directory
from berkeleydb_storage.environment import META, Environment
from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.format import FORMAT_VERSION, META_FORMAT, META_PACKED, META_UNMARKED, pack_uint64
from berkeleydb_storage.identity import renew_identity

logger = logging.getLogger(__name__)

Step = Callable[[Environment, Callable[[str], None]], None]
"""Called with the environment and with a function that logs how far it is."""


def _to_2(environment: Environment, _: Callable[[str], None]) -> None:
    """Note that it was packed now, as if it had been, and that not all suspects are known. All else is as it is."""
    transaction = environment.begin()
    environment.tables[META].put(META_PACKED, pack_uint64(time.time_ns() // 1000), txn=transaction)
    environment.tables[META].put(META_UNMARKED, b"1", txn=transaction)
    transaction.commit()


def _to_3(environment: Environment, _: Callable[[str], None]) -> None:
    """Give it an identity. All else is as it is: no transaction has a mark yet."""
    renew_identity(environment)


STEPS: dict[int, Step] = {1: _to_2, 2: _to_3}
"""Version -> the step that leads to the next one."""

READABLE = {1, 2}
"""Versions that can be read as they are, without an upgrade."""


def verify_format(directory: Directory, description: Description, *, read_only: bool) -> None:
    """Look whether a storage has the current format, or can be upgraded to it; before anything is written.

    Raises:
        BerkeleyDBStorageError: no step leads there, or it would be upgraded and is to be opened read-only.
    """
    missing = [version for version in range(description.format, FORMAT_VERSION) if version not in STEPS]
    if missing:
        raise BerkeleyDBStorageError(
            f"{directory.path} has format {description.format}, and this version of the package cannot upgrade it to "
            f"{FORMAT_VERSION}: see UPGRADING for the version that can"
        )
    if read_only and description.format < FORMAT_VERSION and description.format not in READABLE:
        raise BerkeleyDBStorageError(
            f"{directory.path} has format {description.format}, and this version of the package reads format "
            f"{FORMAT_VERSION}: open it for writing once, which upgrades it"
        )


def upgrade(directory: Directory, description: Description, environment: Environment) -> Description:
    """Run the steps that lead from the description's format to the current one; return the new description.

    Call `verify_format` before.
    """
    for version in range(description.format, FORMAT_VERSION):
        started = time.monotonic()
        logger.warning("upgrading %s from format %d to %d", directory.path, version, version + 1)
        STEPS[version](environment, lambda text: logger.warning("upgrading %s: %s", directory.path, text))
        transaction = environment.begin()
        environment.tables[META].put(META_FORMAT, pack_uint64(version + 1), txn=transaction)
        transaction.commit()
        environment.checkpoint()
        description = directory.update(format=version + 1)
        logger.warning("%s has format %d now, after %.1f s", directory.path, version + 1, time.monotonic() - started)
    return description
