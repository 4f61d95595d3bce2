"""The commands as a user runs them: in processes of their own, on a terminal, in a pipe, interrupted, on bad input."""

import argparse
import fcntl
import json
import logging
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import durusfiles
import pytest
from durus.connection import Connection
from durus.file_storage import FileStorage
from graphs import copied, oid, record, table

import berkeleydb_storage
from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual, check, cli
from berkeleydb_storage.control.protocol import CONTROL
from berkeleydb_storage.environment import REFCOUNTS
from berkeleydb_storage.format import FORMAT_VERSION, pack_count

ROOT = Path(berkeleydb_storage.__file__).parents[1]
PATIENCE = 60
MANY = 6000
"""Objects: three batches of a migration, and more than a pipe holds when they are dumped."""
COMMAND = [sys.executable, "-W", "error", "-m", "berkeleydb_storage"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run(*arguments, code=0, stdin=None):
    """Run a command, check its exit code, return what it wrote to standard output and error."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def run_here(capsys, *arguments, code=0):
    """Run a command in this process."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    return capsys.readouterr()


def contents(path):
    with BerkeleyDBStorage(path, read_only=True) as storage:
        return dict(storage.gen_oid_record())


@pytest.fixture
def db(open_storage, directory):
    """A directory with a storage in which the test program ran."""
    storage = open_storage(garbage_collection=GarbageManual())
    durusfiles.run_program(storage)
    storage.close()
    return directory


@pytest.fixture
def large(tmp_path):
    """A FileStorage with many objects."""
    rows = [(oid(0), record(0, *range(1, MANY)))] + [(oid(n), record(n, data=bytes(60))) for n in range(1, MANY)]
    return durusfiles.write(tmp_path / "large.durus", [rows])


@pytest.fixture
def crashed(db, tmp_path):
    """A copy of a storage that was not closed."""
    with BerkeleyDBStorage(db, checkpoint=CheckpointNever(), garbage_collection=GarbageManual()) as storage:
        connection = Connection(storage)
        connection.get_root()["more"] = "of it"
        connection.commit()
        copied(db, tmp_path / "crashed")
    return tmp_path / "crashed"


@pytest.fixture
def faulty(db):
    """A storage with a wrong reference count."""
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        table(storage, REFCOUNTS).put(oid(1), pack_count(7))
    return db


@pytest.mark.parametrize("kind", sorted(durusfiles.KINDS))
def test_migrate(kind, tmp_path):
    source = durusfiles.make(tmp_path / "source", kind)
    out, err = run("migrate", source, tmp_path / "a" / "b")
    objects = len(durusfiles.contents(source, kind))
    assert re.fullmatch(
        rf"migrated .*source \({kind}\) into .*/a/b: {objects} objects in \d+\.\d s \([\d,]+/s\), .*garbage.*\n", out
    )
    assert err == ""
    assert contents(tmp_path / "a" / "b") == durusfiles.contents(source, kind)
    run("check", tmp_path / "a" / "b")


def test_migrate_tells_how_much_garbage_it_found(tmp_path, capsys):
    source = durusfiles.write(tmp_path / "file", [[(oid(0), record(0)), (oid(1), record(1)), (oid(2), record(2))]])
    out = run_here(capsys, "migrate", source, tmp_path / "new").out
    assert "3 objects" in out
    assert "2 of them garbage" in out
    values = json.loads(run_here(capsys, "migrate", source, tmp_path / "newer", "--json").out)
    assert (values["objects"], values["garbage"], values["kind"]) == (3, 2, "FileStorage")
    assert (values["source"], values["directory"]) == (str(source), str(tmp_path / "newer"))
    assert values["seconds"] >= 0


def test_migrate_one_of_our_own_into_a_hash(db, tmp_path, capsys):
    run_here(capsys, "migrate", db, tmp_path / "new", "--type", "hash", "--cachesize", "2M")
    assert contents(tmp_path / "new") == contents(db)
    assert json.loads(run_here(capsys, "stat", tmp_path / "new", "--json").out)["type"] == "hash"


def test_there_and_back(tmp_path):
    source = durusfiles.make(tmp_path / "there")
    run("migrate", source, tmp_path / "db")
    out, err = run("export", tmp_path / "db", tmp_path / "back")
    objects = len(durusfiles.contents(source))
    assert f"into {tmp_path}/back, a FileStorage of Durus: {objects} objects" in out
    assert err == ""
    assert durusfiles.contents(tmp_path / "back") == durusfiles.contents(source)
    with closing(FileStorage(str(tmp_path / "back"))) as home:
        assert len(list(Connection(home).get_root()["tree"])) == durusfiles.ITEMS / 2


def test_export_as_json(db, tmp_path, capsys):
    values = json.loads(run_here(capsys, "export", db, tmp_path / "file", "--json").out)
    assert values["objects"] == len(contents(db))
    assert values["bytes"] == (tmp_path / "file").stat().st_size


def test_check_of_a_sound_storage(db):
    out, err = run("check", db)
    assert re.fullmatch(rf"{db}: sound; {len(contents(db))} objects, \d+ of them garbage, every page, in .* s\n", out)
    assert err == ""
    assert run("check", db, "--quiet") == ("", "")


def test_check_without_pages(db, capsys):
    assert "pages not looked at" in run_here(capsys, "check", db, "--no-pages").out
    assert not json.loads(run_here(capsys, "check", db, "--no-pages", "--json").out)["pages"]


def test_check_and_repair(faulty):
    fault = "object 1 has 1 referrers and a reference count of 7"
    out, _ = run("check", faulty, code=1)
    assert f"fault: count: {fault}" in out
    assert "1 faults, 1 of which --repair mends" in out
    assert fault in run("check", faulty, "--quiet", code=1)[0]
    values = json.loads(run("check", faulty, "--json", code=1)[0])
    assert not values["sound"]
    assert [found["message"] for found in values["faults"]] == [fault]
    out, _ = run("check", faulty, "--repair")
    assert f"repaired: count: {fault}" in out
    assert "sound" in out
    assert run("check", faulty)[0].count("\n") == 1


def test_check_of_more_faults_than_are_listed(faulty, capsys, monkeypatch):
    with BerkeleyDBStorage(faulty, garbage_collection=GarbageManual()) as storage:
        for number in (3, 4):
            table(storage, REFCOUNTS).put(oid(number), pack_count(7))
    monkeypatch.setattr(check, "LISTED", 1)
    out = run_here(capsys, "check", faulty, code=1).out
    assert out.count("fault: count: object") == 1
    assert re.search(r"^fault: and (\d+) more, which are not listed$", out, re.MULTILINE)
    values = json.loads(run_here(capsys, "check", faulty, "--json", code=1).out)
    assert (len(values["faults"]), values["found"] >= 3) == (1, True)
    assert "more, which are not listed" in run_here(capsys, "check", faulty, "--repair").out


def test_check_prints_what_cannot_be_repaired(db, capsys):
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        tree = storage.load(oid(1))
        storage._engine.objects.delete(oid(1))
    out = run_here(capsys, "check", db, "--repair", code=1).out
    assert "fault: dangling: object 1 does not exist, and is referred to" in out
    assert "none of which can be repaired" in out
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        storage._engine.objects.put(oid(1), tree)
    run_here(capsys, "check", db, "--repair")


def test_check_of_a_damaged_page(db, tmp_path, capsys):
    copy = copied(db, tmp_path / "copy")
    with (copy / "objects.db").open("r+b") as file:
        file.seek(4096 + 1000)
        file.write(b"damaged")
    out = run_here(capsys, "check", copy, code=1).out
    assert f"fault: page: page 1 of {copy}/objects.db is damaged" in out


def test_check_of_a_page_that_is_not_read_otherwise(db, tmp_path, capsys):
    """In a table of a free page, or behind what a cursor visits: only the checksums tell."""
    copy = copied(db, tmp_path / "copy")
    with (copy / "garbage.db").open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"\x07" * 4096)
    pages = (copy / "garbage.db").stat().st_size // 4096
    out = run_here(capsys, "check", copy, code=1).out
    assert f"fault: page: page {pages - 1} of {copy}/garbage.db is damaged" in out
    run_here(capsys, "check", copy, "--no-pages")


