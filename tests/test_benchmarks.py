"""The benchmarks run, as the command that a user would type; their numbers mean nothing at this size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pyroaring import BitMap64

from benchmarks.__main__ import BENCHMARKS, FULL, QUICK, TINY, main
from benchmarks.collecting import Subject
from benchmarks.counting import without_counts
from benchmarks.graphs import ROOT, Graph
from benchmarks.measure import Figure, Spread
from benchmarks.records import fill, records
from benchmarks.report import verdict
from berkeleydb_storage import BerkeleyDBStorage, session
from berkeleydb_storage.change import Change


def test_every_benchmark(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-W", "error", "-m", "benchmarks", "--tiny", "--json", report, "--directory", tmp_path]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(report.read_text())
    named = {result["name"].split(",")[0] for result in found["results"]}
    assert named >= set(BENCHMARKS)
    assert found["facts"]["libdb"].startswith(("5.", "18."))
    for result in found["results"]:
        assert result["rows"]
        assert all(row["about"] for row in result["rows"]), "a row does not say what it compares"
        assert all(figure["value"]["median"] > 0 for figure in result["figures"])
        assert all(f"{result['name']}: {figure['title']}: " in ran.stdout for figure in result["figures"])
    assert "Transaction at" not in ran.stderr, "Durus logs every commit, which would flatter us"
    assert [path for path in tmp_path.iterdir() if path != report] == [], "something was left behind"


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["lod"])
    assert "no benchmark is called lod" in capsys.readouterr().err


def test_made_up_records_are_what_is_stored(tmp_path):
    """What is migrated and what is built by commits are the same objects."""
    with BerkeleyDBStorage(tmp_path, durable=False) as storage:
        fill(storage, TINY.large)
        assert list(storage.gen_oid_record()) == list(records(TINY.large))
        assert storage.check().faults == []


def test_verdicts():
    value = Spread.of([1.0, 2.0, 9.0])
    assert (value.median, value.lowest, value.highest, value.rounds) == (2.0, 1.0, 9.0, 3)
    assert verdict(Figure("f", value, least=2.0)) == "goal >= 2: met"
    assert verdict(Figure("f", value, least=2.1)) == "goal >= 2.1: NOT MET"
    assert verdict(Figure("f", value, most=1.9)) == "goal <= 1.9: NOT MET"
    assert verdict(Figure("f", value, most=2.0)) == "goal <= 2: met"
    assert verdict(Figure("f", value)) == "no goal"


def test_the_quick_sizes_are_below_the_full_ones():
    assert QUICK.objects < FULL.objects == 100_000
    assert QUICK.large < FULL.large == 1_000_000
    assert QUICK.migrated < FULL.migrated == 5_000_000
    assert QUICK.collected.live[-1] < FULL.collected.live[-1] == 1_000_000
    assert QUICK.collected.packed < FULL.collected.packed == 1_000_000
    assert QUICK.collected.garbage < FULL.collected.garbage == 500_000


def test_what_was_collected_is_verified(tmp_path):
    graph = Graph()
    kept = graph.tree(20, ROOT)
    dropped = graph.tree(30, ROOT)
    expected = BitMap64(range(len(graph) + 1)) - BitMap64(range(dropped, dropped + 30))  # the subject adds one
    subject = Subject(tmp_path, graph)
    with subject.storage:
        graph.drop(subject.storage, ROOT, dropped)
        with pytest.raises(AssertionError, match="0 objects too many were deleted, 30 left"):
            subject.must_be(expected)
        subject.collect()
        subject.must_be(expected)
        graph.drop(subject.storage, ROOT, kept)
        subject.collect()
        with pytest.raises(AssertionError, match="20 objects too many were deleted, 0 left"):
            subject.must_be(expected)


def test_counting_is_left_out_only_where_that_is_measured():
    before = _counting()
    with without_counts():
        assert all(now is not then for now, then in zip(_counting(), before, strict=True))
    assert _counting() == before


def _counting():
    return session.references, Change.store, Change.settle
