"""A repository that the release wrote which brought its format: every later version restores each commit of it.

The archive is never made again: it is what that release wrote, as its checksum says.
"""

import hashlib
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from backed import bases, restored, verify
from graphs import commit, record

from berkeleydb_storage import BerkeleyDBStorage, list_backups, verify_backups
from berkeleydb_storage.backup.catalog import FORMAT, MANIFEST
from berkeleydb_storage.environment import LIBRARY

GOLDEN = Path(__file__).parent / "golden" / "repository"
SHA256 = {"format-1.tar.gz": "c6d2832f953d9533501106a4d665ff38ea39ed2e0f21d3dfaa9035287ff629d0"}
IDENTITY = "c32f389764406470ec8ff11eea03e6f4"
STORED = {int(tid): digest for tid, digest in json.loads((GOLDEN / "format-1.json").read_text()).items()}
"""Transaction -> SHA-256 of all that is in the storage then."""
pytestmark = pytest.mark.skipif(
    not LIBRARY.startswith("5.3."), reason="it was written by Berkeley DB 5.3, and other versions refuse it"
)


@pytest.fixture(params=SHA256)
def where(request, tmp_path):
    with tarfile.open(GOLDEN / request.param) as archive:
        archive.extractall(tmp_path / "backups", filter="data")
    return tmp_path / "backups"


def digest(path):
    with BerkeleyDBStorage(path, read_only=True) as storage:
        rows = sorted(storage.gen_oid_record())
        return hashlib.sha256(b"".join(key + row for key, row in rows)).hexdigest()


def test_it_is_what_it_was():
    found = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in GOLDEN.glob("*.tar.gz")}
    assert found == SHA256
    assert list(STORED) == [1, 2, 3, 4, 5]
    assert FORMAT == 1, "make an archive of the new format, beside this one"


def test_what_is_in_it(where):
    (base,) = bases(where)
    assert (base.identity, base.noted.tid, base.noted.objects) == (IDENTITY, 1, 6)
    assert [piece.tid for piece in base.pieces] == [3, 5]
    assert base.chain() == list(base.pieces)
    assert [run.tid for run in base.runs] == [5]
    assert [(each.kind, each.tid, each.objects) for each in list_backups(where)] == [
        ("full", 1, 6),
        ("incremental", 5, 6),
    ]


@pytest.mark.parametrize("tid", STORED)
def test_each_commit(where, tid):
    path = restored(where, to_commit=tid)
    assert digest(path) == STORED[tid]
    verify(path)


def test_everything(where):
    assert digest(restored(where)) == STORED[5]
    verified = verify_backups(where)
    assert verified.sound
    assert [(chain.first, chain.last, chain.objects) for chain in verified.chains] == [(1, 5, 6)]


def test_what_is_restored_goes_on(where, open_storage, tmp_path):
    storage = open_storage(restored(where))
    assert storage._engine.identity.hex() != IDENTITY
    commit(storage, record(1, data=b"later"))
    made = storage.backup(where)
    assert (made.kind, made.tid) == ("full", 6)
    storage.close()
    assert digest(restored(where, of=IDENTITY)) == STORED[5]
    shutil.rmtree(where / IDENTITY)
    path = restored(where)
    with BerkeleyDBStorage(path, read_only=True) as again:
        assert again.load(record(1)[:8]) == record(1, data=b"later")


def test_it_is_still_written_so(tmp_path):
    """The files have the same names and keys, but for numbers."""
    sys.path.insert(0, str(GOLDEN))
    try:
        import make
    finally:
        sys.path.remove(str(GOLDEN))
    (tmp_path / "new").mkdir()
    (tmp_path / "storage").mkdir()
    found = make.fill(tmp_path / "storage", tmp_path / "new")
    assert found == STORED
    with tarfile.open(GOLDEN / "format-1.tar.gz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    old, new = (shape(tmp_path / name) for name in ("old", "new"))
    new["runs"] = new["runs"][1:]
    assert new == old


def shape(where):
    (base,) = bases(where)
    folder = where / base.folder
    values = json.loads((folder / MANIFEST).read_text())
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "manifest": list(values),
        "of files": {name: list(entry) for name, entry in values["files"].items()},
        "pieces": [(piece.tid, len(piece.name)) for piece in base.pieces],
        "runs": [list(json.loads((folder / "runs" / run.name).read_text())) for run in base.runs],
    }
