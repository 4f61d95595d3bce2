"""Clients of what is collected: threads that link it again, and connections that have it in their caches."""

import random
import sys
import time

import pytest
from concurrency import run_threads
from durus.connection import Connection
from durus.error import ConflictError, DurusKeyError, ReadConflictError
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from graphs import assert_books, commit, hand_out, number, record, stored
from graphs import rows as rows_of
from interleaving import reach
from served import Served

from berkeleydb_storage import BerkeleyDBStorage, CommitRefused, GarbageManual, GarbageThread
from berkeleydb_storage.environment import OBJECTS

SECONDS = 2.0
SLOW_SECONDS = 30.0
WRITERS = 3
POOL = 12
"""Objects that each writer has, at most."""


class Node(Persistent):
    """An object that refers to another one."""

    def __init__(self, name):
        self.name = name
        self.next = None


def ring_of(*names):
    nodes = [Node(name) for name in names]
    for index, node in enumerate(nodes):
        node.next = nodes[(index + 1) % len(nodes)]
    return nodes[0]


class Writer:
    """Links and unlinks objects of its own and of others, and remembers what was acknowledged."""

    def __init__(self, session, index, hubs, shared, until):
        self.session, self.hub, self.shared, self.until = session, hubs[index], shared, until
        self.source = random.Random(index)
        self.refs = {self.hub: set()}
        self.commits = self.refused = 0
        self.bytes = {}

    def work(self):
        while time.monotonic() < self.until:
            pending = self.change()
            records = {key: record(key, *sorted(refs), data=b"%d" % self.commits) for key, refs in pending.items()}
            try:
                commit(self.session, *records.values())
            except CommitRefused:
                self.refused += 1
                continue
            self.commits += 1
            self.refs |= pending
            self.bytes |= records
            self.shared += pending.keys() - {self.hub}
            del self.shared[:-100]

    def change(self):
        """Return what to store: the hub links what anybody made, some new ring, or less than before."""
        source = self.source
        linked = set(source.sample(sorted(self.refs[self.hub]), min(len(self.refs[self.hub]), POOL)))
        if source.random() < 0.4 and self.shared:
            return {self.hub: linked | {source.choice(self.shared[-50:])}}
        if source.random() < 0.5:
            return {self.hub: {key for key in linked if source.random() < 0.5}}
        fresh = [number(self.session.new_oid()) for _ in range(source.randint(1, 4))]
        ring = {key: {fresh[(index + 1) % len(fresh)], self.hub} for index, key in enumerate(fresh)}
        if self.shared:
            ring[fresh[0]] = ring[fresh[0]] | {source.choice(self.shared)}
        return {self.hub: linked | {fresh[0]}, **ring}


def pack_again_and_again(storage, until, counted):
    source = random.Random("packs")
    while time.monotonic() < until:
        work = storage.get_packer()
        for _ in work:
            if source.random() < 0.02:
                break
        else:
            counted.append(True)
        work.close()


def stress(directory, seconds):
    """Let threads commit while everything is collected at once; return (commits, refused, packs)."""
    policy = GarbageThread(grace=0.0, interval=0.001)
    with BerkeleyDBStorage(directory, durable=False, garbage_collection=policy) as storage:
        hand_out(storage, 1)
        hubs = [number(storage.new_oid()) for _ in range(WRITERS)]
        commit(storage, record(0, *hubs), *map(record, hubs))
        until, shared, packs = time.monotonic() + seconds, [], []
        writers = [Writer(storage.session(), index, hubs, shared, until) for index in range(WRITERS)]
        run_threads(*(writer.work for writer in writers), lambda: pack_again_and_again(storage, until, packs))
        storage.pack()
        assert not storage.check().faults
        verify(storage, writers, hubs)
    return sum(writer.commits for writer in writers), sum(writer.refused for writer in writers), len(packs)


