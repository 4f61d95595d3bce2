"""Clients that break the rules or vanish at the worst moment. The others lose nothing, and go on."""

import json
import os
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import check_directory
from faults import plant
from graphs import oid
from test_failing_disk import failing  # noqa: F401
from wire import (
    FREE,
    MARK,
    DurusWire,
    ExtendedWire,
    House,
    commit_frame,
    durus_records,
    house,
    limits,
    record,
    wait_until,
)

from berkeleydb_storage import BerkeleyDBStorage, DamagedError, DiskFullError, protocol, server
from berkeleydb_storage.environment import OBJECTS
from berkeleydb_storage.errors import WireError
from berkeleydb_storage.server import Server, creation

ONE, TWO = FREE[0], FREE[1]
CROWD = 40
LARGE = 20_000
"""Records: some 100 ms."""
GREETING = b"VBDB\1" + protocol.frame(protocol.RESUME)
PATIENT = limits(handshake=30, stall=30)


@contextmanager
def patient(caplog, monkeypatch, **options):
    with house(caplog, monkeypatch, **{"limits": PATIENT, **options}) as one:
        yield one


# --- killed


def stored_pair(one):
    """Return the value of a commit of two objects, of which one alone is never there."""
    values = {each and each[12:-8] if number == ONE else each and each[12:] for number, each in pair(one)}
    assert len(values) == 1, values
    return values.pop()


def pair(one):
    return [(number, one.stored(number)) for number in (ONE, TWO)]


def two_records(value):
    return record(ONE, value, TWO), record(TWO, value)


CONVERSATIONS = {
    "durus": lambda value: (DurusWire, b"V\0\0\0\1C" + durus_records(*two_records(value))),
    "extended": lambda value: (ExtendedWire, GREETING + commit_frame(*two_records(value))),
}


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_killed_at_every_byte(caplog, monkeypatch, kind, way):
    """The commit is there whole, or not at all; and not at all before its last byte."""
    with patient(caplog, monkeypatch) as one:
        stored, length = None, len(CONVERSATIONS[kind](b"%4d" % 0)[1])
        for cut in range(length + 1):
            connect, data = CONVERSATIONS[kind](b"%4d" % cut)
            client = connect(one.address)
            client.send(data[:cut])
            getattr(client, way)()
            if not cut % 8 or cut > length - 3:
                one.honest.step()
                wait_until(lambda: len(one.service.connections) == 2, "it is gone")
                one.honest.step()
            if cut < length:
                assert stored_pair(one) == stored
        assert stored_pair(one) in (None, b"%4d" % length)


@pytest.mark.parametrize("way", ["close", "reset"])
def test_killed_at_every_byte_after_the_turn(caplog, monkeypatch, way):
    """As above, by an old client that has read the answer to `C`."""
    with patient(caplog, monkeypatch) as one:
        length = len(durus_records(*two_records(bytes(4))))
        for cut in range(length + 1):
            client = DurusWire(one.address)
            client.begin()
            client.send(durus_records(*two_records(b"%4d" % cut))[:cut])
            getattr(client, way)()
            if not cut % 8:
                one.honest.step()
            if cut < length:
                assert stored_pair(one) is None
        wait_until(lambda: len(one.service.connections) == 2, "all are gone")
        assert stored_pair(one) in (None, b"%4d" % length)


def ask(one, value=b"asked"):
    """Return a client that was asked whether it still wants its commit of two objects."""
    client = one.extended()
    assert client.load(1)[0] == protocol.OK
    one.honest.step()
    kind, _ = client.commit(*two_records(value))
    assert kind == protocol.STALE
    return client


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("cut", range(6))
def test_killed_when_asked(caplog, monkeypatch, cut, way):
    with patient(caplog, monkeypatch) as one:
        client = ask(one)
        client.send(protocol.frame(protocol.GO_ON)[:cut])
        getattr(client, way)()
        one.honest.step()
        wait_until(lambda: len(one.service.connections) == 2, "it is gone")
        assert stored_pair(one) in ((None,) if cut < 5 else (None, b"asked"))


class Gate:
    """Holds up what a function does, until it is opened."""

    def __init__(self, work):
        self._work = work
        self._open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, *arguments):
        self.reached.set()
        assert self._open.wait(60)
        return self._work(*arguments)

    def open(self):
        self._open.set()


