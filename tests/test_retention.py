"""Which backups stay, and that nothing goes that one of those needs: compared with a model that tries everything."""

import functools
import logging
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from berkeleydb_storage import OptionError
from berkeleydb_storage.backup.catalog import (
    COMPRESSED,
    MANIFEST,
    PIECES,
    RUNS,
    UNKNOWN,
    Manifest,
    Piece,
    Run,
    catalog,
    parse_piece,
)
from berkeleydb_storage.backup.catalog import moment_name as name_of
from berkeleydb_storage.backup.retention import Keep, needless
from berkeleydb_storage.files import Position

EXAMPLES = 300
"""Repositories that are compared with the model."""
SECOND = 1_000_000
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
NOW = 1_763_716_207_000_000
"""A Friday, 21 November 2025, 09:10:07 UTC."""
IDENTITY, OTHER = "a" * 32, "b" * 32
FILES = ("objects.db", "log.0000000007", "meta.db.gz")


class Repository:
    """Names, and the manifests that some of them have."""

    def __init__(self):
        self.names = set()
        self.manifests = {}

    def base(self, time, tid, begin=0, *, identity=IDENTITY, whole=True, begun=None):
        """Add a base, and return its folder."""
        folder = f"{identity}/{name_of(tid, time if begun is None else begun)}"
        self.names |= {f"{folder}/{name}" for name in FILES}
        if whole:
            self.names.add(f"{folder}/{MANIFEST}")
            first, end = Position(1, 0), Position(1, begin)
            self.manifests[folder] = Manifest(tid, time, 5, 1.0, "/db", identity, first, end, {}, {}, False)
        return folder

    def piece(self, folder, start, end, tid=UNKNOWN, digest="0" * 16, suffix=""):
        """Add a piece; of log file 1, unless positions are given. Return its name."""
        start, end = (Position(1, place) if isinstance(place, int) else place for place in (start, end))
        piece = Piece(start, end, tid, tid and NOW, digest)
        name = f"{folder}/{PIECES}/{piece.name}{suffix}"
        self.names.add(name)
        return name

    def run(self, folder, time, tid):
        """Add an incremental backup, and return its name."""
        name = f"{folder}/{RUNS}/{Run(tid, time).name}"
        self.names.add(name)
        return name

    def bases(self):
        """Return what a repository returns."""
        return [
            replace(base, manifest=self.manifests.get(base.folder)) if MANIFEST in base.names else base
            for base in catalog(self.names)
        ]

    def needless(self, keep, now=NOW):
        return needless(self.bases(), Keep.of(keep), now)

    def prune(self, keep, now=NOW):
        """Remove it, and return what is left."""
        self.names -= set(self.needless(keep, now))
        return self.names

    def all_of(self, folder):
        return {name for name in self.names if name.startswith(f"{folder}/")}


@pytest.fixture
def repository():
    return Repository()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"last": 0},
        {"last": -1},
        {"last": 1.5},
        {"last": True},
        {"hourly": 0},
        {"daily": "7"},
        {"weekly": 0},
        {"monthly": 0},
        {"within": 0},
        {"within": -1},
        {"within": float("nan")},
        {"within": float("inf")},
        {"within": True},
        {"within": "1 day"},
        {"last": 1, "within": 0},
    ],
)
def test_rules_that_make_no_sense(values):
    with pytest.raises(OptionError, match="keep"):
        Keep(**values)


def test_a_number_is_that_of_the_newest():
    assert Keep.of(3) == Keep(last=3)
    assert Keep.of(Keep(daily=2)) == Keep(daily=2)
    for value in (0, None, "3", True):
        with pytest.raises(OptionError):
            Keep.of(value)


def test_there_is_nothing(repository):
    assert repository.needless(1) == []
    repository.base(NOW - 9 * DAY, 1, whole=False)
    assert repository.needless(1) == [], "it may still be being made"


