"""The conformance suite for Durus storages, for use with pytest. What it asks for is what Durus' own code relies on.

A storage is put to it by a test class that says how to open it::

    from berkeleydb_storage.testing import StorageConformance

    class TestMine(StorageConformance):
        def make_storage(self, directory):
            return MyStorage(directory / "file")

The class attributes of `StorageConformance` say which features the storage has that not every storage has, and which
tests it is known to fail. Call ``pytest.register_assert_rewrite("berkeleydb_storage.testing")`` in ``conftest.py``,
before the suite is imported, for detailed messages.
"""

from berkeleydb_storage.testing.base import ConformanceBase
from berkeleydb_storage.testing.clients import ClientTests
from berkeleydb_storage.testing.commits import CommitTests
from berkeleydb_storage.testing.iteration import IterationTests
from berkeleydb_storage.testing.objects import ObjectTests
from berkeleydb_storage.testing.oids import OidTests
from berkeleydb_storage.testing.packing import PackTests
from berkeleydb_storage.testing.records import commit, record_of

__all__ = ["StorageConformance", "commit", "record_of"]


class StorageConformance(OidTests, CommitTests, IterationTests, PackTests, ClientTests, ObjectTests, ConformanceBase):
    """All tests. Subclass it and define `make_storage`; the rest is in `ConformanceBase`."""
