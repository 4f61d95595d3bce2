"""What the operations must return, and what the database must hold after them: counted from the plan alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.oo7.building import Builder, dated
from benchmarks.oo7.changes import NEW
from benchmarks.oo7.plan import BEGINNING, Atomic, Composite, Plan
from benchmarks.oo7.queries import LOOKED_UP, composites_of_q4, last_dates
from benchmarks.oo7.traversals import REWORDED, toggled

EVERY, FIRST, SWAPS, DATES = "every", "first", "swaps", "dates"
"""What the traversals that update do: to all atomic parts or to the root parts; to x and y or to the date."""
UPDATES = {
    "T2a": (SWAPS, FIRST, 1),
    "T2b": (SWAPS, EVERY, 1),
    "T2c": (SWAPS, EVERY, 4),
    "T3a": (DATES, FIRST, 1),
    "T3b": (DATES, EVERY, 1),
    "T3c": (DATES, EVERY, 4),
}
"""What, to which parts, and how often each time that a traversal meets them."""


class Expected:
    """Follows what is done to a database."""

    def __init__(self, plan: Plan) -> None:
        """Begin with what was just built."""
        self.plan = plan
        self._size = plan.configuration
        self._bases = list(plan.bases())
        self._dates = [part.build_date for composite in plan.composites() for part in composite.parts]
        self._composite_dates = [composite.build_date for composite in plan.composites()]
        self._met = Counter(number for base in self._bases[: self._size.bases] for number in base.private)
        self._done: Counter[tuple[str, str]] = Counter()
        self._reworded = False
        self._known: dict[str, int] = {}

    def returns(self, name: str) -> int:
        """Return what an operation must return."""
        if name in UPDATES:
            _, which, times = UPDATES[name]
            return times * self._parts_met() if which == EVERY else self._composites_met()
        if name not in self._known:
            self._known[name] = getattr(self, f"_{name.lower()}")()
        return self._known[name]

    def note(self, name: str) -> None:
        """Note that an operation was done."""
        if name in UPDATES:
            what, which, times = UPDATES[name]
            self._done[what, which] += times
        elif name in ("T5do", "T5undo"):
            self._reworded = name == "T5do"

    # --- counts

    def _composites_met(self) -> int:
        return self._size.bases * self._size.components

    def _parts_met(self) -> int:
        return self._composites_met() * self._size.atomic

    _t1 = _parts_met
    _t6 = _composites_met

    def _t4(self) -> int:
        return sum(times * self.plan.composite(number).text.count("I") for number, times in self._met.items())

    def _t5do(self) -> int:
        return len(self._met)

    _t5undo = _t5do

    def _t7(self) -> int:
        size = self._size
        composite = self._bases[self.plan.chance("T7").randrange(size.bases)].private[0]
        places = {base.id for base in self._bases[: size.bases] if composite in base.private}
        return sum(len({place // size.fan_out**level for place in places}) for level in range(size.levels))

    def _t8(self) -> int:
        return self.plan.manual(0).count("I")

    def _t9(self) -> int:
        return int(self.plan.manual(0)[0] == self.plan.manual(0)[-1])

    def _q1(self) -> int:
        return LOOKED_UP

    def _q2(self) -> int:
        return sum(date in last_dates(0.01) for date in self._dates)

    def _q3(self) -> int:
        return sum(date in last_dates(0.1) for date in self._dates)

    def _q4(self) -> int:
        uses = Counter(number for base in self._bases for number in (*base.private, *base.shared))
        return sum(uses[number] for number in composites_of_q4(self.plan))

    def _q5(self) -> int:
        dates = self._composite_dates
        newest = ((max(dates[number] for number in (*base.private, *base.shared)), base) for base in self._bases)
        return sum(date > base.build_date for date, base in newest)

    def _q7(self) -> int:
        return len(self._dates)

    _q8 = _q7

    def _sm1(self) -> int:
        return NEW * self._size.objects_of_a_composite

    _sm2 = _sm1

    # --- contents

    def _times(self, what: str, composite: int, first: bool) -> int:
        times = self._done[what, EVERY] + (self._done[what, FIRST] if first else 0)
        return times * self._met[composite]

    def _part(self, planned: Atomic, composite: Composite) -> tuple[object, ...]:
        first = planned is composite.parts[0]
        swapped = self._times(SWAPS, composite.id, first) % 2
        date = toggled(planned.build_date) if self._times(DATES, composite.id, first) % 2 else planned.build_date
        x, y = (planned.y, planned.x) if swapped else (planned.x, planned.y)
        ends = [composite.parts[link.to].id for link in planned.links]
        return planned.id, planned.type, date, x, y, planned.document_id, ends

    def _text(self, composite: Composite) -> str:
        if self._reworded and composite.id in self._met:
            return REWORDED + composite.text.removeprefix(BEGINNING)
        return composite.text

    def verify(self, builder: Builder, every: int = 1) -> None:
        """Look at what a database holds, where what was inserted was deleted.

        Args:
            builder: of the database.
            every: of how many composite parts one is looked at, with all that belongs to it.

        Raises:
            AssertionError: it is not what it should be.
        """
        design = builder.design
        for index, number in ((design.atomic_by_id, len(self._dates)), (design.atomic_by_date, len(self._dates))):
            assert builder.classes.size(index) == number, "there are too many atomic parts, or too few"
        for index in (design.composites_by_id, design.documents_by_id, design.documents_by_title):
            assert builder.classes.size(index) == len(self._composite_dates), "there are too many composite parts"
        for number in range(0, len(self._composite_dates), every):
            self._verify_composite(design, self.plan.composite(number))
        for base in self._bases[::every]:
            stored = design.bases_by_id[base.id]
            assert tuple(part.id for part in stored.private) == base.private, "an assembly uses other parts"
            assert tuple(part.id for part in stored.shared) == base.shared, "an assembly shares other parts"

    def _verify_composite(self, design: Any, composite: Composite) -> None:
        stored = design.composites_by_id[composite.id]
        assert stored.document.text == self._text(composite), f"document {composite.id} is another one"
        assert stored.document is design.documents_by_title[composite.title]
        for planned in composite.parts:
            part = design.atomic_by_id[planned.id]
            found = (*_attributes(part), [connection.end.id for connection in part.outgoing])
            wanted = self._part(planned, composite)
            assert found == wanted, f"atomic part {planned.id} is {found}, not {wanted}"
            assert design.atomic_by_date[dated(part.build_date, part.id)] is part


def _attributes(part: object) -> Iterator[object]:
    for name in ("id", "type", "build_date", "x", "y", "document_id"):
        yield getattr(part, name)
