"""Shared storages and processes: forks, the ends that a process can have, greenlets, users without permission."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from concurrency import PATIENCE
from conftest import check_directory, let_others_in
from durus.connection import Connection
from served import PYTHONPATH
from shared_child import connect

from berkeleydb_storage import BerkeleyDBStorage, SharedStorage

NOBODY = 65534


@pytest.fixture(autouse=True)
def checked(directory):
    yield
    check_directory(directory)


class Script:
    """A program that is told to go on by lines, and answers by lines."""

    PREAMBLE = """
import gc, json, os, signal, sys, threading, time
import warnings
from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError
from berkeleydb_storage import BerkeleyDBStorage, SharedStorage

path = sys.argv[1]

def say(*words):
    os.write(1, (json.dumps(words) + "\\n").encode())

def connect(storage):
    while True:
        try:
            return Connection(storage)
        except ReadConflictError:  # others changed the root between Durus' sync and its load
            storage.sync()

def add(storage, key):
    connection = connect(storage)
    while True:
        try:
            connection.get_root()[key] = 1
            connection.commit()
            return connection
        except ConflictError:
            connection.abort()

def wait():
    return os.read(0, 6)
"""

    def __init__(self, text, path, *, first=""):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", first + self.PREAMBLE + text, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": PYTHONPATH},
        )

    def hear(self):
        """Return the next line."""
        line = self.process.stdout.readline()
        assert line, "it ended"
        return json.loads(line)

    def tell(self):
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def end(self):
        """Wait until it has ended; return the exit status."""
        self.process.stdin.close()
        status = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return status


@pytest.fixture
def run(directory):
    scripts = []

    def start(text, **arguments):
        scripts.append(Script(text, directory, **arguments))
        return scripts[-1]

    yield start
    for script in scripts:
        script.process.kill()
        script.end()


def keys(directory):
    with BerkeleyDBStorage(directory) as storage:
        return set(Connection(storage).get_root().keys())


def eventually(true):
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline


def is_closed(directory):
    """Whether it was closed, so that nothing is to be recovered."""
    return json.loads((directory / "storage.json").read_text())["state"] == "closed"


# --- forks


FORKS = """
storage = SharedStorage(path)
connection = add(storage, "parent")
children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        connection.get_root()
        add(storage, f"child {number}")
        say("done", os.getpid())
        wait()
        add(storage, f"again {number}")
        storage.close()
        os._exit(0)
    children.append(pid)
"""


def test_opened_before_the_fork(directory, run):
    """As gunicorn does with --preload: the parent owns it, and the children are its clients."""
    script = run(FORKS + "add(storage, 'parent again')\nassert not any(os.waitpid(pid, 0)[1] for pid in children)\n")
    for _ in range(3):
        assert script.hear()[0] == "done"
    for _ in range(3):
        script.tell()
    assert script.end() == 0
    assert keys(directory) == {
        "parent",
        "parent again",
        *(f"{what} {n}" for what in ("child", "again") for n in range(3)),
    }
    assert is_closed(directory)


def test_the_parent_is_killed_and_a_child_takes_over(directory, run):
    """At once: nothing that the children have inherited keeps the lock, or a connection, alive."""
    script = run(FORKS + "wait_for_ever = threading.Event().wait()\n")
    for _ in range(3):
        script.hear()
    with SharedStorage(directory) as other:
        assert (directory / "lock").read_text().strip() == str(script.process.pid)
        script.process.kill()
        started = time.monotonic()
        other.get_size()
        assert time.monotonic() - started < 5
        script.process.wait()
        for _ in range(3):
            script.tell()
        eventually(lambda: sum(str(key).startswith("again") for key in keys_of(other)) == 3)


def keys_of(storage):
    storage.sync()
    return set(connect(storage).get_root().keys())


def test_children_forked_from_an_owner_with_clients(directory, run):
    """The connections of others break with the owner, though its children live."""
    script = run("""
storage = SharedStorage(path)
add(storage, "parent")
say("open")
wait()
pid = os.fork()
if not pid:
    signal.pause()
say(pid)
signal.pause()
""")
    script.hear()
    with SharedStorage(directory) as first, SharedStorage(directory) as second:
        first.get_size(), second.get_size()
        script.tell()
        (child,) = script.hear()
        try:
            script.kill()
            started = time.monotonic()
            assert first.get_size() == second.get_size() == 1
            assert time.monotonic() - started < 5
        finally:
            os.kill(child, signal.SIGKILL)


def test_forked_while_clients_come_and_go(directory, run):
    """Whatever a child inherits, connections that are just being accepted too: all of it breaks with the parent."""
    script = run("""
storage = SharedStorage(path)
add(storage, "parent")
say("open")
pids = []
for number in range(40):
    pid = os.fork()
    if not pid:
        try:
            signal.pause()
        finally:
            os._exit(1)
    pids.append(pid)
