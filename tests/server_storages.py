"""Storages for a server process: ``durus -s`` can be given a class, and no options."""

from berkeleydb_storage import BerkeleyDBStorage, CheckpointThread, DiskFullError, GarbageThread, engine
from berkeleydb_storage.room import Room


class EagerCheckpoints(CheckpointThread):
    """Checkpoints all the time."""

    interval = 0.005


class Eager(BerkeleyDBStorage):
    """Collects at once what nothing refers to, and makes checkpoints all the time."""

    def __init__(self, path, **options):
        collection = GarbageThread(grace=0, interval=0.001)
        super().__init__(path, checkpoint=EagerCheckpoints(log_bytes=1), garbage_collection=collection, **options)


class _Room(Room):
    def need(self, size):
        if (self._path / ".full").exists():
            raise DiskFullError(f"the disk of {self._path} is full, says the test")
        super().need(size)


class ShortOfRoom(BerkeleyDBStorage):
    """One whose disk is full for as long as there is a file ``.full`` in its directory. Reserves oids one by one."""

    def __init__(self, path, **options):
        engine.OID_BLOCK = 1
        super().__init__(path, **options)
        self._engine._room = _Room(self._engine.environment.path)
