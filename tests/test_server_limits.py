"""Clients that take up too much: time, memory, connections. They are hung up on; the others do not notice."""

import gc
import math
import resource
import socket
import struct
import time
from pathlib import Path

import pytest
from graphs import oid
from wire import (
    FREE,
    LONG_AGO,
    MARK,
    DurusWire,
    ExtendedWire,
    commit_frame,
    durus_records,
    house,
    limits,
    reasons,
    record,
    wait_until,
)

from berkeleydb_storage import protocol
from berkeleydb_storage.server import connection, extended

MANY = 2000
PIPELINED = 100_000
HALF_SENT = 40
FOUR_GIB = b"\xff" * 4
BIG = 1 << 20
HUGE = 16 << 20
"""More than the system takes of an answer before the client does."""
PATIENT = {"handshake": 30, "stall": 30}
SPARE_DESCRIPTORS = 200


def test_what_does_not_come_in(caplog, monkeypatch):
    """Nothing, half a greeting, a greeting and then nothing, half a frame: for so long, and no longer."""
    with house(caplog, monkeypatch, limits=limits()) as one:
        with one.honest.at_work():
            openings = (b"", b"V", b"V\0\0\0", b"VBDB\1", b"VBDB\1\0", b"VBDB\1\0\0\0\1", b"L\0\0\0", b"B\0\0\0\2")
            clients = []
            for opening in openings * 20:
                clients.append(one.durus())
                clients[-1].send(opening)
            for client in clients:
                client.is_over()
        assert any("it has not come in within 0.25 s" in line for line in reasons(caplog))


def test_a_version_is_no_request(caplog, monkeypatch):
    """After `V` a Durus client may rest as long as it likes; so may one of the extended protocol after `R`."""
    with house(caplog, monkeypatch, limits=limits(handshake=1)) as one:
        resting = one.durus()
        resting.version()
        other = one.extended()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.2, "some time has passed")
        assert resting.load(1)
        assert other.load(1)[0] == protocol.OK


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"L\0\0\0", id="load"),
        pytest.param(b"B\0\0\0\4" + bytes(9), id="bulk"),
        pytest.param(b"C", id="commit-records-due"),
        pytest.param(b"C\0\0\1\0" + bytes(200), id="commit-half"),
        pytest.param(b"M", id="oids"),
    ],
)
def test_durus_requests_that_never_end(caplog, monkeypatch, begun):
    with house(caplog, monkeypatch, limits=limits(handshake=30)) as one, one.honest.at_work():
        clients = [one.durus() for _ in range(30)]
        for client in clients:
            client.version()
            client.send(begun)
        for client in clients:
            client.is_over()
        assert any("a request is not complete after" in line for line in reasons(caplog))


@pytest.mark.parametrize(
    ("begun", "idle"),
    [
        pytest.param(b"\0", 2, id="header"),
        pytest.param(b"\0\0\0\x09L", math.inf, id="load"),
        pytest.param(struct.pack(">LB", 1 << 20, protocol.COMMIT) + bytes(60_000), math.inf, id="commit"),
    ],
)
def test_frames_that_never_end(caplog, monkeypatch, begun, idle):
    """Of the first kind the timer runs only from the fifth byte on: before that it is no request, and holds nothing."""
    with house(caplog, monkeypatch, limits=limits(handshake=30, idle=idle)) as one:
        clients = [one.extended() for _ in range(30)]
        for client in clients:
            client.send(begun)
        with one.honest.at_work():
            for client in clients:
                client.is_over()


def test_a_byte_now_and_then(caplog, monkeypatch):
    """It is the whole request that has to be there in time, not the next byte."""
    with house(caplog, monkeypatch, limits=limits(handshake=30)) as one:
        client, frame = one.extended(), commit_frame(record(FREE[0], bytes(5000)))
        client.socket.settimeout(0.01)
        started = time.monotonic()
        for at in range(len(frame)):
            try:
                client.send(frame[at : at + 1])
                assert client.socket.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:  # it is hung up on while it sends
                break
        assert time.monotonic() - started < 5
        assert one.stored(FREE[0]) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"B" + FOUR_GIB, id="bulk"),
        pytest.param(b"B" + struct.pack(">L", (1 << 19) + 1), id="bulk-a-bit-too-long"),
        pytest.param(b"C" + FOUR_GIB, id="commit"),
    ],
)
def test_lengths_of_durus(caplog, monkeypatch, data):
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one, one.honest.at_work():
        client = one.durus()
        client.version()
        client.send(data)
        client.is_over()
        assert any("at most 4194304 are taken" in line for line in reasons(caplog))


