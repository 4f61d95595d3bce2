"""Several clients of one storage: how they learn of each other's changes, and find their conflicts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from durus.error import ConflictError, ReadConflictError, WriteConflictError
from durus.storage import Storage

from berkeleydb_storage.testing.base import ConformanceBase
from berkeleydb_storage.testing.records import ROOT, commit, loaded, populate, record_of


class ClientTests(ConformanceBase):
    """Tests with a second client."""

    @pytest.fixture
    def other(self, storage: Storage) -> Iterator[Storage]:
        """Another client of the same storage."""
        self.need(several_clients=True)
        client = self.another(storage)
        yield client
        client.close()

    def test_another_client_sees_commits(self, storage: Storage, other: Storage) -> None:
        """What one commits the other loads."""
        records = populate(storage, 3)
        other.sync()
        assert loaded(other, records) == records

    def test_sync_names_what_another_client_changed(self, storage: Storage, other: Storage) -> None:
        """Once, and to the others alone."""
        records = populate(storage, 3)
        assert set(other.sync()) == set(records)
        commit(storage, [record_of(max(records), b"new")])
        assert list(other.sync()) == [max(records)]
        assert list(other.sync()) == []
        assert list(storage.sync()) == []

    def test_changed_object_is_not_loaded_before_sync(self, storage: Storage, other: Storage) -> None:
        """A ``ReadConflictError`` until then: all that is loaded between two syncs belongs together."""
        records = populate(storage, 3)
        other.sync()
        commit(storage, [record_of(max(records), b"new")])
        for _ in range(2):
            with pytest.raises(ReadConflictError):
                other.load(max(records))
        assert other.load(ROOT) == records[ROOT]
        assert list(other.sync()) == [max(records)]
        assert other.load(max(records)) == record_of(max(records), b"new")

    def test_end_asks_about_what_others_changed(self, storage: Storage, other: Storage) -> None:
        """Before anything is stored; if there is no conflict, the commit goes on."""
        records = populate(storage, 3)
        first, second = sorted(records)[1:3]
        other.sync()
        commit(storage, [record_of(first, b"new")])
        told: list[bytes] = []
        commit(other, [record_of(second, b"other")], told.extend)
        assert told == [first]
        assert other.load(second) == record_of(second, b"other")
        assert list(storage.sync()) == [second]
        assert storage.load(second) == record_of(second, b"other")

    def test_conflict_stores_nothing(self, storage: Storage, other: Storage) -> None:
        """What the handler raises leaves ``end``, and the commit is dropped; the next one works."""
        records = populate(storage, 3)
        first, second = sorted(records)[1:3]
        other.sync()
        records[first] = record_of(first, b"new")
        commit(storage, [records[first]])

        def refuse(oids: list[bytes]) -> None:
            raise WriteConflictError(oids)

        with pytest.raises(WriteConflictError):
            commit(other, [record_of(first, b"lost"), record_of(second, b"lost")], refuse)
        other.sync()
        assert loaded(other, records) == records
        records[first] = record_of(first, b"kept")
        commit(other, [records[first]], refuse)
        storage.sync()
        assert loaded(storage, records) == records

    def test_handler_is_not_asked_without_need(self, storage: Storage, other: Storage) -> None:
        """Where nobody changed anything there is no conflict to find."""
        records = populate(storage, 3)
        other.sync()
        told: list[list[bytes]] = []
        commit(other, [record_of(max(records), b"new")], told.append)
        assert not any(told)

    def test_clients_get_different_oids(self, storage: Storage, other: Storage) -> None:
        """Whoever asks first."""
        storage.new_oid()
        mine = {storage.new_oid() for _ in range(100)}
        theirs = {other.new_oid() for _ in range(100)}
        assert not mine & theirs

    def test_both_store_new_objects(self, storage: Storage, other: Storage) -> None:
        """Commits of different objects do not disturb each other."""
        records = populate(storage, 2)
        other.sync()
        for client, parent in zip((storage, other), sorted(records)[1:], strict=True):
            oid = client.new_oid()
            added = {parent: record_of(parent, b"parent", [oid]), oid: record_of(oid, b"new")}
            commit(client, added.values())
            records |= added
        for client in (storage, other):
            client.sync()
            assert loaded(client, records) == records

    def test_dangling_reference_of_another_client(self, storage: Storage, other: Storage) -> None:
        """It refers to what the first one had collected meanwhile: a conflict, after which both go on."""
        self.need(refuses_dangling=True, packs=True)
        records = populate(storage, 2)
        first, second = sorted(records)[1:]
        other.sync()
        commit(storage, [record_of(ROOT, b"root", [first])])
        self.pack(storage)
        storage.sync()
        with pytest.raises(ConflictError):
            commit(other, [record_of(first, b"lost", [second])])
        other.sync()
        assert other.load(first) == records[first]
        commit(other, [record_of(first, b"new")])
        storage.sync()
        assert storage.load(first) == record_of(first, b"new")
