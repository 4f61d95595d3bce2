"""OO7's queries, through the indexes. Each part that is found is looked at. Q6 is left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.oo7.building import Builder, dated
from benchmarks.oo7.plan import ATOMIC_DATES, Plan, title

LOOKED_UP, TITLES = 10, 100
"""How many Q1 and Q4 look up."""


def _looked_at(parts: Iterable[Any]) -> int:
    return sum(part.x >= 0 for part in parts)


def parts_of_q1(plan: Plan) -> list[int]:
    """Return the ids that Q1 looks up."""
    size = plan.configuration
    return plan.chance("Q1").choices(range(size.composites * size.modules * size.atomic), k=LOOKED_UP)


def q1(builder: Builder) -> int:
    """Look up atomic parts by id; return how many were found."""
    index = builder.design.atomic_by_id
    return _looked_at(index[number] for number in parts_of_q1(builder.plan))


def last_dates(share: float) -> range:
    """Return the last so many of the dates that atomic parts have."""
    return ATOMIC_DATES[-round(len(ATOMIC_DATES) * share) :]


def _dated(builder: Builder, share: float) -> int:
    dates = last_dates(share)
    found = builder.classes.between(builder.design.atomic_by_date, dated(dates.start, 0), dated(dates.stop, 0))
    return _looked_at(found)


def q2(builder: Builder) -> int:
    """Find the atomic parts with the last 1 % of the dates."""
    return _dated(builder, 0.01)


def q3(builder: Builder) -> int:
    """Find the atomic parts with the last 10 % of the dates."""
    return _dated(builder, 0.1)


def composites_of_q4(plan: Plan) -> list[int]:
    """Return the composite parts whose documents Q4 looks up."""
    return plan.chance("Q4").choices(range(plan.configuration.composites * plan.configuration.modules), k=TITLES)


def q4(builder: Builder) -> int:
    """Find the base assemblies that use the composite parts of some documents; return how often they do."""
    found = 0
    for number in composites_of_q4(builder.plan):
        part = builder.design.documents_by_title[title(number)].part
        found += sum(base.id >= 0 for base in (*part.private_users, *part.shared_users))
    return found


def q5(builder: Builder) -> int:
    """Find the base assemblies that use a composite part with a later date than their own."""
    bases = builder.classes.everything(builder.design.bases_by_id)
    return sum(_is_outdated(base) for base in bases)


def _is_outdated(base: Any) -> bool:
    return any(part.build_date > base.build_date for part in (*base.private, *base.shared))


def q7(builder: Builder) -> int:
    """Look at all atomic parts."""
    return _looked_at(builder.classes.everything(builder.design.atomic_by_id))


def q8(builder: Builder) -> int:
    """Find all pairs of an atomic part and the document that has the number that the part notes."""
    documents = builder.design.documents_by_id
    parts = builder.classes.everything(builder.design.atomic_by_id)
    return sum(documents[part.document_id].id == part.document_id for part in parts)
