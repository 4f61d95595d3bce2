"""Garbage behind Durus' own server, which advances a pack only when no client asks for anything: these always do."""

import threading
import time

import pytest
from concurrency import PATIENCE
from conftest import check_directory
from durus.connection import Connection
from durus.error import ConflictError, DurusKeyError, ReadConflictError
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.utils import read, read_int4
from served import Served

from berkeleydb_storage import BerkeleyDBStorage, GarbageManual
from berkeleydb_storage.testing.records import ROOT, commit, exists, record_of

CLIENTS = 4
PIPELINE = 40
"""Loads that each client has under way at a time."""
LARGE = 600
"""Objects of a ring that the search for cycles gives up: only a full pack collects it."""
COMMITS = 150
"""Commits after which a pack that only goes on when the server is idle has not."""


def ring(client, size):
    """Return the records of new objects each of which refers to the next one only."""
    oids = [client.new_oid() for _ in range(size)]
    return [record_of(oid, b"", [following]) for oid, following in zip(oids, [*oids[1:], oids[0]], strict=True)]


class Slots:
    """The root, an object for each client, and a large ring that nothing refers to any more."""

    def __init__(self, client):
        root = client.new_oid()
        assert root == ROOT
        self.oids = [client.new_oid() for _ in range(CLIENTS)]
        large = ring(client, LARGE)
        self.doomed = [record[:8] for record in large]
        slots = [record_of(oid) for oid in self.oids]
        commit(client, [record_of(ROOT, b"", [*self.oids, self.doomed[0]]), *slots, *large])
        commit(client, [record_of(ROOT, b"", self.oids)])


class Busy:
    """Clients that do not leave the server alone: each loads in a pipeline, and commits.

    A commit puts a ring of two new objects in the place of the one before.
    """

    def __init__(self, served, slots):
        self._news = threading.Condition()
        self._ending = False
        self._failure = None
        self.commits = [0] * CLIENTS
        self.dropped = [[] for _ in range(CLIENTS)]
        """The objects of the rings that each has let go of."""
        clients = [served.client() for _ in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._run, args=(number, client, slots.oids[number]), daemon=True)
            for number, client in enumerate(clients)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait(1)
        return self

    def _run(self, number, client, slot):
        try:
            current = []
            while not self._ending:
                self._load(client.s, slot)
                fresh = ring(client, 2)
                commit(client, [record_of(slot, b"", [fresh[0][:8]]), *fresh])
                with self._news:
                    self.commits[number] += 1
                    self.dropped[number] += current
                    self._news.notify_all()
                current = [record[:8] for record in fresh]
        except BaseException as failure:
            with self._news:
                self._failure = failure
                self._news.notify_all()

    def _load(self, connection, oid):
        connection.sendall((b"L" + oid) * PIPELINE)
        for _ in range(PIPELINE):
            assert read(connection, 1) == b"O"
            assert read(connection, read_int4(connection))[:8] == oid

    def wait(self, commits):
        """Wait until each client has made so many commits from now on."""
        wanted = [done + commits for done in self.commits]

        def there():
            return self._failure or all(done >= least for done, least in zip(self.commits, wanted, strict=True))

        with self._news:
            assert self._news.wait_for(there, PATIENCE), "the clients stand still"
        self.fail()

    def fail(self):
        """Raise what has ended one of the clients, if something has."""
        if self._failure is not None:
            raise self._failure

    def __exit__(self, kind, error, trace):
        self._ending = True
        for thread in self._threads:
            thread.join(PATIENCE)
        if error is None:
            self.fail()


def is_gone(client, oid):
    while True:
        try:
            return not exists(client, oid)
        except ReadConflictError:  # it may go after one more `sync`, too
            client.sync()


def wait_until_gone(client, oids, busy=None):
    """Ask for these objects again and again, until the last of them is gone."""
    deadline = time.monotonic() + PATIENCE
    for oid in oids:
        while not is_gone(client, oid):
            assert time.monotonic() < deadline, "it is still there"
            if busy is not None:
                busy.fail()


def sizes(directory):
    """Return how many objects there are, and how many the root reaches."""
    with BerkeleyDBStorage(directory, garbage_collection=GarbageManual()) as storage:
        before = storage.get_size()
        storage.pack()
        return before, storage.get_size()


@pytest.mark.parametrize("storage_class", ["PackedByThread", "PackedByCommits", "Prompt"])
def test_a_pack_ends_while_clients_keep_the_server_busy(directory, storage_class):
    """Nobody asks its generator to go on, but for the last of these storages, where an idle moment may."""
    with Served(directory, storage_class=f"server_storages.{storage_class}") as served:
        watcher = served.client()
        slots = Slots(watcher)
        with Busy(served, slots) as busy:
            assert not is_gone(watcher, slots.doomed[-1])
            watcher.pack()
            wait_until_gone(watcher, slots.doomed, busy)
            busy.wait(1)
    check_directory(directory)
    assert sizes(directory)[1] == 1 + 3 * CLIENTS


