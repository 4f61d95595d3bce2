"""Histories of many clients of a server have an order; and the checker that says so finds what it is there to find."""

import pytest
from histories import ABSENT, COMMITTED, GONE, READ, REFUSED, UNKNOWN, Transaction, faults, find_cycle, load, save


class Writer:
    """Makes histories: one transaction after the other in time, unless the test says when it began and ended."""

    def __init__(self):
        self.transactions = []
        self._time = 0

    def __call__(self, name, outcome=COMMITTED, *, begin=None, end=None, reads=(), writes=(), **others):
        """`reads` and `writes` are texts such as "x1"; what is written was read in the version that is one older."""
        self._time += 2
        seen = {each[0]: each[1:] if each[1:] != "0" else ABSENT for each in reads}
        for each in writes:
            older = int(each[1:].removeprefix(GONE)) - 1
            seen.setdefault(each[0], str(older) if older else ABSENT)
        transaction = Transaction(
            name,
            self._time if begin is None else begin,
            self._time + 1 if end is None else end,
            outcome,
            seen,
            {each[0]: each[1:] for each in writes},
            **others,
        )
        self.transactions.append(transaction)
        return transaction

    def faults(self, **final):
        return faults(self.transactions, final or None)


@pytest.fixture
def did():
    return Writer()


def test_histories_in_order(did):
    did("a", writes=["x1", "y1"])
    did("b", reads=["y1"], writes=["x2"], begin=5, end=20)
    did("c", READ, reads=["x1", "y1"], begin=5, end=20)
    did("d", REFUSED, reads=["x1"], writes=["y2"], begin=6, end=20)
    did("e", UNKNOWN, reads=["x2"], writes=["y2"], begin=22)
    did("f", READ, reads=["x2", "y2"], begin=23, end=40)
    did("g", UNKNOWN, writes=["x3"], begin=50)
    assert did.faults(x="2", y="2") == ["version ('y', '2') was written by d and e"]
    did.transactions[3].writes = {"y": "other"}
    assert did.faults(x="2", y="2") == []
    assert did.faults(x="3", y="2") == []


def test_lost_update(did):
    did("a", writes=["x1"])
    did("b", writes=["x2"], begin=5, end=9)
    did("c", begin=5, end=9).writes["x"] = "3"
    did.transactions[-1].reads["x"] = "1"
    assert any("lost update: b, c" in each for each in did.faults())


def test_write_skew(did):
    did("a", writes=["x1", "y1"])
    did("b", reads=["x1", "y1"], writes=["x2"], begin=5, end=9)
    did("c", reads=["x1", "y1"], writes=["y2"], begin=5, end=9)
    assert any("no order" in each for each in did.faults(x="2", y="2"))


@pytest.mark.parametrize("outcome", [COMMITTED, READ, REFUSED, UNKNOWN])
def test_half_of_another_transaction(did, outcome):
    did("a", writes=["x1", "y1"])
    did("b", writes=["x2", "y2"], begin=5, end=9)
    did("c", outcome, reads=["x1", "y2"], begin=5, end=9)
    assert any("no order" in each for each in did.faults())


def test_two_readers_that_see_different_orders(did):
    did("a", writes=["x1", "y1"])
    did("b", writes=["x2"], begin=5, end=9)
    did("c", writes=["y2"], begin=5, end=9)
    did("d", READ, reads=["x2", "y1"], begin=5, end=9)
    assert did.faults() == []
    did("e", READ, reads=["x1", "y2"], begin=5, end=9)
    assert any("no order" in each for each in did.faults())


def test_stale_reads(did):
    """What was over when a transaction began must be seen, unless it did not ask."""
    did("a", writes=["x1"])
    did("b", writes=["x2"])
    stale = did("c", READ, reads=["x1"])
    assert any("no order" in each for each in did.faults())
    stale.synced = False
    assert did.faults() == []


def test_order_in_time_through_many(did):
    did("a", writes=["x1"])
    did("b", writes=["x2"])
    for number in range(1, 50):
        did(f"y{number}", writes=[f"y{number}"])
    did("c", READ, reads=["x1"])
    assert any("no order" in each for each in did.faults())


def test_reads_of_what_was_refused_or_never_written(did):
    did("a", writes=["x1"])
    did("b", REFUSED, writes=["x2"])
    did("c", READ, reads=["x2"])
    did("d", REFUSED, reads=["x7"])
    found = did.faults()
    assert any("b was refused" in each for each in found)
    assert any("never written" in each for each in found)


def test_what_was_acknowledged_is_lost(did):
    did("a", writes=["x1"])
    did("b", writes=["x2"])
    assert did.faults(x="2") == []
    assert any("at the end" in each for each in did.faults(x="1"))
    did("c", begin=20, end=21).writes["x"] = "3"
    did.transactions[-1].reads["x"] = "1"
    assert did.faults(x="3")


def test_what_was_shown_is_lost(did):
    """An unknown commit was seen, by one who only read, and a kill took it back."""
    did("a", writes=["x1"])
    did("b", UNKNOWN, writes=["x2"])
    did("c", READ, reads=["x2"])
    did("d", writes=[], reads=["x1"], begin=20, end=21).writes["x"] = "4"
    assert any("lost update" in each for each in did.faults(x="4"))
    did.transactions[2].inside = True
    assert did.faults(x="4") == []


def test_an_unknown_commit_is_there_by_half(did):
    did("a", writes=["x1", "y1"])
    did("b", UNKNOWN, writes=["x2", "y2"])
    assert did.faults(x="1", y="1") == []
    assert did.faults(x="2", y="2") == []
    assert any("y is '1' at the end" in each for each in did.faults(x="2", y="1"))


def test_versions_of_what_is_deleted(did):
    did("a", writes=["x1", "y1"])
    did("b").writes["x"] = GONE + "2"
    did.transactions[-1].reads["x"] = "1"
    assert did.faults(y="1") == []
    assert did.faults(x="1", y="1")
    did("c", begin=5, end=9).writes["x"] = "3"
    did.transactions[-1].reads["x"] = "1"
    assert any("lost update" in each for each in did.faults(y="1"))


def test_an_object_is_made_twice(did):
    did("a", writes=["x1"])
    did("b").writes["x"] = "2"
    did.transactions[-1].reads["x"] = ABSENT
    assert any("lost update" in each for each in did.faults())


def test_writes_without_reads_are_not_judged(did):
    did("a").writes["x"] = "1"
    assert any("unread" in each for each in did.faults())


def test_cycles():
    assert find_cycle({1, 2, 3}, {1: {2}, 2: {3}}) is None
    assert sorted(find_cycle({1, 2, 3, 4}, {1: {2}, 2: {3}, 3: {2, 4}})) == [2, 3]
    assert find_cycle({1}, {1: {1}}) == [1]


def test_lines(did):
    first = did("a", writes=["x1"])
    again = did("a", UNKNOWN, writes=["x1"])
    other = did("b", REFUSED)
    assert load([save(again), save(first), save(other), save(other)[:-5]]) == [first, other]
