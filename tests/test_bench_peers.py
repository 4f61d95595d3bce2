"""Every peer of the benchmarks does what it is compared for, and promises no more than it keeps."""

import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from benchmarks.method import usage
from benchmarks.method.syncs import CannotCount, counted
from benchmarks.method.workers import Worker
from benchmarks.objects.records import batches, record, records
from benchmarks.peers.filling import together
from benchmarks.peers.registry import (
    NEVER_SYNCS,
    OURS_BUFFERED,
    PEERS,
    UNLOGGED,
    is_here,
    open_database,
    open_store,
    present,
)
from berkeleydb_storage.format import pack_uint64

MEMORY = Path("/dev/shm")
COUNT = 1200
"""Records: those of two folders, the second of which is not full."""
OBJECTS, LARGE = 120, 4000
"""Objects that are stored and collected, and the bytes of each."""
COMMITS = 3
"""Commits whose syncs are counted."""
STORES = {peer.name: peer for peer in PEERS.values() if peer.store}
DATABASES = {peer.name: peer for peer in PEERS.values() if peer.database}
LOST_WHEN_KILLED = (OURS_BUFFERED.durability, UNLOGGED)


@pytest.fixture
def place():
    """A directory in memory, where syncs are asked for as they are elsewhere, and take no time."""
    with TemporaryDirectory(prefix="peers-", dir=MEMORY if MEMORY.exists() else None) as directory:
        yield Path(directory)


@pytest.fixture(params=STORES)
def store_peer(request):
    return installed(request.param)


@pytest.fixture(params=DATABASES)
def database_peer(request):
    return installed(request.param)


def installed(name):
    if not is_here(PEERS[name]):
        pytest.skip(f"{PEERS[name].package} is not installed")
    return name


def changed(version):
    """Another version of the root and of an item, and a record that is new, as one commit."""
    return [(pack_uint64(number), record(number, version)) for number in (0, 7, COUNT)]


def must_have(store, expected):
    assert {oid: store.load(oid) for oid in expected} == expected


def test_records_are_found_again(store_peer, place):
    path, expected = place / "a store", dict(records(COUNT))
    with closing(open_store(store_peer, path)) as store:
        store.fill(batches(COUNT))
        must_have(store, expected)
    with closing(open_store(store_peer, path)) as store:
        must_have(store, expected)
        with pytest.raises(KeyError):
            store.load(pack_uint64(COUNT))
        for version in range(1, 4):
            store.commit(changed(version))
            must_have(store, expected | dict(changed(version)))
        assert set(place.iterdir()) == set(usage.parts(path)), "something is not found by its name"
    with closing(open_store(store_peer, path)) as store:
        must_have(store, expected | dict(changed(3)))
        store.commit(changed(4))
    with closing(open_store(store_peer, path)) as store:
        must_have(store, expected | dict(changed(4)))
    assert usage.disk(path)["data"] > 0


def test_an_empty_store_is_opened_again(store_peer, place):
    for _ in range(2):
        open_store(store_peer, place / "a store").close()
    with closing(open_store(store_peer, place / "a store")) as store:
        store.fill(batches(COUNT))
        must_have(store, dict(records(COUNT)))


def test_objects_are_found_again(database_peer, place):
    path = place / "a database"
    with closing(open_database(database_peer, path)) as database:
        classes = classes_of(database)
        database.root["folder"] = classes.Folder([classes.Item(number) for number in range(OBJECTS)])
        database.commit()
        database.root["folder"].items[5].name = "changed"
        database.root["tree"] = tree = classes.BTree()
        tree["one"] = classes.Node(1)
        database.commit()
        database.root["folder"].items[6].name = "changed, not committed"
    for _ in range(2):  # the second time with an object that was made after the database was opened again
        with closing(open_database(database_peer, path)) as database:
            folder = database.root["folder"]
            assert [item.number for item in folder.items[:OBJECTS]] == list(range(OBJECTS))
            assert [item.name for item in folder.items[4:7]] == ["item 4", "changed", "item 6"]
            assert database.root["tree"]["one"].number == 1
            folder.items = [*folder.items, classes_of(database).Item(len(folder.items))]
            database.commit()
    with closing(open_database(database_peer, path)) as database:
        assert [item.number for item in database.root["folder"].items] == list(range(OBJECTS + 2))


def classes_of(database):
    return import_module(f"benchmarks.objects.{database.toolkit}_classes")


def test_what_is_forgotten_is_loaded_anew(database_peer, place):
    with closing(open_database(database_peer, place / "a database")) as database:
        classes = classes_of(database)
        database.root["item"] = classes.Item(3)
        database.commit()
        assert not is_ghost(database.root["item"])
        for _ in range(2):
            database.forget()
            assert is_ghost(database.root["item"])
            assert database.root["item"].number == 3
            assert not is_ghost(database.root["item"])
        database.root["item"].number = 4
        database.commit()
        database.forget()
        assert database.root["item"].number == 4


