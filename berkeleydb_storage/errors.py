"""The exceptions of this package. Pure: no I/O, no Berkeley DB.

Every error names the thing it is about and what to do next. Two families matter to Durus:

1. A missing object is Durus' own ``DurusKeyError`` (`missing`), because ``Connection`` and ``StorageServer``
   look for that class.
2. A commit that was refused *whole*, so that nothing of it is stored, is a `CommitRefused`, which is a
   ``WriteConflictError``: ``Connection`` then takes its new objects back, and a Durus server that meets one
   answers its client and goes on serving.
"""

from __future__ import annotations

from collections.abc import Sequence

from durus.error import DurusError, DurusKeyError, ProtocolError, WriteConflictError

__all__ = [
    "AccessDenied",
    "AuthenticationError",
    "BackupError",
    "BerkeleyDBStorageError",
    "CertificateError",
    "CommitInDoubt",
    "CommitRefused",
    "CommitUnknown",
    "DamagedBackup",
    "DamagedError",
    "DanglingReferenceError",
    "DiskFullError",
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
    "PasswordFileError",
    "PoolExhausted",
    "ReadOnlyError",
    "RecoveryNeeded",
    "ServerError",
    "ServerUnreachable",
    "StorageClosed",
    "StorageInUse",
    "StorageNotEmpty",
    "StorageNotFound",
    "StoreUnreachable",
    "WireError",
    "WrongKey",
    "describe_oids",
    "missing",
]


class BerkeleyDBStorageError(DurusError):
    """Base of every error of this package."""


class OptionError(BerkeleyDBStorageError, ValueError):
    """Raised when an option has a value that makes no sense, or contradicts how the storage was created."""


class StorageNotFound(BerkeleyDBStorageError, FileNotFoundError):
    """Raised when the path does not exist, or when a directory to be opened read-only holds no storage yet."""


class NotAStorage(BerkeleyDBStorageError):
    """Raised when the path is not a directory, or is a directory with files that are not a storage of ours."""


class NewerFormat(BerkeleyDBStorageError):
    """Raised when the directory was written by a newer version of this package; its files are left untouched."""


class LibraryMismatch(BerkeleyDBStorageError):
    """Raised when another version of the Berkeley DB library wrote the directory; its files are left untouched."""


class StorageInUse(BerkeleyDBStorageError):
    """Raised when another opener holds the directory.

    Attributes:
        pid: the holder's process id, or None where it could not be read.
    """

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class RecoveryNeeded(BerkeleyDBStorageError):
    """Raised when the last owner did not close the storage and ``do_recover=False`` forbids to recover it."""


class DamagedError(BerkeleyDBStorageError):
    """Raised when a file of the storage is missing or its contents are wrong; the message names the file."""


class WrongKey(BerkeleyDBStorageError):
    """Raised when the key is not the one that the storage is encrypted with; its files are left untouched."""


class KeyNeeded(WrongKey):
    """Raised when an encrypted storage is opened without a key; its files are left untouched."""


class KeySourceError(BerkeleyDBStorageError):
    """Raised when the file, command or environment variable that a key is to come from has none; it is named."""


class StorageClosed(BerkeleyDBStorageError, ValueError):
    """Raised when a storage is used after it was closed, or in a process forked from the one that opened it."""


class StorageNotEmpty(BerkeleyDBStorageError):
    """Raised when a migration is asked to write to something that already holds objects."""


class MigrationError(BerkeleyDBStorageError):
    """Raised when a migration's source is inconsistent; the destination is empty again, as it was before."""


class BackupError(BerkeleyDBStorageError):
    """Raised when a backup cannot be made or its place not be used; there is nothing of it, and the storage goes on."""


class LogGone(BackupError):
    """Raised when log files were removed that a backup was to go on with: it begins anew, with a copy of everything."""


class DamagedBackup(BackupError):
    """Raised when something in a backup or an archive is damaged or missing; it is named, and what can be restored."""


