"""Golden traces of the extended protocol: what clients sent, and what the first server that spoke it answered.

The files in golden/wire are pinned: a server of any later version that speaks this version of the protocol answers so.
A line is a client's name, a direction, and what goes that way in hexadecimal, in fields for those who read it:

- ``a> 00000009 4c 0000000000000000`` is sent;
- ``a< 00000001 4b`` is the answer, exactly; ``identity`` stands for 16 bytes, always the same, in either direction;
- ``a<json 48 software version`` is a frame of this type (here H) with a JSON object that has these keys, at least;
- ``a<begins 49 0d`` is a frame of this type whose payload begins so: what follows is a message for people;
- ``a<any 70`` are frames of this type, or none;
- ``a<end`` is the end of the connection.
"""

import contextlib
from pathlib import Path
from socket import MSG_PEEK

import pytest
from conftest import check_directory
from wire import ExtendedWire

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual, protocol
from berkeleydb_storage.server import Server

TRACES = sorted((Path(__file__).parent / "golden" / "wire").glob("*.txt"))
TABLE = Path(__file__).parents[1] / "docs" / "PROTOCOL.md"


class Replay:
    """Sends what a trace says, and compares what is answered."""

    def __init__(self, address):
        self.address = address
        self.clients = {}
        self.identity = None

    def line(self, text):
        name, (way, *fields) = text[0], text[1:].split()
        if name not in self.clients:
            self.clients[name] = ExtendedWire(self.address)
        ways = {">": self.send, "<": self.exactly, "<end": self.end}
        ways |= {"<json": self.json, "<begins": self.begins, "<any": self.any}
        ways[way](self.clients[name], fields)

    def send(self, client, fields):
        client.send(*(self.identity if field == "identity" else bytes.fromhex(field) for field in fields))

    def exactly(self, client, fields):
        for field in fields:
            if field == "identity":
                found = client.read(16)
                assert self.identity in (None, found)
                self.identity = found
            else:
                assert client.read(len(field) // 2).hex() == field, fields

    def json(self, client, fields):
        kind, payload = client.answer()
        assert f"{kind:02x}" == fields[0]
        assert set(fields[1:]) <= set(protocol.unpack_json(payload))

    def begins(self, client, fields):
        kind, payload = client.answer()
        assert f"{kind:02x}" == fields[0]
        assert payload.hex().startswith("".join(fields[1:])), payload

    def any(self, client, fields):
        """Skip frames up to one of another type, which stays to be read."""
        while client.socket.recv(5, MSG_PEEK)[4:] == bytes.fromhex(fields[0]):
            client.answer()

    def end(self, client, fields):
        assert client.is_over() == b""

    def close(self):
        for client in self.clients.values():
            client.close()


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_a_trace(tmp_path, trace):
    directory, backups = tmp_path / "storage", tmp_path / "backups"
    directory.mkdir()
    backups.mkdir()
    policies = {"garbage_collection": GarbageManual(), "checkpoint": CheckpointNever()}
    with (
        BerkeleyDBStorage(directory, **policies) as storage,
        Server(storage, f"unix:{tmp_path}/socket", backup_to=backups) as server,
        contextlib.closing(Replay(server.address)) as replay,
    ):
        for line in lines(trace):
            replay.line(line)
    check_directory(directory)


def lines(trace):
    return [line for line in trace.read_text().splitlines() if line and not line.startswith("#")]


def test_there_is_one_for_each_request():
    """That is, for each row of the table in the document."""
    table = TABLE.read_text().split("## The extended protocol")[1].split("\n## ")[0]
    documented = {line[3:4].encode() for line in table.splitlines() if line.startswith("| `")}
    sent = {bytes.fromhex(line.split()[2]) for trace in TRACES for line in lines(trace) if line[1:3] == "> "}
    assert documented <= sent
    assert documented == {bytes([kind]) for kind in KINDS - {protocol.AUTHENTICATE}}


KINDS = set(b"LFBNSCGXYTIPWQZAR")
