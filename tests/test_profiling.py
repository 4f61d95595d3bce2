"""Where the time goes, as samples of stacks tell it: to which layer each of them counts, and one real run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.method.results import read
from benchmarks.profiling import layers, sampling
from benchmarks.profiling.command import MAIN, OURS, main
from benchmarks.profiling.paths import PATHS

START = "thread (1): MainThread;0x7f0dba (libc.so.6);<module> (program.py:18)"
GET = "DB_subscript (berkeleydb.c:3987);__db_get_pp (libdb-5.3.so);__db_get_5003 (libdb-5.3.so)"
LOAD = f"{START};Session.load (berkeleydb_storage/session.py:94)"
SERVE = "thread (2): berkeleydb_storage server;Connection._serve (berkeleydb_storage/server/connection.py:9)"

LINES = {
    LOAD: "Python of ours: session",
    f"{START};Service.read (/usr/lib/berkeleydb_storage/server/service.py:9)": "Python of ours: server.service",
    f"{START};Connection.commit (durus/connection.py:274)": "Durus",
    f"{START};f (durus/connection.py:2);pb_getattro (_persistent.c:177)": "Durus",
    f"{START};f (durus/serialize.py:2);save (_pickle.c:4315);realloc (libc.so.6)": "pickle",
    f"{START};f (durus/serialize.py:2);save (_pickle.cpython-312-x86_64-linux-gnu.so)": "pickle",
    f"{START};f (durus/serialize.py:2);zlib_compress_impl (zlibmodule.c:3);0x7f1a (libz.so.1.2.13)": layers.ZLIB,
    f"{START};KeyedRef.__init__ (weakref.py:353);gc_collect_main (libpython3.11.so.1.0)": "Python itself",
    f"{LOAD};PyThread_release_lock (libpython3.11.so.1.0);sem_post (libc.so.6)": "Python itself",
    f"{LOAD};{GET}": "libdb: cursors, access",
    f"{LOAD};DB_subscript (berkeleydb.c:3987)": "binding (berkeleydb C module)",
    f"{LOAD};DB_get (_berkeleydb.cpython-311-x86_64-linux-gnu.so);free (libc.so.6)": "binding (berkeleydb C module)",
    f"{LOAD};{GET};__bam_search (libdb-5.3.so)": "libdb: btree",
    f"{LOAD};{GET};__bam_search (libdb-5.3.so);0x7f0db9df9c9a (libdb-5.3.so)": "libdb: btree",
    f"{LOAD};{GET};__memp_fget (libdb-5.3.so)": "libdb: pages in memory",
    f"{LOAD};{GET};__db_pthread_mutex_lock (libdb-5.3.so);pthread_mutex_lock (libc.so.6)": "libdb: mutexes",
    f"{LOAD};{GET};__db_lget (libdb-5.3.so)": "libdb: locks",
    f"{LOAD};__log_put (libdb-5.3.so);__db_chksum (libdb-5.3.so);__ham_func4 (libdb-5.3.so)": "libdb: checksum",
    f"{LOAD};__log_put (libdb-5.3.so);memcpy (libc.so.6)": "libdb: log",
    f"{LOAD};__rep_send (libdb-5.3.so)": "libdb: other",
    f"{LOAD};__log_flush_int (libdb-5.3.so);__os_fsync (libdb-5.3.so);fdatasync (libc.so.6)": "system: sync",
    f"{LOAD};__os_io (libdb-5.3.so);pwrite64 (libc.so.6)": layers.CALLS,
    f"{SERVE};UVStream.__try_write (uvloop/handles/stream.pyx:3);write (libc.so.6)": layers.CALLS,
    f"{SERVE};UVStream.__try_write (uvloop/handles/stream.pyx:3)": "event loop",
    f"{SERVE};Loop.run (asyncio/base_events.py:3)": "event loop",
    f"{SERVE};uv__io_poll (uvloop/loop.cpython-311-x86_64-linux-gnu.so);epoll_pwait (libc.so.6)": layers.AWAIT,
    f"{START};Channel._recv (berkeleydb_storage/client/channel.py:7);recv (libc.so.6)": layers.AWAIT,
    f"{LOAD};PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x7f0dbaea3f16 (libc.so.6)": layers.LOCKS,
    f"{LOAD};take_gil (libpython3.11.so.1.0);pthread_cond_timedwait (libc.so.6)": layers.LOCKS,
    f"{LOAD};PyThread_acquire_lock_timed (libpython3.11.so.1.0);sem_trywait (libc.so.6)": "Python itself",
    f"{START};members (berkeleydb_storage/bitmaps.py:3);BitMap64.add (pyroaring/abstract_bitmap.pxi:3)": layers.BITMAPS,
    f"{START};run (benchmarks/profiling/contestants.py:3)": "the benchmark itself",
    "0x7f0dba (libc.so.6)": "unknown",
}


@pytest.mark.parametrize(("line", "layer"), LINES.items())
def test_a_sample_counts_for_the_layer_whose_own_work_it_is(line, layer):
    assert layers.layer_of(layers.parse(f"{line} 3").stack) == layer


def test_a_line_is_a_thread_a_stack_and_a_number():
    sample = layers.parse(f"{LOAD};operator() (lambda) (x.cpp:7);__db_get_5003 (libdb-5.3.so) 42\n")
    assert (sample.thread, sample.number, sample.count) == ("MainThread", "1", 42)
    assert [frame.name for frame in sample.stack][-3:] == ["Session.load", "operator() (lambda)", "__db_get"]
    assert layers.parse("f (x.py:1) 1").thread == ""
    with pytest.raises(ValueError, match="invalid literal"):
        layers.parse("this is no line")


def test_shares_are_those_of_one_thread_and_of_what_is_measured():
    waiting = (
        "thread (3): checkpoint;Event.wait (threading.py:6);PyThread_acquire_lock_timed (libpython3.so);0x1 (libc.so.6)"
    )
    lines = [
        f"{LOAD} 60",
        f"{START};Oids.new (berkeleydb_storage/oids.py:6) 20",
        f"{LOAD};{GET};__bam_search (libdb-5.3.so) 20",
        f"{START};prepare (program.py:7) 500",
        f"{waiting} 100",
        "thread (4): garbage;Collector.step (berkeleydb_storage/garbage/collector.py:7) 5",
        "",
    ]
    found = layers.attribute(lines, MAIN, lambda sample: sample.stack[-1].name != "prepare")
    assert found.total == 100
    assert found.layers == {
        "Python of ours: session": 60,
        "Python of ours: oids": 20,
        "libdb: btree": 20,
        "beside it: garbage": 5,
    }
    assert found.ours(1) == [("Python of ours: session", "session.Session.load", 60)]
    assert found.functions["libdb: btree"] == {"__bam_search": 20}
    assert (found.number, found.share("libdb: btree", 20)) == ("1", 20.0)
    assert layers.attribute([], MAIN).share("libdb: btree", 0) == 0.0


def test_the_system_counts_better_how_much_of_the_time_is_its_own():
    found = layers.attribute(
        [f"{LOAD} 5", f"{LOAD};write (libc.so.6) 70", f"{LOAD};{GET} 5", f"{LOAD};recv (libc.so.6) 20"], MAIN
    )
    found.layers["beside it: garbage"] = 10
    found.inside = 0.5
    shares = {layer: found.share(layer, count) for layer, count in found.layers.items()}
    assert shares == pytest.approx(
        {
            "Python of ours: session": 25,
            "libdb: cursors, access": 25,
            layers.CALLS: 50 * 70 / 90,
            layers.AWAIT: 50 * 20 / 90,
            "beside it: garbage": 10,
        }
    )
    only = layers.attribute([f"{LOAD} 5"], MAIN)
    only.inside = 0.5
    assert only.share("Python of ours: session", 5) == 100, "there is nothing that the rest could belong to"


def test_what_is_not_installed_is_named_with_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["load"]) == 1
    assert "py-spy is not installed: pip install" in capsys.readouterr().err


def test_an_unknown_path_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["lod"])
    assert "no path is called lod" in capsys.readouterr().err


def test_a_missing_permission_is_named_with_what_to_do():
    said = "Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'\n"
    assert "kernel.yama.ptrace_scope" in sampling._reason(said)
    assert "did not work: Error: no process" in sampling._reason("Error: no process\n")


def _may_sample():
    """Return why nothing can be sampled here; "" where it can."""
    try:
        sampling.find()
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            sampling.sample(process.pid, 1)
            process.communicate(b"\n")
    except sampling.SamplingError as error:
        return str(error)
    return ""


def test_a_process_that_is_not_there_is_an_error():
    if missing := _may_sample():
        pytest.skip(missing)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with pytest.raises(sampling.SamplingError, match="py-spy did not work"):
        sampling.sample(ended.pid, 1)


@pytest.mark.parametrize("name", ["load", "serve-commit"])
def test_a_real_run(name, tmp_path):
    if missing := _may_sample():
        pytest.skip(missing)
    report = tmp_path / "report.json"
    program = "import sys; from benchmarks.profiling.command import main; sys.exit(main(sys.argv[1:]))"
    options = ["--tiny", "--seconds", "1", "--json", report, "--directory", tmp_path]
    command = [sys.executable, "-W", "error", "-c", program, name, *options]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    (part,) = read(report)[0].parts
    results = {result.name: result for result in part.results}
    distance = next(result for title, result in results.items() if "distance" in title)
    assert [row.name for row in distance.rows] == [OURS, *(limit.name for limit in PATHS[name].limits)]
    assert all(figure.value.median > 0 for figure in distance.figures)
    shares = [result for title, result in results.items() if "layers" in title and "functions" not in title]
    assert len(shares) == 1 + PATHS[name].served
    for result in shares:
        own = [row.values["%"].median for row in result.rows if not row.name.startswith("beside it")]
        assert sum(own) == pytest.approx(100, abs=1e-3), "samples are lost, or counted twice"
        assert all(row.about for row in result.rows)
    assert os.listdir(tmp_path) == ["report.json"], "something was left behind"
