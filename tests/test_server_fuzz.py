"""The server is sent rubbish: frames of both protocols, mutated in every way, and bytes without any sense.

Meanwhile two honest clients go on; afterwards nothing that they were acknowledged is missing, and nothing is left over.
"""

import random
import struct
import time
from contextlib import suppress
from functools import partial
from os import environ

import pytest
from graphs import oid
from wire import FREE, HUBS, MARK, commit_frame, durus_records, frames, house, limits, record

from berkeleydb_storage import GarbageThread, protocol

QUICK_FRAMES = 2_500
"""Of each protocol."""
FRAMES = int(environ.get("FUZZ_FRAMES", "60000"))
"""Of each protocol, in the slow test."""
CONVERSATION = 24
"""Frames that are sent over one connection at most."""
PROMPT = {"garbage_collection": GarbageThread(grace=0, interval=0.02, pack_interval=None)}
ANSWERS = set(b"HOKSIDEZp")
SECRETS = (b"Traceback", b"/dev/shm", b"Error(")
COUNTS = (0, 1, 2, 255, 1 << 12, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


class Fuzzer:
    """Makes conversations: lists of pieces to be sent. The same seed makes the same ones."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.frames = 0
        self.madness = 0.0

    def pick(self, *makers):
        return self.random.choice(makers)()

    def number(self):
        """An oid that is no honest client's: handed out, perhaps stored, or never handed out."""
        return self.random.choice((self.random.choice(FREE), self.random.choice(FREE[:20]), 1 << 20, (1 << 64) - 1))

    def oid(self):
        return oid(self.random.choice((0, 1, HUBS, self.number(), self.number(), self.number())))

    def oids(self):
        return b"".join(self.oid() for _ in range(self.random.choice((0, 1, 2, 5, 70))))

    def count(self):
        return struct.pack(">L", self.random.choice(COUNTS))

    def record(self):
        """A record, most of the time one that could be stored."""
        mad = self.random.random() < self.madness / 10
        number = self.number() if mad else self.random.choice(FREE[:60])
        referred = [self.referred() for _ in range(self.random.choice((0, 0, 1, 3)))]
        made = record(number, self.random.randbytes(self.random.choice((0, 1, 20, 300))), *referred)
        return made[:8] + self.mutate(made[8:]) if mad else made

    def referred(self):
        """The number of an object to refer to: mostly one that is there."""
        return self.random.randint(1, HUBS) if self.random.random() < 0.98 else self.random.choice(FREE[:60])

    def records(self):
        return [self.record() for _ in range(self.random.choice((0, 1, 1, 2, 5, 70)))]

    def mutate(self, data):
        """Change something of the data."""
        data, way = bytearray(data), self.random.randrange(7)
        at = self.random.randrange(len(data) + 1)
        if way == 0 and data:
            data[at - 1] ^= 1 << self.random.randrange(8)
        elif way == 1:
            del data[at:]
        elif way == 2:
            data[at:at] = self.random.randbytes(self.random.choice((1, 4, 8, 40)))
        elif way == 3:
            data[at : at + 4] = self.count()
        elif way == 4:
            data += data[at:]
        elif way == 5 and data:
            data[:5] = self.random.randbytes(min(5, len(data)))
        else:
            del data[: self.random.choice((1, 4, 8))]
        return bytes(data)

    def frame(self):
        """Something like a request."""
        self.frames += 1
        if self.random.random() >= self.madness:
            return self.request()
        if self.random.random() < 0.2:
            return self.random.randbytes(self.random.choice((1, 5, 30, 2000)))
        return self.mutate(self.request())

    def conversation(self):
        """Return what is sent over one connection, cut into pieces anywhere."""
        self.madness = self.random.choice((0.0, 0.05, 0.2, 0.6))
        count = self.random.randint(1, CONVERSATION)
        data = self.opening() + b"".join(self.frame() for _ in range(count))
        cuts = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.choice((0, 0, 3, 30))))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if end > start]