class OwnerGone(BackupError):
    """Raised when the process that has a storage open does not answer, or no longer; ask again, or open it."""


class StoreUnreachable(BackupError):
    """Raised when the place of a backup or an archive does not answer, and may do so later."""


class ObjectExists(BackupError):
    """Raised when a store holds an object of that name already; it stays as it is."""


class CommitInDoubt(BerkeleyDBStorageError):
    """Raised when a commit was applied but its log could not be brought to disk.

    Other connections see it, and it becomes durable with the next successful flush; a crash before that loses it.
    """


class ListenError(BerkeleyDBStorageError, OSError):
    """Raised when a server cannot listen on an address; the message names it, and who is in the way."""


class CertificateError(BerkeleyDBStorageError):
    """Raised when a certificate or its key cannot be used; the message names the file."""


class PasswordFileError(BerkeleyDBStorageError):
    """Raised when a password file cannot be used; the message names the file and, where there is one, the line."""


class AuthenticationError(BerkeleyDBStorageError):
    """Raised when the other side could not prove who it is. The message is the same whatever was wrong.

    Attributes:
        reason: what was wrong, for the log; it holds no secret, and nothing that a stranger made up.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class AccessDenied(BerkeleyDBStorageError):
    """Raised when a user asks for something that his rights do not include."""


class CommitRefused(BerkeleyDBStorageError, WriteConflictError):
    """Base of the reasons for which a commit is refused whole: nothing of it was stored.

    Attributes:
        oids: the objects that are the reason, as 8-byte strings; empty where it is none in particular.
    """

    def __init__(self, message: str, oids: Sequence[bytes] = ()) -> None:
        Exception.__init__(self, message)
        self.oids = list(oids)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ReadOnlyError(CommitRefused):
    """Raised when something would write to a storage that was opened read-only."""


class DiskFullError(CommitRefused, OSError):
    """Raised when there is not enough room on the disk to commit safely; try again when there is.

    It is an OSError because Durus' server goes on after one, whatever its client asked for.
    """


class DanglingReferenceError(CommitRefused):
    """Raised when a commit refers to objects that do not exist, for instance because they were collected."""


class ServerError(BerkeleyDBStorageError):
    """Raised when a server refuses a request, for a reason that is in the message.

    Attributes:
        code: the name of the error's class there.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ServerUnreachable(BerkeleyDBStorageError, ConnectionError):
    """Raised when a server cannot be reached, or went away, and did not come back within the time-out.

    Nothing of a commit that was under way is stored.
    """


class PoolExhausted(BerkeleyDBStorageError, TimeoutError):
    """Raised when all connections of a pool were in use for as long as one is waited for."""


class CommitUnknown(BerkeleyDBStorageError):
    """Raised when the connection broke while a commit was under way, and the server did not come back in time.

    Whether the commit is stored is not known; ``fate(error)`` of the client's storage tells when the server is back.

    Attributes:
        mark: the 16 bytes by which the commit is recognised.
        since: a transaction of the storage before the commit.
    """

    def __init__(self, message: str, mark: bytes = b"", since: int = 0) -> None:
        super().__init__(message)
        self.mark = mark
        self.since = since


class WireError(BerkeleyDBStorageError, ProtocolError):
    """Raised when the other side of a connection sends what is against the protocol."""


def describe_oids(oids: Sequence[bytes], limit: int = 10) -> str:
    """Return the first `limit` oids as decimal numbers, and how many more there are."""
    shown = ", ".join(str(int.from_bytes(oid, "big")) for oid in oids[:limit])
    return shown if len(oids) <= limit else f"{shown} and {len(oids) - limit} more"


def missing(oid: bytes) -> DurusKeyError:
    """Return the ``DurusKeyError`` for an oid, complete: Durus' class needs ``oids`` to print itself."""
    error = DurusKeyError(oid)
    error.oids = [oid]
    return error
