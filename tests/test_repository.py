"""What is written into a place of backups is read again, compressed or not, and nothing else passes for it."""

import gzip
import json
import os
from dataclasses import replace

import pytest
from backed import contents, restored, verify
from graphs import commit, hand_out, record
from test_backup import small_logs  # noqa: F401 - a fixture, so that there are several log files

from berkeleydb_storage import (
    BackupError,
    CheckpointNever,
    GarbageManual,
    StoreUnreachable,
    list_backups,
    verify_backups,
)
from berkeleydb_storage.backup import repository as module
from berkeleydb_storage.backup.catalog import MANIFEST, Run
from berkeleydb_storage.backup.repository import Repository, digest_of
from berkeleydb_storage.backup.source import Chunk, Moment
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.errors import DamagedBackup
from berkeleydb_storage.files import Position

IDENTITY = bytes(range(16))
TIME = 1_763_716_207_123_456


class Log:
    """A source of log alone: what a file has is its name, again and again."""

    def __init__(self, sizes, chunk):
        self._sizes = sizes
        self._chunk = chunk

    def bytes(self, number):
        return (b"%d " % number * self._sizes[number])[: self._sizes[number]]

    def log(self, start, end):
        for number in range(start.log, end.log + 1):
            data = self.bytes(number)[start.offset if number == start.log else 0 :]
            if number == end.log:
                data = data[: end.offset - (start.offset if number == start.log else 0)]
            for at in range(0, len(data), self._chunk):
                yield Chunk(f"log.{number:010d}", data[at : at + self._chunk])


@pytest.fixture(params=["directory", "memory", "file"])
def where(request, tmp_path):
    """A place of each kind, empty."""
    (tmp_path / "backups").mkdir()
    if request.param == "memory":
        return f"memory://{tmp_path.name}-{os.getpid()}/backups"
    return (tmp_path / "backups").as_uri() if request.param == "file" else tmp_path / "backups"


@pytest.fixture
def filled(open_storage):
    storage = open_storage(checkpoint=CheckpointNever(), garbage_collection=GarbageManual())
    hand_out(storage, 10)
    commit(storage, record(0, *range(1, 10)), *(record(key, data=b"x" * 500) for key in range(1, 10)))
    return storage


def objects(where):
    """Return {name: bytes} of all that is in a place."""
    store = open_store(where)
    return {name: b"".join(store.read(name)) for name in store.list()}


def test_all_ways_around(filled, where):
    made = [filled.backup(where)]
    for number in range(3):
        commit(filled, *(record(key, data=os.urandom(40_000)) for key in range(1, 5)), record(5, data=b"%d" % number))
        made.append(filled.backup(where))
    assert [each.kind for each in made] == ["full", *["incremental"] * 3]
    assert list_backups(where) == made
    assert verify_backups(where).sound
    path = restored(where)
    verify(path)
    assert contents(path) == dict(filled.gen_oid_record())
    assert contents(restored(where, to_commit=made[2].tid))[(5).to_bytes(8, "big")] == record(5, data=b"1")


def test_what_is_compressed(filled, where):
    """What is for people is not; all else is, behind a URL, and has ".gz" behind its name."""
    filled.backup(where)
    commit(filled, record(1))
    filled.backup(where)
    found = objects(where)
    compressed = str(where).startswith("memory:")
    for name, data in found.items():
        assert name.endswith((".gz", ".json")) == (compressed or name.endswith(".json"))
        assert not name.endswith(".gz") or gzip.decompress(data) is not None
    (manifest,) = (json.loads(data) for name, data in found.items() if name.endswith(MANIFEST))
    assert manifest["compressed"] == compressed


def test_nothing_is_overwritten(filled, where):
    filled.backup(where)
    before = objects(where)
    commit(filled, record(1))
    filled.backup(where)
    filled.backup(where, full=True)
    assert before.items() <= objects(where).items()


