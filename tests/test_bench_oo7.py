"""OO7: its databases are as the paper says, every peer returns what the plan implies, and a wrong one is found out."""

from contextlib import closing

import pytest

from benchmarks.oo7.building import Builder
from benchmarks.oo7.expected import Expected
from benchmarks.oo7.plan import MEDIUM, SMALL, TINY, Plan
from benchmarks.oo7.running import COLD, EVERYTHING, HOT, INSERT, OO7, STRUCTURAL, UPDATING, column
from benchmarks.peers.registry import OURS, RELSTORAGE, ZODB_FILE, is_here, open_database

PAPER = {"T1": 20, "T2a": 1, "T2b": 20, "T2c": 80, "T3a": 1, "T3b": 20, "T3c": 80, "T6": 1}
"""Atomic parts of each composite part that are met or updated in the small configuration."""


def contender(tmp_path, peer=OURS, cold=(), hot=()):
    if not is_here(peer):
        pytest.skip(f"{peer.package} is not installed")
    return OO7(peer.name, str(tmp_path / "place" / "store"), TINY.name, cold, hot)


@pytest.mark.parametrize("peer", [OURS, ZODB_FILE, RELSTORAGE], ids=lambda peer: peer.name)
def test_every_operation_is_done_and_verified(tmp_path, peer):
    found = contender(tmp_path, peer, ["T1", *STRUCTURAL], EVERYTHING).round()
    columns = [column("T1", COLD), *(column(name, HOT) for name in EVERYTHING)]
    assert all(found[name] > 0 for name in columns)
    assert list((tmp_path / "place").iterdir()) == []


def test_the_counts_are_those_of_the_paper():
    small, medium = Expected(Plan(SMALL)), Plan(MEDIUM).configuration
    assert {name: small.returns(name) for name in PAPER} == {name: 2187 * times for name, times in PAPER.items()}
    assert medium.bases * medium.components * medium.atomic == 437_400
    assert small.returns("Q7") == small.returns("Q8") == 10_000
    assert small.returns("SM1") == small.returns("SM2") == 5 * (1 + 1 + 20 + 60)
    assert 50 < small.returns("Q2") < 150
    assert 900 < small.returns("Q3") < 1100


def test_all_draw_the_same():
    one, other, another = Plan(TINY), Plan(TINY), Plan(TINY, seed=8)
    assert list(one.composites()) == list(other.composites()) != list(another.composites())
    assert list(one.bases()) == list(other.bases())
    assert one.manual(0) == other.manual(0)
    assert len(one.manual(0)) == TINY.manual
    assert {len(part.text) for part in one.composites()} == {TINY.document}


def test_all_atomic_parts_are_connected():
    for composite in Plan(TINY).composites():
        met, todo = set(), [0]
        while todo:
            if (number := todo.pop()) not in met:
                met.add(number)
                todo += [link.to for link in composite.parts[number].links]
        assert len(met) == TINY.atomic


def test_what_is_built_is_what_was_drawn_and_an_update_that_was_left_out_is_found_out(tmp_path):
    one = contender(tmp_path)
    with closing(open_database(one.peer, one.path)) as database:
        builder = Builder(database, one.plan)
        builder.build()
        one.expected.verify(builder)
        for name in UPDATING:
            expected = Expected(one.plan)
            expected.note(name)
            if name in ("T2c", "T3c", "T5undo"):
                expected.verify(builder)  # as good as not at all
                continue
            with pytest.raises(AssertionError, match=r"atomic part|document"):
                expected.verify(builder)


def test_an_operation_that_returns_something_else_is_found_out(tmp_path, monkeypatch):
    one = contender(tmp_path, cold=["T7"])
    monkeypatch.setattr(one.expected, "_t7", lambda: 0)
    with pytest.raises(AssertionError, match=r"T7 of ours returned [1-9][0-9]*, not 0"):
        one.round()


def test_parts_that_were_not_deleted_are_found_out(tmp_path):
    with pytest.raises(AssertionError, match="there are too many atomic parts, or too few"):
        contender(tmp_path, hot=[INSERT]).round()
