"""Names of what is in a repository, and which pieces of log continue a base: against what counting by hand finds."""

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as some

from berkeleydb_storage.backup.catalog import (
    LATEST,
    MANIFEST,
    UNKNOWN,
    Base,
    Manifest,
    Piece,
    Run,
    catalog,
    follow,
    moment_name,
    parse_moment,
    parse_piece,
)
from berkeleydb_storage.errors import DamagedBackup
from berkeleydb_storage.files import Position

IDENTITY = "0123456789abcdef0123456789abcdef"
DIGEST = "0123456789abcdef"
TIMES = some.integers(0, LATEST - 1)
TIDS = some.integers(0, (1 << 64) - 1)
POSITIONS = some.builds(Position, some.integers(1, 10**9), some.integers(0, (1 << 32) - 1))
MANIFESTED = Manifest(
    tid=5,
    time=10**15,
    objects=7,
    seconds=0.5,
    storage="/db",
    identity=IDENTITY,
    first=Position(1, 0),
    end=Position(1, 100),
    description={},
    files={"objects.db": {"bytes": 4096, "sha256": "0" * 64}},
    compressed=False,
)


def piece(start, end, tid=UNKNOWN, time=UNKNOWN, digest=DIGEST):
    return Piece(Position(1, start), Position(1, end), tid, time, digest)


@given(TIDS, TIMES)
def test_names_of_states(tid, time):
    assert parse_moment(moment_name(tid, time)) == (tid, time)


@given(some.lists(some.tuples(TIMES, TIDS.map(lambda tid: tid % 10**12)), min_size=2))
def test_names_sort_by_time(moments):
    names = [moment_name(tid, time) for time, tid in sorted(moments)]
    assert names == sorted(names)


def test_a_name():
    when = datetime(2026, 11, 21, 9, 10, 7, 123456, timezone.utc)
    time = int(when.timestamp()) * 10**6 + 123456
    assert moment_name(42, time) == "20261121T091007.123456Z-000000000042"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "20261121T091007.123456Z",
        "20261121T091007.123456Z-42",
        "20261321T091007.123456Z-000000000042",
        "20261121T091007.123456Z-000000000042x",
        "x20261121T091007.123456Z-000000000042",
        "20261121T091007Z-000000000042",
    ],
)
def test_names_that_are_of_no_state(name):
    assert parse_moment(name) is None


@given(POSITIONS, POSITIONS, TIDS, TIMES, some.text("0123456789abcdef", min_size=16, max_size=16))
def test_names_of_pieces(one, other, tid, time, digest):
    if one == other:
        assert parse_piece(Piece(one, other, tid, time, digest).name) is None
        return
    made = Piece(min(one, other), max(one, other), tid, time, digest)
    assert parse_piece(made.name) == parse_piece(made.name + ".gz") == made
    assert parse_piece(Piece(made.end, made.start, tid, time, digest).name) is None


def test_a_name_of_a_piece():
    name = "0000000007-00012345-0000000008-00000000-000000000057-1763716207123456-0123456789abcdef"
    assert parse_piece(name) == Piece(Position(7, 12345), Position(8, 0), 57, 1763716207123456, DIGEST)
    for wrong in (name[1:], name[:-1], name + "0", name + ".bz2", name.replace("a", "A"), f"pieces/{name}"):
        assert parse_piece(wrong) is None


INTERVALS = some.lists(some.tuples(some.integers(0, 12), some.integers(1, 6)), max_size=12)


@given(INTERVALS, some.integers(0, 12))
def test_what_follows(intervals, start):
    """It has no gap, goes as far as anything does, and takes as few pieces as are possible."""
    pieces = sorted(
        (piece(begin, begin + length) for begin, length in set(intervals)), key=lambda each: (each.start, each.end)
    )
    found = follow(pieces, Position(1, start))
    reached = Position(1, start)
    for each in found:
        assert each.start <= reached < each.end
        reached = each.end
    furthest, count = walked({(each.start.offset, each.end.offset) for each in pieces}, start)
    assert (reached.offset, len(found)) == (furthest, count)


def walked(steps, start):
    """Return how far one gets from `start`, and in how many steps at least."""
    places, count = {start}, 0
    while True:
        there = places | {end for begin, end in steps if any(begin <= place for place in places)}
        there = {place for place in there if place >= start}
        if max(there) == max(places):
            return max(places), count
        places, count = there, count + 1


