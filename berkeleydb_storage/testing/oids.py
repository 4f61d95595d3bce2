"""``new_oid``: the root first, and no oid twice."""

from __future__ import annotations

from durus.storage import Storage

from berkeleydb_storage.testing.base import ConformanceBase
from berkeleydb_storage.testing.records import ROOT, commit, new_root, populate, record_of

MANY = 5000
"""More than any storage reserves at a time."""


class OidTests(ConformanceBase):
    """Tests of the oids that a storage hands out."""

    def test_first_oid_is_the_roots(self, storage: Storage) -> None:
        """An empty storage hands out the root's oid first: ``Connection`` asserts it."""
        assert storage.new_oid() == ROOT

    def test_oids_have_eight_bytes(self, storage: Storage) -> None:
        """An oid is a bytes object of length 8."""
        oids = [storage.new_oid() for _ in range(3)]
        assert [(type(oid), len(oid)) for oid in oids] == [(bytes, 8)] * 3

    def test_oids_are_distinct(self, storage: Storage) -> None:
        """No oid is handed out twice, used or not."""
        oids = [storage.new_oid() for _ in range(MANY)]
        assert len(set(oids)) == MANY

    def test_oids_are_distinct_across_commits(self, storage: Storage) -> None:
        """Commits between make no difference."""
        seen = set(populate(storage, 2))
        for _ in range(100):
            oid = storage.new_oid()
            assert oid not in seen
            seen.add(oid)
            commit(storage, [record_of(oid)])

    def test_empty_storage_begins_with_the_root_again(self, storage: Storage) -> None:
        """Until the root is stored, every opening begins with its oid."""
        for _ in range(3):
            storage.new_oid()
        storage = self.reopen(storage)
        assert storage.new_oid() == ROOT

    def test_stored_oids_are_not_handed_out_after_reopening(self, storage: Storage) -> None:
        """The oid of an object that is stored is not handed out again."""
        self.need(durable=True)
        stored = set(populate(storage, 40))
        for _ in range(3):
            storage = self.reopen(storage)
            fresh = {storage.new_oid() for _ in range(100)}
            assert len(fresh) == 100
            assert not fresh & stored

    def test_unused_oids_are_not_handed_out_after_reopening(self, storage: Storage) -> None:
        """An oid is handed out once, ever: somebody may still hold it."""
        self.need(durable=True, reuses_oids=False)
        seen = set(populate(storage, 2))
        for _ in range(3):
            fresh = {storage.new_oid() for _ in range(10)}
            assert not fresh & seen
            seen |= fresh
            storage = self.reopen(storage)

    def test_oids_of_deleted_objects_are_not_handed_out(self, storage: Storage) -> None:
        """An oid is handed out once, ever: not again when its object is deleted, nor after reopening."""
        self.need(packs=True, reuses_oids=False)
        seen = set(populate(storage, 10))
        commit(storage, [record_of(ROOT)])
        self.pack(storage)
        assert not {storage.new_oid() for _ in range(100)} & seen
        storage = self.reopen(storage)
        assert not {storage.new_oid() for _ in range(100)} & seen

    def test_root_is_stored_under_the_first_oid(self, storage: Storage) -> None:
        """The root's oid may always be stored, whoever took it from ``new_oid``."""
        new_root(storage)
        commit(storage, [record_of(ROOT, b"root")])
        assert storage.load(ROOT) == record_of(ROOT, b"root")
