"""A storage for a server process whose disk a test can fill up: for as long as there is a file ``.full`` in it."""

from berkeleydb_storage import BerkeleyDBStorage, DiskFullError, engine
from berkeleydb_storage.room import Room

engine.OID_BLOCK = 1


class _Room(Room):
    def need(self, size):
        if (self._path / ".full").exists():
            raise DiskFullError(f"the disk of {self._path} is full, says the test")
        super().need(size)


class ShortOfRoom(BerkeleyDBStorage):
    def __init__(self, path, **options):
        super().__init__(path, **options)
        self._engine._room = _Room(self._engine.environment.path)
