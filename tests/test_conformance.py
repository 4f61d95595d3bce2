"""The conformance suite on every storage there is: ours in each configuration and behind Durus' server, Durus' own."""

import sqlite3
from types import MappingProxyType

import pytest
from conftest import check_directory
from durus.file_storage import FileStorage
from durus.file_storage2 import FileStorage2
from durus.sqlite_storage import SqliteStorage
from durus.storage import MemoryStorage
from served import Served

from berkeleydb_storage import BerkeleyDBStorage, CheckpointInline, GarbageInline
from berkeleydb_storage.testing import StorageConformance

BARE_KEY_ERROR = {"test_missing_object_is_a_durus_key_error": "it raises a plain KeyError"}
PRINTS_NOT = {
    "test_error_for_a_missing_object_prints": "Durus raises its DurusKeyError without the oids that it prints"
}
TAKES_ANY_OID = {
    "test_unknown_oid_is_refused": "it stores whatever oid it is given",
    "test_goes_on_after_an_unknown_oid": "it stores whatever oid it is given",
}
NO_ITERATION = "SqliteStorage.gen_oid_record() without start_oid asks a generator for its items()"
EXPECTED = {
    "ClientStorage": PRINTS_NOT
    | {
        "test_last_store_of_an_object_counts": "ClientStorage asserts that no object is stored twice in a commit",
        "test_unknown_oid_is_refused": "ClientStorage sends it, and the ValueError of its storage ends Durus' server",
        "test_goes_on_after_an_unknown_oid": "as test_unknown_oid_is_refused",
    },
    "FileStorage": PRINTS_NOT
    | {"test_sync_names_what_pack_removed": "it names only those with an oid lower than one that is kept"},
    "FileStorage2": BARE_KEY_ERROR
    | TAKES_ANY_OID
    | {
        "test_begin_drops_what_was_pending": "its begin() does nothing",
        "test_iteration_while_committing[over all]": "it iterates over the dict that a commit changes",
        "test_objects_that_were_packed_away": "it raises a plain KeyError, which Connection does not expect",
    },
    "SqliteStorage": BARE_KEY_ERROR
    | TAKES_ANY_OID
    | {
        "test_durus_tools": NO_ITERATION,
        "test_empty_storage_begins_with_the_root_again": "it takes the highest oid of no rows for a number",
        "test_iteration_is_lazy": NO_ITERATION,
        "test_iteration_over_all": NO_ITERATION,
        "test_iteration_over_an_empty_storage": NO_ITERATION,
        "test_iteration_while_committing[over all]": NO_ITERATION,
        "test_object_that_is_linked_again_during_a_pack": "its last step deletes what was linked again before it",
        "test_objects_that_were_packed_away": "its sync() never names what was packed away",
        "test_stored_oids_are_not_handed_out_after_reopening": "it hands out the highest oid that is stored",
        "test_sync_names_what_pack_removed": "its sync() names nothing",
    },
    "MemoryStorage": BARE_KEY_ERROR | TAKES_ANY_OID,
}
"""Storage -> test -> why it fails."""


class Ours(StorageConformance):
    validates_records = True
    refuses_dangling = True
    has_size = True
    several_clients = True
    options = MappingProxyType({})

    def make_storage(self, directory):
        return BerkeleyDBStorage(directory, **self.options)

    def another(self, storage):
        return storage.session()

    def check_storage(self, directory):
        check_directory(directory)


class TestDurable(Ours):
    """The default: a btree whose commits are synced."""


class TestHash(Ours):
    options = MappingProxyType({"type": "hash", "durable": True})


class TestHandedToTheSystem(Ours):
    options = MappingProxyType({"durable": False, "async_log_write": True})


class TestBuffered(Ours):
    options = MappingProxyType({"durable": False, "async_log_write": False})


class TestTinyCache(Ours):
    options = MappingProxyType({"cachesize": 1 << 20, "durable": False})


class TestHashWithTinyCache(Ours):
    options = MappingProxyType({"type": "hash", "cachesize": 1 << 20, "durable": False})


class TestInlineCollection(Ours):
    def make_storage(self, directory):
        return BerkeleyDBStorage(directory, durable=False, garbage_collection=GarbageInline(grace=0))


class TestInlineCheckpoints(Ours):
    def make_storage(self, directory):
        return BerkeleyDBStorage(directory, durable=False, checkpoint=CheckpointInline(log_bytes=4096))


class TestSession(Ours):
    def make_storage(self, directory):
        return BerkeleyDBStorage(directory, durable=False).session()

    def close_storage(self, session):
        session.close()
        session.storage.close()

    def another(self, session):
        return session.storage.session()

    def pack(self, session):
        session.storage.pack()


class TestOursBehindDurusServer(StorageConformance):
    refuses_dangling = True
    several_clients = True
    closed_errors = (OSError,)
    expected_failures = MappingProxyType(EXPECTED["ClientStorage"])

    def make_storage(self, directory):
        self.served = Served(directory)
        return self.served.client()

    def close_storage(self, client):
        self.served.stop()

    def another(self, client):
        return self.served.client()

    def pack(self, client):
        self.served.pack(client)

    def check_storage(self, directory):
        check_directory(directory)


UNCLOSED = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""Durus' own storages leave files open: the one from before a pack, that of a pack which was not carried to its end."""


@UNCLOSED
class TestFileStorage(StorageConformance):
    reuses_oids = True
    expected_failures = MappingProxyType(EXPECTED["FileStorage"])

    def make_storage(self, directory):
        return FileStorage(str(directory / "file"))


@UNCLOSED
class TestFileStorage2(StorageConformance):
    reuses_oids = True
    expected_failures = MappingProxyType(EXPECTED["FileStorage2"])

    def make_storage(self, directory):
        return FileStorage2(str(directory / "file"))


@UNCLOSED
class TestSqliteStorage(StorageConformance):
    reuses_oids = True
    closed_errors = (sqlite3.ProgrammingError,)
    expected_failures = MappingProxyType(EXPECTED["SqliteStorage"])

    def make_storage(self, directory):
        return SqliteStorage(str(directory / "file"))


class TestMemoryStorage(StorageConformance):
    durable = False
    packs = False
    closed_errors = ()
    expected_failures = MappingProxyType(EXPECTED["MemoryStorage"])

    def make_storage(self, directory):
        return MemoryStorage()
