"""A pack that a client asked for leaves room for what others ask for."""

from itertools import count

from benchmarks.objects.records import fill
from berkeleydb_storage import BerkeleyDBStorage, GarbageManual
from berkeleydb_storage.server import chores
from berkeleydb_storage.server.chores import REST, Chores
from berkeleydb_storage.server.metrics import Metrics


class Busy(Metrics):
    """Those of a server to which something comes all the time."""

    def __init__(self):
        self._bytes = count()
        super().__init__()

    received = property(lambda self: next(self._bytes), lambda self, value: None)


def packed(path, metrics, monkeypatch):
    """Have a storage packed that has something to do; return the rests."""
    rests = []
    monkeypatch.setattr(chores, "sleep", rests.append)
    with BerkeleyDBStorage(path, durable=False, garbage_collection=GarbageManual()) as storage:
        fill(storage, 3000)
        work = Chores(storage, metrics, None)
        work.pack()
        work.finish_packing()
    assert (metrics.packs, metrics.failed_packs) == (1, 0)
    return rests


def test_a_pack_rests_after_each_step_while_clients_ask(tmp_path, monkeypatch):
    rests = packed(tmp_path, Busy(), monkeypatch)
    assert set(rests) == {REST}
    assert len(rests) > 3


def test_a_pack_does_not_rest_where_nobody_asks(tmp_path, monkeypatch):
    assert packed(tmp_path, Metrics(), monkeypatch) == []
