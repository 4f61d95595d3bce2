"""Builds a database of OO7 from its plan."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from types import ModuleType
from typing import Any

from benchmarks.oo7.plan import ASSEMBLY_DATES, MODULE_DATES, Atomic, Base, Composite, Plan
from benchmarks.peers.contract import Database

ROOT = "OO7"
"""Where the root refers to the design."""
TOGETHER = 1000
"""About as many objects are committed at once."""


class Builder:
    """Makes the objects of a plan, and notes them in the indexes."""

    def __init__(self, database: Database, plan: Plan) -> None:
        """Use a database that is open; with a design, or without one yet."""
        self.plan = plan
        self.classes = classes_of(database)
        self._database = database
        self.design: Any = database.root.get(ROOT)

    def build(self) -> float:
        """Build everything; return the seconds that making and committing the objects took.

        Drawing what they contain does not count: it is the same for everyone.
        """
        classes = self.classes
        self.design = classes.Design(classes.IntegerIndex, classes.TextIndex)
        self._database.root[ROOT] = self.design
        size = self.plan.configuration
        every = max(1, TOGETHER // size.objects_of_a_composite)
        gc.collect()
        gc.disable()  # it would go through all objects again and again, the same for everyone
        try:
            together = batched(self.plan.composites(), every)
            return sum(map(self._composites, together)) + sum(map(self._module, range(size.modules)))
        finally:
            gc.enable()

    def _composites(self, planned: Sequence[Composite]) -> float:
        started = time.perf_counter()
        for each in planned:
            self.composite(each)
        self._database.commit()
        return time.perf_counter() - started

    # --- composite parts

    def composite(self, planned: Composite) -> Any:
        """Make a composite part with all that belongs to it."""
        part = self.classes.CompositePart(planned.id, planned.type, planned.build_date)
        document = self.classes.Document(planned.title, planned.id, planned.text, part)
        part.document = document
        part.parts = tuple(self._atomic(atomic, part) for atomic in planned.parts)
        part.root = part.parts[0]
        self._connect(planned, part.parts)
        self.design.composites_by_id[planned.id] = part
        self.design.documents_by_id[planned.id] = document
        self.design.documents_by_title[planned.title] = document
        return part

    def _atomic(self, planned: Atomic, composite: Any) -> Any:
        part = self.classes.AtomicPart(planned.id, planned.type, planned.build_date)
        part.place(planned.x, planned.y, planned.document_id)
        part.part_of = composite
        self.design.atomic_by_id[planned.id] = part
        self.design.atomic_by_date[dated(planned.build_date, planned.id)] = part
        return part

    def _connect(self, planned: Composite, parts: tuple[Any, ...]) -> None:
        for atomic, part in zip(planned.parts, parts, strict=True):
            ends = [(link, parts[link.to]) for link in atomic.links]
            part.outgoing = tuple(self.classes.Connection(link.type, link.length, part, end) for link, end in ends)
            for connection, (_, end) in zip(part.outgoing, ends, strict=True):
                end.incoming = (*end.incoming, connection)

    # --- modules

    def _module(self, number: int) -> float:
        size = self.plan.configuration
        manual = self.plan.manual(number)
        bases = iter([self.plan.base(number * size.bases + n) for n in range(size.bases)])
        started = time.perf_counter()
        module = self.classes.Module(number, "module", MODULE_DATES[number])
        module.manual = self.classes.Manual(f"Module {number}", number, manual, module)
        assemblies: list[Any] = []
        module.root = self._assembly(module, None, size.levels, bases.__next__, assemblies)
        module.assemblies = tuple(assemblies)
        self.design.modules = [*self.design.modules, module]
        self._database.commit()
        return time.perf_counter() - started

    def _assembly(
        self, module: Any, above: Any, level: int, next_base: Callable[[], Base], assemblies: list[Any]
    ) -> Any:
        if level == 1:
            assembly = self._base(next_base())
        else:
            number = -1 - len(assemblies)  # no base assembly has a negative one
            assembly = self.classes.ComplexAssembly(number, "complex", ASSEMBLY_DATES[len(assemblies)])
            assemblies.append(assembly)
            fan_out = range(self.plan.configuration.fan_out)
            below = [self._assembly(module, assembly, level - 1, next_base, assemblies) for _ in fan_out]
            assembly.below = tuple(below)
        assembly.module, assembly.above = module, above
        return assembly

    def _base(self, planned: Base) -> Any:
        base = self.classes.BaseAssembly(planned.id, planned.type, planned.build_date)
        base.private = tuple(self.design.composites_by_id[number] for number in planned.private)
        base.shared = tuple(self.design.composites_by_id[number] for number in planned.shared)
        for part in base.private:
            part.private_users = (*part.private_users, base)
        for part in base.shared:
            part.shared_users = (*part.shared_users, base)
        self.design.bases_by_id[planned.id] = base
        return base


def classes_of(database: Database) -> ModuleType:
    """Return the module with the classes of a database's toolkit."""
    return import_module(f"benchmarks.oo7.{database.toolkit}_classes")


def batched(things: Iterable[Any], number: int) -> Iterator[list[Any]]:
    """Yield all things, so many together."""
    source = iter(things)
    while batch := list(islice(source, number)):
        yield batch


def dated(date: int, number: int) -> int:
    """Return the key of an atomic part in the index of build dates, where several have the same date."""
    return date << 32 | number
