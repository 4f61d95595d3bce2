"""How it is measured what grows: each contender does its work, one that does not is found out; charts are drawn."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from pyroaring import BitMap64

from benchmarks.growth import dropping, using
from benchmarks.growth.dropping import GONE, READ, TENTH, UNIT, WORK, Beds, Collects, packer, unit
from benchmarks.growth.growing import SIZES
from benchmarks.growth.measures import MEASURES, PEERS, result
from benchmarks.growth.using import COMMITTED, GROWN, LOADED, LOADED_COLD, OPENED, SIZE, Builds, Opens, Uses, chosen
from benchmarks.method import plots
from benchmarks.method.contest import Found
from benchmarks.method.measure import Chart
from benchmarks.objects.records import batches, is_item
from benchmarks.peers.registry import FILE, OURS, RELSTORAGE, SQLITE3, ZODB_FILE, is_here, open_store
from berkeleydb_storage.format import pack_uint64, references, unpack_oids, unpack_uint64

OBJECTS = 2100
MATPLOTLIB = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "place" / "store")


def test_objects_are_chosen_that_refer_to_nothing():
    numbers = chosen(1, 5000, OBJECTS)
    assert all(map(is_item, numbers))
    assert min(numbers) < 10
    assert max(numbers) > OBJECTS - 10
    assert numbers == chosen(1, 5000, OBJECTS) != chosen(2, 5000, OBJECTS)


@pytest.mark.parametrize("peer", [OURS, FILE, ZODB_FILE, SQLITE3], ids=lambda peer: peer.name)
def test_each_does_the_work(peer, place):
    if not is_here(peer):
        pytest.skip(f"{peer.package} is not installed")
    built = Builds(peer.name, place, OBJECTS).round()
    assert 100 < built[SIZE] < 2000
    opened = Opens(peer.name, place, OBJECTS, 5).round()
    assert opened[OPENED] > 0
    assert opened[GROWN] > 0
    assert opened.get(LOADED_COLD, 1) > 0
    uses = Uses(peer.name, place, OBJECTS, 20, 2)
    assert set(uses.round()) == {LOADED, COMMITTED}
    uses.close()


def test_what_was_not_stored_is_noticed(place, monkeypatch):
    Builds(FILE.name, place, OBJECTS).round()
    uses = Uses(FILE.name, place, OBJECTS, 20, 2)
    monkeypatch.setattr(uses, "_commit", lambda changes: None)
    with pytest.raises(AssertionError, match="FileStorage has not stored what was committed"):
        uses.round()
    uses.close()


def test_what_is_not_the_object_is_noticed():
    class Mistaken:
        def load(self, oid):
            return b"%016d" % 7

    assert using.load_all(Mistaken(), [7]) > 0
    with pytest.raises(AssertionError, match="object 8 is not what was stored"):
        using.load_all(Mistaken(), [7, 8])


def test_a_unit_hangs_on_its_first_object_alone():
    numbers = range(5000, 5000 + UNIT)
    referred = {unpack_uint64(oid): unpack_oids(references(oid, data)) for oid, data in unit(numbers, [3, 4])}
    reached, todo = BitMap64(), [5000]
    while todo:
        if (number := todo.pop()) not in reached:
            reached.add(number)
            todo += referred.get(number, ())
    assert reached == BitMap64([3, 4, *numbers])
    counts = Counter(number for refs in referred.values() for number in refs)
    assert counts[5000] == 0
    assert counts[3] == counts[4] == 1
    assert all(counts[number] for number in numbers[1:])


@pytest.mark.parametrize("peer", [OURS, FILE], ids=lambda peer: peer.name)
def test_what_was_dropped_is_collected(peer, place):
    Builds(peer.name, place, OBJECTS).round()
    found = Collects(peer.name, place, OBJECTS, 1).round()
    assert found[GONE] > 0
    assert found[TENTH] > 0
    if peer is OURS:
        assert UNIT <= found[READ] < 4 * UNIT
        assert found[WORK] > 0


@pytest.mark.parametrize("peer", [ZODB_FILE, RELSTORAGE], ids=lambda peer: peer.name)
def test_zodb_is_told_how_to_find_references(peer, place):
    if not is_here(peer):
        pytest.skip(f"{peer.package} is not installed")
    Builds(peer.name, place, OBJECTS).round()
    assert Collects(peer.name, place, OBJECTS, 0).round()[GONE] > 0


@pytest.mark.skipif(not is_here(RELSTORAGE), reason="RelStorage is not installed")
def test_relstorage_is_mended_where_it_is_packed():
    from relstorage.adapters.sqlite.batch import Sqlite3RowBatcher

    def fill(connection):
        batcher = Sqlite3RowBatcher(connection.cursor(), bind_limit=3)
        for kind in ("a, b", "b, a"):
            batcher.insert_into(f"many ({kind})", "?, ?", (1, 2), kind, 2)
        batcher.flush()

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE many (a, b)")
        with dropping.mended_relstorage():
            fill(connection)
        assert sorted(connection.execute("SELECT * FROM many")) == [(1, 2), (2, 1)]
        with pytest.raises(sqlite3.OperationalError, match="incomplete input"):
            fill(connection)  # it needs that still


def test_what_is_left_or_lost_is_noticed(tmp_path):
    store = open_store(FILE.name, tmp_path / "store")
    store.fill(batches(OBJECTS))
    beds = Beds(store, OBJECTS)
    beds.store(1)
    beds.drop()
    with pytest.raises(AssertionError, match=f"{UNIT} of {UNIT} objects that were dropped are there"):
        beds.require_gone()
    packer(store.storage)()
    beds.require_gone()
    store.commit([(pack_uint64(1), open_record(store, 2))])
    packer(store.storage)()
    with pytest.raises(KeyError):
        beds.require_gone()
    store.close()


def open_record(store, number):
    """Return the record of an object under the oid 1, which lets go of the first thousand."""
    return pack_uint64(1) + store.load(pack_uint64(number))[8:]


def test_what_is_never_collected_ends_it(place, monkeypatch):
    Builds(OURS.name, place, OBJECTS).round()
    monkeypatch.setattr(dropping, "PATIENCE", 0)
    with pytest.raises(AssertionError, match="objects that were dropped are there after 0 seconds"):
        Collects(OURS.name, place, OBJECTS, 1).round()


def grown():
    found = {10_000: Found(), 1_000_000: Found()}
    for count, there in found.items():
        there[OURS.name] = {OPENED: [2.0, 3.0, 4.0]}
        there[FILE.name] = {OPENED: [count / 1000 * factor for factor in (1, 2, 3)]}
    return found


def test_a_measure_has_its_table_figures_notes_and_chart():
    made = result(MEASURES[0], grown())
    assert [row.name for row in made.rows] == ["ours", "FileStorage"]
    assert made.rows[1].values["ms at 1,000,000"].median == 2000
    figures = {figure.title: figure for figure in made.figures}
    assert figures["ours, at 1,000,000 / at 10,000 objects"].value.median == 1.0
    assert figures["ours, at 1,000,000 / at 10,000 objects"].met
    assert figures["FileStorage / ours at 1,000,000 objects"].value.median == pytest.approx(2000 / 3)
    assert figures["FileStorage / ours at 1,000,000 objects"].least == 20
    assert any(
        note.startswith("at 10,000 objects not measured (") and ": FileStorage2, " in note for note in made.notes
    )
    (chart,) = made.charts
    assert chart.series == {"ours": [(10_000, 3.0), (1_000_000, 3.0)], "FileStorage": [(10_000, 20), (1_000_000, 2000)]}
    json.dumps(chart.series)


def test_every_measure_has_another_name_and_every_size_its_steps():
    assert len({measure.name for measure in MEASURES}) == len({measure.column for measure in MEASURES}) == len(MEASURES)
    for sizes in SIZES.values():
        counts = [step.objects for step in sizes.steps]
        assert counts == sorted(counts)
        assert all(OURS in step.peers for step in sizes.steps)


def chart(points=4):
    lines = {peer.name: [(10**n, n + place) for n in range(1, 1 + points)] for place, peer in enumerate(PEERS)}
    return Chart("growth-open", "Opening <&>", "objects", "ms", {**lines, "somebody else": [(10, 3), (100, 0.5)]})


@MATPLOTLIB
def test_a_chart_is_the_same_each_time(tmp_path):
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    plots.draw(chart(), one)
    plots.draw(chart(), other)
    assert one.read_bytes() == other.read_bytes()
    text = one.read_text()
    assert len(text) < 60_000
    assert "<dc:date>" not in text
    assert "matplotlib.org" not in text
    assert all(f">{name}<" in text for name in chart().series), "a line has no name"
    assert "Opening &lt;&amp;&gt;" in text


@MATPLOTLIB
def test_what_has_no_place_on_the_axis_is_refused(tmp_path):
    with pytest.raises(ValueError, match="growth-open: ours has a number that is not above 0"):
        plots.draw(Chart("growth-open", "", "objects", "ms", {"ours": [(10, 0.0)]}), Path(tmp_path / "no.svg"))
    assert not list(tmp_path.iterdir())


def test_names_of_lines_are_kept_apart():
    heights = {"a": 0.5, "b": 0.5, "c": 0.51, "d": 0.9, "e": 0.49}
    moved = plots._apart(heights)
    places = sorted(moved.values())
    assert all(two - one >= plots.ROOM - 1e-9 for one, two in pairwise(places))
    assert moved["d"] == 0.9
    assert moved["e"] < moved["a"] < moved["c"]
