"""The control socket: what others get from the process that has a storage open, and that nobody can hurt it by that."""

import errno
import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import pytest
from concurrency import PATIENCE, run_threads
from conftest import let_others_in
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from served import PYTHONPATH
from test_shared_processes import GEVENT, NOBODY, Script, eventually

from berkeleydb_storage import (
    BackupError,
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    DiskFullError,
    GarbageManual,
    OwnerGone,
    SharedStorage,
    StorageClosed,
    StorageInUse,
    StorageNotFound,
    WireError,
    cli,
    errors,
    failpoints,
    restore,
)
from berkeleydb_storage.backup.source import LocalSource, Position
from berkeleydb_storage.control import protocol, serving, values
from berkeleydb_storage.control.access import open_source
from berkeleydb_storage.control.asking import ControlSource
from berkeleydb_storage.control.protocol import CHUNK, CONTROL, ERROR, RESULT
from berkeleydb_storage.environment import LOG_FILE_SIZE
from berkeleydb_storage.errors import LogGone

FRAMES = 3000
"""Random requests that an owner gets."""
LINES = 20_000
"""Random requests that are only decoded."""
SIZE = 2 << 20
"""Bytes in a storage that is copied: more than the sockets take before somebody reads."""
ASKERS = 12
ROUNDS = 5
END = Position(1, 2)
REQUESTS = [
    ("ping",),
    ("statistics",),
    ("look",),
    ("copy",),
    ("log", Position(1, 2), Position(3, 4)),
    ("hold", "the archive in s3://somewhere ☂", Position(7, 0), 1 << 40),
    ("release", "x"),
    ("held", "x" * 500),
]


@pytest.fixture
def storage(open_storage):
    return open_storage(garbage_collection=GarbageManual())


@pytest.fixture
def large(storage):
    """A storage with some megabytes."""
    fill(storage)
    return storage


@pytest.fixture
def source(storage, directory):
    """This process, asked by itself."""
    return ControlSource(directory)


@pytest.fixture
def run(directory):
    scripts = []

    def start(text, **arguments):
        scripts.append(Script(text, directory, **arguments))
        return scripts[-1]

    yield start
    for script in scripts:
        with suppress(ProcessLookupError):
            script.process.send_signal(signal.SIGCONT)
        script.process.kill()
        script.end()


def fill(storage, size=SIZE):
    add(storage, "much", PersistentDict({"of it": os.urandom(size)}))


def add(storage, key, value=1):
    connection = Connection(storage)
    connection.get_root()[key] = value
    connection.commit()


def collected(chunks):
    """Return the files that come, and what the generator returns."""
    files = {}
    while True:
        try:
            name, data = next(chunks)
        except StopIteration as end:
            return {name: b"".join(parts) for name, parts in files.items()}, end.value
        files.setdefault(name, []).append(data)


def control(storage):
    return storage._running._control


def dial(directory):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(directory / CONTROL))
    return sock


def answer(sock):
    """Return all that comes until the other side closes."""
    parts = []
    with suppress(ConnectionResetError):  # it had not read all that was sent
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def error_in(data):
    """Return the error that is all of an answer."""
    kind, length = protocol.decode_header(data[: protocol.HEADER.size])
    assert (kind, len(data)) == (ERROR, protocol.HEADER.size + length)
    return protocol.decode_error(data[protocol.HEADER.size :])


# --- bytes and values


@pytest.mark.parametrize("asked", REQUESTS, ids=[name for name, *_ in REQUESTS])
def test_requests_round_trip(asked):
    name, *arguments = asked
    request = protocol.decode_request(protocol.encode_request(*asked))
    assert (request.name, list(request.arguments.values())) == (name, arguments)


