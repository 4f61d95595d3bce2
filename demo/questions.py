"""Questions that the demo asks the library. Each takes the root object `Library` and returns its answer as text."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from demo.model import Class, Function, Library, Module, Scope, definitions_in, path_of, scopes_around

SUBJECT = "email"
"""The module of the question who imports it, over however many others."""


def most_imported(library: Library) -> str:
    """Name the modules that most others import."""
    importers = Counter(target.name for module in library.all_modules() for target in module.imports)
    best = sorted(importers.items(), key=lambda item: (-item[1], item[0]))[:4]
    return ", ".join(f"{name} ({number})" for name, number in best)


def transitive_importers(library: Library) -> str:
    """Say how many modules import `SUBJECT` in the end."""
    importers: dict[str, list[str]] = {}
    for module in library.all_modules():
        for target in module.imports:
            importers.setdefault(target.name, []).append(module.name)
    seen, todo = {SUBJECT}, deque([SUBJECT])
    while todo:
        fresh = set(importers.get(todo.popleft(), ())) - seen
        seen |= fresh
        todo.extend(sorted(fresh))
    return f"{len(seen) - 1} of {len(library.modules)} modules"


def longest_function(library: Library) -> str:
    """Name the function with most lines."""
    longest = max(_all(library, Function), key=lambda function: function.lines, default=None)
    return "there is none" if longest is None else f"{path_of(longest)}, {longest.lines} lines"


def deepest_class(library: Library) -> str:
    """Name the class that is in most other definitions."""
    deepest = max(_all(library, Class), key=lambda scope: len(scopes_around(scope)), default=None)
    return "there is none" if deepest is None else path_of(deepest)


def _all(library: Library, kind: type[Scope]) -> Iterator[Scope]:
    for module in library.all_modules():
        yield from (scope for scope in definitions_in(module) if isinstance(scope, kind))


def longest_line(library: Library) -> str:
    """Name the module with the longest line, out of all source texts."""
    longest = max(library.all_modules(), key=_widest)
    return f"{longest.name}, {_widest(longest)} characters"


def _widest(module: Module) -> int:
    return max(map(len, module.source.text.splitlines()), default=0)


QUESTIONS: dict[str, Callable[[Library], str]] = {
    "Which modules do most others import?": most_imported,
    f"How many import {SUBJECT}, directly or not?": transitive_importers,
    "Which source line is the longest?": longest_line,
    "Which function is the longest?": longest_function,
    "Which class is nested the deepest?": deepest_class,
}
