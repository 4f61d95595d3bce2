"""`durus-bdb pack` and `stat` on a storage with garbage of every kind: what they show, interrupted and gone on with."""

import json
import re
import signal

import pytest
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from graphs import commit, hand_out, oid, record
from test_cli import contents, on_terminal, run, run_signalled

from berkeleydb_storage import BerkeleyDBStorage, GarbageManual, Packing, inspection
from berkeleydb_storage.format import ACQUITTED, PENDING, UNSETTLED, Suspect

RINGS = 600
"""Twos of objects that refer to each other, and nothing else does."""
LIVE = 50
SINGLES = 30
"""Objects without referrers."""
ALL = 1 + LIVE + 2 * RINGS + SINGLES


def graph():
    yield record(0, *range(1, LIVE + 1))
    yield from (record(number) for number in range(1, LIVE + 1))
    for number in range(LIVE + 1, LIVE + 1 + 2 * RINGS, 2):
        yield record(number, number + 1)
        yield record(number + 1, number)
    yield from (record(number) for number in range(LIVE + 1 + 2 * RINGS, ALL))


@pytest.fixture
def littered(open_storage, directory):
    """A storage with live objects, rings and garbage, closed."""
    storage = open_storage(garbage_collection=GarbageManual())
    storage.migrate((row[:8], row) for row in graph())
    storage.close()
    return directory


def test_a_pack_deletes_cycles_too(littered):
    before = contents(littered)
    values = json.loads(run("pack", littered, "--json")[0])
    assert contents(littered).keys() == {oid(number) for number in range(LIVE + 1)}
    size = sum(len(row) for key, row in before.items() if int.from_bytes(key, "big") > LIVE)
    seconds = values.pop("seconds")
    assert seconds >= 0
    assert values == {
        "directory": str(littered),
        "collected": 2 * RINGS + SINGLES,
        "bytes": size,
        "objects": LIVE + 1,
    }


def test_a_pack_in_words(littered):
    out, err = run("pack", littered)
    assert re.fullmatch(
        rf"packed {littered}: 1,230 objects of [\d,]+ bytes deleted in \d+\.\d s \([\d,]+/s\), 51 left\n", out
    )
    assert err == ""


def test_a_bar_for_each_activity(littered):
    code, shown = on_terminal("pack", littered)
    assert code == 0
    assert re.search(rf"collecting: 100%.* {SINGLES}/{SINGLES} ", shown)
    assert re.search(rf"marking: .* {LIVE + 1}/{LIVE + 1 + 2 * RINGS} ", shown)
    assert re.search(r"looking: 12\d\d objects", shown)
    assert re.search(rf"deleting: 100%.* {2 * RINGS}/{2 * RINGS} ", shown)
    assert shown.index("marking") < shown.index("looking") < shown.index("deleting") < shown.index("clearing")


@pytest.mark.parametrize("point", ["collect.committed", "doom.committed", "sweep.written", "clear.begun"])
def test_an_interrupted_pack(point, littered):
    """What was deleted is gone, nothing is damaged, and the next one does the rest."""
    done = run_signalled(point, signal.SIGINT, 1, "pack", littered)
    assert done.returncode == 130
    assert "durus-bdb: interrupted; what was deleted is gone" in done.stderr
    assert done.stderr.count("\n") == 2
    run("check", littered)
    values = json.loads(run("stat", littered, "--json")[0])["inside"]
    assert (values["doomed"] > 0) is (point in ("doom.committed", "sweep.written"))
    run("pack", littered)
    assert len(contents(littered)) == LIVE + 1


def test_a_deletion_that_has_begun_goes_on_when_the_storage_is_opened(littered):
    """Without another pack, by the policy."""
    run_signalled("doom.committed", signal.SIGINT, 1, "pack", littered)
    assert 0 < inspection.stat(littered)[1].doomed < 2 * RINGS
    with BerkeleyDBStorage(littered, garbage_collection=GarbageManual()) as storage:
        while storage._running.collector.step(100, 0):
            pass
        assert storage.statistics().doomed == 0
        assert storage.get_size() == LIVE + 1


def test_a_pack_tells_its_progress(littered):
    told = []
    with BerkeleyDBStorage(littered, garbage_collection=GarbageManual()) as storage:
        storage.pack(told.append)
        assert storage.statistics().packing is None
        assert storage.get_size() == LIVE + 1
    last = {packing.activity: packing for packing in told}
    assert last["collecting"] == Packing("collecting", SINGLES, SINGLES)
    assert last["marking"] == Packing("marking", LIVE + 1, LIVE + 1 + 2 * RINGS)
    assert last["deleting"] == Packing("deleting", 2 * RINGS, 2 * RINGS)
    assert list(last) == ["collecting", "marking", "looking", "deleting", "clearing"]