def test_the_longer_one_is_taken():
    """However they are sorted, and where the same log is there twice."""
    short, long, rest = piece(0, 5), piece(0, 9), piece(5, 9)
    assert follow([long, short, rest], Position(1, 0)) == [long]
    assert follow([short, long, rest], Position(1, 0)) == [long]
    assert follow([short, rest], Position(1, 0)) == [short, rest]
    assert follow([rest], Position(1, 0)) == []


def test_the_end_of_a_file_is_the_beginning_of_the_next():
    one = Piece(Position(1, 50), Position(2, 0), UNKNOWN, UNKNOWN, DIGEST)
    two = Piece(Position(2, 0), Position(2, 10), 9, 10**15, DIGEST)
    other = Piece(Position(3, 0), Position(3, 10), 10, 10**15, DIGEST)
    assert follow([one, two, other], Position(1, 50)) == [one, two]


@given(some.integers(0, 9), some.integers(1, 5), some.integers(0, 9), some.integers(1, 5))
def test_what_covers_another(one, length, other, size):
    this, that = piece(one, one + length), piece(other, other + size)
    points, fewer = set(range(one, one + length)), set(range(other, other + size))
    assert this.covers(that) == (points > fewer)


def test_a_repository():
    state, later = "20261121T091007.123456Z-000000000042", "20261121T100000.000000Z-000000000050"
    first, second = piece(100, 200), piece(200, 300, 60, 10**15)
    names = [
        f"{IDENTITY}/{later}/objects.db",
        f"{IDENTITY}/{state}/{MANIFEST}",
        f"{IDENTITY}/{state}/pieces/{second.name}.gz",
        f"{IDENTITY}/{state}/pieces/{first.name}",
        f"{IDENTITY}/{state}/runs/{later}.json",
        f"{IDENTITY}/{state}/runs/{later}",
        f"{IDENTITY}/{state}/{first.name}",
        f"{IDENTITY}/elsewhere/objects.db",
        f"{IDENTITY}/{state}",
        f"{IDENTITY[1:]}/{state}/objects.db",
        "README",
        "",
    ]
    old, new = catalog(names)
    assert (old.name, new.name) == (state, later)
    assert old.folder == f"{IDENTITY}/{state}"
    assert old.runs == (Run(50, parse_moment(later)[1]),)
    assert old.runs[0].name == f"{later}.json"
    assert [each.start.offset for each in old.pieces if each in (first, second)] == [100, 200]
    assert len(old.names) == 6
    assert (old.is_damaged, new.is_damaged) == (True, False)
    with pytest.raises(DamagedBackup, match=f"{MANIFEST} is missing or damaged"):
        _ = old.noted
    assert old.chain() == []
    assert old.reach() == (Position(0, 0), UNKNOWN, UNKNOWN)


def test_only_pieces_in_their_folder_count():
    state = "20261121T091007.123456Z-000000000042"
    name = piece(100, 200).name
    (base,) = catalog([f"{IDENTITY}/{state}/{name}", f"{IDENTITY}/{state}/runs/{name}"])
    assert base.pieces == ()


def test_how_far_a_chain_reaches():
    pieces = (piece(100, 200, 6, 10**15 + 1), piece(200, 300), piece(400, 500, 9, 10**15 + 9))
    base = Base(IDENTITY, "x", pieces, manifest=MANIFESTED)
    assert base.chain() == list(pieces[:2])
    assert base.reach() == (Position(1, 300), 6, 10**15 + 1)
    assert replace(base, pieces=()).reach() == (Position(1, 100), 5, 10**15)
    assert MANIFESTED.bytes == 4096


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tid", -1),
        ("tid", 1 << 64),
        ("tid", 1.0),
        ("time", -1),
        ("time", LATEST),
        ("objects", -1),
        ("seconds", -1.0),
        ("seconds", float("inf")),
        ("seconds", float("nan")),
        ("storage", None),
        ("description", []),
        ("files", []),
        ("compressed", "yes"),
        ("first", Position(-1, 0)),
        ("end", Position(1, -1)),
        ("files", {"objects.db": []}),
        ("files", {"objects.db": {"bytes": 1}}),
        ("files", {"objects.db": {"bytes": -1, "sha256": "0" * 64}}),
        ("files", {"objects.db": {"bytes": 1.5, "sha256": "0" * 64}}),
        ("files", {"objects.db": {"bytes": 1, "sha256": "0"}}),
    ],
)
def test_manifests_that_nobody_writes(name, value):
    with pytest.raises(ValueError, match="cannot be so"):
        replace(MANIFESTED, **{name: value})
