"""OO7's traversals, from object to object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from benchmarks.oo7.building import Builder, dated
from benchmarks.oo7.model import BaseAssembly
from benchmarks.oo7.plan import BEGINNING

REWORDED = "This is composite part"
"""How T5 lets the documents begin."""
Visit = Callable[[Any], int]
"""Does something to an atomic part; returns how many updates that was."""


def _components(builder: Builder) -> Iterator[Any]:
    """Yield the unshared composite parts of all base assemblies, down the hierarchy of the first module."""
    todo = [builder.design.modules[0].root]
    while todo:
        assembly = todo.pop()
        if isinstance(assembly, BaseAssembly):
            yield from assembly.private
        else:
            todo.extend(reversed(assembly.below))


def _atomic_parts(composite: Any) -> Iterator[Any]:
    """Yield the atomic parts of a composite part along their connections, depth first, from its root part on."""
    seen: set[int] = set()
    todo = [composite.root]
    while todo:
        part = todo.pop()
        if part.id not in seen:
            seen.add(part.id)
            yield part
            todo.extend([connection.end for connection in part.outgoing])


def t1(builder: Builder) -> int:
    """Visit all atomic parts of all composite parts that are met; return how many."""
    return sum(1 for composite in _components(builder) for _ in _atomic_parts(composite))


def _some(builder: Builder, visit: Visit) -> int:
    """Do as T1, and something to the first atomic part of each composite part."""
    updates = 0
    for composite in _components(builder):
        parts = _atomic_parts(composite)
        updates += visit(next(parts))
        for _ in parts:
            pass
    return updates


def _all(builder: Builder, visit: Visit) -> int:
    """Do as T1, and something to all atomic parts."""
    parts = chain.from_iterable(map(_atomic_parts, _components(builder)))
    return sum(visit(part) for part in parts)


def _swap(part: Any) -> int:
    part.swap()
    return 1


def _four_times(visit: Visit) -> Visit:
    return lambda part: visit(part) + visit(part) + visit(part) + visit(part)


def t2a(builder: Builder) -> int:
    """Update one atomic part of each composite part; return the updates."""
    return _some(builder, _swap)


def t2b(builder: Builder) -> int:
    """Update all atomic parts."""
    return _all(builder, _swap)


def t2c(builder: Builder) -> int:
    """Update all atomic parts, four times each."""
    return _all(builder, _four_times(_swap))


def toggled(date: int) -> int:
    """Return the date that T3 changes another one to, and back."""
    return date ^ 1


def _dating(builder: Builder) -> Visit:
    index = builder.design.atomic_by_date

    def toggle(part: Any) -> int:
        del index[dated(part.build_date, part.id)]
        part.build_date = toggled(part.build_date)
        index[dated(part.build_date, part.id)] = part
        return 1

    return toggle


def t3a(builder: Builder) -> int:
    """Do as T2a, but update an attribute that there is an index of."""
    return _some(builder, _dating(builder))


def t3b(builder: Builder) -> int:
    """Do as T2b, but update an attribute that there is an index of."""
    return _all(builder, _dating(builder))


def t3c(builder: Builder) -> int:
    """Do as T2c, but update an attribute that there is an index of."""
    return _all(builder, _four_times(_dating(builder)))


def t4(builder: Builder) -> int:
    """Count a letter in the documents of all composite parts that are met."""
    return sum(composite.document.text.count("I") for composite in _components(builder))


def _reword(builder: Builder, old: str, new: str) -> int:
    """Let the documents that begin in one way begin in another; return how many did."""
    found = 0
    for composite in _components(builder):
        if composite.document.text.startswith(old):
            composite.document.text = new + composite.document.text.removeprefix(old)
            found += 1
    return found


def t5do(builder: Builder) -> int:
    """Change the beginnings of the documents."""
    return _reword(builder, BEGINNING, REWORDED)


def t5undo(builder: Builder) -> int:
    """Change them back."""
    return _reword(builder, REWORDED, BEGINNING)


def t6(builder: Builder) -> int:
    """Visit only the root part of each composite part that is met."""
    found = 0
    for composite in _components(builder):
        found += composite.root.id >= 0
    return found


def t7(builder: Builder) -> int:
    """Go from an atomic part up to the top of the hierarchy on all ways; return the assemblies met."""
    base = builder.plan.base(builder.plan.chance("T7").randrange(builder.plan.configuration.bases))
    part = builder.design.atomic_by_id[base.private[0] * builder.plan.configuration.atomic]
    seen: set[int] = set()
    todo = list(part.part_of.private_users)
    while todo:
        assembly = todo.pop()
        if assembly is not None and assembly.id not in seen:
            seen.add(assembly.id)
            todo.append(assembly.above)
    return len(seen)


def t8(builder: Builder) -> int:
    """Count a letter in the manual."""
    found: int = builder.design.modules[0].manual.text.count("I")
    return found


def t9(builder: Builder) -> int:
    """Tell whether the manual begins and ends with the same character."""
    text = builder.design.modules[0].manual.text
    return int(text[0] == text[-1])
