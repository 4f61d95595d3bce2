"""A storage is copied under another key: every row of every table, and nothing that opens until all are there."""

import json
import os

import pytest
from crash_parent import KILLED, Children
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import copied, rows, scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointNever,
    DamagedError,
    GarbageManual,
    KeyNeeded,
    OptionError,
    RecoveryNeeded,
    StorageInUse,
    StorageNotEmpty,
    StorageNotFound,
    WrongKey,
    rekeying,
)
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.directory import OPENED
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.rekeying import rekey

OLD, NEW = "the old key", "the new key"
QUIET = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
SECRET = "nobody reads this"


@pytest.fixture
def place():
    with scratch_directory() as path:
        yield path


def make(path, key=OLD, **options):
    """Make a storage with rows in every table."""
    path.mkdir()
    with BerkeleyDBStorage(path, key=key, **QUIET, **options) as storage:
        connection = Connection(storage)
        root = connection.get_root()
        shared = PersistentDict(it=SECRET * 1000)
        for number in range(200):
            root[number] = PersistentDict(shared=shared, own=SECRET)
        connection.commit()
        root[2]["also"] = root[3]
        connection.commit()
        del root[2]["also"], root[0], root[1]
        connection.commit()
    return path


def everything(path, key):
    with BerkeleyDBStorage(path, key=key, read_only=True) as storage:
        return {name: rows(storage, name) for name in TABLES}


