"""The desk of a server, request by request: what waits for what, who has the turn, and what is on the disk."""

import select
import socket
import struct
import threading
import time
from contextlib import ExitStack

import pytest
from concurrency import PATIENCE
from durus.error import ConflictError, ReadConflictError
from durus.serialize import pack_record
from graphs import commit as store

from berkeleydb_storage import CheckpointNever, GarbageManual, protocol
from berkeleydb_storage.client.channel import Channel
from berkeleydb_storage.client.extended import ExtendedLink
from berkeleydb_storage.client.link import Decision
from berkeleydb_storage.errors import CommitRefused
from berkeleydb_storage.format import ROOT_OID, pack_uint64
from berkeleydb_storage.server import Server, desk, turns
from berkeleydb_storage.server.interest import Interest

OBJECTS = 12
FRAME = 1 << 28
MARK = b"0123456789abcdef"


def oid(number):
    return pack_uint64(number)


def record(number, data=b"", *refs):
    return pack_record(oid(number), data, b"".join(map(oid, refs)))


def records(*numbers, data=b"new"):
    return {oid(number): record(number, data) for number in numbers}


class Gate:
    """Stands before the disk: whoever flushes in a thread whose name begins so waits until it is open."""

    def __init__(self, engine, name=""):
        self._flush, self._name = engine.environment.flush, name
        self._open = threading.Event()
        self._open.set()
        self.waits = threading.Event()
        engine.environment.flush = self

    def __call__(self):
        if threading.current_thread().name.startswith(self._name):
            self.waits.set()
            assert self._open.wait(PATIENCE)
        self._flush()

    def close(self):
        self.waits.clear()
        self._open.clear()

    def open(self):
        self._open.set()


class Link(ExtendedLink):
    """The extended protocol, step by step."""

    def __init__(self, path, identity=b"", tid=0):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        channel = Channel(self.socket, PATIENCE)
        super().__init__(channel, FRAME)
        channel.send_bytes(b"V" + protocol.EXTENDED + bytes([protocol.EXTENDED_VERSION]))
        channel.read(4)
        channel.receive()
        self.welcome = self.resume(identity, tid)

    def begin_commit(self, some, mark=MARK):
        """Send a commit; `_decision` waits for what becomes of it."""
        parts = protocol.pack_records(some.items())
        self._channel.send_bytes(protocol.frame(protocol.COMMIT, mark, *parts))

    def ask_for(self, kind, *parts):
        """Send a request; `answer` waits for its answer."""
        self._channel.send_bytes(protocol.frame(kind, *parts))

    def answer(self):
        return self._channel.receive()

    def decision(self):
        return self._decision()

    def put(self, some, mark=MARK):
        return self.commit(mark, some, sum(map(len, some.values())))


