"""The objects of the workloads, without the base class that makes them persistent.

An object database finds a class by its name, and each asks for a base class of its own. So what the objects are is
written here, once; `durus_classes` and `zodb_classes` put them on their bases.
"""

from __future__ import annotations

from typing import Any


class Item:
    """A small object."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"item {number}"
        self.price = number * 0.01


class Folder:
    """An object with many references."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items


class Node:
    """An object that has children of its kind."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.children: list[Any] = []
