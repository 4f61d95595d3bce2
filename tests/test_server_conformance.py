"""The conformance suite through the server, with a plain Durus client."""

from types import MappingProxyType

import pytest
from conftest import check_directory
from durus.client_storage import ClientStorage
from durus.connection import ROOT_OID, Connection
from durus.error import ProtocolError, ReadConflictError
from durus.persistent_dict import PersistentDict
from test_conformance import EXPECTED

from berkeleydb_storage import BerkeleyDBStorage, GarbageManual
from berkeleydb_storage.client import ClientStorage as OurClient
from berkeleydb_storage.server import Server
from berkeleydb_storage.testing import StorageConformance
from berkeleydb_storage.transport.addresses import parse_address

CLOSED = (OSError, ValueError, ProtocolError)


class Behind(StorageConformance):
    """A client of a server on a storage, both in this process."""

    refuses_dangling = True
    several_clients = True
    closed_errors = CLOSED
    packs = True

    def serve(self, directory):
        raise NotImplementedError

    def client(self, server):
        raise NotImplementedError

    def make_storage(self, directory):
        self._inner = BerkeleyDBStorage(directory, garbage_collection=GarbageManual())
        self._server = Server(self._inner, "127.0.0.1:0")
        self._server.start()
        return self.client(self._server)

    def another(self, storage):
        return self.client(self._server)

    def pack(self, storage):
        storage.pack()
        self._server.service.finish_packing()

    def close_storage(self, storage):
        storage.close()
        self._server.close()
        self._inner.close()

    def check_storage(self, directory):
        check_directory(directory)


class TestDurusClient(Behind):
    """Durus' own client."""

    expected_failures = MappingProxyType(EXPECTED["ClientStorage"])

    def client(self, server):
        address = parse_address(server.address)
        return ClientStorage(address.host, address.port)


def test_who_has_nothing_yet_begins_with_what_there_is(directory):
    """Others may store the root again and again while a ``Connection`` is made: that is no conflict."""
    with BerkeleyDBStorage(directory) as storage, Server(storage, "127.0.0.1:0") as server:
        address = parse_address(server.address)
        client = ClientStorage(address.host, address.port)
        connection = Connection(storage.session())
        connection.get_root()["one"] = 1
        connection.commit()
        assert client.load(ROOT_OID) == connection.get_storage().load(ROOT_OID)
        connection.get_root()["two"] = 2
        connection.commit()
        with pytest.raises(ReadConflictError):
            client.load(ROOT_OID)
        client.close()
        client.s.close()


def test_who_comes_back_from_far_behind_is_told_in_slices(directory, monkeypatch):
    """And of everything, also of what others change meanwhile."""
    monkeypatch.setattr("berkeleydb_storage.server.service.CAUGHT_UP", 3)
    with BerkeleyDBStorage(directory) as storage, Server(storage, "127.0.0.1:0") as server:
        connection = Connection(storage.session())
        connection.get_root()["boxes"] = [PersistentDict() for _ in range(40)]
        connection.commit()
        boxes = connection.get_root()["boxes"]
        with Connection(OurClient(server.address)).get_storage() as client:
            mine = Connection(client)
            assert [dict(box) for box in mine.get_root()["boxes"]] == [{}] * 40
            for number, box in enumerate(boxes):
                box["n"] = number
                connection.commit()
            client._line.drop()
            mine.abort()
            assert [box["n"] for box in mine.get_root()["boxes"]] == list(range(40))
