"""What makes the numbers of the benchmarks believable does what it says."""

import mmap
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from bench_workers import Commits, Syncing

from benchmarks.__main__ import main
from benchmarks.catalog import FULL, QUICK, TINY, Part
from benchmarks.method import caches, syncs
from benchmarks.method.busy import Busy, Watch
from benchmarks.method.contest import SYNCS_A_COMMIT, contest, rows
from benchmarks.method.facts import MACHINE, differing, facts
from benchmarks.method.measure import Result
from benchmarks.method.results import read
from benchmarks.method.workers import Worker
from benchmarks.peers.registry import FILE, OURS

SIZES = (TINY, QUICK, FULL)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Let workers find the classes of this file."""
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).parent))


@pytest.fixture
def strace():
    """Skip where strace is missing or may not trace."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        try:
            syncs.counted(process.pid, lambda: None)
        except syncs.CannotCount as error:
            pytest.skip(str(error))


def test_every_way_to_wait_for_the_disk_is_counted(tmp_path, strace):
    with Worker(Syncing, tmp_path) as worker:
        expected = []
        assert syncs.counted(worker.pid, lambda: expected.append(worker.call("work"))) == expected[0]
        assert tracer(worker.pid) == 0


def tracer(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("TracerPid:"))


def test_strace_ends_when_the_work_fails(tmp_path, strace):
    with Worker(Syncing, tmp_path) as worker:
        by = []
        with pytest.raises(ZeroDivisionError):
            syncs.counted(worker.pid, lambda: by.append(tracer(worker.pid)) or 1 / 0)
        assert by[0]
        assert not Path(f"/proc/{by[0]}").exists()


def test_without_strace_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(syncs.CannotCount, match="not installed"):
        syncs.counted(os.getpid(), pytest.fail)


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked before is in /proc")
def test_without_permission_nothing_is_done(tmp_path, monkeypatch):
    strace = tmp_path / "strace"
    strace.write_text(
        "#!/bin/sh\necho 'strace: attach: ptrace(PTRACE_SEIZE, 7): Operation not permitted' >&2; exit 1\n"
    )
    strace.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(syncs.CannotCount, match="not permitted"):
        syncs.counted(os.getpid(), pytest.fail)


def test_calls_that_threads_began_before_others_ended():
    lines = [
        '7 openat(AT_FDCWD, "a = 9)", O_RDWR|O_DSYNC <unfinished ...>',
        "8 fsync(4 <unfinished ...>",
        "7 <... openat resumed>) = 3",
        "9 write(3, <unfinished ...>",
        "8 <... fsync resumed>)             = -1 EINVAL (Invalid argument)",
        '9 <... write resumed>""..., 5)     = 5',
        "7 clone3({flags=CLONE_VM|CLONE_FILES} => {parent_tid=[9]}, 88) = 9",
        '10 write(3, ""..., 5)             = 5',
        "7 clone(child_stack=NULL, flags=SIGCHLD) = 10",
        "10 close(3)                       = 0",
        '7 pwritev2(3, [{iov_base=""..., iov_len=1}], 1, 0, 0) = 1',
        '7 pwritev2(4, [{iov_base=""..., iov_len=1}], 1, 0, RWF_DSYNC) = 1',
        "7 msync(0x7f, 4096, MS_ASYNC)     = 0",
        "7 msync(0x7f, 4096, MS_SYNC)      = 0",
        "7 fcntl(3, F_DUPFD_CLOEXEC, 20)   = 20",
        "7 fcntl(20, F_GETFL)              = 0x101002 (flags O_RDWR|O_DSYNC)",
        '7 write(20, ""..., 1)             = 1',
        "7 fdatasync(20 <detached ...>",
    ]
    assert syncs.syncs(lines, {7: (files := set()), 8: files}) == 6


INTERRUPTED = """
from benchmarks.method.workers import Worker
from bench_workers import Forking
with Worker(Forking) as worker:
    print(worker.call("fork"))
    worker.start("wait")
    raise KeyboardInterrupt
"""


def test_who_interrupts_ends_what_the_workers_began():
    """Otherwise the child would keep the standard error open for ever."""
    command = [sys.executable, "-c", INTERRUPTED]
    root = Path(__file__).parents[1]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=root)
    assert "KeyboardInterrupt" in ran.stderr
    assert int(ran.stdout) > 0


@pytest.mark.parametrize("fresh", [False, True])
def test_syncs_are_given_a_commit(tmp_path, strace, fresh):
    found = contest(Commits, [OURS, FILE], tmp_path, [], 1, warm=False, fresh=fresh, syncs=True)
    assert [found[name][SYNCS_A_COMMIT] for name in ("ours", "FileStorage")] == [[3.0], [3.0]]
    assert found.notes == []


def test_where_syncs_cannot_be_counted_the_result_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = contest(Commits, [OURS], tmp_path, [], 1, warm=False, syncs=True)
    rows(result := Result("name", "what"), [OURS], found)
    assert set(result.rows[0].values) == {"µs", "peak MB"}
    assert result.notes == ["Syncs were not counted: strace is not installed."]


def test_what_a_peer_wrote_is_dropped_from_the_cache(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "data").write_bytes(os.urandom(3_000_001))
    for name in ("store.lock", "store-wal", "store 2", "store2"):
        (tmp_path / name).write_bytes(bytes(5000))
    if caches.cached(store) <= 0:
        pytest.skip("the system does not tell what it keeps")
    if not caches.drop(store):
        pytest.skip("these files are in memory")
    assert (caches.cached(tmp_path), caches.cached(store)) == (16384, 0)
    (store / "data").read_bytes()
    assert caches.cached(store) == 3_002_368


