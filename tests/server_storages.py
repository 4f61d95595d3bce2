"""Storages for a server process: ``durus -s`` can be given a class, and no options."""

from itertools import repeat

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointThread,
    DiskFullError,
    GarbageInline,
    GarbageManual,
    GarbageThread,
    oids,
)
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
        oids.OID_BLOCK = 1
        super().__init__(path, **options)
        self._engine.transactions.room = _Room(self._engine.environment.path)


class Prompt(BerkeleyDBStorage):
    """Collects by its thread, without a grace period, and never packs by itself."""

    def __init__(self, path, **options):
        collection = GarbageThread(grace=0, interval=0.01, pack_interval=None)
        super().__init__(path, garbage_collection=collection, **options)


class PromptInline(BerkeleyDBStorage):
    """Collects after each commit, without a grace period."""

    def __init__(self, path, **options):
        super().__init__(path, garbage_collection=GarbageInline(grace=0), **options)


class _Unadvanced(BerkeleyDBStorage):
    """Its packer does nothing when the server asks it to go on, as if the server were never idle."""

    policy = None

    def __init__(self, path, **options):
        super().__init__(path, garbage_collection=self.policy, **options)

    def get_packer(self):
        self._packing = super().get_packer()
        return repeat(None)


class PackedByThread(_Unadvanced):
    """Its thread collects nothing by itself, because of the grace period."""

    policy = GarbageThread(grace=3600, interval=0.01, pack_interval=None)


class PackedByCommits(_Unadvanced):
    """Nothing is collected but by a pack."""

    policy = GarbageManual()


class PackedWhenIdle(_Unadvanced):
    """Only the packer can do the work: the thread sleeps."""

    policy = GarbageThread(grace=3600, interval=3600, pack_interval=None)
