"""Who makes the root object, where several clients find none, or where one goes without having made it."""

import pytest
from durus.connection import ROOT_OID, Connection

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.server import Server


@pytest.fixture
def address(open_storage):
    with Server(open_storage(), "127.0.0.1:0") as server:
        yield server.address


def test_who_goes_without_a_root_leaves_it_to_the_next(address):
    first = ClientStorage(address)
    with pytest.raises(KeyError):
        first.load(ROOT_OID)
    assert first.new_oid() == ROOT_OID
    first.close()
    with ClientStorage(address) as second:
        Connection(second).commit()
        assert second.load(ROOT_OID)


def test_the_oid_of_the_root_comes_once(address):
    """Also to a client that makes thousands of objects before the first of them is stored."""
    with ClientStorage(address) as client:
        with pytest.raises(KeyError):
            client.load(ROOT_OID)
        oids = [client.new_oid() for _ in range(5000)]
        assert oids[0] == ROOT_OID
        assert len(set(oids)) == len(oids)


def test_who_does_not_ask_for_the_root_does_not_get_its_oid_again(address):
    with ClientStorage(address) as client, ClientStorage(address) as other:
        assert client.new_oid() == ROOT_OID
        assert other.new_oid() != ROOT_OID


def test_with_a_root_nobody_gets_its_oid(directory):
    with BerkeleyDBStorage(directory) as storage, Server(storage, "127.0.0.1:0") as server:
        Connection(storage)
        with ClientStorage(server.address) as client:
            client.load(ROOT_OID)
            assert ROOT_OID not in [client.new_oid() for _ in range(100)]