def test_what_the_progress_of_a_pack_raises_calls_it_off(littered):
    def stop(packing):
        if packing.activity == "marking":
            raise KeyboardInterrupt

    with BerkeleyDBStorage(littered, garbage_collection=GarbageManual()) as storage:
        with pytest.raises(KeyboardInterrupt):
            storage.pack(stop)
        assert storage.statistics().packing is None
        assert not storage._running.collector.numbers().packing
        storage.pack()
        assert storage.get_size() == LIVE + 1


def test_a_pack_through_a_connection(open_storage):
    """Durus calls it without arguments."""
    storage = open_storage(garbage_collection=GarbageManual())
    connection = Connection(storage)
    connection.get_root()["ring"] = ring = PersistentDict()
    ring["self"] = PersistentDict(back=ring)
    connection.commit()
    del connection.get_root()["ring"]
    connection.commit()
    connection.pack()
    assert storage.get_size() == 1


@pytest.fixture
def suspected(open_storage):
    """A storage with 9 suspects, of which all is known that can be."""
    storage = open_storage(garbage_collection=GarbageManual())
    hand_out(storage, 40)
    nine = [record(number, 20) for number in range(1, 10)]
    commit(storage, record(0, *range(1, 11)), *nine, record(10, *range(1, 10)), record(20))
    commit(storage, record(0, 10))
    counts, engine = storage._engine.counts, storage._engine
    with engine.lock, engine.change() as change:
        for number in range(1, 10):
            state = PENDING if number <= 2 else UNSETTLED if number <= 5 else ACQUITTED
            counts.note_search(oid(number), Suspect(1, 10, state), change.transaction)
        change.touched = True
    return storage


@pytest.mark.parametrize("batch", [1, 3, 9, 10])
def test_suspects_by_what_is_known_of_them(suspected, batch, monkeypatch):
    monkeypatch.setattr("berkeleydb_storage.figures.BATCH", batch)
    found = inspection.figures(suspected)
    assert (found.suspects, found.suspects_waiting, found.suspects_unsettled) == (9, 2, 3)


def test_too_many_suspects_to_count_them(suspected, monkeypatch):
    monkeypatch.setattr("berkeleydb_storage.figures.SUSPECTS", 9)
    assert inspection.figures(suspected).suspects_waiting == 2
    monkeypatch.setattr("berkeleydb_storage.figures.SUSPECTS", 8)
    found = inspection.figures(suspected)
    assert (found.suspects, found.suspects_waiting, found.suspects_unsettled) == (9, None, None)


def test_stat_of_suspects(suspected, directory):
    """A storage that is opened read-only has none of them in memory."""
    suspected.close()
    shown = run("stat", directory)[0]
    assert "\nsuspects       9: 2 to be looked at, 3 left to a full pack, 4 found alive\n" in shown
    assert "\nsearched       never\n" in shown


def test_stat_tells_the_times_and_what_is_left(littered):
    new = inspection.stat(littered)[1]
    assert (new.last_search, new.garbage, new.doomed, new.collected, new.collected_bytes) == (None, SINGLES, 0, 0, 0)
    run_signalled("doom.committed", signal.SIGINT, 1, "pack", littered)
    out, _ = run("stat", littered)
    assert re.search(r"\ngarbage        0 waiting; [\d,]+ more are being deleted together\n", out)
    run("pack", littered)
    packed = inspection.stat(littered)[1]
    assert packed.last_pack > new.last_pack
    assert re.search(r"\npacked         completely at 20[-\d]+ [\d:]+", run("stat", littered)[0])


def test_figures_after_a_search(suspected):
    commit(suspected, record(0, 10, 11), record(11, 12), record(12, 11))
    commit(suspected, record(0, 10))
    collector = suspected._running.collector
    while collector.step(100, suspected._engine.time()):
        pass
    found, known = inspection.figures(suspected), suspected.statistics()
    assert (found.collected, found.collected_bytes) == (2, known.collected.bytes)
    assert found.collected_bytes == len(record(11, 12)) + len(record(12, 11))
    assert found.last_search == known.last_search
    assert found.last_search <= found.last_transaction
    suspected.close()
    assert re.search(r"\nsearched       last at 20[-\d]+ [\d:]+", run("stat", suspected.get_filename())[0])
