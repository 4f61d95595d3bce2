"""How a check goes: its report, its progress, repair at opening, bad pages."""

import logging

import pytest
from faults import build, plant
from graphs import (
    assert_books,
    commit,
    journal,
    oid,
    quiet,
    record,
    rows,
    scratch_directory,
    scratch_storage,
)

from berkeleydb_storage import CommitRefused, DamagedError, Fault, ReadOnlyError, StorageClosed, check
from berkeleydb_storage.check import Report, check_pages
from berkeleydb_storage.environment import JOURNAL, OBJECTS, REFCOUNTS, SUSPECTS, TABLES
from berkeleydb_storage.files import PAGE_SIZE
from berkeleydb_storage.format import (
    pack_count,
    pack_uint64,
)


@pytest.fixture
def storage():
    with scratch_storage() as opened:
        build(opened)
        yield opened


@pytest.fixture
def closed(tmp_path):
    with quiet(tmp_path) as opened:
        build(opened)
    return tmp_path


def test_more_faults_than_a_report_lists(storage, monkeypatch):
    monkeypatch.setattr(check, "LISTED", 3)
    plant(storage, *((REFCOUNTS, oid(key), pack_count(2)) for key in range(100, 150)), (OBJECTS, oid(8), None))
    report = storage.check(repair=True)
    assert len(report.faults) == 3
    assert report.found == 50 + 2
    assert report.unrepairable == 1
    assert not report.sound
    assert storage.check().found == 1


def test_a_report_is_sound_when_all_is_well_or_was_repaired():
    fault = Fault("count", "wrong", True)
    assert Report().sound
    assert not Report(faults=[fault], found=1).sound
    assert Report(faults=[fault], found=1, repaired=True).sound
    assert not Report(faults=[fault], found=1, unrepairable=1, repaired=True).sound


def test_progress_is_told(storage, monkeypatch):
    monkeypatch.setattr(check, "FLUSH_EVERY", 5)
    told = []
    storage.check(progress=lambda what, count: told.append((what, count)))
    assert [count for what, count in told if what == "objects"] == [5, 10, 12]
    assert "reference counts" in {what for what, _ in told}


def test_hash_tables_are_checked_as_well():
    with scratch_storage(type="hash") as storage:
        build(storage)
        plant(storage, (REFCOUNTS, oid(4), None), (OBJECTS, oid(8), None))
        kinds = sorted(fault.kind for fault in storage.check(repair=True).faults)
        assert kinds == ["count", "dangling", "total"]


def test_sessions_wait_for_a_check_and_go_on(storage):
    """The check holds the mutex, so that it compares tables of one moment."""
    held = []
    storage.check(progress=lambda what, count: held.append(storage._engine.lock.locked()))
    assert all(held)
    assert held
    assert not storage._engine.lock.locked()


def test_a_check_of_a_closed_storage():
    with scratch_storage() as storage:
        build(storage)
    with pytest.raises(StorageClosed):
        storage.check()


def test_a_failing_progress_function_frees_the_storage(storage):
    def fail(what, count):
        raise RuntimeError("the window was closed")

    with pytest.raises(RuntimeError, match="the window was closed"):
        storage.check(progress=fail)
    assert storage.check().faults == []


def test_a_read_only_storage_is_checked_and_not_repaired(closed):
    with quiet(closed) as storage:
        plant(storage, (REFCOUNTS, oid(4), None))
    with quiet(closed, read_only=True) as storage:
        assert [fault.oid for fault in storage.check().faults] == [4]
        with pytest.raises(ReadOnlyError):
            storage.check(repair=True)


def test_repair_when_it_is_opened(closed, caplog):
    caplog.set_level(logging.WARNING)
    with quiet(closed) as storage:
        plant(storage, (REFCOUNTS, oid(4), None), (SUSPECTS, oid(77), pack_uint64(1)))
    with quiet(closed, repair=True) as storage:
        assert_books(storage)
    assert [line for line in caplog.messages if line.endswith(", repaired")] == [
        f"{closed}: object 4 has 2 referrers and a reference count of 1, repaired",
        f"{closed}: object 77 is a suspect and does not exist, repaired",
        f"{closed}: 2 suspects are stored, and the total says 1, repaired",
    ]


def test_repair_when_it_is_opened_and_there_is_nothing_to_do(closed, caplog):
    quiet(closed, repair=True).close()
    assert caplog.messages == []


