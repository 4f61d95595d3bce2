"""Records for people: the name of a class, the state as text, a line of JSON and back. Pure.

No class of the application is imported, and nothing is called that a record names, but for a few plain values such as
sets and dates.
"""

from __future__ import annotations

import binascii
import json
import pickle
import pickletools
import re
import zlib
from base64 import b64decode, b64encode
from io import BytesIO
from reprlib import recursive_repr
from typing import Any

from berkeleydb_storage.format import OID_LENGTH, RECORD_HEADER, pack_uint64, references, unpack_uint64

UNKNOWN = "?"
"""The name of a class that cannot be told."""

_simple_class = re.compile(rb"\x80.c([^\n]*)\n([^\n]*)\n", re.DOTALL).match
_GETATTR = ("__builtin__ getattr", "builtins getattr")
_PLAIN = {
    "__builtin__": {"bytearray", "bytes", "complex", "frozenset", "set"},
    "builtins": {"bytearray", "bytes", "complex", "frozenset", "set"},
    "collections": {"OrderedDict"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
}


def class_name(record: bytes) -> str:
    """Return module and name of an object's class, `UNKNOWN` where its record does not tell."""
    found = _simple_class(record, RECORD_HEADER)
    if found is None:
        return UNKNOWN
    if found[2] == b"getattr":
        return _nested_class(record) or UNKNOWN
    return b".".join(found.groups()).decode("utf-8", "backslashreplace")


def _nested_class(record: bytes) -> str:
    """Return the name of a class within a class, which is pickled as a call of getattr."""
    names: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(record[RECORD_HEADER:]):
            if operation.name == "GLOBAL" and argument not in _GETATTR:
                names += str(argument).split(" ")
            elif "UNICODE" in operation.name:
                names.append(str(argument))
    except ValueError:
        return ""
    return ".".join(names)


class _StandIn:
    """An instance of whatever class a record names: what it was made of."""

    _parts: list[Any]

    def __new__(cls, *parts: Any, **_: Any) -> _StandIn:
        made = object.__new__(cls)
        made._parts = list(parts)
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        self._parts.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._parts.append({key: value})

    def append(self, value: Any) -> None:
        self._parts.append(value)

    @recursive_repr()
    def __repr__(self) -> str:
        kind = type(self)
        return f"{kind.__module__}.{kind.__qualname__}({', '.join(map(repr, self._parts))})"


class _Reference:
    """A reference to another object."""

    def __init__(self, oid: bytes | str, kind: type) -> None:
        self._oid = oid if isinstance(oid, bytes) else oid.encode("latin1")
        self._kind = kind

    def __repr__(self) -> str:
        return f"<object {int.from_bytes(self._oid, 'big')}: {self._kind.__module__}.{self._kind.__qualname__}>"


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if name == "getattr" and module in _PLAIN:
            return _nested
        return _stand_in(module, name)

    def persistent_load(self, pid: Any) -> _Reference:
        return _Reference(*pid)


def _stand_in(module: str, name: str) -> type[_StandIn]:
    return type(name, (_StandIn,), {"__module__": module, "__qualname__": name})


def _nested(outer: type[_StandIn], name: str) -> type[_StandIn]:
    """Stand in for getattr, by which a class within a class is pickled."""
    if not issubclass(outer, _StandIn):
        raise pickle.UnpicklingError(f"an attribute {name!r} of something")
    return _stand_in(outer.__module__, f"{outer.__qualname__}.{name}")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Make bytes, as pickles of protocol 2 do."""
    return text.encode(encoding)


def state_text(record: bytes) -> str:
    """Return the state of an object as Python would show it, its references as ``<object 12: module.Class>``."""
    try:
        return repr(_state(record))
    except Exception as error:  # a pickle can raise anything
        return f"(not readable: {type(error).__name__}: {error})"


def _state(record: bytes) -> Any:
    """Return the state; like Durus, read two pickles with one unpickler, the second of which may be compressed."""
    end = RECORD_HEADER + int.from_bytes(record[OID_LENGTH:RECORD_HEADER], "big")
    data = record[RECORD_HEADER:end]
    source = BytesIO(data)
    reader = _Reader(source)
    reader.load()
    position = source.tell()
    if data[position : position + 1] == b"x":
        source.write(zlib.decompress(data[position:]))
        source.seek(position)
    return reader.load()


def to_text(oid: bytes, record: bytes) -> str:
    """Return an object as two lines for people: what it is and refers to, and its state."""
    try:
        others = " ".join(str(unpack_uint64(ref)) for ref in references(oid, record))
    except ValueError as error:
        others = f"(not readable: {error})"
    head = f"object {unpack_uint64(oid)}: {class_name(record)}, {len(record)} bytes"
    return f"{head}{', refers to ' if others else ''}{others}\n    {state_text(record)}\n"


def to_json(oid: bytes, record: bytes) -> str:
    """Return an object as one line of JSON, from which `from_json` gets the record back exactly."""
    values: dict[str, Any] = {"oid": unpack_uint64(oid), "class": class_name(record), "size": len(record)}
    try:
        values["references"] = [unpack_uint64(ref) for ref in references(oid, record)]
    except ValueError as error:
        values["error"] = str(error)
    values["record"] = b64encode(record).decode()
    return json.dumps(values) + "\n"


def from_json(line: bytes | str) -> tuple[bytes, bytes]:
    """Return (oid, record) of a line that `to_json` made.

    Only `oid`, `size` and `record` are read: the rest is in the record.

    Raises:
        ValueError: it says what is wrong with the line.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    number, text = values.get("oid"), values.get("record")
    if type(number) is not int or not 0 <= number < 1 << 64:
        raise ValueError(f'"oid" is {number!r}, and must be a number of at most 64 bits')
    if not isinstance(text, str):
        raise ValueError(f'"record" is {type(text).__name__}, and must be text')
    try:
        record = b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f'"record" is not base64: {error}') from None
    if values.get("size", len(record)) != len(record):
        raise ValueError(f'"size" is {values["size"]!r}, and the record has {len(record)} bytes')
    oid = pack_uint64(number)
    references(oid, record)
    return oid, record
