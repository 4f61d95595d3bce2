"""Several threads on one storage, while its background threads collect garbage and make checkpoints."""

import threading
from contextlib import suppress
from functools import partial
from random import Random

import pytest
from concurrency import PATIENCE, run_threads
from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError
from durus.persistent_dict import PersistentDict
from durus.serialize import split_oids, unpack_record
from server_storages import EagerCheckpoints

from berkeleydb_storage import GarbageManual, GarbageThread, StorageClosed
from berkeleydb_storage.testing import commit, record_of
from berkeleydb_storage.testing.records import ROOT, accept, loaded, populate

INCREMENTS = 40
TRANSFERS = 40
ACCOUNTS = 8
OPENING_BALANCE = 100
VERSIONS = 300
MOVES = 40
PENDING_TURNS = 12
CLOSES = 3

THREADS = pytest.mark.parametrize("threads", [2, 8])


@pytest.fixture(params=["btree", "hash"])
def storage(open_storage, request):
    """A storage whose background threads never rest."""
    return open_storage(
        type=request.param,
        checkpoint=EagerCheckpoints(log_bytes=1),
        garbage_collection=GarbageThread(grace=0, interval=0.001),
    )


def retried(connection, transaction):
    """Run a transaction until it does not conflict; return what it returns, and how often it did."""
    conflicts = 0
    while True:
        try:
            result = transaction(connection.get_root())
            connection.commit()
        except ConflictError:
            conflicts += 1
            connection.abort()
        else:
            return result, conflicts


def fill_root(storage, **values):
    """Store a root with these values."""
    connection = Connection(storage)
    connection.get_root().update(values)
    connection.commit()
    return connection


@THREADS
def test_no_increment_is_lost(storage, threads):
    """Read, add one, write, from many threads; whoever conflicts does it again."""
    names = [str(number) for number in range(4)]
    connection = fill_root(storage, **{name: PersistentDict(n=0) for name in names})
    met = []

    def add(root, name):
        root[name]["n"] += 1
        root[name]["last"] = PersistentDict(n=root[name]["n"])

    def work(seed):
        own, random = Connection(storage.session()), Random(seed)
        for _ in range(INCREMENTS):
            met.append(retried(own, partial(add, name=random.choice(names)))[1])

    run_threads(*(partial(work, seed) for seed in range(threads)))
    connection.abort()
    root = connection.get_root()
    assert sum(root[name]["n"] for name in names) == threads * INCREMENTS
    assert all(root[name]["last"]["n"] == root[name]["n"] for name in names)
    assert len(met) == threads * INCREMENTS


@THREADS
def test_sums_are_constant(storage, threads):
    """Half of the threads move money, the others add it all up in one transaction: no sum is ever wrong."""
    connection = fill_root(storage, accounts=PersistentDict())
    accounts = connection.get_root()["accounts"]
    accounts.update({number: PersistentDict(balance=OPENING_BALANCE) for number in range(ACCOUNTS)})
    connection.commit()
    done = threading.Semaphore(0)
    writers = threads // 2
    sums = []

    def transfer(root, random):
        source, target = random.sample(range(ACCOUNTS), 2)
        amount = random.randrange(10)
        root["accounts"][source]["balance"] -= amount
        root["accounts"][target]["balance"] += amount

    def write(seed):
        own, random = Connection(storage.session()), Random(seed)
        try:
            for _ in range(TRANSFERS):
                retried(own, partial(transfer, random=random))
        finally:
            done.release()

    def total(root):
        return sum(account["balance"] for account in root["accounts"].values())

    def read():
        own = Connection(storage.session(), cache_size=3)
        while not done.acquire(blocking=False):
            sums.append(retried(own, total)[0])
        sums.append(retried(own, total)[0])

    run_threads(*(partial(write, seed) for seed in range(writers)), *[read] * writers)
    assert set(sums) == {ACCOUNTS * OPENING_BALANCE}
    assert len(sums) >= writers


@THREADS
def test_what_is_loaded_between_two_syncs_belongs_together(storage, threads):
    """One thread writes two records in each commit, the others load both: never one of each commit."""
    first, second = sorted(populate(storage, 2))[1:]
    versions = [
        [record_of(oid, bytes(turn * 37 % 5000) + b"%d" % turn) for oid in (first, second)] for turn in range(VERSIONS)
    ]
    version_of = {record: turn for turn, pair in enumerate(versions) for record in pair}
    finished = threading.Event()

    def write():
        try:
            for pair in versions[1:]:
                commit(storage, pair)
        finally:
            finished.set()

    def read():
        session, newest = storage.session(), 0
        while True:
            last = finished.is_set()
            session.sync()
            try:
                found = {version_of[record] for record in loaded(session, [first, second]).values()}
            except ReadConflictError:
                assert not last
                continue
            assert len(found) == 1
            assert min(found) >= newest
            newest = min(found)
            if last:
                break
        assert newest == VERSIONS - 1

    commit(storage, versions[0])
    run_threads(write, *[read] * (threads - 1))


