"""Every page of a table is looked at while it is copied: one that is damaged on the disk gets into no backup."""

import random
import threading

import pytest
from concurrency import run_threads
from graphs import commit, copied, hand_out, oid, quiet, record

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointThread,
    DamagedError,
    GarbageThread,
    list_backups,
    restore,
    verify_backups,
)
from berkeleydb_storage.backup import soundness
from berkeleydb_storage.environment import OBJECTS, TABLES
from berkeleydb_storage.files import BTREE_META, HASH_META, META_SIZE, PAGE_SIZE, PAGE_TYPE, TABLE_SUFFIX
from berkeleydb_storage.keys import mac_key

KEY = "a password"
OBJECTS_STORED = 300
SEEDS = 12
"""Pages that a byte is flipped in, of each kind of storage."""
BACKUPS = 1
"""Of a storage whose tables change all the time."""
KINDS = {
    "btree": {},
    "hash": {"type": "hash"},
    "encrypted": {"key": KEY},
    "encrypted hash": {"type": "hash", "key": KEY},
}


@pytest.fixture(params=["the library's function", "Python's"])
def way(request, monkeypatch):
    """The way in which checksums are found."""
    if request.param == "Python's":
        monkeypatch.setattr(soundness, "_function", lambda: None)
    else:
        assert soundness._function() is not None
    return request.param


@pytest.fixture(params=KINDS)
def options(request):
    return KINDS[request.param]


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "backups"
    path.mkdir()
    return path


def fill(storage):
    hand_out(storage, OBJECTS_STORED)
    keys = range(1, OBJECTS_STORED)
    commit(storage, record(0, *keys), *(record(key, data=b"%d" % key * 100) for key in keys))


def table(path, name=OBJECTS):
    return path / (name + TABLE_SUFFIX)


def pages(path):
    data = path.read_bytes()
    return [data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)]


def spoil(path, offset, change=1):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ change]))


def test_what_a_storage_wrote_is_sound(directory, options, way):
    with quiet(directory, **options) as storage:
        fill(storage)
    mac = mac_key(options.get("key"))
    for name in TABLES:
        contents = table(directory, name).read_bytes()
        assert list(soundness.damaged_pages(contents, 0, mac)) == []


def test_any_flipped_bit_is_found(directory, options, way):
    with quiet(directory, **options) as storage:
        fill(storage)
    chosen, mac, whole = random.Random(1), mac_key(options.get("key")), table(directory).read_bytes()
    number = len(whole) // PAGE_SIZE
    for page in [0, *(chosen.randrange(number) for _ in range(SEEDS))]:
        if not any(whole[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]):
            continue
        covered = META_SIZE if whole[page * PAGE_SIZE + PAGE_TYPE] in (HASH_META, BTREE_META) else PAGE_SIZE
        damaged = bytearray(whole)
        damaged[page * PAGE_SIZE + chosen.randrange(covered)] ^= 1 << chosen.randrange(8)
        assert list(soundness.damaged_pages(bytes(damaged), 0, mac)) == [page]


def test_a_page_in_the_place_of_another_is_found(directory, options, way):
    with quiet(directory, **options) as storage:
        fill(storage)
    found = pages(table(directory))
    first, second = [n for n, page in enumerate(found) if n and any(page)][2:4]
    found[first] = found[second]
    assert list(soundness.damaged_pages(b"".join(found), 0, mac_key(options.get("key")))) == [first]


def test_pages_of_zeros_are_sound(options, way):
    assert list(soundness.damaged_pages(bytes(5 * PAGE_SIZE), 7, mac_key(options.get("key")))) == []


def test_a_function_of_that_name_that_does_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(soundness, "checksum_function", lambda: lambda *arguments: None)
    assert soundness._function.__wrapped__() is None


def test_what_the_function_doubts_is_looked_at_again(directory, monkeypatch):
    with quiet(directory) as storage:
        fill(storage)
    monkeypatch.setattr(soundness, "_function", lambda: lambda *arguments: None)
    assert list(soundness.damaged_pages(table(directory).read_bytes(), 0, None)) == []


@pytest.mark.parametrize("name", TABLES)
def test_a_backup_ends_at_a_damaged_page_and_those_before_it_stay(directory, target, tmp_path, options, name):
    """The storage has the page in its cache, and would write it never again."""
    with quiet(directory, **options) as storage:
        fill(storage)
        storage.backup(target)
        commit(storage, record(1, data=b"new"))
        storage.checkpoint()
        page = max(n for n, page in enumerate(pages(table(directory, name))) if any(page))
        spoil(table(directory, name), page * PAGE_SIZE + 20)
        before = list_backups(target)
        with pytest.raises(DamagedError, match=f"page {page} of .*{name}.db is damaged.* restore"):
            storage.backup(target, full=True)
        assert list_backups(target) == before
        assert storage.load(oid(1)) == record(1, data=b"new")
        spoil(table(directory, name), page * PAGE_SIZE + 20)
        assert storage.backup(target).kind == "incremental"
        assert storage.backup(target, full=True).kind == "full"
    verified = verify_backups(target, key=options.get("key"))
    assert verified.sound, verified
    assert len(verified.chains) == 2
    assert restore(target, tmp_path / "restored", key=options.get("key")).objects == OBJECTS_STORED


def test_no_page_that_changes_is_taken_for_a_damaged_one(directory, target, options):
    """Checkpoints, an overflowing cache, tables that grow and shrink, pages that are new: none of it is damage."""
    policies = {"checkpoint": Often(log_bytes=200_000), "garbage_collection": GarbageThread(grace=0.0, interval=0.01)}
    with BerkeleyDBStorage(directory, cachesize=1 << 20, durable=False, **policies, **options) as storage:
        fill(storage)
        load = Load(storage)
        made = []

        def work():
            made.extend(storage.backup(target, load.allow, full=True) for _ in range(BACKUPS))
            storage.compact(load.allow)
            made.append(storage.backup(target, load.allow, full=True))

        load.during(work)
    assert [backup.kind for backup in made] == ["full"] * (BACKUPS + 1)
    assert made[-1].tid > made[0].tid + BACKUPS
    assert verify_backups(target, key=options.get("key")).sound


class Often(CheckpointThread):
    interval = 0.01


class Load:
    """A thread that stores what the root refers to, and lets go of it, as often as it is allowed to."""

    def __init__(self, storage):
        self._session = storage.session()
        self._allowed = threading.Semaphore(0)
        self._done = False

    def allow(self, *_):
        self._allowed.release()

    def during(self, work):
        def first():
            try:
                work()
            finally:
                self._done = True
                self.allow()

        run_threads(first, self._change)

    def _change(self):
        chosen = random.Random(2)
        while self._allowed.acquire() and not self._done:
            held = [int.from_bytes(self._session.new_oid(), "big") for _ in range(20)]
            data = chosen.randbytes(chosen.randrange(1, 8000))
            commit(
                self._session,
                record(0, *range(1, OBJECTS_STORED), *held),
                *(record(key, data=data) for key in held),
            )


def test_tables_that_were_recovered_are_copied(directory, target, tmp_path, options):
    """Recovery writes pages that have no number yet."""
    with quiet(directory, **options) as storage:
        fill(storage)
        killed = copied(directory, tmp_path / "killed")
    with quiet(killed, **options) as storage:
        assert storage.statistics().recovered
        storage.backup(target)
    assert verify_backups(target, key=options.get("key")).sound