def test_every_request_is_tried():
    assert {name for name, *_ in REQUESTS} == set(protocol.REQUESTS)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b'{"protocol": 1, "request": "look"}',
        b'{"protocol": 2, "request": "look"}\n',
        b'{"request": "look"}\n',
        b'{"protocol": 1}\n',
        b'{"protocol": 1, "request": ["look"]}\n',
        b'{"protocol": 1, "request": "forked"}\n',
        b'{"protocol": 1, "request": "look", "more": 1}\n',
        b'{"protocol": 1, "request": "held"}\n',
        b'{"protocol": 1, "request": "held", "holder": ""}\n',
        b'{"protocol": 1, "request": "held", "holder": "a\\nb"}\n',
        b'{"protocol": 1, "request": "held", "holder": "\\ud800"}\n',
        b'{"protocol": 1, "request": "held", "holder": "' + b"x" * 501 + b'"}\n',
        b'{"protocol": 1, "request": "log", "start": [1], "end": [1, 2]}\n',
        b'{"protocol": 1, "request": "log", "start": [1, -1], "end": [1, 2]}\n',
        b'{"protocol": 1, "request": "log", "start": [1, true], "end": [1, 2]}\n',
        b'{"protocol": 1, "request": "log", "start": [1, 1e3], "end": [1, 2]}\n',
        b'{"protocol": 1, "request": "log", "start": [1, 9223372036854775808], "end": [1, 2]}\n',
        b'{"protocol": 1, "request": "log", "start": "11", "end": [1, 2]}\n',
        b"[" * 4000 + b"\n",
        b'{"a":' * 700 + b"\n",
        b"9" * 4000 + b"\n",
        b"\xff\xfe\n",
        b"null\n",
        b" " * 5000 + b"\n",
    ],
)
def test_what_is_no_request(line):
    with pytest.raises(WireError):
        protocol.decode_request(line)


def mutated(chance, line):
    """Change, cut, double or insert some bytes."""
    line = bytearray(line)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(line) + 1)
        how = chance.randrange(4)
        if how == 0:
            line[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            del line[at : at + chance.randrange(1, 9)]
        elif how == 2:
            line[at:at] = line[: chance.randrange(40)]
        else:
            line[at:at] = chance.choice([b"\n", b'"', b"[" * 50, b"{", b"1e99", b"-1", b"null", bytes(8), b"\xc3"])
    return bytes(line)


def test_random_requests_are_decoded_or_refused():
    chance = random.Random(6)
    lines = [protocol.encode_request(*asked) for asked in REQUESTS]
    refused = 0
    for _ in range(LINES):
        try:
            request = protocol.decode_request(mutated(chance, chance.choice(lines)))
        except WireError:
            refused += 1
        else:
            assert request.arguments.keys() == protocol.REQUESTS[request.name].keys()
    assert LINES / 2 < refused < LINES


CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BerkeleyDBStorageError)
]


@pytest.mark.parametrize("each", CLASSES)
def test_errors_round_trip(each):
    error = protocol.decode_error(protocol.encode_error(each("db \udcff is full: free some")))
    assert (type(error), str(error)) == (each, "db \udcff is full: free some")


def test_errors_that_are_not_known():
    class Later(DiskFullError):
        pass

    assert type(protocol.decode_error(protocol.encode_error(Later("x")))) is DiskFullError
    for name in ('"Later"', '"missing"', '"annotations"', '"WriteConflictError"', "1", "null"):
        assert type(protocol.decode_error(b'{"class": %s, "text": "x"}' % name.encode())) is BackupError
    long = protocol.encode_error(BackupError("☂" * 1_000_000))
    assert len(long) < protocol.LONGEST_BODY
    for body in (b"", b"{}", b"[]", b'{"class": "BackupError", "text": 1}'):
        with pytest.raises(WireError):
            protocol.decode_error(body)


def test_names_of_files_lead_nowhere_else():
    for name in ("objects.db", "log.0000000001"):
        assert protocol.decode_chunk(protocol.encode_chunk(name) + b"bytes") == (name, b"bytes")
    for name in ("../objects.db", "/etc/x.db", "log.1", "storage.json", "", ".db", "a\n.db", "objects.db/"):
        with pytest.raises(WireError):
            protocol.encode_chunk(name)
        with pytest.raises(WireError):
            protocol.decode_chunk(bytes([len(name)]) + name.encode() + b"bytes")
    with pytest.raises(WireError):
        protocol.decode_chunk(b"")


def test_what_is_no_frame():
    for kind, length in ((b"x", 1), (CHUNK, protocol.LONGEST_BODY + 1), (RESULT, (1 << 32) - 1)):
        with pytest.raises(WireError):
            protocol.decode_header(protocol.encode_header(kind, length))
    for body in (b"", b"1", b"{}", b'{"result": 1, "more": 2}'):
        with pytest.raises(WireError):
            protocol.decode_result(body)


