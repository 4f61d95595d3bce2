"""Scripted clients that send what a test says, byte by byte if need be; and a server in this process to send it to."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from concurrency import PATIENCE
from conftest import check_directory
from durus.client_storage import ClientStorage
from durus.serialize import pack_record
from graphs import MEMORY, hand_out, oid

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual, protocol
from berkeleydb_storage.server import Limits, Server, serving
from berkeleydb_storage.transport.addresses import parse_address

MARK = b"the tests' marks"
LONG_AGO = 1 << 40
CHUNK = 1 << 16
QUIET = 0.004
"""Seconds without an answer after which none is expected."""
HUBS = 3
"""Objects of the honest clients: the root refers to them."""
FREE = range(100, 3000)
"""Numbers of oids that were handed out, to nobody in particular."""


def wait_until(true, what):
    """Wait until something has become true in another thread."""
    until, pause = time.monotonic() + PATIENCE, threading.Event()
    while not true():
        assert time.monotonic() < until, f"never: {what}"
        pause.wait(0.002)


def record(number, data=b"", *refs):
    return pack_record(oid(number), data, b"".join(map(oid, refs)))


def durus_records(*records):
    """Return what follows `C` in Durus' protocol."""
    body = b"".join(protocol.pack_records((each[:8], each) for each in records))
    return struct.pack(">L", len(body)) + body


def commit_frame(*records, mark=MARK):
    return protocol.frame(protocol.COMMIT, mark, *protocol.pack_records((each[:8], each) for each in records))


class Wire:
    """A socket to a server; every wait has an end."""

    def __init__(self, address, *, receive_buffer=None, source=None):
        found = parse_address(address)
        self.socket = socket.socket(socket.AF_UNIX if found.is_unix else socket.AF_INET)
        self.socket.settimeout(PATIENCE)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        try:
            self.socket.connect(found.path if found.is_unix else (found.host, found.port))
        except OSError:
            self.socket.close()
            raise
        if not found.is_unix:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    def read(self, size):
        parts, left = [], size
        while left:
            part = self.socket.recv(min(left, 1 << 20))
            if not part:
                raise EOFError(f"the server hung up, and {left} of {size} bytes are missing")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def int4(self):
        return struct.unpack(">L", self.read(4))[0]

    def is_over(self):
        """Wait for the server to hang up; return what it sent before."""
        parts = []
        try:
            while part := self.socket.recv(CHUNK):
                parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)

    def reset(self):
        """Vanish as a killed process with unread data does: RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def converse(self, pieces, quiet=QUIET, patience=PATIENCE):
        """Send the pieces while reading whatever comes, until nothing comes for `quiet` seconds; hang up.

        Return what was read until the server hung up as well.
        """
        self.socket.setblocking(False)
        received, pieces, until = [], list(pieces), time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while True:
                assert time.monotonic() < until, "the server neither answers nor hangs up"
                events = selector.select(quiet)
                if not events and not pieces:
                    self._hang_up()
                for _, event in events:
                    try:
                        if event & selectors.EVENT_READ:
                            part = self.socket.recv(CHUNK)
                            if not part:
                                return b"".join(received)
                            received.append(part)
                        if event & selectors.EVENT_WRITE:
                            self._push(pieces, selector)
                    except BlockingIOError:
                        continue
                    except OSError:  # the server hung up in the middle
                        return b"".join(received)

    def _push(self, pieces, selector):
        if pieces:
            sent = self.socket.send(pieces[0])
            pieces[0] = pieces[0][sent:]
            if not pieces[0]:
                del pieces[0]
        if not pieces:
            selector.modify(self.socket, selectors.EVENT_READ)

    def _hang_up(self):
        with suppress(OSError):  # the server did, just now
            self.socket.shutdown(socket.SHUT_WR)


class DurusWire(Wire):
    """A client that speaks Durus' protocol."""

    def version(self):
        self.send(b"V\0\0\0\1")
        return self.read(4)

    def load(self, number):
        self.send(b"L", oid(number))
        return self.answer()

    def answer(self):
        """Return the record that a load is answered with, or the status."""
        status = self.read(1)
        return self.read(self.int4()) if status == protocol.OKAY else status

    def new_oids(self, count):
        self.send(b"M", bytes([count]))
        return protocol.split_oids(self.read(8 * count))

    def told(self):
        return protocol.split_oids(self.read(8 * self.int4()))

    def sync(self):
        self.send(b"S")
        return self.told()

    def begin(self):
        """Send `C`, and return what others changed."""
        self.send(b"C")
        return self.told()

    def commit(self, *records):
        news = self.begin()
        self.send(durus_records(*records))
        return self.read(1), news


class ExtendedWire(Wire):
    """A client that speaks the extended protocol."""

    def greet(self, version=protocol.EXTENDED_VERSION):
        self.send(b"V", protocol.EXTENDED, bytes([version]))
        assert self.read(4) == protocol.EXTENDED + b"\1"
        kind, hello = self.answer()
        assert kind == protocol.HELLO
        return protocol.unpack_json(hello)

    def come_in(self, payload=b""):
        self.greet()
        return self.request(protocol.RESUME, payload)

    def answer(self):
        """Return the type and payload of the next frame."""
        length, kind = protocol.HEADER.unpack(self.read(5))
        return kind, self.read(length - 1)

    def request(self, kind, *parts):
        self.send(protocol.frame(kind, *parts))
        return self.answer()

    def load(self, number):
        return self.request(protocol.LOAD, oid(number))

    def commit(self, *records, mark=MARK):
        self.send(commit_frame(*records, mark=mark))
        return self.answer()


