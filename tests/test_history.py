"""What was changed since when, as the server remembers it, beside a list of everything."""

import pytest
from conftest import Opener
from durus.serialize import pack_record
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from berkeleydb_storage import CheckpointNever, GarbageManual
from berkeleydb_storage.format import pack_uint64
from berkeleydb_storage.server.history import History

OBJECTS = [pack_uint64(number) for number in range(8)]
CLIENTS = range(3)
KEPT = 6
EXAMPLES = 60
STEPS = 40


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("history")
    opener = Opener(path)
    options = {"garbage_collection": GarbageManual(), "checkpoint": CheckpointNever(), "durable": False}
    engine = opener(**options).engine
    for _ in OBJECTS:
        engine.new_oid()
    yield engine
    opener.finish()


def commit(engine, history, oids, author=None):
    history.author = author
    engine.commit({oid: (pack_record(oid, b"", b""), ()) for oid in oids}, 8 * len(oids))
    history.author = None
    return engine.journal.tid


class Machine(RuleBasedStateMachine):
    """Clients as the desk treats them: what they store is not news to them, and nobody stores what is news to him."""

    engine = None
    kept = KEPT
    large = 10**6

    def __init__(self):
        super().__init__()
        self.history = History(self.engine, self.kept, self.large)
        self.everything = []
        self.told = dict.fromkeys(CLIENTS, self.engine.journal.tid)

    def expected(self, client):
        told = self.told[client]
        return {oid for tid, oids, author in self.everything if tid > told and author != client for oid in oids}

    @rule(client=st.sampled_from(CLIENTS), oids=st.sets(st.sampled_from(OBJECTS), min_size=1), told=st.booleans())
    def client_commits(self, client, oids, told):
        oids -= set(self.history.since(self.told[client], client))
        if oids:
            tid = commit(self.engine, self.history, oids, client)
            self.everything.append((tid, oids, client))
            if told:
                self.told[client] = tid

    @rule(oids=st.sets(st.sampled_from(OBJECTS), min_size=1))
    def others_commit(self, oids):
        self.everything.append((commit(self.engine, self.history, oids), oids, None))

    @rule(client=st.sampled_from(CLIENTS))
    def tell(self, client):
        self.told[client] = self.engine.journal.tid

    @rule()
    def trim(self):
        self.history.trim(min(self.told.values()))

    @precondition(lambda self: self.everything)
    @rule()
    def come_back(self):
        """One who is told from here on has nothing to be told."""
        assert self.history.since(self.engine.journal.tid, "new") == []

    @invariant()
    def nothing_is_kept_from_anyone(self):
        for client, told in self.told.items():
            news, expected = self.history.since(told, client), self.expected(client)
            assert len(news) == len(set(news))
            assert expected <= set(news)
            if told >= self.history.old_until:
                assert expected == set(news)
            assert {oid for oid in OBJECTS if self.history.is_news(oid, told, client)} >= expected

    @invariant()
    def the_newest_is_known(self):
        newest = {oid: tid for tid, oids, _ in self.everything for oid in oids}
        for oid in OBJECTS:
            entry = self.history.latest(oid)
            if entry is None:
                assert newest.get(oid, 0) <= self.history.old_until
            else:
                assert entry.tid == newest[oid]

    @invariant()
    def little_is_kept(self):
        entries = self.history._entries
        assert len(entries) < 2 or sum(entry.weight for entry in entries) <= self.kept


class Large(Machine):
    """Transactions of three objects or more are remembered in another way."""

    large = 3


class Roomy(Machine):
    """Remembers each transaction."""

    kept = 10**6

    @invariant()
    def exactly(self):
        assert self.history.old_until == 0
        for client, told in self.told.items():
            assert {oid for oid in OBJECTS if self.history.is_news(oid, told, client)} == self.expected(client)


class Bitmaps(Machine):
    """Has bitmaps for all but the smallest."""

    large = 3


class RoomyBitmaps(Roomy):
    """Likewise, and remembers each transaction."""

    large = 3


@pytest.mark.parametrize("machine", [Machine, Roomy, Bitmaps, RoomyBitmaps])
def test_beside_a_list(engine, machine):
    class WithEngine(machine):
        pass

    WithEngine.engine = engine
    limits = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)
    run_state_machine_as_test(WithEngine, settings=limits)


def test_own_commits_are_no_news(engine):
    history = History(engine)
    before = engine.journal.tid
    commit(engine, history, OBJECTS[:1], "me")
    commit(engine, history, OBJECTS[1:2], "you")
    assert history.since(before, "me") == OBJECTS[1:2]
    assert history.since(before, "you") == OBJECTS[:1]
    assert history.is_news(OBJECTS[0], before, "you")
    assert not history.is_news(OBJECTS[0], before, "me")
    assert not history.is_news(OBJECTS[2], before, "me")


def test_who_is_far_behind_is_told_of_more(engine):
    history = History(engine, kept=2)
    before = engine.journal.tid
    for oid in OBJECTS[:4]:
        commit(engine, history, [oid], "me")
    assert set(history.since(before, "you")) == set(OBJECTS[:4])
    assert set(history.since(before, "me")) == set(OBJECTS[:2])  # it is forgotten whose they were
    assert history.since(history.old_until, "me") == []
    history.trim(history.old_until - 1)
    assert set(history.since(before, "me")) == set(OBJECTS[:2])
    history.trim(history.old_until)
    assert history.since(history.old_until, "you") == OBJECTS[3:1:-1]


def test_one_large_transaction_is_kept(engine):
    history = History(engine, kept=2)
    before = engine.journal.tid
    commit(engine, history, OBJECTS)
    assert history.old_until == 0
    assert set(history.since(before, "me")) == set(OBJECTS)


def test_what_is_forgotten_may_not_be_on_the_disk_yet(open_storage):
    engine = open_storage(garbage_collection=GarbageManual(), checkpoint=CheckpointNever()).engine
    for _ in OBJECTS:
        engine.new_oid()
    history = History(engine, kept=1)
    for oid in OBJECTS[:3]:
        with engine.lock:
            assert list(engine.applying({oid: (pack_record(oid, b"", b""), ())}, 8)) == []
    assert [history.is_doubtful(oid) for oid in OBJECTS[:3]] == [True, True, False]
    history.trim(engine.journal.tid)
    assert history.is_doubtful(OBJECTS[0])
    engine.make_durable()
    assert not any(map(history.is_doubtful, OBJECTS))
    history.trim(engine.journal.tid)
    assert not history._old


def test_listens_for_as_long_as_it_lives(engine):
    history = History(engine)
    assert history.began == engine.journal.tid
    commit(engine, history, OBJECTS[:1])
    assert history.latest(OBJECTS[0]).tid == engine.journal.tid
    assert history.latest(OBJECTS[0]).author is None
