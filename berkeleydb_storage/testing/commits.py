"""``load``, ``begin``, ``store``, ``end``, ``sync``, ``get_size`` and ``close``, of one client."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from durus.error import ConflictError, DurusKeyError
from durus.storage import Storage

from berkeleydb_storage.testing.base import ConformanceBase
from berkeleydb_storage.testing.records import (
    HEADER,
    ROOT,
    UNKNOWN,
    accept,
    commit,
    exists,
    loaded,
    noise,
    populate,
    record_of,
)

MANY = 5000
LARGE = 1 << 20


def sizes_around(page: int) -> list[int]:
    """Return the sizes of records, in bytes, at which a storage with such pages may change how it stores them."""
    shares = [page // 8, page // 4, page // 2, page, 2 * page, 3 * page, 16 * page]
    around = {share + offset for share in shares for offset in (-HEADER - 1, -HEADER, -1, 0, 1)}
    quarter = range(page // 4 - 40, page // 4 + 41)
    return sorted({HEADER, HEADER + 1, LARGE, *around, *quarter})


class CommitTests(ConformanceBase):
    """Tests of commits."""

    def test_load_returns_what_was_stored(self, storage: Storage) -> None:
        """A record comes back as it was stored, as bytes."""
        records = populate(storage, 3)
        assert loaded(storage, records) == records
        assert {type(record) for record in loaded(storage, records).values()} == {bytes}

    def test_missing_object_is_a_key_error(self, storage: Storage) -> None:
        """``Connection.get`` depends on it; in a storage with objects and in one without."""
        with pytest.raises(KeyError):
            storage.load(ROOT)
        populate(storage, 3)
        with pytest.raises(KeyError):
            storage.load(UNKNOWN)

    def test_missing_object_is_a_durus_key_error(self, storage: Storage) -> None:
        """``Connection.load_state`` depends on it: it makes a ``ReadConflictError`` of it."""
        populate(storage, 3)
        with pytest.raises(DurusKeyError):
            storage.load(UNKNOWN)

    def test_error_for_a_missing_object_prints(self, storage: Storage) -> None:
        """It names the oid; ``DurusKeyError`` does so only if its `oids` was set."""
        populate(storage, 3)
        with pytest.raises(KeyError) as caught:
            storage.load(UNKNOWN)
        assert "1000000" in str(caught.value) or repr(UNKNOWN) in str(caught.value)

    def test_oid_that_was_not_stored_is_missing(self, storage: Storage) -> None:
        """Handing out an oid does not make an object."""
        populate(storage, 3)
        with pytest.raises(KeyError):
            storage.load(storage.new_oid())

    def test_records_of_all_sizes(self, storage: Storage) -> None:
        """Records come back byte for byte, at sizes around the page size and fractions of it."""
        records = self._of_sizes(storage, sizes_around(self.page_size))
        assert loaded(storage, records) == records
        if self.durable:
            assert loaded(self.reopen(storage), records) == records

    def test_overwriting_with_other_sizes(self, storage: Storage) -> None:
        """A record may grow and shrink across all these sizes."""
        sizes = sizes_around(self.page_size)
        records = self._of_sizes(storage, sizes)
        for shift in (1, len(sizes) // 2, len(sizes) - 1):
            moved = dict(zip(records, sizes[shift:] + sizes[:shift], strict=False))
            records |= {oid: record_of(oid, noise(size - HEADER)) for oid, size in moved.items() if oid != ROOT}
            commit(storage, records.values())
            assert loaded(storage, records) == records
        if self.durable:
            assert loaded(self.reopen(storage), records) == records

    def _of_sizes(self, storage: Storage, sizes: list[int]) -> dict[bytes, bytes]:
        root = storage.new_oid()
        oids = [storage.new_oid() for _ in sizes]
        records = {oid: record_of(oid, noise(size - HEADER)) for oid, size in zip(oids, sizes, strict=True)}
        assert [len(record) for record in records.values()] == sizes
        records[root] = record_of(root, b"root", oids)
        commit(storage, records.values())
        return records

    def test_many_references(self, storage: Storage) -> None:
        """An object may refer to thousands, to itself, and to one object more than once."""
        records = populate(storage, MANY)
        oids = [oid for oid in records if oid != ROOT]
        records[oids[0]] = record_of(oids[0], b"", [*oids, *oids[:10]])
        commit(storage, [records[oids[0]]])
        assert loaded(storage, records) == records

    def test_cycles(self, storage: Storage) -> None:
        """Objects may refer to each other, and to the root."""
        records = populate(storage, 2)
        first, second = (oid for oid in records if oid != ROOT)
        records[first] = record_of(first, b"", [second, ROOT])
        records[second] = record_of(second, b"", [first, second])
        commit(storage, [records[first], records[second]])
        assert loaded(storage, records) == records

    def test_one_large_commit(self, storage: Storage) -> None:
        """Thousands of objects may be stored at once."""
        records = populate(storage, MANY)
        assert loaded(storage, records) == records
        if self.durable:
            assert loaded(self.reopen(storage), records) == records

    def test_many_small_commits(self, storage: Storage) -> None:
        """Each overwrites a few objects."""
        records = populate(storage, 20)
        oids = sorted(oid for oid in records if oid != ROOT)
        for number in range(200):
            changed = {oid: record_of(oid, b"turn %d" % number) for oid in (oids[number % 20], oids[number * 3 % 20])}
            commit(storage, changed.values())
            records |= changed
        assert loaded(storage, records) == records
        if self.durable:
            assert loaded(self.reopen(storage), records) == records

    def test_store_takes_effect_with_end(self, storage: Storage) -> None:
        """Until then ``load`` sees nothing of it."""
        records = populate(storage, 1)
        oid = max(records)
        storage.begin()
        storage.store(oid, record_of(oid, b"new"))
        assert storage.load(oid) == records[oid]
        storage.end(accept)
        assert storage.load(oid) == record_of(oid, b"new")

    def test_begin_drops_what_was_pending(self, storage: Storage) -> None:
        """An application that fails before ``end`` just begins again."""
        records = populate(storage, 2)
        first, second = sorted(records)[1:]
        storage.begin()
        storage.store(first, record_of(first, b"dropped"))
        commit(storage, [record_of(second, b"kept")])
        assert storage.load(first) == records[first]
        assert storage.load(second) == record_of(second, b"kept")

    def test_empty_commit(self, storage: Storage) -> None:
        """A commit without records changes nothing, in a storage with objects and in one without."""
        commit(storage, [])
        records = populate(storage, 2)
        commit(storage, [])
        assert loaded(storage, records) == records
        assert list(storage.sync()) == []

    def test_commit_of_the_same_record(self, storage: Storage) -> None:
        """Storing what is there already changes nothing."""
        records = populate(storage, 3)
        commit(storage, records.values())
        assert loaded(storage, records) == records

    def test_last_store_of_an_object_counts(self, storage: Storage) -> None:
        """An object may be stored twice in one commit."""
        records = populate(storage, 1)
        oid = max(records)
        commit(storage, [record_of(oid, b"first"), record_of(oid, b"second")])
        assert storage.load(oid) == record_of(oid, b"second")

    def test_end_without_handler(self, storage: Storage) -> None:
        """``end`` may be called without `handle_invalidations`."""
        records = populate(storage, 1)
        oid = max(records)
        storage.begin()
        storage.store(oid, record_of(oid, b"new"))
        assert storage.end() is None
        assert storage.load(oid) == record_of(oid, b"new")
        assert storage.load(ROOT) == records[ROOT]

    def test_sync_is_silent_about_own_commits(self, storage: Storage) -> None:
        """``sync`` is about what others changed."""
        assert list(storage.sync()) == []
        records = populate(storage, 5)
        commit(storage, [record_of(max(records), b"new")])
        assert list(storage.sync()) == []

    def test_unknown_oid_is_refused(self, storage: Storage) -> None:
        """Storing an oid that was never handed out is a ValueError; the commit under way is dropped."""
        records = populate(storage, 1)
        oid = max(records)
        storage.begin()
        storage.store(oid, record_of(oid, b"dropped"))
        with pytest.raises(ValueError, match="surprise"):
            storage.store(UNKNOWN, record_of(UNKNOWN))
        storage.end(accept)
        assert loaded(storage, records) == records

    def test_goes_on_after_an_unknown_oid(self, storage: Storage) -> None:
        """The next commit works."""
        records = populate(storage, 1)
        storage.begin()
        with pytest.raises(ValueError, match="surprise"):
            storage.store(UNKNOWN, record_of(UNKNOWN))
        records[max(records)] = record_of(max(records), b"new")
        commit(storage, [records[max(records)]])
        assert loaded(storage, records) == records
        assert not exists(storage, UNKNOWN)

    @pytest.mark.parametrize(
        "malform",
        [
            pytest.param(lambda _: b"", id="empty"),
            pytest.param(lambda record: record[:11], id="cut in its header"),
            pytest.param(lambda record: record[:-1], id="cut in a reference"),
            pytest.param(lambda record: record + b"\0", id="too long"),
            pytest.param(lambda record: record[:8] + b"\xff\xff\xff\xff" + record[12:], id="length beyond its end"),
            pytest.param(lambda record: bytes(7) + b"\x09" + record[8:], id="of another object"),
        ],
    )
    def test_malformed_records_are_refused(self, storage: Storage, malform: Callable[[bytes], bytes]) -> None:
        """They are a ValueError; the commit under way is dropped, and the next one works."""
        self.need(validates_records=True)
        records = populate(storage, 2)
        first, second = sorted(records)[1:]
        storage.begin()
        storage.store(first, record_of(first, b"dropped"))
        with pytest.raises(ValueError, match="record"):
            storage.store(second, malform(record_of(second, b"data", [first, ROOT])))
        storage.end(accept)
        assert loaded(storage, records) == records
        commit(storage, [record_of(second, b"new")])
        assert storage.load(second) == record_of(second, b"new")

    @pytest.mark.parametrize("oid", [b"", bytes(7), bytes(9)], ids=["0 bytes", "7 bytes", "9 bytes"])
    def test_malformed_oids_are_refused(self, storage: Storage, oid: bytes) -> None:
        """They are a ValueError, for ``store`` and ``load``."""
        self.need(validates_records=True)
        records = populate(storage, 2)
        storage.begin()
        with pytest.raises(ValueError, match="8 bytes"):
            storage.store(oid, oid + bytes(4))
        with pytest.raises(ValueError, match="8 bytes"):
            storage.load(oid)
        assert loaded(storage, records) == records

    def test_dangling_references_are_refused(self, storage: Storage) -> None:
        """A record that refers to an object that does not exist is a conflict, and nothing of its commit is stored."""
        self.need(refuses_dangling=True)
        records = populate(storage, 2)
        first, second = sorted(records)[1:]
        unstored = storage.new_oid()
        with pytest.raises(ConflictError):
            commit(storage, [record_of(first, b"lost"), record_of(second, b"lost", [unstored])])
        assert loaded(storage, records) == records
        commit(storage, [record_of(second, b"new", [unstored]), record_of(unstored)])
        assert exists(storage, unstored)

    def test_size_is_the_number_of_objects(self, storage: Storage) -> None:
        """``get_size`` counts objects, not commits, nor oids."""
        self.need(has_size=True)
        assert storage.get_size() == 0
        records = populate(storage, 10)
        assert storage.get_size() == 11
        commit(storage, [record_of(max(records), b"new")])
        storage.new_oid()
        assert storage.get_size() == 11
        commit(storage, [record_of(ROOT)])
        self.pack(storage)
        assert storage.get_size() == (1 if self.packs else 11)
        if self.durable:
            assert self.reopen(storage).get_size() == (1 if self.packs else 11)

    @pytest.mark.parametrize("method", ["load", "store", "bulk_load", "gen_oid_record"])
    def test_use_after_close(self, storage: Storage, method: str) -> None:
        """It is an error, and nothing is stored."""
        if not self.closed_errors:
            pytest.skip("the storage cannot be closed")
        records = populate(storage, 1)
        oid = max(records)
        uses: dict[str, Callable[[], object]] = {
            "load": lambda: storage.load(oid),
            "store": lambda: commit(storage, [record_of(oid, b"late")]),
            "bulk_load": lambda: list(storage.bulk_load([oid])),
            "gen_oid_record": lambda: list(storage.gen_oid_record(start_oid=ROOT)),
        }
        self.close(storage)
        with pytest.raises(self.closed_errors):
            uses[method]()
        if self.durable:
            self._storage = self.make_storage(self.directory)
            assert loaded(self._storage, records) == records