def test_check_of_a_missing_file(db, tmp_path, capsys):
    copy = copied(db, tmp_path / "copy")
    (copy / "meta.db").unlink()
    assert "meta.db is missing" in run_here(capsys, "check", copy, code=1).out


def test_check_of_a_crashed_storage(crashed):
    out, err = run("check", crashed)
    assert "sound" in out
    assert "every page" in out
    assert "durus-bdb: warning: " in err
    assert "was not closed: recovering" in err
    assert run("check", crashed)[1] == "", "it is recovered now"


def test_check_of_a_crashed_storage_without_writing(crashed):
    before = {path.name: path.read_bytes() for path in crashed.iterdir()}
    out, _ = run("check", crashed, "--read-only")
    assert "sound" in out
    assert {path.name: path.read_bytes() for path in crashed.iterdir()} == before


def test_stat(db):
    out, err = run("stat", db)
    lines = out.splitlines()
    assert lines[0] == f"{db}: btree, format {FORMAT_VERSION}, Berkeley DB {cli.LIBRARY}, closed"
    shown = {line.split()[0]: line for line in lines[1:]}
    assert f" {len(contents(db))}" in shown["objects"]
    assert " 4, the last at 20" in shown["transactions"]
    assert {"garbage", "suspects", "cache", "log", "objects.db", "refcounts.db"} <= shown.keys()
    assert err == ""