@pytest.mark.parametrize("chunk", [1, 7, 10, 64])
@pytest.mark.parametrize("start", [(3, 0), (3, 17), (3, 30), (5, 3), (5, 20)])
def test_pieces(tmp_path, monkeypatch, chunk, start):
    """They are of one file each, of a limited size, without a gap, and the last one says at which commit it ends."""
    monkeypatch.setattr(module, "PIECE", 10)
    (tmp_path / "backups").mkdir()
    repository, log = Repository(open_store(tmp_path / "backups")), Log({3: 30, 4: 10, 5: 20}, chunk)
    (base,) = noted(repository, Position(*start))
    moment = Moment(77, TIME, 9, IDENTITY, Position(5, 20))
    added = repository.add_pieces(log, base, Position(*start), moment)
    (base,) = repository.bases()
    assert sorted(base.pieces, key=lambda piece: piece.end) == added == base.chain()
    reached = Position(*start)
    for piece in added:
        assert piece.start == reached
        reached = piece.end
        data = repository.read_piece(base, piece)
        assert data == log.bytes(piece.start.log)[piece.start.offset :][: len(data)]
        assert len(data) < 10 + chunk
        assert (piece.tid, piece.time) == ((77, TIME) if piece is added[-1] else (0, 0))
    assert reached == Position(5, 20)
    assert bool(added) == (start != (5, 20))


def noted(repository, end):
    """Write the manifest of a base without files."""
    values = {"format": 1, "tid": 76, "time": TIME, "objects": 9, "seconds": 0.1, "storage": "/db", "compressed": False}
    values |= {"identity": IDENTITY.hex(), "first": [1, 0], "end": end, "description": {}, "files": {}}
    name = f"{IDENTITY.hex()}/20261121T091007.123456Z-000000000076/{MANIFEST}"
    repository.store.write(name, [sealed(values)])
    return repository.bases()


def sealed(values):
    """Return a manifest with its checksum."""
    values = {name: value for name, value in values.items() if name != "sha256"}
    return json.dumps(values | {"sha256": digest_of(values)}).encode()


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "backups").mkdir()
    return Repository(open_store(tmp_path / "backups"))


def test_what_a_later_version_adds(repository):
    (base,) = noted(repository, Position(1, 9))
    path = repository.store.path / base.folder / MANIFEST
    values = json.loads(path.read_text())
    path.write_bytes(sealed(values | {"new": 5}))
    (again,) = repository.bases()
    assert again.noted == replace(base.noted, extra={"new": 5})
    path.write_bytes(sealed(values | {"format": 2}))
    with pytest.raises(BackupError, match="has format 2, and this version of the package reads up to 1: install"):
        repository.bases()


@pytest.mark.parametrize(
    "change",
    [
        {"tid": "5"},
        {"tid": -1},
        {"time": 1 << 80},
        {"time": 1e300},
        {"objects": None},
        {"first": 5},
        {"first": [1]},
        {"end": [1, 2, 3]},
        {"end": ["x", 1]},
        {"end": [1e400, 1]},
        {"identity": "0" * 32},
        {"files": {"objects.db": 5}},
        {"files": {"objects.db": {"bytes": 1e99, "sha256": "0" * 64}}},
        {"format": "1"},
        {"format": None},
        {"seconds": float("nan")},
        {"compressed": 1},
        {"storage": ["/db"]},
        "tid",
        "files",
        "format",
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
    ],
)
def test_manifests_that_are_malformed(repository, change):
    """It counts as none, and is told when it is asked for."""
    (base,) = noted(repository, Position(1, 9))
    path = repository.store.path / base.folder / MANIFEST
    values = json.loads(path.read_text())
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        values = (
            {name: value for name, value in values.items() if name != change}
            if isinstance(change, str)
            else (values | change)
        )
        path.write_bytes(sealed(values))
    (again,) = repository.bases()
    assert again.manifest is None
    assert again.is_damaged
    with pytest.raises(DamagedBackup, match=r"backup\.json is damaged \(.*\): restore from an earlier backup"):
        repository.manifest(again)
    assert list_backups(repository.store.url) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "[" * 100_000,
        "\udcff",
        '{"objects": "many", "bytes": null, "seconds": []}',
        '{"objects": Infinity, "bytes": NaN, "seconds": -Infinity}',
        '{"objects": 1e999, "bytes": -5, "seconds": ' + "9" * 400 + "}",
    ],
)
def test_runs_that_are_malformed(repository, text):
    """What they say is for people alone."""
    (base,) = noted(repository, Position(1, 9))
    repository.add_run(base, Run(80, TIME + 5), {"objects": 3, "bytes": 4, "seconds": 5.5})
    assert [(each.objects, each.bytes, each.seconds) for each in list_backups(repository.store.url)][1] == (3, 4, 5.5)
    (path,) = (repository.store.path / base.folder / "runs").iterdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    run = list_backups(repository.store.url)[1]
    assert (run.tid, run.kind) == (80, "incremental")
    assert (run.objects, run.bytes, run.seconds) == (0, 0, 0)


