"""Places that backups are put in: what is there is whole, never changes, and survives whatever the place does."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import flaky
import pytest
from concurrency import run_threads, wait_until
from flaky import FAULTS, FlakyFileSystem, faults
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import BackupError, ObjectExists, StoreUnreachable
from berkeleydb_storage.backup.stores import FsspecStore, LocalStore, is_url, local, open_store, remote
from berkeleydb_storage.backup.stores.patience import HANGING, Patience
from berkeleydb_storage.backup.stores.store import without_credentials

LONG = [bytes([number]) * (3 << 20) for number in range(7)]
"""More than two parts, in chunks of another length."""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    flaky.register(monkeypatch)


@pytest.fixture(params=["local", "memory", "flaky", "renaming"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(tmp_path / "place", create=True)
    return open_store(f"{request.param}://{tmp_path.name}/some/where")


def whole(store, name):
    return b"".join(store.read(name))


def test_what_is_written_is_there(store):
    store.write("a/b/c", [b"one", b"two"])
    store.write("a/long", iter(LONG))
    store.write("empty", [])
    assert store.list() == {"a/b/c": 6, "a/long": 21 << 20, "empty": 0}
    assert (whole(store, "a/b/c"), whole(store, "a/long"), whole(store, "empty")) == (b"onetwo", b"".join(LONG), b"")


def test_a_prefix_is_whole_parts(store):
    for name in ("a/b/c", "a/bc", "ab", "a/b/d/e"):
        store.write(name, [b"x"])
    assert list(store.list("a/b")) == ["a/b/c", "a/b/d/e"]
    assert list(store.list("a/")) == ["a/b/c", "a/b/d/e", "a/bc"]
    assert store.list("nothing/here") == {}
    assert store.list("a/b/c/d") == {}


@pytest.mark.parametrize("chunks", [[b"new"], LONG])
def test_nothing_is_overwritten(store, chunks):
    store.write("a/b", [b"old"])
    with pytest.raises(ObjectExists, match="a/b exists already"):
        store.write("a/b", chunks)
    assert (whole(store, "a/b"), store.list()) == (b"old", {"a/b": 3})


@pytest.mark.parametrize("length", [0, 1, 9, 20])
def test_what_fails_while_it_is_made_leaves_nothing(store, length):
    def failing():
        for _ in range(length):
            yield b"x" * (1 << 20)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        store.write("a/b", failing())
    assert store.list() == {}
    store.write("a/b", [b"then"])
    assert whole(store, "a/b") == b"then"


def test_what_is_removed_is_gone(store):
    for name in ("a/b", "a/c", "d"):
        store.write(name, [b"x"])
    store.remove("a/b", "nothing", "a/c")
    store.remove("a/b")
    assert store.list() == {"d": 1}
    store.write("a/b", [b"again"])
    assert whole(store, "a/b") == b"again"


def test_what_is_missing_is_named(store):
    with pytest.raises(BackupError, match="nothing is missing"):
        list(store.read("nothing"))


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", ".a", "a/.b", "a b", "a\n", "ä", "a\0b"])
def test_names_are_verified(store, name):
    for use in (lambda: store.write(name, [b"x"]), lambda: list(store.read(name)), lambda: store.remove(name)):
        with pytest.raises(BackupError, match="no name of an object"):
            use()


def test_threads_write_at_the_same_time(store):
    """Each name has one winner, whose bytes are there."""
    won = []

    def write(number):
        for name in range(10):
            try:
                store.write(f"d{name % 3}/{name}", [bytes([number]) * 1000])
                won.append((name, number))
            except ObjectExists:
                pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exclusive = not isinstance(store, FsspecStore) or store._atomic
    assert not exclusive or len(won) == 10
    for name, number in won if exclusive else ():
        assert whole(store, f"d{name % 3}/{name}") == bytes([number]) * 1000
    assert len(store.list()) == 10


# -- directories -------------------------------------------------------------------------------------------------------


def test_a_directory_has_to_be_there(tmp_path):
    with pytest.raises(StoreUnreachable, match="make it, or mount its disk"):
        open_store(tmp_path / "place")
    with pytest.raises(StoreUnreachable, match="make it, or mount its disk"):
        open_store(tmp_path / "not" / "there", create=True)
    late = open_store(tmp_path / "place", require=False)
    with pytest.raises(StoreUnreachable, match="mount its disk"):
        late.list()
    (tmp_path / "place").mkdir()
    assert late.list() == {}


def test_a_disk_that_is_not_mounted_any_more_is_not_empty(tmp_path):
    """Nothing is written beside it, and a listing is no empty one; when it is back, it goes on."""
    store = open_store(tmp_path / "place", create=True)
    store.write("a", [b"x"])
    (tmp_path / "place").rename(tmp_path / "away")
    (tmp_path / "place").mkdir()
    for use in (store.list, lambda: store.write("b", [b"x"]), lambda: list(store.read("a"))):
        with pytest.raises(StoreUnreachable, match="mount its disk"):
            use()
    assert list((tmp_path / "place").iterdir()) == []
    (tmp_path / "place").rmdir()
    (tmp_path / "away").rename(tmp_path / "place")
    assert store.list() == {"a": 1}


def test_files_have_the_permissions_of_the_directory(tmp_path):
    (tmp_path / "place").mkdir(mode=0o750)
    store = open_store(tmp_path / "place")
    store.write("a/b", [b"x"])
    modes = [(tmp_path / "place" / name).stat().st_mode & 0o777 for name in ("a", "a/b")]
    assert modes == [0o750, 0o640]


KILLED = """
import os, signal, sys
from berkeleydb_storage import failpoints
from berkeleydb_storage.backup.stores import open_store
failpoints.hook = lambda name: name == sys.argv[2] and os.kill(os.getpid(), signal.SIGKILL)
def chunks():
    yield b"x" * 100_000
    if sys.argv[2] == "written":
        os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).write("a/b", chunks())
