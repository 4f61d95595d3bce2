"""Damage to every file of closed and of killed storages: found at open, at a load, or by a check, or harmless.

A load never hangs, and never gives a wrong value that a check does not find. `durus`' FileStorage is measured in the
same way, for comparison.
"""

import os
import random
from collections import Counter

import pytest
from crash_model import Writer, set_up
from damage import (
    CHECKING,
    CRASHED,
    FILE_DAMAGE,
    HANGS,
    HARMLESS,
    LOADING,
    OPENING,
    TABLE_DAMAGE,
    TOLD,
    WRONG,
    WRONG_FOUND,
    Tally,
    contents_of,
    damage,
    flip,
    is_one_of,
    outcome,
    quiet,
    replaced,
    tried,
)
from durus.file import File
from durus.file_storage import FileStorage
from graphs import commit, copied, oid, record, scratch_directory

from berkeleydb_storage import DamagedError, environment, opening
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.files import PAGE_SIZE, holes

TRIES = 60
SLOW_TRIES = 2500
FLIPS = 270
"""Of a FileStorage, as many as were measured elsewhere."""

LEAVES = 900
"""Objects; enough for a btree with two levels of inner pages."""
STATES = ("closed", "killed")


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture
def place():
    with scratch_directory() as path:
        yield path


class Example:
    """A storage at rest, with a tree of some levels, checkpoints, deletions and several log files."""

    def __init__(self, place, state, **options):
        self.path = place / "example"
        working = self.path if state == "closed" else place / "working"
        working.mkdir()
        with quiet(working, **options) as storage:
            self.fill(storage)
            if state == "killed":
                copied(working, self.path)
            self.expected = dict(storage.gen_oid_record())
        self.files = contents_of(self.path)

    @staticmethod
    def fill(storage, steps=60):
        def nothing(_):
            pass

        writer = Writer(storage, 0, set_up(storage, 1, nothing)[0], nothing)
        keys = [storage.new_oid() for _ in range(LEAVES)]
        root = storage.load(oid(0))
        hubs = [int.from_bytes(root[at : at + 8], "big") for at in range(16, len(root), 8)]
        numbers = [int.from_bytes(key, "big") for key in keys]
        objects = [record(key, data=b"%03d" % key * 300) for key in numbers]
        commit(storage, *objects, record(0, *hubs, *numbers, data=b"root"))
        for step in range(steps):
            if step == 30:
                storage.checkpoint()
            writer.next()

    def names(self):
        """The files, those with most in them most often."""
        tables = [name for name in self.files if name.endswith(".db")]
        others = [name for name in self.files if not name.endswith(".db")]
        return tables + others + ["objects.db"] * 5 + [name for name in others if name.startswith("log.")]

    def judged(self, tries, seed):
        source, tally, kinds = random.Random(seed), Tally(), Counter()
        for _ in range(tries):
            replaced(self.path, self.files)
            name = source.choice(self.names())
            how = source.choice(TABLE_DAMAGE if name.endswith(".db") else FILE_DAMAGE)
            case = damage(self.path, name, how, source)
            if case[-1]:
                found = tried(lambda: outcome(self.path, self.expected))
                tally.add(found.partition(":")[0], (case, found))
                kinds[how.__name__, found.partition(":")[0]] += 1
        print(f"{tally.tried} tried: {tally.counts}")
        for kind, count in sorted(kinds.items()):
            print(f"  {kind[0]}: {kind[1]}: {count}")
        return tally

    def is_safe(self, tally):
        """Nothing is silently wrong, hangs, or ends in an error that says nothing."""
        for bad in (WRONG, HANGS, CRASHED):
            assert bad not in tally.counts, tally.cases[bad]
        wrong = {case[1] for case, _ in tally.cases.get(WRONG_FOUND, ())}
        assert is_one_of(wrong, "zero_page", "swap_pages"), tally.cases[WRONG_FOUND]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("type", ["btree", "hash"])
