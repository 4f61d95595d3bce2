"""The conformance suite on the client storage, at every server and over every kind of connection."""

from types import MappingProxyType

from conftest import check_directory
from served import Served, free_port

from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.testing import StorageConformance

AT_THE_END = {
    "test_unknown_oid_is_refused": "the server finds it out at the end of the commit",
    "test_goes_on_after_an_unknown_oid": "as test_unknown_oid_is_refused",
}


class TestBehindDurusServer(StorageConformance):
    """Durus' own server, which the client speaks Durus' protocol to."""

    validates_records = True
    refuses_dangling = True
    several_clients = True
    expected_failures = MappingProxyType(
        AT_THE_END | {"test_goes_on_after_an_unknown_oid": "the ValueError of its storage ends Durus' server"}
    )

    def make_storage(self, directory):
        self.served = Served(directory, port=free_port())
        self.clients = []
        return self.another(None)

    def another(self, storage):
        self.clients.append(ClientStorage(self.served.address, timeout=10))
        return self.clients[-1]

    def close_storage(self, storage):
        for client in self.clients:
            client.close()
        self.served.stop()

    def pack(self, storage):
        self.served.pack(storage)

    def check_storage(self, directory):
        check_directory(directory)
