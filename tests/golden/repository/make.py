"""Made format-1.tar.gz, once, with the release that brought format 1 of repositories. Never again.

python tests/golden/repository/make.py
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from durus.serialize import pack_record

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual

HERE = Path(__file__).parent
NAME = "format-1"


def record(number, size):
    """Return a record of object `number`, which depends on the arguments alone, and does not become shorter."""
    blocks = (hashlib.sha256(b"%d %d %d" % (number, size, block)).digest() for block in range(size // 32 + 1))
    references = b"".join(each.to_bytes(8, "big") for each in range(1, 6)) if not number else b""
    return pack_record(number.to_bytes(8, "big"), b"".join(blocks)[:size], references)


def contents(storage):
    """Return the SHA-256 of all that is in a storage."""
    rows = sorted(storage.gen_oid_record())
    return hashlib.sha256(b"".join(key + row for key, row in rows)).hexdigest()


def fill(path, target):
    """Make a base, a piece without a note, and a piece with one; return {transaction: contents}."""
    found = {}
    with BerkeleyDBStorage(path, checkpoint=CheckpointNever(), garbage_collection=GarbageManual()) as storage:

        def commit(*records):
            storage.begin()
            for one in records:
                storage.store(one[:8], one)
            storage.end()
            found[storage.statistics().transactions] = contents(storage)

        while int.from_bytes(storage.new_oid(), "big") < 5:
            pass
        commit(*(record(number, 100) for number in range(6)))
        storage.backup(target)
        for size in (200, 9000):
            commit(record(1, size))
            commit(record(2, size))
            storage.backup(target)
    return found


def main():
    where = HERE / f"{NAME}.tar.gz"
    if where.exists():
        sys.exit(f"{where} is there, and is never made again")
    with tempfile.TemporaryDirectory() as made:
        storage, target = Path(made, "storage"), Path(made, "repository")
        storage.mkdir()
        target.mkdir()
        found = fill(storage, target)
        (run, *_) = sorted(target.rglob("runs/*"))
        run.unlink()  # an archive adds pieces, and no runs
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path in sorted(target.rglob("*")):
                if ".making" not in path.parts and path.is_file():
                    info = tarfile.TarInfo(str(path.relative_to(target)))
                    info.size, info.mode = path.stat().st_size, 0o644
                    tar.addfile(info, io.BytesIO(path.read_bytes()))
        where.write_bytes(gzip.compress(archive.getvalue(), mtime=0))
    (HERE / f"{NAME}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(where.name, hashlib.sha256(where.read_bytes()).hexdigest(), where.stat().st_size)


if __name__ == "__main__":
    main()