def frames(data):
    """Take the stream of a server apart: greeting, whole frames, and what is left over."""
    greeting, at, found = data[:4], 4, []
    while at + 5 <= len(data):
        length, kind = protocol.HEADER.unpack_from(data, at)
        if at + 4 + length > len(data):
            break
        found.append((kind, data[at + 5 : at + 4 + length]))
        at += 4 + length
    return greeting, found, data[at:]


class Honest:
    """Two well-behaved clients, of either protocol, that count up an object of their own, and look what they have."""

    def __init__(self, address):
        found = parse_address(address)
        self.durus = ClientStorage(found.path) if found.is_unix else ClientStorage(found.host, found.port)
        self.durus.s.settimeout(PATIENCE)
        self.extended = ExtendedWire(address)
        self.extended.come_in()
        self.acknowledged = {1: 0, 2: 0}
        self.latencies = []

    def step(self):
        """Commit and load, with both."""
        for number, commit, load in ((1, self._by_durus, self._durus_load), (2, self._extended, self._extended_load)):
            count = self.acknowledged[number] + 1
            started = time.perf_counter()
            commit(record(number, b"%d" % count))
            self.latencies.append(time.perf_counter() - started)
            self.acknowledged[number] = count
            assert load(number) == record(number, b"%d" % count)

    def _by_durus(self, one):
        self.durus.begin()
        self.durus.store(one[:8], one)
        self.durus.end(lambda oids: None)

    def _durus_load(self, number):
        return self.durus.load(oid(number))

    def _extended(self, one):
        kind, payload = self.extended.commit(one, mark=os.urandom(16))
        while kind == protocol.STALE:
            kind, payload = self.extended.request(protocol.GO_ON)
        assert kind == protocol.OK, (chr(kind), payload)

    def _extended_load(self, number):
        kind, payload = self.extended.load(number)
        assert kind == protocol.OK, (chr(kind), payload)
        return payload

    @contextmanager
    def at_work(self):
        """Let them go on in a thread of their own; at the end, raise what went wrong there."""
        over, failures = threading.Event(), []

        def work():
            try:
                while not over.is_set():
                    self.step()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=work, name="honest clients", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the honest clients hang"
        if failures:
            raise failures[0]

    def close(self):
        self.durus.s.close()
        self.extended.close()


class House:
    """A server on a storage with some objects, the honest clients, and a look afterwards whether all is well."""

    def __init__(self, path, address="127.0.0.1:0", *, options=(), **server_options):
        self.path = path
        options = {"garbage_collection": GarbageManual(), "checkpoint": CheckpointNever(), **dict(options)}
        self.storage = BerkeleyDBStorage(path, **options)
        hand_out(self.storage, FREE.stop)
        self.storage.begin()
        for one in (record(0, b"", *range(1, HUBS + 1)), *(record(hub, b"0") for hub in range(1, HUBS + 1))):
            self.storage.store(one[:8], one)
        self.storage.end()
        self.server = Server(self.storage, address, **server_options)
        self.server.start()
        self.address = self.server.address
        self.honest = Honest(self.address)
        self.clients = []

    @property
    def service(self):
        return self.server.service

    def durus(self, **options):
        client = DurusWire(self.address, **options)
        self.clients.append(client)
        return client

    def extended(self, *, come_in=True, **options):
        client = ExtendedWire(self.address, **options)
        self.clients.append(client)
        if come_in:
            client.come_in()
        return client

    def stored(self, number):
        """Return the record of an object, None where there is none, from the storage itself."""
        return self.storage.engine.get(oid(number))

    def settled(self):
        """Wait until all attackers are gone, and see that the server has nothing of them left."""
        for client in self.clients:
            client.close()
        service, desk = self.service, self.service.desk
        wait_until(lambda: len(service.connections) == 2, "the attackers are gone")
        wait_until(lambda: not service.lingering and service.door.present == 2, "their sockets are closed")
        wait_until(lambda: desk.idle and desk.turns.holder is None, "their commits are done")
        wait_until(lambda: not service.held, "nothing is held")
        assert not service._handshakes
        assert not desk.hold._blocked
        assert not desk.groups._readers
        self.honest.step()
        assert set(service.oids._of) <= set(service.connections)

    def finish(self):
        """Close everything; what was acknowledged is there, and the storage is in order."""
        self.settled()
        self.honest.close()
        wait_until(lambda: not self.service.connections, "the honest clients are gone")
        assert not self.service.oids._all
        assert not self.service.oids._of
        started = time.monotonic()
        self.server.close()
        assert time.monotonic() - started < 5
        for number, count in self.honest.acknowledged.items():
            assert self.stored(number) == record(number, b"%d" % count)
        self.abandon()
        check_directory(self.path)

    def abandon(self):
        for client in self.clients:
            client.close()
        self.honest.close()
        self.server.close()
        self.storage.close()


SMALL = {"frame": 1 << 22, "handshake": 0.25, "stall": 0.25}
"""Limits for tests that wait until they take effect."""


@contextmanager
def house(caplog, monkeypatch, path=None, **options):
    """A `House` that looks after its connections very often; nothing in its log may be a fault of the server."""
    monkeypatch.setattr(serving, "TICK", 0.02)
    caplog.set_level(logging.DEBUG, "berkeleydb_storage")
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        one = House(Path(path or scratch), **options)
        try:
            yield one
        except BaseException:
            one.abandon()
            raise
        one.finish()
    faults = [each for each in caplog.records if each.exc_info or each.levelno >= logging.ERROR]
    assert not faults, [(each.getMessage(), each.exc_info) for each in faults]
    assert "a fault of the server" not in caplog.text


def limits(**changes):
    return Limits(**{**SMALL, **changes})


def reasons(caplog):
    """Return the lines of the log that tell of ended connections."""
    return [each.getMessage() for each in caplog.records if "reason=" in each.getMessage()]
