"""What a server may send that is no server, or a hostile one: always one of our errors, soon, and never out of step."""

import contextlib
import json
import socket
import struct
import threading
import time

import pytest
from client_peers import Scripted
from concurrency import PATIENCE, run_threads
from durus.error import DurusError, DurusKeyError, ReadConflictError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berkeleydb_storage import protocol
from berkeleydb_storage.client import ClientStorage, channel, durus_link, refusals
from berkeleydb_storage.client.channel import Channel, ConnectionLost, pieces
from berkeleydb_storage.errors import (
    AccessDenied,
    AuthenticationError,
    CommitInDoubt,
    CommitRefused,
    CommitUnknown,
    DanglingReferenceError,
    DiskFullError,
    ServerError,
    ServerUnreachable,
    WireError,
)
from berkeleydb_storage.protocol import frame, pack_refusal
from berkeleydb_storage.testing.records import ROOT, accept, commit, record_of

EXAMPLES = 150
SHORT = 0.02
"""Seconds that a client waits for a server that talks nonsense and hangs up."""
OID = bytes(7) + b"\x07"
VERSION = b"BDB\1"
HELLO = frame(protocol.HELLO, json.dumps({"password": False, "frame": 1 << 20}).encode())
WELCOME = frame(protocol.OK, bytes(range(16)), struct.pack(">QB", 5, 7))
GREETING = VERSION + HELLO + WELCOME


def says(*messages, hang_up=True):
    """Return a peer that says this whatever it is told, and hangs up."""

    def serve(sock, number):
        sock.sendall(b"".join(messages))
        if hang_up:
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass

    return serve


@contextlib.contextmanager
def client_of(*messages, timeout=SHORT, **options):
    """A client whose server says this."""
    with Scripted(says(*messages, **options)) as dialer, ClientStorage(dialer=dialer, timeout=timeout) as client:
        yield client


OPERATIONS = {
    "load": lambda client: client.load(OID),
    "bulk": lambda client: list(client.bulk_load([OID, ROOT])),
    "prefetch": lambda client: client.prefetch([OID]),
    "rows": lambda client: list(client.gen_oid_record()),
    "reachable": lambda client: list(client.gen_oid_record(OID)),
    "oid": lambda client: client.new_oid(),
    "sync": lambda client: client.sync(),
    "commit": lambda client: commit(client, [record_of(OID)]),
    "nothing": lambda client: commit(client, []),
    "fate": lambda client: client.fate(bytes(16), 1),
    "ping": lambda client: client.ping(),
    "size": lambda client: client.get_size(),
    "information": lambda client: client.information(),
    "pack": lambda client: client.pack(),
    "backup": lambda client: client.backup(),
    "shutdown": lambda client: client.shutdown(),
}

oids = st.integers(0, 9).map(lambda number: number.to_bytes(8, "big"))
records = st.builds(record_of, oids, st.binary(max_size=20), st.lists(oids, max_size=3))
refusal_codes = st.sampled_from(
    ["ReadConflictError", "WriteConflictError", "CommitRefused", "SystemExit", "", "x" * 200]
)
refusal = st.builds(pack_refusal, refusal_codes, st.text(max_size=9), st.lists(oids, max_size=3))
payloads = st.one_of(
    st.binary(max_size=60),
    records,
    st.lists(records, max_size=4).map(lambda rows: b"".join(protocol.pack_rows(rows))),
    st.lists(oids, max_size=6).map(b"".join),
    refusal,
    st.just(b"{}"),
)
kinds = st.one_of(st.sampled_from(list(b"OKSIDEZpH")), st.integers(0, 255))
frames = st.one_of(
    st.builds(frame, kinds, payloads),
    st.binary(max_size=30),
    st.builds(struct.Struct(">LB").pack, st.sampled_from([0, 1, 2**20, 2**30, 2**30 + 1, 2**32 - 1]), kinds),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(answers=st.lists(frames, max_size=5), name=st.sampled_from(sorted(OPERATIONS)), fetching=st.booleans())
def test_answers(answers, name, fetching):
    """Whatever the answer, it is a result or one of our errors, and soon."""
    started = time.monotonic()
    with (
        contextlib.suppress(DurusError),
        Scripted(says(GREETING, *answers)) as dialer,
        ClientStorage(dialer=dialer, timeout=SHORT, prefetch=3 if fetching else 0) as client,
    ):
        OPERATIONS[name](client)
    assert time.monotonic() - started < PATIENCE


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.one_of(frames, st.sampled_from([VERSION, HELLO, WELCOME, b"\0\0\0\1"])), max_size=4))
def test_greetings(parts):
    """The same for what comes first."""
    with contextlib.suppress(DurusError), client_of(*parts) as client:
        client.load(OID)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(answer=st.binary(max_size=60), name=st.sampled_from(sorted(OPERATIONS)))