def test_a_place_that_cannot_be_reached_is_no_damage(repository):
    """Neither where a manifest is read, nor where runs are."""
    (base,) = noted(repository, Position(1, 9))
    repository.add_run(base, Run(80, TIME + 5), {})

    def fail(name):
        raise StoreUnreachable(f"{name} cannot be reached: try again")

    read, repository.store.read = repository.store.read, fail
    with pytest.raises(StoreUnreachable):
        repository.bases()
    repository.store.read = read
    (base,) = repository.bases()
    repository.store.read = fail
    with pytest.raises(StoreUnreachable):
        repository.run_values(base, base.runs[0])


@pytest.mark.parametrize("name", ["pieces", "objects.db", MANIFEST])
def test_a_bomb(repository, monkeypatch, name):
    """A small object that unpacks to a large one is not unpacked into memory."""
    monkeypatch.setattr(module, "LARGEST", 1 << 20)
    monkeypatch.setattr(module, "PIECE", 1 << 16)
    (base,) = noted(repository, Position(1, 9))
    log = Log({1: 100}, 10)
    (piece,) = repository.add_pieces(log, base, Position(1, 9), Moment(80, TIME, 9, IDENTITY, Position(1, 50)))
    bomb = gzip.compress(bytes(8 << 20))
    folder = repository.store.path / base.folder
    if name == "pieces":
        (folder / name / piece.name).unlink()
        (folder / name / f"{piece.name}.gz").write_bytes(bomb)
        (base,) = repository.bases()
        with pytest.raises(DamagedBackup, match="has over 1048576 bytes"):
            repository.read_piece(base, piece)
    elif name == MANIFEST:
        (folder / name).write_bytes(bytes(2 << 20))
        with pytest.raises(DamagedBackup, match="has over 1048576 bytes"):
            repository.manifest(base)
    else:
        (folder / f"{name}.gz").write_bytes(bomb)
        files = {name: {"bytes": 5, "sha256": "0" * 64}}
        manifest = replace(base.noted, files=files, compressed=True)
        (base,) = (replace(each, manifest=manifest) for each in repository.bases())
        with pytest.raises(DamagedBackup, match="is damaged"):
            list(repository.read_file(base, name))


@pytest.mark.parametrize("name", ["tid", "time", "objects", "seconds", "storage", "end", "format", "sha256"])
def test_a_manifest_that_was_changed(repository, name):
    """Each value counts: a base with a wrong time would be taken for one that is early enough."""
    (base,) = noted(repository, Position(1, 9))
    path = repository.store.path / base.folder / MANIFEST
    values = json.loads(path.read_text())
    changed = {"storage": "/dc", "end": [1, 8], "sha256": "0" * 64}.get(name) or values[name] + 1
    path.write_text(json.dumps(values | {name: changed}))
    with pytest.raises(DamagedBackup, match="its checksum is wrong"):
        repository.manifest(base)
    path.write_text(json.dumps(values, indent=7))
    assert repository.manifest(base) == base.noted
