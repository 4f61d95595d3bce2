"""Every snippet and command in the documents runs, every command is documented, every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.persistent_dict import PersistentDict

from berkeleydb_storage import BerkeleyDBStorage, cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README", ROOT / "UPGRADING", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not DOCUMENTS[0].exists(), reason="the documents are in the source tree only")


def blocks(language):
    for document in DOCUMENTS:
        text = document.read_text() if document.exists() else ""
        for number, match in enumerate(BLOCK.finditer(text)):
            if match[1] == language:
                yield pytest.param(match[2], id=f"{document.name}-{number}")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with what the commands speak of: a storage `db`, a Durus file `old.durus`, `backup.durus`."""
    monkeypatch.chdir(tmp_path)
    for name in ("old.durus", "backup.durus"):
        storage = FileStorage(name)
        connection = Connection(storage)
        connection.get_root()["users"] = PersistentDict({"ada": "Lovelace"})
        connection.commit()
        storage.close()
    Path("db").mkdir()
    with BerkeleyDBStorage("db") as ours:
        Connection(ours)
    return tmp_path


def run(command, workplace):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("snippet", list(blocks("python")))
def test_python_snippets_run(snippet, workplace):
    done = run([sys.executable, "-W", "error", "-c", snippet], workplace)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", list(blocks("sh")))
def test_commands_run(snippet, workplace):
    for line in snippet.splitlines():
        command = line.partition("#")[0].split()
        if not command:
            continue
        assert command[0] == "durus-bdb", f"a command that this test cannot run: {line}"
        if command[1] == "export":
            Path(command[3]).unlink(missing_ok=True)
        if not Path("new-db").exists() and "new-db" in command and command[1] != "migrate":
            assert run([sys.executable, "-m", "berkeleydb_storage", "migrate", "old.durus", "new-db"], workplace)
        done = run([sys.executable, "-m", "berkeleydb_storage", *command[1:]], workplace)
        assert done.returncode == 0, (line, done.stderr)


def test_every_command_is_documented():
    text = "".join(document.read_text() for document in DOCUMENTS)
    missing = [name for name in cli.command_names() if f"durus-bdb {name}" not in text]
    assert not missing, f"commands without a word in the documents: {missing}"


def test_every_option_is_in_the_readme():
    from inspect import signature

    text = (ROOT / "README").read_text()
    options = set(signature(BerkeleyDBStorage).parameters) - {"path"}
    assert not [option for option in options if f"`{option}`" not in text]


def test_every_file_that_is_named_exists():
    for document in DOCUMENTS:
        for name in re.findall(r"(?:docs|tests|benchmarks)/[\w./]+\w", document.read_text()):
            assert (ROOT / name).exists(), f"{document.name} speaks of {name}"