def test_moments_and_figures_of_others_are_verified(source):
    good = values.from_moment(source.look())
    assert values.to_moment(good | {"later": 1}) == values.to_moment(good)
    wrong = [None, [], {}, good | {"tid": -1}, good | {"tid": "1"}, good | {"identity": "xy"}, good | {"end": [1]}]
    for each in wrong:
        with pytest.raises(WireError):
            values.to_moment(each)
    for each in (None, {"moment": good}, {"moment": good, "first": [1, 0], "description": []}):
        with pytest.raises(WireError):
            values.to_copied(each)
    inside = {"objects": 1}
    wrong = [{}, {"objects": "1"}, inside | {"holds": [{}]}, inside | {"packing": [1]}, inside | {"end": 3}]
    for each in wrong:
        with pytest.raises(WireError):
            values.to_live({"pid": 1, "version": "1", "inside": each})


# --- what one gets


def test_who_asks_is_told(storage, source, directory):
    add(storage, "a")
    assert source.path == directory.absolute()
    assert source.ping() == os.getpid()
    live = source.statistics()
    assert live.pid == os.getpid()
    assert live.inside.transactions == storage.statistics().transactions
    assert live.inside.end == source.look().end
    local = storage._running.source.look()
    assert source.look()._replace(time=local.time) == local


def test_a_copy_is_that_of_the_owner(large, source):
    there, theirs = collected(source.copy())
    here, ours = collected(large._running.source.copy())
    assert there["objects.db"] == here["objects.db"]
    assert there.keys() == here.keys()
    assert len(there["objects.db"]) > SIZE
    assert theirs.moment.tid == ours.moment.tid
    assert theirs.first == ours.first
    assert theirs.description.keys() == ours.description.keys()


def test_the_log_is_that_of_the_owner(large, source):
    start = source.look().end
    fill(large, LOG_FILE_SIZE)
    end = source.look().end
    assert end.log > start.log
    there, _ = collected(source.log(start, end))
    here, _ = collected(large._running.source.log(start, end))
    assert there == here


def test_holding(storage, source):
    assert source.held("it") is None
    end = source.look().end
    source.hold("it", end, 1 << 20)
    assert source.held("it") == end
    assert storage._running.source.held("it") == end
    assert source.statistics().inside.holds[0].holder == "it"
    source.release("it")
    assert source.held("it") is None


def test_errors_arrive_as_they_are(storage, source, directory):
    for call in (
        lambda each: each.hold("it", Position(1, 0), 0),
        lambda each: list(each.log(Position(7, 0), Position(8, 0))),
        lambda each: list(each.log(Position(1, 0), Position(1, 1 << 40))),
    ):
        with pytest.raises(BerkeleyDBStorageError) as here:
            call(storage._running.source)
        with pytest.raises(type(here.value)) as there:
            call(source)
        assert str(there.value) == str(here.value)
    with pytest.raises(LogGone):
        list(source.log(Position(7, 0), Position(8, 0)))
    with pytest.raises(WireError):
        source.held("two\nlines")


def test_a_file_that_cannot_be_read(large, source, directory, caplog):
    chunks = source.copy()
    next(chunks)
    (directory / "meta.db").rename(directory / "aside")
    try:
        with pytest.raises(BackupError, match=r"cannot be read: .*meta\.db"):
            collected(chunks)
    finally:
        (directory / "aside").rename(directory / "meta.db")
    collected(source.copy())
    assert caplog.records == []


def test_what_fails_in_the_owner_is_logged_there(storage, directory, caplog):
    def statistics():
        raise ZeroDivisionError

    found = control(storage)
    found._statistics = statistics
    with pytest.raises(BackupError, match="look into its log"):
        ControlSource(directory).statistics()
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]


def test_one_copy_at_a_time(large, source):
    with closing(source.copy()) as first:
        next(first)
        with pytest.raises(BackupError, match="is being made"):
            next(source.copy())
    eventually(lambda: not control(large)._answers)
    collected(source.copy())


def test_who_closes_an_iterator_is_gone(large, source):
    chunks = source.copy()
    next(chunks)
    assert len(control(large)._answers) == 1
    chunks.close()
    eventually(lambda: not control(large)._answers)


def test_many_ask_at_once(large, source):
    found = []

    def ask():
        for _ in range(ROUNDS):
            assert source.ping() == os.getpid()
            found.append(source.look().tid)

    run_threads(*[ask] * ASKERS, lambda: collected(source.copy()), lambda: [add(large, n) for n in range(ROUNDS)])
    assert len(found) == ROUNDS * ASKERS
    eventually(lambda: not control(large)._answers)


