"""Policies with a storage: what they are told, what is done when they say so, and those of the first release."""

import threading
import time

import pytest
from concurrency import PATIENCE
from graphs import commit, number, quiet, record, scratch_storage, stored, table

from berkeleydb_storage import (
    GarbageInline,
    GarbageManual,
    GarbageNightly,
    GarbageNumbers,
    GarbageThread,
    garbage_collection_interface,
)
from berkeleydb_storage.environment import META
from berkeleydb_storage.format import META_PACKED, pack_uint64

LARGE = 600
"""Objects of a ring that the search for cycles gives up."""
HOLDER = 1
POPULAR = (2, 3, 4)
"""Objects to which every other one refers."""
COMMITS = 60


def new(storage, count):
    return [number(storage.new_oid()) for _ in range(count)]


def ring(oids, *more):
    """Each refers to the next one."""
    return [record(one, following, *more) for one, following in zip(oids, [*oids[1:], oids[0]], strict=True)]


def doubly_linked(oids, *more):
    return [record(one, *oids[max(0, at - 1) : at], *oids[at + 1 : at + 2], *more) for at, one in enumerate(oids)]


def tree(oids, *more):
    """Each refers to its parent, the top to the object that holds the tree."""
    for at, one in enumerate(oids):
        parent = oids[(at - 1) // 2] if at else HOLDER
        yield record(one, parent, *oids[2 * at + 1 : 2 * at + 3], *more)


def begin(storage):
    new(storage, 5)
    commit(storage, record(0, HOLDER, *POPULAR), record(HOLDER), *map(record, POPULAR))


def drop_large(storage):
    """Let go of a ring that only a full pack collects; return how many objects live."""
    begin(storage)
    oids = new(storage, LARGE)
    commit(storage, record(HOLDER, oids[0]), *ring(oids))
    commit(storage, record(HOLDER))
    return storage.get_size() - LARGE


@pytest.mark.parametrize("shape", [ring, doubly_linked, tree])
@pytest.mark.parametrize("size", [1, 2, 5, 50, 100])
@pytest.mark.parametrize("more", [(), POPULAR])
def test_inline_keeps_up_with_what_commits_replace(shape, size, more):
    """However many there were: after each, what the last few let go of is there at most."""
    with scratch_storage(garbage_collection=GarbageInline(grace=0)) as storage:
        begin(storage)
        live = storage.get_size() + size
        for _ in range(COMMITS):
            oids = new(storage, size)
            commit(storage, record(HOLDER, oids[0]), *shape(oids, *more))
            assert storage.get_size() - live <= max(3 * size, 20)


def test_inline_works_off_what_was_let_go_of_at_once():
    """Later commits do, whatever they store: at least ten records each."""
    with scratch_storage(garbage_collection=GarbageInline(grace=0)) as storage:
        begin(storage)
        live = storage.get_size()
        oids = new(storage, 200)
        commit(storage, record(HOLDER, oids[0]), *doubly_linked(oids))
        commit(storage, record(HOLDER))
        for turn in range(2 * 200 // 10 + 2):
            commit(storage, record(2, data=b"%d" % turn))
        assert storage.get_size() == live


@pytest.mark.parametrize("policy", [GarbageManual(), GarbageInline(grace=3600)])
def test_a_pack_that_was_asked_for_goes_on_with_the_commits(policy):
    """Though nobody asks its generator to."""
    with scratch_storage(garbage_collection=policy) as storage:
        live = drop_large(storage)
        packer = storage.get_packer()
        assert storage._running.collector.numbers().packing
        for turn in range(LARGE):
            commit(storage, record(2, data=b"%d" % turn))
        assert storage.get_size() == live
        assert storage.statistics().packing is None
        assert list(packer)[-1].startswith("collected ")


def test_manual_does_nothing_else():
    with scratch_storage(garbage_collection=GarbageManual()) as storage:
        drop_large(storage)
        size = storage.get_size()
        commit(storage, record(0, HOLDER), *(record(2, data=b"%d" % turn) for turn in range(2)))
        assert storage.get_size() == size


class FirstRelease(garbage_collection_interface):
    """As the README of the first release had it: it knows three numbers, and of no full pack."""

    grace, interval = 0.0, None

    def __init__(self):
        self.told = []

    def amount(self, numbers):
        self.told.append((numbers.waiting, numbers.committed, numbers.idle))
        return 100_000


class WithoutBase:
    """Its members are enough, as they were."""

    grace, interval = 0.0, None
    __init__ = FirstRelease.__init__
    amount = FirstRelease.amount


@pytest.mark.parametrize("policy", [FirstRelease, WithoutBase])
def test_policies_written_for_the_first_release(policy):
    """They collect what they did, and cycles."""
    mine = policy()
    with scratch_storage(garbage_collection=mine) as storage:
        begin(storage)
        oids = new(storage, 30)
        commit(storage, record(HOLDER, oids[0], oids[10]), *ring(oids[:10]), *map(record, oids[10:11]))
        commit(storage, record(HOLDER))
        commit(storage, record(2, data=b"new"))
        assert stored(storage).keys() == {0, HOLDER, *POPULAR}
        assert mine.told[2] == (1, 1, pytest.approx(0.0, abs=PATIENCE))
        assert not hasattr(policy, "pack") or policy is FirstRelease
        storage.pack()


@pytest.mark.parametrize("policy", [FirstRelease, WithoutBase])
def test_policies_written_for_the_first_release_in_a_thread(policy):
    mine = policy()
    mine.interval = 0.001
    with scratch_storage(garbage_collection=mine) as storage:
        live = drop_large(storage)
        packer = storage.get_packer()
        deadline = time.monotonic() + PATIENCE
        while storage.get_size() > live:
            assert time.monotonic() < deadline
        assert list(packer)


def test_numbers_as_the_first_release_made_them():
    numbers = GarbageNumbers(3, 2, 1.0)
    assert (numbers.waiting, numbers.committed, numbers.idle) == (3, 2, 1.0)
    assert not numbers.packing


class OnRequest(garbage_collection_interface):
    """Packs when told to."""

    grace, interval = 3600.0, None
    wanted = False

    def __init__(self):
        self.told = []

    def amount(self, numbers):
        self.told.append(numbers)
        return 0

    def pack(self, numbers):
        return self.wanted


def test_a_pack_goes_on_while_the_policy_says_so():
    """It is put off when that says no, and goes on where it was, until it is complete."""
    policy = OnRequest()
    with scratch_storage(garbage_collection=policy) as storage:
        live, texts = drop_large(storage), iter(range(10_000))

        def turn():
            commit(storage, record(2, data=b"%d" % next(texts)))
            return storage.statistics().packing

        assert turn() is None
        policy.wanted = True
        while (packing := turn()) is None or packing.activity == "marking":
            pass
        assert policy.told[-1].packing
        policy.wanted = False
        assert turn() is not None
        after = turn()
        assert turn() == after
        assert not policy.told[-1].packing
        policy.wanted = True
        before = storage.statistics().last_pack
        while storage.statistics().last_pack == before:
            turn()
        assert storage.get_size() == live
        policy.wanted = False


def test_what_a_policy_is_told():
    policy = OnRequest()
    with scratch_storage(garbage_collection=policy) as storage:
        before = time.time()
        begin(storage)
        told = policy.told[-1]
        assert told == GarbageNumbers(0, 5, told.idle, objects=5, since_pack=told.since_pack, now=told.now)
        assert before <= told.now <= time.time()
        assert 0 <= told.since_pack < time.time() - before + PATIENCE
        oids = new(storage, 3)
        commit(storage, record(HOLDER, *oids), *ring(oids[:2]), record(oids[2]))
        commit(storage, record(HOLDER))
        told = policy.told[-1]
        assert (told.waiting, told.committed, told.suspects, told.objects, told.packing) == (1, 1, 2, 8, False)
        storage.pack()
        commit(storage, record(HOLDER))
        told = policy.told[-1]
        assert (told.waiting, told.suspects, told.unsettled, told.objects) == (0, 0, 0, 5)
        assert told.since_pack <= time.time() - before


def test_suspects_that_only_a_full_pack_can_settle():
    policy = GarbageInline(grace=0, least=LARGE)
    with scratch_storage(garbage_collection=policy) as storage:
        live = drop_large(storage)
        for turn in range(3):
            commit(storage, record(2, data=b"%d" % turn))
        numbers = storage._running.collector.numbers()
        assert (numbers.suspects, numbers.unsettled) == (0, 1)
        assert storage.statistics().unsettled == 1
        assert storage.get_size() == live + LARGE
        assert GarbageThread(pack_interval=0).pack(numbers)


@pytest.mark.parametrize("nightly", [False, True])
def test_the_thread_packs_by_itself(tmp_path, nightly):
    """Where something is left over and it is due; at night in any case."""
    done = threading.Event()

    class Watched(GarbageNightly if nightly else GarbageThread):
        def amount(self, numbers):
            if numbers.objects <= 5 and not numbers.packing:
                done.set()
            return super().amount(numbers)

    now = time.localtime()
    hours = {"begin": f"{now.tm_hour}:00", "end": f"{(now.tm_hour + 2) % 24}:00"}
    policy = Watched(grace=0, interval=0.001, **(hours if nightly else {"pack_interval": 0}))
    with quiet(tmp_path) as storage:
        live = drop_large(storage)
        table(storage, META).put(META_PACKED, pack_uint64(1))
    with quiet(tmp_path, garbage_collection=policy) as storage:
        assert done.wait(PATIENCE)
        assert storage.get_size() == live == 5
        assert storage.check().sound
