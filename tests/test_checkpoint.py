"""When checkpoints are made, what they make needless, and what storage.json says about it."""

import itertools
import json
import os
import threading

import pytest
from graphs import commit, hand_out, oid, quiet, record, scratch_directory

from berkeleydb_storage import (
    BerkeleyDBStorage,
    CheckpointInline,
    CheckpointNever,
    CheckpointNumbers,
    CheckpointThread,
    ReadOnlyError,
    StorageClosed,
    checkpoint_interface,
    failpoints,
)
from berkeleydb_storage.environment import LOG_FILE_SIZE
from berkeleydb_storage.files import log_numbers

PATIENCE = 60.0
"""Seconds after which a thread is taken for dead."""
MEGABYTE = b"x" * (1 << 20)
LOGS = 4
"""Log files that are filled."""


@pytest.fixture
def path():
    with scratch_directory() as directory:
        yield directory


def checkpointer(storage):
    return storage._running.checkpointer


def completed(storage):
    return storage.statistics().checkpoints


def description(path):
    return json.loads((path / "storage.json").read_text())


def start(storage):
    hand_out(storage, 3)
    commit(storage, record(0, 1), record(1))


def write(storage, megabytes, turns=itertools.count()):  # noqa: B008 - no two records are the same
    for _ in range(megabytes):
        commit(storage, record(1, data=b"%09d" % next(turns) + MEGABYTE))


