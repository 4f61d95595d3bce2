"""What may import what, in one place; and that importing does nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import berkeleydb_storage

ROOT = Path(berkeleydb_storage.__file__).parent

LAYERS = """
errors version keyed failpoints maintenance progress bitmaps events
keys
files options format room window garbage.policy
records directory environment missing salvage.pages
salvage.ciphers salvage.making salvage.recovering salvage.tables
commits holding rekeying backup.catalog backup.soundness backup.stores.store backup.stores.patience
backup.stores.local backup.stores.remote
backup.stores
backup.retention
backup.policy backup.archive backup.claim
identity vectors
refcounts doomed watch journal checkpoint recovery tally upgrade
gate clock salvage
exclusion listeners
transactions
change durability reader
oids
engine
garbage.cycles garbage.marking
garbage.deletion
garbage.suspicion garbage.packing compaction
garbage.requests
backup.source
backup.repository backup.assembling backup.guarding
backup.making backup.pruning backup.restoring
backup.regular backup.recalling backup.chain
backup.archiving
garbage.collector garbage migration check opening session
backup.verifying
backup
statistics
figures
transport.unix
control.protocol
control.values
control.asking control.serving
control
running policies
storage export reachability
inspection sources control.access
transport.tls transport.systemd auth.rights auth.networks auth.hashing
transport.addresses auth.throttle auth.users
auth.handshake
transport auth
protocol
client.channel client.forks client.iteration client.news client.pending client.prefetched client.refusals
client.link
client.extended client.durus_link
client.dialing
client.line
client.committing client.loading
client.storage
client.pool
client
server.limits server.loops server.interest server.metrics server.history server.oids server.creation
server.chores server.door server.prometheus server.commits server.flusher
server.hold server.turns server.dialect
server.reading server.groups
server.desk
server.connection server.answers
server.receiving server.fetching server.administration
server.durus server.extended
server.service
server.ending server.sockets server.signals
server.serving
server
commands.lines
commands.console
commands.command commands.places
commands.archiving commands.backing commands.restoring commands.looking
commands.moving commands.packing commands.passwords
commands.salvaging commands.serving commands.why
commands.asking
commands
cli
__main__
sharing.local sharing.owner
sharing.place
sharing.opener
sharing.storage
sharing
__init__

testing.base testing.records
testing.clients testing.commits testing.iteration testing.objects testing.oids testing.packing
testing
"""
"""A module imports only from the lines above its own. The application's view, `__init__`, is last; the conformance
suite, after it, knows Durus' contract and none of the modules."""

BINDING = {"environment"}
"""The only importers of Berkeley DB's binding."""
SPEAKING = ("progress", "commands", "cli", "__main__")
"""What may print: the command line, and the bars that it shows."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
LEVELS = {name: level for level, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}


def imported(tree):
    """Yield what a module imports when it runs, wherever in it: "package.module", or "package.module.name"."""
    for_types = {id(inner) for node in ast.walk(tree) if is_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_types(node):
    """Tell whether a statement is ``if TYPE_CHECKING``: names for annotations, which no layer depends on."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def ours(tree):
    """Return the modules of the package that a module imports."""
    found = set()
    for name in imported(tree):
        package, _, rest = name.partition(".")
        if package == "berkeleydb_storage":
            while rest and rest not in SOURCES:
                rest = rest.rpartition(".")[0]
            found.add(rest or "__init__")
    return found


def test_every_module_has_its_place():
    assert LEVELS.keys() == SOURCES.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_from_above(name):
    assert [other for other in ours(SOURCES[name]) if LEVELS[other] >= LEVELS[name]] == []


def test_the_conformance_suite_knows_durus_alone():
    suite = {name for name in SOURCES if name.partition(".")[0] == "testing"}
    assert {other for name in suite for other in ours(SOURCES[name])} <= suite


def test_the_binding_has_one_importer():
    importers = {name for name, tree in SOURCES.items() for other in imported(tree) if other.startswith("berkeleydb.")}
    assert importers == BINDING


@pytest.mark.parametrize("name", ["errors", "options", "format", "failpoints", "garbage.policy", "records"])
def test_pure_modules_do_no_input_or_output(name):
    forbidden = {"os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "threading", "time"}
    assert {other.partition(".")[0] for other in imported(SOURCES[name])} & forbidden == set()


@pytest.mark.parametrize("name", [name for name in SOURCES if name.partition(".")[0] not in SPEAKING])
def test_the_library_does_not_print(name):
    calls = {
        node.func.id
        for node in ast.walk(SOURCES[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    written = {f"{node.value.id}.{node.attr}" for node in ast.walk(SOURCES[name]) if is_attribute_of_a_name(node)}
    assert not calls & {"print", "input"}
    assert not written & {"sys.stdout", "sys.stderr", "sys.stdin"}


def is_attribute_of_a_name(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def test_only_the_command_line_configures_logging():
    configuring = {"basicConfig", "addHandler", "setLevel", "dictConfig", "fileConfig", "captureWarnings"}
    found = {
        name
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in configuring
    }
    assert all(name.partition(".")[0] in SPEAKING for name in found)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "__main__"])
def test_loggers_are_named_after_their_modules(name):
    """So that an application can configure "berkeleydb_storage" alone."""
    calls = [
        ast.unparse(node)
        for node in ast.walk(SOURCES[name])
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")
    ]
    allowed = {"logging.getLogger(__name__)"}
    if name.partition(".")[0] in SPEAKING:
        allowed |= {call for call in calls if "berkeleydb_storage" in call or call == "logging.getLogger()"}
    assert set(calls) <= allowed


IMPORT_ALL = """
import atexit, importlib, logging, signal, sys, threading, durus.storage
import durus.client_storage, durus.file_storage, durus.sqlite_storage, durus.storage_server

def state():
    return {
        "threads": threading.enumerate(),
        "handlers": {name: getattr(logger, "handlers", None) for name, logger in logging.root.manager.loggerDict.items()
                     if not name.startswith("berkeleydb_storage")},
        "root": (logging.root.handlers, logging.root.level),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": (sys.excepthook, sys.stdout, sys.stderr, threading.excepthook),
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
after["handlers"] = {name: after["handlers"][name] for name in before["handlers"]}
assert after == before, (before, after)
for name, logger in logging.root.manager.loggerDict.items():
    if name.startswith("berkeleydb_storage") and isinstance(logger, logging.Logger):
        assert not logger.handlers and logger.level == logging.NOTSET and logger.propagate, name
"""


def test_importing_does_nothing_else(tmp_path):
    """No thread, no handler, no signal, no file, no word: that is up to the application."""
    names = [
        "berkeleydb_storage" + ("" if name == "__init__" else f".{name}") for name in SOURCES if name != "__main__"
    ]
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL, *sorted(names)]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT.parent)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_library_does_not_import_the_command_line():
    """Nor its progress bars: an application that embeds a storage does not pay for them."""
    script = "import sys, berkeleydb_storage; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT.parent)}, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "berkeleydb_storage.storage" in loaded
    unwanted = (
        "berkeleydb_storage.cli",
        "berkeleydb_storage.commands",
        "berkeleydb_storage.testing",
        "tqdm",
        "argparse",
    )
    assert [name for name in loaded if name.startswith(unwanted)] == []
