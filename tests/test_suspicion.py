"""Suspects: when a set is old enough, and that no step of a search is long, its end neither."""

from graphs import collected, commit, hand_out, number, quiet, record

from berkeleydb_storage.garbage import suspicion
from berkeleydb_storage.garbage.cycles import CLOSED, Search

RING = 50


def ring(number):
    return ((number % RING + 1),)


def test_a_search_is_freed_in_pieces_that_are_asked_for():
    """All at once would keep every thread waiting."""
    search = Search(1, RING, RING)
    search.run(ring, lambda _: 1, RING + 1)
    assert search.outcome == CLOSED
    pieces = 1
    while search.shed(10):
        pieces += 1
    assert pieces == RING // 10
    assert set(search.closed) == set(range(1, RING + 1))
    assert not search.shed(10)


def test_each_count_is_asked_for_once_a_turn():
    """And anew in the next one: others commit in between."""
    asked = []

    def count(number):
        asked.append(number)
        return 1

    search, turns = Search(1, RING, RING), 0
    while search.outcome is None:
        asked.clear()
        search.run(ring, count, 10)
        turns += 1
        assert len(asked) == len(set(asked))
    assert turns > 1
    assert search.outcome == CLOSED


def make_ring(storage):
    """Commit a ring, and let go of it."""
    hand_out(storage, RING + 1)
    members = [record(key, *ring(key)) for key in range(1, RING + 1)]
    commit(storage, record(0, 1), *members)
    commit(storage, record(0))


def watch_shedding(monkeypatch):
    """Note what is left of each search after each piece, and whether the mutex was held."""
    seen = []

    class Watched(Search):
        def shed(self, pieces):
            more = super().shed(pieces)
            seen.append((len(self._seen), self.engine.lock.locked()))
            return more

    monkeypatch.setattr(suspicion, "Search", Watched)
    monkeypatch.setattr(suspicion, "PIECES", 10)
    return Watched, seen


def test_the_collector_frees_what_it_has_done_with_outside_the_mutex(tmp_path, monkeypatch):
    watched, seen = watch_shedding(monkeypatch)
    with quiet(tmp_path) as storage:
        watched.engine = storage._engine
        make_ring(storage)
        steps = 0
        while storage.get_size() > 1:
            storage._running.collector.step(20, 1 << 62)
            steps += 1
            assert steps < 10
        assert {number(key) for key, _ in storage.gen_oid_record()} == {0}
    assert seen == [(left, False) for left in range(RING - 10, -10, -10)]


def test_so_does_a_full_pack_that_comes_between(tmp_path, monkeypatch):
    watched, seen = watch_shedding(monkeypatch)
    with quiet(tmp_path) as storage:
        watched.engine = storage._engine
        make_ring(storage)
        for _ in range(2):  # the first takes note of the suspects
            storage._running.collector.step(25, 1 << 62)
        assert not seen
        storage.pack()
        assert storage.get_size() == 1
    assert seen == [(15, False), (5, False), (0, False)]


def look(storage, until, limit=1000):
    """Let the collector do all that it finds to do about what became garbage until then."""
    while storage._running.collector.step(limit, until):
        pass


def now(storage):
    """Return the time of the last transaction."""
    return storage._engine.journal.state.time


def in_storage(storage):
    return {number(key) for key, _ in storage.gen_oid_record()}


def test_a_set_is_as_young_as_its_youngest_suspect(tmp_path):
    """The ring lost its index at first, and then what held it: the second counts."""
    index, holder = 8, 9
    with quiet(tmp_path) as storage:
        hand_out(storage, 10)
        members = [record(key, key % 5 + 1) for key in range(1, 6)]
        commit(storage, record(0, index, holder), record(index, 2, 3, 4, 5), record(holder, 1), *members)
        commit(storage, record(index))
        first = now(storage)
        commit(storage, record(holder))
        second = now(storage)
        look(storage, first)
        assert in_storage(storage) == {0, *range(1, 6), index, holder}
        look(storage, second - 1)
        assert in_storage(storage) == {0, *range(1, 6), index, holder}
        look(storage, second)
        assert in_storage(storage) == {0, index, holder}
        assert storage.check().faults == []


def test_a_young_suspect_beside_the_set_does_not_keep_it(tmp_path):
    beside, leaf, holder = 2, 5, 9
    with quiet(tmp_path) as storage:
        hand_out(storage, 10)
        ring = [record(1, beside, 3), record(3, 4), record(4, 1)]
        commit(storage, record(0, beside, holder), record(holder, 1, beside), record(beside, leaf), record(leaf), *ring)
        commit(storage, record(holder, beside))
        dropped = now(storage)
        commit(storage, record(holder))
        assert storage._engine.counts.suspect(record(beside)[:8]).since > dropped
        look(storage, dropped)
        assert in_storage(storage) == {0, beside, leaf, holder}
        assert collected(storage).read == 3 + 4, "the one beside it was not looked at, so that nothing is tested"


def test_the_end_of_a_search_is_no_longer_than_its_steps(tmp_path, monkeypatch):
    """Though each object of the set is a suspect itself."""
    size, limit = 500, 20
    with quiet(tmp_path) as storage:
        hand_out(storage, size + 2)
        members = [record(1, 2), record(size, size - 1)]
        members += [record(key, key - 1, key + 1) for key in range(2, size)]
        commit(storage, record(0, size + 1), record(size + 1, *range(1, size + 1)), *members)
        commit(storage, record(size + 1))
        assert storage.statistics().suspects == size
        asked = []
        ask = storage._engine.counts.suspect
        monkeypatch.setattr(storage._engine.counts, "suspect", lambda oid: asked.append(oid) or ask(oid))
        most = 0
        while storage._running.collector.step(limit, 1 << 62):
            most = max(most, len(asked))
            asked.clear()
        assert in_storage(storage) == {0, size + 1}
        assert limit <= most <= limit + 5
