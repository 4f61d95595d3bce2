"""The objects of OO7, without the base class that makes them persistent; `durus_classes` and `zodb_classes` have that.

Associations go both ways, as in the paper. A list is never changed in place, only replaced: so that it is seen.
"""

from __future__ import annotations

from typing import Any


class Designed:
    """What has an id, a type and a date of its own."""

    def __init__(self, id: int, type: str, build_date: int) -> None:
        self.id = id
        self.type = type
        self.build_date = build_date


class Design:
    """What the root refers to: the modules, and the indexes."""

    def __init__(self, integers: Any, texts: Any) -> None:
        """Begin empty.

        Args:
            integers: makes an index whose keys are integers.
            texts: makes one whose keys are strings.
        """
        self.modules: list[Any] = []
        self.atomic_by_id = integers()
        self.atomic_by_date = integers()
        self.composites_by_id = integers()
        self.documents_by_id = integers()
        self.documents_by_title = texts()
        self.bases_by_id = integers()


class Module(Designed):
    """The top of a hierarchy of assemblies."""

    manual: Any = None
    root: Any = None
    assemblies: tuple[Any, ...] = ()


class Manual:
    """A long text."""

    def __init__(self, title: str, id: int, text: str, module: Any) -> None:
        self.title = title
        self.id = id
        self.text = text
        self.module = module


class ComplexAssembly(Designed):
    """Consists of assemblies."""

    module: Any = None
    above: Any = None
    below: tuple[Any, ...] = ()


class BaseAssembly(Designed):
    """Uses composite parts."""

    module: Any = None
    above: Any = None
    private: tuple[Any, ...] = ()
    shared: tuple[Any, ...] = ()


class CompositePart(Designed):
    """Consists of atomic parts, which are connected."""

    document: Any = None
    private_users: tuple[Any, ...] = ()
    shared_users: tuple[Any, ...] = ()
    parts: tuple[Any, ...] = ()
    root: Any = None


class Document:
    """Describes a composite part."""

    def __init__(self, title: str, id: int, text: str, part: Any) -> None:
        self.title = title
        self.id = id
        self.text = text
        self.part = part


class AtomicPart(Designed):
    """The smallest part."""

    part_of: Any = None
    outgoing: tuple[Any, ...] = ()
    incoming: tuple[Any, ...] = ()

    def place(self, x: int, y: int, document_id: int) -> None:
        """Set its other attributes."""
        self.x = x
        self.y = y
        self.document_id = document_id

    def swap(self) -> None:
        """Exchange x and y: how T2 updates."""
        self.x, self.y = self.y, self.x


class Connection:
    """Leads from an atomic part to another one of the same composite part."""

    def __init__(self, type: str, length: int, origin: Any, end: Any) -> None:
        self.type = type
        self.length = length
        self.origin = origin
        self.end = end
