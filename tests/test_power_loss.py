"""Power cuts: whatever was not synced may be there or not, sector by sector and page by page.

A storage works in this process. At random crash points its files are copied, as the system has them, and from that
directories are made as a power cut may have left them: each page of a table is as it was at the last checkpoint, or as
it is now; the log is whole up to what the library synced, and anything behind. Each of them must be consistent, with
every commit that was acknowledged with ``durable=True``, and with the first so many without.
"""

import copy
import os
import random
import shutil
import sys
from itertools import pairwise

import pytest
from crash_model import History, Writer, set_up
from graphs import scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointInline,
    GarbageInline,
    GarbageManual,
    environment,
    failpoints,
)
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.directory import DESCRIPTION
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.files import PAGE_SIZE, TABLE_SUFFIX, log_name, log_numbers

CUTS = 20
"""Moments within commits, about, at which the power is cut in each configuration."""
STEPS = 250
"""Commits that they are spread over."""
VARIANTS = 3
"""Directories made from each."""
SEED = 0
SECTOR = 512
LOG_FILE_SIZE = 1 << 18
KINDS = ("nothing", "zeros", "garbage", "sectors", "everything")
"""What may follow the synced part of a log file."""
IN_A_CHECKPOINT = ("nothing", "zeros", "garbage")
"""The same while the pages are written: the record of the checkpoint is only made afterwards."""

CONFIGURATIONS = {
    "durable": {},
    "durable-hash": {"type": "hash"},
    "async": {"durable": False},
    "buffered": {"durable": False, "async_log_write": False},
}


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", LOG_FILE_SIZE)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)
    monkeypatch.setattr("berkeleydb_storage.oids.OID_BLOCK", 16)


@pytest.fixture
def in_memory():
    with scratch_directory() as path:
        yield path


class Disk:
    """What is on the disk for certain, and what may be."""

    def __init__(self, path, source):
        self.tables = {}
        """File name -> contents as of the last checkpoint."""
        self.evicted = 0
        """Pages that differed at a cut from what they were at the last checkpoint."""
        self._path = path
        self._source = source

    def checkpointed(self):
        for name in TABLES:
            self.tables[name + TABLE_SUFFIX] = (self._path / (name + TABLE_SUFFIX)).read_bytes()

    def cut(self, target, synced, kinds=KINDS):
        """Make a directory as a power cut may leave it.

        Args:
            target: what to make.
            synced: number of the newest log file that was synced, and up to which byte.
            kinds: what may follow that.
        """
        target.mkdir()
        shutil.copyfile(self._path / DESCRIPTION, target / DESCRIPTION)
        taste = self._source.choice((0.0, 0.5, 0.9, 1.0))
        for name, before in self.tables.items():
            (target / name).write_bytes(self._table(before, (self._path / name).read_bytes(), taste))
        for number in log_numbers(self._path):
            self._log(number, target, *synced, kinds)

    def _table(self, before, now, taste):
        """Return pages of both, those of `now` with the probability `taste`; what neither wrote is zero."""
        size = self._source.choice((len(before), max(len(before), len(now))))
        pages = []
        for start in range(0, size, PAGE_SIZE):
            old, new = before[start : start + PAGE_SIZE], now[start : start + PAGE_SIZE]
            self.evicted += old != new
            page = new if self._source.random() < taste else old
            pages.append(page.ljust(PAGE_SIZE, b"\0"))
        return b"".join(pages)

    def _log(self, number, target, newest, offset, kinds):
        whole = (self._path / log_name(number)).read_bytes()
        where = target / log_name(number)
        if number < newest:
            where.write_bytes(whole)
        elif number == newest:
            where.write_bytes(whole[:offset] + self._unsynced(whole, offset, kinds))
        elif self._source.random() < 0.5:
            where.write_bytes(self._unsynced(whole, 0, kinds))

    def _unsynced(self, whole, start, kinds):
        """Return what may follow the synced part of a log file: nothing, zeros, garbage, or some of its sectors."""
        rest = whole[start:]
        kind = self._source.choice(kinds)
        if kind == "nothing":
            return b""
        if kind == "garbage":
            return self._source.randbytes(len(rest.rstrip(b"\0")))
        if kind == "sectors":
            first = -start % SECTOR
            cuts = [0, *range(first, len(rest), SECTOR), len(rest)]
            kept = (rest[a:b] if self._source.random() < 0.5 else bytes(b - a) for a, b in pairwise(cuts))
            return b"".join(kept)
        return rest if kind == "everything" else bytes(len(rest))