@pytest.fixture
def slow_disk(monkeypatch):
    """A function that makes the flushes of a house wait, until the gate that it returns is opened."""

    def make(one):
        gate = Gate(one.storage.engine.environment.flush)
        monkeypatch.setattr(one.storage.engine.environment, "flush", gate)
        one.service.desk.groups._usual = 1.0  # so that it is done in a thread
        return gate

    return make


def test_gone_while_it_is_flushed(caplog, monkeypatch, slow_disk):
    """Loads go on; what was applied is brought to the disk, whether or not somebody still wants to hear of it."""
    with patient(caplog, monkeypatch) as one:
        gate = slow_disk(one)
        old, new, behind, reader, waiting = one.durus(), one.extended(), one.extended(), one.extended(), one.durus()
        new.send(commit_frame(*two_records(b"new")))
        assert gate.reached.wait(60)
        old.begin()
        old.send(durus_records(record(FREE[2])))
        behind.send(commit_frame(record(FREE[3])))
        wait_until(lambda: len(one.service.desk.groups._group) == 2, "two more are applied")
        assert reader.load(3)[0] == protocol.OK
        waiting.send(b"L", oid(ONE))
        assert reader.request(protocol.SYNC)[0] == protocol.OK
        reader.send(protocol.frame(protocol.LOAD, oid(TWO)))
        wait_until(lambda: len(one.service.desk.groups._readers) == 2, "two wait for the disk")
        for client in (old, new, behind, waiting, reader):
            client.reset()
        wait_until(lambda: len(one.service.connections) == 2, "all are gone")
        gate.open()
        one.settled()
        assert stored_pair(one) == b"new"
        assert one.stored(FREE[2])
        assert one.stored(FREE[3])


