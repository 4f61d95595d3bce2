"""Every snippet and command in the documents runs, every command is documented, every link leads somewhere."""

import argparse
import ast
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.persistent_dict import PersistentDict
from serve_process import Serving
from served import free_port
from test_layers import SOURCES, ours

from berkeleydb_storage import BerkeleyDBStorage, cli, commands
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile
from berkeleydb_storage.garbage import cycles, deletion, suspicion
from berkeleydb_storage.refcounts import LAST_PATIENCE, PATIENCE
from berkeleydb_storage.server import prometheus

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README", ROOT / "UPGRADING", *sorted((ROOT / "docs").glob("*.md"))]
PORTS = (2972, 9100)
"""In the documents; a free one is used in place of each."""
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
    """A directory with what the commands speak of: a storage `db`, a Durus file `old.durus`, and so on."""
    monkeypatch.chdir(tmp_path)
    for name in ("old.durus", "backup.durus"):
        storage = FileStorage(name)
        connection = Connection(storage)
        connection.get_root()["users"] = PersistentDict({"ada": "Lovelace"})
        connection.commit()
        storage.close()
    Path("db").mkdir()
    Path("backups").mkdir()
    with BerkeleyDBStorage("db") as ours:
        Connection(ours)
        ours.backup("backups")
    PasswordFile("users").set("ada", "Lovelace", Rights.ADMIN)
    Path("password").write_text("Lovelace\n")
    Path("key").write_text("a key\n")
    Path("key").chmod(0o600)
    certificate = trustme.CA().issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path("cert.pem")
    certificate.private_key_pem.write_to_path("key.pem")
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
    """Those after a `serve` while that runs; it is ended at the end, and has to be, in order."""
    for port in PORTS:
        snippet = snippet.replace(f":{port}", f":{free_port()}")
    with ExitStack() as servers:
        run_lines(snippet, workplace, servers)


def run_lines(snippet, workplace, servers):
    for line in snippet.splitlines():
        command = line.partition("#")[0].split()
        if not command:
            continue
        if command[1] == "serve":
            server = Serving(*command[2:], listen=False)
            servers.callback(end, server, asked=" shutdown\n" in snippet)
            continue
        assert command[0] == "durus-bdb", f"a command that this test cannot run: {line}"
        if command[1] == "export":
            Path(command[3]).unlink(missing_ok=True)
        if not Path("new-db").exists() and "new-db" in command and command[1] != "migrate":
            assert run([sys.executable, "-m", "berkeleydb_storage", "migrate", "old.durus", "new-db"], workplace)
        done = run([sys.executable, "-m", "berkeleydb_storage", *command[1:]], workplace)
        assert done.returncode == 0, (line, done.stderr)


def end(server, *, asked):
    """End a server in order, if it was not asked to end by the snippet."""
    if not asked:
        server.send(signal.SIGTERM)
    assert server.join()[0] == 0, server.output


@pytest.mark.parametrize("name", ["serve", "server"])
def test_every_option_of_the_server_is_documented(name):
    """Beside those that all commands have."""
    [command] = [command for command in commands.ALL if command.name == name]
    parser = argparse.ArgumentParser(add_help=False)
    command.configure(parser)
    options = re.findall(r"--[a-z-]+", parser.format_help())
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    assert "--tls-cert" in options or "--ca" in options
    assert not [option for option in options if not re.search(rf"{option}(?![a-z-])", text)]


@pytest.mark.parametrize("unit", list(blocks("ini")))
def test_what_systemd_starts(unit):
    """The arguments are those of the command."""
    command = re.search(r"^ExecStart=\S*/durus-bdb (.*)$", unit, re.MULTILINE)[1]
    assert cli.build_parser().parse_args(command.split()).run


def test_every_event_of_the_log_is_documented():
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    kinds = set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "Event"
                and isinstance(node.args[0], ast.Constant)
            ):
                kinds.add(node.args[0].value)
    assert len(kinds) > 15
    assert not [kind for kind in kinds - {"scrape", "scrape-failed"} if f"`{kind}`" not in text]


def test_every_metric_that_is_named_exists():
    """In the documents, and the other way round as far as it is of use."""
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    named = {name.removesuffix("_total") for name in re.findall(r"`(durus_bdb_\w+)`", text)}
    families = {*prometheus.COUNTERS, *prometheus.GAUGES, *prometheus.HISTOGRAMS, "connections", "held_log_bytes"}
    families |= {f"archive_{name}" for name in (*prometheus.ARCHIVE, *prometheus.ARCHIVE_COUNTERS, "failing")}
    assert len(named) > 10
    assert named <= {prometheus.PREFIX + name for name in families}


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
            found = [place / name for place in (ROOT, document.parent)]
            assert any(path.exists() for path in found), f"{document.name} speaks of {name}"


def layers_of_the_design():
    """Return {module: row} as the table of layers has it."""
    text = (ROOT / "docs" / "DESIGN.md").read_text()
    table = text.partition("## Layers")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name: number for number, row in enumerate(rows) for name in re.findall(r"`(\w+)`", row)}


def test_the_layers_of_the_design():
    """Every module is there, and imports only from its own row and those above."""
    layers = layers_of_the_design()
    modules = {name.partition(".")[0] for name in SOURCES} - {"__init__", "__main__"}
    assert layers.keys() == modules
    for name, tree in SOURCES.items():
        row = layers.get(name.partition(".")[0], len(layers))
        for other in ours(tree):
            assert layers.get(other.partition(".")[0], -1) <= row, f"{name} imports {other}"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a transaction of at most {:,} objects, {:,} references and", (deletion.STEP, deletion.FAN)),
        ("pays for {} more", ({4: "four"}.get(cycles.REFUND),)),
        ("sets of more than {:,} objects", (cycles.LARGEST,)),
        ("a record of {:.0f} KiB or more", (suspicion.LARGE / 1024,)),
        ("through objects that more than {} unknown ones refer to", (cycles.WIDE,)),
        ("{:.0f} KiB of records", (deletion.STEP_BYTES / 1024,)),
    ],
)
def test_the_numbers_of_the_design(text, numbers):
    """They are those of the code."""
    document = " ".join((ROOT / "docs" / "DESIGN.md").read_text().split())
    assert text.format(*numbers) in document
    assert 150 <= PATIENCE <= LAST_PATIENCE <= 600
    assert max(budget for _, budget in suspicion.BUDGETS) > 100
