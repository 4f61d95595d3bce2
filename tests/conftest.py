"""What every test may use: an empty directory, and storages that are closed and checked when the test is over."""

import logging

import pytest

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.check import check_pages

pytest.register_assert_rewrite("berkeleydb_storage.testing", "graphs")
logging.getLogger("durus").setLevel(logging.CRITICAL + 1)


def check_directory(path):
    """Open the storage that a test left behind, and fail if anything in it is wrong."""
    with BerkeleyDBStorage(path) as storage:
        report = storage.check()
    assert not report.faults, report.faults
    faults = check_pages(path)
    assert not faults, faults


def let_others_in(path):
    """Have other users get as far as a directory of a test, and look into it."""
    for each in (path, *path.parents):
        if not each.stat().st_mode & 0o001:
            each.chmod(0o755)
    path.chmod(0o755)


class Opener:
    """Opens storages as `BerkeleyDBStorage` does, by default in `directory`, and remembers them."""

    def __init__(self, directory):
        self.directory = directory
        self._opened = []
        self._paths = {}

    def __call__(self, path=None, **options):
        storage = BerkeleyDBStorage(path or self.directory, **options)
        self._opened.append(storage)
        self._paths[path or self.directory] = True
        return storage

    def forget(self, path=None):
        """Do not check this directory at the end: the test damages it."""
        self._paths.pop(path or self.directory, None)

    def finish(self):
        for storage in self._opened:
            storage.close()
        for path in self._paths:
            check_directory(path)


@pytest.fixture
def directory(tmp_path):
    """An empty directory."""
    path = tmp_path / "storage"
    path.mkdir()
    return path


@pytest.fixture
def open_storage(directory):
    """A function that opens storages; at the end of the test they are closed, and what they left is checked."""
    opener = Opener(directory)
    yield opener
    opener.finish()