def kept_times(repository, keep):
    """Return the times of the bases that stay, where there are only bases."""
    return sorted(base.manifest.time for base in catalog_of(repository, keep))


def catalog_of(repository, keep):
    repository.prune(keep)
    return [base for base in repository.bases() if base.manifest is not None]


def test_the_last(repository):
    times = [NOW - age * HOUR for age in range(10)]
    for tid, time in enumerate(reversed(times)):
        repository.base(time, tid)
    assert kept_times(repository, 3) == sorted(times[:3])
    assert kept_times(repository, 20) == sorted(times[:3])
    assert kept_times(repository, 1) == times[:1]


@pytest.mark.parametrize(
    ("rule", "step", "count", "expected"),
    [
        # the newest of this hour, and of the two before: of :10, :40 and :25 minutes past
        ("hourly", HOUR // 4, 3, [0, HOUR // 4, HOUR // 4 * 5]),
        ("daily", 5 * HOUR, 3, [0, 10 * HOUR, 35 * HOUR]),
        ("weekly", DAY, 3, [0, 5 * DAY, 12 * DAY]),
        ("monthly", 3 * DAY, 3, [0, 21 * DAY, 54 * DAY]),
    ],
)
def test_the_newest_of_each_period(repository, rule, step, count, expected):
    """NOW is a Friday in the morning, at ten past nine."""
    for number in range(100):
        repository.base(NOW - number * step, 1000 - number)
    assert kept_times(repository, Keep(**{rule: count})) == sorted(NOW - age for age in expected)


def test_periods_without_backups_do_not_count(repository):
    for tid, age in enumerate((400, 399, 200, 100, 0)):
        repository.base(NOW - age * DAY, tid)
    assert kept_times(repository, Keep(monthly=3)) == [NOW - age * DAY for age in (200, 100, 0)]


def test_rules_together(repository):
    for tid in range(100):
        repository.base(NOW - (100 - tid) * 12 * HOUR, tid)
    alone = []
    for keep in ({"last": 3}, {"daily": 5}, {"monthly": 2}):
        other = Repository()
        other.names, other.manifests = set(repository.names), repository.manifests
        alone += kept_times(other, Keep(**keep))
    assert kept_times(repository, Keep(last=3, daily=5, monthly=2)) == sorted(set(alone))


def test_a_backup_that_goes_goes_whole(repository):
    old, new = repository.base(NOW - DAY, 1), repository.base(NOW, 9)
    parts = [repository.run(old, NOW - HOUR, 5), repository.piece(old, 0, 10, 5), repository.piece(old, 10, 20)]
    expected = repository.all_of(old)
    names = repository.needless(1)
    assert set(names) == expected
    assert names[0] == f"{old}/{MANIFEST}"
    assert names[1] == parts[0]
    assert names[2:4] == [parts[2], parts[1]]
    assert repository.prune(1) == repository.all_of(new)


def test_the_log_up_to_a_backup_stays_and_no_more(repository):
    base = repository.base(NOW - 40 * DAY, 1)
    pieces = [repository.piece(base, 10 * turn, 10 * turn + 10, turn + 2) for turn in range(6)]
    runs = [repository.run(base, NOW - 39 * DAY + turn * DAY, turn + 2) for turn in range(4)]
    newest = repository.base(NOW, 30)
    assert repository.needless(Keep(daily=5)) == list(reversed(pieces[4:])), "nobody asked for what is in them"
    assert repository.needless(Keep(monthly=2)) == [*runs[:3], *reversed(pieces[4:])]
    assert set(repository.needless(Keep(monthly=1))) == repository.all_of(base)
    assert repository.all_of(newest) <= repository.prune(Keep(monthly=2))


def test_all_since_the_last_so_many_stays(repository):
    base = repository.base(NOW - 9 * DAY, 1)
    for turn in range(6):
        repository.piece(base, 10 * turn, 10 * turn + 10, turn + 2)
    runs = [repository.run(base, NOW - 8 * DAY + turn * HOUR, turn + 2) for turn in range(4)]
    middle = repository.base(NOW - 2 * DAY, 10)
    repository.piece(middle, 0, 10, 12)
    repository.base(NOW, 20)
    assert repository.needless(3) == runs[:3]
    assert repository.needless(Keep(last=4, monthly=1)) == runs[:2]
    assert set(repository.needless(2)) == repository.all_of(base)


def test_of_the_newest_base_nothing_goes(repository):
    """Not even what is behind a gap, or a backup in there: it may be on its way."""
    base = repository.base(NOW - 90 * DAY, 1)
    repository.piece(base, 0, 5, 2)
    gone = repository.run(base, NOW - 80 * DAY, 2)
    repository.piece(base, 5, 10, 3)
    repository.run(base, NOW - 75 * DAY, 3)
    repository.piece(base, 20, 30, 4)
    repository.run(base, NOW - 70 * DAY, 4)
    assert repository.needless(1) == [gone], "what follows needs its log"
    assert repository.needless(2) == []


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(0, 10, 1), (0, 20, 2)], [0]),
        ([(0, 10, 1), (10, 20, 2), (0, 20, 2)], [0, 1]),
        ([(0, 10, 1), (5, 20, 2), (10, 30, 2)], []),
        ([(0, 10, 1), (0, 20, UNKNOWN)], []),
        ([(0, 10, 1), (0, 20, UNKNOWN), (0, 30, 7)], [0, 1]),
        ([(0, 10, UNKNOWN), (0, 20, UNKNOWN)], [0]),
        ([(5, 20, 2), (0, 20, 2)], [0]),
    ],
)
def test_what_is_in_another_piece_goes(repository, pieces, expected):
    base = repository.base(NOW - DAY, 0)
    names = [repository.piece(base, *piece) for piece in pieces]
    assert sorted(repository.needless(1)) == sorted(names[place] for place in expected)


