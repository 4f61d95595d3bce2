"""The objects of OO7 for ZODB."""

from collections.abc import Iterator
from typing import Any

from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from persistent import Persistent

from benchmarks.oo7 import model


class Design(model.Design, Persistent):
    """What the root refers to."""


class Module(model.Module, Persistent):
    """The top of a hierarchy of assemblies."""


class Manual(model.Manual, Persistent):
    """A long text."""


class ComplexAssembly(model.ComplexAssembly, Persistent):
    """Consists of assemblies."""


class BaseAssembly(model.BaseAssembly, Persistent):
    """Uses composite parts."""


class CompositePart(model.CompositePart, Persistent):
    """Consists of atomic parts."""


class Document(model.Document, Persistent):
    """Describes a composite part."""


class AtomicPart(model.AtomicPart, Persistent):
    """The smallest part."""


class Connection(model.Connection, Persistent):
    """Leads from an atomic part to another one."""


IntegerIndex, TextIndex = LOBTree, OOBTree


def between(index: LOBTree, low: int, high: int) -> Iterator[Any]:
    """Yield what has the keys from `low` up to, not including, `high`."""
    return index.itervalues(low, high, excludemax=True)


def everything(index: LOBTree) -> Iterator[Any]:
    """Yield all that is in an index, in the order of the keys."""
    return index.itervalues()


def size(index: LOBTree) -> int:
    """Return how many keys an index has, without what they lead to."""
    return len(index)
