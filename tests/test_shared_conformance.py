"""The conformance suite on shared storages: of the owner, of another process, and of both at once."""

from types import MappingProxyType

import pytest
from conftest import check_directory
from shared_child import Child

from berkeleydb_storage import SharedStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.testing import StorageConformance

AT_THE_END = {
    "test_unknown_oid_is_refused": "the owner finds it out at the end of the commit",
    "test_goes_on_after_an_unknown_oid": "as test_unknown_oid_is_refused",
}


class Shared(StorageConformance):
    validates_records = True
    refuses_dangling = True
    has_size = True
    several_clients = True
    expected_failures = MappingProxyType(AT_THE_END)
    options = MappingProxyType({"durable": False})

    def make_storage(self, directory):
        self.opened = [SharedStorage(directory, **self.options)]
        return self.opened[0]

    def another(self, storage):
        self.opened.append(SharedStorage(self.directory, **self.options))
        return self.opened[-1]

    def close_storage(self, storage):
        for each in self.opened:
            each.close()

    def pack(self, storage):
        storage.pack()
        while storage.information()["packing"]:
            storage.ping()

    def check_storage(self, directory):
        check_directory(directory)


class TestOwner(Shared):
    """Both clients in the process that owns it."""


class Mixed(Shared):
    def connect(self):
        self.opened.append(ClientStorage(f"unix:{self.directory}/socket", timeout=10))
        return self.opened[-1]


class TestOwnerAndClient(Mixed):
    """The owner's own link, and a connection beside it."""

    def another(self, storage):
        return self.connect()


@pytest.mark.slow
class TestClientAndOwner(Mixed):
    options = MappingProxyType({"durable": False, "type": "hash"})

    def make_storage(self, directory):
        super().make_storage(directory)
        return self.connect()


@pytest.fixture(scope="class")
def neighbour(request):
    """A process that is going to own what the tests open."""
    request.cls.child = Child(None)
    yield
    request.cls.child.end()


@pytest.mark.usefixtures("neighbour")
class TestOwnedByAnotherProcess(Shared):
    def make_storage(self, directory):
        self.child.ask("open", path=directory, **self.options)
        return super().make_storage(directory)

    def close_storage(self, storage):
        super().close_storage(storage)
        self.child.ask("close")


@pytest.mark.slow
@pytest.mark.usefixtures("neighbour")
class TestTakenOver(TestOwnedByAnotherProcess):
    """The owner closes before anything is done: one of the clients owns it then."""

    def another(self, storage):
        other = super().another(storage)
        self.child.ask("close")
        return other
