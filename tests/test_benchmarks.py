"""The benchmarks run, as the command that a user would type; their numbers mean nothing at this size."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from durus.connection import Connection
from pyroaring import BitMap64

from benchmarks.__main__ import main
from benchmarks.catalog import COMPARED, GROUPS, PARTS
from benchmarks.garbage.collecting import Subject
from benchmarks.garbage.counting import without_counts
from benchmarks.method.measure import Figure, Spread
from benchmarks.method.report import verdict
from benchmarks.method.results import read
from benchmarks.method.slowsync import slow_disk
from benchmarks.method.workers import Worker, together
from benchmarks.objects.graphs import ROOT, Graph
from benchmarks.objects.records import fill, records
from benchmarks.objects.shapes import GOES_THROUGH, build_shapes
from benchmarks.peers.durus import DurusDatabase
from benchmarks.serving.clients import Client, Paced
from benchmarks.serving.crowd import summed
from benchmarks.serving.proxy import Proxy
from berkeleydb_storage import BerkeleyDBStorage, session
from berkeleydb_storage.change import Change

SERVE = [name for name in GROUPS["serve"] if name not in COMPARED]
OWN = [name for name in PARTS if name not in (*COMPARED, *SERVE)]


@pytest.mark.parametrize("names", [COMPARED[:5], COMPARED[5:], SERVE, OWN], ids=["compared", "more", "serve", "own"])
def test_every_benchmark(tmp_path, names):
    report = tmp_path / "report.json"
    ran = benchmarks(*names, "--tiny", "--json", report, "--directory", tmp_path)
    assert ran.returncode == 0, ran.stderr
    (run,) = read(report)
    assert [part.name for part in run.parts] == names
    for part in run.parts:
        assert part.results
        for result in part.results:
            assert result.rows
            assert all(row.about for row in result.rows), "a row does not say what it compares"
            assert all(figure.value.median > 0 for figure in result.figures)
            assert all(f"{result.name}: {figure.title}: " in ran.stdout for figure in result.figures)
    titles = [result.name for result in run.results]
    assert len(titles) == len(set(titles)), "two results have one name"
    assert "Transaction at" not in ran.stderr, "Durus logs every commit, which would flatter us"
    assert [path for path in tmp_path.iterdir() if path != report] == [], "something was left behind"
    print(*(f"{part.name}: {part.busy.seconds:.1f} s" for part in run.parts), sep="\n")


def benchmarks(*arguments):
    """Run the command."""
    command = [sys.executable, "-W", "error", "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=180)


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["lod"])
    assert "no benchmark is called lod" in capsys.readouterr().err


def test_made_up_records_are_what_is_stored(tmp_path):
    """What is migrated and what is built by commits are the same objects."""
    with BerkeleyDBStorage(tmp_path, durable=False) as storage:
        fill(storage, 120_500)
        assert list(storage.gen_oid_record()) == list(records(120_500))
        assert storage.check().faults == []


def test_verdicts():
    value = Spread.of([1.0, 2.0, 9.0])
    assert (value.median, value.lowest, value.highest, value.rounds) == (2.0, 1.0, 9.0, 3)
    assert verdict(Figure("f", value, least=2.0)) == "goal >= 2: met"
    assert verdict(Figure("f", value, least=2.1)) == "goal >= 2.1: NOT MET"
    assert verdict(Figure("f", value, most=1.9)) == "goal <= 1.9: NOT MET"
    assert verdict(Figure("f", value, most=2.0)) == "goal <= 2: met"
    assert verdict(Figure("f", value)) == "no goal"


def test_every_benchmark_has_every_size():
    assert all(set(part.sizes) == {"tiny", "quick", "full"} for part in PARTS.values())


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


def test_a_name_may_stand_for_several_benchmarks():
    assert set(GROUPS["serve"]) == {name for name in PARTS if name.startswith("serve-")}
    assert set().union(*GROUPS.values()) == set(GROUPS["all"]) == set(PARTS)
    assert not set(GROUPS) & set(PARTS)


def test_the_proxy_holds_back_and_loses_nothing():
    sent = bytes(range(256)) * 20_000
    with socket.create_server(("127.0.0.1", 0)) as server, closing(Proxy(server.getsockname()[1], 0.02)) as proxy:
        started = time.monotonic()
        near = socket.create_connection(("127.0.0.1", proxy.port()))
        threading.Thread(target=near.sendall, args=(sent,)).start()
        far = server.accept()[0]
        with near, far:
            assert far.recv(1, socket.MSG_PEEK)
            assert time.monotonic() - started >= 0.01
            assert _read(far, len(sent)) == sent
            started = time.monotonic()
            far.sendall(b"answer")
            far.shutdown(socket.SHUT_WR)
            assert _read(near, 100) == b"answer"
            assert time.monotonic() - started >= 0.01


def _read(sock, count):
    data = b""
    while len(data) < count and (more := sock.recv(count)):
        data += more
    return data


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")
def test_a_slow_disk_is_slow(tmp_path):
    program = (
        "import os, sys, time; file = open(sys.argv[1], 'wb'); started = time.monotonic();"
        "file.write(b'data'); file.flush(); os.fsync(file.fileno()); os.fdatasync(file.fileno());"
        "print(time.monotonic() - started)"
    )
    command = [sys.executable, "-c", program, tmp_path / "file"]
    slowed = os.environ | slow_disk(tmp_path, 0.05)
    assert float(subprocess.run(command, env=slowed, capture_output=True, check=True).stdout) >= 0.1
    assert (tmp_path / "file").read_bytes() == b"data"


def test_what_waits_for_something_slow_has_waited_since_it_was_due():
    begun = threading.Event()
    release = threading.Event()
    slow = iter([True])

    def step():
        if next(slow, False):
            begun.set()
            release.wait()

    paced = Paced(step, 0.001)
    begun.wait()
    first = time.perf_counter()
    while time.perf_counter() < first + 0.02:
        pass
    release.set()
    while len(paced._taken) < 12:
        pass
    taken = [each for _, each in paced.end()]
    assert taken[0] >= 0.02
    assert taken[11] >= 0.005, "it was due 11 ms after the first, which took 20"


def test_rates_are_added_and_quantiles_are_of_everything():
    found = summed([{"rate": 10.0, "taken": [1.0] * 99}, {"rate": 5.0, "taken": [7.0]}])
    assert (found["rate"], found["slowest"], found["p50"], found["max"]) == (15.0, 5.0, 1.0, 7.0)
    assert 1.0 < found["p99"] < 7.0


def test_shapes_are_gone_through_whole(tmp_path):
    with BerkeleyDBStorage(tmp_path, durable=False) as storage:
        build_shapes(DurusDatabase(storage), 1234)
        for shape, walk in GOES_THROUGH.items():
            visited = list(walk(Connection(storage).get_root()[shape]))
            assert len(visited) == len(set(visited)) >= 1233, shape


def test_each_client_has_objects_of_its_own():
    own = [Client(number).own(5000, 3) for number in range(3)]
    assert sum(map(len, own)) == len(set().union(*own)) == 5000 - 10


def test_a_worker_that_ends_by_itself_is_noticed():
    with Worker(Client, 0) as worker, Worker(Client, 1) as other:
        assert together([worker, other], "own", 10, 2) == [[2, 4, 6, 8], [3, 5, 7, 9]]
        with pytest.raises(RuntimeError, match="ended by itself: 1"):
            worker.call("nothing of that name")
        assert other.call("own", 10, 2) == [3, 5, 7, 9]