def contents(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


@pytest.fixture
def source(place):
    return make(place / "source")


@pytest.mark.parametrize("type", ["btree", "hash"])
@pytest.mark.parametrize(("key", "new_key"), [(OLD, NEW), (OLD, None), (None, NEW), (None, None), (OLD, OLD)])
def test_every_row_is_there(place, type, key, new_key):
    source, target = make(place / "source", key, type=type), place / "target"
    before, told = contents(source), []
    described = rekey(source, key, target, new_key, lambda what, size: told.append((what, size)))
    assert contents(source) == before
    assert everything(target, new_key) == everything(source, key)
    assert all(everything(target, new_key).values())
    assert check_pages(target, key=new_key) == []
    assert any(b"PersistentDict" in data for data in contents(target).values()) == (new_key is None)
    assert described.encrypted == (new_key is not None)
    assert json.loads((target / "storage.json").read_text()) == described.values()
    assert {what for what, _ in told} == {"encrypting" if new_key else "decrypting"}
    assert [size for _, size in told] == sorted(size for _, size in told)
    with BerkeleyDBStorage(target, key=new_key) as storage:
        assert not storage.statistics().recovered
        assert storage.statistics().type == type
        assert storage.check().faults == []
        root = Connection(storage).get_root()
        assert root[7]["shared"]["it"] == SECRET * 1000


def test_the_old_key_is_of_no_use_any_more(source, place):
    rekey(source, OLD, place / "target", NEW)
    with pytest.raises(WrongKey):
        BerkeleyDBStorage(place / "target", key=OLD)


def test_little_log_is_left(source, place, monkeypatch):
    monkeypatch.setattr(rekeying, "CHECKPOINT_BYTES", 20_000)
    monkeypatch.setattr(rekeying, "BATCH", 10)
    monkeypatch.setattr(rekeying, "BATCH_BYTES", 3000)
    monkeypatch.setattr("berkeleydb_storage.environment.LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr("berkeleydb_storage.environment.LOG_BUFFER", 1 << 15)
    rekey(source, OLD, place / "target", NEW)
    assert everything(place / "target", NEW) == everything(source, OLD)
    assert len(list((place / "target").glob("log.*"))) == 1


def test_an_empty_directory_will_do(source, place):
    (place / "target").mkdir(mode=0o700)
    rekey(source, OLD, place / "target", NEW)
    assert (place / "target").stat().st_mode & 0o777 == 0o700
    assert everything(place / "target", NEW) == everything(source, OLD)


def test_what_was_a_backup_gets_an_identity_of_its_own(source, place):
    (source / OPENED).touch()
    rekey(source, OLD, place / "target", NEW)
    with BerkeleyDBStorage(source, key=OLD, read_only=True) as storage:
        identity = storage.engine.identity
    with BerkeleyDBStorage(place / "target", key=NEW) as storage:
        assert storage.engine.identity != identity


REFUSED = {
    "a wrong key": ({"key": NEW}, WrongKey, "encrypted with another key"),
    "no key": ({"key": None}, KeyNeeded, "is encrypted: give the key"),
    "an empty key": ({"new_key": ""}, OptionError, "takes a text that is not empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_without_the_keys_nothing_is_made(source, place, case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        rekey(target=place / "target", **{"source": source, "key": OLD, "new_key": NEW, **arguments})
    assert not (place / "target").exists()


def test_what_is_not_a_closed_storage_is_refused(source, place):
    target = place / "target"
    with BerkeleyDBStorage(source, key=OLD, **QUIET):
        with pytest.raises(StorageInUse):
            rekey(source, OLD, target, NEW)
        copied(source, place / "killed")
    with pytest.raises(RecoveryNeeded, match="was not closed by its last owner: open it"):
        rekey(place / "killed", OLD, target, NEW)
    (place / "empty").mkdir()
    with pytest.raises(StorageNotFound, match="holds no storage"):
        rekey(place / "empty", OLD, target, NEW)
    (source / "objects.db").unlink()
    with pytest.raises(DamagedError, match=r"objects.db is missing"):
        rekey(source, OLD, target, NEW)
    assert not target.exists()


def test_a_target_with_something_in_it_is_refused(source, place):
    (place / "target").mkdir()
    (place / "target" / "letter").write_text("dear")
    with pytest.raises(StorageNotEmpty, match=r"target is not empty, it has 'letter': give a new directory"):
        rekey(source, OLD, place / "target", NEW)
    assert contents(place / "target") == {"letter": b"dear"}


@pytest.mark.parametrize("exists", [False, True])
def test_interrupted_it_leaves_nothing(source, place, exists):
    target = place / "target"
    if exists:
        target.mkdir()

    def interrupt(what, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rekey(source, OLD, target, NEW, interrupt)
    assert target.exists() == exists
    assert not exists or os.listdir(target) == []
    rekey(source, OLD, target, NEW)


def test_a_damaged_page_is_named(source, place):
    damaged = bytearray((source / "objects.db").read_bytes())
    damaged[2 * 4096 + 100] ^= 1
    (source / "objects.db").write_bytes(damaged)
    with pytest.raises(DamagedError, match=rf"{source}.* is damaged"):
        rekey(source, OLD, place / "target", NEW)
    assert not (place / "target").exists()


@pytest.mark.parametrize("name", ["rekey.begun", "rekey.checkpoint", "rekey.closed", "rekey.described", "rekey.done"])
def test_killed_it_leaves_what_does_not_open(source, place, tmp_path, name):
    children = Children(tmp_path)
    settings = {"rekeying.CHECKPOINT_BYTES": 20_000, "rekeying.BATCH": 10}
    arguments = {"key": OLD, "target": str(place / "target"), "new_key": NEW}
    assert children.run("change_key", source, fuse=(name, 1), settings=settings, **arguments) == KILLED
    children.close()
    assert everything(source, OLD)
    if name == "rekey.done":
        assert everything(place / "target", NEW) == everything(source, OLD)
        return
    for key in (OLD, NEW, None):
        for read_only in (False, True):
            with pytest.raises(BerkeleyDBStorageError, match=r"storage\.json is missing|a Berkeley DB env|no stor"):
                BerkeleyDBStorage(place / "target", key=key, read_only=read_only)
    with pytest.raises(StorageNotEmpty):
        rekey(source, OLD, place / "target", NEW)
