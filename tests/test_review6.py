"""Backups that share a place or a past: whose they are, what continues them, what is removed."""

import hashlib
import os
import re
import shutil
import threading

import pytest
from backed import contents, restored, verify
from concurrency import PATIENCE
from graphs import commit, hand_out, quiet, record

from berkeleydb_storage import (
    BackupError,
    BerkeleyDBStorage,
    DamagedBackup,
    Every,
    OptionError,
    StorageClosed,
    list_backups,
    restore,
    running,
    verify_backups,
)
from berkeleydb_storage.backup import recalling, regular, restoring, verifying
from berkeleydb_storage.backup.catalog import DIGITS, PIECES, Piece
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import LocalStore
from berkeleydb_storage.cli import main


def made(path, target, data, keep=None):
    """Commit something to the storage at a path, which is made where it is not, and back it up."""
    path.mkdir(exist_ok=True)
    with quiet(path) as storage:
        if not storage.get_size():
            hand_out(storage, 2)
        commit(storage, record(0, 1), record(1, data=data))
        return storage.backup(target, keep=keep)


@pytest.fixture
def target(tmp_path):
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


@pytest.fixture
def machines(tmp_path, target):
    """Two storages that have the same path, each on its own machine; the first is backed up seldom."""
    path, first, second = tmp_path / "db", tmp_path / "first", tmp_path / "second"
    one = made(path, target, b"first")
    path.rename(first)
    made(path, target, b"second 1", keep=1)
    path.rename(second)
    first.rename(path)
    made(path, target, b"first again")
    path.rename(first)
    second.rename(path)
    two = made(path, target, b"second 2", keep=1)
    return one.identity, two.identity


def test_another_machine_keeps_its_backups(machines, target):
    first, second = machines
    kept = list_backups(target)
    assert [backup.identity for backup in kept].count(first) == 2
    assert {backup.identity for backup in kept} == {first, second}


def test_which_machine_is_asked(machines, target, tmp_path):
    with pytest.raises(BackupError, match=r"several storages that have the path .* --of"):
        restore(target, tmp_path / "restored")
    for identity, data in zip(machines, (b"first again", b"second 2"), strict=True):
        assert record(1, data=data) in contents(restored(target, of=identity)).values()


def test_what_was_restored_goes_on(tmp_path, target):
    path = tmp_path / "db"
    before = made(path, target, b"before")
    shutil.rmtree(path)
    restore(target, path)
    after = made(path, target, b"after", keep=2)
    assert before.identity != after.identity
    assert [backup.name for backup in list_backups(target)] == [before.name, after.name]
    assert record(1, data=b"after") in contents(restored(target)).values()


def test_a_disk_that_forgot_writes(tmp_path, target):
    path, state = tmp_path / "db", tmp_path / "state"
    made(path, target, b"1")
    shutil.copytree(path, state)
    made(path, target, b"2")
    note = (path / "keep.json").read_bytes()
    shutil.rmtree(path)
    shutil.copytree(state, path)
    (path / "keep.json").write_bytes(note)
    assert made(path, target, b"3").kind == "full"
    copy = restored(target)
    verify(copy)


def test_old_ones_are_removed_while_one_is_being_made(tmp_path, target, capsys):
    for number in range(3):
        made(tmp_path / "db", target, b"%d" % number)
    identity = list_backups(target)[0].identity
    unfinished = target / identity / "29991231T235959.000000Z-000000000999"
    unfinished.mkdir()
    (unfinished / "objects.db").write_bytes(b"\0")
    assert main(["backups", str(target), "--keep-last", "1"]) == 0
    assert len(list_backups(target)) == 2  # the copy of everything, and the newest after it


def pieces_of(target):
    return sorted(target.rglob("pieces/*"))


def test_the_newest_piece_is_missed(tmp_path, target):
    for number in range(4):
        last = made(tmp_path / "db", target, b"%d" % number)
    pieces_of(target)[-1].unlink()
    assert not verify_backups(target).sound
    with pytest.raises(DamagedBackup, match=rf"is missing; .* --to-commit {last.tid - 1}$"):
        restore(target, tmp_path / "restored")
    verify(restored(target, to_commit=last.tid - 1))


class Joining(Repository):
    """One in which all pieces are joined to one as soon as the first of them is to be read."""

    def read_piece(self, base, piece):
        if len(base.pieces) > 1:
            data = [Repository.read_piece(self, base, each) for each in base.pieces]
            first, last = base.pieces[0], base.pieces[-1]
            digest = hashlib.sha256(b"".join(data)).hexdigest()[:DIGITS]
            longer = Piece(first.start, last.end, last.tid, last.time, digest)
            self._write(f"{base.folder}/{PIECES}/{longer.name}", data, compressed=False)
            self.store.remove(*(f"{base.folder}/{PIECES}/{each.name}" for each in base.pieces))
        return super().read_piece(base, piece)


