"""The program that is killed: it forks one child for each job, which is faster than starting an interpreter for each.

A job is a line of JSON on the standard input: the function of this module to call, its arguments, what to change in
the package before, and at which crash point to die. The child reports by appending lines to a file: what is written
there survives it.
"""

import json
import os
import signal
import sys
import threading
import traceback
from importlib import import_module
from itertools import count
from pathlib import Path

from crash_model import Writer, set_up
from graphs import EVER, number, oid, record

from berkeleydb_storage import (
    BackupError,
    BerkeleyDBStorage,
    CheckpointInline,
    CheckpointNever,
    CheckpointThread,
    GarbageInline,
    GarbageManual,
    GarbageThread,
    OptionError,
    ReadOnlyError,
    compaction,
    failpoints,
    restore,
)
from berkeleydb_storage.rekeying import rekey


class Report:
    """Appends lines to a file, each by one write."""

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, line):
        os.write(self._file, line.encode() + b"\n")


class Fuse:
    """Kills the process when a crash point is reached for the n-th time."""

    def __init__(self, name, times):
        self._name = name
        self._left = times

    def __call__(self, name):
        if name == self._name:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


class BusyCheckpoints(CheckpointThread):
    """A background thread that makes a checkpoint whenever there is a little log."""

    interval = 0.002


def policies(how):
    """Return the policies of that name as arguments."""
    checkpoint, garbage = {
        "inline": (CheckpointInline(log_bytes=50_000), GarbageInline(grace=0.0)),
        "threads": (BusyCheckpoints(log_bytes=100_000), GarbageThread(grace=0.0, interval=0.002)),
        "none": (CheckpointNever(), GarbageManual()),
    }[how]
    return {"checkpoint": checkpoint, "garbage_collection": garbage}


def work(report, path, options, how, commits=None, writers=1):
    """Commit steps, in as many threads as there are writers, so many each or until killed; then close."""
    with BerkeleyDBStorage(path, **policies(how), **options) as storage:
        hubs = set_up(storage, writers, report)
        lines = [Writer(storage.session(), index, key, report) for index, key in enumerate(hubs)]
        threads = [threading.Thread(target=go_on, args=(line, commits)) for line in lines[1:]]
        for thread in threads:
            thread.start()
        go_on(lines[0], commits)
        for thread in threads:
            thread.join()


def go_on(writer, commits):
    until = float("inf") if commits is None else writer.step + commits
    while writer.step < until:
        writer.next()


def commit_many(report, path, options, objects):
    """Store so many objects in one commit, of which nobody is told."""
    with BerkeleyDBStorage(path, **policies("threads"), **options) as storage:
        storage.begin()
        for _ in range(objects):
            key = number(storage.new_oid())
            storage.store(oid(key), record(key, 0, data=b"x" * 200))
        report("many")
        storage.end()


def collect(report, path, options):
    """Collect all that local steps find, unlink more, and leave that to a full pack."""
    with BerkeleyDBStorage(path, **policies("none"), **options) as storage:
        for _ in range(150):
            storage._running.collector.step(1, EVER)
        storage.begin()
        storage.store(oid(0), record(0, 90))
        storage.end()
        storage.pack()
        report("collected")


def compact(report, path, options, how, objects, hold):
    """Store objects and delete most of them, with commits in between all steps of a compaction; again and again."""
    with BerkeleyDBStorage(path, **policies(how), **options) as storage:
        (hub,) = set_up(storage, 1, report)
        writer = Writer(storage.session(), 0, hub, report)
        while True:
            storage.begin()
            for _ in range(objects):
                key = number(storage.new_oid())
                report(f"oid {key}")
                storage.store(oid(key), record(key, data=b"%d" % key * 40))
            storage.end()
            writer.next()
            storage.pack()
            storage.checkpoint()
            for _ in compaction.compact(storage._engine, hold=hold):
                writer.next()


def back_up(report, path, options, target, keep):
    """Commit steps in two threads, and make backups meanwhile, of which `keep` stay, until killed."""
    with BerkeleyDBStorage(path, **policies("inline"), **options) as storage:
        hubs = set_up(storage, 2, report)
        for index, key in enumerate(hubs):
            writer = Writer(storage.session(), index, key, report)
            threading.Thread(target=go_on, args=(writer, None), daemon=True).start()
        for number in count():
            made = storage.backup(target, keep=keep, full=number % 3 == 0)
            report(f"made {made.name}")


def restore_to(report, path, where):
    """Restore the backup of a storage."""
    restore(where, path)


def back_up_and_tell(report, path, target):
    """Make a backup, and report what was raised."""
    with BerkeleyDBStorage(path) as storage:
        try:
            storage.backup(target)
        except BackupError as error:
            report(str(error))


def open_and_close(report, path, options):
    """Open the storage, which may recover it, and close it."""
    BerkeleyDBStorage(path, **options).close()
    report("closed")


def open_and_tell(report, path, options):
    """Open the storage, and report what was raised, as JSON."""
    try:
        BerkeleyDBStorage(path, **options).close()
    except Exception as error:
        report(json.dumps([type(error).__name__, str(error)]))


def read(report, path, options):
    """Try everything that would write to a storage, then report all that is in it."""
    with BerkeleyDBStorage(path, read_only=True, **options) as storage:
        storage.begin()
        storage.store(record(0)[:8], record(0))
        tried = {"end": storage.end, "pack": storage.pack, "checkpoint": storage.checkpoint}
        tried["repair"] = lambda: BerkeleyDBStorage(path, read_only=True, repair=True)
        for what, work in tried.items():
            try:
                work()
            except (ReadOnlyError, OptionError) as error:
                report(json.dumps([what, str(error)]))
        report(json.dumps([(key.hex(), row.hex()) for key, row in storage.gen_oid_record()]))


def migrate(report, path, options, objects, fail=False):
    """Migrate so many objects into a storage; with `fail`, from a source that is inconsistent at its end."""
    with BerkeleyDBStorage(path, **options) as storage:
        storage.migrate(records(objects + fail, objects))
        report("migrated")


def change_key(report, path, key, target, new_key):
    """Copy a storage under another key."""
    rekey(path, key, Path(target), new_key)
    report("changed")


def records(count, known):
    """Yield a root and a list of objects, each of which refers to the next; `known` of them exist."""
    for key in range(known):
        yield key.to_bytes(8, "big"), record(key, *([key + 1] if key + 1 < count else []), data=b"%d" % key)


def run(job):
    """Do a job in this process."""
    for name, value in job["settings"].items():
        module, attribute = name.rsplit(".", 1)
        setattr(import_module(f"berkeleydb_storage.{module}"), attribute, value)
    if job["user"]:
        os.setgroups([])
        os.setgid(job["user"])
        os.setuid(job["user"])
    if job["fuse"]:
        failpoints.hook = Fuse(*job["fuse"])
    globals()[job["function"]](Report(job["report"]), Path(job["path"]), **job["arguments"])


def fork(job):
    """Do a job in a child; tell its pid at once and its status at the end."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            run(job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    tell(pid)
    _, status = os.waitpid(pid, 0)
    tell(os.waitstatus_to_exitcode(status))


def tell(number):
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    for line in sys.stdin:
        fork(json.loads(line))
