"""Commits and objects far beyond the cache: nothing runs out, and everything is there after reopening.

The slow ones have the sizes that are promised, and print their time and memory; the others the same shape.
"""

import os
import resource
import subprocess
import sys
import time

import pytest
from durus.serialize import pack_record

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever
from berkeleydb_storage.format import pack_uint64, unpack_uint64

GIB = 1 << 30


def chain(storage, length):
    """Return records of a chain of objects from the root, in one commit's worth."""
    oids = [storage.new_oid() for _ in range(length)]
    return [
        (oid, pack_record(oid, b"x" * 100, following)) for oid, following in zip(oids, [*oids[1:], b""], strict=True)
    ]


def commit(storage, records):
    storage.begin()
    for oid, record in records:
        storage.store(oid, record)
    storage.end()


OPTIONS = {
    "the defaults": {},
    "a cache of 1 MiB, without checkpoints": {"cachesize": 1 << 20, "checkpoint": CheckpointNever()},
    "type hash": {"type": "hash"},
}


@pytest.mark.parametrize("length", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_commit_of_many_objects(tmp_path, options, length, capsys):
    """In a process of its own, whose peak of memory is that of the records, the pending commit, and the cache."""
    say(capsys, in_a_process(f"commit_many({str(tmp_path)!r}, {options!r}, {length})"))


def commit_many(path, options, length):
    with BerkeleyDBStorage(path, **OPTIONS[options]) as storage:
        records = chain(storage, length)
        before = peak()
        started = time.monotonic()
        commit(storage, records)
        seconds, after = time.monotonic() - started, peak()
        assert storage.get_size() == length
    with BerkeleyDBStorage(path) as storage:
        for oid, record in records[:: max(1, length // 1000)]:
            assert storage.load(oid) == record
        report = storage.check()
        assert report.sound
        assert (report.objects, report.garbage) == (length, 0)
    print(f"a commit of {length:,} objects with {options}: {seconds:.1f} s, peak {after:,} MiB, {before:,} before it")


def peak():
    """Return the most memory that this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def in_a_process(call):
    """Run a function of this module in a process of its own; return what it printed."""
    program = f"import sys; sys.path[:0] = {sys.path!r}; import test_large; test_large.{call}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip()


@pytest.mark.parametrize("size", [100 << 20, pytest.param(GIB, marks=pytest.mark.slow)])
def test_an_object_of_many_bytes(tmp_path, size, capsys):
    """In a process of its own, whose peak of memory is that of the object, a few copies of it, and the cache."""
    needed = 8 * size
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < needed:
        pytest.skip(f"needs {needed >> 20:,} MB of memory")
    say(capsys, in_a_process(f"store_large({str(tmp_path)!r}, {size})"))


def store_large(path, size):
    started = time.monotonic()
    with BerkeleyDBStorage(path) as storage:
        oid = storage.new_oid()
        record = pack_record(oid, b"y" * size, b"")
        commit(storage, [(oid, record)])
        stored = time.monotonic() - started
        assert storage.load(oid) == record
    with BerkeleyDBStorage(path) as storage:
        started = time.monotonic()
        assert storage.load(oid) == record
        loaded = time.monotonic() - started
        storage.begin()
        storage.store(oid, pack_record(oid, b"small again", b""))
        storage.end()
        assert storage.check().sound
        assert unpack_uint64(storage.new_oid()) == 1
    print(f"an object of {size >> 20:,} MiB: stored in {stored:.1f} s, loaded in {loaded:.1f} s, peak {peak():,} MiB")


@pytest.mark.parametrize("references", [100_000])
def test_an_object_with_many_references(tmp_path, references):
    with BerkeleyDBStorage(tmp_path) as storage:
        root = storage.new_oid()
        oids = [storage.new_oid() for _ in range(references)]
        leaves = [(oid, pack_record(oid, b"", b"")) for oid in oids]
        commit(storage, [(root, pack_record(root, b"", b"".join(oids))), *leaves])
        commit(storage, [(root, pack_record(root, b"", b"".join(oids[1:])))])
        assert storage.statistics().garbage == 1
        assert storage.check().sound
        assert pack_uint64(0) == root


def say(capsys, text):
    with capsys.disabled():
        print(f"\n{text}")
