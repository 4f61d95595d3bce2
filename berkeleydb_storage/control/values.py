"""What a source tells, as JSON has it, and back. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from berkeleydb_storage.backup.archive import Archived
from berkeleydb_storage.backup.source import Copied, Moment
from berkeleydb_storage.control.protocol import holder, number, position
from berkeleydb_storage.errors import WireError
from berkeleydb_storage.figures import Inside
from berkeleydb_storage.garbage.requests import Packing
from berkeleydb_storage.holding import Held

COMPOSED = ("holds", "archive", "packing", "end")


def from_moment(moment: Moment) -> dict[str, Any]:
    """Return a moment as JSON has it."""
    return {**moment._asdict(), "identity": moment.identity.hex(), "end": list(moment.end)}


def to_moment(values: Any) -> Moment:
    """Return a moment, or raise `WireError`."""
    found = _fields(values, Moment._fields)
    try:
        identity = bytes.fromhex(found["identity"])
    except (TypeError, ValueError):
        raise WireError("an identity has hexadecimal digits: use the same version on both sides") from None
    tid, time, objects = (number(found[name]) for name in ("tid", "time", "objects"))
    return Moment(tid, time, objects, identity, position(found["end"]))


def from_copied(copied: Copied) -> dict[str, Any]:
    """Return what was copied as JSON has it."""
    return {
        "moment": from_moment(copied.moment),
        "first": list(copied.first),
        "description": copied.description,
    }


def to_copied(values: Any) -> Copied:
    """Return what was copied, or raise `WireError`."""
    found = _fields(values, ("moment", "first", "description"))
    description = found["description"]
    if not isinstance(description, dict):
        raise WireError("a description is an object of JSON: use the same version of the package on both sides")
    return Copied(to_moment(found["moment"]), position(found["first"]), description)


class Live(NamedTuple):
    """What an owner tells of itself."""

    pid: int
    version: str
    """Of the package, there."""
    inside: Inside


def to_live(values: Any) -> Live:
    """Return what an owner tells of itself, or raise `WireError`."""
    found = _fields(values, ("pid", "version", "inside"))
    return Live(number(found["pid"]), str(found["version"]), _to_inside(found["inside"]))


def _to_inside(values: Any) -> Inside:
    """Return the figures of an owner, or raise `WireError`; what another version does not tell is None."""
    found = _fields(values, ("objects",))
    inside = {each.name: _figure(found.get(each.name)) for each in fields(Inside) if each.name not in COMPOSED}
    holds = tuple(map(_held, _list(found.get("holds"))))
    packing = _packing(*_list(found["packing"], 3)) if found.get("packing") else None
    end = position(found["end"]) if found.get("end") else None
    archive = _archived(found["archive"]) if found.get("archive") else None
    return Inside(**inside, holds=holds, archive=archive, packing=packing, end=end)


def _held(values: Any) -> Held:
    found = _fields(values, [each.name for each in fields(Held)])
    numbers = (number(found[name]) for name in ("log", "offset", "limit", "bytes"))
    log, offset, limit, size = numbers
    return Held(holder(found["holder"]), log, offset, limit, size, float(_figure(found["since"]) or 0))


def _archived(values: Any) -> Archived:
    found = _fields(values, [each.name for each in fields(Archived)])
    figures: dict[str, Any] = {name: _figure(found[name]) for name in found if name not in ("url", "failing")}
    known = {each.name: figures[each.name] for each in fields(Archived) if each.name in figures}
    return Archived(url=str(found["url"]), failing=str(found["failing"]), **known)


def _packing(activity: Any, done: Any, total: Any) -> Packing:
    return Packing(str(activity), number(done), None if total is None else number(total))


def _list(values: Any, length: int | None = None) -> list[Any]:
    if not isinstance(values, list) or length not in (None, len(values)):
        raise WireError("a list is expected: use the same version of the package on both sides")
    return values


def _figure(value: Any) -> Any:
    if value is not None and not isinstance(value, (bool, int, float)):
        raise WireError("a figure is a number: use the same version of the package on both sides")
    return value


def _fields(values: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return an object that has these fields; others are of a later version."""
    if not isinstance(values, dict) or not values.keys() >= set(names):
        raise WireError(f"{', '.join(names)} are expected: use the same version of the package on both sides")
    return values