def test_without_others_that_do_the_work_such_a_pack_does_not_end(directory):
    """What the test above can tell: here the server has as many turns, and nothing happens."""
    with Served(directory, storage_class="server_storages.PackedWhenIdle") as served:
        watcher = served.client()
        slots = Slots(watcher)
        with Busy(served, slots) as busy:
            watcher.pack()
            busy.wait(COMMITS)
            assert not any(is_gone(watcher, oid) for oid in slots.doomed)


@pytest.mark.parametrize("storage_class", ["Prompt", "PromptInline"])
def test_cycles_go_while_clients_keep_the_server_busy(directory, storage_class):
    """Those of the beginning, and later ones; nobody asks for a pack."""
    with Served(directory, storage_class=f"server_storages.{storage_class}") as served:
        watcher = served.client()
        slots = Slots(watcher)
        with Busy(served, slots) as busy:
            for _ in range(3):
                busy.wait(2)
                latest = [oid for dropped in busy.dropped for oid in dropped[-2:]]
                wait_until_gone(watcher, latest, busy)
            busy.wait(1)
            assert not is_gone(watcher, slots.doomed[0]), "too large for a search, and nobody packed"
    check_directory(directory)
    assert sizes(directory)[1] == 1 + 3 * CLIENTS


def test_inline_leaves_no_more_than_the_last_commits_made(directory):
    """However many there were."""
    with Served(directory, storage_class="server_storages.PromptInline") as served:
        slots = Slots(served.client())
        with Busy(served, slots) as busy:
            busy.wait(COMMITS)
    before, after = sizes(directory)
    assert before - after - LARGE <= 2 * 2 * CLIENTS


class Node(Persistent):
    def __init__(self, value, parent=None):
        self.value = value
        self.parent = parent
        self.child = None


@pytest.fixture
def shared(directory):
    """A server, and two connections that have loaded a ring of two, of which one lets go; it is collected."""
    with Served(directory, storage_class="server_storages.Prompt") as served:
        first = Connection(served.client())
        root = first.get_root()
        root["kept"] = PersistentDict(n=1)
        root["top"] = Node("top")
        root["top"].child = Node("bottom", root["top"])
        first.commit()
        second = Connection(served.client())
        yield served, first, second
    check_directory(directory)


def drop(served, connection):
    """Let go of the ring, and wait until it is gone."""
    top = connection.get_root()["top"]
    oids = [top._p_oid, top.child._p_oid]
    del connection.get_root()["top"]
    connection.commit()
    wait_until_gone(served.client(), oids)
    return oids


def test_clients_are_told_what_was_collected(shared):
    """All of them, and once."""
    served, first, second = shared
    third = served.client()
    oids = drop(served, first)
    for client in (second.get_storage(), third):
        assert set(oids) <= set(client.sync())
        assert client.sync() == []


def test_what_a_client_has_loaded_is_as_it_was_until_it_is_told(shared):
    """It reads on in what it has; what it does not have is a conflict; after abort() it goes on with what there is."""
    served, first, second = shared
    top = second.get_root()["top"]
    assert top.value == "top"
    drop(served, first)
    assert (top.value, top.child.__class__) == ("top", Node)
    with pytest.raises((ReadConflictError, DurusKeyError)):
        _ = top.child.value
    second.abort()
    assert top._p_is_ghost()
    assert list(second.get_root()) == ["kept"]
    with pytest.raises((ReadConflictError, DurusKeyError)):
        _ = top.value
    second.abort()
    second.get_root()["kept"]["n"] = 2
    second.commit()
    first.abort()
    assert first.get_root()["kept"]["n"] == 2


def commit_with(top, kept, change, connection):
    if change == "link":
        kept["again"] = top
    elif change == "change":
        top.value = "changed"
    else:
        kept["again"] = PersistentDict(inner=top.child)
    kept["n"] = 5
    connection.commit()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("change", ["link", "change", "link in a new object"])
def test_a_client_that_commits_with_what_was_collected(shared, change, told):
    """It gets a conflict, nothing of the commit is stored, and it goes on after abort()."""
    served, first, second = shared
    root, kept = second.get_root(), second.get_root()["kept"]
    top = root["top"]
    assert (top.value, kept["n"], top.child.value) == ("top", 1, "bottom")
    drop(served, first)
    if told:
        second.abort()
    with pytest.raises((ConflictError, DurusKeyError)):
        commit_with(top, kept, change, second)
    second.abort()
    assert dict(kept) == {"n": 1}
    kept["n"] = 2
    kept["new"] = Node("new")
    second.commit()
    first.abort()
    assert {key: value if key == "n" else value.value for key, value in first.get_root()["kept"].items()} == {
        "n": 2,
        "new": "new",
    }
