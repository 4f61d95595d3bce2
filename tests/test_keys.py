"""Where keys come from: a file, a command, the environment; never an argument, and never into what is printed."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import durusfiles
import pytest
from graphs import oid, record

import berkeleydb_storage
from berkeleydb_storage import (
    BerkeleyDBStorage,
    KeySourceError,
    OptionError,
    cli,
    key_from_command,
    key_from_environment,
    key_from_file,
    keys,
)
from berkeleydb_storage.commands import ALL
from berkeleydb_storage.keys import LONGEST, VARIABLE, fits, make_check, require_key
from berkeleydb_storage.options import Options

KEY = "s3cr3t of the tests"
ROOT = Path(berkeleydb_storage.__file__).parents[1]


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def key_file(path, text=f"{KEY}\n"):
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("key", ["", 7, b"bytes", "a\0b", "\udc80", "x" * (LONGEST + 1), "ü" * (LONGEST // 2 + 1)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(OptionError, match=r"^key=… "):
        require_key(key)
    with pytest.raises(OptionError, match=r"^key=… "):
        Options(key=key)


def test_options_do_not_show_it():
    assert KEY not in repr(Options(key=KEY))
    assert Options(key=KEY) != Options()


def test_a_check_recognises_its_key():
    check = make_check(KEY)
    assert fits(KEY, check)
    assert not fits(KEY + "x", check)
    assert KEY not in check
    assert check != make_check(KEY)


@pytest.mark.parametrize("text", [f"{KEY}\n", KEY, f"  {KEY}\r\nmore\n", f"{KEY}\n" + "x" * 10_000])
def test_the_first_line_of_a_file(tmp_path, text):
    assert key_from_file(key_file(tmp_path / "key", text)) == KEY


def test_a_file_that_is_given_by_a_shell():
    """Such as `<(pass show db)`: a pipe has no permissions that matter."""
    read, write = os.pipe()
    os.write(write, KEY.encode())
    os.close(write)
    assert key_from_file(f"/dev/fd/{read}") == KEY
    os.close(read)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_file_for_others_is_refused(tmp_path, mode):
    path = key_file(tmp_path / "key")
    path.chmod(mode)
    with pytest.raises(KeySourceError, match=f"^the key file {path} may be .* by others: chmod 600 {path}$"):
        key_from_file(path)


@pytest.mark.parametrize("text", ["", "\n", f"\n{KEY}\n", "x" * (LONGEST + 1), "a\0b\n"])
def test_a_file_without_a_key_is_refused(tmp_path, text):
    with pytest.raises(KeySourceError, match=r"the key file .*/key has no key in its first line: a key is a text of"):
        key_from_file(key_file(tmp_path / "key", text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(KeySourceError, match=r"nowhere cannot be read \(No such file or directory\): mend that"):
        key_from_file(tmp_path / "nowhere")
    with pytest.raises(KeySourceError, match=r"cannot be read \(Is a directory\)"):
        key_from_file(tmp_path)


def test_what_a_command_prints():
    assert key_from_command(f"echo '{KEY}'; echo more") == KEY
    assert key_from_command(f"echo '{KEY}' | cat") == KEY


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("exit 3", "the command for the key failed with exit code 3: run it by hand"),
        (f"echo '{KEY}'; exit 1", "failed with exit code 1"),
        ("no-such-program 2>/dev/null", "failed with exit code 127"),
        ("true", "the command for the key has no key in its first line"),
        ("printf '\\377\\n'", "has no key in its first line"),
    ],
)
def test_a_command_that_fails(command, message):
    with pytest.raises(KeySourceError, match=message) as caught:
        key_from_command(command)
    assert KEY not in str(caught.value)


def test_a_command_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(keys, "COMMAND_SECONDS", 0.01)
    with pytest.raises(KeySourceError, match=r"the command for the key failed \(took longer than 0.01 s\): run it"):
        key_from_command("exec sleep 60")


def test_the_environment(monkeypatch):
    assert key_from_environment() is None
    monkeypatch.setenv(VARIABLE, KEY)
    assert key_from_environment() == KEY
    for wrong in ("", " ", "\udcff"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(KeySourceError, match=f"the environment variable {VARIABLE} has no key"):
            key_from_environment()


def run(capfd, *arguments, code=0):
    """Run a command in this process; nothing that it prints tells the key."""
    capfd.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    return said.out + said.err


@pytest.fixture
def db(directory):
    """An encrypted storage with garbage."""
    with BerkeleyDBStorage(directory, key=KEY) as storage:
        for _ in range(20):
            storage.new_oid()
        storage.begin()
        for number in range(20):
            storage.store(oid(number), record(number, *([number + 1] if number < 9 else [])))
        storage.end()
    yield directory
    with BerkeleyDBStorage(directory, key=KEY) as storage:
        assert storage.check().faults == []


@pytest.fixture(params=["file", "command", "environment"])
def source(request, tmp_path, monkeypatch):
    """The options with which a command finds the key."""
    path = key_file(tmp_path / "key")
    if request.param == "environment":
        monkeypatch.setenv(VARIABLE, KEY)
        return []
    return ["--key-file", path] if request.param == "file" else ["--key-command", f"cat {path}"]


def test_every_command_that_opens_a_storage(db, capfd, tmp_path, source):
    assert "sound; 20 objects" in run(capfd, "check", db, *source)
    assert "sound; 20 objects" in run(capfd, "check", db, "--repair", *source)
    assert "objects        20" in run(capfd, "stat", db, *source)
    assert "20 objects" in run(capfd, "dump", db, tmp_path / "dump", *source)
    assert "packed" in run(capfd, "pack", db, *source)
    assert "compacted" in run(capfd, "compact", db, *source)
    assert "10 objects" in run(capfd, "export", db, tmp_path / "exported", *source)
    run(capfd, "census", db, *source)
    run(capfd, "why", db, 3, *source)
    assert "10 objects" in run(capfd, "migrate", tmp_path / "exported", tmp_path / "migrated", *source)
    assert "20 objects" in run(capfd, "load", tmp_path / "dump", tmp_path / "loaded", *source)
    for path, objects in ((tmp_path / "migrated", 10), (tmp_path / "loaded", 20)):
        with BerkeleyDBStorage(path, key=KEY) as storage:
            assert storage.get_size() == objects


COMMANDS = (["check"], ["stat"], ["dump"], ["pack"], ["compact"], ["census"])


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_key(db, capfd, tmp_path, command):
    before = {name: (db / name).read_bytes() for name in os.listdir(db)}
    assert "is encrypted: give the key" in run(capfd, *command, db, code=2)
    wrong = key_file(tmp_path / "wrong", "wrong\n")
    assert "is encrypted with another key" in run(capfd, *command, db, "--key-file", wrong, code=2)
    assert {name: (db / name).read_bytes() for name in os.listdir(db)} == before


def test_what_is_seen_from_outside_needs_no_key(db, capfd):
    assert "btree, format 4, encrypted, Berkeley DB" in run(capfd, "stat", db, "--outside")
    assert json.loads(run(capfd, "stat", db, "--outside", "--json"))["encrypted"] is True


def test_one_source_at_a_time(db, capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["check", str(db), "--key-file", "a", "--key-command", "b"])
    assert "not allowed with argument --key-file" in capsys.readouterr().err


def test_a_file_goes_before_the_environment(db, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "wrong")
    assert "sound" in run(capfd, "check", db, "--key-file", key_file(tmp_path / "key"))


def test_a_key_for_a_plain_storage(directory, open_storage, capfd, monkeypatch):
    open_storage().close()
    monkeypatch.setenv(VARIABLE, KEY)
    assert "is not encrypted: leave the key out" in run(capfd, "check", directory, code=2)


def test_migrating_from_one_key_to_another(db, capfd, tmp_path):
    new, old = key_file(tmp_path / "new", "the new one\n"), key_file(tmp_path / "old")
    target = tmp_path / "target"
    assert "20 objects" in run(capfd, "migrate", db, target, "--source-key-file", old, "--key-file", new)
    assert "20 objects" in run(capfd, "migrate", db, tmp_path / "plain", "--source-key-command", f"cat {old}")
    with BerkeleyDBStorage(target, key="the new one") as storage, BerkeleyDBStorage(tmp_path / "plain") as plain:
        assert storage.get_size() == plain.get_size() == 20
    assert "is encrypted: give the key" in run(capfd, "migrate", db, tmp_path / "another", code=2)


def test_a_file_of_durus_has_no_key(capfd, tmp_path):
    file = tmp_path / "file"
    durusfiles.make(file)
    key = key_file(tmp_path / "key")
    said = run(capfd, "migrate", file, tmp_path / "target", "--source-key-file", key, code=2)
    assert "is a file of Durus, which is never encrypted: leave its key out" in said


def test_the_server(db, tmp_path):
    """In a process of its own, whose arguments and output say nothing."""
    key = key_file(tmp_path / "key")
    command = [sys.executable, "-m", "berkeleydb_storage", "serve", str(db), "--listen", f"unix:{tmp_path}/socket"]
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert wrong.returncode == 2
    assert "is encrypted: give the key" in wrong.stderr
    with subprocess.Popen([*command, "--key-file", key], stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        said = [server.stderr.readline()]
        while "listening" not in said[-1]:
            said.append(server.stderr.readline())
            assert said[-1], said
        assert KEY not in Path(f"/proc/{server.pid}/cmdline").read_text()
        server.terminate()
        said.append(server.stderr.read())
    assert not [line for line in said if KEY in line]


def test_no_command_takes_a_key_itself():
    seen = 0
    for command in ALL:
        parser = argparse.ArgumentParser()
        command.configure(parser)
        taken = {option for action in parser._actions for option in action.option_strings}
        if "--key-file" in taken:
            seen += 1
            assert not {"--key", "--password", "--new-key", "--source-key"} & taken, command.name
    assert seen > 8
