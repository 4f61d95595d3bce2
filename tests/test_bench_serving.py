"""Clients at once: each way to share objects is used as it says, and what is not done, or wrong, is an error."""

import os
import socket
import time
from contextlib import ExitStack, closing

import pytest
from durus.file_storage import FileStorage

from benchmarks.objects.records import batches, record
from benchmarks.peers.registry import is_here
from benchmarks.serving import stores
from benchmarks.serving.beside import WAYS, entered
from benchmarks.serving.clients import Paced, Restless
from benchmarks.serving.collecting_meanwhile import ALL, noticed, plausible, within
from benchmarks.serving.keepers import Files
from benchmarks.serving.littered import FIRST, ZODB, items, litter, litter_batches, littered, zodb_record
from benchmarks.serving.stores import opened
from benchmarks.serving.users import User
from benchmarks.serving.ways import SQLITE3
from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.format import pack_uint64

OBJECTS = 300
LIVE = 600


def here(way):
    if not is_here(way):
        pytest.skip(f"{way.package} is not installed")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Give every way that is here some objects, and those of whom can collect some litter: (path, process) by name."""
    directory = tmp_path_factory.mktemp("kept")
    paths = {each.name: directory / each.name for each in (*WAYS, *ALL) if is_here(each)}
    started = {way.name: way.start(paths[way.name], OBJECTS, "records") for way in WAYS if is_here(way)}
    littered_here = {}
    for each in ALL:
        if is_here(each):
            paths[f"litter of {each.name}"] = path = directory / f"litter of {each.name}"
            contents = "ZODB litter" if each.kind == ZODB else "litter"
            more = ("", True) if each.at_once else ()
            littered_here[f"litter of {each.name}"] = each.way.start(path, LIVE, contents, *more)
    with ExitStack() as stack:
        workers = entered(stack, started | littered_here)
        yield {name: (paths[name], worker) for name, worker in workers.items()}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_what_one_client_commits_another_finds(kept, way):
    here(way)
    place = kept[way.name][1].call("place")
    with closing(opened(way.store, place)) as one, closing(opened(way.store, place)) as other:
        oid, changed = pack_uint64(7), record(7, 5)
        assert one.load(oid) == other.load(oid) == record(7)
        one.commit([(oid, changed)])
        other.begin()
        assert other.load(oid) == changed
        assert one.load(pack_uint64(OBJECTS - 1)) == record(OBJECTS - 1)


@pytest.mark.parametrize("way", [way for way in WAYS if way.keeper is not Files], ids=lambda way: way.name)
def test_no_port_is_left_open(tmp_path, way):
    here(way)
    with way.start(tmp_path / "kept", 1, "records") as keeper:
        place = keeper.call("place")
        socket.create_connection(("127.0.0.1", place)).close()
        assert keeper.call("peak") > 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", place))


@pytest.mark.parametrize("collecting", ALL, ids=lambda each: each.name)
def test_what_is_dropped_is_collected_and_nothing_else(kept, collecting):
    here(collecting)
    path, keeper = kept[f"litter of {collecting.name}"]
    way, place = collecting.way, keeper.call("place")
    collector = collecting.how(way.store, place, path, collecting.kind, littered(LIVE)[1])
    began, ended, done = collector.collect(30)
    assert done
    assert began < ended
    assert collector.left() == 0
    user = User(0)
    user.connect(way.store, place, FIRST, len(items(LIVE)), collecting.kind)
    assert user.verify([(number, 0) for number in items(LIVE)]) == LIVE // 2
    user.disconnect()
    collector.disconnect()


def test_users_work_and_what_they_did_is_there(tmp_path):
    user, other = _user(tmp_path, 0), _user(tmp_path, 1)
    for each in (user, other):
        each.prepare(2, 3, 4)
    assert not set(user._own) & set(other._own)
    assert user.loads(time.perf_counter(), 0.01, False)["rate"] > 0
    assert user.loads(time.perf_counter(), 0.01, True)["rate"] > 0
    assert len(user.works(time.perf_counter(), 0.01, True)["taken"]) == max(version for _, version in user.changed())
    assert other.verify(user.changed()) == len(user.changed()) > 0
    for each in (user, other):
        each.disconnect()


def test_what_was_committed_and_is_not_there_is_noticed(tmp_path):
    user = _user(tmp_path, 0)
    with pytest.raises(AssertionError, match="version 3 of object 9 was committed, and is not there"):
        user.verify([(8, 0), (9, 3)])
    user.disconnect()


def test_what_is_loaded_and_wrong_is_noticed(tmp_path):
    user = _user(tmp_path, 0)
    user.prepare(1, 300, 0)
    user._client.commit([(pack_uint64(number), record(number, 1)[:-1]) for number in user._own])
    with pytest.raises(AssertionError, match="what was loaded as object"):
        user.loads(time.perf_counter(), 0.001, False)
    user.disconnect()


def _user(path, number):
    store = path / "store"
    if not store.exists():
        with closing(opened("sqlite3", store)) as client:
            client.fill(batches(OBJECTS))
    user = User(number)
    user.connect("sqlite3", store, 0, OBJECTS)
    return user


@pytest.mark.parametrize("repeated", [Restless, lambda step: Paced(step, 0.001)])
def test_a_client_that_fails_in_its_thread_is_noticed(repeated):
    with pytest.raises(RuntimeError, match="a client failed: KeyError"):
        _until_it_ended(repeated({}.popitem)).end()


def _until_it_ended(repeated):
    repeated._thread.join()
    return repeated


def test_a_keeper_that_does_not_start_ends_the_others(tmp_path):
    started = {"one": SQLITE3.start(tmp_path / "one", 10, "records"), "two": SQLITE3.start(tmp_path, 10, "records")}
    with pytest.raises(RuntimeError, match="ended by itself"), ExitStack() as stack:
        entered(stack, started)
    assert not any(_is_alive(worker.pid) for worker in started.values())


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_littered(tmp_path):
    graph, holder = littered(LIVE)
    with BerkeleyDBStorage(tmp_path, durable=False) as storage:
        litter(storage, LIVE)
        assert storage.check().faults == []
        assert len(list(storage.gen_oid_record())) == len(graph) > holder + LIVE // 2
    with closing(FileStorage(str(tmp_path / "file"))) as storage:
        litter(storage, LIVE)
        storage.pack()
        assert len(list(storage.gen_oid_record())) == len(graph), "it is no garbage as long as it is held"
    assert graph.refs[holder]
    assert min(graph.refs[holder]) > holder
    assert not any(graph.refs[number] for number in items(LIVE))


def test_references_in_pickles_are_what_zodb_finds():
    serialize = pytest.importorskip("ZODB.serialize")
    graph = littered(LIVE)[0]
    stored = [each for batch in litter_batches(ZODB, LIVE) for each in batch]
    for (oid, data), (number, refs) in zip(stored, enumerate(graph.refs), strict=True):
        assert oid == pack_uint64(number)
        assert serialize.referencesf(data) == [pack_uint64(ref) for ref in refs]
    assert abs(len(zodb_record(8)) - len(record(8))) < 10


def test_noticed_is_what_was_measured_with_and_without():
    found = noticed("load", [0.001] * 100, [0.004] * 99 + [0.008])
    assert found["p50 ms a load"] == pytest.approx(1.0)
    assert found["longest ms a load, collecting"] == pytest.approx(8.0)
    assert 4.0 <= found["p99 of loads, collecting / not"] < 8.0
    with pytest.raises(AssertionError, match="0 loads were done without a collection, 1 with one"):
        noticed("load", [], [0.1])


def test_what_goes_on_within_a_time_counts_until_its_end():
    assert within([(0.0, 1.0), (1.5, 1.0), (2.5, 0.25), (2.75, 9.0), (3.0, 1.0)], 2.0, 3.0) == [1.0, 0.25, 0.25]


@pytest.mark.parametrize(("left", "done"), [(-1, False), (-1, True), (1, True)])
def test_what_was_collected_wrongly_is_noticed(left, done):
    assert plausible(0, done=True) == 0
    assert plausible(5, done=False) == 5
    with pytest.raises(AssertionError, match="objects more than should be"):
        plausible(left, done)


def test_every_store_is_somebodys():
    used = {way.store for way in WAYS} | {each.way.store for each in ALL}
    assert used == set(stores.STORES) - {"ZODB file"}, "that one is what ZEO's server is filled through"
