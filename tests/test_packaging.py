"""The wheel holds the package, all of it, and nothing else; the set-up does nothing the second time."""

import configparser
import email
import importlib
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import berkeleydb_storage

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "berkeleydb_storage"
TIME_LIMIT = 300

pytestmark = pytest.mark.skipif(not PACKAGE.exists(), reason="these tests need the source of the package beside them")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of what a clone has, without what was built in it."""
    target = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(
        ROOT, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo-data")
    )
    return target


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory):
    """The wheel, built from the copy."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(target.glob("*.whl"))) as archive:
        yield archive


def described(wheel, name):
    directory = next(each for each in wheel.namelist() if ".dist-info/" in each).split("/")[0]
    return wheel.read(f"{directory}/{name}").decode()


def test_it_holds_the_package_alone(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"berkeleydb_storage"}


def test_it_holds_all_of_the_package(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.suffix in (".py", ".typed")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
    assert "berkeleydb_storage/py.typed" in expected


def test_its_name_and_version(wheel):
    metadata = email.message_from_string(described(wheel, "METADATA"))
    assert metadata["Name"] == "durus-berkeleydbstorage"
    assert metadata["Version"] == berkeleydb_storage.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert wheel.filename.endswith("-py3-none-any.whl")


def test_its_command_exists(wheel):
    points = configparser.ConfigParser()
    points.read_string(described(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"durus-bdb": "berkeleydb_storage.cli:main"}
    module, _, function = points["console_scripts"]["durus-bdb"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_python_3_10_gets_a_binding_that_it_can_build(wheel):
    metadata = email.message_from_string(described(wheel, "METADATA"))
    bindings = [each for each in metadata.get_all("Requires-Dist") if each.startswith("berkeleydb")]
    assert len(bindings) == 2
    assert all("python_version" in each for each in bindings), "pip takes the newest of a requirement without a marker"


@pytest.mark.slow
def test_the_set_up_is_done_once_and_again_when_the_project_changes(copy):
    def set_up():
        command = [copy / "scripts" / "setup.sh", "run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": sys.executable, "HOME": str(Path.home())}
    assert "installing the project" in set_up()
    started = time.monotonic()
    assert set_up() == ""
    assert time.monotonic() - started < 5
    with (copy / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    text = set_up()
    assert "installing the project" in text
    assert "making the virtual environment" not in text
    imported = "import berkeleydb_storage, sys; print(berkeleydb_storage.__file__, sys.prefix)"
    command = [copy / ".venv" / "bin" / "python", "-I", "-c", imported]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.count(str(copy)) == 2


@pytest.mark.slow
def test_the_set_up_refuses_a_python_that_is_too_old(copy):
    old = copy / "python-2"
    old.write_text("#!/bin/sh\necho '2.7.18 /usr'; exit 1\n")
    old.chmod(0o755)
    command = [copy / "scripts" / "setup.sh", "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIME_LIMIT, env={"PATH": "/usr/bin:/bin", "PYTHON": str(old)}
    )
    assert done.returncode == 1
    assert "3.10 or later" in done.stderr
    assert "2.7.18" in done.stderr