def test_gone_in_the_queue(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        monkeypatch.setattr("berkeleydb_storage.server.turns.TURN", 30)
        holder, queued, other = one.durus(), one.extended(), one.durus()
        holder.begin()
        queued.send(commit_frame(*two_records(b"queued")))
        other.send(b"C")
        wait_until(lambda: len(one.service.desk._queue) == 2, "two wait")
        queued.reset()
        other.reset()
        wait_until(lambda: len(one.service.connections) == 3, "they are gone")
        holder.send(durus_records(record(FREE[2])))
        assert holder.read(1) == protocol.OKAY
        one.honest.step()
        assert stored_pair(one) is None


def test_gone_with_the_turn(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        monkeypatch.setattr("berkeleydb_storage.server.turns.TURN", 30)
        holder, queued = one.durus(), one.extended()
        holder.begin()
        queued.send(commit_frame(*two_records(b"queued")))
        wait_until(lambda: one.service.desk._queue, "it waits")
        holder.reset()
        assert queued.answer()[0] == protocol.OK
        assert stored_pair(one) == b"queued"


def large_commit(one, client):
    """Have a client send a commit that is applied in slices, and wait until it is."""
    numbers = range(FREE.stop, FREE.stop + LARGE)
    kind, payload = protocol.OK, b""
    while len(payload) < LARGE * 8:
        kind, more = client.request(protocol.OIDS, struct.pack(">L", 4096))
        payload += more
    assert kind == protocol.OK
    frame = commit_frame(*(record(number) for number in numbers))
    client.send(frame)
    wait_until(lambda: one.service.desk.hold.held, "it is being applied")
    return numbers


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_gone_while_it_is_applied(caplog, monkeypatch, type):
    with patient(caplog, monkeypatch, options={"type": type}) as one:
        client = one.extended()
        with one.honest.at_work():
            wait_until(lambda: one.honest.latencies, "the others are at work")
            numbers = large_commit(one, client)
            client.reset()
            wait_until(lambda: not one.service.desk.hold.held, "it is applied")
        one.settled()
        assert len([number for number in numbers if one.stored(number)]) == LARGE


def test_all_kinds_of_requests_while_a_large_commit_is_applied(caplog, monkeypatch):
    """What cannot be done then is done right after it; loads of other objects are answered at once."""
    with patient(caplog, monkeypatch) as one:
        busy = one.extended()
        others = [one.extended() for _ in range(11)]
        old = [one.durus() for _ in range(5)]
        for each in old:
            each.version()
        one.honest.step()
        numbers = large_commit(one, busy)
        requests = (
            protocol.frame(protocol.LOAD, oid(3)),
            protocol.frame(protocol.LOAD, oid(numbers[5])),
            protocol.frame(protocol.OIDS, b"\0\0\0\5"),
            protocol.frame(protocol.FATE, b"?" * 16, bytes(8)),
            protocol.frame(protocol.ROWS, oid(0), b"\0\0\0\5\0\0\1\0"),
            protocol.frame(protocol.FETCH, oid(0), b"\0\0\0\5\0\0\1\0"),
            protocol.frame(protocol.SYNC),
            protocol.frame(protocol.PING),
            protocol.frame(protocol.INFORMATION),
            protocol.frame(protocol.PACK),
            commit_frame(*two_records(b"next")),
        )
        assert one.service.desk.hold.held
        for client, request in zip(others, requests, strict=True):
            client.send(request)
        for client, request in zip(old, (b"N", b"S", b"P", b"C", b"L" + oid(numbers[7])), strict=True):
            client.send(request)
        assert all(client.answer()[0] in (protocol.OK, protocol.UNKNOWN_OBJECT, protocol.REFUSED) for client in others)
        assert [bool(each.read(1)) for each in old] == [True] * 5
        assert busy.answer()[0] == protocol.OK
        assert stored_pair(one) == b"next"


# --- against the rules


@pytest.mark.parametrize("kind", list(b"LFBNSCGXYTIPWQZ"))
def test_requests_before_coming_in(caplog, monkeypatch, kind):
    with patient(caplog, monkeypatch) as one:
        client = one.extended(come_in=False)
        client.greet()
        answer, payload = client.request(kind, oid(1))
        assert answer == protocol.ERROR
        assert protocol.unpack_refusal(payload).code == "AccessDenied"
        assert client.is_over() == b""


def test_a_password_where_none_is_asked_for(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        client = one.extended(come_in=False)
        client.greet()
        kind, payload = client.request(protocol.AUTHENTICATE, b"somebody")
        assert (kind, protocol.unpack_refusal(payload).code) == (protocol.ERROR, "AccessDenied")
        assert client.is_over() == b""
        client = one.extended()
        assert client.request(protocol.AUTHENTICATE, b"somebody")[0] == protocol.ERROR
        assert client.request(protocol.PING)[0] == protocol.OK


@pytest.mark.parametrize("kind", [protocol.GO_ON, protocol.CANCEL, ord("?"), 0, 255, ord("H"), ord("O")])
def test_what_is_not_due(caplog, monkeypatch, kind):
    """An answer to no question, and types that there are not."""
    with patient(caplog, monkeypatch) as one:
        client = one.extended()
        client.send(protocol.frame(kind))
        assert client.is_over() == b""


@pytest.mark.parametrize("kind", list(b"LFBNSCYTIPZRA"))
def test_other_requests_when_asked(caplog, monkeypatch, kind):
    with patient(caplog, monkeypatch) as one:
        client = ask(one)
        client.send(protocol.frame(kind, *((oid(3),) if kind == protocol.LOAD else ())))
        assert client.is_over() == b""
        one.honest.step()
        assert stored_pair(one) is None


def test_greeting_and_requests_in_one_piece(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        client = one.extended(come_in=False)
        client.send(GREETING, protocol.frame(protocol.PING), commit_frame(*two_records(b"at once")))
        assert client.read(4) == b"BDB\1"
        assert [client.answer()[0] for _ in range(4)] == [protocol.HELLO, protocol.OK, protocol.OK, protocol.OK]
        assert stored_pair(one) == b"at once"


def test_another_greeting(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        client = one.durus()
        client.version()
        client.send(b"VBDB\1")
        assert client.is_over() == protocol.DURUS_VERSION
        client = one.durus()
        client.send(b"V\0\0\0\2")
        assert client.is_over() == protocol.DURUS_VERSION


def test_no_oids_are_few(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        client = one.durus()
        assert client.new_oids(0) == []
        assert len(client.new_oids(2)) == 2


def test_a_shutdown_without_the_right(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        for _ in range(10):
            stranger = one.durus()
            stranger.send(b"Q")
            assert stranger.is_over() == b""
        client = one.extended()
        for kind in (protocol.SHUTDOWN, protocol.BACKUP):
            answer, payload = client.request(kind)
            assert (answer, protocol.unpack_refusal(payload).code) == (protocol.ERROR, "AccessDenied")
        assert client.request(protocol.PING)[0] == protocol.OK
        one.honest.step()


def test_readers(tmp_path):
    """Those that may not write get no turn, no oids, and no commit; they find the root missing at once."""
    with BerkeleyDBStorage(tmp_path) as storage, Server(storage, "127.0.0.1:0", rights="read") as reading:
        with DurusWire(reading.address) as old, ExtendedWire(reading.address) as new:
            assert old.load(0) == protocol.MISSING
            assert new.come_in()[0] == protocol.OK
            assert new.load(0)[0] == protocol.UNKNOWN_OBJECT
            assert old.begin() == []
            assert reading.service.desk.turns.holder is None
            old.send(durus_records(record(0)))
            assert old.read(1) == protocol.INVALID
            for kind in b"NCGXPWQ":
                answer, payload = new.request(kind)
                assert (answer, protocol.unpack_refusal(payload).code) == (protocol.ERROR, "AccessDenied")
            old.send(b"P")
            old.is_over()
        assert storage.get_size() == 0
    check_directory(tmp_path)


def test_oids_of_another_client(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        owner, other = one.durus(), one.extended()
        mine = owner.new_oids(3)
        theirs = protocol.split_oids(other.request(protocol.OIDS, b"\0\0\0\3")[1])
        thief, old_thief = one.extended(), one.durus()
        thief.send(commit_frame(record(int.from_bytes(mine[0], "big"))))
        kind, payload = thief.answer()
        assert (kind, protocol.unpack_refusal(payload).oids) == (protocol.REFUSED, [mine[0]])
        old_thief.begin()
        old_thief.send(durus_records(record(int.from_bytes(theirs[1], "big"))))
        assert old_thief.read(1) == protocol.INVALID
        for number in (mine[0], theirs[1]):
            assert one.stored(int.from_bytes(number, "big")) is None
        assert owner.commit(*(record(int.from_bytes(each, "big")) for each in mine))[0] == protocol.OKAY
        assert other.commit(*(record(int.from_bytes(each, "big")) for each in theirs))[0] == protocol.OK


@pytest.mark.parametrize("number", [FREE.stop + 5000, 1 << 40, (1 << 64) - 1])
def test_oids_never_handed_out(caplog, monkeypatch, number):
    with patient(caplog, monkeypatch) as one:
        client = one.extended()
        kind, payload = client.commit(record(ONE), record(number))
        assert kind == protocol.ERROR
        assert "never handed out its oid" in protocol.unpack_refusal(payload).message
        assert client.request(protocol.PING)[0] == protocol.OK
        old = one.durus()
        old.begin()
        old.send(durus_records(record(ONE), record(number)))
        assert old.is_over() == b""
        assert one.stored(ONE) is None
        one.honest.step()


def rows_of(*pairs):
    return b"".join(protocol.pack_records(pairs))


MALFORMED = {
    "length cut off": b"\0\0",
    "no oid": b"\0\0\0\4" + bytes(4),
    "longer than the frame": struct.pack(">L", 1 << 30) + record(ONE),
    "4 GiB": b"\xff" * 4 + oid(ONE),
    "an oid and nothing": struct.pack(">L", 8) + oid(ONE),
    "record cut off": rows_of((oid(ONE), record(ONE)[:-1])),
    "another's record": rows_of((oid(ONE), record(TWO))),
    "data longer than the record": rows_of((oid(ONE), oid(ONE) + b"\xff" * 4)),
    "half a reference": rows_of((oid(ONE), record(ONE) + bytes(4))),
    "good, and then rubbish": rows_of((oid(TWO), record(TWO))) + b"rubbish",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_commits(caplog, monkeypatch, body):
    with patient(caplog, monkeypatch) as one:
        old, new = one.durus(), one.extended()
        old.begin()
        old.send(struct.pack(">L", len(body)), body)
        assert old.is_over() == b""
        one.honest.step()
        new.send(protocol.frame(protocol.COMMIT, MARK, body))
        answer = new.is_over() if b"rubbish" in body or new_ends(body) else new.answer()
        assert answer == b"" or answer[0] == protocol.ERROR
        assert stored_pair(one) is None


def new_ends(body):
    """Whether it is the frame that makes no sense, and not a record."""
    return len(body) < 8 or struct.unpack_from(">L", body)[0] + 4 > len(body) or body[:4] == b"\0\0\0\4"


@pytest.mark.parametrize("payload", [b"", MARK[:15]])
def test_commits_without_a_mark(caplog, monkeypatch, payload):
    with patient(caplog, monkeypatch) as one:
        client = one.extended()
        client.send(protocol.frame(protocol.COMMIT, payload))
        assert client.is_over() == b""


def test_odd_commits(caplog, monkeypatch):
    """Nothing; nothing in it; an object twice, of which the last counts; of itself; of the same object many times."""
    with patient(caplog, monkeypatch) as one:
        new, old = one.extended(), one.durus()
        assert new.commit()[0] == protocol.OK
        old.begin()
        old.send(bytes(4))
        assert old.commit(record(FREE[9]))[0] == protocol.OKAY
        assert new.commit(record(ONE))[0] == protocol.OK
        assert new.commit(record(ONE, b"first"), record(ONE, b"last"))[0] == protocol.OK
        assert one.stored(ONE) == record(ONE, b"last")
        assert old.commit(record(TWO, b"first"), record(TWO, b"last"))[0] == protocol.OKAY
        assert one.stored(TWO) == record(TWO, b"last")
        assert new.commit(record(ONE, b"", ONE, ONE))[0] == protocol.OK
        assert new.commit(record(ONE, b"", *[TWO] * 10_000))[0] == protocol.OK
        assert one.stored(ONE) == record(ONE, b"", *[TWO] * 10_000)


def test_references_to_nothing(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        new, old = one.extended(), one.durus()
        kind, payload = new.commit(record(ONE, b"", FREE[7], 1 << 50))
        assert kind == protocol.REFUSED
        refusal = protocol.unpack_refusal(payload)
        assert (refusal.code, set(refusal.oids)) == ("DanglingReferenceError", {oid(FREE[7]), oid(1 << 50)})
        assert old.commit(record(ONE, b"", FREE[7]))[0] == protocol.INVALID
        assert new.commit(record(ONE))[0] == protocol.OK


def test_a_mark_whose_fate_was_asked_for(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        first, second = one.extended(), one.extended()
        tid = first.request(protocol.PING)[1][:8]
        assert first.request(protocol.FATE, MARK, tid) == (protocol.OK, bytes([protocol.NOT_COMMITTED]) + bytes(8))
        kind, payload = second.commit(*two_records(b"late"))
        assert (kind, protocol.unpack_refusal(payload).code) == (protocol.REFUSED, "CommitRefused")
        assert stored_pair(one) is None
        other = b"another one's ma"
        assert second.commit(*two_records(b"other"), mark=other)[0] == protocol.OK
        kind, payload = first.request(protocol.FATE, other, tid)
        assert payload[0] == protocol.COMMITTED


def test_a_mark_whose_fate_was_asked_for_while_it_was_asked_about(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        client = ask(one)
        tid = one.extended().request(protocol.PING)[1][:8]
        assert one.extended().request(protocol.FATE, MARK, tid)[1][0] == protocol.NOT_COMMITTED
        assert client.request(protocol.GO_ON)[0] == protocol.REFUSED
        assert stored_pair(one) is None


LENGTHS = {
    b"L": (0, 7, 9),
    b"F": (0, 8, 17),
    b"Z": (0, 15),
    b"N": (0, 5),
    b"B": (1, 7, 12),
    b"Y": (0, 23, 25),
    b"C": (3,),
}


@pytest.mark.parametrize(("kind", "length"), [(kind, each) for kind, lengths in LENGTHS.items() for each in lengths])
def test_wrong_lengths(caplog, monkeypatch, kind, length):
    with patient(caplog, monkeypatch) as one:
        client = one.extended()
        client.send(protocol.frame(kind[0], bytes(length)))
        assert client.is_over() == b""


@pytest.mark.parametrize("length", [1, 16, 23, 25])
def test_coming_back_with_rubbish(caplog, monkeypatch, length):
    with patient(caplog, monkeypatch) as one:
        client = one.extended(come_in=False)
        client.greet()
        client.send(protocol.frame(protocol.RESUME, bytes(length)))
        assert client.is_over() == b""


@pytest.mark.parametrize("count", [0, 1, (1 << 32) - 1])
@pytest.mark.parametrize("size", [0, 1, (1 << 32) - 1])
def test_absurd_counts(caplog, monkeypatch, count, size):
    with patient(caplog, monkeypatch) as one:
        client = one.extended()
        kind, payload = client.request(protocol.ROWS, protocol.LIMITS.pack(oid(0), count, size))
        assert kind == protocol.OK
        assert len(protocol.unpack_rows(payload)) == (0 if not count or not size else 1 if 1 in (count, size) else 4)
        kind, payload = one.extended().request(protocol.FETCH, protocol.LIMITS.pack(oid(0), count, size))
        assert kind == protocol.OK
        assert len(protocol.unpack_rows(payload)) == (4 if count > 1 and size > 1 else 1)


@pytest.mark.parametrize("count", [0, 4097, (1 << 32) - 1])
def test_absurd_numbers_of_oids(caplog, monkeypatch, count):
    with patient(caplog, monkeypatch) as one:
        client = one.extended()
        client.send(protocol.frame(protocol.OIDS, struct.pack(">L", count)))
        assert client.is_over() == b""


def test_json_is_not_read_from_clients():
    """It could be nested deeper than the parser can go; where it is read, by clients, that is an error like others."""
    for module in Path(server.__file__).parent.glob("*.py"):
        assert "unpack_json" not in module.read_text()
        assert "json.loads" not in module.read_text()
    with pytest.raises(WireError):
        protocol.unpack_json(b"[" * 1_000_000)


# --- the turn


@pytest.mark.parametrize("reconnecting", [False, True])
@pytest.mark.parametrize("gives_up", [False, True])
def test_a_crowd_that_takes_the_turn(caplog, monkeypatch, reconnecting, gives_up):
    """Each takes it as often as it can, and does nothing with it, or gives up late: commits of others stay quick."""
    with patient(caplog, monkeypatch) as one:
        over = threading.Event()

        def hog():
            client = DurusWire(one.address)
            while not over.is_set():
                client.begin()
                over.wait(0.015 if gives_up else 0.03)
                if reconnecting:
                    client.reset()
                    client = DurusWire(one.address)
                else:
                    client.send(bytes(4))
            client.close()

        hogs = [threading.Thread(target=hog, daemon=True) for _ in range(CROWD)]
        for each in hogs:
            each.start()
        with one.honest.at_work():
            wait_until(lambda: len(one.honest.latencies) > 60, "others have committed")
        over.set()
        for each in hogs:
            each.join(60)
        latencies = sorted(one.honest.latencies)
        assert latencies[-1] < 5
        assert latencies[len(latencies) // 2] < 0.2


def test_a_crowd_that_waits_for_the_turn(caplog, monkeypatch):
    """Hundreds that send `C`, and nothing more."""
    with patient(caplog, monkeypatch) as one:
        for _ in range(300):
            one.durus().send(b"C")
        for _ in range(20):
            one.honest.step()
        assert max(one.honest.latencies) < 5


def test_a_root_that_nobody_makes(caplog, monkeypatch, tmp_path):
    """One who finds no root, and asks again and again: after a while another one may make it."""
    monkeypatch.setattr(creation, "PATIENCE", 0.3)
    over = threading.Event()
    with BerkeleyDBStorage(tmp_path) as storage, Server(storage, "127.0.0.1:0") as running:

        def hog():
            with DurusWire(running.address) as client:
                while not over.is_set():
                    client.load(0)
                    over.wait(0.01)

        thread = threading.Thread(target=hog, daemon=True)
        thread.start()
        wait_until(lambda: running.service.creation._maker, "it was told to make the root")
        with DurusWire(running.address) as other:
            assert other.load(0) == protocol.MISSING
            assert other.commit(record(0))[0] == protocol.OKAY
        over.set()
        thread.join(60)
    check_directory(tmp_path)


# --- what fails


def test_no_room_on_the_disk(caplog, monkeypatch):
    with patient(caplog, monkeypatch) as one:
        new, old = one.extended(), one.durus()

        def full(size):
            raise DiskFullError("no room, says the test")

        with monkeypatch.context() as patch:
            patch.setattr(one.storage.engine.transactions.room, "need", full)
            kind, payload = new.commit(*two_records(b"refused"))
            assert (kind, protocol.unpack_refusal(payload).code) == (protocol.REFUSED, "DiskFullError")
            assert old.commit(record(ONE))[0] == protocol.INVALID
        assert stored_pair(one) is None
        assert new.commit(*two_records(b"stored"))[0] == protocol.OK


def waiting_commits(one, gate):
    """Return clients whose commits wait for the disk, in the group under way and in the next, and a reader."""
    new, old, next_one, reader = one.extended(), one.durus(), one.extended(), one.extended()
    new.send(commit_frame(*two_records(b"new")))
    assert gate.reached.wait(60)
    old.begin()
    old.send(durus_records(record(FREE[2])))
    next_one.send(commit_frame(record(FREE[3])))
    wait_until(lambda: len(one.service.desk.groups._group) == 2, "two are applied")
    assert reader.request(protocol.SYNC)[0] == protocol.OK
    reader.send(protocol.frame(protocol.LOAD, oid(ONE)))
    wait_until(lambda: one.service.desk.groups._readers, "it waits for the disk")
    return new, old, next_one, reader


def in_doubt(client):
    kind, payload = client.answer()
    return kind == protocol.DOUBT and protocol.unpack_refusal(payload).code == "CommitInDoubt"


def ended_by_itself(one, acknowledged):
    """See that the server ends, and that what was acknowledged is there when the storage is opened again."""
    wait_until(one.server._ended.is_set, "the server ends")
    for client in one.clients:
        client.is_over()
    one.abandon()
    with BerkeleyDBStorage(one.path) as storage:
        for number, each in acknowledged.items():
            assert storage.engine.get(oid(number)) == each
    check_directory(one.path)


@pytest.mark.parametrize("kind", ["a failed sync", "the engine stops before"])
def test_the_disk_fails(caplog, monkeypatch, tmp_path, slow_disk, failing, kind):  # noqa: F811
    """Whoever waits for it is told that his commit is in doubt, by a hang-up where there is no word for it."""
    one = House(tmp_path, limits=PATIENT)
    one.honest.step()
    gate = slow_disk(one)
    new, old, next_one, reader = waiting_commits(one, gate)
    if kind == "a failed sync":
        failing.part = "/log."
    else:
        with one.storage.engine.lock:
            one.storage.engine.refuse(DamagedError("the disk fails, says the test"))
    gate.open()
    if kind == "a failed sync":
        assert in_doubt(new)
    else:
        assert new.answer()[0] == protocol.OK  # its flush was under way
    assert old.is_over() == b""
    assert in_doubt(next_one)
    assert reader.is_over() == b""
    failing.part = None
    ended_by_itself(one, {1: record(1, b"1"), 2: record(2, b"1")})
    assert json.loads((tmp_path / "storage.json").read_text())["state"] == "closed"


def test_what_nobody_thought_of(caplog, monkeypatch, tmp_path):
    """A record on the disk that is rubbish: the commit that meets it is refused, and those behind it are stored."""
    monkeypatch.setattr("berkeleydb_storage.server.turns.TURN", 30)
    one = House(tmp_path, limits=PATIENT)
    holder, new, old, behind = one.durus(), one.extended(), one.durus(), one.extended()
    assert new.commit(record(ONE))[0] == protocol.OK
    with one.storage.engine.lock:
        plant(one.storage, (OBJECTS, oid(ONE), b"rubbish"))
    holder.begin()
    new.send(commit_frame(record(ONE, b"new")))
    wait_until(lambda: len(one.service.desk._queue) == 1, "it waits")
    old.send(b"C")
    wait_until(lambda: len(one.service.desk._queue) == 2, "it waits")
    behind.send(commit_frame(record(TWO)))
    wait_until(lambda: len(one.service.desk._queue) == 3, "it waits")
    holder.send(bytes(4))
    assert new.answer()[0] == protocol.ERROR
    assert old.told() == []
    old.send(durus_records(record(ONE, b"old")))
    assert old.read(1) == protocol.INVALID
    assert behind.answer()[0] == protocol.OK
    with one.storage.engine.lock:
        plant(one.storage, (OBJECTS, oid(ONE), record(ONE)))
    one.finish()


# --- closed


def close(one, *, within=3.0):
    started = time.monotonic()
    one.server.close()
    assert time.monotonic() - started < within
    assert not one.service.connections
    assert one.service.desk.idle
    for number, count in one.honest.acknowledged.items():
        assert one.stored(number) == record(number, b"%d" % count)
    value = stored_pair(one)
    one.abandon()
    check_directory(one.path)
    return value


def begin_half(one):
    client = one.durus()
    client.begin()
    client.send(durus_records(*two_records(b"half"))[:50])


def begin_queue(one):
    one.durus().begin()
    for _ in range(5):
        one.extended().send(commit_frame(*two_records(b"queued")))
        one.durus().send(b"C")


def begin_bulk(one):
    one.durus().commit(record(FREE[9], bytes(1 << 20)))
    for connect in (one.durus, one.extended):
        client = connect(receive_buffer=4096)
        if connect == one.durus:
            client.send(b"B\0\0\7\0", oid(FREE[9]) * 0x700)
        else:
            client.send(protocol.frame(protocol.LOAD, oid(FREE[9])) * 100)
    wait_until(lambda: sum(each.takes_no_more for each in one.service.connections) == 2, "they take no more")


MOMENTS = {
    "half a commit": begin_half,
    "asked": ask,
    "a queue": begin_queue,
    "applied in slices": lambda one: large_commit(one, one.extended()),
    "answers that are not taken": begin_bulk,
    "not come in": lambda one: [one.extended(come_in=False), one.durus()],
    "information": lambda one: one.extended().send(protocol.frame(protocol.INFORMATION) * 50),
    "a pack": lambda one: one.extended().send(protocol.frame(protocol.PACK)),
    "a lot of requests": lambda one: one.extended().send(protocol.frame(protocol.PING) * 20_000),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_closing(caplog, monkeypatch, tmp_path, moment):
    one = House(tmp_path, limits=PATIENT)
    one.honest.step()
    MOMENTS[moment](one)
    assert close(one) in (None, b"queued")
    faults = [each.getMessage() for each in caplog.records if each.exc_info]
    assert not faults


def test_closing_while_commits_are_flushed(caplog, monkeypatch, tmp_path, slow_disk):
    """They are acknowledged; nobody new comes in."""
    one = House(tmp_path, limits=PATIENT)
    gate = slow_disk(one)
    new, old, next_one, reader = waiting_commits(one, gate)
    closing = threading.Thread(target=one.server.close, daemon=True)
    closing.start()
    wait_until(lambda: len(one.service.connections) <= 4, "the others are hung up on")
    with pytest.raises(OSError, match=r".*"):
        DurusWire(one.address).version()
    gate.open()
    assert new.answer()[0] == protocol.OK
    assert old.read(1) == protocol.OKAY
    assert next_one.answer()[0] == protocol.OK
    assert reader.answer()[0] == protocol.OK
    closing.join(60)
    assert close(one) == b"new"


def test_closing_amid_all_of_it(caplog, monkeypatch, tmp_path):
    """A crowd commits, asks, is asked, and vanishes: the server closes in time, and all is whole."""
    one = House(tmp_path, limits=PATIENT)
    over = threading.Event()

    def disturb(number):
        while not over.is_set():
            try:
                with ExtendedWire(one.address) as client:
                    client.come_in()
                    for turn in range(20):
                        client.send(commit_frame(*two_records(b"%d %d" % (number, turn)), mark=os.urandom(16)))
                        if turn == number:
                            client.reset()
                        kind, _ = client.answer()
                        while kind == protocol.STALE:
                            kind, _ = client.request(protocol.GO_ON)
            except ConnectionRefusedError:
                return
            except (OSError, EOFError):
                continue

    threads = [threading.Thread(target=disturb, args=(number,), daemon=True) for number in range(8)]
    for each in threads:
        each.start()
    wait_until(lambda: one.service.metrics.commits > 200, "they are at work")
    value = None
    try:
        value = close(one)
    finally:
        over.set()
        for each in threads:
            each.join(60)
    assert value is not None