def test_stat_as_json(db, capsys):
    values = json.loads(run_here(capsys, "stat", db, "--json").out)
    assert values["inside"]["objects"] == len(contents(db))
    assert values["disk"] == sum(disk for _, _, disk in values["tables"] + values["logs"])
    assert 0 <= values["inside"]["cache_hit_rate"] <= 1


def test_stat_of_a_storage_in_use(db, open_storage):
    objects = open_storage().get_size()
    out, err = run("stat", db)
    assert f"in use by process {os.getpid()}" in out
    assert "collected      0 objects" in out
    assert "objects.db" in out
    assert err == ""
    assert json.loads(run("stat", db, "--json")[0])["inside"]["objects"] == objects


def test_stat_of_a_storage_in_use_that_does_not_answer(db, open_storage):
    open_storage()
    (db / CONTROL).unlink()
    out, err = run("stat", db)
    assert "not known without opening it" in out
    assert err == ""
    assert json.loads(run("stat", db, "--json")[0])["inside"] is None


def test_stat_from_outside(crashed):
    out, err = run("stat", crashed, "--outside")
    assert "not closed: in use, or to be recovered when it is opened" in out
    assert err == ""


def test_census(db, capsys):
    out, err = run("census", db)
    values = json.loads(run_here(capsys, "census", db, "--json").out)
    assert values["objects"] == len(contents(db))
    assert values["bytes"] == sum(map(len, contents(db).values()))
    assert err == ""
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["objects", "bytes", "class"]
    assert lines[-1] == [f"{values['objects']:,}", f"{values['bytes']:,}", "in", "all"]
    for line, expected in zip(lines[1:-1], values["classes"], strict=True):
        assert line == [f"{expected['objects']:,}", f"{expected['bytes']:,}", expected["class"]]


@pytest.mark.parametrize("by", ["bytes", "objects", "class"])
def test_census_in_order(by, db, capsys):
    lines = json.loads(run_here(capsys, "census", db, "--json", "--by", by).out)["classes"]
    found = [line[by] for line in lines]
    assert len(found) >= 3
    assert found == sorted(found, reverse=by != "class")


def test_dump_and_load(db, tmp_path):
    out, err = run("dump", db)
    assert [json.loads(line)["oid"] for line in out.splitlines()] == [
        int.from_bytes(key, "big") for key in sorted(contents(db))
    ]
    assert err == ""
    assert f"dumped {len(contents(db))} objects" in run("dump", db, tmp_path / "file")[0]
    assert (tmp_path / "file").read_text() == out
    assert "objects in" in run("load", tmp_path / "file", tmp_path / "new")[0]
    assert "loaded standard input into" in run("load", "-", tmp_path / "newer", stdin=out)[0]
    assert contents(tmp_path / "new") == contents(tmp_path / "newer") == contents(db)