@THREADS
def test_pending_commits_belong_to_their_threads(open_storage, threads):
    """All threads begin, all store, all drop or end what they stored, on one and the same object."""
    storage = open_storage(garbage_collection=GarbageManual())
    populate(storage, 0)
    together = threading.Barrier(threads, timeout=PATIENCE)
    stored = {}

    def work(number):
        for turn in range(PENDING_TURNS):
            oids = [storage.new_oid() for _ in range(3)]
            mine = {oid: record_of(oid, b"%d %d" % (number, turn), [ROOT]) for oid in oids}
            together.wait()
            storage.begin()
            together.wait()
            for record in mine.values():
                storage.store(record[:8], record)
            together.wait()
            drop = (turn + number) % 3
            if drop == 1:
                storage.begin()
            elif drop == 2:
                with pytest.raises(ValueError, match="malformed"):
                    storage.store(oids[0], record_of(oids[0]) + b"\0")
            else:
                stored.update(mine)
            storage.end(accept)

    run_threads(*(partial(work, number) for number in range(threads)))
    assert loaded(storage, stored) == stored
    assert storage.get_size() == 1 + len(stored)
    storage.close()


@THREADS
def test_objects_that_change_places(storage, threads):
    """Threads move, drop and make objects while what they drop is collected at once: nothing that is linked is lost."""
    places = [f"place {number}" for number in range(3)]
    connection = fill_root(storage, **{place: PersistentDict() for place in places})

    def move(root, random):
        source, target = (root[place] for place in random.sample(places, 2))
        for key in random.sample(sorted(source), min(2, len(source))):
            moved = source.pop(key)
            if random.random() < 0.7:
                target[key] = moved
        fresh = random.randrange(1000)
        target[fresh] = PersistentDict(key=fresh, child=PersistentDict(key=fresh))

    def work(seed):
        own, random = Connection(storage.session()), Random(seed)
        for _ in range(MOVES):
            retried(own, partial(move, random=random))

    run_threads(*(partial(work, seed) for seed in range(threads)))
    connection.abort()
    for place in places:
        for key, value in connection.get_root()[place].items():
            assert value["key"] == value["child"]["key"] == key


def test_handler_may_use_the_storage(storage):
    """`handle_invalidations` is called without any lock held."""
    records = populate(storage, 2)
    session = storage.session()
    commit(storage, [record_of(max(records), b"new")])
    seen = []

    def handle(oids):
        seen.extend(loaded(session, oids).items())
        commit(storage.session(), [record_of(min(oids), b"from the handler")])

    session.sync()
    commit(storage, [record_of(max(records), b"newer")])
    run_threads(partial(commit, session, [record_of(ROOT, b"root", sorted(records)[1:])], handle_once(handle)))
    assert seen == [(max(records), record_of(max(records), b"newer"))]
    storage.sync()
    assert storage.load(max(records)) == record_of(max(records), b"from the handler")


def handle_once(handle):
    """Return a handler of invalidations that calls `handle` the first time and does nothing after that."""
    turns = iter([handle])
    return lambda oids: next(turns, accept)(oids)


def loads(session, records):
    session.sync()
    with suppress(ReadConflictError):
        assert set(loaded(session, records)) == set(records)


def commits(session, parent, acknowledged):
    oid = session.new_oid()
    children = [*acknowledged.get(parent, []), oid]
    commit(session, [record_of(oid, b"child"), record_of(parent, b"parent", children)])
    acknowledged[parent] = children


def iterates(session, records):
    assert len(list(session.gen_oid_record())) >= len(records)


def crawls(session, records):
    session.sync()
    with suppress(ReadConflictError):
        assert len(list(session.gen_oid_record(start_oid=ROOT, batch_size=7))) >= len(records)


@pytest.mark.parametrize("turn", range(CLOSES))
def test_close_while_others_are_busy(open_storage, turn):
    """Everybody gets StorageClosed, nothing hangs, and what was acknowledged is there."""
    storage = open_storage(
        type=["btree", "hash"][turn % 2],
        durable=turn != 1,
        checkpoint=EagerCheckpoints(log_bytes=1),
        garbage_collection=GarbageManual(),
    )
    records = populate(storage, 300)
    acknowledged = {}
    busy = [threading.Event() for _ in range(12)]

    def forever(started, act, *arguments):
        while True:
            act(*arguments)
            started.set()

    def until_closed(*arguments):
        with pytest.raises(StorageClosed, match="closed"):
            forever(*arguments)

    def close():
        for started in busy:
            assert started.wait(PATIENCE)
        storage.close()
        storage.close()

    actions = [
        *[(loads, storage.session(), records)] * 2,
        *[(commits, storage.session(), parent, acknowledged) for parent in sorted(records)[1:3]],
        (commits, storage, max(records), acknowledged),
        (iterates, storage.session(), records),
        (crawls, storage.session(), records),
        (storage.new_oid,),
        (storage.pack,),
        (storage.checkpoint,),
        (storage.check,),
        (storage.statistics,),
    ]
    run_threads(close, *(partial(until_closed, started, *act) for started, act in zip(busy, actions, strict=True)))
    reopened = open_storage(garbage_collection=GarbageManual())
    for parent, children in acknowledged.items():
        assert split_oids(unpack_record(reopened.load(parent))[2])[: len(children)] == children
        assert set(loaded(reopened, children)) == set(children)
