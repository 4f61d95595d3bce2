"""``pack`` and ``get_packer``: what nothing leads to goes, everything else stays, and commits go on meanwhile."""

from __future__ import annotations

from random import Random

import pytest
from durus.error import ConflictError
from durus.serialize import split_oids, unpack_record
from durus.storage import Storage

from berkeleydb_storage.testing.base import ConformanceBase
from berkeleydb_storage.testing.records import ROOT, accept, commit, exists, loaded, populate, record_of

OBJECTS = 400
"""More than any packer does in one step."""


def root_of(oids: list[bytes]) -> bytes:
    """Return a record of the root that refers to these objects."""
    return record_of(ROOT, b"root", oids)


class PackTests(ConformanceBase):
    """Tests of packing. Garbage on cycles is not asked for: not every storage collects it."""

    def test_pack_removes_what_nothing_refers_to(self, storage: Storage) -> None:
        """Half of the objects are unlinked, and go."""
        self.need(packs=True)
        records = populate(storage, OBJECTS)
        oids = sorted(records)[1:]
        kept, dropped = oids[::2], oids[1::2]
        records[ROOT] = root_of(kept)
        commit(storage, [records[ROOT]])
        self.pack(storage)
        storage.sync()
        assert [oid for oid in dropped if exists(storage, oid)] == []
        assert loaded(storage, [ROOT, *kept]) == {oid: records[oid] for oid in [ROOT, *kept]}
        if self.durable:
            storage = self.reopen(storage)
            assert [oid for oid in dropped if exists(storage, oid)] == []
            assert loaded(storage, [ROOT, *kept]) == {oid: records[oid] for oid in [ROOT, *kept]}

    def test_pack_removes_structures(self, storage: Storage) -> None:
        """What hung on an unlinked object goes with it, except for what something else refers to."""
        self.need(packs=True)
        records = populate(storage, 2)
        doomed, alive = sorted(records)[1:]
        below = [storage.new_oid() for _ in range(3)]
        shared = storage.new_oid()
        commit(
            storage,
            [
                record_of(doomed, b"", [below[0]]),
                record_of(below[0], b"", [below[1], below[2], shared]),
                record_of(below[1], b"", [below[2]]),
                record_of(below[2], b"", [shared, alive]),
                record_of(shared, b"shared"),
                record_of(alive, b"", [shared]),
            ],
        )
        commit(storage, [root_of([alive])])
        self.pack(storage)
        storage.sync()
        assert [exists(storage, oid) for oid in [doomed, *below]] == [False] * 4
        assert [exists(storage, oid) for oid in [ROOT, alive, shared]] == [True] * 3

    def test_pack_removes_what_was_never_linked(self, storage: Storage) -> None:
        """A new object without a referrer is garbage from the start."""
        self.need(packs=True)
        populate(storage, 2)
        oid = storage.new_oid()
        commit(storage, [record_of(oid)])
        self.pack(storage)
        storage.sync()
        assert not exists(storage, oid)

    def test_sync_names_what_pack_removed(self, storage: Storage) -> None:
        """So that ``Connection`` drops what it has of it."""
        self.need(packs=True)
        records = populate(storage, 10)
        oids = sorted(records)[1:]
        commit(storage, [root_of(oids[:5])])
        self.pack(storage)
        told = set(storage.sync())
        assert told >= set(oids[5:])
        assert not told & {ROOT, *oids[:5]}

    def test_pack_keeps_everything_that_is_reachable(self, storage: Storage) -> None:
        """A random graph with cycles: everything that the root leads to stays, whatever becomes of the rest."""
        random = Random(4)
        records = populate(storage, OBJECTS)
        oids = sorted(records)[1:]
        for oid in oids:
            records[oid] = record_of(oid, b"", random.sample(oids, random.randrange(3)))
        commit(storage, records.values())
        for count in (50, 10, 1, 0):
            records[ROOT] = root_of(random.sample(oids, count))
            commit(storage, [records[ROOT]])
            reachable = self._reachable(records)
            oids = sorted(reachable - {ROOT})
            self.pack(storage)
            storage.sync()
            assert loaded(storage, reachable) == {oid: records[oid] for oid in reachable}

    def _reachable(self, records: dict[bytes, bytes]) -> set[bytes]:
        seen, todo = {ROOT}, [ROOT]
        while todo:
            found = set(split_oids(unpack_record(records[todo.pop()])[2]))
            todo += found - seen
            seen |= found
        return seen

    def test_pack_of_an_empty_storage(self, storage: Storage) -> None:
        """There is nothing to do once there is a root."""
        records = populate(storage, 0)
        for _ in range(2):
            self.pack(storage)
        assert loaded(storage, records) == records

    def test_pack_twice(self, storage: Storage) -> None:
        """The second one finds nothing, and changes nothing."""
        records = populate(storage, 20)
        oids = sorted(records)[1:]
        records = {oid: records[oid] for oid in oids[:10]} | {ROOT: root_of(oids[:10])}
        commit(storage, [records[ROOT]])
        for _ in range(2):
            self.pack(storage)
            storage.sync()
        assert loaded(storage, records) == records

    def test_moved_object_stays(self, storage: Storage) -> None:
        """An object that is moved from one container to another, in one commit, is not garbage in between."""
        records = populate(storage, 2)
        source, target = sorted(records)[1:]
        moved = storage.new_oid()
        commit(storage, [record_of(source, b"", [moved]), record_of(moved, b"moved")])
        commit(storage, [record_of(source), record_of(target, b"", [moved])])
        self.pack(storage)
        storage.sync()
        assert storage.load(moved) == record_of(moved, b"moved")

    def test_pack_while_a_commit_is_under_way(self, storage: Storage) -> None:
        """The commit is stored whole, with all that it refers to, or is a conflict."""
        records = populate(storage, 2)
        first, second = sorted(records)[1:]
        commit(storage, [root_of([first])])
        storage.begin()
        storage.store(first, record_of(first, b"new", [second]))
        self.pack(storage)
        try:
            storage.end(accept)
        except ConflictError:
            storage.sync()
            assert storage.load(first) == records[first]
        else:
            assert storage.load(first) == record_of(first, b"new", [second])
            assert exists(storage, second)

    def test_packer_is_an_iterator_or_none(self, storage: Storage) -> None:
        """``StorageServer`` calls ``next`` on it; None stands for "use ``pack``"."""
        populate(storage, 2)
        packer = storage.get_packer()
        if packer is not None:
            assert iter(packer) is packer
            assert all(step is None or isinstance(step, (str, int)) for step in packer)

    @pytest.mark.parametrize("seed", range(3))
    def test_commits_between_the_steps_of_a_packer(self, storage: Storage, seed: int) -> None:
        """Objects are made, changed, moved, unlinked and linked again meanwhile: what is reachable stays."""
        records = populate(storage, OBJECTS)
        random = Random(seed)
        linked = sorted(records)[1:]
        unlinked = [linked.pop(random.randrange(len(linked))) for _ in range(OBJECTS // 2)]
        records[ROOT] = root_of(linked)
        commit(storage, [records[ROOT]])
        packer = storage.get_packer()
        if packer is None:
            pytest.skip("the storage has no packer")
        for _ in packer:
            self._change(storage, records, linked, unlinked, random)
        storage.sync()
        assert loaded(storage, [ROOT, *linked]) == {oid: records[oid] for oid in [ROOT, *linked]}
        self.pack(storage)
        storage.sync()
        assert [oid for oid in unlinked if exists(storage, oid)] == []
        assert loaded(storage, [ROOT, *linked]) == {oid: records[oid] for oid in [ROOT, *linked]}

    def _change(
        self, storage: Storage, records: dict[bytes, bytes], linked: list[bytes], unlinked: list[bytes], random: Random
    ) -> None:
        fresh, changed = storage.new_oid(), random.choice(linked)
        before, removed = list(linked), linked[random.randrange(len(linked))]
        linked.remove(removed)
        linked += [fresh, *(oid for oid in [removed] if random.random() < 0.5)]
        update = {
            fresh: record_of(fresh, b"fresh"),
            changed: record_of(changed, b"changed %d" % random.randrange(1000)),
            ROOT: root_of(linked),
        }
        try:
            commit(storage, update.values())
        except ConflictError:
            linked[:] = before
            return
        records.update(update)
        if removed not in linked:
            unlinked.append(removed)

    def test_object_that_is_linked_again_during_a_pack(self, storage: Storage) -> None:
        """It stays if the commit that links it again succeeds; else the commit is a conflict."""
        records = populate(storage, OBJECTS)
        oids = sorted(records)[1:]
        commit(storage, [root_of(oids[:1])])
        packer = storage.get_packer()
        if packer is None:
            pytest.skip("the storage has no packer")
        linked = oids[:1]
        for again, _ in zip(reversed(oids[1:]), packer, strict=False):
            try:
                commit(storage, [root_of([*linked, again])])
            except ConflictError:
                continue
            linked.append(again)
        for _ in packer:
            pass
        storage.sync()
        assert loaded(storage, linked) == {oid: records[oid] for oid in linked}
        assert storage.load(ROOT) == root_of(linked)

    def test_abandoned_packer(self, storage: Storage) -> None:
        """A packer that is not carried to its end keeps nobody from committing, closing and opening again."""
        records = populate(storage, OBJECTS)
        oids = sorted(records)[1:]
        records = {oid: records[oid] for oid in oids[:10]} | {ROOT: root_of(oids[:10])}
        commit(storage, [records[ROOT]])
        packer = storage.get_packer()
        if packer is None:
            pytest.skip("the storage has no packer")
        for _ in range(2):
            next(packer, None)
        records[oids[0]] = record_of(oids[0], b"new")
        commit(storage, [records[oids[0]]])
        assert loaded(storage, records) == records
        if self.durable:
            storage = self.reopen(storage)
            assert loaded(storage, records) == records
