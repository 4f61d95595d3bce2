"""Reads the standard library of the running interpreter into the objects of `demo.model`."""

from __future__ import annotations

import ast
import platform
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from durus.connection import Connection

from demo.model import Class, Function, Library, Module, Node, Package, Scope, Statement

DOOMED = "email"
"""The package that the demo deletes."""
MODULES_PER_COMMIT = 10
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class Found(NamedTuple):
    """A module in the file system."""

    name: str
    path: Path


def standard_library() -> Path:
    """Return the directory of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def find_modules(directory: Path, prefix: str = "") -> Iterator[Found]:
    """Yield the modules in a directory and its packages, in the order of their names; no tests."""
    for path in sorted(directory.iterdir()):
        if path.name in LEFT_OUT:
            continue
        if path.suffix == ".py" and path.stem.isidentifier():
            yield Found(prefix.rstrip(".") if path.stem == "__init__" else prefix + path.stem, path)
        elif path.name.isidentifier() and (path / "__init__.py").exists():
            yield from find_modules(path, f"{prefix}{path.name}.")


def choose(found: list[Found], limit: int | None) -> list[Found]:
    """Return so many modules: first those of `DOOMED`, then those that mention it. None: all, in their order."""
    if limit is None:
        return found
    return sorted(
        found, key=lambda module: (not is_doomed(module.name), DOOMED.encode() not in module.path.read_bytes())
    )[:limit]


def is_doomed(name: str) -> bool:
    """Tell whether a dotted name is that of `DOOMED`, or of something in it."""
    return f"{name}.".startswith(f"{DOOMED}.")


class Reader:
    """Reads modules into a library, and commits now and then."""

    def __init__(self, connection: Connection) -> None:
        """Begin with an empty library in the root."""
        self.library = Library(platform.python_version())
        self.objects: Counter[str] = Counter()
        """What was made, by class."""
        self.characters = 0
        self.commits = 0
        self.unreadable: list[str] = []
        self._imports: list[tuple[Module, set[str]]] = []
        self._connection = connection
        connection.get_root()["library"] = self.library

    def read(self, found: list[Found], progress: Callable[[str, int], None]) -> None:
        """Read all modules, then connect those that import each other."""
        for number, module in enumerate(found, 1):
            try:
                with tokenize.open(module.path) as file:
                    text = file.read()
                tree = parse(text)
            except (SyntaxError, ValueError):
                self.unreadable.append(module.name)
                continue
            self._add(module, text, tree)
            if number % MODULES_PER_COMMIT == 0:
                self._commit()
                progress("reading", number)
        for importer, names in self._imports:
            importer.imports = self._resolve(importer, names)
        self._commit()

    def _commit(self) -> None:
        self._connection.commit()
        self.commits += 1

    def _add(self, found: Found, text: str, tree: ast.Module) -> None:
        is_package = found.path.stem == "__init__"
        parent = self._package(found.name if is_package else found.name.rpartition(".")[0])
        module = Module(parent, found.name, text)
        self._fill(module, module, tree)
        parent.contents[found.path.stem] = module
        self.library.modules[found.name] = module
        self.objects.update(["Module", "Source"])
        self.characters += len(text)
        package = found.name if is_package else found.name.rpartition(".")[0]
        self._imports.append((module, imported_names(tree, package)))

    def _package(self, name: str) -> Package | Library:
        """Return the package of a dotted name, made where it is missing."""
        above: Package | Library = self.library
        path = ""
        for part in name.split(".") if name else ():
            path = f"{path}.{part}".lstrip(".")
            package = above.contents.get(part)
            if package is None:
                package = above.contents[part] = Package(path, above)
                self.objects["Package"] += 1
            assert isinstance(package, Package)
            above = package
        return above

    def _fill(self, node: Node, scope: Scope, source: ast.AST) -> None:
        """Put into `node`, which is or is in `scope`, what is in its source."""
        definitions: list[Scope] = []
        statements: list[Statement] = []
        for statement in statements_in(source):
            made = make(statement, node, scope)
            self.objects[type(made).__name__] += 1
            if isinstance(made, Statement):
                statements.append(made)
                self._fill(made, scope, statement)
            else:
                definitions.append(made)
                self._fill(made, made, statement)
        if statements:
            node.statements = tuple(statements)
        if definitions:
            scope.definitions += tuple(definitions)

    def _resolve(self, importer: Module, names: set[str]) -> tuple[Module, ...]:
        modules = self.library.modules
        return tuple([modules[name] for name in sorted(names - {importer.name}) if name in modules])


def parse(text: str) -> ast.Module:
    """Parse source text, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def make(statement: ast.stmt, node: Node, scope: Scope) -> Scope | Statement:
    """Return the object for a statement of `node` in `scope`, with nothing in it."""
    first, last = statement.lineno, statement.end_lineno or statement.lineno
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        function = Function(scope, first, last, statement.name)
        function.arguments = tuple([each.arg for each in statement.args.args])
        return function
    if isinstance(statement, ast.ClassDef):
        return Class(scope, first, last, statement.name)
    return Statement(node, first, last, type(statement).__name__)


def statements_in(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements right inside a node: those of a handler or a case, too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
            yield from statements_in(child)


def imported_names(tree: ast.Module, package: str) -> set[str]:
    """Return the dotted names that a module of `package` may import; some are no modules."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names
