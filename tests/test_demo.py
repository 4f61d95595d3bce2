"""The demo, on a part of the standard library: every check of it holds, twice in a row, and what it leaves is sound."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from durus.connection import Connection
from durus.file_storage import FileStorage

from berkeleydb_storage import BerkeleyDBStorage
from demo import forgetting, library, show
from demo.__main__ import STEPS, prepare
from demo.model import Function, Module, Package, definitions_in, nodes_in, path_of
from demo.questions import QUESTIONS, transitive_importers

ROOT = Path(__file__).parents[1]
MODULES = 45
TRANSACTIONS = 40
TIME_LIMIT = 300


def command(directory, *more):
    sizes = ["--modules", str(MODULES), "--transactions", str(TRANSACTIONS)]
    return [sys.executable, "-W", "error", "-m", "demo", *sizes, "--directory", str(directory), *more]


@pytest.fixture
def read(tmp_path):
    """A Reader that has read `MODULES` modules into a FileStorage."""
    storage = FileStorage(str(tmp_path / "library.durus"))
    reader = library.Reader(Connection(storage))
    reader.read(library.choose(list(library.find_modules(library.standard_library())), MODULES), lambda *_: None)
    yield reader
    storage.close()


def test_the_whole_demo(tmp_path):
    directory, figures = tmp_path / "data", tmp_path / "figures.json"
    directory.mkdir()
    (directory / ".demo").touch()
    (directory / "left over").write_text("of a run that was interrupted")
    done = subprocess.run(
        command(directory, "--json", str(figures)), cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (directory / "left over").exists()
    assert re.findall(r"^-- (\d) of (\d)", done.stdout, re.MULTILINE) == [
        (str(number), str(STEPS)) for number in range(1, STEPS + 1)
    ]
    assert "FAILED" not in done.stdout
    found = json.loads(figures.read_text())
    assert found["objects migrated"] >= found["objects read"] > 5000
    assert found["objects collected"] > 3000
    assert found["acknowledged commits"] >= 600
    assert found["acknowledged commits lost"] == 0
    with BerkeleyDBStorage(directory / "storage") as storage:
        assert storage.check().faults == []
        kept = Connection(storage).get_root()["library"]
        assert kept.reviews.total == 2 * TRANSACTIONS
        assert not any(library.is_doomed(name) for name in kept.modules)


def test_it_leaves_foreign_files_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    done = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode != 0
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_interrupted_it_says_so_and_the_directory_can_be_made_anew(tmp_path):
    directory = tmp_path / "data"
    with subprocess.Popen(
        command(directory),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background inherit SIG_IGN
    ) as process:
        for line in process.stdout:
            if line.startswith("-- 1 of"):
                process.send_signal(signal.SIGINT)
                break
        stderr = process.stderr.read()
        process.stdout.read()
    assert process.returncode != 0
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert os.listdir(prepare(directory)) == [".demo"]


def test_a_failed_check_is_a_failure(capsys):
    story = show.Story(1)
    story.check("one is one", True)
    story.check("one is two", False)
    assert story.failures == ["one is two"]
    assert "[FAILED] one is two" in capsys.readouterr().out


def test_the_tree_has_the_definitions_of_the_source(read):
    import email.message as real

    module = read.library.modules["email.message"]
    assert isinstance(module, Module)
    assert module.source.text == Path(real.__file__).read_text(encoding="utf-8")
    functions = {path_of(each): each for each in definitions_in(module) if isinstance(each, Function)}
    attach = functions["email.message.Message.attach"]
    assert attach.first == real.Message.attach.__code__.co_firstlineno
    assert attach.arguments == ("self", "payload")
    assert all(path_of(each).startswith("email.message.") for each in functions.values())


def test_imports_lead_to_modules(read):
    names = {target.name for target in read.library.modules["email.message"].imports}
    assert {"email", "email.utils", "email.errors"} <= names
    assert "email.message" not in names


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        ("import a.b, c", "p", {"a.b", "c"}),
        ("from . import x", "p.q", {"p.q", "p.q.x"}),
        ("from .. import x", "p.q", {"p", "p.x"}),
        ("from .y import x", "p", {"p.y", "p.y.x"}),
        ("def f():\n from a import b", "p", {"a", "a.b"}),
    ],
)
def test_imported_names(source, package, names):
    assert library.imported_names(library.parse(source), package) == names


def test_importers_are_followed_over_others(read):
    modules = read.library.modules
    for module in read.library.all_modules():
        module.imports = ()
    modules["email.message"].imports = (modules["email"],)
    modules["email.utils"].imports = (modules["email.message"],)
    assert transitive_importers(read.library) == f"2 of {len(modules)} modules"


def test_every_question_has_an_answer(read):
    answers = {question: ask(read.library) for question, ask in QUESTIONS.items()}
    assert all(answers.values())
    assert "none" not in " ".join(answers.values())


def test_unlinking_leaves_no_way_to_the_package_and_no_cycle_in_it(read):
    root = read.library
    package = root.contents[library.DOOMED]
    assert isinstance(package, Package)
    modules = forgetting.modules_in(package)
    before = [node for module in modules for node in nodes_in(module)]
    unlinked = forgetting.unlink(root)
    assert unlinked.objects > len(before)
    assert unlinked.importers > 0
    assert not any(library.is_doomed(target.name) for module in root.all_modules() for target in module.imports)
    assert not any(node.statements or getattr(node, "definitions", ()) for node in before)
    assert not any(module.imports for module in modules)