def test_durus_answers(answer, name):
    """The same for a server of Durus."""

    def serve(sock, number):
        says(b"\0\0\0\1" + (b"" if number % 2 else answer))(sock, number)

    with (
        contextlib.suppress(DurusError),
        Scripted(serve) as dialer,
        ClientStorage(dialer=dialer, timeout=SHORT) as client,
    ):
        OPERATIONS[name](client)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WireError),
        (b"BDB\2", WireError),
        (b"\0\0\0\0", AccessDenied),
        (VERSION + frame(protocol.ERROR, pack_refusal("AccessDenied", "no")), AccessDenied),
        (VERSION + frame(protocol.OK), WireError),
        (VERSION + frame(protocol.HELLO, b"[]"), WireError),
        (VERSION + frame(protocol.HELLO, b'{"password": 1, "frame": 1}'), WireError),
        (VERSION + frame(protocol.HELLO, b'{"password": false, "frame": 0}'), WireError),
        (VERSION + struct.pack(">LB", channel.MAX_GREETING + 1, protocol.HELLO), WireError),
        (VERSION + frame(protocol.HELLO, b'{"password": true, "frame": 9}'), AuthenticationError),
        (VERSION + HELLO + frame(protocol.OK, bytes(24)), WireError),
        (VERSION + HELLO + frame(protocol.OK, bytes(26)), WireError),
        (VERSION + HELLO + frame(protocol.ERROR, pack_refusal("AccessDenied", "no")), AccessDenied),
        (b"", ServerUnreachable),
    ],
)
def test_who_is_not_let_in(answer, error):
    """It is told why; where it makes no sense to try again, at once."""
    with Scripted(says(answer)) as dialer, pytest.raises(error):
        ClientStorage(dialer=dialer, timeout=SHORT)
    assert (dialer.dialed > 1) == (error is ServerUnreachable)


def test_password_is_shown_nowhere():
    """Not by what a client is printed as, nor by its errors."""
    secret = "s3cret"
    with Scripted(says(GREETING)) as dialer, ClientStorage(dialer=dialer, password=secret) as client:
        credentials = client._line.where._credentials
        assert credentials.password == secret
        assert secret not in f"{client!r} {client!s} {credentials!r} {credentials!s}"


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        (protocol.REFUSED, "WriteConflictError", CommitRefused.__bases__[1]),
        (protocol.REFUSED, "ReadConflictError", ReadConflictError),
        (protocol.REFUSED, "DanglingReferenceError", DanglingReferenceError),
        (protocol.REFUSED, "DiskFullError", DiskFullError),
        (protocol.REFUSED, "SomethingNew", CommitRefused),
        (protocol.DOUBT, "CommitInDoubt", CommitInDoubt),
        (protocol.ERROR, "AccessDenied", AccessDenied),
        (protocol.ERROR, "KeyboardInterrupt", ServerError),
    ],
)
def test_refused_commits(kind, code, error):
    """The class is the one that the code names, if it is one of those that it may name."""
    with client_of(GREETING, frame(kind, pack_refusal(code, "because", [OID]))) as client:
        with pytest.raises(error) as caught:
            commit(client, [record_of(OID)])
        if issubclass(error, CommitRefused):
            assert caught.value.oids == [OID]
            assert str(caught.value) == "because"


def test_refusals_name_their_classes():
    """So that the table does not name one that there is not."""
    assert type(refusals.failure(pack_refusal("DamagedError", "x"))).__name__ == "DamagedError"


def test_nonsense_as_answer_to_a_commit():
    """Nobody knows whether it is stored."""
    with client_of(GREETING, frame(protocol.HELLO)) as client, pytest.raises(CommitUnknown):
        commit(client, [record_of(OID)])


def test_conflict_found_after_the_fact():
    """A server that does not ask: no ``ConflictError`` may say that nothing is stored; the news are not lost."""
    told = frame(protocol.OK, struct.pack(">Q", 6), OID)
    with client_of(GREETING, told, frame(protocol.OK, struct.pack(">Q", 6))) as client:

        def refuse(oids):
            raise ReadConflictError(oids)

        client.begin()
        client.store(ROOT, record_of(ROOT))
        with pytest.raises(WireError, match="stored"):
            client.end(refuse)
        assert client.sync() == [OID]