@pytest.mark.parametrize("length", [0, (4 << 20) + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("welcome", [False, True])
def test_lengths_of_frames(caplog, monkeypatch, length, welcome):
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one, one.honest.at_work():
        client = one.extended(come_in=welcome)
        if not welcome:
            client.greet()
        client.send(struct.pack(">LB", length, protocol.COMMIT))
        assert client.is_over() == b""
        assert any(f"a frame of {length} bytes" in line for line in reasons(caplog))


def test_strangers_send_short_frames(caplog, monkeypatch):
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one:
        client = one.extended(come_in=False)
        client.greet()
        client.send(struct.pack(">LB", extended.FIRST_FRAMES + 1, protocol.AUTHENTICATE))
        assert client.is_over() == b""


def test_memory_of_half_sent_frames(caplog, monkeypatch):
    """Whoever goes over what all together may send is hung up on; then there is room again."""
    with house(caplog, monkeypatch, limits=limits(memory=8 << 20, **PATIENT)) as one, one.honest.at_work():
        head = struct.pack(">LB", 3 << 20, protocol.COMMIT)
        clients = [one.extended() for _ in range(HALF_SENT)]
        for client in clients:
            try:
                client.send(head, bytes(BIG))
            except ConnectionError:
                client.close()
        wait_until(lambda: len(one.service.connections) <= 2 + 8, "those that are too many are hung up on")
        assert one.service.held <= (8 << 20) + (BIG + (1 << 18)) * 2
        for client in clients:
            client.close()
        wait_until(lambda: not one.service.held, "what they sent is forgotten")
        assert one.extended().commit(record(FREE[0], bytes(BIG)))[0] == protocol.OK
        assert any("all under way has more than" in line for line in reasons(caplog))


def test_small_unfinished_frames_count_as_well(caplog, monkeypatch):
    with house(caplog, monkeypatch, limits=limits(memory=1 << 20, **PATIENT)) as one, one.honest.at_work():
        clients = [one.extended() for _ in range(100)]
        for client in clients:
            client.send(struct.pack(">LB", 1 << 20, protocol.COMMIT))
            client.send(bytes(100_000))
        wait_until(lambda: len(one.service.connections) < 2 + 15, "those that are too many are hung up on")


def test_memory_of_commits_that_are_asked_about(caplog, monkeypatch):
    """A commit whose client was asked, and does not answer, still takes up memory."""
    with house(caplog, monkeypatch, limits=limits(memory=8 << 20, **PATIENT)) as one:
        first = one.extended()
        assert first.commit(record(FREE[0]))[0] == protocol.OK
        clients = [one.extended() for _ in range(10)]
        for client in clients:
            client.load(FREE[0])
        assert first.commit(record(FREE[0], b"new"))[0] == protocol.OK
        for client in clients:
            client.send(commit_frame(record(FREE[0], bytes(BIG))))
        wait_until(lambda: one.service.metrics.violations >= 2, "most of them are hung up on")
        assert one.service.held >= 6 * BIG
        asked = 0
        for client in clients:
            try:
                assert client.answer()[0] == protocol.STALE
                assert client.request(protocol.CANCEL)[0] == protocol.OK
                asked += 1
            except (EOFError, ConnectionError):
                continue
        assert 6 <= asked <= 7
        wait_until(lambda: not one.service.held, "nothing is held")


LARGE_LOADS = {
    "durus-pipelined": (DurusWire, lambda count: (b"L" + oid(FREE[0])) * count),
    "durus-bulk": (DurusWire, lambda count: b"B" + struct.pack(">L", count) + oid(FREE[0]) * count),
    "pipelined": (ExtendedWire, lambda count: protocol.frame(protocol.LOAD, oid(FREE[0])) * count),
    "bulk": (ExtendedWire, lambda count: protocol.frame(protocol.BULK, oid(FREE[0]) * count)),
    "fetch": (ExtendedWire, lambda count: protocol.frame(protocol.FETCH, oid(FREE[0]) + bytes(3) + b"\1" * 5) * count),
    "rows": (ExtendedWire, lambda count: protocol.frame(protocol.ROWS, bytes(8) + b"\xff" * 8) * count),
}


@pytest.mark.parametrize("kind", LARGE_LOADS)
def test_answers_that_are_not_taken(caplog, monkeypatch, kind):
    """They do not pile up in the server; after a while the client is hung up on, or it goes on where it was."""
    monkeypatch.setattr(connection, "RATE", 1 << 30)
    connect, requests = LARGE_LOADS[kind]
    count = 1000
    with house(caplog, monkeypatch, limits=limits(handshake=30, stall=0.5)) as one:
        large = record(FREE[0], bytes(BIG), FREE[1])
        assert one.durus().commit(large, record(FREE[1], bytes(BIG)))[0] == protocol.OKAY
        before = peak_memory()
        clients = [connect(one.address, receive_buffer=4096) for _ in range(4)]
        one.clients += clients
        for client in clients:
            if connect is ExtendedWire:
                client.come_in()
            client.send(requests(count))
        with one.honest.at_work():
            wait_until(lambda: len(one.service.connections) <= 3, "they are hung up on")
        assert peak_memory() - before < 4 * 12 * BIG
        assert any("it does not take its answers" in line for line in reasons(caplog))


def peak_memory():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("kind", ["durus-pipelined", "durus-bulk", "pipelined", "bulk"])
def test_answers_that_are_taken_slowly(caplog, monkeypatch, kind):
    """None is missing, and their order is kept."""
    connect, requests = LARGE_LOADS[kind]
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one:
        found = record(FREE[0], bytes(30_000))
        assert one.durus().commit(found)[0] == protocol.OKAY
        client = connect(one.address, receive_buffer=4096)
        one.clients.append(client)
        if connect is ExtendedWire:
            client.come_in()
        client.send(requests(500))
        for _ in range(500):
            assert client.answer() in (found, (protocol.OK, found))
        if connect is ExtendedWire:
            assert client.request(protocol.PING)[0] == protocol.OK
        else:
            assert client.version() == protocol.DURUS_VERSION


@pytest.mark.parametrize("taken", [False, True])
def test_the_last_answers_of_one_who_is_hung_up_on(caplog, monkeypatch, taken):
    """They count as memory, and their client as a connection, until they are taken, or for so long and no longer."""
    monkeypatch.setattr(connection, "RATE", 1 << 30)
    with house(caplog, monkeypatch, limits=limits(frame=HUGE + 100, handshake=9, stall=9 if taken else 1)) as one:
        huge = record(FREE[0], bytes(HUGE))
        assert one.durus().commit(huge)[0] == protocol.OKAY
        client = one.durus(receive_buffer=4096)
        with one.honest.at_work():
            client.send(b"L", oid(FREE[0]))
            wait_until(lambda: stalled(one) and one.service.held > 1 << 20, "its answer is not taken")
            one.server._loop.call_soon_threadsafe(lambda: [each.end("the test") for each in stalled(one)])
            wait_until(lambda: one.service.lingering, "it has ended, but for its answer")
            assert one.service.door.present == len(one.service.connections) + 1
            assert one.service.held > 1 << 20
            if taken:
                assert client.answer() == huge
            wait_until(lambda: not one.service.lingering, "it is gone")
            wait_until(lambda: not one.service.held, "nothing is held")


def stalled(one):
    return [each for each in one.service.connections if each.takes_no_more]


def test_answers_that_are_not_taken_count_as_memory(caplog, monkeypatch):
    with house(caplog, monkeypatch, limits=limits(frame=HUGE + 100, memory=3 * HUGE, **PATIENT)) as one:
        assert one.extended().commit(record(FREE[0], bytes(HUGE)))[0] == protocol.OK
        with one.honest.at_work():
            clients = [one.extended(receive_buffer=4096) for _ in range(10)]
            for client in clients:
                client.send(protocol.frame(protocol.LOAD, oid(FREE[0])))
            wait_until(lambda: one.service.metrics.violations >= 5, "those that are too many are hung up on")
            wait_until(lambda: one.service.held <= 4 * HUGE, "their answers are forgotten")


@pytest.mark.parametrize("kind", ["durus", "extended"])
def test_100_000_requests_at_once(caplog, monkeypatch, kind):
    """They are answered in their order; the honest clients wait for no longer than for a few of them."""
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one:
        client = getattr(one, kind)()
        if kind == "durus":
            requests, answer = b"L" + oid(1) + b"S" + b"L" + oid(FREE[5]), None
        else:
            requests, answer = protocol.frame(protocol.LOAD, oid(1)) + protocol.frame(protocol.SYNC), None
        with one.honest.at_work():
            wait_until(lambda: len(one.honest.latencies) > 50, "the honest clients are at work")
            one.honest.latencies.clear()
            answer = client.converse([requests * (PIPELINED // (3 if kind == "durus" else 2))], quiet=0.5)
        assert len(answer) > PIPELINED * 5
        latencies = sorted(one.honest.latencies)
        assert latencies[len(latencies) // 2] < 0.2
        assert latencies[-1] < 5


def test_oids_by_the_million(caplog, monkeypatch):
    """Each 4,096 of them are reserved on the disk: others have turns between two such requests."""
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one, one.honest.at_work():
        client = one.extended()
        answer = client.converse([protocol.frame(protocol.OIDS, b"\0\0\x10\0") * 300], quiet=1)
        assert len(answer) == 300 * (5 + 4096 * 8)
    assert max(one.honest.latencies) < 5


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_rows_where_there_are_few(caplog, monkeypatch, type):
    """Looking through many oids without an object holds nobody up."""
    with house(caplog, monkeypatch, options={"type": type}, limits=limits(**PATIENT)) as one:
        client = one.extended()
        client.converse([protocol.frame(protocol.OIDS, b"\0\0\x10\0") * 40], quiet=1)
        client = one.extended()
        assert one.storage.engine.next_oid > 40 << 12
        with one.honest.at_work():
            kind, rows = client.request(protocol.ROWS, oid(0) + b"\xff" * 8)
            assert kind == protocol.OK
            assert len(protocol.unpack_rows(rows)) == 4
            assert client.request(protocol.ROWS, oid(4) + b"\xff" * 8) == (protocol.OK, b"")
            assert client.request(protocol.ROWS, b"\xff" * 16) == (protocol.OK, b"")
            assert client.request(protocol.FETCH, oid(3) + b"\xff" * 8)[0] == protocol.OK
    assert max(one.honest.latencies) < 5


@pytest.mark.parametrize("tid", [0, 1, 5, LONG_AGO, (1 << 64) - 1])
@pytest.mark.parametrize("known", [False, True])
def test_coming_back_from_anywhere(caplog, monkeypatch, tid, known):
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one:
        identity = one.storage.engine.identity if known else b"?" * 16
        for _ in range(20):
            one.honest.step()
        client = one.extended(come_in=False)
        kind, payload = client.come_in(identity + struct.pack(">Q", tid))
        assert kind == (protocol.OK if known and tid <= 5 else protocol.FORGET)
        assert payload[:16] == one.storage.engine.identity
        assert payload[24] == 3
        assert len(protocol.split_oids(payload[25:])) == (
            2 if kind == protocol.OK and tid > 0 else len(payload[25:]) // 8
        )
        client.send(protocol.frame(protocol.RESUME))
        assert client.is_over() == b""


def test_2000_connections(caplog, monkeypatch):
    """All are served; with more than the limit the others are hung up on. The honest clients go on."""
    with ManyDescriptors(2 * MANY), house(caplog, monkeypatch, limits=limits(connections=1500, **PATIENT)) as one:
        with one.honest.at_work():
            clients = [one.durus() for _ in range(MANY)]
            served = 0
            for client in clients:
                try:
                    served += client.version() == protocol.DURUS_VERSION
                except (ConnectionError, EOFError):
                    continue
            assert 1500 - 2 - 50 < served <= 1500 - 2
            for client in clients:
                client.close()
            wait_until(lambda: len(one.service.connections) == 2, "all are gone")
            clients = [one.durus() for _ in range(1490)]
            for client in clients:
                assert client.version() == protocol.DURUS_VERSION
        assert any("there are 1500 connections" in line for line in reasons(caplog))


class ManyDescriptors:
    """Raises the limit of this process on open files, if it may."""

    def __init__(self, wanted):
        self.wanted = 2 * wanted + SPARE_DESCRIPTORS
        self.before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def __enter__(self):
        if self.wanted > self.before[1]:
            pytest.skip(f"this process may have {self.before[1]} open files, and {self.wanted} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(self.before[0], self.wanted), self.before[1]))

    def __exit__(self, kind, error, trace):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.before)


def test_connections_of_an_address(caplog, monkeypatch):
    with house(caplog, monkeypatch, limits=limits(connections_per_address=4, **PATIENT)) as one:
        for _ in range(3):
            clients = [one.durus(source="127.0.0.2") for _ in range(10)]
            served = []
            for client in clients:
                try:
                    served.append(client.version())
                except (ConnectionError, EOFError):
                    continue
            assert len(served) == 4
            one.honest.step()
            one.settled()
        assert any("there are 4 connections from its address" in line for line in reasons(caplog))


def test_the_allow_list(caplog, monkeypatch):
    with house(caplog, monkeypatch, allow=["127.0.0.1/32"], limits=limits(**PATIENT)) as one:
        for kind in (one.durus, one.extended):
            client = kind(source="127.0.0.3", **({"come_in": False} if kind == one.extended else {}))
            assert client.is_over() == b""
        for _ in range(100):
            one.durus(source="127.0.0.3").reset()
        assert one.durus().version() == protocol.DURUS_VERSION
        assert any("its address is not admitted" in line for line in reasons(caplog))


def test_the_slow_loris_army(caplog, monkeypatch):
    """Hundreds at once, of all kinds, for as long as they may: commits of others take as long as ever."""
    with ManyDescriptors(1000), house(caplog, monkeypatch, limits=limits(handshake=1, stall=1)) as one:
        starts = (b"V", b"V\0\0\0\1L\0", b"S" + b"C", b"VBDB\1", b"VBDB\1\0\0\0\1R" + b"\0\0\1\0C" + MARK)
        with one.honest.at_work():
            for number in range(500):
                one.durus().send(starts[number % len(starts)])
            for client in one.clients:
                client.is_over()
        latencies = sorted(one.honest.latencies)
        assert latencies[-1] < 5
        assert latencies[len(latencies) // 2] < 0.2


def test_half_a_commit_and_silence(caplog, monkeypatch):
    """The others commit meanwhile as if it were not there, but for the turn of an old client: 20 ms, once."""
    with house(caplog, monkeypatch, limits=limits(**PATIENT)) as one:
        whole = durus_records(record(FREE[0], bytes(1000)))
        durus = one.durus()
        durus.begin()
        durus.send(whole[:500])
        other = one.extended()
        other.send(commit_frame(record(FREE[1], bytes(1000)))[:500])
        for _ in range(100):
            one.honest.step()
        latencies = sorted(one.honest.latencies)
        assert latencies[-1] < 5
        assert latencies[len(latencies) // 2] < 0.2
        durus.send(whole[500:])
        assert durus.read(1) == protocol.OKAY
        assert one.stored(FREE[0]) == record(FREE[0], bytes(1000))


def test_clients_whose_machine_is_gone_are_found_out(caplog, monkeypatch):
    with house(caplog, monkeypatch) as one:
        client = one.durus()
        client.version()
        for each in one.service.connections:
            sock = each._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
