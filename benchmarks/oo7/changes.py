"""OO7's structural modifications: new composite parts are inserted, and deleted again."""

from __future__ import annotations

from typing import Any

from benchmarks.oo7.building import Builder, dated
from benchmarks.oo7.plan import Plan

NEW = 5
"""Composite parts that SM1 inserts."""
USERS = 10
"""Base assemblies that use them, each one of them."""


def users_of_new(plan: Plan, batch: int) -> list[int]:
    """Return the base assemblies that use what SM1 inserts."""
    return plan.chance("SM1", batch).sample(range(plan.configuration.bases * plan.configuration.modules), USERS)


def new_parts(plan: Plan, batch: int) -> range:
    """Return the ids of the composite parts that SM1 inserts when it is called for the `batch`th time."""
    first = plan.configuration.composites * plan.configuration.modules + batch * NEW
    return range(first, first + NEW)


class Changes:
    """Knows what was inserted, and not deleted yet."""

    def __init__(self) -> None:
        """Nothing was inserted yet."""
        self.batches: list[int] = []
        self._inserted = 0

    def sm1(self, builder: Builder) -> int:
        """Insert composite parts, and let base assemblies use them; return how many objects that made."""
        batch, self._inserted = self._inserted, self._inserted + 1
        self.batches.append(batch)
        parts = [builder.composite(builder.plan.composite(number)) for number in new_parts(builder.plan, batch)]
        for n, number in enumerate(users_of_new(builder.plan, batch)):
            base, part = builder.design.bases_by_id[number], parts[n % NEW]
            base.private = (*base.private, part)
            part.private_users = (*part.private_users, base)
        return sum(_objects(part) for part in parts)

    def sm2(self, builder: Builder) -> int:
        """Delete what was inserted first: nothing refers to it any more; return how many objects that was."""
        parts = [builder.design.composites_by_id[number] for number in new_parts(builder.plan, self.batches.pop(0))]
        found = sum(_objects(part) for part in parts)
        for part in parts:
            _delete(builder.design, part)
        return found


def _objects(composite: Any) -> int:
    return 2 + sum(1 + len(part.outgoing) for part in composite.parts)


def _delete(design: Any, composite: Any) -> None:
    for base in composite.private_users:
        base.private = tuple(part for part in base.private if part is not composite)
    for part in composite.parts:
        del design.atomic_by_id[part.id]
        del design.atomic_by_date[dated(part.build_date, part.id)]
    del design.composites_by_id[composite.id]
    del design.documents_by_id[composite.id]
    del design.documents_by_title[composite.document.title]
