"""Writers that commit without pause, and a checker that needs no account of what they did but the numbers of steps.

The root refers to a hub for each writer. Step number s of a writer stores the pair of objects in slot s % SLOTS of its
hub, which both contain what follows from the numbers of the writer and of the step; so it is known from the number of
the last step, which the hub has, what is in each slot. At times the pair is a new one, and the old one garbage.

It is also a program, which is killed: a job is a JSON object as its argument.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import namedtuple
from hashlib import sha256
from random import Random
from struct import pack, unpack_from

from graphs import commit, number, oid, record

from berkeleydb_storage import BerkeleyDBStorage, CheckpointThread, GarbageThread, environment, failpoints, restore
from berkeleydb_storage.backup import making
from berkeleydb_storage.format import references

SLOTS = 7
REPLACED = 25
"""Steps of which one makes a new pair; more garbage would be made than is collected."""
SIZES = (0, 30, 400, 2000, 5000)
LOGS = {"LOG_FILE_SIZE": 1 << 18, "LOG_BUFFER": 1 << 15}
"""Small ones, so that they come and go."""
HELD = 1 << 33
"""Bytes that are kept for the next backup: all, so that there is no gap that no restore can reach."""

Seen = namedtuple("Seen", "least most")
"""The least steps that each writer had done at some moment, as far as was acknowledged, and the most."""


class Often(CheckpointThread):
    """Checkpoints that come in between whenever they can."""

    interval = 0.02


def busy(**options):
    policies = {"checkpoint": Often(log_bytes=300_000), "garbage_collection": GarbageThread(grace=0.0, interval=0.01)}
    return {"cachesize": 1 << 20, **policies, **options}


def contents(writer, step):
    seed = sha256(pack(">QQ", writer, step)).digest()
    return pack(">QQ", writer, step) + seed * (SIZES[seed[0] % len(SIZES)] // len(seed))


def data_of(whole):
    return whole[12 : 12 + int.from_bytes(whole[8:12], "big")]


def begin(storage, writers):
    """Commit the root and the hubs, if they are not there."""
    if not storage.get_size():
        keys = [number(storage.new_oid()) for _ in range(writers + 1)]
        assert keys[0] == 0
        hubs = [record(key, data=pack(">QQ", writer, 0)) for writer, key in enumerate(keys[1:])]
        commit(storage, record(0, *keys[1:], data=b"root"), *hubs)


def read(storage, writer):
    """Return the hub of a writer, its last step, and {slot: pair}; fail if it is not as it was after that step."""
    hub = references(oid(0), storage.load(oid(0)))[writer]
    whole = storage.load(hub)
    assert unpack_from(">Q", data_of(whole))[0] == writer
    step = unpack_from(">Q", data_of(whole), 8)[0]
    refs = references(hub, whole)
    steps = sorted(range(max(1, step - SLOTS + 1), step + 1), key=lambda each: each % SLOTS)
    assert len(refs) == len(steps), "a hub has other slots than it must have"
    slots = {}
    for written, x in zip(steps, refs, strict=True):
        first = storage.load(x)
        (y,) = references(x, first)
        second = storage.load(y)
        assert data_of(first) == data_of(second) == contents(writer, written), "a pair does not match"
        slots[written % SLOTS] = number(x), number(y)
    return hub, step, slots


class Load:
    """The writers of one storage, each in a thread of its own."""

    def __init__(self, storage, writers, report=None):
        begin(storage, writers)
        self._storage = storage
        self._report = report
        self._ended = threading.Event()
        self._sessions = [storage.session() for _ in range(writers)]
        self._hubs = [read(storage, writer) for writer in range(writers)]
        self.acknowledged = [step for _, step, _ in self._hubs]  # each changed by the thread of its writer alone
        self.tried = list(self.acknowledged)

    @property
    def seen(self):
        """What every state of just now has."""
        return Seen(list(self.acknowledged), list(self.tried))

    def work(self, writer):
        """Commit steps until `end`."""
        hub, step, slots = self._hubs[writer]
        session = self._sessions[writer]
        while not self._ended.is_set():
            step += 1
            self.tried[writer] = step
            if not step % REPLACED or step % SLOTS not in slots:
                slots[step % SLOTS] = number(session.new_oid()), number(session.new_oid())
            x, y = slots[step % SLOTS]
            refs = [slots[slot][0] for slot in sorted(slots)]
            data = contents(writer, step)
            new = record(number(hub), *refs, data=pack(">QQ", writer, step))
            commit(session, new, record(x, y, data=data), record(y, data=data))
            self.acknowledged[writer] = step
            if self._report is not None:
                self._report(f"ack {writer} {step}")
        self._hubs[writer] = hub, step, slots

    def begin(self):
        self._ended.clear()

    def end(self):
        self._ended.set()

    @property
    def workers(self):
        return [lambda writer=writer: self.work(writer) for writer in range(len(self._sessions))]


def verify(storage, before, after):
    """Fail if a storage is not what it was between two moments: `before.least` and `after.most` steps, or between."""
    for writer, (least, most) in enumerate(zip(before.least, after.most, strict=True)):
        _, step, _ = read(storage, writer)
        assert least <= step <= most, f"writer {writer} had done {least} to {most} steps, and not {step}"
    report = storage.check()
    assert not report.faults, report.faults


def make_logs_small():
    for name, value in LOGS.items():
        setattr(environment, name, value)
    making.SMALL, making.LOG_FILE_SIZE = HELD, LOGS["LOG_FILE_SIZE"]


def restore_and_verify(where, target, wanted, key, before, after):
    """Restore to somewhere, verify what comes out, and remove it; return the transaction, and the seconds it took.

    It is for another process than the one of the writers: with those, each call of the library waits for its turn.
    """
    started = time.perf_counter()
    restored = restore(where, target, key=key, **wanted)
    seconds = time.perf_counter() - started
    with BerkeleyDBStorage(target, read_only=True, key=key) as storage:
        verify(storage, Seen(*before), Seen(*after))
        assert storage.statistics().transactions == restored.tid
    shutil.rmtree(target)
    return restored.tid, seconds


class Fuse:
    """Kills this process when a crash point is reached, or when progress is told, for the n-th time."""

    def __init__(self, name, times):
        self._name, self._left = name, times

    def __call__(self, name, *_):
        if name == self._name:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)

    def progress(self, activity, size):
        self("progress")


def job_own(report, fuse, path, target, options, seed, writers):
    """Write, and make backups, full and incremental and at times pruned, until killed."""
    random = Random(seed)
    with BerkeleyDBStorage(path, **busy(**options)) as storage:
        load = Load(storage, writers, report)
        for worker in load.workers:
            threading.Thread(target=worker, daemon=True).start()
        while True:
            before = load.seen
            backup = storage.backup(target, fuse.progress, full=random.random() < 0.4, keep=random.choice([None, 1]))
            report("made " + json.dumps([backup.kind, backup.tid, backup.time, before.least]))


def job_restore(report, fuse, path, target, options):
    """Restore, until killed."""
    restored = restore(target, path, progress=fuse.progress, **options)
    report(f"restored {restored.tid}")


def main(job):
    make_logs_small()
    fuse = failpoints.hook = Fuse(*job.pop("fuse"))
    where = os.open(job.pop("report"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    globals()["job_" + job.pop("job")](lambda line: os.write(where, line.encode() + b"\n"), fuse, **job)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
