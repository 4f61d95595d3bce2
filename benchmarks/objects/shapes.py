"""What a program goes through object by object, in shapes that lead from one to the next in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from durus.btree import BTree
from durus.connection import Connection

from benchmarks.objects.durus_classes import Folder, Item, Node
from benchmarks.objects.records import FOLDER

FAN = 10
"""Children of a node of the tree."""

FLAT, BTREE, TREE = "flat list", "BTree", "tree"


def build_shapes(connection: Connection, count: int) -> None:
    """Store each of the shapes with about `count` objects; those of one shape have oids one after the other."""
    root = connection.get_root()
    root[FLAT] = Folder([Item(n) for n in range(count - 1)])
    connection.commit()
    root[BTREE] = btree = BTree()
    for number in range(count):
        btree[number] = Item(number)
        if number % FOLDER == FOLDER - 1:
            connection.commit()
    root[TREE] = nodes = Node(0)
    grown = [nodes]
    for number in range(1, count):
        child = Node(number)
        grown[(number - 1) // FAN].children.append(child)
        grown.append(child)
    connection.commit()


def _flat(folder: Folder) -> Iterator[object]:
    for item in folder.items:
        yield item.number


def _btree(btree: BTree) -> Iterator[object]:
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
