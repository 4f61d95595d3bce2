"""What a review of the server and its clients found: each of these failed before."""

import os
import socket
import threading
from pathlib import Path

import pytest
from concurrency import run_threads
from conftest import check_directory
from durus.connection import Connection
from durus.error import ConflictError
from durus.persistent_dict import PersistentDict
from wire import ExtendedWire

from berkeleydb_storage import BerkeleyDBStorage, SharedStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.errors import ServerUnreachable
from berkeleydb_storage.protocol import COMMIT, HEADER
from berkeleydb_storage.server import Limits, Server
from berkeleydb_storage.testing.records import ROOT, populate, record_of


@pytest.fixture
def storage(directory):
    with BerkeleyDBStorage(directory, durable=False) as storage:
        yield storage
    check_directory(directory)


def test_a_commit_that_the_server_never_takes_is_given_up(storage):
    with (
        Server(storage, "127.0.0.1:0", limits=Limits(memory=1 << 16)) as server,
        ClientStorage(server.address, timeout=0.5) as client,
    ):
        connection = Connection(client)
        connection.get_root()["large"] = os.urandom(1 << 18)
        with pytest.raises(ServerUnreachable):
            connection.commit()
        assert server.information()["server"]["violations"] < 20
        connection.abort()
        connection.get_root()["small"] = 1
        connection.commit()


class Forgetful:
    """Makes connections through a forwarder that forgets the client's end, and keeps the server's: as a firewall."""

    def __init__(self, server):
        host, _, port = server.address.rpartition(":")
        self._target = host, int(port)
        self.ends = []
        self.mine = None

    def __call__(self, timeout):
        """Connect."""
        self.mine, inner = socket.socketpair()
        outer = socket.create_connection(self._target)
        self.ends += [inner, outer]
        for source, target in ((inner, outer), (outer, inner)):
            threading.Thread(target=_forward, args=(source, target), daemon=True).start()
        self.mine.settimeout(timeout)
        return self.mine

    def close(self):
        """Let go of everything."""
        for end in self.ends:
            end.close()


def _forward(source, target):
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass


def test_new_objects_while_the_server_believes_in_the_former_connection(storage):
    with Server(storage, "127.0.0.1:0") as server:
        dialer = Forgetful(server)
        with ClientStorage(dialer=dialer, timeout=5) as client:
            connection = Connection(client)
            for name in range(3):
                connection.get_root()[name] = PersistentDict()
                connection.commit()
            dialer.mine.shutdown(socket.SHUT_RDWR)
            connection.get_root()["new"] = PersistentDict()
            with pytest.raises(ConflictError, match="handed to another client"):
                connection.commit()
            connection.abort()
            connection.get_root()["new"] = PersistentDict()
            connection.commit()
            assert len(server.service.connections) == 2
        dialer.close()


def test_rows_are_shown_when_they_are_on_the_disk(directory, monkeypatch):
    """Also those that others changed since the client was told of anything."""
    reached, go_on, rows = threading.Event(), threading.Event(), []
    with (
        BerkeleyDBStorage(directory) as storage,
        Server(storage, "127.0.0.1:0") as server,
        ClientStorage(server.address) as writer,
        ClientStorage(server.address) as reader,
    ):
        connection = Connection(writer)
        Connection(reader)
        monkeypatch.setattr(server.service.desk.groups, "_usual", 1.0)  # flushes are slow: a thread does them
        flush = storage.engine.environment.flush

        def slowly():
            reached.set()
            go_on.wait()
            flush()

        monkeypatch.setattr(storage.engine.environment, "flush", slowly)
        connection.get_root()["new"] = 1
        committing = threading.Thread(target=connection.commit)
        listing = threading.Thread(target=lambda: rows.extend(reader.gen_oid_record()))
        try:
            committing.start()
            reached.wait()
            listing.start()
            listing.join(0.2)
            assert not rows
        finally:
            go_on.set()
            committing.join()
            listing.join()
        assert rows == [(ROOT, storage.session().load(ROOT))]
    check_directory(directory)


def test_the_owner_is_told_what_came_in_during_its_flush(directory, monkeypatch):
    """Also where it was not told before the server ended: it does not come back as one that has seen it."""
    with SharedStorage(directory) as storage, ClientStorage(f"unix:{Path(directory).resolve()}/socket") as client:
        mine, theirs = Connection(storage), Connection(client)
        mine.get_root().update(own=PersistentDict(), common=PersistentDict(count=0))
        mine.commit()
        theirs.abort()
        theirs.get_root()["common"]["count"] = 100
        others = [theirs.commit]
        committing = threading.current_thread()
        environment = storage._shared.owner().storage.engine.environment
        flush = environment.flush

        def flush_with_others():
            if threading.current_thread() is committing and others:
                run_threads(others.pop())
            flush()

        monkeypatch.setattr(environment, "flush", flush_with_others)
        assert mine.get_root()["common"]["count"] == 0
        mine.get_root()["own"]["changed"] = True
        mine.commit()
        storage._shared.give_up()
        mine.abort()
        assert mine.get_root()["common"]["count"] == 100
    check_directory(directory)


def test_the_owner_is_not_shown_what_was_forgotten_before_it_was_on_the_disk(directory, monkeypatch):
    with SharedStorage(directory) as storage:
        owner = storage._shared.owner()
        engine, history = owner.storage.engine, owner.server.service.desk.history
        first, second = list(populate(storage, 2))[:2]
        monkeypatch.setattr(history, "_kept", 1)
        for oid in (first, second):  # applied, and not brought to the disk
            with engine.lock:
                for _ in engine.applying({oid: (record_of(oid, b"new"), ())}, 100):
                    pass
        assert history.latest(first) is None
        assert engine.flushed < engine.journal.tid
        storage.sync()
        assert storage.load(first) == record_of(first, b"new")
        assert engine.flushed == engine.journal.tid
    check_directory(directory)


def test_who_takes_up_the_memory_has_to_go_and_not_who_comes_last(storage):
    limits = Limits(memory=1 << 20, frame=1 << 20)
    with Server(storage, "127.0.0.1:0", limits=limits) as server, ClientStorage(server.address, timeout=5) as client:
        connection = Connection(client)
        hogs = [ExtendedWire(server.address) for _ in range(4)]
        for hog in hogs:
            hog.come_in()
            hog.send(HEADER.pack(300_000, COMMIT) + bytes(240_000))  # and the rest never
        while server.service.held < 4 * 240_000:
            client.ping()
        connection.get_root()["large"] = os.urandom(1 << 17)
        connection.commit()
        assert server.information()["server"]["violations"] == 1
        assert len(server.service.connections) == 4
        for hog in hogs:
            hog.close()