@pytest.fixture
def joining(tmp_path, target, monkeypatch):
    """The newest of some backups, whose pieces are joined while they are read."""
    for number in range(4):
        last = made(tmp_path / "db", target, b"%d" % number)
    monkeypatch.setattr(restoring, "AHEAD", 1)
    for module in (recalling, verifying):
        monkeypatch.setattr(module, "Repository", Joining)
    return last


def test_pieces_are_joined_during_a_restore(joining, target):
    assert record(1, data=b"3") in contents(restored(target)).values()
    assert len(pieces_of(target)) == 1


def test_pieces_are_joined_during_a_verification(joining, target):
    found = verify_backups(target)
    assert found.sound, found
    assert len(pieces_of(target)) == 1


def test_what_is_restored_is_for_its_owner_alone(tmp_path, target):
    made(tmp_path / "db", target, b"secret")
    before = os.umask(0)
    try:
        restore(target, tmp_path / "new")
        restore(target, tmp_path / "encrypted", new_key="a key")
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "encrypted")} == {0o700}


@pytest.mark.parametrize("interval", ["0", "nan", "inf", "-1"])
def test_an_interval_that_is_none(tmp_path, target, interval, capsys):
    made(tmp_path / "db", target, b"1")
    assert main(["archive", str(tmp_path / "db"), str(target), "--once", "--interval", interval]) == 2
    assert "--interval takes a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("by_policy", [True, False])
def test_closing_does_not_wait_for_a_store_that_hangs(tmp_path, target, monkeypatch, by_policy):
    hanging, answered = threading.Event(), threading.Event()

    def hang(store, *_):
        hanging.set()
        assert answered.wait(PATIENCE)
        return {}

    monkeypatch.setattr(regular, "CLOSING", 0.1)
    monkeypatch.setattr(running, "CLOSING", 0.1)
    monkeypatch.setattr(LocalStore, "list", hang)
    (tmp_path / "db").mkdir()
    storage = BerkeleyDBStorage(tmp_path / "db", backup=Every(0.1, target) if by_policy else None)
    if not by_policy:

        def back_up():
            with pytest.raises(StorageClosed):
                storage.backup(target)

        thread = threading.Thread(target=back_up)
        thread.start()
    assert hanging.wait(PATIENCE)
    storage.close()
    assert not answered.is_set()
    with BerkeleyDBStorage(tmp_path / "db") as again:
        assert not again._running.opened.recovered
    answered.set()
    if not by_policy:
        thread.join()
    assert not list(target.rglob("*.db"))


def test_verified_by_storage(tmp_path, target, capsys):
    for name, key in (("plain", None), ("first", "one"), ("second", "two")):
        (tmp_path / name).mkdir()
        with quiet(tmp_path / name, key=key) as storage:
            hand_out(storage, 1)
            commit(storage, record(0))
            storage.backup(target)
        (chain,) = verify_backups(target, of=str(tmp_path / name), key=key).chains
        assert chain.restored
        assert chain.storage == str(tmp_path / name)
    with pytest.raises(OptionError, match="is not encrypted"):
        verify_backups(target, key="one")
    assert main(["verify", str(target), "--of", str(tmp_path / "plain")]) == 0
    assert main(["verify", str(target), "--of", str(tmp_path / "none")]) == 1
    assert "no backup that is complete" in capsys.readouterr().out


def test_the_place_is_a_mount_point(tmp_path, target):
    (target / "lost+found").mkdir()
    (target / "lost+found" / "#12").touch()
    made(tmp_path / "db", target, b"1")
    names = LocalStore(target).list()
    assert names
    assert not any(name.startswith("lost+found") for name in names)


@pytest.mark.parametrize(
    ("storage", "place", "told"),
    [
        ("none", "backups", "none is no directory: give the directory of a storage"),
        ("db", "file/backups", "file cannot be made .* give another place"),
    ],
)
@pytest.mark.parametrize("command", [["backup"], ["archive", "--once"]])
def test_what_is_not_there(tmp_path, target, monkeypatch, capsys, command, storage, place, told):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "db", target, b"1")
    (tmp_path / "file").touch()
    name, *options = command
    assert main([name, storage, place, *options]) == 2
    assert re.search(told, capsys.readouterr().err)


def test_two_write_the_same_piece(tmp_path, target, monkeypatch):
    """An archive and a backup may continue the same chain; the end of a log file is the same piece for both."""
    path = tmp_path / "db"
    made(path, target, b"1")
    places = []

    def twice(self, name, chunks):
        data = list(chunks)
        write(self, name, data)
        if "/pieces/" in name:
            places.append(name)
            write(self, name, data)

    write = LocalStore.write
    monkeypatch.setattr(LocalStore, "write", twice)
    assert made(path, target, b"2").kind == "incremental"
    assert places
    assert record(1, data=b"2") in contents(restored(target)).values()
