"""What the tests have in common: how a storage is opened, closed and reopened, and what it claims to be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import pytest
from durus.storage import Storage


class ConformanceBase:
    """The hooks and the features of a storage, with the fixtures made from them."""

    durable: ClassVar[bool] = True
    """What was committed is there after closing and opening again."""
    reuses_oids: ClassVar[bool] = False
    """An oid is handed out again when its object was deleted, or after reopening when nothing was stored under it."""
    packs: ClassVar[bool] = True
    """``pack`` deletes what the root does not lead to."""
    validates_records: ClassVar[bool] = False
    """``store`` raises ValueError for a record that is malformed, or another object's."""
    refuses_dangling: ClassVar[bool] = False
    """``end`` raises a ``ConflictError`` when a record refers to an object that does not exist."""
    has_size: ClassVar[bool] = False
    """``get_size`` returns the number of objects."""
    several_clients: ClassVar[bool] = False
    """`another` returns more clients of an open storage."""
    closed_errors: ClassVar[tuple[type[Exception], ...]] = (ValueError,)
    """What the methods of a closed storage raise; empty for one that cannot be closed."""
    page_size: ClassVar[int] = 4096
    """Bytes of the unit in which it writes: records around this size, and fractions of it, are tried."""
    expected_failures: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Names of tests that are known to fail, with the reason: they are reported as such, and must fail."""

    directory: Path
    _storage: Storage | None

    def make_storage(self, directory: Path) -> Storage:
        """Open the storage in `directory`, which is empty at first; the same one again after `close_storage`."""
        raise NotImplementedError

    def close_storage(self, storage: Storage) -> None:
        """Close what `make_storage` returned, and what belongs to it."""
        storage.close()

    def another(self, storage: Storage) -> Storage:
        """Return another client of an open storage; only called with `several_clients`."""
        raise NotImplementedError

    def pack(self, storage: Storage) -> None:
        """Pack, and return when that is done."""
        storage.pack()

    def check_storage(self, directory: Path) -> None:
        """Fail if anything is wrong with what a test left behind. Called after each, when everything is closed."""

    def reopen(self, storage: Storage) -> Storage:
        """Close a storage and open it again."""
        self.close(storage)
        self._storage = self.make_storage(self.directory)
        return self._storage

    def close(self, storage: Storage) -> None:
        """Close a storage for good."""
        self._storage = None
        self.close_storage(storage)

    def need(self, **features: bool) -> None:
        """Skip the test unless the class attributes of these names have these values."""
        for name, wanted in features.items():
            if getattr(self, name) != wanted:
                pytest.skip(f"only for a storage with {name} = {wanted}")

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        """A new storage, open; checked after the test."""
        self.directory = tmp_path / "conformance"
        self.directory.mkdir()
        self._storage = self.make_storage(self.directory)
        yield self._storage
        if self._storage is not None:
            self.close(self._storage)
        self.check_storage(self.directory)

    @pytest.fixture(autouse=True)
    def _expect_failures(self, request: pytest.FixtureRequest) -> None:
        names = (request.node.name, request.node.name.partition("[")[0])
        reason = next((self.expected_failures[name] for name in names if name in self.expected_failures), None)
        if reason is not None:
            request.node.add_marker(pytest.mark.xfail(strict=True, reason=reason))

    def test_expected_failures_name_tests(self) -> None:
        """`expected_failures` names only tests that there are."""
        unknown = [name for name in self.expected_failures if not hasattr(self, name.partition("[")[0])]
        assert not unknown
