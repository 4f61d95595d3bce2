"""What goes over the control socket: requests and answers, bytes ↔ values. Pure: no I/O.

A connection carries one request, a line of JSON, and its answer: frames of one byte for the kind, four for the length
of what follows, and that. The last frame is a result or an error. See the chapter in docs/PROTOCOL.md.

Both sides take what comes for hostile: whatever is not exactly as described here raises a `WireError`, and nothing is
longer than is said here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from berkeleydb_storage import errors
from berkeleydb_storage.errors import BackupError, BerkeleyDBStorageError, WireError
from berkeleydb_storage.files import Position

CONTROL = "control"
"""The name of the socket, in the directory of the storage."""
VERSION = 1
LONGEST_REQUEST = 4096
"""Bytes of a request, with the newline."""
LONGEST_BODY = 1 << 20
"""Bytes of a frame without its header."""
LONGEST_PART = LONGEST_BODY - 256
"""Bytes of a file in a frame."""
LONGEST_TEXT = 100_000
"""Characters of the text of an error."""
LONGEST_HOLDER = 500
"""Characters of the name of a holder."""
LARGEST = 1 << 63
"""Numbers are below it."""
HEADER = struct.Struct(">cI")

CHUNK = b"c"
"""Bytes of a file: the length of its name in one byte, the name, the bytes."""
RESULT = b"r"
"""JSON, what was asked for: the end."""
ERROR = b"e"
"""JSON, the class and the text of an error: the end."""
KINDS = (CHUNK, RESULT, ERROR)

_FILE = re.compile(r"[a-z]{1,100}\.db|log\.[0-9]{10}", re.ASCII)
_BOTH = "use the same version of the package on both sides"


class Request(NamedTuple):
    """What is asked for."""

    name: str
    arguments: dict[str, Any]


def number(value: Any) -> int:
    """Return a number, or raise `WireError`."""
    if type(value) is not int or not 0 <= value < LARGEST:
        raise WireError(f"a number is expected, from 0 to 2**63 - 1: {_BOTH}")
    return value


def holder(value: Any) -> str:
    """Return the name of a holder, or raise `WireError`."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_HOLDER or not value.isprintable():
        raise WireError(f"the name of a holder has 1 to {LONGEST_HOLDER} printable characters: choose another")
    return value


def position(value: Any) -> Position:
    """Return a place in the log, or raise `WireError`."""
    if not isinstance(value, list) or len(value) != len(Position._fields):
        raise WireError(f"a place in the log is a pair of numbers: {_BOTH}")
    return Position(*map(number, value))


REQUESTS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "ping": {},
    "statistics": {},
    "look": {},
    "copy": {},
    "log": {"start": position, "end": position},
    "hold": {"holder": holder, "start": position, "limit": number},
    "release": {"holder": holder},
    "held": {"holder": holder},
}
"""What can be asked for, and the arguments of each, in their order."""


def encode_request(name: str, *arguments: object) -> bytes:
    """Return a request as bytes.

    Raises:
        WireError: an argument is none.
    """
    values = dict(zip(REQUESTS[name], arguments, strict=True))
    text = json.dumps({"protocol": VERSION, "request": name, **values}, ensure_ascii=False)
    line = text.encode("utf-8", "surrogatepass") + b"\n"
    decode_request(line)
    return line


def decode_request(line: bytes) -> Request:
    """Return what a line asks for.

    Raises:
        WireError: it is none.
    """
    if len(line) > LONGEST_REQUEST or not line.endswith(b"\n"):
        raise WireError(f"a request is a line of at most {LONGEST_REQUEST} bytes: {_BOTH}")
    values = _object(line, "a request")
    if values.pop("protocol", None) != VERSION:
        raise WireError(f"this process speaks version {VERSION} of the control protocol: {_BOTH}")
    name = values.pop("request", None)
    known = REQUESTS.get(name) if isinstance(name, str) else None
    if known is None or known.keys() != values.keys():
        raise WireError(f"there is no such request: {_BOTH}")
    return Request(str(name), {key: check(values[key]) for key, check in known.items()})


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise WireError(f"{what} is an object of JSON: {_BOTH}")
    return values


def encode_header(kind: bytes, length: int) -> bytes:
    """Return the header of a frame whose body has `length` bytes."""
    return HEADER.pack(kind, length)


def decode_header(data: bytes) -> tuple[bytes, int]:
    """Return the kind of a frame, and the length of its body.

    Raises:
        WireError: there is no such kind, or it is too long.
    """
    kind, length = HEADER.unpack(data)
    if kind not in KINDS or length > LONGEST_BODY:
        raise WireError("no owner of a storage answers so: look who listens on the control socket")
    return kind, length


def encode_chunk(name: str) -> bytes:
    """Return what comes before the bytes of a file, in the body of a frame."""
    encoded = _require_file(name).encode()
    return bytes([len(encoded)]) + encoded


def decode_chunk(body: bytes) -> tuple[str, bytes]:
    """Return the name of a file, and bytes of it.

    Raises:
        WireError: it is none of a storage.
    """
    end = 1 + (body[0] if body else 0)
    return _require_file(body[1:end].decode("ascii", "replace")), body[end:]


def _require_file(name: str) -> str:
    """Return the name of a table or a log file: it cannot lead anywhere else."""
    if _FILE.fullmatch(name) is None:
        raise WireError(f"{name!r} is no file of a storage that is copied: {_BOTH}")
    return name


def encode_result(values: object) -> bytes:
    """Return a result as the body of a frame."""
    return json.dumps({"result": values}).encode()


def decode_result(body: bytes) -> Any:
    """Return a result.

    Raises:
        WireError: it is none.
    """
    values = _object(body, "a result")
    if values.keys() != {"result"}:
        raise WireError(f"no result came: {_BOTH}")
    return values["result"]


def encode_error(error: BerkeleyDBStorageError) -> bytes:
    """Return an error as the body of a frame."""
    known = next(each.__name__ for each in type(error).__mro__ if _class(each.__name__) is each)
    return json.dumps({"class": known, "text": str(error)[:LONGEST_TEXT]}).encode()


def decode_error(body: bytes) -> BerkeleyDBStorageError:
    """Return an error: of the same class and with the same text; a `BackupError` where the class is not known here.

    Raises:
        WireError: it is none.
    """
    values = _object(body, "an error")
    text = values.get("text")
    if not isinstance(text, str):
        raise WireError(f"an error has a text: {_BOTH}")
    return (_class(values.get("class")) or BackupError)(text)


def _class(name: object) -> type[BerkeleyDBStorageError] | None:
    found = getattr(errors, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, BerkeleyDBStorageError) else None
