"""Durus' own tests, unchanged, with storages of ours in the place of Durus'; they come from its source archive."""

import functools
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import durus.__main__
import durus.storage_server
import pytest
from concurrency import PATIENCE
from conftest import check_directory
from durus.connection import Connection
from served import PYTHONPATH, Served, free_port

from berkeleydb_storage import BerkeleyDBStorage

CACHE = Path(__file__).parents[1] / ".cache"
SHIM = Path(__file__).parent / "durus_suite"
NAME = f"durus-{version('durus')}"
STRESS_LOOPS = 30
STORAGE_CLASS = "berkeleydb_storage.BerkeleyDBStorage"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

WITHOUT_STORAGE = ("file", "persistent_set", "serialize", "shelf", "utils")
"""Modules that make no storage: there is nothing of ours to test in them."""

REUSE = "it wants the oids of deleted objects again; ours are handed out once, ever"
ONE_FILE = "it is about the file of a FileStorage; a storage of ours is a directory"
EXPECTED = {
    "client_storage-ClientTest-check_oid_reuse": REUSE,
    "client_storage-UnixDomainSocketTest-check_oid_reuse": REUSE,
    "file_storage-FileStorageTest-check_file_storage": "it removes the .prepack file that FileStorage leaves",
    "file_storage-FileStorageTest-check_reopen": "it reads a storage that another opener writes; ours has one owner",
    "file_storage-FileStorageTest-check_open_empty": ONE_FILE,
    "file_storage-FileStorageTest-check_short_magic": ONE_FILE,
    "file_storage-FileStorageTest-check_wrong_magic": ONE_FILE,
    "file_storage-FileStorageTest-check_bad_record_size": ONE_FILE,
    "file_storage-FileStorageTest-check_repair": ONE_FILE,
    "file_storage-ShelfStorageTest-a": REUSE,
    "file_storage-ShelfStorageTest-b": REUSE,
    "file_storage-ShelfStorageTest-c": REUSE,
    "storage-Test-check_memory_storage": "it wants what the root does not lead to left out of gen_oid_record(), which "
    "MemoryStorage does; ours yields it, as FileStorage does",
}
"""Tests that cannot pass with ours, and why."""