def test_too_large_commit():
    """It is refused before anything is sent, with the server's limit."""
    with client_of(GREETING) as client, pytest.raises(CommitRefused, match=str(1 << 20)):
        commit(client, [record_of(OID, bytes(1 << 20))])


def test_bulk_load_keeps_in_step():
    """A missing object in the middle: what comes after it is read all the same."""
    answers = [frame(protocol.OK, record_of(ROOT)), frame(protocol.UNKNOWN_OBJECT), frame(protocol.OK, record_of(OID))]
    other = bytes(7) + b"\x08"
    with client_of(GREETING, *answers, frame(protocol.OK, record_of(other))) as client:
        found = client.bulk_load([ROOT, bytes(7) + b"\x09", OID])
        assert next(found) == record_of(ROOT)
        with pytest.raises(DurusKeyError):
            next(found)
        assert client.load(other) == record_of(other)


def test_progress_of_a_backup():
    """It is handed on until the result comes."""
    steps = [{"bytes": 1}, {"bytes": 2}]
    answers = [frame(protocol.PROGRESS, protocol.pack_json(step)) for step in steps]
    size = frame(protocol.OK, struct.pack(">QQ", 5, 0))
    with client_of(GREETING, size, *answers, frame(protocol.OK, b'{"path": "x"}')) as client:
        told = []
        assert client.backup(told.append) == {"path": "x"}
        assert told == steps


def test_record_of_another_object():
    """It is not handed on."""
    with client_of(GREETING, frame(protocol.OK, record_of(ROOT))) as client, pytest.raises(WireError):
        client.load(OID)


# --- the channel


@pytest.fixture
def ends():
    """A channel, and the socket at its other end."""
    near, far = socket.socketpair()
    with near, far:
        yield Channel(near, 0.05), far


def test_silent_server(ends):
    """After the time-out the connection is lost, and stays so."""
    mine, other = ends
    with pytest.raises(ConnectionLost, match=r"0\.05 s"):
        mine.receive()
    with contextlib.suppress(OSError):
        other.sendall(frame(protocol.OK))
    with pytest.raises(ConnectionLost, match="closed"):
        mine.receive()


def test_server_that_drips():
    """A byte now and then does not keep a client waiting for ever."""
    near, far = socket.socketpair()
    timeout = 0.2
    over = threading.Event()

    def drip():
        far.sendall(struct.pack(">LB", 1000, protocol.OK))
        with contextlib.suppress(OSError):
            while not over.wait(timeout / 10):
                far.sendall(b"x")

    def read():
        started = time.monotonic()
        with pytest.raises(ConnectionLost):
            Channel(near, timeout).receive()
        assert time.monotonic() - started < PATIENCE
        over.set()

    with near, far:
        run_threads(drip, read)


@given(sizes=st.lists(st.integers(0, 200_000), max_size=6), cut=st.integers(1, 100_000))
@settings(max_examples=30, deadline=None)
def test_frames_however_they_come(sizes, cut):
    """In pieces, or several at once."""
    near, far = socket.socketpair()
    stream = b"".join(frame(protocol.OK, b"%c" % (size % 251) * size) for size in sizes)

    def send():
        for at in range(0, len(stream), cut):
            far.sendall(stream[at : at + cut])

    def read():
        mine = Channel(near, PATIENCE)
        mine.limit = channel.MAX_FRAME
        for size in sizes:
            assert mine.receive() == (protocol.OK, b"%c" % (size % 251) * size)

    with near, far:
        run_threads(send, read)


def test_server_that_reads_nothing(ends):
    """Whoever sends to it is told that the message did not go out whole."""
    mine, _ = ends
    with pytest.raises(ConnectionLost) as caught:
        mine.send([bytes(1 << 20)] * 10)
    assert caught.value.unsent


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(1, 12))
def test_pieces(parts, size):
    """All of it, in order, nothing copied that is large enough by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel, "PIECE", size)
        found = list(pieces(parts))
    assert b"".join(found) == b"".join(parts)
    assert all(found)


def test_durus_commit_that_is_too_large(monkeypatch):
    """It is refused before anything is sent."""
    monkeypatch.setattr(durus_link, "MAX_COMMIT", 100)

    def serve(sock, number):
        says(b"\0\0\0\1")(sock, number)

    with Scripted(serve) as dialer, ClientStorage(dialer=dialer, timeout=SHORT) as client:
        client.begin()
        client.store(OID, record_of(OID, bytes(100)))
        with pytest.raises(CommitRefused, match="too large"):
            client.end(accept)
