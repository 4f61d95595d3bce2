"""Backups of encrypted storages are encrypted, and a restore changes the key."""

import os

import durus.serialize
import pytest
from durus.connection import Connection
from durus.persistent_dict import PersistentDict

from berkeleydb_storage import BerkeleyDBStorage, cli
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.keys import VARIABLE

SECRET = "Nobody is to read this in a backup."
OLD, NEW = "the old key", "the new key"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the keys in files; Durus compresses nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(durus.serialize, "WRITE_COMPRESSED_STATE_PICKLES", False)
    for name, key in (("old", OLD), ("new", NEW)):
        (tmp_path / name).write_text(key)
        (tmp_path / name).chmod(0o600)
    return tmp_path


@pytest.fixture
def backups(place):
    """A full backup and an incremental one, by whoever has the storage open and by a command."""
    (place / "db").mkdir()
    (place / "backups").mkdir()
    with BerkeleyDBStorage("db", key=OLD) as storage:
        connection = Connection(storage)
        for number in range(20):
            connection.get_root()[number] = PersistentDict(secret=SECRET * 50)
            connection.commit()
        storage.backup("backups")
        connection.get_root()["later"] = PersistentDict(secret=SECRET)
        connection.commit()
        storage.backup("backups")
    assert cli.main(["backup", "db", "backups", "--key-file", "old"]) == 0
    return place / "backups"


def has_plaintext(path):
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) > 5
    return any(what in file.read_bytes() for file in files for what in (SECRET.encode(), b"PersistentDict"))


def test_they_are_encrypted_and_verified_with_the_key(backups, capsys):
    assert not has_plaintext(backups)
    assert cli.main(["verify", "backups", "--key-file", "old"]) == 0
    assert not has_plaintext(backups)


@pytest.mark.parametrize(
    ("options", "key"),
    [([], OLD), (["--new-key-file", "new"], NEW), (["--decrypt"], None)],
    ids=["same", "new", "none"],
)
def test_a_restore_changes_the_key(backups, place, options, key):
    assert cli.main(["restore", "backups", "restored", "--key-file", "old", *options]) == 0
    assert has_plaintext(place / "restored") == (key is None)
    with BerkeleyDBStorage("restored", key=key) as storage:
        assert storage.check().faults == []
        root = Connection(storage).get_root()
        assert root["later"]["secret"] == SECRET
        assert len(root) == 21
    assert check_pages(place / "restored", key=key) == []


@pytest.mark.parametrize("options", [[], ["--key-file", "new"]])
def test_without_the_key_nothing_is_restored(backups, place, capsys, options):
    before = sorted(os.listdir(place))
    assert cli.main(["restore", "backups", "restored", *options]) == 2
    assert "is encrypted" in capsys.readouterr().err
    assert sorted(os.listdir(place)) == before


def test_what_was_not_encrypted_is_by_a_restore(place):
    (place / "db").mkdir()
    (place / "backups").mkdir()
    with BerkeleyDBStorage("db") as storage:
        connection = Connection(storage)
        connection.get_root()["it"] = PersistentDict(secret=SECRET)
        connection.commit()
        storage.backup("backups")
    assert cli.main(["restore", "backups", "restored", "--new-key-file", "new"]) == 0
    assert not has_plaintext(place / "restored")
    with BerkeleyDBStorage("restored", key=NEW) as storage:
        assert Connection(storage).get_root()["it"]["secret"] == SECRET