def test_dump_of_some(db, capsys):
    out = run_here(capsys, "dump", db, "--oid", "1", "0").out
    assert [json.loads(line)["oid"] for line in out.splitlines()] == [1, 0]
    out = run_here(capsys, "dump", db, "--oid", "1", "--oid", "0", "--text").out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("object")] == ["object 1", "object 0"]
    assert "<object 1: durus.btree.BTree>" in out


def test_dump_where_the_output_knows_few_characters(open_storage, directory):
    storage = open_storage()
    connection = Connection(storage)
    connection.get_root()["naïve"] = "☃"
    connection.commit()
    storage.close()
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "dump", str(directory), "--text"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert r"{'data': {'na\xefve': '\u2603'}}" in done.stdout


def test_dump_does_not_replace_a_file(db, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert "exists, and is not replaced" in run_here(capsys, "dump", db, tmp_path / "file", code=2).err
    assert (tmp_path / "file").read_text() == "precious"


def test_load_names_the_line(db, tmp_path):
    lines = run("dump", db)[0].splitlines(keepends=True)
    lines[4] = lines[4].replace('"record": "', '"record": "!')
    (tmp_path / "file").write_text("".join(lines))
    _, err = run("load", tmp_path / "file", tmp_path / "new", code=2)
    assert err.startswith(f'durus-bdb: {tmp_path}/file, line 5: "record" is not base64')
    assert err.count("\n") == 1
    assert contents(tmp_path / "new") == {}


def test_pack(open_storage, directory):
    storage = open_storage(garbage_collection=GarbageManual())
    storage.migrate(
        [(oid(0), record(0))] + [(oid(n), record(n, n + 1)) for n in range(1, 500)] + [(oid(500), record(500))]
    )
    storage.close()
    size = sum(len(row) for key, row in contents(directory).items() if key != oid(0))
    values = json.loads(run("pack", directory, "--json")[0])
    assert (values["collected"], values["objects"], values["bytes"]) == (500, 1, size)
    out, err = run("pack", directory)
    assert f"packed {directory}: 0 objects of 0 bytes deleted" in out
    assert err == ""
    assert contents(directory).keys() == {oid(0)}


def test_the_original_test_program_in_its_original_size(tmp_path):
    source = durusfiles.make(tmp_path / "source", items=65_536)
    run("migrate", source, tmp_path / "db")
    run("check", tmp_path / "db", "--quiet")
    run("export", tmp_path / "db", tmp_path / "back")
    assert durusfiles.contents(tmp_path / "back") == durusfiles.contents(source)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is cut off or damaged"),
        (lambda path: path.write_bytes(b"not a storage"), "is not a storage of Durus"),
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: durusfiles.write(path, [[(oid(3), record(3, 77))]]), r"objects that it does not have \(77\)"),
    ],
    ids=["cut off", "foreign", "missing", "dangling"],
)
def test_a_source_that_cannot_be_migrated(spoil, what, tmp_path):
    source = durusfiles.make(tmp_path / "file", items=30)
    spoil(source)
    _, err = run("migrate", source, tmp_path / "new", code=2)
    assert re.match(rf"durus-bdb: .*{what}", err)
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists() or contents(tmp_path / "new") == {}


def test_a_source_with_two_roots_or_none(tmp_path, capsys):
    (tmp_path / "two").write_text(2 * '{"oid": 0, "record": "AAAAAAAAAAAAAAAA"}\n')
    assert "line 2: object 0 comes twice" in run_here(capsys, "load", tmp_path / "two", tmp_path / "new", code=2).err
    (tmp_path / "none").write_text('{"oid": 1, "record": "AAAAAAAAAAEAAAAA"}\n')
    assert "has no root" in run_here(capsys, "load", tmp_path / "none", tmp_path / "new", code=2).err
    assert contents(tmp_path / "new") == {}


def test_a_destination_with_objects(db, tmp_path, capsys):
    source = durusfiles.make(tmp_path / "file")
    before = contents(db)
    assert "migrate into a storage that has none" in run_here(capsys, "migrate", source, db, code=2).err
    assert contents(db) == before


