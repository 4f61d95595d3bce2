"""Made the archives in this directory, once each, with the release that brought the format.

NEVER run it again for archives that are there: they are what that release wrote, and every later one must read them.
It refuses to replace them. For a new format, write new archives beside the old ones.

    python tests/golden/make.py
"""

import gzip
import hashlib
import io
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
from berkeleydb_storage.format import FORMAT_VERSION

HERE = Path(__file__).parent


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


def fill(storage):
    """Store objects with 0, 1, 2 and many referrers, a large one, garbage, suspects, and a history of all that."""
    storage.migrate(source().gen_oid_record())
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
    storage.pack()
    connection.abort()
    del root["ring"]
    del root["other"]["it"]
    root["many"][:5] = []
    connection.commit()
    del root["parent"]
    connection.commit()


def write(path, type, *, close):
    """Fill a new storage in the directory `path`; without `close`, the process kills itself when that is done."""
    storage = BerkeleyDBStorage(path, type=type, garbage_collection=GarbageManual(), checkpoint=CheckpointNever())
    fill(storage)
    if not close:
        os.kill(os.getpid(), signal.SIGKILL)
    storage.close()


def archive(path, target):
    """Write the files of a directory into a compressed archive that says nothing about who made it or when."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(os.listdir(path)):
            data = (path / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    target.write_bytes(gzip.compress(content.getvalue(), 9, mtime=0))


def main():
    if len(sys.argv) > 1:
        write(sys.argv[1], sys.argv[2], close=sys.argv[3] == "close")
        return
    for type, end in (("btree", "close"), ("hash", "close"), ("btree", "kill")):
        target = HERE / f"format-{FORMAT_VERSION}-{type}{'' if end == 'close' else '-not-closed'}.tar.gz"
        if target.exists():
            print(f"{target.name} is there, and stays as it is")
            continue
        with tempfile.TemporaryDirectory() as path:
            subprocess.run([sys.executable, __file__, path, type, end], check=end == "close")
            archive(Path(path), target)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        print(f'    "{target.name}": "{digest}",  # {target.stat().st_size} bytes')


if __name__ == "__main__":
    main()
