"""Graphs of objects, as records: trees with pointers to the parents, lists, rings; and how they lose referrers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from durus.storage import Storage

from benchmarks.objects.records import record
from berkeleydb_storage.format import pack_oids, pack_uint64

ROOT = 0
POPULAR = 5
"""Objects that many others refer to."""
SHARE = 0.3
"""How many of the nodes of trees and rings refer to a popular object."""


class Graph:
    """Objects, numbered from 0, the root, on; each with what it refers to."""

    def __init__(self, seed: int = 1) -> None:
        """Begin with a root and the popular objects."""
        self.random = random.Random(seed)
        self.refs: list[list[int]] = [[]]
        self.popular = [self.add() for _ in range(POPULAR)]
        self.hold(self.popular)

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.refs)

    def add(self, *refs: int) -> int:
        """Add an object; return its number."""
        self.refs.append(list(refs))
        return len(self.refs) - 1

    def hold(self, numbers: Iterable[int]) -> int:
        """Add an object that the root refers to and that refers to these; return its number."""
        holder = self.add(*numbers)
        self.refs[ROOT].append(holder)
        return holder

    def liked(self, number: int) -> None:
        """Let an object refer to a popular one, perhaps."""
        if self.random.random() < SHARE:
            self.refs[number].append(self.random.choice(self.popular))

    def tree(self, size: int, holder: int | None = None) -> int:
        """Add a tree that was stored at once, siblings after siblings; return its top.

        Args:
            size: objects in it.
            holder: what the top refers to as its parent, and is to refer to the top; None: nothing does.
        """
        top = self.add() if holder is None else self._child(holder)
        waiting = [(top, size - 1)]
        while waiting:
            node, below = waiting.pop()
            waiting += self._children(node, below)
            self.liked(node)
        return top

    def _children(self, node: int, below: int) -> list[tuple[int, int]]:
        """Give a node children, with `below` objects in all; return each with what is to be below it."""
        number = min(below, self.random.randint(2, 12))
        if not number:
            return []
        rest = below - number
        cuts = sorted(self.random.randint(0, rest) for _ in range(number - 1))
        shares = [end - start for start, end in pairwise([0, *cuts, rest])]
        children = [self.add(node) for _ in range(number)]
        self.refs[node] += children
        return list(zip(children, shares, strict=True))

    def grown(self, holders: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """Add trees that grew object by object, all at the same time.

        Args:
            holders: of each, what its top refers to as its parent, and is to refer to the top.
            sizes: objects in each.

        Returns:
            Their tops.
        """
        trees = [[self._child(holder)] for holder in holders]
        turns = [tree for tree, size in zip(trees, sizes, strict=True) for _ in range(size - 1)]
        self.random.shuffle(turns)
        for tree in turns:
            child = self._child(self.random.choice(tree))
            self.liked(child)
            tree.append(child)
        return [tree[0] for tree in trees]

    def _child(self, parent: int) -> int:
        child = self.add(parent)
        self.refs[parent].append(child)
        return child

    def linked(self, size: int) -> list[int]:
        """Add a doubly linked list; return its objects."""
        numbers = [self.add() for _ in range(size)]
        for one, other in pairwise(numbers):
            self.refs[one].append(other)
            self.refs[other].append(one)
        return numbers

    def ring(self, size: int) -> int:
        """Add a ring, from which popular objects are referred to; return one of it."""
        numbers = [self.add() for _ in range(size)]
        for one, other in zip(numbers, [*numbers[1:], numbers[0]], strict=True):
            self.refs[one].append(other)
            self.liked(one)
        return self.random.choice(numbers)

    def branching(self, size: int, branches: int = 20) -> int:
        """Add a tree without pointers to parents; return its top."""
        numbers = [self.add() for _ in range(size)]
        for place, number in enumerate(numbers[1:]):
            self.refs[numbers[place // branches]].append(number)
        return numbers[0]

    def drop(self, storage: Storage, holder: int, *numbers: int) -> None:
        """Commit that an object refers to some others no more."""
        gone = set(numbers)
        self.refs[holder] = [ref for ref in self.refs[holder] if ref not in gone]
        self.store(storage, holder)

    def record(self, number: int, version: int = 0) -> bytes:
        """Return the record of an object."""
        return record(number, version, b"".join(pack_oids(self.refs[number])))

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (oid, record) of all objects in order."""
        for number in range(len(self.refs)):
            yield pack_uint64(number), self.record(number)

    def store(self, storage: Storage, *numbers: int, version: int = 0) -> None:
        """Commit objects as they are now."""
        storage.begin()
        for number in numbers:
            storage.store(pack_uint64(number), self.record(number, version))
        storage.end()