class Clock:
    """Stands in for the module time of the checkpointer."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("berkeleydb_storage.checkpoint.time", clock)
    return clock


def test_on_demand(path):
    with quiet(path) as storage:
        start(storage)
        before = completed(storage)
        storage.checkpoint()
        assert completed(storage) == before + 1


def test_what_a_policy_is_told(path, clock):
    with quiet(path) as storage:
        assert checkpointer(storage).numbers() == (0, 0.0)
        start(storage)
        clock.now += 5
        small = checkpointer(storage).numbers()
        assert 0 < small.log_bytes < 100_000
        assert small.seconds == 5.0
        write(storage, 1)
        assert 1 << 20 < checkpointer(storage).numbers().log_bytes - small.log_bytes < 2 << 20
        assert storage.statistics().log_since_checkpoint == checkpointer(storage).numbers().log_bytes


def test_a_checkpoint_leaves_nothing_to_do(path, clock):
    """What it writes itself does not count, or an idle storage would make one after the other."""
    with quiet(path, checkpoint=CheckpointInline(log_bytes=1 << 30, seconds=60)) as storage:
        start(storage)
        clock.now += 61
        checkpointer(storage).turn()
        assert completed(storage) == 1
        assert checkpointer(storage).numbers() == (0, 0.0)
        clock.now += 1e6
        checkpointer(storage).turn()
        assert completed(storage) == 1
        commit(storage, record(1, data=b"new"))
        assert completed(storage) == 2


def test_what_is_committed_during_a_checkpoint_counts(path, monkeypatch):
    with quiet(path) as storage:
        start(storage)

        def meanwhile(name):
            if name == "checkpoint.done":
                commit(storage, record(1, data=b"meanwhile"))

        monkeypatch.setattr(failpoints, "hook", meanwhile)
        storage.checkpoint()
        monkeypatch.setattr(failpoints, "hook", None)
        assert checkpointer(storage).numbers().log_bytes > 0
        assert storage.load(oid(1)) == record(1, data=b"meanwhile")


def test_never(path, clock):
    with quiet(path, checkpoint=CheckpointNever()) as storage:
        start(storage)
        write(storage, 3)
        clock.now += 1e6
        commit(storage, record(1))
        checkpointer(storage).turn()
        assert completed(storage) == 0


def test_inline_by_the_length_of_the_log(path):
    limit = 5 << 20
    with quiet(path, checkpoint=CheckpointInline(log_bytes=limit)) as storage:
        start(storage)
        written = storage._engine.environment.log_position()
        for _ in range(20):
            before, due = completed(storage), checkpointer(storage).numbers().log_bytes + (1 << 20) >= limit
            write(storage, 1)
            assert checkpointer(storage).numbers().log_bytes < limit
            assert completed(storage) in ((before + 1,) if due else (before, before + 1))
        written = storage._engine.environment.log_position() - written
        assert completed(storage) <= written // limit


def test_inline_by_the_time(path, clock):
    with quiet(path, checkpoint=CheckpointInline(seconds=60)) as storage:
        start(storage)
        clock.now += 59
        commit(storage, record(1))
        assert completed(storage) == 0
        clock.now += 2
        commit(storage, record(1))
        assert completed(storage) == 1


def test_the_default_is_the_thread(path):
    with BerkeleyDBStorage(path) as storage:
        assert type(checkpointer(storage).policy) is CheckpointThread
        names = {thread.name for thread in threading.enumerate()}
        assert {"berkeleydb_storage checkpoint", "berkeleydb_storage garbage"} <= names
    assert not {thread.name for thread in threading.enumerate()} & {"berkeleydb_storage checkpoint"}


def test_the_thread(path, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "checkpoint.logs-removed" and done.set())
    policy = CheckpointThread(log_bytes=1 << 20)
    policy.interval = 0.001
    with quiet(path, checkpoint=policy) as storage:
        start(storage)
        write(storage, 2)
        assert done.wait(PATIENCE)


def test_a_policy_of_ones_own_asked_by_every_commit(path):
    asked = []

    class Mine(checkpoint_interface):
        def due(self, numbers):
            asked.append(numbers)
            return len(asked) % 2 == 0

    with quiet(path, checkpoint=Mine()) as storage:
        start(storage)
        commit(storage, record(1))
        commit(storage, record(1))
        assert completed(storage) == 1
        assert [type(numbers) for numbers in asked] == [CheckpointNumbers] * 3
        assert asked[1].log_bytes > asked[0].log_bytes > 0
        assert asked[2].log_bytes < asked[1].log_bytes


def test_a_policy_of_ones_own_asked_by_a_thread(path, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(failpoints, "hook", lambda name: name == "checkpoint.logs-removed" and done.set())
    askers = set()

    class Mine:
        """Without the interface as its base: its members are enough."""

        interval = 0.001

        def due(self, numbers):
            askers.add(threading.current_thread().name)
            return numbers.log_bytes > 0

    with quiet(path, checkpoint=Mine()) as storage:
        start(storage)
        assert done.wait(PATIENCE)
    assert askers == {"berkeleydb_storage checkpoint"}


@pytest.mark.parametrize("interval", [None, 0.001])
def test_a_policy_that_fails_does_no_harm(path, caplog, interval):
    asked = threading.Semaphore(0)

    class Broken(checkpoint_interface):
        def due(self, numbers):
            asked.release()
            raise ZeroDivisionError("my policy")

    policy = Broken()
    policy.interval = interval
    with quiet(path, checkpoint=policy) as storage:
        start(storage)
        commit(storage, record(1, data=b"acknowledged"))
        for _ in range(2):
            assert asked.acquire(timeout=PATIENCE)
        assert storage.load(oid(1)) == record(1, data=b"acknowledged")
    assert "my policy" in caplog.text
    with quiet(path) as storage:
        assert not storage.statistics().recovered


def test_log_files_go_by_themselves(path):
    with quiet(path) as storage:
        start(storage)
        write(storage, LOGS * LOG_FILE_SIZE >> 20)
        before = log_numbers(path)
        assert len(before) > LOGS
        storage.checkpoint()
        after = log_numbers(path)
        assert after == before[-1:]
        assert (description(path)["first_log"], description(path)["last_log"]) == (after[0], after[-1])
        commit(storage, record(1, data=b"after"))
        assert storage.check().faults == []
    with quiet(path) as storage:
        assert storage.load(oid(1)) == record(1, data=b"after")


def test_log_files_go_while_a_policy_is_at_work(path):
    """However much is written, the disk holds about as much log as the policy allows."""
    with quiet(path, checkpoint=CheckpointInline(log_bytes=LOG_FILE_SIZE)) as storage:
        start(storage)
        most = 0
        for _ in range(LOGS * LOG_FILE_SIZE >> 20):
            write(storage, 1)
            most = max(most, len(log_numbers(path)))
        assert log_numbers(path)[-1] > LOGS
        assert most <= 3


def test_a_log_file_is_removed_only_after_it_is_noted_as_needless(path, monkeypatch):
    """Otherwise a crash in between would leave a storage that asks for a log file that is gone."""
    seen = []

    def look(name):
        if name.startswith("checkpoint.logs"):
            seen.append((name, log_numbers(path), description(path)["first_log"]))

    with quiet(path) as storage:
        start(storage)
        write(storage, 2 * LOG_FILE_SIZE >> 20)
        present = log_numbers(path)
        monkeypatch.setattr(failpoints, "hook", look)
        storage.checkpoint()
        monkeypatch.setattr(failpoints, "hook", None)
    last = present[-1]
    assert seen == [("checkpoint.logs-noted", present, last), ("checkpoint.logs-removed", [last], last)]


def test_a_checkpoint_that_fails_removes_nothing(path, monkeypatch):
    def fail(name):
        if name == "checkpoint.done":
            raise InterruptedError(name)

    with quiet(path) as storage:
        start(storage)
        write(storage, 2 * LOG_FILE_SIZE >> 20)
        before = log_numbers(path), description(path), checkpointer(storage).numbers().log_bytes
        monkeypatch.setattr(failpoints, "hook", fail)
        with pytest.raises(InterruptedError):
            storage.checkpoint()
        monkeypatch.setattr(failpoints, "hook", None)
        assert (log_numbers(path), description(path)) == before[:2]
        assert checkpointer(storage).numbers().log_bytes >= before[2]
        assert completed(storage) == 0
        storage.checkpoint()
        assert len(log_numbers(path)) == 1


def test_the_description_follows_the_logs(path):
    with quiet(path) as storage:
        assert (description(path)["state"], description(path)["first_log"], description(path)["last_log"]) == (
            "open",
            1,
            1,
        )
        start(storage)
        write(storage, 2 * LOG_FILE_SIZE >> 20)
        storage.checkpoint()
        newest = log_numbers(path)[-1]
        assert newest > 1
    noted = description(path)
    assert (noted["state"], noted["first_log"], noted["last_log"]) == ("closed", newest, newest)
    with quiet(path):
        assert description(path)["state"] == "open"


def test_a_checkpoint_is_where_the_description_says(path):
    """The log file and the offset of the newest one, so that an older log put in its place is found out."""
    with quiet(path) as storage:
        start(storage)
        storage.checkpoint()
        one = description(path)["checkpoint_log"], description(path)["checkpoint_offset"]
        write(storage, LOG_FILE_SIZE >> 20)
        storage.checkpoint()
        other = description(path)["checkpoint_log"], description(path)["checkpoint_offset"]
    assert (0, 0) < one < other


def test_closing_makes_a_checkpoint(path):
    with quiet(path) as storage:
        start(storage)
        write(storage, 1)
    with quiet(path) as storage:
        assert not storage.statistics().recovered
        assert storage.statistics().log_since_checkpoint == 0


def test_commits_go_on_during_a_checkpoint(path, monkeypatch):
    """A thread commits while the main thread is inside a checkpoint, which then includes it or leaves it in the log."""
    entered, committed = threading.Event(), threading.Event()

    def meet(name):
        if name == "checkpoint.begun":
            entered.set()
            assert committed.wait(PATIENCE)

    with quiet(path) as storage:
        start(storage)

        def work():
            assert entered.wait(PATIENCE)
            commit(storage, record(1, data=b"during"))
            committed.set()

        worker = threading.Thread(target=work)
        worker.start()
        monkeypatch.setattr(failpoints, "hook", meet)
        storage.checkpoint()
        monkeypatch.setattr(failpoints, "hook", None)
        worker.join()
        assert storage.load(oid(1)) == record(1, data=b"during")


def test_checkpoints_among_commits_of_several_threads(path):
    stop = threading.Event()
    failures = []

    def work(key):
        try:
            turn = 0
            while not stop.is_set():
                commit(storage, record(key, data=b"%d" % turn))
                turn += 1
        except BaseException as error:
            failures.append(error)

    with quiet(path) as storage:
        hand_out(storage, 5)
        commit(storage, record(0, 1, 2, 3, 4), *map(record, (1, 2, 3, 4)))
        workers = [threading.Thread(target=work, args=(key,)) for key in (1, 2, 3, 4)]
        for worker in workers:
            worker.start()
        for _ in range(30):
            storage.checkpoint()
        stop.set()
        for worker in workers:
            worker.join()
        assert failures == []
        assert storage.check().faults == []


def test_one_checkpoint_at_a_time(path, monkeypatch):
    """A policy that is asked while one runs is not asked; whoever demands one waits."""
    entered, leave, order = threading.Event(), threading.Event(), []

    def meet(name):
        if name == "checkpoint.begun":
            order.append("begun")
            entered.set()
            assert leave.wait(PATIENCE)
        if name == "checkpoint.logs-removed":
            order.append("ended")

    class Eager(checkpoint_interface):
        def due(self, numbers):
            return True

    with quiet(path) as storage:
        start(storage)
        checkpointer(storage).policy = Eager()
        monkeypatch.setattr(failpoints, "hook", meet)
        one = threading.Thread(target=storage.checkpoint)
        one.start()
        assert entered.wait(PATIENCE)
        checkpointer(storage).turn()
        assert order == ["begun"]
        other = threading.Thread(target=storage.checkpoint)
        other.start()
        leave.set()
        one.join()
        other.join()
        monkeypatch.setattr(failpoints, "hook", None)
        assert order == ["begun", "ended"] * 2
        assert completed(storage) == 2


def test_a_closed_storage_makes_none(path):
    with quiet(path, checkpoint=CheckpointInline(log_bytes=1)) as storage:
        start(storage)
        before = completed(storage)
    with pytest.raises(StorageClosed, match="is closed"):
        storage.checkpoint()
    checkpointer(storage).turn()
    assert checkpointer(storage).completed == before + 1


def test_a_read_only_storage_makes_none(path):
    quiet(path).close()
    before = os.listdir(path), description(path)
    with quiet(path, read_only=True) as storage:
        assert checkpointer(storage) is None
        assert storage.statistics().checkpoints == storage.statistics().log_since_checkpoint == 0
        with pytest.raises(ReadOnlyError, match="opened read-only: there is nothing to checkpoint"):
            storage.checkpoint()
    assert (os.listdir(path), description(path)) == before


def test_the_root_is_there_after_every_checkpoint_policy(path):
    for turn, policy in enumerate([CheckpointNever(), CheckpointInline(log_bytes=1), CheckpointThread()]):
        with quiet(path, checkpoint=policy) as storage:
            if turn == 0:
                start(storage)
            commit(storage, record(1, data=b"%d" % turn))
        with quiet(path) as storage:
            assert storage.load(oid(1)) == record(1, data=b"%d" % turn)
