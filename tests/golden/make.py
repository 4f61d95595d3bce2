"""Made the archives in this directory, once each, with the release that brought the format.

NEVER run it again for archives that are there: they are what that release wrote, and every later one must read them.
It refuses to replace them. For a new format, write new archives beside the old ones.

    python tests/golden/make.py
"""

import gzip
import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from durus.btree import BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.storage import MemoryStorage

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual
from berkeleydb_storage import format as layouts
from berkeleydb_storage.format import ENCRYPTED_VERSION, FORMAT_VERSION, ROOT_OID, references

HERE = Path(__file__).parent
EVER = (1 << 63) - 1
"""A time in the far future."""
ENDS = {"close": "", "kill": "-not-closed", "delete": "-deleting"}
"""How a storage is left -> what its archive is called."""
KEY = "the key of the archives"
"""Of those that are encrypted."""


def noise(size):
    """Return bytes that no compression makes shorter, so that a record of them takes overflow pages."""
    blocks = (hashlib.sha256(b"%d" % number).digest() for number in range(size // 32))
    return b"".join(blocks)


def source():
    """Return a storage of another kind, to begin with."""
    storage = MemoryStorage()
    connection = Connection(storage)
    connection.get_root()["numbers"] = BTree()
    for number in range(200):
        connection.get_root()["numbers"][number] = number * number
    connection.commit()
    return storage


def settle(storage):
    """Store an object that is acquitted, and one that is left unsettled because it refers to the root."""
    connection = Connection(storage)
    root = connection.get_root()
    alive = PersistentDict({"name": "alive", "child": PersistentDict({"name": "child"})})
    unsettled = PersistentDict({"name": "unsettled", "root": root})
    root["kept"] = PersistentDict({"alive": alive, "unsettled": unsettled})
    root["kept too"] = PersistentDict({"alive": alive, "unsettled": unsettled})
    connection.commit()
    root["kept too"].clear()
    connection.commit()
    look(storage)


def look(storage):
    """Let the collector do all that it can without a full pack."""
    while storage._running.collector.step(50, EVER):
        pass


def fill(storage):
    """Store objects with 0, 1, 2 and many referrers, a large one, garbage, suspects, and a history of all that.

    The archives of format 1 are without what `settle` stores, those of formats 1 and 2 without what `mark` does.
    """
    storage.migrate(source().gen_oid_record())
    settle(storage)
    connection = Connection(storage)
    root = connection.get_root()
    root["large"] = PersistentDict({"bytes": noise(20_000)})
    shared, twice, popular = (PersistentDict({"name": name}) for name in ("shared", "twice", "popular"))
    root["one"], root["other"] = (
        PersistentDict({"it": shared, "all": twice}),
        PersistentDict({"it": shared, "all": twice}),
    )
    root["many"] = PersistentList([PersistentDict({"number": number, "it": popular}) for number in range(20)])
    connection.commit()
    ring = PersistentDict({"name": "ring"})
    ring["next"] = PersistentDict({"next": ring})
    root["ring"] = ring
    root["collected"] = PersistentDict({"child": PersistentDict()})
    root["parent"] = PersistentDict({"child": PersistentDict({"child": PersistentDict()})})
    connection.commit()
    del root["collected"]
    connection.commit()
    while storage._running.collector.collect(50, EVER):
        pass
    connection.abort()
    del root["ring"]
    del root["other"]["it"]
    root["many"][:5] = []
    connection.commit()
    del root["parent"]
    connection.commit()
    mark(storage)


def mark(storage):
    """Store the root again, as it is, in three transactions: with a mark, without one, with one and not listed."""
    record = storage.load(ROOT_OID)
    pending = {ROOT_OID: (record, references(ROOT_OID, record))}
    storage._engine.commit(pending, len(record), mark=b"the first mark..")
    storage._engine.commit(pending, len(record))
    listed, layouts.MAX_LISTED = layouts.MAX_LISTED, 0
    storage._engine.commit(pending, len(record), mark=b"the second mark.")
    layouts.MAX_LISTED = listed


def begin_deletion(path, key):
    """Let a full pack in the directory `path` begin to delete a large ring; and let go of more after that."""
    with reopened(path, key) as storage:
        connection = Connection(storage)
        root = connection.get_root()
        root["large ring"] = first = PersistentDict()
        last = first
        for _ in range(119):
            last["next"] = last = PersistentDict()
        last["next"] = first
        first["shared"] = root["one"]
        connection.commit()
        del root["large ring"]
        connection.commit()
        packer = storage.get_packer()
        while not storage.statistics().doomed:
            next(packer)
        packer.close()
    with reopened(path, key) as storage:
        connection = Connection(storage)
        root = connection.get_root()
        ring = PersistentDict({"name": "late ring"})
        ring["next"] = PersistentDict({"next": ring})
        root["late"] = PersistentList([ring, PersistentDict({"child": PersistentDict()})])
        connection.commit()
        root["late"][:] = []
        connection.commit()


def reopened(path, key):
    return BerkeleyDBStorage(path, garbage_collection=GarbageManual(), checkpoint=CheckpointNever(), key=key)


def write(path, type, key, *, close):
    """Fill a new storage in the directory `path`; without `close`, the process kills itself when that is done."""
    policies = {"garbage_collection": GarbageManual(), "checkpoint": CheckpointNever()}
    storage = BerkeleyDBStorage(path, type=type, key=key, **policies)
    fill(storage)
    if not close:
        os.kill(os.getpid(), signal.SIGKILL)
    storage.close()


def archive(path, target):
    """Write the files of a directory into a compressed archive that says nothing about who made it or when."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(name for name in os.listdir(path) if (path / name).is_file()):
            data = (path / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    target.write_bytes(gzip.compress(content.getvalue(), 9, mtime=0))


def main():
    if len(sys.argv) > 1:
        key = KEY if sys.argv[4] == "encrypted" else None
        write(sys.argv[1], sys.argv[2], key, close=sys.argv[3] != "kill")
        if sys.argv[3] == "delete":
            begin_deletion(sys.argv[1], key)
        return
    ways = (("btree", "close"), ("hash", "close"), ("btree", "kill"), ("btree", "delete"))
    for version, (type, end) in itertools.product((FORMAT_VERSION, ENCRYPTED_VERSION), ways):
        encrypted = version == ENCRYPTED_VERSION
        target = HERE / f"format-{version}{'-encrypted' if encrypted else ''}-{type}{ENDS[end]}.tar.gz"
        if target.exists():
            print(f"{target.name} is there, and stays as it is")
            continue
        with tempfile.TemporaryDirectory() as path:
            how = [path, type, end, "encrypted" if encrypted else "plain"]
            subprocess.run([sys.executable, __file__, *how], check=end != "kill")
            archive(Path(path), target)
            with BerkeleyDBStorage(path, key=KEY if encrypted else None) as storage:
                print(f'    "{target.name}": "{storage._engine.identity.hex()}",')
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        print(f'    "{target.name}": "{digest}",  # {target.stat().st_size} bytes')


if __name__ == "__main__":
    main()