def test_the_same_place_twice_stays(repository):
    """One of them may be damaged; and neither is more than the other."""
    base = repository.base(NOW - DAY, 0)
    repository.piece(base, 0, 10, 1, "0" * 16)
    repository.piece(base, 0, 10, 1, "1" * 16)
    repository.piece(base, 0, 10, UNKNOWN, "2" * 16, COMPRESSED)
    assert repository.needless(1) == []


def test_what_is_in_the_base_goes(repository):
    base = repository.base(NOW - DAY, 3, 100)
    within = repository.piece(base, 40, 100, 3)
    repository.piece(base, 50, 101, 3)
    assert repository.needless(1) == [within]


def test_each_moment_of_some_days(repository):
    folders = [repository.base(NOW - age * DAY, 100 - age) for age in (9, 6, 3, 1)]
    pieces = {}
    for folder, first in zip(folders, (91, 94, 97, 99), strict=True):
        pieces[folder] = [repository.piece(folder, 10 * turn, 10 * turn + 10, first + turn + 1) for turn in range(3)]
    run = repository.run(folders[1], NOW - 5 * DAY, 95)
    late = repository.run(folders[1], NOW - 3 * DAY - HOUR, 96)
    behind = repository.piece(folders[1], 40, 50, 99)
    names = repository.needless(Keep(within=4 * 86400))
    assert set(names) == repository.all_of(folders[0]) | {run, behind}
    assert late not in names
    assert repository.needless(Keep(within=7 * 86400)) == [behind]