@pytest.mark.parametrize("command", ["check", "stat", "census", "dump", "pack", "compact"])
def test_a_directory_that_does_not_exist(command, tmp_path, capsys):
    shown = run_here(capsys, command, tmp_path / "nothing", code=2)
    assert shown.err.startswith(f"durus-bdb: {tmp_path}/nothing does not exist")
    assert shown.out == ""
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("command", ["check", "stat", "census", "dump"])
def test_an_empty_directory_stays_empty(command, tmp_path, capsys):
    assert "holds no storage" in run_here(capsys, command, tmp_path, code=2).err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["check", "census", "dump", "pack", "compact"])
def test_a_storage_in_use(command, db, open_storage, capsys):
    open_storage()
    assert f"is in use by this process ({os.getpid()})" in run_here(capsys, command, db, code=2).err


def test_errors_of_the_system(tmp_path, db, capsys):
    assert run_here(capsys, "load", tmp_path / "no", tmp_path / "db", code=2).err.endswith(
        "no: No such file or directory\n"
    )
    err = run_here(capsys, "export", db, tmp_path / "no" / "file", code=2).err
    assert err == f"durus-bdb: {tmp_path}/no/file.new: No such file or directory\n"


def test_an_object_that_does_not_exist(db, capsys):
    assert run_here(capsys, "dump", db, "--oid", "123456", code=2).err == "durus-bdb: object 123456 does not exist\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["stat"], "required: DIRECTORY"),
        (["check", "db", "--cachesize", "lots"], "'lots' is not a number of bytes"),
        (["dump", "db", "--oid", "-1"], "is not the number of an object"),
        (["dump", "db", "--oid", str(1 << 64)], "is not the number of an object"),
        (["migrate", "a", "b", "--type", "queue"], "invalid choice"),
    ],
)
def test_wrong_arguments(arguments, what, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert what in capsys.readouterr().err


def test_a_pipe_that_nobody_reads(large, tmp_path):
    run("migrate", large, tmp_path / "db", "--quiet")
    with subprocess.Popen(
        [*COMMAND, "dump", tmp_path / "db"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b'{"oid": 0,')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 141
    run("check", tmp_path / "db", "--quiet")


SIGNALLED = """
import os, sys
from berkeleydb_storage import cli, failpoints
left = int(sys.argv[3])
def hook(name):
    global left
    if name == sys.argv[1]:
        for _ in range(left):
            os.kill(os.getpid(), int(sys.argv[2]))
        left = 0
failpoints.hook = hook
sys.exit(cli.main(sys.argv[4:]))
"""


def run_signalled(point, number, times, *arguments):
    """Run a command that gets a signal, `times` in a row, when it reaches a crash point."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        SIGNALLED,
        point,
        str(int(number)),
        str(times),
        *map(str, arguments),
    ]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("point", ["migrate.begun", "migrate.batch", "migrate.counted"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_migration_is_undone(number, point, large, tmp_path):
    done = run_signalled(point, number, 1, "migrate", large, tmp_path / "new")
    assert done.returncode == 128 + number, done
    assert done.stderr == (
        "durus-bdb: ending; once more to end at once, as if killed\n"
        f"durus-bdb: interrupted; {tmp_path}/new is empty, as before; to start again, run the same command\n"
    )
    assert done.stdout == ""
    assert contents(tmp_path / "new") == {}
    run("migrate", large, tmp_path / "new")
    assert contents(tmp_path / "new") == durusfiles.contents(large)


def test_a_second_signal_ends_at_once(large, tmp_path):
    done = run_signalled("migrate.batch", signal.SIGINT, 2, "migrate", large, tmp_path / "new")
    assert done.returncode == -signal.SIGINT
    _, err = run("migrate", large, tmp_path / "new")
    assert "was not closed: recovering" in err
    assert "a migration into it did not complete" in err
    assert contents(tmp_path / "new") == durusfiles.contents(large)


def test_an_interrupted_pack_goes_on_later(open_storage, directory):
    storage = open_storage(garbage_collection=GarbageManual())
    storage.migrate([(oid(0), record(0))] + [(oid(n), record(n)) for n in range(1, 500)])
    storage.close()
    done = run_signalled("collect.committed", signal.SIGINT, 1, "pack", directory)
    assert done.returncode == 130
    assert "durus-bdb: interrupted; what was deleted is gone" in done.stderr
    assert 1 < len(contents(directory)) < 500
    run("pack", directory)
    assert len(contents(directory)) == 1


def test_compact(open_storage, directory):
    storage = open_storage(garbage_collection=GarbageManual())
    storage.migrate([(oid(0), record(0))] + [(oid(n), record(n, data=bytes(2000))) for n in range(1, 500)])
    storage.close()
    run("pack", directory)
    before = sum(path.stat().st_size for path in directory.glob("*.db"))
    done = run_signalled("compact.begun", signal.SIGINT, 1, "compact", directory)
    assert done.returncode == 130
    assert "durus-bdb: interrupted; what was given back is; to go on, run the same command" in done.stderr
    out, _ = run("compact", directory)
    assert f"compacted {directory}: " in out
    values = json.loads(run("compact", directory, "--json")[0])
    assert values["before"] == values["after"] < before / 2
    assert values["directory"] == str(directory)
    assert len(contents(directory)) == 1


def test_signals_are_as_before_afterwards(db, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_here(capsys, "stat", db)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def on_terminal(*arguments, columns=120):
    """Run a command whose standard error is a terminal; return its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
        os.close(ours)
    return process.returncode, shown.decode()


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux: the other end is closed
        return b""


def test_a_bar_on_a_terminal(large, tmp_path):
    code, shown = on_terminal("migrate", large, tmp_path / "db")
    assert code == 0
    assert "\r" in shown
    assert re.search(rf"loading: 100%.* {MANY}/{MANY} .*objects/s", shown)
    assert re.search(rf"verifying: 100%.* {MANY}/{MANY} ", shown)


def test_a_terminal_that_does_not_tell_its_width(large, tmp_path):
    assert "loading: 100%" in on_terminal("migrate", large, tmp_path / "db", columns=0)[1]


def test_a_bar_for_other_commands(large, tmp_path):
    run("migrate", large, tmp_path / "db", "--quiet")
    assert "exporting: 100%" in on_terminal("export", tmp_path / "db", tmp_path / "file")[1]
    assert "counting:" in on_terminal("census", tmp_path / "db")[1]
    assert "objects: 100%" in on_terminal("check", tmp_path / "db")[1]
    assert "dumping:" in on_terminal("dump", tmp_path / "db", tmp_path / "dump")[1]


def test_quiet_on_a_terminal(large, tmp_path):
    assert on_terminal("migrate", large, tmp_path / "db", "--quiet") == (0, "")


def test_the_log_is_shown_above_the_bar(crashed):
    code, shown = on_terminal("check", crashed)
    assert code == 0
    assert re.search(r"^durus-bdb: warning: .* was not closed", shown, re.MULTILINE)


def test_verbose_and_quiet(crashed, tmp_path):
    for name in ("quiet", "verbose"):
        copied(crashed, tmp_path / name)
    assert run("check", tmp_path / "quiet", "--quiet") == ("", "")
    assert "durus-bdb: info: " in run("migrate", crashed, tmp_path / "new", "-v")[1]
    assert "durus-bdb: debug: " in run("check", tmp_path / "verbose", "-vv")[1]


def test_logging_is_as_before_afterwards(db, capsys):
    logger = logging.getLogger("berkeleydb_storage")
    before = logger.level, list(logger.handlers)
    run_here(capsys, "stat", db, "-vv")
    assert (logger.level, logger.handlers) == before


def subparsers():
    parser = cli.build_parser()
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0].choices


def test_the_names_of_the_commands():
    expected = ["migrate", "export", "check", "stat", "census", "why", "dump", "load", "pack", "compact"]
    expected += ["backup", "backups", "release", "restore", "verify", "archive", "salvage", "passwd", "serve", "server"]
    assert cli.command_names() == list(subparsers()) == expected


@pytest.mark.parametrize("name", cli.command_names())
def test_help_has_an_example_that_parses(name):
    text = subparsers()[name].format_help()
    examples = [line.strip() for line in text.partition("example:")[2].splitlines() if line.strip()]
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == cli.PROGRAM
        assert arguments[0] == name
        cli.build_parser().parse_args(arguments)
    for action in subparsers()[name]._actions:
        assert action.help, action


def test_help_and_version():
    out, _ = run("--help")
    for name in cli.command_names():
        assert re.search(rf"^ +{name} ", out, re.MULTILINE)
    assert berkeleydb_storage.__version__ in run("--version")[0]
