"""Recovery at open: what it says, what it recovers from, and what it refuses without touching a file."""

import copy
import json
import os
import random
import shutil

import pytest
from crash_model import History, Writer, set_up
from graphs import commit, copied, oid, record, scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointNever,
    DamagedError,
    GarbageManual,
    LibraryMismatch,
    NewerFormat,
    RecoveryNeeded,
    cli,
    environment,
    failpoints,
    recovery,
)
from berkeleydb_storage.directory import DESCRIPTION, LOCK
from berkeleydb_storage.environment import TABLES, end_of_log
from berkeleydb_storage.files import LOG_HEADER, PAGE_SIZE, bad_pages, log_name, log_numbers

STEPS = 82
"""Commits of the storages that are damaged; some 5 log files."""
TABLE_FLIPS = 150
LOG_FLIPS = 80

OPTIONS = {"cachesize": 1 << 20, "checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


@pytest.fixture
def place():
    with scratch_directory() as path:
        yield path


class Example:
    """A storage at rest, and what was committed to it."""

    def __init__(self, place, *, closed, **options):
        """Make one, with checkpoints after a quarter and half of the steps, either closed or as a kill leaves it."""
        self.path = place / "example"
        self.history = History(losing=True)
        self.old = place / "old objects.db"
        working = self.path if closed else place / "working"
        working.mkdir()
        with BerkeleyDBStorage(working, **OPTIONS, **options) as storage:
            writer = Writer(storage, 0, set_up(storage, 1, self.history.report)[0], self.history.report)
            while writer.step < STEPS:
                if writer.step == STEPS // 4:
                    storage.checkpoint()
                    shutil.copyfile(working / "objects.db", self.old)
                if writer.step == STEPS // 2:
                    storage.checkpoint()
                writer.next()
            if not closed:
                copied(working, self.path)

    @property
    def log(self):
        """The newest log file."""
        return self.path / log_name(log_numbers(self.path)[-1])

    def open(self, **options):
        return BerkeleyDBStorage(self.path, **OPTIONS | options)

    def is_sound(self, lost=0):
        """Open it, and find everything but the last `lost` commits; then it takes new ones."""
        with self.open() as storage:
            self.history.verify(storage)
            assert self.history.lost == lost
            assert not storage.check().faults
            Writer(storage, 0, self.history.hubs[0], self.history.report).next()
            self.history.verify(storage)
        with self.open() as storage:
            assert not storage.statistics().recovered
            self.history.verify(storage)
        assert self.history.lost == lost

    def contents(self):
        return {name: (self.path / name).read_bytes() for name in os.listdir(self.path)}

    def description(self, **changes):
        """Return what storage.json says, after changing some of it."""
        values = json.loads((self.path / DESCRIPTION).read_text()) | changes
        (self.path / DESCRIPTION).write_text(json.dumps(values))
        return values

    def is_refused(self, error, match):
        """Every way to open it is refused, and no file is changed."""
        before = self.contents()
        for options in ({}, {"read_only": True}, {"do_recover": True}):
            with pytest.raises(error, match=match):
                self.open(**options)
            assert self.contents() == before


@pytest.fixture
def killed(place):
    return Example(place, closed=False)


@pytest.fixture
def closed(place):
    return Example(place, closed=True)


@pytest.fixture(params=["killed", "closed"])
def example(place, request):
    return Example(place, closed=request.param == "closed")


def flip(path, *offsets):
    contents = bytearray(path.read_bytes())
    for offset in offsets:
        contents[offset] ^= 0x10
    path.write_bytes(contents)


def test_it_is_automatic_and_logged(killed, caplog):
    with killed.open() as storage:
        assert storage.statistics().recovered
    began, ended = [record.getMessage() for record in caplog.records if record.name.endswith("recovery")]
    assert began.startswith(f"{killed.path} was not closed: recovering from ")
    assert began.endswith(" MB of log")
    assert ended.startswith(f"{killed.path} is recovered, in ")
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    caplog.clear()
    killed.is_sound()
    assert not caplog.records


def test_a_long_one_tells_how_far_it_is(killed, caplog, monkeypatch):
    monkeypatch.setattr(recovery, "REPORT_EVERY", 1e-5)
    killed.is_sound()
    progress = [record for record in caplog.records if "recovering for 0 s now" in record.getMessage()]
    assert progress
    assert progress[0].getMessage().startswith(f"{killed.path}: ")


def test_it_is_done_when_asked_for(closed, caplog):
    closed.open(do_recover=True).close()
    assert f"{closed.path} is to be recovered: recovering from" in caplog.text
    closed.is_sound()


def test_it_is_forbidden(killed, closed_beside):
    before = killed.contents()
    for read_only in (False, True):
        with pytest.raises(RecoveryNeeded, match="was not closed by its last owner, and do_recover=False was given"):
            killed.open(do_recover=False, read_only=read_only)
    assert killed.contents() == before
    closed_beside.open(do_recover=False).close()


@pytest.fixture
def closed_beside():
    with scratch_directory() as path:
        yield Example(path, closed=True)


def whole_records(log):
    """Return where the records of a log file begin, and where the last one ends."""
    contents, end, starts = log.read_bytes(), end_of_log(log), [0]
    while starts[-1] < end:
        starts.append(starts[-1] + LOG_HEADER.unpack_from(contents, starts[-1])[1])
    assert starts.pop() == end
    return starts, end


TAILS = {
    "nothing": lambda whole, start, end: whole[:end],
    "half of the last record": lambda whole, start, end: whole[: (start + end) // 2],
    "the header of the last record": lambda whole, start, end: whole[: start + LOG_HEADER.size],
    "half of the header": lambda whole, start, end: whole[: start + LOG_HEADER.size // 2],
    "zeros in the last record": lambda whole, start, end: whole[: (start + end) // 2] + bytes(1000),
    "garbage in the last record": lambda whole, start, end: whole[: end - 20] + b"\xa5" * 20,
}


@pytest.mark.parametrize("tail", TAILS)
def test_a_torn_tail_is_dropped(killed, caplog, tail):
    starts, end = whole_records(killed.log)
    killed.log.write_bytes(TAILS[tail](killed.log.read_bytes(), starts[-1], end))
    killed.is_sound(lost=0 if tail == "nothing" else 1)
    told = [line for line in caplog.records if "of a record that was being written" in line.getMessage()]
    assert len(told) == (tail != "nothing")
    assert all(line.levelname == "WARNING" for line in told)
    assert all(line.getMessage().startswith(f"{killed.path}/log.") for line in told)


def test_garbage_behind_the_last_record_is_dropped(killed, caplog):
    end = end_of_log(killed.log)
    killed.log.write_bytes(killed.log.read_bytes()[:end] + b"\x01" * 5000)
    killed.is_sound()
    assert "5000 bytes" in caplog.text


@pytest.mark.parametrize("start", [b"", bytes(28), b"\xa5" * 28], ids=["empty", "zeros", "garbage"])
def test_a_log_file_that_was_never_begun_is_dropped(killed, start):
    """Its name was on the disk when the power went, and what was in it was not."""
    begun = killed.path / log_name(log_numbers(killed.path)[-1] + 1)
    begun.write_bytes(start + (b"\xa5" * 3000 if start else b""))
    killed.is_sound()


def test_damage_with_more_behind_it_is_an_error_in_the_log(killed, caplog):
    starts, _ = whole_records(killed.log)
    middle = starts[len(starts) // 2]
    flip(killed.log, middle + LOG_HEADER.size + 5)
    name = killed.log.name
    with killed.open() as storage:
        killed.history.verify(storage)
    assert killed.history.lost > 1
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"{name} is damaged at offset {middle}: the " in told.getMessage()
    assert "ACKNOWLEDGED COMMITS MAY BE LOST" in told.getMessage()
    killed.is_sound(killed.history.lost)


def test_what_was_dropped_does_not_come_back(place, caplog):
    """Behind the damage are whole records. New ones of the same lengths are written over it, up to the old ones."""

    def commit(storage, byte, times):
        for _ in range(times):
            storage.begin()
            storage.store(oid(0), oid(0) + (1000).to_bytes(4, "big") + byte * 1000)
            storage.end()

    first, second, third = (place / name for name in ("first", "second", "third"))
    first.mkdir()
    with BerkeleyDBStorage(first, **OPTIONS) as storage:
        storage.new_oid()
        commit(storage, b"a", 30)
        before = storage._engine.environment.log_statistics()["cur_offset"]
        commit(storage, b"b", 30)
        copied(first, second)
    log = second / log_name(log_numbers(second)[-1])
    starts, _ = whole_records(log)
    flip(log, starts[starts.index(before) + 1] + LOG_HEADER.size + 5)
    with BerkeleyDBStorage(second, **OPTIONS) as storage:
        assert storage.load(oid(0)).endswith(b"a")
        for count in range(12):
            commit(storage, b"c", 1)
            copied(second, third)
            with BerkeleyDBStorage(third, **OPTIONS) as again:
                assert again.load(oid(0)).endswith(b"c"), count
                assert not again.check().faults
            shutil.rmtree(third)
    assert caplog.text.count("ACKNOWLEDGED COMMITS MAY BE LOST") == 1


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_the_first_change_of_a_transaction_before_a_checkpoint_is_undone(place, type):
    """It is the only record of a transaction that the log has from where the recovery begins."""
    working, left = place / "working", place / "left"
    working.mkdir()
    with BerkeleyDBStorage(working, type=type, **OPTIONS) as storage:
        commit(storage, record(0, data=b"before"))
        with storage._engine.lock, storage._engine.change() as change:
            storage._engine.objects.put(oid(0), record(0, data=b"halfway"), change.transaction)
            storage._engine.environment.checkpoint()
            copied(working, left)
    with BerkeleyDBStorage(left, **OPTIONS) as storage:
        assert storage.statistics().recovered
        assert storage.load(oid(0)) == record(0, data=b"before")
        assert not storage.check().faults


def test_a_log_that_lacks_what_the_tables_have_is_refused(place, monkeypatch):
    """Killed right after the pages of a checkpoint were written; then a record before it is damaged."""
    example = Example(place, closed=True)
    path = example.path
    with monkeypatch.context() as patch, example.open() as storage:
        Writer(storage, 0, example.history.hubs[0], example.history.report).next()
        before = place / "before"
        patch.setattr(failpoints, "hook", lambda name: name == "checkpoint.done" and copied(path, before))
        storage.checkpoint()
        patch.setattr(failpoints, "hook", None)
    example.path = before
    starts, _ = whole_records(example.log)
    known = example.description()["checkpoint_offset"]
    flip(example.log, starts[starts.index(known) + 4] + LOG_HEADER.size + 5)
    example.is_refused(DamagedError, r"log\.0.* is damaged at offset .*\.db holds what happened after that: put an und")


def remove_log_in_the_middle(example):
    number = log_numbers(example.path)[1]
    (example.path / log_name(number)).unlink()
    return rf"{log_name(number)} is missing, and log files \d+ to \d+ are needed: put it back"


def remove_oldest_log(example):
    number = log_numbers(example.path)[0]
    (example.path / log_name(number)).unlink()
    return rf"{log_name(number)} is missing"


def remove_newest_known_log(example):
    number = example.description()["last_log"]
    for newer in log_numbers(example.path):
        if newer >= number:
            (example.path / log_name(newer)).unlink()
    return rf"{log_name(number)} is missing"


def remove_all_logs(example):
    numbers = log_numbers(example.path)
    for number in numbers:
        (example.path / log_name(number)).unlink()
    return rf"{log_name(numbers[0])} is missing"


def zero_a_log(example):
    """As a file system may after a power cut that it did not survive well."""
    log = example.path / log_name(example.description()["checkpoint_log"])
    log.write_bytes(bytes(log.stat().st_size))
    return rf"{log.name} is damaged, or not the one that belongs here: the checkpoint at offset \d+ is not in it"


def remove_a_table(example):
    (example.path / "suspects.db").unlink()
    return r"suspects\.db is missing: restore the storage from a backup"


def empty_a_table(example):
    os.truncate(example.path / "meta.db", 0)
    return r"meta\.db is cut off"


def change_the_library(example):
    example.description(library="18.1.40")
    return r"was written by Berkeley DB 18\.1\.40, and this is 5\.\d+\.\d+: open it with 18\.1\.40, or migrate"


def make_it_newer(example):
    example.description(format=99)
    return r"has format 99, and this version of the package reads up to \d: install a newer"


def remove_the_description(example):
    (example.path / DESCRIPTION).unlink()
    return r"storage\.json is missing, and the tables of a storage are there: restore it from a backup"


def damage_the_description(text):
    def damage(example):
        (example.path / DESCRIPTION).write_bytes(text)
        return r"storage\.json is damaged"

    damage.__name__ = f"description {text[:12]}"
    return damage


REFUSED = [
    (remove_oldest_log, DamagedError),
    (remove_newest_known_log, DamagedError),
    (remove_all_logs, DamagedError),
    (zero_a_log, DamagedError),
    (remove_a_table, DamagedError),
    (empty_a_table, DamagedError),
    (change_the_library, LibraryMismatch),
    (make_it_newer, NewerFormat),
    (remove_the_description, DamagedError),
    *[(damage_the_description(text), DamagedError) for text in (b"", b'{"format": 1, "lib', b"\xff\xfe", b"[1]")],
    (damage_the_description(b'{"format": "one"}'), DamagedError),
]


@pytest.mark.parametrize(("damage", "error"), REFUSED, ids=[damage.__name__ for damage, _ in REFUSED])
def test_what_is_refused(example, damage, error):
    match = damage(example)
    example.is_refused(error, match)


def test_a_missing_log_in_the_middle_is_refused(killed):
    killed.is_refused(DamagedError, remove_log_in_the_middle(killed))


def test_a_damaged_record_in_an_earlier_log_is_refused(killed):
    """One after the last checkpoint: those before are not needed."""
    description = killed.description()
    log = killed.path / log_name(description["checkpoint_log"])
    assert log != killed.log
    starts, _ = whole_records(log)
    bad = starts[starts.index(description["checkpoint_offset"]) + 5]
    flip(log, bad + LOG_HEADER.size + 5)
    killed.is_refused(DamagedError, rf"{log.name} is damaged at offset {bad}: put an undamaged copy back, or restore")


@pytest.mark.parametrize("table", ["objects", "journal"])
def test_a_damaged_page_that_recovery_meets_is_refused(killed, table):
    where = killed.path / f"{table}.db"
    flip(where, *range(PAGE_SIZE + 200, where.stat().st_size, PAGE_SIZE))
    first = next(bad_pages(where))
    killed.is_refused(
        DamagedError, rf"page {first} of .*{table}\.db is damaged, so that it cannot be recovered: put an"
    )


def test_a_table_that_was_cut_off_is_refused(example):
    where = example.path / "objects.db"
    os.truncate(where, where.stat().st_size // PAGE_SIZE // 2 * PAGE_SIZE)
    example.is_refused(DamagedError, r"example/objects\.db (is cut off, it has \d+ of|was cut off, \d+ pages are)")


def test_a_table_that_was_cut_off_after_it_was_closed_is_left_as_it_is(closed):
    where = closed.path / "objects.db"
    os.truncate(where, where.stat().st_size - PAGE_SIZE)
    closed.is_refused(
        DamagedError, r"objects\.db is cut off, it has \d+ of \d+ bytes: restore the storage from a backup"
    )


def test_a_table_of_another_time_is_refused(killed):
    """An old copy of it, as one file of a backup would be, under the log of today."""
    shutil.copyfile(killed.old, killed.path / "objects.db")
    killed.is_refused(
        DamagedError, r"the tables in .*example do not fit to its log: one of its files was cut off, or is"
    )


def damaged_page(example):
    """Damage a page with records; return the oids of all objects."""
    where = example.path / "objects.db"
    with example.open() as storage:
        oids = [key for key, _ in storage.gen_oid_record()]
    contents = where.read_bytes()
    leaf = max(range(0, len(contents), PAGE_SIZE), key=lambda start: contents[start + 25] == 5 and contents[start + 20])
    flip(where, leaf + 2000)
    return oids


def test_a_damaged_first_page_is_refused(closed):
    """The library looks at it when it opens the table, after the storage was marked as open."""
    flip(closed.path / "journal.db", 100)
    with pytest.raises(DamagedError, match=r"journal\.db is damaged"):
        closed.open()
    assert closed.description()["state"] == "closed"


def load_all(storage, oids):
    for key in oids:
        storage.load(key)


def test_a_bad_page_stops_the_storage(closed):
    oids = damaged_page(closed)
    for _ in range(2):
        storage = closed.open()
        with pytest.raises(DamagedError, match=r"objects\.db is damaged"):
            load_all(storage, oids)
        for work in (
            lambda storage=storage: storage.load(oids[0]),
            storage.pack,
            storage.check,
            storage.checkpoint,
            storage.statistics,
            lambda storage=storage: Writer(storage, 0, closed.history.hubs[0], closed.history.report),
        ):
            with pytest.raises(DamagedError, match="is damaged"):
                work()
        storage.begin()
        storage.store(oid(0), record(0, *closed.history.hubs))
        with pytest.raises(DamagedError, match="damaged"):
            storage.end()
        storage.close()
        storage.close()
        assert (closed.path / LOCK).read_bytes() == b""


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_flipped_bytes_in_tables_never_give_a_wrong_record(place, caplog, type):
    """Whatever is loaded is right; what cannot be is a `DamagedError`, at open or later; and closing works."""
    closed = Example(place, closed=True, type=type)
    caplog.set_level("CRITICAL", "berkeleydb_storage")
    with closed.open() as storage:
        right = dict(storage.gen_oid_record())
    source, contents, noticed = random.Random(1), closed.contents(), 0
    for _ in range(TABLE_FLIPS):
        name = source.choice([f"{table}.db" for table in TABLES] + ["objects.db"] * 6)
        where = closed.path / name
        flip(where, source.randrange(len(contents[name])))
        noticed += not reads_right(closed, right)
        for changed, before in contents.items():
            (closed.path / changed).write_bytes(before)
    assert noticed > TABLE_FLIPS // 4


def reads_right(example, right):
    try:
        storage = example.open()
    except DamagedError:
        return False
    sound = True
    for key, expected in right.items():
        try:
            assert storage.load(key) == expected
        except DamagedError:
            sound = False
    storage.close()
    return sound


def test_a_page_of_zeros_is_found_before_the_library_meets_it(closed, capsys):
    """As a file system may leave it; the checksum does not tell, and a search that comes there never ends."""
    where = closed.path / "objects.db"
    contents = bytearray(where.read_bytes())
    contents[PAGE_SIZE : 2 * PAGE_SIZE] = bytes(PAGE_SIZE)
    where.write_bytes(contents)
    assert list(bad_pages(where)) == [1]
    before = closed.contents()
    assert cli.main(["check", str(closed.path)]) == 1
    assert f"page 1 of {where} is damaged" in capsys.readouterr().out
    assert closed.contents() == before


def test_flipped_bytes_in_logs_give_the_first_commits_or_an_error(killed, caplog):
    caplog.set_level("CRITICAL", "berkeleydb_storage")
    source, contents, refused, lost = random.Random(2), killed.contents(), 0, 0
    for _ in range(LOG_FLIPS):
        log = killed.path / log_name(source.choice(log_numbers(killed.path)))
        flip(log, source.randrange(len(contents[log.name].rstrip(b"\0"))))
        history = copy.deepcopy(killed.history)
        try:
            with killed.open() as storage:
                history.verify(storage)
                assert not storage.check().faults
            lost += history.lost > 0
        except DamagedError:
            refused += 1
        for name in os.listdir(killed.path):
            (killed.path / name).unlink()
        for name, before in contents.items():
            (killed.path / name).write_bytes(before)
    assert refused
    assert lost