def is_ghost(item):
    return item._p_is_ghost() if hasattr(item, "_p_is_ghost") else item._p_changed is None


# Durus' FileStorage2 leaves it to Python to close the file that it had before a pack.
@pytest.mark.filterwarnings(r"ignore:[^\n]*\.prepack:pytest.PytestUnraisableExceptionWarning")
def test_garbage_is_collected(database_peer, place):
    path = place / "a database"
    with closing(open_database(database_peer, path)) as database:
        classes = classes_of(database)
        items = [classes.Item(number) for number in range(OBJECTS)]
        for number, item in enumerate(items):
            item.name = Random(number).randbytes(LARGE)  # which nobody can compress
        database.root["kept"], database.root["dropped"] = classes.Folder(items[::4]), classes.Folder(items)
        database.commit()
        kept = {item._p_oid for item in items[::4]}
        dropped = {item._p_oid for item in items} - kept
    before = usage.disk(path)["data apparent"]
    with closing(open_database(database_peer, path)) as database:
        del database.root["dropped"]
        database.commit()
        database.collect()
        assert usage.disk(path)["data apparent"] < 0.5 * before
        assert [item.number for item in database.root["kept"].items] == list(range(0, OBJECTS, 4))
        database.root["kept"].items[0].number = 1000
        database.commit()
    assert {part.name for part in usage.parts(path)} == {part.name for part in place.iterdir()}
    with closing(open_database(database_peer, path)) as database:
        assert database.root["kept"].items[0].number == 1000
    with closing(open_store(database_peer, path)) as store:
        assert all(store.load(oid) for oid in kept)
        for oid in dropped:
            with pytest.raises(KeyError):
                store.load(oid)


class Committing:
    """Commits to any peer, in a process of its own."""

    def open(self, level, name, path):
        """Open a new one, and commit a first time."""
        self.version = 0
        if level == "store":
            self.peer = open_store(name, Path(path))
            self.peer.fill(batches(10))
        else:
            self.peer = open_database(name, Path(path))
            self.peer.root["item"] = classes_of(self.peer).Item(0)
        self.commit(level, 1)

    def commit(self, level, times):
        """Commit a record, or an object."""
        for _ in range(times):
            self.version += 1
            if level == "store":
                self.peer.commit([(pack_uint64(7), record(7, self.version))])
            else:
                self.peer.root["item"].number = self.version
                self.peer.commit()

    def end(self):
        """Close what is open."""
        self.peer.close()

    def close(self):
        """Do nothing."""


@pytest.fixture(scope="module")
def committing():
    with Worker(Committing, environment={"PYTHONPATH": str(Path(__file__).parent)}) as worker:
        yield worker


@pytest.mark.parametrize(
    ("level", "name"), [("store", name) for name in STORES] + [("database", name) for name in DATABASES]
)
def test_commits_sync_as_promised(level, name, place, committing):
    committing.call("open", level, installed(name), place / "it")
    try:
        found = counted(committing.pid, lambda: committing.call("commit", level, COMMITS))
    except CannotCount as reason:
        pytest.skip(str(reason))
    finally:
        committing.call("end")
    if PEERS[name].synced or PEERS[name].durability == UNLOGGED:
        assert found >= COMMITS
    elif NEVER_SYNCS in PEERS[name].durability:
        assert found == 0


KILLED = """
import sys, time
from pathlib import Path
from benchmarks.method.facts import quiet_durus
from benchmarks.objects.records import batches
from benchmarks.peers.registry import open_store
from test_bench_peers import COUNT, changed
quiet_durus()
stores = []
for name in sys.argv[2:]:
    path = Path(sys.argv[1], name)
    path.mkdir()
    store = open_store(name, path / "a store")
    store.fill(batches(COUNT))
    for version in (1, 2, 3):
        store.commit(changed(version))
    stores.append(store)
print("all committed", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by SIGKILL")
def test_a_kill_loses_nothing_that_was_committed(place):
    names = [peer.name for peer in present(list(STORES.values())) if peer.durability not in LOST_WHEN_KILLED]
    tests = Path(__file__).parent
    program = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n{KILLED}"
    with subprocess.Popen([sys.executable, "-c", program, place, *names], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b"all committed\n"
        finally:
            child.kill()
    expected = dict(records(COUNT)) | dict(changed(3))
    with ExitStack() as stack:
        for name in names:
            must_have(stack.enter_context(closing(open_store(name, place / name / "a store"))), expected)


def test_first_records_come_in_larger_transactions():
    larger = list(together(batches(5500), 2000))
    assert [len(batch) for batch in larger] == [2001, 2001, 1500]  # the root, or a folder, is in several
    stored = {}
    for batch in larger:
        stored.update(batch)
    assert stored == dict(records(5500))
    assert list(together([], 10)) == []