class Old:
    """Durus' protocol, step by step."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        self._file = self.socket.makefile("rb")
        self.send(b"V" + struct.pack(">L", 1))
        assert self._file.read(4) == struct.pack(">L", 1)

    def send(self, data):
        self.socket.sendall(data)

    def load(self, number):
        self.send(b"L" + oid(number))
        status = self._file.read(1)
        return self._bytes() if status == b"O" else status

    def _bytes(self):
        return self._file.read(struct.unpack(">L", self._file.read(4))[0])

    def told(self):
        count = struct.unpack(">L", self._file.read(4))[0]
        return {self._file.read(8) for _ in range(count)}

    def begin(self):
        self.send(b"C")
        return self.told()

    def send_records(self, some):
        body = b"".join(protocol.pack_records(some.items()))
        self.send(struct.pack(">L", len(body)) + body)

    def status(self):
        return self._file.read(1)

    def close(self):
        self._file.close()
        self.socket.close()


class World:
    def __init__(self, stack, storage, path):
        self.storage, self._stack, self._path = storage, stack, path
        self.server = stack.enter_context(Server(storage, f"unix:{path}"))
        self.desk = self.server.service.desk

    def gate(self, name=""):
        """Return a gate before the disk, and have the desk flush in the thread that is there for that."""
        self.desk.groups._usual = 1.0
        gate = Gate(self.storage.engine, name)
        self._stack.callback(gate.open)
        return gate

    def old(self):
        return self._add(Old(self._path))

    def new(self):
        return self._add(Link(self._path))

    def back(self, welcome):
        """Return a client that has been there before, and was welcomed so."""
        return self._add(Link(self._path, welcome.identity, welcome.tid))

    def _add(self, client):
        self._stack.callback(client.close)
        return client

    def until(self, true, *silent):
        """Wait until something is true of the server; these clients must get no answer before."""
        until = time.monotonic() + PATIENCE
        while not true():
            assert not answered(*silent), "it was answered"
            assert time.monotonic() < until
        assert not answered(*silent), "it was answered"


def answered(*clients):
    return clients and select.select([each.socket for each in clients], [], [], 0)[0]


@pytest.fixture
def world(directory, open_storage):
    storage = open_storage(garbage_collection=GarbageManual(), checkpoint=CheckpointNever())
    for _ in range(OBJECTS):
        storage.new_oid()
    store(storage, record(0, b"", *range(1, OBJECTS)), *(record(number) for number in range(1, OBJECTS)))
    with ExitStack() as stack:
        yield World(stack, storage, str(directory.parent / "socket"))


# --- the disk


REQUESTS = {
    "load": (protocol.LOAD, oid(1)),
    "bulk": (protocol.BULK, oid(1)),
    "fetch": (protocol.FETCH, protocol.LIMITS.pack(oid(1), 5, 1 << 20)),
    "rows": (protocol.ROWS, protocol.LIMITS.pack(oid(0), 5, 1 << 20)),
}


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("kept", [None, 1])
def test_what_is_not_on_the_disk_is_not_shown(world, request_name, kept):
    """Not even where so much was changed since that the history has forgotten it."""
    writer, other, reader = world.new(), world.new(), world.new()
    if kept:
        world.desk.history._kept = kept
    gate = world.gate()
    gate.close()
    writer.begin_commit(records(1))
    assert gate.waits.wait(PATIENCE)
    other.begin_commit(records(2))
    world.until(lambda: world.storage.engine.journal.tid >= 3, writer, other)
    told = reader.sync()
    assert set(told.oids) == {oid(1), oid(2)}
    assert told.tid < 2
    reader.ask_for(*REQUESTS[request_name])
    world.until(lambda: world.desk.groups._readers, writer, other, reader)
    gate.open()
    kind, payload = reader.answer()
    assert (kind, record(1, b"new") in payload) == (protocol.OK, True)
    assert writer.decision().stored
    assert other.decision().stored


def test_old_clients_are_not_shown_it_either(world):
    writer, reader = world.new(), world.old()
    gate = world.gate()
    gate.close()
    writer.begin_commit(records(1))
    assert gate.waits.wait(PATIENCE)
    reader.send(b"S")
    assert reader.told() == {oid(1)}
    reader.send(b"L" + oid(1))
    world.until(lambda: world.desk.groups._readers, writer, reader)
    gate.open()
    assert reader.status() == b"O"
    assert reader._bytes() == record(1, b"new")
    assert writer.decision().stored


def test_other_objects_are_loaded_meanwhile(world):
    writer, reader = world.new(), world.new()
    gate = world.gate()
    gate.close()
    writer.begin_commit(records(1))
    assert gate.waits.wait(PATIENCE)
    assert reader.load(oid(2)) == record(2)
    with pytest.raises(ReadConflictError):
        reader.load(oid(1))
    assert not answered(writer)
    gate.open()
    assert writer.decision().stored


def test_commits_that_wait_for_the_disk_are_a_group(world):
    writers = [world.new() for _ in range(4)]
    gate = world.gate()
    gate.close()
    for number, writer in enumerate(writers, 1):
        writer.begin_commit(records(number))
    assert gate.waits.wait(PATIENCE)
    world.until(lambda: world.storage.engine.journal.tid == 5, *writers)
    gate.open()
    assert {writer.decision().stored for writer in writers} == {True}
    assert {world.storage.session().load(oid(number)) for number in range(1, 5)} == {
        record(n, b"new") for n in range(1, 5)
    }


def test_new_objects_are_changed_by_others_before_their_maker_hears_of_it(world):
    """Another thread has brought them to the disk, and the group that they are in still waits."""
    maker, other = world.new(), world.new()
    made = maker.new_oids(1)[0]
    session = world.storage.session()
    gate = world.gate("berkeleydb_storage flush")
    gate.close()
    maker.begin_commit({made: pack_record(made, b"", b""), oid(1): pack_record(oid(1), b"", made)})
    assert gate.waits.wait(PATIENCE)
    store(session, record(5, b"by the server"))
    assert set(other.sync().oids) == {made, oid(1), oid(5)}
    assert other.load(made) == pack_record(made, b"", b"")
    other.begin_commit({made: pack_record(made, b"more", b"")}, b"another" + MARK[7:])
    world.until(lambda: world.storage.engine.journal.tid == 4, maker, other)
    gate.open()
    assert maker.decision().stored
    assert other.decision().stored
    assert world.storage.session().load(made) == pack_record(made, b"more", b"")


# --- conflicts


def test_what_a_client_never_had_is_no_reason_to_ask(world):
    one, other = world.new(), world.new()
    one.load(oid(1))
    other.put(records(2))
    decision = one.put(records(1))
    assert decision.stored
    assert decision.oids == [oid(2)]


def test_who_has_what_was_changed_is_asked(world):
    one, other = world.new(), world.new()
    one.load(oid(1)), one.load(oid(2))
    other.put(records(2))
    decision = one.put(records(1))
    assert not decision.stored
    assert decision.oids == [oid(2)]
    assert one.go_on().stored
    other.put(records(3))
    one.load(oid(4))
    assert one.put(records(1)).stored


def test_nobody_overwrites_what_was_changed(world):
    one, other = world.new(), world.new()
    other.put(records(1, data=b"first"))
    assert not one.put(records(1, data=b"second")).stored
    with pytest.raises(CommitRefused):
        one.go_on()
    assert other.load(oid(1)) == record(1, b"first")
    assert one.load(oid(1)) == record(1, b"first")


def test_who_cancels_has_stored_nothing(world):
    one, other = world.new(), world.new()
    one.load(oid(2))
    other.put(records(2))
    assert not one.put(records(1)).stored
    one.cancel()
    assert one.load(oid(1)) == record(1)
    assert one.load(oid(2)) == record(2, b"new")


def test_who_loses_the_race_gets_the_turn(world, monkeypatch):
    monkeypatch.setattr(turns, "TURN", PATIENCE)
    one, other = world.new(), world.new()
    for number in range(1, 5):
        one.load(oid(number))
    other.put(records(2))
    assert not one.put(records(1)).stored
    assert desk.TRIES == 1
    other.put(records(3))
    assert not one.go_on().stored
    other.begin_commit(records(4))
    world.until(lambda: world.desk._queue, other)
    assert one.go_on().stored
    assert other.decision().stored


def test_after_a_lost_race_the_turn_comes_with_the_first_question(world, monkeypatch):
    monkeypatch.setattr(turns, "TURN", PATIENCE)
    monkeypatch.setattr(desk, "CONTENDED", PATIENCE)
    one, other = world.new(), world.new()
    for number in range(1, 6):
        one.load(oid(number))
    other.put(records(2))
    assert not one.put(records(1)).stored
    other.put(records(3))
    assert not one.go_on().stored
    assert one.go_on().stored
    other.put(records(4))
    assert not one.put(records(1)).stored
    other.begin_commit(records(5))
    world.until(lambda: world.desk._queue, other)
    assert one.go_on().stored
    assert other.decision().stored


@pytest.mark.parametrize("loaded", [False, True])
def test_the_turn_of_an_old_client_runs_out(world, loaded):
    one, other = world.old(), world.new()
    if loaded:
        assert one.load(2) == record(2)
    assert one.begin() == set()
    assert other.put(records(2)).stored  # it waits for the turn to run out
    one.send_records(records(1))
    assert one.status() == (b"I" if loaded else b"O")
    assert other.sync().oids == ([] if loaded else [oid(1)])
    one.send(b"S")
    assert one.told() == {oid(2)}


def test_others_wait_while_an_old_client_has_the_turn(world, monkeypatch):
    monkeypatch.setattr(turns, "TURN", PATIENCE)
    one, other, third = world.old(), world.new(), world.old()
    assert one.load(2) == record(2)
    assert one.begin() == set()
    other.begin_commit(records(2))
    third.send(b"C")
    world.until(lambda: len(world.desk._queue) == 2, other, third)
    one.send_records(records(1, 2))
    assert one.status() == b"O"
    assert not other.decision().stored
    assert third.told() == {oid(1), oid(2)}
    other.ask_for(protocol.GO_ON)
    world.until(lambda: world.desk._queue, other)
    third.send(struct.pack(">L", 0))
    with pytest.raises(ConflictError):
        other.decision()


def test_a_client_that_goes_in_its_turn(world, monkeypatch):
    monkeypatch.setattr(turns, "TURN", PATIENCE)
    one, other = world.old(), world.new()
    one.begin()
    other.begin_commit(records(2))
    world.until(lambda: world.desk._queue, other)
    one.socket.shutdown(socket.SHUT_RDWR)
    assert other.decision().stored


def come_back(world):
    """Return a client that came back, and what it is told."""
    gone, other = world.new(), world.new()
    gone.load(oid(2)), gone.load(oid(3))
    gone.close()
    other.put(records(3))
    one = world.back(gone.welcome)
    assert one.welcome.changed == [oid(3)]
    other.put(records(2))
    return one, one.put(records(1))


def test_who_comes_back_may_have_anything(world):
    one, decision = come_back(world)
    assert not decision.stored
    assert decision.oids == [oid(2)]
    one.cancel()


def test_who_comes_back_would_not_be_asked_without(world, monkeypatch):
    """The test before this one can fail."""
    begin = Interest.__init__
    monkeypatch.setattr(Interest, "__init__", lambda interest, *, anything=False: begin(interest))
    assert come_back(world)[1].stored


def test_a_stranger_who_comes_back_forgets_everything(world):
    known = world.new().welcome
    assert world.back(known._replace(identity=bytes(16))).welcome.changed is None
    assert world.back(known._replace(tid=known.tid + 1)).welcome.changed is None
    assert world.back(known).welcome.changed == []


# --- large commits


def test_a_large_commit_is_seen_whole(world, monkeypatch):
    """It is applied in slices, with loads in between; none of them shows a part of it."""
    monkeypatch.setattr(desk, "STRETCH", 1e-6)
    one, other = world.new(), world.new()
    made = one.new_oids(600)
    first = {each: pack_record(each, b"1", b"") for each in made}
    first[oid(1)] = pack_record(oid(1), b"", b"".join(made))
    assert one.put(first).stored
    other.sync()
    second = {each: pack_record(each, b"2", b"") for each in made}
    one.begin_commit(second)
    seen = set()
    while not answered(one):
        for each in (made[0], made[-1], made[300]):
            try:
                seen.add(other.load(each)[12:13])
            except ReadConflictError:
                seen.add("told to sync")
                assert set(other.sync().oids) >= set(made)
        assert len(seen - {"told to sync"}) <= 1 or "told to sync" in seen
    assert one.decision().stored
    other.sync()
    assert {other.load(each) for each in made} == set(second.values())


# --- fates


def test_fates(world):
    one, other = world.new(), world.new()
    assert one.put(records(1), MARK).stored
    assert other.fate(MARK, 1) == protocol.COMMITTED
    assert other.fate(MARK, 10**6) == protocol.FORGOTTEN
    late = b"late" + MARK[4:]
    assert other.fate(late, 1) == protocol.NOT_COMMITTED
    with pytest.raises(CommitRefused, match="fate"):
        one.put(records(2), late)
    assert other.load(oid(2)) == record(2)


def test_a_fate_waits_for_the_disk(world):
    one, other = world.new(), world.new()
    gate = world.gate()
    gate.close()
    one.begin_commit(records(1))
    assert gate.waits.wait(PATIENCE)
    other.ask_for(protocol.FATE, MARK, pack_uint64(1))
    world.until(lambda: world.desk.groups._readers, one, other)
    gate.open()
    assert one.decision().stored
    assert other.answer()[1][0] == protocol.COMMITTED


def test_the_root_is_an_object_like_others(world):
    one, other = world.new(), world.old()
    one.load(ROOT_OID)
    assert other.begin() == set()
    other.send_records({ROOT_OID: record(0, b"changed", *range(1, OBJECTS))})
    assert other.status() == b"O"
    decision = one.put(records(1))
    assert (type(decision), decision.stored) == (Decision, False)