"""


@pytest.mark.parametrize("where", ["written", "store.written", "store.named"])
def test_a_writer_is_killed(tmp_path, where):
    """What it left is not listed, and removed by the next one."""
    store = open_store(tmp_path, create=True)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where], check=False, timeout=60)
    assert done.returncode == -9
    assert store.list() == ({"a/b": 100_000} if where == "store.named" else {})
    assert len(list((tmp_path / ".making").iterdir())) == 1
    store.write("c", [b"y"])
    assert list((tmp_path / ".making").iterdir()) == []
    assert "c" in store.list()


def test_a_writer_that_lives_keeps_what_it_writes(tmp_path):
    store = open_store(tmp_path)

    def slow():
        yield b"one"
        open_store(tmp_path).write("other", [b"x"])
        yield b"two"

    store.write("a", slow())
    assert whole(store, "a") == b"onetwo"


@contextmanager
def replaced(monkeypatch, name, error):
    with monkeypatch.context() as patch:
        patch.setattr(*name, lambda *arguments, **named: (_ for _ in ()).throw(error))
        yield


def test_a_file_system_without_links(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    with replaced(monkeypatch, (os, "link"), OSError(errno.EPERM, "not permitted")):
        store.write("a", [b"x"])
        with pytest.raises(ObjectExists):
            store.write("a", [b"y"])
    assert whole(store, "a") == b"x"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    (tmp_path / ".making").mkdir()
    old, young = (tmp_path / ".making" / name for name in ("1-old", "2-young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    with replaced(monkeypatch, (fcntl, "flock"), OSError(errno.ENOLCK, "no locks")):
        store.write("a", [b"x"])
    assert [path.name for path in (tmp_path / ".making").iterdir()] == ["2-young"]
    assert whole(store, "a") == b"x"


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "free some"), (errno.EROFS, "not writable"), (errno.ESTALE, "mount its disk"), (errno.EIO, "disk")],
)
def test_errors_of_the_system_say_what_to_do(tmp_path, monkeypatch, number, text):
    store = open_store(tmp_path)
    with (
        replaced(monkeypatch, (os, "fsync"), OSError(number, os.strerror(number))),
        pytest.raises(BackupError) as caught,
    ):
        store.write("a", [b"x"])
    assert text in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, StoreUnreachable) == (number != errno.EROFS)
    assert store.list() == {}


# -- URLs --------------------------------------------------------------------------------------------------------------


def test_what_is_a_url(tmp_path):
    assert [is_url(where) for where in ("s3://a/b", "file:///a", "/a/b", "a", tmp_path, "a/b://c", "://")] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]


def test_a_file_url_is_a_directory(tmp_path):
    (tmp_path / "a b").mkdir()
    store = open_store((tmp_path / "a b").as_uri())
    assert isinstance(store, LocalStore)
    assert (store.url, store.compressed) == (str(tmp_path / "a b"), False)
    with pytest.raises(BackupError, match="no options"):
        open_store(tmp_path.as_uri(), options={"key": "x"})


def test_a_chain_of_urls_is_refused():
    with pytest.raises(BackupError, match="chain"):
        open_store("simplecache::s3://bucket")


def test_an_unknown_scheme_is_named():
    with pytest.raises(BackupError, match="nosuch"):
        open_store("nosuch://bucket/a")


MISSING = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None
from berkeleydb_storage import BackupError
from berkeleydb_storage.backup.stores import open_store
try:
    open_store(sys.argv[1])
except BackupError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("memory://a", ["fsspec"], "archive"),
        ("abfs://container/a", ["adlfs"], "azure"),
        ("s3://bucket/a", ["s3fs"], "s3"),
        ("gs://bucket/a", ["gcsfs"], "gcs"),
        ("sftp://host/a", ["paramiko"], "sftp"),
    ],
)
def test_a_package_that_is_missing_is_named(url, missing, extra):
    done = subprocess.run(
        [sys.executable, "-c", MISSING, url, *missing], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"pip install 'durus-berkeleydbstorage[{extra}]'" in done.stdout
    assert url in done.stdout


def test_a_directory_needs_no_fsspec(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MISSING, str(tmp_path), "fsspec"], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


SECRETS = [
    "sftp://user:sesame77@host/a?token=sesame77",
    "AccountKey=sesame77; failed",
    "https://x.blob.core.windows.net/a?sv=1&sig=sesame77 is not there",
    "GET 'http://user:sesame77@proxy:80/b'",
    "aws_secret_access_key=sesame77",
]


def test_a_name_in_front_of_a_host_is_no_secret():
    """It may be the container, and two of them are not the same place."""
    assert without_credentials("abfs://box@account.host/a") == "abfs://box@account.host/a"
    assert without_credentials("sftp://me@host/a") == "sftp://me@host/a"


@pytest.mark.parametrize("text", SECRETS)
def test_credentials_are_not_shown(text):
    assert "sesame77" not in without_credentials(text)


def test_messages_have_no_credentials(monkeypatch):
    store = open_store("flaky://me:sesame77@host/a?sig=sesame77", options={"account_key": "sesame77"})
    assert "sesame77" not in store.url

    def failing():
        raise OSError("with account_key sesame77 at flaky://me:sesame77@host")

    monkeypatch.setattr(FAULTS, "before", failing)
    with pytest.raises(StoreUnreachable) as caught:
        store.list()
    assert "sesame77" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


def test_a_listing_never_comes_from_a_cache(tmp_path):
    one, two = (open_store(f"flaky://{tmp_path.name}/a") for _ in range(2))
    assert one.list() == {}
    two.write("x", [b"x"])
    assert one.list() == {"x": 1}
    two.remove("x")
    assert one.list() == {}


@pytest.mark.parametrize("scheme", ["flaky", "renaming"])
def test_a_store_that_is_down_comes_back(scheme):
    store = open_store(f"{scheme}://host/a")
    store.write("a", [b"x"])
    FAULTS.down = True
    uses = (store.list, lambda: store.write("b", [b"x"]), lambda: list(store.read("a")), lambda: store.remove("a"))
    for use in uses:
        with pytest.raises(StoreUnreachable, match="network is down"):
            use()
    FAULTS.down = False
    assert store.list() == {"a": 1}


def test_what_says_it_is_stored_and_is_not_is_found():
    store = open_store("flaky://host/a")
    with faults(lost=1.0), pytest.raises(BackupError):
        store.write("a", [b"x"])
    assert store.list() == {}


def test_a_request_that_hangs_is_given_up():
    store = open_store("flaky://host/a", timeout=0.05)
    store.write("a", [b"x"])
    FAULTS.hanging.clear()
    try:
        for _ in range(HANGING + 2):
            with pytest.raises(StoreUnreachable, match=r"no answer|hang"):
                store.list()
    finally:
        FAULTS.hanging.set()
    patience = store._patience
    wait_until(lambda: not patience._late)
    patience.seconds = 60
    assert store.list() == {"a": 1}


def test_patience_passes_on_what_is_raised():
    with pytest.raises(KeyError, match="mine"):
        Patience(60).call({}.__getitem__, "mine")
    assert Patience(60).call(max, [1, 2], key=lambda x: -x) == 1


def test_without_new_threads_it_is_done_all_the_same(monkeypatch):
    """At the end of the interpreter there are none, and a storage that nobody closed is closed then."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no new thread")))
    assert Patience(60).call(max, 1, 2) == 2


