"""What a database of OO7 contains, as numbers and texts: drawn by chance, and the same for everyone.

No database is touched here. What `design` builds, and what `expected` counts, both come from a `Plan`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

ATOMIC_DATES = ASSEMBLY_DATES = MODULE_DATES = range(1000, 2000)
OLD_DATES, YOUNG_DATES = range(1000), range(2000, 3000)
"""Composite parts are older or younger than all assemblies."""
YOUNG = 10
"""One in so many composite parts is young."""
COORDINATES = range(100_000)
TYPES = tuple(f"type{n:06d}" for n in range(10))
"""Of 10 characters each."""
LENGTHS = range(1000)
WORDS = (
    "I",
    "If",
    "a",
    "axle",
    "bearing",
    "bolt",
    "fits",
    "gear",
    "lever",
    "of",
    "part",
    "screw",
    "the",
    "turn",
    "with",
)
"""Texts are made of them; some begin with the letter that T8 counts."""

BEGINNING = "Composite part"
"""Of the text of each document."""


@dataclass(frozen=True)
class Configuration:
    """The size of a database, by the paper's parameters."""

    name: str
    atomic: int
    """Atomic parts in a composite part."""
    document: int
    """Characters of a document."""
    manual: int
    """Characters of a module's manual."""
    composites: int = 500
    """Composite parts of a module."""
    connections: int = 3
    """Connections that begin at an atomic part."""
    levels: int = 7
    """Levels of the hierarchy of assemblies; the lowest is that of the base assemblies."""
    fan_out: int = 3
    """Assemblies below a complex assembly."""
    components: int = 3
    """Composite parts that a base assembly uses alone, and as many that it shares."""
    modules: int = 1

    @property
    def bases(self) -> int:
        """How many base assemblies a module has."""
        return self.fan_out ** (self.levels - 1)

    @property
    def objects_of_a_composite(self) -> int:
        """How many objects belong to a composite part: itself, its document, atomic parts and connections."""
        return 2 + self.atomic * (1 + self.connections)


TINY = Configuration("tiny", atomic=4, document=200, manual=2000, composites=12, levels=4)
"""None of the paper's: to try things out."""
SMALL = Configuration("small", atomic=20, document=2000, manual=100_000)
MEDIUM = Configuration("medium", atomic=200, document=20_000, manual=1_000_000)


@dataclass(frozen=True)
class Link:
    """A connection."""

    to: int
    """Number of the atomic part that it leads to, within the composite part."""
    type: str
    length: int


@dataclass(frozen=True)
class Atomic:
    """An atomic part."""

    id: int
    type: str
    build_date: int
    x: int
    y: int
    document_id: int
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Composite:
    """A composite part with its document."""

    id: int
    type: str
    build_date: int
    title: str
    text: str
    parts: tuple[Atomic, ...]
    """The first is the root part."""


@dataclass(frozen=True)
class Base:
    """A base assembly; by the ids of the composite parts that it uses, some perhaps more than once."""

    id: int
    type: str
    build_date: int
    private: tuple[int, ...]
    shared: tuple[int, ...]


class Plan:
    """A database. Each composite part and base assembly is drawn for itself, by its id: 0, 1, ..."""

    def __init__(self, configuration: Configuration, seed: int = 7) -> None:
        """Draw nothing yet."""
        self.configuration = configuration
        self._seed = seed

    def chance(self, what: str, number: int = 0) -> random.Random:
        """Return the source of all choices for a thing."""
        return random.Random(f"{self._seed} {what} {number}")

    def composites(self) -> Iterator[Composite]:
        """Yield those that the database is built with."""
        return map(self.composite, range(self.configuration.composites * self.configuration.modules))

    def composite(self, number: int) -> Composite:
        """Return one, also one that is added later."""
        chance = self.chance("composite", number)
        young = chance.randrange(YOUNG) == 0
        return Composite(
            number,
            chance.choice(TYPES),
            chance.choice(YOUNG_DATES if young else OLD_DATES),
            title(number),
            self._text(f"{BEGINNING} {number}", self.configuration.document, chance),
            tuple(self._atomic(number, n, chance) for n in range(self.configuration.atomic)),
        )

    def _atomic(self, composite: int, number: int, chance: random.Random) -> Atomic:
        size = self.configuration
        following = (number + 1) % size.atomic  # a ring, so that each part can be reached
        ends = [following, *(chance.randrange(size.atomic) for _ in range(size.connections - 1))]
        return Atomic(
            composite * size.atomic + number,
            chance.choice(TYPES),
            chance.choice(ATOMIC_DATES),
            chance.choice(COORDINATES),
            chance.choice(COORDINATES),
            chance.randrange(size.composites * size.modules),
            tuple(Link(end, chance.choice(TYPES), chance.choice(LENGTHS)) for end in ends),
        )

    def base(self, number: int) -> Base:
        """Return a base assembly: the `number`th of all, from left to right."""
        size = self.configuration
        chance = self.chance("base", number)
        own = range(number // size.bases * size.composites, (number // size.bases + 1) * size.composites)
        everywhere = range(size.composites * size.modules)
        return Base(
            number,
            chance.choice(TYPES),
            chance.choice(ASSEMBLY_DATES),
            tuple(chance.choice(own) for _ in range(size.components)),
            tuple(chance.choice(everywhere) for _ in range(size.components)),
        )

    def bases(self) -> Iterator[Base]:
        """Yield all base assemblies."""
        return map(self.base, range(self.configuration.bases * self.configuration.modules))

    def manual(self, module: int) -> str:
        """Return the text of a module's manual."""
        return self._text(f"Module {module}", self.configuration.manual, self.chance("manual", module))

    def _text(self, beginning: str, length: int, chance: random.Random) -> str:
        words = chance.choices(WORDS, k=length // 3)
        return f"{beginning}: {' '.join(words)}"[:length]


def title(composite: int) -> str:
    """Return the title of a composite part's document."""
    return f"{BEGINNING} {composite:08d}"
