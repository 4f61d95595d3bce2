"""The conformance suite on the client storage, at every server and over every kind of connection."""

import tempfile
from pathlib import Path
from types import MappingProxyType

import pytest
import trustme
from conftest import check_directory
from served import Served, free_port

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.server import Server
from berkeleydb_storage.testing import StorageConformance
from berkeleydb_storage.transport.tls import ServerCertificates

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


class Ours(StorageConformance):
    """Our server, in this process."""

    validates_records = True
    refuses_dangling = True
    has_size = True
    several_clients = True
    expected_failures = MappingProxyType(AT_THE_END)
    address = "127.0.0.1:0"
    options = MappingProxyType({})
    server_options = MappingProxyType({})

    def make_storage(self, directory):
        self.storage = BerkeleyDBStorage(directory, durable=False)
        self.server = Server(self.storage, self.address, **self.server_options)
        self.server.start()
        self.clients = []
        return self.another(None)

    def another(self, storage):
        self.clients.append(ClientStorage(self.server.address, timeout=10, **self.options))
        return self.clients[-1]

    def close_storage(self, storage):
        for client in self.clients:
            client.close()
        self.server.close()
        self.storage.close()

    def pack(self, storage):
        self.storage.pack()

    def check_storage(self, directory):
        check_directory(directory)


class TestTcp(Ours):
    """The default."""


class TestPrefetching(Ours):
    options = MappingProxyType({"prefetch": 7})
    expected_failures = MappingProxyType(
        AT_THE_END | {"test_read_conflict": "what was prefetched is as old as what was read before: no conflict"}
    )


class TestUnixSocket(Ours):
    def make_storage(self, directory):
        self.address = f"unix:{tempfile.mkdtemp(prefix='client-')}/socket"
        return super().make_storage(directory)

    def close_storage(self, storage):
        super().close_storage(storage)
        Path(self.address.removeprefix("unix:")).parent.rmdir()


@pytest.fixture(scope="class")
def certificates(request, tmp_path_factory):
    """A certificate for localhost, and the authority that signed it."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("certificates")
    authority.cert_pem.write_to_path(path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path / "server.pem")
    request.cls.options = {"ca": path / "ca.pem"}
    request.cls.server_options = {"certificates": ServerCertificates(path / "server.pem", path / "server.pem")}


@pytest.mark.usefixtures("certificates")
class TestTls(Ours):
    address = "tls://localhost:0"
