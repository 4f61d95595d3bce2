"""``bulk_load`` and ``gen_oid_record``."""

from __future__ import annotations

from itertools import pairwise

import pytest
from durus.storage import Storage, gen_oid_class, gen_referring_oid_record, get_census, get_reference_index

from berkeleydb_storage.testing.base import ConformanceBase
from berkeleydb_storage.testing.records import ROOT, UNKNOWN, accept, commit, loaded, populate, record_of

OBJECTS = 250
"""More than two batches of the default size."""


def chain(storage: Storage, length: int) -> dict[bytes, bytes]:
    """Fill an empty storage with objects that refer to the next one each, and an unreachable one; return them."""
    oids = [storage.new_oid() for _ in range(length + 1)]
    records = {oid: record_of(oid, b"", [after]) for oid, after in pairwise(oids[:-1])}
    records[oids[-2]] = record_of(oids[-2], b"last")
    records[oids[-1]] = record_of(oids[-1], b"unreachable", [oids[-2]])
    commit(storage, records.values())
    return records


class IterationTests(ConformanceBase):
    """Tests of reading many records."""

    def test_bulk_load_keeps_the_order(self, storage: Storage) -> None:
        """Records come in the order in which they were asked for, also twice."""
        records = populate(storage, 10)
        oids = [*sorted(records, reverse=True), max(records)]
        assert list(storage.bulk_load(oids)) == [records[oid] for oid in oids]

    def test_bulk_load_of_nothing(self, storage: Storage) -> None:
        """No oids, no records."""
        populate(storage, 1)
        assert list(storage.bulk_load([])) == []

    def test_bulk_load_of_a_missing_object(self, storage: Storage) -> None:
        """It is a KeyError, and the storage goes on."""
        records = populate(storage, 3)
        with pytest.raises(KeyError):
            list(storage.bulk_load([*records, UNKNOWN]))
        assert loaded(storage, records) == records

    def test_iteration_over_all(self, storage: Storage) -> None:
        """Without `start_oid` it yields (oid, record) of every object that the root leads to, once."""
        records = populate(storage, OBJECTS)
        found = list(storage.gen_oid_record())
        assert len(found) == len(records)
        assert dict(found) == records

    def test_iteration_over_an_empty_storage(self, storage: Storage) -> None:
        """There is nothing to yield; ``Storage.gen_oid_record`` begins with the root, and may complain of its lack."""
        try:
            found = list(storage.gen_oid_record())
        except KeyError:
            found = []
        assert found == []

    def test_iteration_is_lazy(self, storage: Storage) -> None:
        """It is an iterator: it may be left in the middle, and several may be under way."""
        records = populate(storage, OBJECTS)
        first, second = storage.gen_oid_record(), storage.gen_oid_record()
        assert iter(first) is first
        seen = [next(first) for _ in range(5)]
        assert [next(second) for _ in range(3)] == seen[:3]
        assert dict([*seen, *first]) == records
        del second
        commit(storage, [record_of(max(records), b"new")])
        assert storage.load(max(records)) == record_of(max(records), b"new")

    def test_abandoned_iteration_does_not_keep_from_closing(self, storage: Storage) -> None:
        """The storage is closed and opened again with an iteration in the middle."""
        self.need(durable=True)
        records = populate(storage, OBJECTS)
        iteration = storage.gen_oid_record(start_oid=ROOT)
        next(iteration)
        storage = self.reopen(storage)
        assert loaded(storage, records) == records

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 100, 10_000])
    def test_iteration_from_an_object(self, storage: Storage, batch_size: int) -> None:
        """With `start_oid` it yields that object and all that it leads to, each once, whatever the batch size."""
        records = chain(storage, 20)
        for start in range(0, 20, 7):
            oid = sorted(records)[start]
            found = list(storage.gen_oid_record(start_oid=oid, batch_size=batch_size))
            assert found[0] == (oid, records[oid])
            assert sorted(found) == sorted(records.items())[start:-1]

    def test_iteration_from_the_root_of_a_wide_graph(self, storage: Storage) -> None:
        """Many references at once, more than a batch."""
        records = populate(storage, OBJECTS)
        found = list(storage.gen_oid_record(start_oid=ROOT))
        assert found[0][0] == ROOT
        assert len(found) == len(records)
        assert dict(found) == records

    def test_iteration_over_cycles(self, storage: Storage) -> None:
        """It ends."""
        records = populate(storage, 3)
        first, second, third = sorted(records)[1:]
        changed = [
            record_of(first, b"", [second]),
            record_of(second, b"", [third, ROOT]),
            record_of(third, b"", [first]),
        ]
        commit(storage, changed)
        found = [oid for oid, _ in storage.gen_oid_record(start_oid=second)]
        assert sorted(found) == sorted(records)

    def test_iteration_from_a_missing_object(self, storage: Storage) -> None:
        """It is a KeyError, once the iteration gets there."""
        populate(storage, 1)
        with pytest.raises(KeyError):
            list(storage.gen_oid_record(start_oid=UNKNOWN))

    @pytest.mark.parametrize("start_oid", [None, ROOT], ids=["over all", "from the root"])
    def test_iteration_while_committing(self, storage: Storage, start_oid: bytes | None) -> None:
        """Objects that are there all the time come once each, as they were at some time during the iteration."""
        records = populate(storage, OBJECTS)
        versions = {oid: {record} for oid, record in records.items()}
        oids = sorted(records)[1:]
        found: list[tuple[bytes, bytes]] = []
        for turn, item in enumerate(storage.gen_oid_record(start_oid=start_oid)):
            found.append(item)
            oid = oids[turn * 97 % len(oids)]
            record = record_of(oid, noise_of(turn))
            versions[oid].add(record)
            commit(storage, [record, record_of(storage.new_oid())])
            if turn > 5 * OBJECTS:
                pytest.fail("it does not end while others commit")
        of_old = [(oid, record) for oid, record in found if oid in versions]
        assert sorted(oid for oid, _ in of_old) == sorted(versions)
        assert all(record in versions[oid] for oid, record in of_old)

    def test_iteration_while_a_commit_is_under_way(self, storage: Storage) -> None:
        """It does not see what is pending, and does not disturb it."""
        records = populate(storage, 3)
        storage.begin()
        storage.store(max(records), record_of(max(records), b"new"))
        assert dict(storage.gen_oid_record(start_oid=ROOT)) == records
        storage.end(accept)
        assert storage.load(max(records)) == record_of(max(records), b"new")

    def test_durus_tools(self, storage: Storage) -> None:
        """What ``durus.storage`` builds on iteration."""
        records = populate(storage, 3)
        oids = sorted(records)
        assert get_reference_index(storage) == {oid: [ROOT] for oid in oids[1:]}
        assert list(gen_referring_oid_record(storage, oids[1])) == [(ROOT, records[ROOT])]
        assert sum(get_census(storage).values()) == 4
        assert sorted(oid for oid, _ in gen_oid_class(storage)) == oids


def noise_of(turn: int) -> bytes:
    """Return data of a length that changes from turn to turn."""
    return b"%d" % turn * (turn % 50 + 1)
