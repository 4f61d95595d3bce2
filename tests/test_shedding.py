"""The memory of a search that has ended goes piece by piece: all at once would keep every thread waiting."""

from graphs import commit, hand_out, number, quiet, record

from berkeleydb_storage.garbage import suspicion
from berkeleydb_storage.garbage.cycles import CLOSED, Search

RING = 50


def ring(number):
    return ((number % RING + 1),)


def test_a_search_is_freed_in_pieces_that_are_asked_for():
    search = Search(1, RING, RING)
    search.run(ring, lambda _: 1, RING + 1)
    assert search.outcome == CLOSED
    pieces = 1
    while search.shed(10):
        pieces += 1
    assert pieces == RING // 10
    assert set(search.closed) == set(range(1, RING + 1))
    assert not search.shed(10)


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
