"""What a program goes through object by object, in shapes that lead from one to the next in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from benchmarks.objects.model import Folder, Node
from benchmarks.objects.records import FOLDER
from benchmarks.peers.contract import Database

FAN = 10
"""Children of a node of the tree."""

FLAT, BTREE, TREE = "flat list", "BTree", "tree"


def build_shapes(database: Database, count: int) -> None:
    """Store each of the shapes with about `count` objects; those of one shape have oids one after the other."""
    classes, root = import_module(f"benchmarks.objects.{database.toolkit}_classes"), database.root
    root[FLAT] = classes.Folder([classes.Item(n) for n in range(count - 1)])
    database.commit()
    root[BTREE] = btree = classes.BTree()
    for number in range(count):
        btree[number] = classes.Item(number)
        if number % FOLDER == FOLDER - 1:
            database.commit()
    root[TREE] = nodes = classes.Node(0)
    grown = [nodes]
    for number in range(1, count):
        child = classes.Node(number)
        grown[(number - 1) // FAN].children.append(child)
        grown.append(child)
    database.commit()


def _flat(folder: Folder) -> Iterator[object]:
    for item in folder.items:
        yield item.number


def _btree(btree: Any) -> Iterator[object]:
    for _, item in btree.items():
        yield item.number


def _tree(node: Node) -> Iterator[object]:
    todo = [node]
    while todo:
        node = todo.pop()
        yield node.number
        todo.extend(reversed(node.children))


GOES_THROUGH: dict[str, Callable[..., Iterator[object]]] = {FLAT: _flat, BTREE: _btree, TREE: _tree}
"""How each of them is gone through: in order; the tree depth first."""