def test_what_cannot_be_repaired_is_refused_when_it_is_opened(closed, caplog, monkeypatch):
    monkeypatch.setattr(check, "LISTED", 2)
    with quiet(closed) as storage:
        plant(storage, (OBJECTS, oid(8), None), (OBJECTS, oid(6), None))
    complaint = "2 faults that cannot be repaired, such as: object 6 does not exist, and is referred to; restore"
    with pytest.raises(DamagedError, match=complaint):
        quiet(closed, repair=True)
    assert f"{closed}: and 2 more faults" in caplog.messages
    with quiet(closed) as storage:
        assert [fault.kind for fault in storage.check().faults] == ["dangling", "dangling"]


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_page_is_found_in_the_files(closed, name):
    assert check_pages(closed) == []
    where = closed / f"{name}.db"
    content = bytearray(where.read_bytes())
    content[PAGE_SIZE + 1000] ^= 1
    where.write_bytes(content)
    assert check_pages(closed) == [Fault("page", f"page 1 of {where} is damaged", False)]


def test_a_missing_file_is_found(closed):
    (closed / "garbage.db").unlink()
    told = []
    faults = check_pages(closed, lambda what, count: told.append((what, count)))
    assert faults == [Fault("page", f"{closed / 'garbage.db'} is missing", False)]
    assert told == [("files", count) for count in range(1, len(TABLES) + 1)]


@pytest.mark.parametrize("type", ["btree", "hash"])
@pytest.mark.parametrize("use", ["check", "load", "gen_oid_record"])
def test_a_bad_page_is_named_by_whatever_meets_it(tmp_path, type, use):
    with quiet(tmp_path, type=type) as storage:
        build(storage)
    where = tmp_path / "objects.db"
    content = bytearray(where.read_bytes())
    for page in range(1, len(content) // PAGE_SIZE):
        content[page * PAGE_SIZE + 1000] ^= 1
    where.write_bytes(content)
    storage = quiet(tmp_path)
    uses = {
        "check": storage.check,
        "load": lambda: storage.load(oid(4)),
        "gen_oid_record": lambda: list(storage.gen_oid_record()),
    }
    with pytest.raises(DamagedError, match=r"objects\.db is damaged, and Berkeley DB has stopped"):
        uses[use]()
    with pytest.raises(DamagedError, match=r"objects\.db is damaged, and Berkeley DB has stopped"):
        storage.load(oid(5))
    storage.close()


def test_a_repair_is_on_the_disk_when_it_is_reported(monkeypatch):
    with scratch_directory() as path, quiet(path, durable=True) as storage:
        build(storage)
        plant(storage, (REFCOUNTS, oid(4), None))
        flushed = []
        flush = storage._engine.environment.flush
        monkeypatch.setattr(storage._engine.environment, "flush", lambda: (flush(), flushed.append(counts_now())))

        def counts_now():
            return rows(storage, REFCOUNTS).get(oid(4))

        storage.check(repair=True)
        assert flushed == [pack_count(2)]


def test_a_journal_that_was_mended_forgets(storage):
    """Whoever asks for what came before is told that it is not known, and not that nothing happened."""
    tid = storage._engine.journal.tid
    assert len(storage._engine.journal.since(3)) == tid - 3
    plant(storage, (JOURNAL, pack_uint64(tid - 2), None))
    storage.check(repair=True)
    assert storage._engine.journal.since(3) is None
    assert [row.oids for row in storage._engine.journal.since(tid)] == [None]


def test_transactions_go_on_when_the_horizon_passes_what_was_forgotten(storage, monkeypatch):
    monkeypatch.setattr("berkeleydb_storage.journal.HORIZON", 20)
    plant(storage, (JOURNAL, pack_uint64(3), None))
    storage.check(repair=True)
    for turn in range(30):
        commit(storage, record(8, data=b"%d" % turn))
    assert len(journal(storage)) == 20
    assert storage.check().faults == []


def test_a_check_during_a_migration_is_refused(storage):
    """What is in the tables does not fit together yet."""
    refused = []

    def records():
        with pytest.raises(CommitRefused, match="busy with a migration: nothing was stored, try again later") as caught:
            target.check()
        refused.append(caught.value)
        yield oid(0), record(0)

    with scratch_storage() as target:
        target.migrate(records())
        assert len(refused) == 1
        assert target.check().faults == []
