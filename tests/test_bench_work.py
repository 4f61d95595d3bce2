"""Loads, commits and opening as they are measured: each contender does the work, and who does not is found out."""

import os
import signal
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from benchmarks.method.contest import Found
from benchmarks.method.measure import Result
from benchmarks.method.workers import Worker
from benchmarks.objects.records import batches, record
from benchmarks.peers.durus import file_store, ours_database
from benchmarks.peers.registry import FILE, LMDB, OURS, SHELVE, SQLITE3, ZODB_FILE, is_here, open_store
from benchmarks.work import committing, loading, opening
from benchmarks.work.building import build
from benchmarks.work.stores import items, verify
from berkeleydb_storage.format import pack_uint64

COUNT = 1200
COMMITTED = {committing.MEDIAN, committing.P99, committing.ONE, committing.MANY}


class Forgetful(opening.OpensAfterKill):
    """Acknowledges what it does not commit."""

    def _commit_on(self, reading, writing):
        os.write(writing, b"." * self._commits)
        signal.pause()

    def said(self):
        try:
            self.round()
        except opening.Lost as error:
            return str(error)
        return "nothing"


class Torn(opening.OpensAfterKill):
    """Is killed between the two writes of a FileStorage's commit, after which its length would be there."""

    def _prepare(self):
        super()._prepare()
        torn = pack_uint64(1) + record(1)
        with self.path.open("ab") as file:
            file.write(pack_uint64(0) + pack_uint64(len(torn)) + torn)


class Broken(opening.OpensAfterKill):
    """Leaves something else than a store."""

    def _prepare(self):
        super()._prepare()
        self.path.write_bytes(b"?" * 10_000)

    def lost(self):
        with closing(open_store(self.peer, self.path)) as store:
            return self._lost(store)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Return what starts a contender in a process of its own, as a contest does."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with ExitStack() as stack:

        def start(kind, peer, *given):
            if not is_here(peer):
                pytest.skip(f"{peer.package} is not installed")
            return stack.enter_context(Worker(kind, peer.name, tmp_path / "own" / "store", *given))

        yield start


@pytest.mark.parametrize(
    ("kind", "peer", "given", "columns"),
    [
        (loading.Loads, SQLITE3, [COUNT], {loading.RANDOM, loading.IN_ORDER}),
        (loading.ColdLoads, LMDB, [COUNT], {loading.COLD, loading.DROPPED}),
        (loading.ObjectLoads, ZODB_FILE, [COUNT], {loading.FROM_STORE, loading.FROM_CACHE}),
        (loading.ColdObjectLoads, ZODB_FILE, [COUNT], {loading.COLD_OBJECT, loading.DROPPED}),
        (committing.Commits, LMDB, [3, 1], COMMITTED),
        (committing.ObjectCommits, ZODB_FILE, [3, 1], COMMITTED),
        (opening.Opens, ZODB_FILE, [COUNT], {opening.OPENED, opening.LOADED, opening.MORE}),
    ],
)  # fmt: skip
def test_contenders_measure(worker, kind, peer, given, columns):
    contender = worker(kind, peer, *given)
    found = contender.call("round")
    assert set(found) == columns
    assert all(number > 0 for column, number in found.items() if column not in (loading.DROPPED, opening.MORE))
    assert contender.call("peak") > 10


def test_what_was_acknowledged_is_there_after_a_kill(worker):
    found = worker(opening.OpensAfterKill, SQLITE3, COUNT, 20).call("round")
    assert (found[opening.LOST], found[opening.FAILED]) == (0, 0)
    assert 0 < found[opening.OPENED] <= found[opening.LOADED]


def test_who_loses_what_it_promised_is_found_out(worker):
    assert worker(Forgetful, OURS, COUNT, 20).call("said").startswith("ours lost ")


def test_who_must_be_repaired_is_counted(worker):
    found = worker(Torn, FILE, COUNT, 20).call("round")
    assert (found[opening.LOST], found[opening.FAILED]) == (0, 1)
    assert found[opening.LOADED] > 0


def test_who_is_broken_is_counted_and_whole_for_the_next_round(worker):
    contender = worker(Broken, SHELVE, COUNT, 20)
    assert contender.call("round") == {opening.FAILED: 1}
    assert 0 < contender.call("lost") <= 21, "only what was committed in this round"


def test_who_promised_nothing_may_lose(worker):
    found = worker(Forgetful, SHELVE, COUNT, 20).call("round")
    assert 0 < found[opening.LOST] <= 20, "an item may be changed more than once"


def test_what_could_not_be_dropped_or_opened_is_said():
    result, found = Result("load, cold", ""), Found()
    found.update({"a": {loading.DROPPED: [1.0, 1.0]}, "b": {loading.DROPPED: [1.0, 0.0]}})
    loading._tell_dropped(result, found)
    assert result.notes == ["the system's cache could not be dropped, so not cold: b"]
    assert found == {"a": {}, "b": {}}


def test_a_wrong_sum_is_found_out():
    with pytest.raises(AssertionError, match="comes to 6, not 7"):
        loading.loads(lambda oid: b"abc", [b"1", b"2"], 7)


def test_a_wrong_record_is_found_out(tmp_path):
    with closing(file_store(tmp_path / "store")) as store:
        store.fill(batches(COUNT))
        verify(store, "FileStorage", items(COUNT, 100))
        change = (pack_uint64(7), record(7, 1))
        with pytest.raises(
            AssertionError, match="FileStorage does not give back what was committed of 0000000000000007"
        ):
            committing.must_hold(store, "FileStorage", [change])
        assert opening.holds(store, 7)
        assert not opening.holds(store, 7, {1, 2})
        store.commit([change])
        committing.must_hold(store, "FileStorage", [(pack_uint64(7), record(7, 9)), change])
        assert opening.holds(store, 7, {1, 2})
        assert not opening.holds(store, COUNT + 1)
        with pytest.raises(AssertionError, match="does not give back object 7 "):
            verify(store, "FileStorage", [7])


def test_a_wrong_object_is_found_out(tmp_path):
    with closing(ours_database(tmp_path / "store")) as database:
        build(database, COUNT)
        found = loading.unloaded(database)
        assert len(found) == COUNT - 2, "two of them are folders"
        loading.visits(found)
        number, item = found[5]
        item.price = 9.0
        database.commit()
        committing.must_cost(database, "ours", {number: 9.0})
        with pytest.raises(AssertionError, match=f"ours has a price of 9.0 for object {number}, not 8.0"):
            committing.must_cost(database, "ours", {number: 8.0})
        with pytest.raises(AssertionError, match="comes to"):
            loading.visits([(number + 1, item)])


def test_the_limit_is_a_sync_each(tmp_path):
    with closing(committing.SyncAlone(tmp_path / "file")) as store:
        store.commit([(b"", b"short")])
        store.commit([(b"", bytes(1000))] * 3)
    assert (tmp_path / "file").stat().st_size == 1024 + 3000