@pytest.mark.parametrize("suffix", ["", COMPRESSED])
def test_what_was_interrupted_goes_after_a_day(repository, suffix):
    old = repository.base(NOW - 3 * DAY, 1, whole=False)
    repository.piece(old, 0, 10, suffix=suffix)
    young = repository.base(NOW - DAY // 2, 2, whole=False)
    repository.base(NOW - HOUR, 3)
    newest = repository.base(NOW - HOUR // 2, 4, whole=False)
    assert set(repository.needless(1)) == repository.all_of(old)
    assert set(repository.needless(1, NOW + DAY)) == repository.all_of(old) | repository.all_of(young)
    assert not repository.all_of(newest) & set(repository.needless(1, NOW + 30 * DAY)), "it may still be being made"


def test_what_is_not_understood_stays(repository, caplog):
    old = repository.base(NOW - 2 * DAY, 1)
    repository.base(NOW, 2)
    unknown = {
        f"{old}/notes.txt",
        f"{old}/{PIECES}/1-2",
        f"{old}/{RUNS}/yesterday.json",
        f"{old}/{PIECES}/objects.db",
        f"{old}/more/{MANIFEST}",
        f"{old}/log.1",
        "readme",
        f"{IDENTITY}/else",
    }
    repository.names |= unknown
    left = repository.prune(1)
    assert unknown <= left
    assert repository.all_of(old) == {name for name in unknown if name.startswith(old)}
    assert "is not needed, but stays, for what is not known: log.1" in caplog.text


def test_a_damaged_manifest_removes_nothing(repository, caplog):
    """Perhaps it can be mended."""
    old = repository.base(NOW - 9 * DAY, 1)
    repository.piece(old, 0, 10, 2)
    repository.base(NOW, 3)
    del repository.manifests[old]
    assert repository.needless(1) == []
    assert [line.levelno for line in caplog.records] == [logging.WARNING]
    assert f"{old}/{MANIFEST} is damaged" in caplog.text


def test_a_restored_storage_goes_on_with_another_identity(repository):
    first = repository.base(NOW - 5 * DAY, 50)
    repository.piece(first, 0, 10, 60)
    run = repository.run(first, NOW - 4 * DAY, 60)
    second = repository.base(NOW - 3 * DAY, 20, identity=OTHER)
    repository.piece(second, 0, 10, 70)
    repository.run(second, NOW - 2 * DAY, 70)
    assert repository.needless(3) == []
    assert repository.needless(2) == sorted(repository.all_of(first), key=lambda name: (
        MANIFEST not in name, RUNS not in name, PIECES not in name, [-ord(char) for char in name]))  # fmt: skip
    assert run in repository.needless(1)


def test_a_base_whose_log_goes_on_beside_the_next(repository):
    """A restore of the run begins with the newer base, which therefore needs its log, too."""
    old = repository.base(NOW - 9 * DAY, 1)
    repository.piece(old, 0, 10, 5)
    repository.piece(old, 10, 20, 9)
    run = repository.run(old, NOW - 5 * DAY, 9)
    middle = repository.base(NOW - 8 * DAY, 6)
    needed, late = repository.piece(middle, 0, 10, 9), repository.piece(middle, 10, 20, 12)
    repository.base(NOW, 20)
    names = repository.needless(Keep(daily=3))
    assert run not in names
    assert needed not in names
    assert names == [late]


# The model: a state is there if its base is complete, and the pieces that are there have every byte from the end of the
# base to a place that is known to be behind it. Everything is tried one by one.


piece_named = functools.cache(parse_piece)


def pieces_of(names, folder):
    """Return the pieces of a base, and the bytes that are in them."""
    inner = f"{folder}/{PIECES}/"
    pieces = [piece_named(name[len(inner) :]) for name in names if name.startswith(inner)]
    return pieces, {byte for piece in pieces for byte in range(piece.start.offset, piece.end.offset)}


def restorable(repository, names, folder, tid):
    """Tell whether a base of those names can be restored up to a transaction."""
    needed = {f"{folder}/{name}" for name in (MANIFEST, *FILES)}
    if not needed <= names or folder not in repository.manifests:
        return False
    manifest = repository.manifests[folder]
    if manifest.tid >= tid:
        return True
    pieces, covered = pieces_of(names, folder)
    ends = [piece.end.offset for piece in pieces if piece.tid != UNKNOWN and piece.tid >= tid]
    return any(covered >= set(range(manifest.end.offset, end)) for end in ends)


def reach(repository, names, folder):
    """Return how far the log goes after a base without a gap."""
    _, covered = pieces_of(names, folder)
    end = repository.manifests[folder].end.offset
    while end in covered:
        end += 1
    return end


def points_of(repository, names):
    """Return (time, tid, folder) of all that can be restored of what was asked for."""
    found = [(manifest.time, manifest.tid, folder) for folder, manifest in repository.manifests.items()]
    for base in catalog(names):
        found += [(run.time, run.tid, base.folder) for run in base.runs]
    return sorted(point for point in found if restorable(repository, names, point[2], point[1]))


def chosen(points, keep):
    """Return which of them stay, as the documentation has it."""
    stay = set(points[-keep.last :]) if keep.last else set()
    for count, length in ((keep.hourly, HOUR), (keep.daily, DAY)):
        if count:
            periods = sorted({point[0] // length for point in points})[-count:]
            stay |= {max(point for point in points if point[0] // length == period) for period in periods}
    if keep.within:
        stay |= {point for point in points if point[0] >= NOW - keep.within * SECOND}
    return stay


def begun_with(repository, names, point):
    """Return the base that a restore of a point begins with."""
    manifests = [
        (manifest.tid, manifest.time, folder)
        for folder, manifest in repository.manifests.items()
        if f"{folder}/{MANIFEST}" in names and manifest.tid <= point[1] and manifest.time <= point[0]
    ]
    return max(manifests)[2] if manifests else None


@st.composite
def repositories(draw):
    """Some bases, with pieces that overlap, have gaps, or are twice there; with runs, and interrupted ones."""
    repository = Repository()
    tid, time = 0, NOW - draw(st.integers(1, 60)) * HOUR
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, 4))
        whole = draw(st.integers(0, 5)) > 0
        folder = repository.base(time, tid, begin, whole=whole)
        states, at = [(tid, time)], begin
        for _ in range(draw(st.integers(0, 5))):
            at += draw(st.integers(1, 3))
            tid += draw(st.integers(0, 2))
            time += draw(st.integers(1, 5)) * HOUR // 2
            states.append((tid, time))
            start = max(0, at - draw(st.integers(1, 5)))
            told = draw(st.integers(0, 4)) > 0
            repository.piece(folder, start, at, tid if told else UNKNOWN, draw(st.sampled_from("01")) * 16)
            if draw(st.booleans()):
                repository.run(folder, time, tid)
        back = draw(st.integers(0, 1)) if len(states) > 1 else 0  # the next base may be made before the log ends here
        tid, time = states[-1 - back]
        tid, time = tid + draw(st.integers(0, 1)), time + draw(st.integers(1, 20)) * HOUR // 2
    return repository


counts = st.none() | st.integers(1, 4)
keeps = st.builds(
    dict,
    last=counts,
    hourly=counts,
    daily=counts,
    within=st.none() | st.integers(1, 60).map(lambda hours: hours * 3600),
).filter(lambda values: any(values.values()))


@settings(max_examples=EXAMPLES, deadline=None)
@given(repositories(), keeps)
def test_against_the_model(repository, values):
    keep = Keep(**values)
    before = frozenset(repository.names)
    points = points_of(repository, before)
    stay = chosen(points, keep)
    names = repository.needless(keep)
    event(f"{len(names)} names" if len(names) < 5 else "many names")
    assert len(set(names)) == len(names)
    assert set(names) <= before
    begun = {point: begun_with(repository, before, point) for point in stay}
    could = {point for point in stay if begun[point] and restorable(repository, before, begun[point], point[1])}
    left = set(before)
    newest = max((manifest.time, manifest.tid, folder) for folder, manifest in repository.manifests.items()) if (
        repository.manifests) else None  # fmt: skip
    for name in [None, *names]:  # killed at any of them
        left.discard(name)
        for point in stay:
            assert restorable(repository, left, point[2], point[1]), f"{point} needed {name}"
            if point in could:
                assert restorable(repository, left, begun_with(repository, left, point), point[1])
        listed = {
            (folder, tid) for folder, tid in listing(repository, left) if (folder, tid) in listing(repository, before)
        }
        assert {entry for entry in listed if not restorable(repository, left, *entry)} <= {
            entry for entry in listed if not restorable(repository, before, *entry)
        }, "nothing is listed that cannot be restored any more"
        if newest is not None:
            assert reach(repository, left, newest[2]) == reach(repository, before, newest[2])
    begins = [NOW - keep.within * SECOND] if keep.within else []
    begins += [point[0] for point in points[-keep.last :][:1]] if keep.last else []
    moments_stay(repository, before, left, begins)
    nothing_more_could_go(repository, left, stay, newest, begins)
    repository.names = left
    assert repository.needless(keep) == []


def listing(repository, names):
    """Return (folder, tid) of all that a list of backups shows."""
    found = set()
    for base in catalog(names):
        if MANIFEST in base.names and base.folder in repository.manifests:
            found |= {(base.folder, run.tid) for run in base.runs}
            found.add((base.folder, repository.manifests[base.folder].tid))
    return found


def moments_stay(repository, before, left, begins):
    """At each moment the same base would be begun with, and its log goes as far."""
    for moment in range(int(min(begins, default=NOW + 1)), NOW + 1, HOUR // 4):
        point = (moment, 1 << 60, "")
        folder = begun_with_time(repository, before, point)
        assert folder == begun_with_time(repository, left, point)
        if folder is not None:
            assert reach(repository, before, folder) == reach(repository, left, folder)


def begun_with_time(repository, names, point):
    found = [
        (manifest.time, manifest.tid, folder)
        for folder, manifest in repository.manifests.items()
        if f"{folder}/{MANIFEST}" in names and manifest.time <= point[0]
    ]
    return max(found)[2] if found else None


def nothing_more_could_go(repository, left, stay, newest, begins):
    """Each base that is left is needed, or young; each piece begins before what is needed of its base."""
    whole = [base for base in catalog(left) if base.folder in repository.manifests and MANIFEST in base.names]
    begin = min(begins, default=0)
    times = sorted((repository.manifests[base.folder].time, base.folder) for base in whole)
    for base in whole:
        time = repository.manifests[base.folder].time
        covers_moments = begins and (time > begin or (time, base.folder) == max(
            [entry for entry in times if entry[0] <= begin], default=None))  # fmt: skip
        used = [point for point in stay if base.folder in (point[2], begun_with(repository, left, point))]
        assert used or covers_moments or base.folder == newest[2]
        if covers_moments or base.folder == newest[2]:
            continue
        tid = max(point[1] for point in used)
        for piece in base.pieces:
            others = {name for name in left if f"/{PIECES}/{piece.name}" not in name}
            overlapped = any(
                other.start < piece.end and piece.start < other.end for other in base.pieces if other != piece
            )
            told = restorable(repository, left, base.folder, tid)
            assert overlapped or not told or not restorable(repository, others, base.folder, tid)


def test_an_archive_of_a_week(repository):
    """A piece every second or so; it is a matter of seconds, not of hours."""
    folders = [repository.base(NOW - 14 * DAY, 0), repository.base(NOW - 7 * DAY, 100_000)]
    for folder, first in zip(folders, (0, 100_000), strict=True):
        for turn in range(20_000):
            place = Position(1 + turn // 1000, turn % 1000), Position(1 + (turn + 1) // 1000, (turn + 1) % 1000)
            repository.piece(folder, *place, first + turn + 1)
        for turn in range(0, 20_000, 100):
            repository.run(folder, NOW - (14 if first == 0 else 7) * DAY + turn * SECOND, first + turn + 1)
    names = repository.needless(Keep(last=10))
    assert set(names) >= repository.all_of(folders[0])
    assert len(names) == len(repository.all_of(folders[0])) + 190
