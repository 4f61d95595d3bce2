"""`SharedStorage` within one process and beside others: opening, closing, taking over, refusing."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from operator import gt

import pytest
from berkeleydb import db
from conftest import check_directory
from durus.connection import Connection
from durus.error import ConflictError
from served import PYTHONPATH
from shared_child import Child, Crew, connect

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CheckpointInline,
    Every,
    NotAStorage,
    OptionError,
    SharedStorage,
    StorageClosed,
    StorageInUse,
    StorageNotFound,
    list_backups,
)
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.sharing import opener, owner

TOGETHER = 10
"""How often several processes open an empty directory at the same moment; 50 in the slow test."""
SLOW_TOGETHER = 50
CYCLES = 100


@pytest.fixture(autouse=True)
def checked(directory):
    yield
    if (directory / "storage.json").exists():
        check_directory(directory)


@pytest.fixture
def crew(directory):
    crew = Crew(directory)
    yield crew
    crew.finish()


def add(storage, key):
    """Commit a number, whoever else does."""
    connection = connect(storage)
    while True:
        try:
            connection.get_root()[key] = 1
            connection.commit()
            return connection
        except ConflictError:
            connection.abort()


def keys(storage):
    storage.sync()
    return set(connect(storage).get_root().keys())


# --- opening


def open_together(crew, times):
    children = [crew.child() for _ in range(4)]
    for number in range(times):
        path = crew.path / str(number)
        path.mkdir()
        for child in children:
            child.tell("open", path=path, connect=True)
        for child in children:
            child.answer()
        for child in children:
            child.tell("close")
        for child in children:
            child.answer()
        check_directory(path)
        assert not (path / "socket").exists()
    for child in children:
        child.end()


def test_four_processes_open_an_empty_directory(crew):
    """And make a connection each: one of them makes the root object."""
    open_together(crew, TOGETHER)


@pytest.mark.slow
def test_four_processes_open_empty_directories(crew):
    open_together(crew, SLOW_TOGETHER)


def test_another_process_sees_what_is_committed(directory, crew):
    child = crew.child()
    child.ask("open", path=directory, connect=True)
    assert crew.owner() is child
    with SharedStorage(directory) as storage:
        add(storage, "here")
        assert child.ask("get_size") == 1


def test_the_next_one_owns_it(directory, crew):
    child = crew.child()
    child.ask("open", path=directory, connect=True)
    with SharedStorage(directory) as storage:
        add(storage, "before")
        child.ask("close")
        add(storage, "after")
        assert (directory / "lock").read_text().strip() == str(os.getpid())
    assert not (directory / "socket").exists()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_threads_of_one_process(directory, order):
    """The owner is open until the last one closes; that may be any."""
    storages = [SharedStorage(directory) for _ in range(3)]
    for number, each in enumerate(storages):
        add(each, number)
    for closed, number in enumerate(order):
        storages[number].close()
        storages[number].close()
        with pytest.raises(StorageClosed):
            storages[number].load(bytes(8))
        for other in order[closed + 1 :]:
            storages[other].sync()
            assert keys(storages[other]) == {0, 1, 2}
    with BerkeleyDBStorage(directory) as storage:
        assert keys(storage) == {0, 1, 2}


def test_one_directory_under_several_names(directory, monkeypatch):
    link = directory.parent / "link"
    link.symlink_to(directory)
    monkeypatch.chdir(directory.parent)
    with SharedStorage(directory) as first, SharedStorage(link) as second, SharedStorage("storage") as third:
        monkeypatch.chdir("/")
        for number, each in enumerate((first, second, third)):
            add(each, number)
        assert keys(first) == {0, 1, 2}


def test_goes_on_after_a_change_of_directory(directory, monkeypatch, crew):
    child = crew.child()
    child.ask("open", path=directory)
    monkeypatch.chdir(directory.parent)
    with SharedStorage("storage") as storage:
        monkeypatch.chdir("/")
        child.kill()
        add(storage, "after")


def test_a_long_path(tmp_path, crew):
    path = tmp_path / ("x" * 200)
    path.mkdir()
    child = crew.child()
    child.ask("open", path=path, connect=True)
    with SharedStorage(path) as storage:
        add(storage, "here")
        child.kill()
        add(storage, "there")
    check_directory(path)


def test_what_killed_owners_leave_is_removed(directory, crew):
    child = crew.child()
    child.ask("open", path=directory)
    os.link(directory / "socket", directory / "socket.0123abcd")
    (directory / "socket.txt").write_text("not ours")
    child.kill()
    SharedStorage(directory).close()
    assert sorted(path.name for path in directory.glob("socket*")) == ["socket.txt"]
    (directory / "socket.txt").unlink()


def test_killed_before_there_is_a_storage(directory, crew):
    """The socket comes first: it does not make the directory one of something else."""
    child = crew.child()
    child.ask("arm", point="create.begun", times=1)
    child.tell("open", path=directory)
    assert child.wait() < 0
    (directory / "storage.json").unlink()
    assert (directory / "socket").is_socket()
    with SharedStorage(directory) as storage:
        add(storage, "here")


# --- options


@pytest.mark.parametrize(
    "options",
    [
        {"type": "tree"},
        {"cachesize": 5},
        {"checkpoint": 7},
        {"garbage_collection": "often"},
        {"backup": 900},
        {"read_only": True},
        {"readonly": True},
        {"timeout": 0},
        {"type": "hash"},
    ],
)
def test_options_are_looked_at_at_once(directory, crew, options):
    """Also by a process that does not own it, and may never need them."""
    child = crew.child()
    child.ask("open", path=directory, type="btree")
    with pytest.raises(OptionError):
        SharedStorage(directory, **options)
    child.ask("close")


def test_unknown_options(directory):
    with pytest.raises(TypeError, match="colour"):
        SharedStorage(directory, colour="red")


def test_options_are_those_of_the_owner(directory, crew):
    child = crew.child()
    child.ask("open", path=directory, cachesize=2 << 20)
    with SharedStorage(directory, cachesize=4 << 20, checkpoint=CheckpointInline()) as storage:
        add(storage, 1)
        before = storage.information()["storage"]["cache_bytes"]
        child.ask("close")
        assert storage.information()["storage"]["cache_bytes"] > before


def test_paths_that_are_no_storages(tmp_path):
    with pytest.raises(StorageNotFound):
        SharedStorage(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotAStorage):
        SharedStorage(tmp_path / "file")
    with pytest.raises(NotAStorage):
        SharedStorage(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "storage"]


# --- others who do not share


def test_who_does_not_share_is_told_who_does(directory):
    with SharedStorage(directory), pytest.raises(StorageInUse) as caught:
        BerkeleyDBStorage(directory)
    assert caught.value.pid == os.getpid()


def test_waits_a_moment_for_who_does_not_share(directory, monkeypatch):
    monkeypatch.setattr(opener, "HOPELESS", 0.2)
    with BerkeleyDBStorage(directory):
        started = time.monotonic()
        with pytest.raises(StorageInUse) as caught:
            SharedStorage(directory)
        assert 0.2 <= time.monotonic() - started < 10
    assert caught.value.pid == os.getpid()
    assert not (directory / "socket").exists()


def test_gets_it_when_who_does_not_share_ends(directory):
    plain = BerkeleyDBStorage(directory)
    opened = []
    thread = threading.Thread(target=lambda: opened.append(SharedStorage(directory)))
    thread.start()
    while not (directory / "socket").exists():
        assert thread.is_alive()
    plain.close()
    thread.join()
    opened[0].close()


def test_several_wait_for_who_does_not_share(directory, crew):
    """All are told, by the same error."""
    with BerkeleyDBStorage(directory):
        children = [crew.child() for _ in range(3)]
        for child in children:
            child.tell("open", path=directory)
        for child in children:
            with pytest.raises(StorageInUse, match=str(os.getpid())):
                child.answer()


def test_close_ends_waiting(directory):
    """Of a thread that waits for one who does not share."""
    shared = SharedStorage(directory)
    shared._shared.give_up()
    with BerkeleyDBStorage(directory):
        failures = []

        def load():
            try:
                shared.get_size()
            except StorageClosed as error:
                failures.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        while not (directory / "socket").exists():
            assert thread.is_alive()
        shared.close()
        thread.join()
        assert failures


@pytest.mark.parametrize("command", ["stat", "check"])
def test_commands_name_who_shares(directory, command):
    with SharedStorage(directory) as storage:
        add(storage, 1)
        done = subprocess.run(
            [sys.executable, "-m", "berkeleydb_storage", command, str(directory)],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": PYTHONPATH},
            check=False,
        )
    assert f"in use by process {os.getpid()}" in done.stdout + done.stderr


# --- ending


def threads_and_descriptors():
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind(directory):
    """No thread, no descriptor: over many openings."""
    SharedStorage(directory, durable=False).close()
    before = threads_and_descriptors()
    for _ in range(CYCLES):
        with SharedStorage(directory, durable=False) as storage, SharedStorage(directory) as other:
            Connection(storage)
            other.get_size()
    deadline = time.monotonic() + 10
    while any(map(gt, threads_and_descriptors(), before)):  # the thread that waits for the server's end is about to
        assert time.monotonic() < deadline, (before, threads_and_descriptors(), threading.enumerate())


def test_a_storage_that_is_forgotten_is_closed(directory):
    import gc

    storage = SharedStorage(directory)
    add(storage, 1)
    del storage
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "berkeleydb_storage close":
            thread.join()
    BerkeleyDBStorage(directory).close()


def test_busy_clients_do_not_hold_up_the_owner(directory, crew):
    owning = SharedStorage(directory)
    children = [crew.child() for _ in range(4)]
    from shared_child import set_up

    set_up(directory)
    for seed, child in enumerate(children):
        child.tell("work", path=directory, seed=seed)
    crew.read_until(lambda: crew.history.commits > 50)
    started = time.monotonic()
    owning.close()
    took = time.monotonic() - started
    until = crew.history.commits + 50
    crew.read_until(lambda: crew.history.commits > until)
    crew.stop()
    assert took < 5
    for child in children:
        child.end()
    with BerkeleyDBStorage(directory) as storage:
        assert crew.history.verify(Connection(storage)) == 0


def test_stopped_clients_do_not_hold_up_the_owner(directory, crew):
    """One that does not take its answers, and does not run."""
    with SharedStorage(directory) as owning:
        add(owning, 1)
        with ClientStorage(f"unix:{directory}/socket") as client:
            connection = Connection(client)
            connection.get_root()["much"] = "x" * (8 << 20)
            connection.commit()
        with ClientStorage(f"unix:{directory}/socket") as client:
            channel = client._line.link()._channel
            channel.send_bytes(b"".join(b"\x00\x00\x00\x09L" + bytes(8) for _ in range(8)))
            client._line._link._channel.read(1)
            started = time.monotonic()
            owning.close()
            assert time.monotonic() - started < owner.GRACE + 4


def test_an_owner_may_be_asked_to_end(directory, crew):
    """By any of its clients: another process, or the same, goes on."""
    child = crew.child()
    child.ask("open", path=directory)
    with SharedStorage(directory) as storage:
        storage.shutdown()
        add(storage, 1)
        assert child.ask("get_size") == 1
        storage.shutdown()
        assert storage.get_size() == 1


# --- a storage that stops


def stop(storage):
    """Have the engine of the owner in this process find that it cannot go on."""
    engine = storage._shared.owner().storage.engine
    with engine.lock:
        engine.refuse(BerkeleyDBStorageError("planted"))
    return engine


def test_an_owner_whose_storage_has_stopped_opens_it_anew(directory):
    with SharedStorage(directory) as storage:
        connection = add(storage, "before")
        engine = stop(storage)
        assert storage.load(bytes(8))
        connection.get_root()["after"] = 1
        connection.commit()
        assert storage._shared.owner().storage.engine is not engine
        assert keys(storage) == {"before", "after"}


def test_clients_of_an_owner_whose_storage_has_stopped(directory, crew):
    """They get an error, or another process owns it already: within a second or two all is well."""
    with SharedStorage(directory) as storage:
        add(storage, "before")
        child = crew.child()
        child.ask("open", path=directory)
        stop(storage)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert child.ask("get_size") == 1
            except BerkeleyDBStorageError as error:
                if "planted" not in str(error):
                    raise
            else:
                return
        pytest.fail("nobody takes over")


# --- backups, information


def test_backups_where_the_option_says(directory, tmp_path, crew):
    (tmp_path / "backups").mkdir()
    every = Every(seconds=900, to=tmp_path / "backups")
    with SharedStorage(directory, backup=every) as storage:
        add(storage, 1)
        told = []
        made = storage.backup(told.append)
        assert told
        with ClientStorage(f"unix:{directory}/socket") as client:
            add(client, 2)
            client.backup()
        kinds = {backup.name: backup.kind for backup in list_backups(tmp_path / "backups")}
        assert kinds[made["name"]] == "full"
        assert list(kinds.values()) == ["full", "incremental"]
    with SharedStorage(directory) as storage, pytest.raises(BerkeleyDBStorageError, match="Every"):
        storage.backup()


def test_systemd_is_not_told(directory, tmp_path, monkeypatch):
    """Whether the service is ready, or is stopping: that is up to the application."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        SharedStorage(directory).close()
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


def test_who_meets_the_damage_is_told(directory):
    """And the storage is opened anew for the next request."""
    with SharedStorage(directory) as storage:
        add(storage, 1)
        engine = storage._shared.owner().storage.engine

        class Damaged:
            def __getitem__(self, oid):
                raise db.DBRunRecoveryError(-30973, "planted")

        getattr(engine, "gate", engine).objects = Damaged()
        with pytest.raises(BerkeleyDBStorageError, match="planted"):
            storage.load(bytes(8))
        assert storage.load(bytes(8))
        assert storage._shared.owner().storage.engine is not engine


def test_ownership_is_logged(directory, caplog):
    caplog.set_level(logging.INFO, "berkeleydb_storage.sharing")
    SharedStorage(directory).close()
    lines = [record.getMessage() for record in caplog.records if "owns" in record.getMessage()]
    assert lines == [f"process {os.getpid()} owns {directory}"]


def test_children_of_the_crew_end(directory):
    """With the storage open: they close it, and nothing is to be recovered."""
    child = Child(None)
    child.ask("open", path=directory)
    child.end()
    assert '"closed"' in (directory / "storage.json").read_text()