class OfDurus(Fuzzer):
    def opening(self):
        return self.random.choice((b"", *[b"V\0\0\0\1"] * 8, b"V\0\0\0\2"))

    def request(self):
        return self.pick(
            lambda: b"L" + self.oid(),
            lambda: b"N",
            lambda: b"M" + self.random.randbytes(1),
            lambda: b"S",
            lambda: b"B" + struct.pack(">L", len(oids := self.oids()) // 8) + oids,
            lambda: b"C" + durus_records(*self.records()),
            lambda: b"C" + durus_records(*self.records()),
            lambda: b"C" + bytes(4),
            lambda: b"V\0\0\0\1",
            lambda: self.random.choice((b"P", b"Q", b".", b"C", b"S", b"N")) if self.random.random() < 0.2 else b"S",
        )

    def judge(self, data):
        assert not any(secret in data for secret in SECRETS)


class OfExtended(Fuzzer):
    def opening(self):
        again = protocol.frame(protocol.RESUME, self.random.randbytes(16), self.oid())
        welcome = self.random.choice((b"", again, *[protocol.frame(protocol.RESUME)] * 6))
        return b"VBDB" + self.random.choice((b"\1", b"\xff", b"\0")) + welcome

    def request(self):
        limits = self.oid() + self.count() + self.count()
        return self.pick(
            lambda: protocol.frame(protocol.LOAD, self.oid()),
            lambda: protocol.frame(protocol.FETCH, limits),
            lambda: protocol.frame(protocol.ROWS, limits),
            lambda: protocol.frame(protocol.BULK, self.oids()),
            lambda: protocol.frame(protocol.OIDS, struct.pack(">L", self.random.choice((1, 3, 4096)))),
            lambda: protocol.frame(protocol.SYNC),
            lambda: protocol.frame(protocol.PING),
            lambda: commit_frame(*self.records(), mark=self.mark()),
            lambda: commit_frame(*self.records(), mark=self.mark()),
            lambda: commit_frame(*self.records(), mark=self.mark()),
            lambda: protocol.frame(protocol.FATE, self.mark(), self.oid()),
            lambda: protocol.frame(protocol.AUTHENTICATE, self.random.randbytes(9)),
            lambda: protocol.frame(self.random.choice(b"IPWQAIPWQAGXR")) if self.rarely() else b"\0\0\0\1T",
        )

    def rarely(self):
        return self.random.random() < 0.3

    def mark(self):
        return self.random.choice((MARK, self.random.randbytes(16), self.random.randbytes(16)))

    def judge(self, data):
        """What came are whole frames of the types that there are."""
        assert not any(secret in data for secret in SECRETS)
        greeting, found, left = frames(data)
        if greeting:
            assert greeting == b"BDB\1"
            assert {kind for kind, _ in found} <= ANSWERS
            assert not left
            for kind, payload in found:
                if kind in b"DE":
                    protocol.unpack_refusal(payload)


PROTOCOLS = {"durus": (OfDurus, {}), "extended": (OfExtended, {"come_in": False})}


def bombard(one, fuzzer, connect, wanted):
    """Send frames until there were so many, each conversation over a connection of its own."""
    while fuzzer.frames < wanted:
        pieces = fuzzer.conversation()
        with connect() as client:
            if fuzzer.random.random() < 0.1:
                with suppress(ConnectionError):
                    client.send(*pieces)
                client.reset()
            else:
                fuzzer.judge(client.converse(pieces))
        one.clients.clear()


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("seed", [1])
def test_a_few(caplog, monkeypatch, kind, seed):
    fuzz(caplog, monkeypatch, kind, seed, QUICK_FRAMES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROTOCOLS)
def test_many(caplog, monkeypatch, kind, capsys):
    seconds, made, stored, latencies = fuzz(caplog, monkeypatch, kind, 2, FRAMES)
    with capsys.disabled():
        print(
            f"\n{kind}: {made:,} frames in {seconds:.0f} s, {made / seconds:,.0f}/s, {stored:,} commits among them; "
            f"honest commits {len(latencies):,}, the slowest {max(latencies) * 1e3:.0f} ms"
        )


def fuzz(caplog, monkeypatch, kind, seed, wanted):
    make, options = PROTOCOLS[kind]
    fuzzer = make(seed)
    caplog.handler.setLevel("WARNING")
    with house(caplog, monkeypatch, options=PROMPT, limits=limits(handshake=5, stall=5)) as one:
        started = time.perf_counter()
        with one.honest.at_work():
            bombard(one, fuzzer, partial(getattr(one, kind), **options), wanted)
        seconds = time.perf_counter() - started
        latencies = one.honest.latencies
        stored = one.service.metrics.commits - len(latencies)
    assert stored > fuzzer.frames // 100
    assert max(latencies) < 5
    return seconds, fuzzer.frames, stored, latencies