say(pids)
signal.pause()
""")
    script.hear()
    storages = [SharedStorage(directory) for _ in range(60)]
    (children,) = script.hear()
    try:
        script.kill()
        started = time.monotonic()
        for storage in storages:
            assert storage.get_size() == 1
        assert time.monotonic() - started < 10
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for storage in storages:
            storage.close()


def test_programs_that_are_started_inherit_nothing(directory, run):
    script = run(PROGRAMS)
    found = [script.hear()[0] for _ in range(2)]
    (sleeper,) = script.hear()
    script.kill()
    try:
        assert not any(str(directory) in each or "socket" in each for each in found), found
        with SharedStorage(directory) as storage:
            assert storage.get_size() == 1
    finally:
        os.kill(sleeper, signal.SIGKILL)


PROGRAMS = """
import subprocess
storage = SharedStorage(path)
add(storage, "here")
other = SharedStorage(path)
listing = '''
import os
for number in os.listdir("/proc/self/fd"):
    try:
        print(number, os.readlink(f"/proc/self/fd/{number}"))
    except OSError:
        pass
'''
for close in (True, False):
    done = subprocess.run([sys.executable, "-S", "-c", listing], close_fds=close, capture_output=True, text=True)
    say(done.stdout)
done = subprocess.Popen(["sleep", "60"], close_fds=False)
say(done.pid)
signal.pause()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(directory, tmp_path, method):
    """A storage that the parent has open, and children that open their own."""
    program = tmp_path / "program.py"
    program.write_text(
        Script.PREAMBLE
        + f"""
import multiprocessing

def work(path, key):
    storage = SharedStorage(path)
    add(storage, key)
    storage.close()

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    storage = SharedStorage(path)
    add(storage, "parent")
    processes = [context.Process(target=work, args=(path, f"child {{n}}")) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    add(storage, "parent again")
"""
    )
    command = [sys.executable, "-W", "error", str(program), str(directory)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert keys(directory) == {"parent", "parent again", "child 0", "child 1", "child 2"}
    assert is_closed(directory)


# --- ends


ENDS = {
    "falls off": "",
    "sys.exit": "sys.exit(0)",
    "exit in a thread": "thread = threading.Thread(target=sys.exit); thread.start(); thread.join()",
    "busy threads": """
def load():
    while True:
        try:
            storages[1].get_size()
        except Exception:
            return
for _ in range(3):
    threading.Thread(target=load, daemon=True).start()
""",
    "a thread that opens": """
os.mkdir(path + "/../other")
held = BerkeleyDBStorage(path + "/../other")
threading.Thread(target=SharedStorage, args=(path + "/../other",), daemon=True).start()
while not os.path.exists(path + "/../other/socket"):
    pass
""",
}


@pytest.mark.parametrize("how", ENDS)
def test_the_interpreter_ends_without_closing(directory, run, how):
    """It is closed in order, and soon, with clients that are busy."""
    script = run(
        f"storages = [SharedStorage(path) for _ in range(2)]\nadd(storages[0], 1)\nsay(1)\nwait()\n{ENDS[how]}"
    )
    script.hear()
    with SharedStorage(directory) as storage:
        assert storage.get_size() == 1
        script.tell()
        started = time.monotonic()
        assert script.end() == 0
        assert time.monotonic() - started < 10
        assert storage.get_size() == 1
        assert not storage.information()["storage"]["recovered"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_by_a_signal(directory, run, number):
    """The next one recovers it."""
    script = run("storage = SharedStorage(path)\nadd(storage, 1)\nsay(1)\nwait()\n")
    script.hear()
    with SharedStorage(directory) as storage:
        script.process.send_signal(number)
        assert script.process.wait(PATIENCE) == -number
        assert storage.get_size() == 1
        assert storage.information()["storage"]["recovered"]


def test_interrupted_while_it_opens(directory, run):
    """By Ctrl-C, which is raised wherever it is: nothing is left of it."""
    script = run("""
from berkeleydb_storage import failpoints
def interrupt(name):
    if name == point:
        signal.raise_signal(signal.SIGINT)
def settle():
    "Have what was interrupted go, and wait until nothing of it is left."
    gc.collect()
    for thread in threading.enumerate():
        if thread.name in ("berkeleydb_storage close", "berkeleydb_storage owner"):
            thread.join()
failpoints.hook = interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
for point in ("create.begun", "create.done", "recover.begin", "recover.done", "open.marked"):
    settle()
    if point == "open.marked":
        SharedStorage(path).close()
    try:
        SharedStorage(path)
    except KeyboardInterrupt:
        say(point)
point = None
settle()
say([thread.name for thread in threading.enumerate()], os.listdir(path))
storage = SharedStorage(path)
add(storage, 1)
storage.close()
""")
    points = [script.hear()[0] for _ in range(5)]
    assert points == ["create.begun", "create.done", "recover.begin", "recover.done", "open.marked"]
    threads, names = script.hear()
    assert threads == ["MainThread"]
    assert "socket" not in names
    assert script.end() == 0
    assert keys(directory) == {1}


# --- users


@pytest.fixture
def open_to_all(tmp_path):
    """Have another user get as far as the directory."""
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    let_others_in(tmp_path)


TRY = f"""
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
started = time.monotonic()
try:
    SharedStorage(path)
except Exception as error:
    say(type(error).__name__, str(error), time.monotonic() - started)
"""


@pytest.mark.usefixtures("open_to_all")
def test_another_user_without_permission(directory, run):
    """A clear error, at once: whether somebody owns it or not."""
    with SharedStorage(directory):
        kind, message, seconds = run(TRY).hear()
        assert (kind, seconds < 5) == ("BerkeleyDBStorageError", True)
        assert "belongs to another user" in message
    kind, message, seconds = run(TRY).hear()
    assert (kind, seconds < 5) == ("BerkeleyDBStorageError", True)
    assert "not writable for this process" in message


@pytest.fixture
def read_only_mount(directory):
    mounted = directory.parent / "mounted"
    mounted.mkdir()
    for command in (["mount", "--bind", directory, mounted], ["mount", "-o", "remount,ro,bind", mounted]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_a_read_only_file_system(directory, read_only_mount):
    SharedStorage(directory).close()
    with pytest.raises(Exception, match=r"read-only|Read-only|not writable") as caught:
        SharedStorage(read_only_mount)
    assert type(caught.value).__name__ == "BerkeleyDBStorageError"


# --- greenlets

GEVENT = "import gevent.monkey\ngevent.monkey.patch_all()\nimport gevent\n"


def test_greenlets_as_owner(directory, run):
    """The server shares the one thread with them, and clients in other processes are served."""
    script = run(
        """
def work(number):
    storage = SharedStorage(path)
    add(storage, number)
    gevent.sleep(0)
    storage.close()

keeper = SharedStorage(path)
add(keeper, "keeper")
say("open")
gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
import gevent.fileobject
gevent.fileobject.FileObject(0, "rb").readline()
keeper.close()
""",
        first=GEVENT,
    )
    script.hear()
    with SharedStorage(directory) as storage:
        started = time.monotonic()
        for _ in range(200):
            storage.get_size()
        each = (time.monotonic() - started) / 200
        eventually(lambda: len(keys_of(storage)) == 11)
        script.tell()
        assert script.end() == 0
        assert keys_of(storage) == {"keeper", *range(10)}
    assert each < 0.05


def test_greenlets_after_a_fork(directory, run):
    """As gunicorn has it with gevent and --preload: what was opened before was not gevent's. The master is killed."""
    script = run("""
storage = SharedStorage(path)
add(storage, "parent")
if not os.fork():
    warnings.simplefilter("ignore")
    import gevent.monkey
    gevent.monkey.patch_all()
    say("patched")
    wait()
    def work(number):
        with SharedStorage(path) as own:
            add(own, number)
            gevent.sleep(0.01)
            add(own, -number)
    gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
    add(storage, "child")
    say("done")
    storage.close()
    os._exit(0)
signal.pause()
""")
    script.hear()
    script.process.kill()
    script.process.wait()
    script.tell()
    assert script.hear() == ["done"]
    assert script.process.stdout.readline() == ""
    assert keys(directory) == {"parent", "child", *range(-9, 10)}
    assert is_closed(directory)


def test_greenlets_end_without_closing(directory, run):
    """The server's greenlet still has its turns then: it is closed in order."""
    script = run(
        """
storage = SharedStorage(path)
add(storage, 1)
say("open")
gevent.sleep(0.05)
gevent.spawn(add, storage, 2).join()
""",
        first=GEVENT,
    )
    script.hear()
    with SharedStorage(directory) as other:
        assert script.end() == 0
        assert keys_of(other) == {1, 2}
        assert not other.information()["storage"]["recovered"]


def test_greenlets_as_clients(directory, run):
    with SharedStorage(directory) as storage:
        script = run(
            """
def work(number):
    with SharedStorage(path) as storage:
        add(storage, number)
gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
""",
            first=GEVENT,
        )
        assert script.end() == 0
        assert keys_of(storage) == set(range(10))


def test_greenlets_own_several_directories(directory, run):
    """All servers are in one thread, and the application's own asyncio as well."""
    script = run(
        """
import asyncio
other = path + "/../other"
os.mkdir(other)
with SharedStorage(path) as first, SharedStorage(other, timeout=5) as second:
    from berkeleydb_storage.client import ClientStorage
    for each in (path, other):
        with ClientStorage(f"unix:{each}/socket", timeout=5) as client:
            add(client, 1)
    async def sleep():
        for _ in range(20):
            await asyncio.sleep(0.001)
        gevent.sleep(0.01)
        with SharedStorage(path + "/../third", timeout=5) as third:
            add(third, 1)
        await asyncio.sleep(0.001)
        return "slept"
    os.mkdir(path + "/../third")
    beside = gevent.spawn(lambda: [second.ping() or gevent.sleep(0.0005) for _ in range(50)])
    say(asyncio.run(sleep()))
    beside.get()
""",
        first=GEVENT,
    )
    assert script.hear() == ["slept"]
    assert script.end() == 0
    assert keys(directory) == {1}
