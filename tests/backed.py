"""What tests of backups have in common: getting storages out of them, and looking at those."""

import tempfile
from pathlib import Path

from graphs import MEMORY

from berkeleydb_storage import BerkeleyDBStorage, restore
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store
from berkeleydb_storage.check import check_pages

_made = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)


def restored(where, target=None, **options):
    """Restore to a directory, which is gone at the end of all tests, or to `target`; return it."""
    path = target or Path(tempfile.mkdtemp(dir=_made.name))
    restore(where, path, **options)
    return path


def verify(path, history=None):
    """Fail if anything is wrong in a storage that was restored; it is not changed by that."""
    with BerkeleyDBStorage(path, read_only=True) as copy:
        assert not copy._running.opened.recovered
        if history is not None:
            history.verify(copy)
        report = copy.check()
        assert not report.faults, report.faults
    assert not check_pages(path)


def contents(path, **options):
    """Return {oid: record} of a storage."""
    with BerkeleyDBStorage(path, read_only=True, **options) as storage:
        return dict(storage.gen_oid_record())


def bases(where):
    return Repository(open_store(where)).bases()


def pieces(where):
    """Return the pieces of log in a place."""
    return [piece for base in bases(where) for piece in base.pieces]
