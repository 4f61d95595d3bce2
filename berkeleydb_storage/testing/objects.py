"""Durus' ``Connection``, and its collections, on top of a storage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from durus.btree import BTree
from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError, WriteConflictError
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from durus.storage import Storage

from berkeleydb_storage.testing.base import ConformanceBase

ITEMS = 2000


class ObjectTests(ConformanceBase):
    """Tests with persistent objects."""

    @pytest.fixture
    def connections(self, storage: Storage) -> Iterator[tuple[Connection, Connection]]:
        """Two connections, each on a client of its own."""
        self.need(several_clients=True)
        first = Connection(storage)
        second = Connection(self.another(storage))
        yield first, second
        second.storage.close()

    def test_root_is_made_once(self, storage: Storage) -> None:
        """The first ``Connection`` stores it, the next one finds it."""
        Connection(storage).get_root()["a"] = 1
        assert list(Connection(storage).get_root()) == []
        connection = Connection(storage)
        connection.get_root()["a"] = 1
        connection.commit()
        assert Connection(storage).get_root()["a"] == 1

    def test_other_root_class(self, storage: Storage) -> None:
        """The root may be of any class."""
        root = Connection(storage, root_class=BTree).get_root()
        assert isinstance(root, BTree)
        assert isinstance(Connection(storage).get_root(), BTree)

    def test_collections(self, storage: Storage) -> None:
        """Durus' collections come back as they were."""
        connection = Connection(storage)
        root = connection.get_root()
        root["dict"] = PersistentDict({"key": "value"})
        root["list"] = PersistentList([1, 2, 3])
        root["set"] = PersistentSet([1, 2, 3])
        root["object"] = Persistent()
        root["object"].back = root
        connection.commit()
        root = Connection(self._again(storage)).get_root()
        assert dict(root["dict"]) == {"key": "value"}
        assert list(root["list"]) == [1, 2, 3]
        assert set(root["set"]) == {1, 2, 3}
        assert root["object"].back is root

    def _again(self, storage: Storage) -> Storage:
        return self.reopen(storage) if self.durable else storage

    def test_btree(self, storage: Storage) -> None:
        """Insertions and deletions that split and join its nodes, some a commit, with packing between."""
        connection = Connection(storage)
        tree = connection.get_root()["tree"] = BTree()
        model: dict[int, str] = {}
        for number in range(ITEMS):
            key = number * 7919 % ITEMS
            tree[key] = model[key] = str(number)
            if number % 100 == 0:
                connection.commit()
        for key in range(0, ITEMS, 2):
            del tree[key], model[key]
            if key % 200 == 0:
                connection.commit()
        connection.commit()
        connection.pack()
        connection = Connection(self._again(storage))
        tree = connection.get_root()["tree"]
        assert list(tree.items()) == sorted(model.items())
        assert next(iter(tree.items_from(1000))) == (1001, model[1001])

    def test_abort(self, storage: Storage) -> None:
        """Changes that are not committed are forgotten."""
        connection = Connection(storage)
        root = connection.get_root()
        root["kept"] = Persistent()
        connection.commit()
        root["lost"] = Persistent()
        root["kept"].value = 1
        connection.abort()
        assert list(root) == ["kept"]
        assert not hasattr(root["kept"], "value")

    def test_small_cache(self, storage: Storage) -> None:
        """Objects that fell out of the cache are loaded again."""
        connection = Connection(storage, cache_size=5)
        root = connection.get_root()
        for number in range(50):
            root[number] = Persistent()
            root[number].number = number
            connection.commit()
        assert [root[number].number for number in range(50)] == list(range(50))

    def test_crawler(self, storage: Storage) -> None:
        """``get_crawler`` meets every object, loaded."""
        connection = Connection(storage)
        root = connection.get_root()
        for number in range(30):
            root[number] = PersistentDict(number=number)
        connection.commit()
        met = list(Connection(self._again(storage)).get_crawler())
        assert len(met) == 31
        assert not any(found._p_is_ghost() for found in met)

    def test_objects_that_were_packed_away(self, storage: Storage) -> None:
        """``get`` does not find them; a ghost of one raises a ``ReadConflictError``."""
        self.need(packs=True)
        connection = Connection(storage)
        root = connection.get_root()
        root["a"] = Persistent()
        root["a"].value = 1
        connection.commit()
        gone = root["a"]
        oid = gone._p_oid
        del root["a"]
        connection.commit()
        connection.abort()
        self.pack(storage)
        connection.abort()
        assert gone._p_is_ghost()
        with pytest.raises(ReadConflictError):
            _ = gone.value
        connection.abort()
        assert Connection(self._again(storage)).get(oid) is None

    def test_move_between_containers(self, storage: Storage) -> None:
        """An object that changes its place in one commit survives packing."""
        connection = Connection(storage)
        root = connection.get_root()
        root["a"], root["b"] = PersistentDict(), PersistentDict()
        root["a"]["x"] = PersistentDict(value=1)
        connection.commit()
        for source, target in [("a", "b"), ("b", "a")] * 3:
            root[target]["x"] = root[source].pop("x")
            connection.commit()
            connection.pack()
        root = Connection(self._again(storage)).get_root()
        assert root["a"]["x"]["value"] == 1

    def test_write_conflict(self, connections: tuple[Connection, Connection]) -> None:
        """Both change one object: the second to commit gets a ``WriteConflictError``, and may try again."""
        first, second = connections
        first.get_root()["a"] = 1
        second.get_root()["b"] = 2
        first.commit()
        with pytest.raises(WriteConflictError):
            second.commit()
        second.abort()
        assert dict(second.get_root()) == {"a": 1}
        second.get_root()["b"] = 2
        second.commit()
        first.abort()
        assert dict(first.get_root()) == {"a": 1, "b": 2}

    def test_conflict_takes_new_objects_back(self, connections: tuple[Connection, Connection]) -> None:
        """They can be stored by the next attempt."""
        first, second = connections
        first.get_root()["a"] = 1
        fresh = Persistent()
        second.get_root()["b"] = fresh
        first.commit()
        with pytest.raises(ConflictError):
            second.commit()
        assert fresh._p_oid is None
        second.abort()
        second.get_root()["b"] = fresh
        second.commit()
        first.abort()
        assert first.get_root()["b"]._p_oid == fresh._p_oid

    def test_read_conflict(self, connections: tuple[Connection, Connection]) -> None:
        """An object that changed since the transaction began is not mixed with what was read before."""
        first, second = connections
        first.get_root()["a"], first.get_root()["b"] = PersistentDict(n=0), PersistentDict(n=0)
        first.commit()
        second.abort()
        assert second.get_root()["a"]["n"] == 0
        first.get_root()["a"]["n"] = first.get_root()["b"]["n"] = 1
        first.commit()
        with pytest.raises(ReadConflictError):
            _ = second.get_root()["b"]["n"]
        second.abort()
        assert second.get_root()["a"]["n"] == second.get_root()["b"]["n"] == 1

    def test_no_conflict_without_common_objects(self, connections: tuple[Connection, Connection]) -> None:
        """Different objects, different commits."""
        first, second = connections
        first.get_root()["a"], first.get_root()["b"] = PersistentDict(), PersistentDict()
        first.commit()
        second.abort()
        second.get_root()["b"]["n"] = 2
        first.get_root()["a"]["n"] = 1
        first.commit()
        second.commit()
        first.abort()
        assert (first.get_root()["a"]["n"], first.get_root()["b"]["n"]) == (1, 2)

    def test_reading_what_changed_is_no_conflict_by_itself(self, connections: tuple[Connection, Connection]) -> None:
        """A transaction that has read nothing yet sees the newest state."""
        first, second = connections
        first.get_root()["a"] = 1
        first.commit()
        second.abort()
        assert second.get_root()["a"] == 1
        second.commit()
        first.get_root()["a"] = 2
        first.commit()
        second.commit()
        assert second.get_root()["a"] == 2
