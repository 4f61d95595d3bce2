"""Storage files of Durus, made by Durus itself, to migrate from."""

import logging
from contextlib import closing

from durus.btree import BTree
from durus.connection import Connection
from durus.file import File
from durus.file_storage import FileStorage
from durus.file_storage2 import FileStorage2
from durus.sqlite_storage import SqliteStorage

ITEMS = 400
"""Of the test program, where its size does not matter; the original's is 65,536."""
KINDS = {"FileStorage": FileStorage, "FileStorage2": FileStorage2, "SqliteStorage": SqliteStorage}

logging.getLogger("durus").setLevel(logging.CRITICAL + 1)


def run_program(storage, items=ITEMS):
    """What the original's test program does: a BTree in the root, items in, every second one out, one commit each."""
    connection = Connection(storage)
    root = connection.get_root()
    root["tree"] = tree = BTree()
    connection.commit()
    for number in range(items):
        tree[number] = f"item {number}"
    connection.commit()
    for number in range(0, items, 2):
        del tree[number]
    connection.commit()


def make(path, kind="FileStorage", items=ITEMS, *, packed=False):
    """Run the test program on a new file, and pack it if told to."""
    with closing(KINDS[kind](str(path))) as storage:
        run_program(storage, items)
        if packed:
            pack(storage)
    return path


def pack(storage):
    """Pack; and close the file that a FileStorage2 leaves open then."""
    before = storage.fp if isinstance(storage, FileStorage2) else None
    storage.pack()
    if before is not None:
        before.close()


def write(path, batches, kind="FileStorage"):
    """Write a new file with a commit for each batch of (oid, record); FileStorage takes no gaps in the oids."""
    with closing(KINDS[kind](str(path))) as storage:
        for batch in batches:
            storage.begin()
            for oid, record in batch:
                while kind == "FileStorage" and oid not in storage.shelf and oid not in storage.allocated_unused_oids:
                    storage.new_oid()
                storage.store(oid, record)
            storage.end()
    return path


def contents(path, kind="FileStorage"):
    """Return {oid: record} of a file, as Durus reads it; the file is closed even where Durus refuses it."""
    if kind == "SqliteStorage":
        with closing(SqliteStorage(str(path))) as storage:
            return {oid: storage.load(oid) for oid in storage._list_all_oids()}
    with closing(File(str(path), readonly=True)) as file:
        return dict(KINDS[kind](file, readonly=True).gen_oid_record())
