"""A storage for Durus, the object database for Python, on Berkeley DB.

>>> from durus.connection import Connection
>>> from berkeleydb_storage import BerkeleyDBStorage
>>> connection = Connection(BerkeleyDBStorage("db"))  # an existing directory  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from berkeleydb_storage.backup import Backup, Every, Keep, Restored, Verified, list_backups, restore, verify_backups
from berkeleydb_storage.backup.archive import Archive, Archived
from berkeleydb_storage.check import Fault, Report
from berkeleydb_storage.checkpoint import (
    CheckpointInline,
    CheckpointNever,
    CheckpointNumbers,
    CheckpointThread,
    checkpoint_interface,
)
from berkeleydb_storage.errors import (
    AccessDenied,
    AuthenticationError,
    BackupError,
    BerkeleyDBStorageError,
    CertificateError,
    CommitInDoubt,
    CommitRefused,
    CommitUnknown,
    DamagedBackup,
    DamagedError,
    DanglingReferenceError,
    DiskFullError,
    KeyNeeded,
    KeySourceError,
    LibraryMismatch,
    ListenError,
    LogGone,
    MigrationError,
    NewerFormat,
    NotAStorage,
    ObjectExists,
    OptionError,
    OwnerGone,
    PasswordFileError,
    PoolExhausted,
    ReadOnlyError,
    RecoveryNeeded,
    ServerError,
    ServerUnreachable,
    StorageClosed,
    StorageInUse,
    StorageNotEmpty,
    StorageNotFound,
    StoreUnreachable,
    WireError,
    WrongKey,
)
from berkeleydb_storage.garbage.collector import Collected
from berkeleydb_storage.garbage.policy import (
    GarbageInline,
    GarbageManual,
    GarbageNightly,
    GarbageNumbers,
    GarbageThread,
    garbage_collection_interface,
)
from berkeleydb_storage.garbage.requests import Packing
from berkeleydb_storage.keys import key_from_command, key_from_environment, key_from_file
from berkeleydb_storage.session import Session
from berkeleydb_storage.statistics import Statistics
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.version import __version__

if TYPE_CHECKING:
    from berkeleydb_storage.sharing import SharedStorage

__all__ = [
    "AccessDenied",
    "Archive",
    "Archived",
    "AuthenticationError",
    "Backup",
    "BackupError",
    "BerkeleyDBStorage",
    "BerkeleyDBStorageError",
    "CertificateError",
    "CheckpointInline",
    "CheckpointNever",
    "CheckpointNumbers",
    "CheckpointThread",
    "Collected",
    "CommitInDoubt",
    "CommitRefused",
    "CommitUnknown",
    "DamagedBackup",
    "DamagedError",
    "DanglingReferenceError",
    "DiskFullError",
    "Every",
    "Fault",
    "GarbageInline",
    "GarbageManual",
    "GarbageNightly",
    "GarbageNumbers",
    "GarbageThread",
    "Keep",
    "KeyNeeded",
    "KeySourceError",
    "LibraryMismatch",
    "ListenError",
    "LogGone",
    "MigrationError",
    "NewerFormat",
    "NotAStorage",
    "ObjectExists",
    "OptionError",
    "OwnerGone",
    "Packing",
    "PasswordFileError",
    "PoolExhausted",
    "ReadOnlyError",
    "RecoveryNeeded",
    "Report",
    "Restored",
    "ServerError",
    "ServerUnreachable",
    "Session",
    "SharedStorage",
    "Statistics",
    "StorageClosed",
    "StorageInUse",
    "StorageNotEmpty",
    "StorageNotFound",
    "StoreUnreachable",
    "Verified",
    "WireError",
    "WrongKey",
    "__version__",
    "checkpoint_interface",
    "garbage_collection_interface",
    "key_from_command",
    "key_from_environment",
    "key_from_file",
    "list_backups",
    "restore",
    "verify_backups",
]


def __getattr__(name: str) -> object:
    """Import what takes as long as all the rest together, a server and its client, when it is asked for."""
    if name == "SharedStorage":
        from berkeleydb_storage.sharing import SharedStorage

        return SharedStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
