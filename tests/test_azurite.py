"""Stores and archives on Azurite, the emulator of Azure Blob Storage: a real service behind HTTP, and a real client.

``make test-azurite`` installs what it takes, and runs this.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from durus.connection import Connection

from berkeleydb_storage import (
    Archive,
    BackupError,
    BerkeleyDBStorage,
    GarbageManual,
    ObjectExists,
    StoreUnreachable,
    restore,
    verify_backups,
)
from berkeleydb_storage.backup import archiving
from berkeleydb_storage.backup.stores import open_store

ROOT = Path(__file__).parent.parent
INSTALLED = ROOT / ".cache" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
PROGRAM = os.environ.get("AZURITE") or (str(INSTALLED) if INSTALLED.exists() else shutil.which("azurite-blob"))
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and key that Azurite's documentation gives to everybody."""
COMMITS = 400
PATIENT = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="azurite-blob is not installed: make test-azurite"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Service:
    """A process with Azurite, and a container in it."""

    def __init__(self, location):
        self._location = location
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        self.options = {
            "connection_string": (
                f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={KEY};"
                f"BlobEndpoint=http://127.0.0.1:{self._port}/devstoreaccount1;"
            )
        }

    def start(self):
        arguments = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1"]
        self.process = subprocess.Popen(
            [PROGRAM, *arguments, "--blobPort", str(self._port), "--location", str(self._location)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + PATIENT
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("azurite does not answer")

    def make_container(self, name):
        blob = pytest.importorskip("azure.storage.blob", reason="adlfs is not installed: make test-azurite")
        pytest.importorskip("adlfs", reason="adlfs is not installed: make test-azurite")
        with blob.BlobServiceClient.from_connection_string(self.options["connection_string"]) as client:
            client.create_container(name)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENT)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("azurite"))
    service.start()
    try:
        service.make_container("box")
        yield service
    finally:
        service.stop()


@pytest.fixture
def url(tmp_path):
    return f"abfs://box/{tmp_path.name}"


@pytest.fixture
def store(service, url):
    return open_store(url, options=service.options)


def whole(store, name):
    return b"".join(store.read(name))


def test_objects(store):
    long = [bytes([number]) * (3 << 20) for number in range(7)]
    assert store.list() == {}
    store.write("a/b/c", [b"one", b"two"])
    store.write("a/long", iter(long))
    store.write("empty", [])
    assert store.list() == {"a/b/c": 6, "a/long": 21 << 20, "empty": 0}
    assert store.list("a/b") == {"a/b/c": 6}
    assert store.list("a/x") == {}
    assert [whole(store, name) for name in ("a/b/c", "a/long", "empty")] == [b"onetwo", b"".join(long), b""]
    for name in store.list():
        for chunks in ([b"new"], long):
            with pytest.raises(ObjectExists):
                store.write(name, chunks)
    store.remove("a/b/c", "nothing")
    assert list(store.list()) == ["a/long", "empty"]
    with pytest.raises(BackupError, match="is missing"):
        whole(store, "a/b/c")


@pytest.mark.parametrize("length", [1, 20])
def test_what_fails_leaves_nothing(store, length):
    def failing():
        for _ in range(length):
            yield b"x" * (1 << 20)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        store.write("a", failing())
    assert store.list() == {}


def test_one_of_several_writers_wins(service, url):
    won = []

    def write(number):
        try:
            open_store(url, options=service.options).write("a", [bytes([number]) * 100])
            won.append(number)
        except ObjectExists:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert whole(open_store(url, options=service.options), "a") == bytes([won[0]]) * 100


def test_errors_say_what_to_do(service, url):
    wrong = {"connection_string": service.options["connection_string"].replace(KEY, "c2VzYW1lNzc=")}
    with pytest.raises(StoreUnreachable, match="credentials") as caught:
        open_store(url, options=wrong, timeout=10).write("a", [b"x"])
    assert "c2VzYW1lNzc" not in str(caught.value)
    with pytest.raises(BackupError, match="no-such-box"):
        open_store("abfs://no-such-box/a", options=service.options).write("a", [b"x"])


def commit(storage, number):
    connection = Connection(storage.session())
    connection.get_root()["a"] = connection.get_root()["b"] = (number, os.urandom(2000))
    connection.commit()


def restored(service, url, path):
    made = restore(url, path, options=service.options)
    with BerkeleyDBStorage(path, garbage_collection=GarbageManual()) as storage:
        assert list(storage.check().faults) == []
        root = Connection(storage).get_root()
        assert root["a"] == root["b"]
        return made.tid, root["a"][0]


def test_an_archive(service, url, tmp_path, capsys):
    (tmp_path / "db").mkdir()
    policy = Archive(url, options=service.options, closing=60)
    late = []
    with BerkeleyDBStorage(tmp_path / "db", archive=policy) as storage:
        commit(storage, 0)
        while storage.statistics().archive.tid is None:
            time.sleep(0.01)
        began = time.monotonic()
        for number in range(1, COMMITS):
            commit(storage, number)
            late.append(storage.statistics().archive.behind_seconds)
            time.sleep(0.01)
        seconds = time.monotonic() - began
        figures = storage.statistics().archive
        tid = storage._engine.journal.tid
    late.sort()
    with capsys.disabled():
        print(
            f"\nazurite: {COMMITS} commits in {seconds:.1f} s, {figures.pieces} pieces, {figures.shipped_bytes:,} B, "
            f"behind: median {late[len(late) // 2]:.2f} s, most {late[-1]:.2f} s"
        )
    assert restored(service, url, tmp_path / "back") == (tid, COMMITS - 1)
    assert verify_backups(url, options=service.options).sound


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_service_that_is_away_for_a_while(tmp_path, monkeypatch, how):
    """Commits go on; all of them are there in the end."""
    monkeypatch.setattr(archiving, "LONGEST_WAIT", 0.2)
    service = Service(tmp_path / "azurite")
    service.start()
    try:
        service.make_container("box")
        (tmp_path / "db").mkdir()
        policy = Archive("abfs://box/a", interval=0.2, options=service.options, timeout=5, closing=60)
        with BerkeleyDBStorage(tmp_path / "db", archive=policy) as storage:
            commit(storage, 0)
            while storage.statistics().archive.tid is None:
                time.sleep(0.01)
            if how == "stopped":
                service.stop()
            else:
                service.process.send_signal(signal.SIGSTOP)
            number = 0
            while not storage.statistics().archive.failing:
                number += 1
                commit(storage, number)
                time.sleep(0.01)
            assert storage.statistics().archive.behind_bytes > 0
            if how == "stopped":
                service.start()
            else:
                service.process.send_signal(signal.SIGCONT)
            while storage.statistics().archive.failing:
                number += 1
                commit(storage, number)
                time.sleep(0.01)
            assert storage.statistics().archive.gaps == 0
            tid = storage._engine.journal.tid
        assert restored(service, "abfs://box/a", tmp_path / "back") == (tid, number)
    finally:
        service.process.send_signal(signal.SIGCONT)
        service.stop()
