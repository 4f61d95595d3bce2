"""What a server refuses, as exceptions. Pure.

Which class a name means is decided here, not by the server: it can make a client raise what is listed, nothing
else.
"""

from __future__ import annotations

from durus.error import ReadConflictError, WriteConflictError

from berkeleydb_storage import errors
from berkeleydb_storage.errors import (
    CommitInDoubt,
    CommitRefused,
    DanglingReferenceError,
    DiskFullError,
    ReadOnlyError,
    ServerError,
)
from berkeleydb_storage.protocol import unpack_refusal

_CONFLICTS = {error.__name__: error for error in (ReadConflictError, WriteConflictError)}
_REFUSALS = {error.__name__: error for error in (CommitRefused, DanglingReferenceError, DiskFullError, ReadOnlyError)}
_ERRORS = {
    error.__name__: error
    for error in (errors.AccessDenied, errors.AuthenticationError, errors.DamagedError, errors.WireError)
}


def conflict(payload: bytes) -> Exception:
    """Return the error for `REFUSED`: nothing was stored.

    Raises:
        WireError: the payload is malformed.
    """
    code, oids, message = unpack_refusal(payload)
    if code in _CONFLICTS:
        found: Exception = _CONFLICTS[code](oids or None)
        return found
    return _REFUSALS.get(code, CommitRefused)(message, oids)


def doubt(payload: bytes) -> Exception:
    """Return the error for `DOUBT`: stored, but not on the disk.

    Raises:
        WireError: the payload is malformed.
    """
    return CommitInDoubt(unpack_refusal(payload).message)


def failure(payload: bytes) -> Exception:
    """Return the error for `ERROR`.

    Raises:
        WireError: the payload is malformed.
    """
    code, oids, message = unpack_refusal(payload)
    if code in _REFUSALS:
        return _REFUSALS[code](message, oids)
    if code in _ERRORS:
        found: Exception = _ERRORS[code](message)
        return found
    return ServerError(f"the server: {message}", code)