def source():
    """Return the directory of Durus' source, fetched once; None where it cannot be."""
    target = CACHE / NAME
    if not target.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--retries", "1"]
            download += ["--timeout", "10", "--dest", scratch, NAME.replace("-", "==")]
            subprocess.run(download, capture_output=True, check=False)
            archives = list(Path(scratch).glob("*.tar.gz"))
            if not archives:
                return None
            with tarfile.open(archives[0]) as archive:
                archive.extractall(scratch, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            if not target.is_dir():
                next(Path(scratch).glob("*/")).rename(target)
    return target


SOURCE = source()
NO_SOURCE = f"the source archive of {NAME} is neither in {CACHE} nor to be had from the package index"


def import_suite(name):
    """Import one of Durus' test modules, unchanged."""
    spec = importlib.util.spec_from_file_location(f"durus_suite_{name}", SOURCE / "test" / f"utest_{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SHIM))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SHIM))
    return module


@functools.cache  # a module that is imported anew has other classes, which the old ones cannot pickle
def suite():
    """Return every test of the suite as a parameter: (module, class, name of the test)."""
    if SOURCE is None:
        return [pytest.param(None, None, None, marks=pytest.mark.skip(reason=NO_SOURCE))]
    found = []
    for path in sorted((SOURCE / "test").glob("utest_*.py")):
        name = path.stem.removeprefix("utest_")
        if name in WITHOUT_STORAGE:
            reason = "it makes no storage"
            found.append(pytest.param(None, None, None, id=name, marks=pytest.mark.skip(reason=reason)))
        else:
            found += parameters_of(name, import_suite(name))
    return found


def parameters_of(module_name, module):
    names_of, test_class = sys.modules["sancho.utest"].names_of, sys.modules["sancho.utest"].UTest
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, test_class) and cls is not test_class:
            for name in names_of(cls):
                id = f"{module_name}-{cls.__name__}-{name}"
                marks = [pytest.mark.xfail(strict=True, reason=EXPECTED[id])] if id in EXPECTED else []
                yield pytest.param(module, cls, name, id=id, marks=marks)


class Substitutes:
    """What takes the place of Durus' storages and servers in a test module, and what it opened."""

    def __init__(self, directory):
        self._directory = directory
        self._names = 0
        self._storages = []
        self._paths = []
        self._servers = []

    def new_path(self):
        """Return a path at which there is nothing; what ``mktemp`` does."""
        self._names += 1
        return str(self._directory / str(self._names))

    def file_storage(self, path=None, readonly=False, repair=False):
        """Open a storage of ours, in a directory that is made for it."""
        path = Path(path or self.new_path())
        if not path.exists():
            path.mkdir()
            self._paths.append(path)
        storage = BerkeleyDBStorage(path, readonly=readonly, repair=repair)
        self._storages.append(storage)
        return storage

    def memory_storage(self):
        """Open a storage of ours."""
        return self.file_storage()

    def server(self, command, **options):
        """Start what `command` starts, but with a storage of ours: `--file=X` becomes the directory X.storage."""
        changed = [f"--storage-class={STORAGE_CLASS}"]
        for argument in command[2:]:
            if argument.startswith("--file="):
                path = Path(argument.removeprefix("--file=") + ".storage")
                path.mkdir()
                self._paths.append(path)
                argument = f"--file={path}"
            changed.insert(-1, argument)
        process = subprocess.Popen([*command[:2], *changed], env=os.environ | {"PYTHONPATH": PYTHONPATH}, **options)
        self._servers.append(process)

    def install(self, monkeypatch, module):
        """Put them in their places."""
        places = {
            "MemoryStorage": self.memory_storage,
            "TempFileStorage": self.file_storage,
            "FileStorage": self.file_storage,
            "Popen": self.server,
            "mktemp": self.new_path,
            "wait_for_server": wait_for_server,
            "direct_output": lambda file: None,
        }
        for name, value in places.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(durus.__main__, "sleep", lambda seconds: time.sleep(seconds / 20))

    def finish(self):
        """Close everything, and check what was left."""
        for process in self._servers:
            assert process.wait(PATIENCE) == 0
        for storage in self._storages:
            storage.close()
        for path in self._paths:
            check_directory(path)
            shutil.rmtree(path)


def wait_for_server(address, **_):
    """Wait as Durus does, with shorter naps."""
    durus.storage_server.wait_for_server(address=address, sleeptime=0.02, maxtries=50 * PATIENCE)


def with_address(cls, directory):
    """Return a subclass with an address that nobody uses, for a class that has one."""
    if not hasattr(cls, "address"):
        return cls
    port = free_port()
    address = ("localhost", port) if isinstance(cls.address, tuple) else str(directory / "socket")
    return type(cls.__name__, (cls,), {"address": address, "port": property(lambda _: port, lambda *_: None)})


@pytest.fixture
def substitutes(tmp_path):
    substitutes = Substitutes(tmp_path)
    yield substitutes
    gc.collect()
    substitutes.finish()


@pytest.mark.parametrize(("module", "cls", "name"), suite())
def test_suite(module, cls, name, substitutes, monkeypatch, tmp_path):
    substitutes.install(monkeypatch, module)
    instance = object.__new__(with_address(cls, tmp_path))
    sys.modules["sancho.utest"].run(instance, name)


@pytest.mark.skipif(SOURCE is None, reason=NO_SOURCE)
def test_expected_failures_are_tests():
    ids = {parameter.id for parameter in suite()}
    assert not set(EXPECTED) - ids
    assert not set(WITHOUT_STORAGE) - ids


@pytest.mark.skipif(SOURCE is None, reason=NO_SOURCE)
@pytest.mark.parametrize("storage_class", [STORAGE_CLASS, "server_storages.Eager"])
def test_stress(directory, storage_class):
    """Two clients at once; the checker finds nothing afterwards."""
    with Served(directory, storage_class=storage_class, port=free_port()) as served:
        Connection(served.client())  # Durus' clients do not expect to be two that make the root.
        command = [sys.executable, str(SHIM / "run_stress.py"), str(SOURCE / "test")]
        options = [f"--port={served.address[1]}", f"--max-loops={STRESS_LOOPS}"]
        clients = [
            subprocess.Popen(
                [*command, str(seed), *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for seed in range(2)
        ]
        outputs = [client.communicate(timeout=PATIENCE)[0] for client in clients]
        assert [client.returncode for client in clients] == [0, 0], outputs
        assert all(output.count("mutating") >= STRESS_LOOPS // 2 for output in outputs)
    check_directory(directory)
