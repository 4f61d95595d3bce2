"""``durus-bdb archive``, ``serve --archive-to``, and what ``stat`` says of them."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from concurrency import wait_until
from durus.connection import Connection

from berkeleydb_storage import Archive, BerkeleyDBStorage, GarbageManual, StorageInUse, cli, restore
from berkeleydb_storage.backup.archive import Archived
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.commands import archiving

PATIENT = 60
COMMAND = [sys.executable, "-m", "berkeleydb_storage"]


@pytest.fixture
def db(tmp_path):
    (tmp_path / "db").mkdir()
    with opened(tmp_path / "db") as storage:
        commit(storage, 1)
    return tmp_path / "db"


def opened(path, **options):
    return BerkeleyDBStorage(path, garbage_collection=GarbageManual(), **options)


def commit(storage, number):
    connection = Connection(storage.session())
    connection.get_root()["a"] = number
    connection.commit()
    return storage._engine.journal.tid


def restored(place, path):
    restore(place, path)
    with opened(path) as storage:
        return Connection(storage).get_root()["a"]


def begun(*arguments):
    return subprocess.Popen(
        [*COMMAND, "archive", *map(str, arguments), "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=PATIENT)
    return process.returncode, out, errors


def reached(place):
    """Return the newest transaction that is there, 0 where there is none."""
    if not place.exists():
        return 0
    return max((base.reach()[1] for base in Repository(open_store(place)).bases()), default=0)


def wait_for(tid, place):
    wait_until(lambda: reached(place) >= tid)


def test_once(db, tmp_path, capsys):
    place = tmp_path / "places" / "one"
    assert cli.main(["archive", str(db), str(place), "--once", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["directory"], first["url"], first["bases"]) == (str(db), str(place), 1)
    with opened(db) as storage:
        commit(storage, 2)
    assert cli.main(["archive", str(db), str(place), "--once"]) == 0
    assert "0 bytes, 0.0 s behind" in capsys.readouterr().out
    assert restored(place, tmp_path / "back") == 2
    assert cli.main(["archive", str(db), str(place), "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bases"] == 0


def test_once_beside_an_owner(db, tmp_path, capsys):
    with opened(db) as storage:
        commit(storage, 2)
        assert cli.main(["archive", str(db), str(tmp_path / "place"), "--once"]) == 0
        assert restored(tmp_path / "place", tmp_path / "back") == 2


def test_once_where_the_store_fails(db, tmp_path, capsys):
    place = tmp_path / "place"
    place.mkdir()
    (place / db.name).touch()
    assert cli.main(["archive", str(db), str(place), "--once", "-q"]) == 0
    (place / ".making").rmdir()
    (place / ".making").touch()
    with opened(db) as storage:
        commit(storage, 2)
    assert cli.main(["archive", str(db), str(place), "--once", "-q"]) == 2
    assert str(place) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "place"], "nowhere"),
        (["db", "nosuch://bucket"], "nosuch"),
        (["db", "place", "--interval", "0"], "--interval"),
        (["db", "place", "--keep-days", "0"], "within"),
        (["db", "place", "--store-options", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_is_an_error(db, tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["archive", *arguments, "--once"]) != 0
    assert text in capsys.readouterr().err


def test_it_follows_owners(db, tmp_path):
    """The last commits of one that has gone come, too; and it ends in order."""
    place = tmp_path / "place"
    process = begun(db, place, "-v")
    try:
        wait_for(1, place)
        for number in range(2, 5):
            with opened_soon(db) as storage:
                for _ in range(3):
                    tid = commit(storage, number)
                wait_for(tid, place)
    finally:
        code, out, errors = ended(process)
    assert code == 0, errors
    assert "s behind" in out
    assert restored(place, tmp_path / "back") == 4
    assert not [name for name in os.listdir(db) if name.startswith("archiving-")]


def opened_soon(path):
    """Open a storage that the command may have open for a moment."""

    def attempt():
        with suppress(StorageInUse):
            return opened(path)

    return wait_until(attempt)


def test_what_a_killed_owner_left_comes(db, tmp_path, monkeypatch):
    """When nobody takes over."""
    place = tmp_path / "place"
    script = (
        "import os, sys\nfrom durus.connection import Connection\nfrom berkeleydb_storage import BerkeleyDBStorage\n"
        "connection = Connection(BerkeleyDBStorage(sys.argv[1]))\n"
        "connection.get_root()['a'] = 7\nconnection.commit()\nos.kill(os.getpid(), 9)"
    )
    assert cli.main(["archive", str(db), str(place), "--once", "-q"]) == 0
    subprocess.run([sys.executable, "-c", script, str(db)], check=False, timeout=PATIENT)
    process = begun(db, place)
    try:
        wait_for(reached(place) + 1, place)
    finally:
        code, _, errors = ended(process)
    assert code == 0, errors
    assert restored(place, tmp_path / "back") == 7


def test_it_does_not_keep_the_storage_open(db, tmp_path):
    place = tmp_path / "place"
    process = begun(db, place)
    try:
        wait_for(1, place)
        with opened_soon(db) as storage:
            wait_for(commit(storage, 2), place)
            second = subprocess.run(
                [*COMMAND, "archive", db, place], capture_output=True, text=True, timeout=PATIENT, check=False
            )
            assert second.returncode != 0
            assert f"process {process.pid} already" in second.stderr
    finally:
        code, _, errors = ended(process)
    assert code == 0, errors


def test_stat_shows_the_archive_of_an_owner(db, tmp_path, capsys):
    (tmp_path / "place").mkdir()
    with opened(db, archive=Archive(tmp_path / "place", interval=0.02)) as storage:
        commit(storage, 2)
        wait_until(lambda: storage.statistics().archive.tid is not None)
        assert cli.main(["stat", str(db)]) == 0
        assert f"archive        {tmp_path / 'place'}: all up to" in capsys.readouterr().out
        assert cli.main(["stat", str(db), "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        assert values["inside"]["archive"]["url"] == str(tmp_path / "place")
        assert values["inside"]["archive"]["bases"] == 1


def test_a_server_archives(db, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    arguments = ["--listen", f"unix:{tmp_path / 'socket'}", "--archive-to", place, "--archive-interval", "0.1"]
    process = subprocess.Popen([*COMMAND, "serve", db, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        wait_for(1, place)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENT)
    assert process.returncode == 0, errors
    assert restored(place, tmp_path / "back") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--archive-interval", "1"],
        ["--archive-queue", "1G"],
        ["--archive-keep-days", "3"],
        ["--store-options", "x"],
        ["--archive-to", "place", "--read-only"],
        ["--archive-to", "place", "--archive-interval", "0"],
    ],
)
def test_options_of_a_server_that_make_no_sense(db, arguments, capsys):
    assert cli.main(["serve", str(db), *arguments]) != 0
    assert "archive" in capsys.readouterr().err


def test_the_line_of_one_that_fails():
    figures = Archived("s3://a", 1, 2.0, 3, 4.0, 5, 6, 7, None, 0, "no route")
    assert archiving._line(figures) == "s3://a is 4 s behind: no route"
    assert "transaction 1; 3 bytes, 4.0 s behind; 6 pieces" in archiving._line(
        Archived("s3://a", 1, 2.0, 3, 4.0, 5, 6, 7, None, 0, "")
    )
    assert "nothing is there yet" in archiving._line(Archived("s3://a", None, None, None, 4.0, 0, 0, 0, 9, 0, ""))
