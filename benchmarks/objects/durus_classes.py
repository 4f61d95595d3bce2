"""The objects of the workloads for Durus."""

from durus.btree import BTree
from durus.persistent import Persistent

from benchmarks.objects import model

__all__ = ["BTree", "Folder", "Item", "Node"]


class Item(model.Item, Persistent):
    """A small object."""


class Folder(model.Folder, Persistent):
    """An object with many references."""


class Node(model.Node, Persistent):
    """An object that has children of its kind."""