@pytest.mark.parametrize("scheme", ["flaky", "renaming"])
@settings(deadline=None)
@given(seed=st.integers(0, 1 << 30), lengths=st.lists(st.sampled_from([0, 1, 999, 1000, 2500]), max_size=6))
def test_an_object_is_whole_or_not_there(scheme, seed, lengths):
    """Whatever fails: an object that is listed has all its bytes, one whose `write` returned is there; nothing else."""
    FlakyFileSystem.stores.clear()
    FlakyFileSystem.late.clear()
    store = open_store(f"{scheme}://host/a")
    contents, returned = {}, set()
    with (
        pytest.MonkeyPatch.context() as patch,
        faults(seed, refused=0.05, unanswered=0.05, lost=0.05, late=0.05, half=0.1),
    ):
        patch.setattr(remote, "PART", 1000)
        for number, length in enumerate(lengths):
            name = f"d{number % 2}/{number}"
            contents[name] = bytes([number]) * length
            try:
                store.write(name, [contents[name]])
                returned.add(name)
            except BackupError:
                pass
    found = store.list()
    assert returned <= found.keys() <= contents.keys()
    assert {name: whole(store, name) for name in found} == {name: contents[name] for name in found}


def test_one_connection_has_one_request_at_a_time(monkeypatch):
    """A file system that is not asynchronous, SFTP for instance, gives the answer of one to another."""
    busy, mixed = threading.Lock(), []
    request = FlakyFileSystem._request

    def alone(system):
        if not busy.acquire(blocking=False):
            mixed.append(system)
            return
        try:
            time.sleep(0.001)
            request(system)
        finally:
            busy.release()

    monkeypatch.setattr(FlakyFileSystem, "_request", alone)
    store = open_store("renaming://host/a")

    def use(number):
        def work():
            for turn in range(5):
                store.write(f"{number}/{turn}", [b"x"] * number)
                assert whole(store, f"{number}/{turn}") == b"x" * number
                store.list(str(number))

        return work

    run_threads(*map(use, range(4)))
    assert mixed == []
    assert len(store.list()) == 20


def test_leftovers_of_a_store_that_renames_are_not_listed(monkeypatch):
    store = open_store("renaming://host/a")
    with faults(half=1.0), pytest.raises(StoreUnreachable):
        store.write("a", LONG)
    FlakyFileSystem.stores["objects"]["host/a/.making/1-2"] = b"left by a process that was killed"
    assert store.list() == {}
    assert local.HIDDEN == ".making"