class Outage:
    """Cuts the power at random crash points of a storage, and looks at what comes of it."""

    def __init__(self, storage, directory, history, source, options):
        self.cuts = 0
        self.names = set()
        self.failures = []
        self._directory = directory
        self._history = history
        self._source = source
        self._options = options
        self._library = storage._engine.environment
        self.disk = Disk(self._library.path, source)
        self.disk.checkpointed()
        self._begun = self._synced()

    def _synced(self):
        status = self._library.log_statistics()
        return status["disk_file"], status["disk_offset"]

    def reached(self, name):
        """Called at each crash point."""
        if name == "checkpoint.begun":
            status = self._library.log_statistics()
            self._begun = status["cur_file"], status["cur_offset"]
        if name.startswith("checkpoint") or self._source.random() < CUTS / STEPS / 6:
            self.names.add(name)
            for _ in range(VARIANTS):
                self._cut(name == "checkpoint.done")
        if name == "checkpoint.done":
            self.disk.checkpointed()

    def _cut(self, in_a_checkpoint):
        self.cuts += 1
        target = self._directory / f"cut {self.cuts}"
        if in_a_checkpoint:
            self.disk.cut(target, self._begun, IN_A_CHECKPOINT)
        else:
            self.disk.cut(target, self._synced())
        hook, failpoints.hook = failpoints.hook, None
        try:
            self._look(target, copy.deepcopy(self._history))
            shutil.rmtree(target)
        except Exception as error:
            self.failures.append(f"{target}: {error!r}")
        finally:
            failpoints.hook = hook

    def _look(self, target, history):
        history.lost = 0
        with BerkeleyDBStorage(target, **self._options) as storage:
            history.verify(storage)
            report = storage.check()
            assert not report.faults, report.faults
            hubs = set_up(storage, 1, history.report)
            Writer(storage, 0, hubs[0], history.report).next()
            history.losing = False
            history.verify(storage)
        assert not check_pages(target)
        self._history.lost += history.lost


@pytest.mark.parametrize("garbage", [GarbageInline(grace=0.0), GarbageManual()], ids=["collected", "growing"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_power_cuts(in_memory, monkeypatch, capsys, caplog, configuration, garbage):
    caplog.set_level("CRITICAL", "berkeleydb_storage")
    options = CONFIGURATIONS[configuration] | {"cachesize": 1 << 20}
    source = random.Random(f"{configuration} {SEED}")
    history = History(losing="durable" in options)
    path = in_memory / "storage"
    path.mkdir()
    policies = {"checkpoint": CheckpointInline(log_bytes=3_000_000), "garbage_collection": garbage}
    with BerkeleyDBStorage(path, **options, **policies) as storage:
        outage = Outage(storage, in_memory, history, source, options)
        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "hook", outage.reached)
            writer = Writer(storage, 0, set_up(storage, 1, history.report)[0], history.report)
            for _ in range(STEPS):
                writer.next()
    assert not outage.failures, "\n".join(outage.failures)
    assert outage.disk.evicted, "no page was written between two checkpoints"
    assert {name.split(".")[0] for name in outage.names} >= {"commit", "checkpoint"}
    assert history.losing or history.lost == 0
    with capsys.disabled():
        sys.stdout.write(f"\n{configuration}: {outage.cuts} power cuts survived, {history.lost} commits lost in all\n")
    assert os.listdir(in_memory) == ["storage"]
