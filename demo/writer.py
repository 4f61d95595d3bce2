"""A process of the demo that commits until it is killed: ``python -m demo.writer DIRECTORY``.

It prints the number of each commit when that has returned.
"""

from __future__ import annotations

import itertools
import os
import sys

from durus.btree import BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict

from berkeleydb_storage import BerkeleyDBStorage

DIARY = "diary"


def main(directory: str) -> None:
    """Append to the diary in the root, one entry a commit."""
    connection = Connection(BerkeleyDBStorage(directory))
    root = connection.get_root()
    if DIARY not in root:
        root[DIARY] = BTree()
        connection.commit()
    diary = root[DIARY]
    for number in itertools.count(len(diary) + 1):
        diary[number] = PersistentDict(text=f"entry {number}")
        connection.commit()
        os.write(sys.stdout.fileno(), b"%d\n" % number)


if __name__ == "__main__":
    main(sys.argv[1])