def verify(storage, writers, hubs):
    """There is what the acknowledged commits lead to, byte for byte, and nothing else."""
    refs, records = {0: set(hubs)}, {}
    for writer in writers:
        refs |= writer.refs
        records |= writer.bytes
    live = reach(refs)
    assert live <= refs.keys()
    found = {number(key): value for key, value in rows_of(storage, OBJECTS).items()}
    assert found.keys() == live
    assert all(found[key] == records[key] for key in live & records.keys())
    assert_books(storage)


def test_threads_commit_while_everything_is_collected(directory):
    commits, refused, packs = stress(directory, SECONDS)
    assert commits > 50
    assert refused > 0
    assert packs > 0


@pytest.mark.slow
def test_threads_for_longer(directory, capsys):
    commits, refused, packs = stress(directory, SLOW_SECONDS)
    with capsys.disabled():
        sys.stdout.write(f"\n{commits} commits, {refused} refused, {packs} packs\n")


def caught_up(connection, objects):
    """After a sync: what was deleted cannot be read any more, not even from the cache."""
    connection.abort()
    for one in objects:
        with pytest.raises((ReadConflictError, DurusKeyError)):
            one.name  # noqa: B018
    connection.abort()


def with_a_ring(first, second):
    """Let two connections see a ring, and the first one unlink it; return what the second one has of it."""
    first.get_root()["ring"] = ring_of("a", "b", "c")
    first.get_root()["kept"] = PersistentDict(kept=1)
    first.commit()
    second.abort()
    top = second.get_root()["ring"]
    nodes = [top, top.next]
    assert [node.name for node in nodes] == ["a", "b"]
    del first.get_root()["ring"]
    first.commit()
    return [*nodes, top.next.next]


def refused(connection, nodes):
    """What was deleted is in the cache: a commit that links it again is refused, and leaves nothing behind."""
    connection.abort()
    root = connection.get_root()
    root["again"] = nodes[0]
    with pytest.raises(ConflictError):
        connection.commit()
    caught_up(connection, nodes)
    assert sorted(connection.get_root().keys()) == ["kept"]


def test_a_connection_with_deleted_objects_in_its_cache(open_storage):
    storage = open_storage(garbage_collection=GarbageManual())
    first, second = Connection(storage), Connection(storage.session())
    nodes = with_a_ring(first, second)
    second.abort()
    assert nodes[0].name == "a", "it is unlinked, and still there"
    storage.pack()
    assert nodes[0].name == "a", "as of the beginning of the transaction"
    assert storage.get_size() == 2
    with pytest.raises(ReadConflictError):
        nodes[2].name  # noqa: B018
    refused(second, nodes)


def test_a_connection_stores_what_is_doomed(open_storage, monkeypatch):
    """Between the steps of the sweep it reads what is not deleted yet, as it last was, and can do nothing with it."""
    monkeypatch.setattr("berkeleydb_storage.garbage.packing.STEP", 1)
    storage = open_storage(garbage_collection=GarbageManual())
    first, second = Connection(storage), Connection(storage.session())
    nodes = with_a_ring(first, second)
    second.abort()
    assert [node.name for node in nodes] == ["a", "b", "c"]
    work = storage.get_packer()
    while storage.statistics().doomed != 2:
        next(work)
    nodes[2].name = "changed"
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    second.get_root()["new"] = PersistentDict(old=nodes[2])
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    list(work)
    caught_up(second, nodes)
    second.get_root()["new"] = PersistentDict()
    second.commit()
    assert storage.get_size() == 3


def test_clients_of_a_server_with_deleted_objects_in_their_caches(directory):
    with Served(directory) as served:
        first, second = Connection(served.client()), Connection(served.client())
        nodes = with_a_ring(first, second)
        second.abort()
        assert nodes[0].name == "a"
        served.pack(first.get_storage())
        assert nodes[0].name == "a"
        refused(second, nodes)
    with BerkeleyDBStorage(directory) as storage:
        assert len(stored(storage)) == 2
        assert_books(storage)