def test_what_somebody_has_mapped_stays_and_that_is_said(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    if not caches.drop(file):
        pytest.skip("these files are in memory, or the system does not tell")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[99_999] == 0
        assert not caches.drop(file)
    assert caches.drop(file)


def test_all_files_and_directories_are_brought_to_the_disk_and_nothing_else(tmp_path, monkeypatch):
    synced, sync = set(), os.fsync

    def noting(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "store").write_bytes(b"a")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
        caches.settle(tmp_path)
    assert synced == {path.stat().st_ino for path in (tmp_path, tmp_path / "peer", tmp_path / "peer" / "store")}


SPINS = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass"
LEFT = f"import os\nif not os.fork():\n os.setsid()\n {SPINS.replace(chr(10), chr(10) + ' ')}"


def watched(directory, program):
    """Return what the machine did while a program ran, and all that it began."""
    watch = Watch(directory)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)  # until the last has closed it
    return watch.end()


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell who works")
def test_what_we_use_is_not_of_others(tmp_path):
    ours, others = watched(tmp_path, SPINS), watched(tmp_path, LEFT)
    assert ours.ours * ours.seconds >= 0.3
    assert others.ours * others.seconds < 0.3
    assert others.others * others.seconds >= 0.25, "what a process did whose parent was not waited for"
    assert others.sync_before > 0


def busy(**changed):
    """Return a machine that was quiet, but for this."""
    quiet = {"others": 0.05, "steal": 0.01, "waiting": 0.9, "load": 9.0, "sync_before": 100.0, "sync_after": 140.0}
    return Busy(**({"seconds": 10.0, "ours": 1.9} | quiet | changed))


def test_when_the_machine_was_busy():
    assert busy().warnings == busy(others=None, steal=None, waiting=None).warnings == []
    assert busy(others=0.3).warnings == ["other processes used 0.30 of a processor"]
    assert busy(steal=0.03).warnings == ["the machine below took 3% of the processors"]
    assert busy(sync_after=200.0).warnings == ["a sync took 100 µs before and 200 µs after"]
    assert busy(sync_after=50.0).warnings == ["a sync took 100 µs before and 50 µs after"]
    assert Busy.from_json(busy(others=None).as_json()) == busy(others=None)


def test_facts_name_what_takes_part(tmp_path):
    known = facts(tmp_path, "the command")
    assert known["command"] == "the command"
    assert {"durus", "berkeleydb", "libdb", "python", "sqlite3 library"} < set(known)
    assert set(MACHINE) < set(known)
    assert all(known.values()), "something is not told, and that is not said"


def test_facts_of_a_single_run_do_not_differ():
    one = {"date": "a", "load average": "1", "python": "3.11", "memory": "1 GB"}
    assert differing(one, one | {"date": "b", "load average": "2"}) == []
    assert differing(one, one | {"python": "3.12", "memory": "2 GB", "ZODB": "6"}) == [
        "python: 3.11 -> 3.12",
        "memory: 1 GB -> 2 GB",
        "ZODB: none -> 6",
    ]


class Parts:
    """Benchmarks that note that they were run; "bad" fails, and "long" is interrupted."""

    def __init__(self):
        self.done = []
        self.mended = False
        names = ("first", "bad", "long", "last")
        self.parts = {name: Part(partial(self.run, name), dict.fromkeys(SIZES)) for name in names}

    def run(self, name, directory, sizes):
        self.done.append(name)
        if name == "bad" and not self.mended:
            raise AssertionError("wrong records")
        if name == "long" and not self.mended:
            raise KeyboardInterrupt
        result = Result(name, "what")
        result.row("ours", "about", µs=[1.0])
        return [result]


@pytest.fixture
def parts(monkeypatch):
    """Have other benchmarks."""
    made = Parts()
    for module in ("benchmarks.__main__", "benchmarks.catalog"):
        monkeypatch.setattr(f"{module}.PARTS", made.parts)
    return made


def test_what_was_interrupted_goes_on(tmp_path, parts, capsys):
    file = tmp_path / "r.json"
    command = ["first", "bad", "long", "last", "--tiny", "--json", str(file), "--directory", str(tmp_path)]
    assert main(command) == 130
    assert "the same command goes on later" in capsys.readouterr().err
    assert [part.name for part in read(file)[0].parts] == ["first"]
    parts.mended = True
    assert main(command) == 0
    assert [part.name for part in read(file)[0].parts] == ["first", "bad", "long", "last"]
    assert parts.done == ["first", "bad", "long", "bad", "long", "last"]
    assert main(command) == 0
    assert len(parts.done) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_one_that_fails_is_told_and_the_others_run(tmp_path, parts, capsys):
    assert main(["first", "bad", "last", "--tiny", "--directory", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "failed: bad" in said.out
    assert "AssertionError: wrong records" in said.err
    assert parts.done == ["first", "bad", "last"]


def test_a_file_of_another_run_is_not_touched(tmp_path, parts, capsys):
    file = tmp_path / "r.json"
    command = ["first", "--json", str(file), "--directory", str(tmp_path)]
    assert main([*command, "--tiny"]) == 0
    before = file.read_bytes()
    assert main([*command, "--full"]) == 1
    assert "sizes: tiny -> full" in capsys.readouterr().err
    assert file.read_bytes() == before