# --- the socket


def test_the_socket_is_for_its_user_alone(storage, directory):
    assert (directory / CONTROL).is_socket()
    assert (directory / CONTROL).stat().st_mode & 0o777 == 0o600
    storage.close()
    assert not [name for name in os.listdir(directory) if name.startswith(CONTROL)]


def test_a_reader_has_none(storage, directory):
    storage.close()
    with BerkeleyDBStorage(directory, read_only=True):
        assert not (directory / CONTROL).exists()


def test_a_storage_that_is_dropped_takes_it_along(directory):
    storage = BerkeleyDBStorage(directory)
    del storage
    assert not (directory / CONTROL).exists()


def test_nobody_answers_for_a_storage_that_is_closed(storage, directory, source):
    storage.close()
    with pytest.raises(OwnerGone, match="try again"):
        source.look()


def test_nothing_is_inherited(storage, source):
    """A process that is started has none of the sockets, even if it gets all descriptors that there are."""
    script = "import os; print(*[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')[:-1]])"
    with closing(source.copy()) as chunks:
        next(chunks)
        done = subprocess.run(
            [sys.executable, "-c", script], close_fds=False, capture_output=True, text=True, check=True
        )
    assert "socket:" not in done.stdout


@pytest.mark.parametrize("blocked", ["file", "directory"])
def test_where_it_cannot_be_made_the_storage_works(directory, open_storage, caplog, blocked):
    open_storage().close()
    where = directory / CONTROL
    where.write_text("mine") if blocked == "file" else where.mkdir()
    storage = open_storage()
    add(storage, "a")
    assert [record.levelname for record in caplog.records if "control" in record.name] == ["WARNING"]
    assert "no control socket" in caplog.text
    with pytest.raises(OwnerGone):
        ControlSource(directory).ping()
    storage.close()
    assert where.exists()
    where.unlink() if blocked == "file" else where.rmdir()


def test_no_descriptor_for_it(directory, open_storage, caplog, monkeypatch):
    def none(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", none)
    storage = open_storage()
    assert "Too many open files" in caplog.text
    assert not (directory / CONTROL).exists()
    add(storage, "a")


def test_what_a_killed_owner_left_is_replaced(directory, run):
    owner = run("storage = BerkeleyDBStorage(path); say('open'); wait()")
    owner.hear()
    owner.kill()
    assert (directory / CONTROL).is_socket()
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(directory / f"{CONTROL}.0badcafe"))
    (directory / f"{CONTROL}.txt").write_text("mine")
    with BerkeleyDBStorage(directory):
        assert ControlSource(directory).ping() == os.getpid()
        names = sorted(name for name in os.listdir(directory) if name.startswith(CONTROL))
        assert names == [CONTROL, f"{CONTROL}.txt"]


def test_it_is_removed_and_closing_does_not_mind(storage, directory):
    (directory / CONTROL).unlink()
    storage.close()


def test_anothers_socket_in_its_place_stays(storage, directory):
    (directory / CONTROL).unlink()
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(directory / CONTROL))
        storage.close()
        assert (directory / CONTROL).is_socket()


def test_long_paths(tmp_path):
    path = tmp_path.joinpath(*["x" * 60] * 4)
    path.mkdir(parents=True)
    with BerkeleyDBStorage(path):
        assert ControlSource(path).ping() == os.getpid()
        assert (path / CONTROL).is_socket()
    assert not (path / CONTROL).exists()


def test_another_working_directory(directory, monkeypatch):
    monkeypatch.chdir(directory.parent)
    with BerkeleyDBStorage(directory.name) as storage:
        monkeypatch.chdir("/")
        assert ControlSource(directory).ping() == os.getpid()
        control(storage).stop()
        assert not (directory / CONTROL).exists()
        monkeypatch.chdir(directory.parent)


@pytest.mark.parametrize("leaving", ["pass", "storage.close()", "sys.exit(3)"])
def test_at_the_end_of_the_interpreter(directory, run, leaving):
    script = run(f"storage = BerkeleyDBStorage(path)\nadd(storage, 'a')\n{leaving}")
    assert script.end() == (3 if "exit" in leaving else 0)
    assert not (directory / CONTROL).exists()


# --- who asks for nothing good


