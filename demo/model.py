"""The objects of the demo: a library of Python source as a tree with parent pointers, and imports across it."""

from __future__ import annotations

from collections.abc import Iterator

from durus.btree import BTree
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict


class Library(Persistent):
    """Everything that was read. It is root["library"]."""

    def __init__(self, version: str) -> None:
        """Make an empty one of a version of Python."""
        self.version = version
        self.contents: dict[str, Package | Module] = PersistentDict()
        self.modules: BTree = BTree()
        """Dotted name -> Module."""
        self.reviews = Reviews()

    def all_modules(self) -> list[Module]:
        """Return the modules in the order of their names."""
        return list(self.modules.values())


class Reviews(Persistent):
    """How many reviews there were: one object that everybody changes, to make conflicts certain."""

    total = 0


class Package(Persistent):
    """A directory with modules."""

    def __init__(self, name: str, parent: Package | Library) -> None:
        """Make an empty one."""
        self.name = name
        self.parent = parent
        self.contents: dict[str, Package | Module] = PersistentDict()


class Node(Persistent):
    """A piece of source text: it knows what it is in, and which statements are in it."""

    statements: tuple[Statement, ...] = ()

    def __init__(self, parent: Node | Package | Library, first: int, last: int) -> None:
        """Make one that spans these lines and has nothing in it yet."""
        self.parent = parent
        self.first = first
        self.last = last

    @property
    def lines(self) -> int:
        """Number of lines."""
        return self.last - self.first + 1


class Statement(Node):
    """A statement that defines nothing, by the name of its class in `ast`."""

    def __init__(self, parent: Node, first: int, last: int, kind: str) -> None:
        """Make one without statements inside."""
        super().__init__(parent, first, last)
        self.kind = kind


class Scope(Node):
    """What may define classes and functions."""

    definitions: tuple[Scope, ...] = ()

    def __init__(self, parent: Scope | Package | Library, first: int, last: int, name: str) -> None:
        """Make one with nothing in it yet."""
        super().__init__(parent, first, last)
        self.name = name


class Module(Scope):
    """A module, by its dotted name; the ``__init__`` of a package is one, too."""

    imports: tuple[Module, ...] = ()
    reviews = 0

    def __init__(self, parent: Package | Library, name: str, text: str) -> None:
        """Make one without statements."""
        super().__init__(parent, 1, text.count("\n") + 1, name)
        self.source = Source(text)


class Source(Persistent):
    """The text of a module, loaded only when somebody looks at it."""

    def __init__(self, text: str) -> None:
        """Keep it."""
        self.text = text


class Class(Scope):
    """A class definition."""


class Function(Scope):
    """A function or method definition."""

    arguments: tuple[str, ...] = ()


def definitions_in(scope: Scope) -> Iterator[Scope]:
    """Yield all that is defined in a scope, at any depth; itself first."""
    todo = [scope]
    while todo:
        yield (found := todo.pop())
        todo.extend(found.definitions)


def nodes_in(scope: Scope) -> Iterator[Node]:
    """Yield a scope and everything in it: definitions and statements."""
    for definition in definitions_in(scope):
        todo: list[Node] = [definition]
        while todo:
            yield (found := todo.pop())
            todo.extend(found.statements)


def scopes_around(scope: Scope) -> list[Scope]:
    """Return a scope and those that it is in, from the module on, by the parent pointers."""
    found = [scope]
    while isinstance(found[-1].parent, Scope):
        found.append(found[-1].parent)
    return found[::-1]


def path_of(scope: Scope) -> str:
    """Return the dotted name of a definition, that of the module included."""
    return ".".join([each.name for each in scopes_around(scope)])