def test_damage_is_found(place, type, state):
    example = Example(place, state, type=type)
    tally = example.judged(TRIES, 1)
    example.is_safe(tally)
    assert tally.counts[OPENING] + tally.counts.get(LOADING, 0) > TRIES // 3


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("type", ["btree", "hash"])
def test_damage_is_found_wherever_it_is(place, type, state):
    example = Example(place, state, type=type)
    tally = example.judged(SLOW_TRIES, 2)
    example.is_safe(tally)
    expected = {OPENING, LOADING, HARMLESS} | ({TOLD} if state == "killed" else {CHECKING})
    assert expected <= tally.counts.keys()


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("type", ["btree", "hash"])
def test_damage_to_tables_too_large_to_be_looked_at(place, type, state, monkeypatch):
    """As above, but that opening looks at none of the pages: then a load may hang in a page of zeros."""
    monkeypatch.setattr(opening, "LOOKED_AT", 0)
    monkeypatch.setattr("berkeleydb_storage.recovery.LOOKED_AT", 0)
    example = Example(place, state, type=type)
    tally = example.judged(SLOW_TRIES // 5, 3)
    assert not {WRONG, CRASHED} & tally.counts.keys(), (tally.cases.get(WRONG), tally.cases.get(CRASHED))
    assert {case[1] for case, _ in tally.cases.get(HANGS, ())} <= {"zero_page"}


@pytest.mark.slow
@pytest.mark.parametrize("type", ["btree", "hash"])
def test_every_bit_of_what_says_what_a_page_is(place, type):
    """The headers of the first pages of all tables, and of one page of each kind: types, flags, numbers, checksums."""
    example = Example(place, "closed", type=type)
    tally = Tally()
    for name, contents in example.files.items():
        if not name.endswith(".db"):
            continue
        kinds = {contents[at + 25]: at for at in range(PAGE_SIZE, len(contents), PAGE_SIZE)}
        for at in (0, *kinds.values()):
            for where in range(at, at + 32):
                for bit in range(8):
                    replaced(example.path, example.files)
                    changed = bytearray(contents)
                    changed[where] ^= 1 << bit
                    (example.path / name).write_bytes(changed)
                    found = tried(lambda: outcome(example.path, example.expected))
                    tally.add(found.partition(":")[0], (name, where - at, at // PAGE_SIZE, bit, found))
    print(f"{tally.tried} tried: {tally.counts}")
    for bad in (WRONG, HANGS, CRASHED, WRONG_FOUND):
        assert bad not in tally.counts, tally.cases[bad][:20]


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_every_bit_of_the_description(place, state):
    example = Example(place, state)
    tally = Tally()
    contents = example.files["storage.json"]
    for where in range(len(contents)):
        for bit in range(8):
            replaced(example.path, example.files)
            changed = bytearray(contents)
            changed[where] ^= 1 << bit
            (example.path / "storage.json").write_bytes(changed)
            found = tried(lambda: outcome(example.path, example.expected))
            around = contents[max(0, where - 20) : where + 5]
            tally.add(found.partition(":")[0], (where, bit, around, bytes(changed[where : where + 1]), found))
    print(f"{tally.tried} tried: {tally.counts}")
    for bad in (WRONG, HANGS, CRASHED, WRONG_FOUND):
        assert bad not in tally.counts, tally.cases[bad][:20]


@pytest.mark.parametrize("name", [f"{table}.db" for table in TABLES])
def test_a_table_that_says_that_it_has_no_checksums(place, name):
    """Then the library looks at none, and for the rows of its pages in the wrong place."""
    example = Example(place, "closed")
    contents = bytearray(example.files[name])
    contents[26] ^= 1
    (example.path / name).write_bytes(contents)
    for options in ({}, {"read_only": True}):
        with pytest.raises(DamagedError, match=f"the first page of .*{name} is damaged: restore"):
            quiet(example.path, **options)


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_a_page_of_zeros_is_found_when_it_is_opened(place, type):
    """Of a btree; in a hash it may be right, and does not stop the library."""
    example = Example(place, "closed", type=type)
    contents = example.files["objects.db"]
    kinds = {contents[at + 25]: at for at in range(PAGE_SIZE, len(contents), PAGE_SIZE)}
    assert type == "hash" or any(contents[at + 24] == 3 for at in range(PAGE_SIZE, len(contents), PAGE_SIZE))
    for kind, at in kinds.items():
        (example.path / "objects.db").write_bytes(contents[:at] + bytes(PAGE_SIZE) + contents[at + PAGE_SIZE :])
        if type == "btree" or kind == 7:
            match = (
                rf"page {at // PAGE_SIZE} of .*objects\.db is not what belongs there: restore .* `durus-bdb salvage`"
            )
            for options in ({}, {"read_only": True}):
                with pytest.raises(DamagedError, match=match):
                    quiet(example.path, **options)
        elif kind:
            assert tried(lambda: outcome(example.path, example.expected)) in (WRONG_FOUND, CHECKING, OPENING)


def test_what_the_system_did_not_write_is_found_in_a_table_of_any_size(place, monkeypatch):
    monkeypatch.setattr(opening, "LOOKED_AT", 0)
    example = Example(place, "closed")
    where = example.path / "objects.db"
    contents = example.files["objects.db"]
    page = 9
    where.write_bytes(b"")
    with where.open("r+b") as file:
        file.write(contents[: page * PAGE_SIZE])
        file.seek((page + 2) * PAGE_SIZE)
        file.write(contents[(page + 2) * PAGE_SIZE :])
    if not list(holes(where)):
        pytest.skip("this file system does not tell where the holes are")
    assert list(holes(where)) == [page, page + 1]
    with pytest.raises(DamagedError, match=rf"page {page} of .*objects\.db is not what belongs there"):
        quiet(example.path)
    for name in TABLES:
        assert name == "objects" or not list(holes(example.path / f"{name}.db"))


def test_swapped_pages_are_found_by_a_check(place):
    """Both have right checksums; a load may give a wrong record. Small tables are looked at when they are opened."""
    example = Example(place, "closed")
    contents = example.files["objects.db"]
    overflow = [at for at in range(0, len(contents), PAGE_SIZE) if contents[at + 25] == 7][:2]
    changed = bytearray(contents)
    one, other = (contents[at : at + PAGE_SIZE] for at in overflow)
    changed[overflow[0] : overflow[0] + PAGE_SIZE], changed[overflow[1] : overflow[1] + PAGE_SIZE] = other, one
    (example.path / "objects.db").write_bytes(changed)
    faults = [fault.message for fault in check_pages(example.path)]
    where = example.path / "objects.db"
    assert faults == [f"page {at // PAGE_SIZE} of {where} is damaged" for at in overflow]
    with pytest.raises(DamagedError, match=f"page {overflow[0] // PAGE_SIZE} of"):
        quiet(example.path)


def test_an_older_version_of_a_page_is_found_where_something_does_not_fit(place):
    """A disk that forgot a write: counts and totals show it, the contents of one object alone do not."""
    path = place / "storage"
    path.mkdir()
    with quiet(path) as storage:
        keys = [storage.new_oid() for _ in range(100)]
        numbers = [int.from_bytes(key, "big") for key in keys]
        commit(storage, record(0, *numbers[1:]), *(record(key, data=b"1" * 200) for key in numbers[1:]))
    before = contents_of(path)
    with quiet(path) as storage:
        commit(storage, record(50, 60, 61, data=b"2" * 200))
    after = contents_of(path)
    changed = [at for at in range(PAGE_SIZE, len(after["objects.db"]), PAGE_SIZE) if differ(before, after, at)]
    (at,) = changed
    forgotten = bytearray(after["objects.db"])
    forgotten[at : at + PAGE_SIZE] = before["objects.db"][at : at + PAGE_SIZE]
    (path / "objects.db").write_bytes(forgotten)
    assert not check_pages(path)
    with quiet(path) as storage:
        assert {(fault.kind, fault.oid) for fault in storage.check().faults} == {("count", 60), ("count", 61)}


def differ(before, after, at):
    return before["objects.db"][at : at + PAGE_SIZE] != after["objects.db"][at : at + PAGE_SIZE]


def test_a_newest_log_file_that_is_missing_is_missed(place):
    example = Example(place, "killed")
    newest = max(name for name in example.files if name.startswith("log."))
    (example.path / newest).unlink()
    with pytest.raises(DamagedError, match=f"{newest} is missing, and log files"):
        quiet(example.path)


def judged_as_durus_does(path, expected):
    """What becomes of a damaged FileStorage: an error at any time, all right, or something wrong without an error."""
    try:
        storage = FileStorage(File(path))
        found = {key: storage.load(key) for key in expected}
        found |= dict(storage.gen_oid_record())
    except Exception:
        return OPENING
    return HARMLESS if found == expected else WRONG


@pytest.mark.slow
def test_a_file_storage_beside_it(place, capsys):
    path = place / "file.durus"
    storage = FileStorage(str(path))
    storage.begin()
    Example.fill(storage, steps=4)  # of the fifth one tries what Durus does not refuse
    storage.close()
    storage = FileStorage(str(path))
    expected = dict(storage.gen_oid_record())
    storage.close()
    contents, source, tally = path.read_bytes(), random.Random(4), Tally()
    for _ in range(FLIPS):
        _, changed = flip(contents, source)
        path.write_bytes(changed)
        tally.add(tried(lambda: judged_as_durus_does(str(path), expected)).partition(":")[0], None)
    print(f"FileStorage: {tally.tried} tried: {tally.counts}")
    assert tally.counts[WRONG] > FLIPS // 4


def test_a_try_that_hangs_or_crashes_is_told(monkeypatch):
    reader, _writer = os.pipe()
    with monkeypatch.context() as impatient:
        impatient.setattr("damage.PATIENCE", 0.2)
        assert tried(lambda: os.read(reader, 1)) == HANGS
    assert tried(lambda: 1 / 0).startswith(CRASHED)
    assert tried(lambda: "well") == "well"