def test_random_bytes_do_not_hurt(storage, source, directory, caplog):
    chance = random.Random(7)
    lines = [protocol.encode_request(*asked) for asked in REQUESTS]
    kinds = {ERROR: 0, RESULT: 0, CHUNK: 0}
    for number in range(FRAMES):
        if number % 3:
            sent = mutated(chance, chance.choice(lines))
        else:
            sent = chance.randbytes(chance.choice([0, 1, 7, 100, 5000]))
        with dial(directory) as sock:
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)
            if number % 5:  # every fifth does not wait for an answer
                got = answer(sock)
                if got:
                    kinds[got[:1]] += 1
    assert kinds[ERROR] > FRAMES / 10
    assert kinds[RESULT] > 0
    assert source.ping() == os.getpid()
    add(storage, "a")
    eventually(lambda: not control(storage)._answers)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    eventually(lambda: len([each for each in threading.enumerate() if "control" in each.name]) == 1)


def test_random_answers_do_not_hurt(directory):
    """Whoever may write to the directory may listen there."""
    chance = random.Random(8)
    bodies = [b"", b"1", b'{"result": null}', b'{"class": "BackupError", "text": "x"}', bytes(300), b"\xff" * 300]
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(directory / CONTROL))
        sock.listen()
        source = ControlSource(directory)
        asked = {
            "look": source.look,
            "copy": lambda: collected(source.copy()),
            "held": lambda: source.held("x"),
            "statistics": source.statistics,
        }

        def play():
            for _ in range(FRAMES // 3):
                peer, _ = sock.accept()
                with peer:
                    peer.recv(protocol.LONGEST_REQUEST)
                    body = chance.choice(bodies)
                    kind = chance.choice([CHUNK, RESULT, ERROR, b"x"])
                    frame = protocol.encode_header(kind, len(body)) + body
                    peer.sendall(frame if chance.random() < 0.7 else mutated(chance, frame))

        def ask():
            for _ in range(FRAMES // 3):
                name = chance.choice(list(asked))
                with suppress(BerkeleyDBStorageError):
                    assert asked[name]() is None, name

        run_threads(play, ask)


def test_who_says_nothing_is_left_alone(storage, directory, monkeypatch):
    monkeypatch.setattr(serving, "ASKING", 0.05)
    with dial(directory) as silent, dial(directory) as slow:
        slow.sendall(b'{"protocol": 1,')
        assert answer(silent) == answer(slow) == b""
    monkeypatch.undo()
    assert ControlSource(directory).ping() == os.getpid()


def test_who_does_not_read_is_left_alone(large, directory, source, monkeypatch):
    monkeypatch.setattr(serving, "TAKING", 0.05)
    with dial(directory) as sock:
        sock.sendall(protocol.encode_request("copy"))
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        assert poll.poll(PATIENCE * 1000)
    eventually(lambda: not control(large)._answers)
    monkeypatch.undo()
    collected(source.copy())


def test_a_crowd_is_told_to_wait(storage, directory, source, monkeypatch):
    monkeypatch.setattr(serving, "ASKING", PATIENCE)
    crowd = [dial(directory) for _ in range(serving.MOST)]
    eventually(lambda: len(control(storage)._answers) == serving.MOST)
    with pytest.raises(BackupError, match="try again later"):
        source.ping()
    for each in crowd:
        each.close()
    eventually(lambda: not control(storage)._answers)
    assert source.ping() == os.getpid()


NARROW = """
import errno, logging, resource
logging.basicConfig(stream=sys.stdout, format="%(message)s")
storage = BerkeleyDBStorage(path)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5,) * 2)
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError as error:
    assert error.errno == errno.EMFILE
say("full")
wait()
for each in taken:
    os.close(each)
wait()
storage.close()
"""


def test_an_owner_without_a_descriptor_left(directory, run):
    """Who asks waits until there is one; that is logged once."""
    owner = run(NARROW)
    assert owner.hear() == ["full"]

    def free():
        assert "who asks has to wait" in owner.process.stdout.readline()
        owner.tell()

    run_threads(free, lambda: ControlSource(directory).ping())
    assert owner.end() == 0
    assert owner.process.stdout.closed or owner.process.stdout.read() == ""


def test_more_than_a_request(storage, directory):
    with dial(directory) as sock:
        sock.sendall(protocol.encode_request("ping") * 2)
        assert type(error_in(answer(sock))) is WireError


ASKING = """
from pathlib import Path
from berkeleydb_storage import AccessDenied
from berkeleydb_storage.control.asking import ControlSource
try:
    ControlSource(path).look()
    say("told")
except AccessDenied as error:
    say("denied", str(error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_are_refused(storage, directory, run):
    """By the permissions of the socket; and where those are given away, by the owner."""
    let_others_in(directory)
    be_nobody = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    script = f"{be_nobody}{ASKING}"
    loaded = "import berkeleydb_storage.control.asking\n"  # while it may read the package
    assert run(script, first=loaded).hear()[0] == "denied"
    (directory / CONTROL).chmod(0o666)
    verdict, text = run(script, first=loaded).hear()
    assert verdict == "denied"
    assert "is in use by user 0" in text
    assert run(ASKING).hear() == ["told"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_root_is_told(directory, run):
    let_others_in(directory)
    os.chown(directory, NOBODY, NOBODY)
    loaded = f"import os\nfrom berkeleydb_storage import SharedStorage\nos.setgid({NOBODY}); os.setuid({NOBODY})\n"
    owner = run("storage = BerkeleyDBStorage(path)\nsay('open')\nwait()", first=loaded)
    owner.hear()
    assert ControlSource(directory).ping() == owner.process.pid
    assert owner.end() == 0


# --- ends


OWNER = """
from durus.persistent_dict import PersistentDict
storage = BerkeleyDBStorage(path, checkpoint=None)
add(storage, "much")
connection = Connection(storage)
connection.get_root()["much"] = PersistentDict({"of it": os.urandom(2 << 20)})
connection.commit()
say("open")
wait()
storage.close()
say("closed")
"""
COPYING = """
from pathlib import Path
from berkeleydb_storage.control.asking import ControlSource
chunks = ControlSource(path).copy()
next(chunks)
say("copying")
wait()
size = 0
while True:
    try:
        size += len(next(chunks).data)
    except StopIteration:
        break
say("copied", size)
"""


def test_the_owner_is_killed_in_the_middle(directory, run):
    owner = run(OWNER)
    owner.hear()
    chunks = ControlSource(directory).copy()
    next(chunks)
    owner.kill()
    with pytest.raises(OwnerGone, match="has ended or closed it"):
        collected(chunks)
    with pytest.raises(OwnerGone, match="no process"):
        ControlSource(directory).look()
    with BerkeleyDBStorage(directory) as storage:
        collected(ControlSource(directory).copy())
        assert not storage.check().faults


def test_who_asks_is_killed_in_the_middle(large, run, source):
    asker = run(COPYING)
    asker.hear()
    asker.kill()
    eventually(lambda: not control(large)._answers)
    collected(source.copy())
    large.checkpoint()


def test_who_asks_is_stopped_for_a_while(large, run, source):
    """Commits, checkpoints and other answers go on; so does he, afterwards."""
    asker = run(COPYING)
    asker.hear()
    asker.process.send_signal(signal.SIGSTOP)
    before = large.statistics().checkpoints
    for number in range(ROUNDS):
        add(large, number)
        large.checkpoint()
        source.look()
    assert large.statistics().checkpoints == before + ROUNDS
    asker.process.send_signal(signal.SIGCONT)
    asker.tell()
    verdict, size = asker.hear()
    assert verdict == "copied"
    assert size > SIZE


def test_the_owner_is_stopped_for_a_while(directory, run):
    owner = run(OWNER)
    owner.hear()
    chunks = ControlSource(directory).copy()
    next(chunks)
    owner.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OwnerGone, match="is it stopped"):
        ControlSource(directory, timeout=0.05).look()
    owner.process.send_signal(signal.SIGCONT)
    files, _ = collected(chunks)
    assert len(files["objects.db"]) > SIZE
    owner.tell()
    assert owner.hear() == ["closed"]


def test_closing_waits_for_nobody(large, directory, source):
    """Neither for one who asked for nothing, nor for one who does not read."""
    chunks = source.copy()
    next(chunks)
    with dial(directory):
        eventually(lambda: len(control(large)._answers) == 2)
        started = time.monotonic()
        large.close()
        assert time.monotonic() - started < serving.ASKING / 2
    with pytest.raises((OwnerGone, StorageClosed)):
        collected(chunks)


def test_closing_while_many_ask(open_storage, directory):
    """Whoever asks is told, or that it is closed, or that nobody is there; and it opens again at once."""
    allowed = (OwnerGone, StorageClosed, BackupError)

    def ask():
        source = ControlSource(directory)
        while not over.is_set():
            with suppress(*allowed):
                source.look()
            with suppress(*allowed):
                collected(source.copy())

    def play():
        for _ in range(10):
            with BerkeleyDBStorage(directory) as storage:
                add(storage, "a")
        over.set()

    over = threading.Event()
    run_threads(play, ask, ask, ask)
    open_storage()


def test_a_storage_that_is_dropped_while_it_answers(directory):
    storage = BerkeleyDBStorage(directory)
    fill(storage)
    chunks = ControlSource(directory).copy()
    next(chunks)
    del storage
    gc.collect()
    with pytest.raises((OwnerGone, StorageClosed)):
        collected(chunks)
    assert not (directory / CONTROL).exists()


# --- forks


FORKED = """
from durus.persistent_dict import PersistentDict
storage = BerkeleyDBStorage(path)
connection = add(storage, "much")
connection.get_root()["much"] = PersistentDict({"of it": os.urandom(2 << 20)})
connection.commit()
say("open")
wait()
pid = os.fork()
if not pid:
    say("forked", os.getpid())
    signal.pause()
wait()
"""


def test_a_child_does_not_answer_and_keeps_no_connection(directory, run):
    owner = run(FORKED, first="import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n")
    owner.hear()
    chunks = ControlSource(directory).copy()
    next(chunks)
    owner.tell()
    _, child = owner.hear()
    try:
        assert ControlSource(directory).ping() == owner.process.pid
        owner.kill()
        with pytest.raises(OwnerGone, match="has ended or closed it"):
            collected(chunks)
        with pytest.raises(OwnerGone, match="no process"):
            ControlSource(directory).ping()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_closes_leaves_the_socket_alone(directory, run):
    owner = run(
        """
storage = BerkeleyDBStorage(path)
pid = os.fork()
if not pid:
    storage.close()
    sys.exit()
os.waitpid(pid, 0)
say("waited")
wait()
""",
        first="import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n",
    )
    owner.hear()
    assert ControlSource(directory).ping() == owner.process.pid
    assert owner.end() == 0


# --- in company


KEEPER = """
storage = SharedStorage(path)
add(storage, os.getpid())
say("open")
wait()
add(storage, "more")
say("more")
wait()
"""


def test_a_shared_storage_is_taken_over(directory, run):
    first = run(KEEPER)
    first.hear()
    second = run(KEEPER)
    second.hear()
    source = ControlSource(directory)
    assert source.ping() == first.process.pid
    collected(source.copy())
    first.kill()
    second.tell()
    second.hear()
    assert source.ping() == second.process.pid
    collected(source.copy())
    assert second.end() == 0


def test_a_shared_storage_of_this_process(directory):
    with SharedStorage(directory) as storage:
        add(storage, "a")
        assert ControlSource(directory).ping() == os.getpid()


def test_greenlets_go_on(directory, run):
    owner = run(
        """
from durus.persistent_dict import PersistentDict
storage = BerkeleyDBStorage(path)
connection = add(storage, "much")
connection.get_root()["much"] = PersistentDict({"of it": os.urandom(2 << 20)})
connection.commit()
ticks, over = 0, False
def tick():
    global ticks
    while not over:
        ticks += 1
        gevent.sleep(0.001)
ticking = gevent.spawn(tick)
say("open")
import gevent.fileobject
gevent.fileobject.FileObject(0, "rb").readline()
over = True
ticking.join()
storage.close()
say("ticks", ticks)
""",
        first=GEVENT,
    )
    owner.hear()
    source = ControlSource(directory)
    chunks = source.copy()
    next(chunks)  # and nothing is read for now
    for _ in range(50):
        assert source.ping() == owner.process.pid
    files, _ = collected(chunks)
    assert len(files["objects.db"]) > SIZE
    hanging = source.copy()
    next(hanging)
    owner.tell()
    verdict, ticks = owner.hear()
    assert verdict == "ticks"
    assert ticks > 5
    hanging.close()
    assert owner.end() == 0


# --- whoever has it


def test_a_source_of_a_storage_that_nobody_has(storage, directory):
    storage.close()
    with open_source(directory) as source:
        assert type(source) is LocalSource
        assert source.look().objects == storage_size(directory)
    with BerkeleyDBStorage(directory):
        pass


def storage_size(directory):
    return ControlSource(directory).look().objects


def test_a_source_of_a_storage_that_somebody_has(directory, run):
    owner = run(OWNER)
    owner.hear()
    with open_source(directory) as source:
        assert type(source) is ControlSource
        files, _ = collected(source.copy())
    assert len(files["objects.db"]) > SIZE
    assert owner.end() == 0


def test_a_source_of_nothing(tmp_path):
    with pytest.raises(StorageNotFound), open_source(tmp_path / "nowhere"):
        pass
    with pytest.raises(StorageNotFound), open_source(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_source_of_a_storage_that_others_read(storage, directory):
    storage.close()
    reader = BerkeleyDBStorage(directory, read_only=True)
    with reader, pytest.raises(StorageInUse), open_source(directory, wait=0.1):
        pass


def test_a_source_of_an_owner_who_is_about_to_answer(storage, directory):
    """It has the lock for longer than the socket: while it recovers, and while it makes the last checkpoint."""
    control(storage).stop()
    started = threading.Event()

    def listen():
        started.wait(PATIENCE)
        fresh = serving.Control(storage._running.source, storage._running.figures)
        storage._running._control = fresh
        fresh.start()

    def ask():
        started.set()
        with open_source(directory) as source:
            assert source.ping() == os.getpid()

    run_threads(listen, ask)


def test_an_owner_who_does_not_answer(storage, directory):
    control(storage).stop()
    with pytest.raises(StorageInUse, match=f"It is process {os.getpid()}") as caught, open_source(directory, wait=0.1):
        pass
    assert caught.value.pid == os.getpid()


def test_the_figures_of_another_process(directory, run):
    owner = run(OWNER)
    owner.hear()
    done = subprocess.run(
        [sys.executable, "-m", "berkeleydb_storage", "stat", directory],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"in use by process {owner.process.pid}" in done.stdout
    assert "collected      0 objects" in done.stdout
    assert owner.end() == 0


# --- the command


WRITING = """
storage = BerkeleyDBStorage(path)
connection = Connection(storage)
root = connection.get_root()
root["a"] = root["b"] = 0
connection.commit()
def write():
    while True:
        root["a"] += 1
        root["b"] -= 1
        connection.commit()
        say(root["a"])
threading.Thread(target=write, daemon=True).start()
while wait():
    pass
"""


@pytest.fixture
def acknowledged(run):
    """A process that commits without an end, and the commits that it has told of so far."""
    owner, told = run(WRITING), []
    reader = threading.Thread(target=lambda: told.extend(json.loads(line)[0] for line in owner.process.stdout))
    reader.start()
    eventually(lambda: told)
    yield owner, told
    owner.kill()
    reader.join()


def restored(target, path):
    restore(target, path)
    with BerkeleyDBStorage(path) as storage:
        assert not storage.check().faults
        root = Connection(storage).get_root()
        assert root["a"] == -root["b"]
        return root["a"]


def test_a_backup_of_what_another_process_writes_to(directory, tmp_path, acknowledged):
    _, told = acknowledged
    for number in range(3):
        newest = told[-1]
        assert cli.main(["backup", str(directory), str(tmp_path / "backups"), "--quiet"]) == 0
        assert restored(tmp_path / "backups", tmp_path / f"restored {number}") >= newest


@pytest.mark.parametrize("point", ["backup.begun", "backup.copied", "backup.noted", "backup.piece"])
def test_the_owner_is_killed_while_the_command_copies(directory, tmp_path, acknowledged, monkeypatch, capsys, point):
    """The command opens the storage itself then, and begins anew."""
    owner, told = acknowledged
    if point == "backup.piece":
        assert cli.main(["backup", str(directory), str(tmp_path / "backups"), "--quiet"]) == 0

    def kill(name):
        if name == point and owner.process.poll() is None:
            owner.kill()

    monkeypatch.setattr(failpoints, "hook", kill)
    newest = told[-1]
    assert cli.main(["backup", str(directory), str(tmp_path / "backups")]) == 0
    assert owner.process.poll() is not None
    assert "it begins anew" in capsys.readouterr().err
    monkeypatch.undo()
    assert restored(tmp_path / "backups", tmp_path / "restored") >= newest
