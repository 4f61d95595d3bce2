"""The processes that are killed while they archive: the owner of a storage, or the command beside it.

    archive_child.py owner DIRECTORY PLACE REPORT POINT TIMES
    archive_child.py command DIRECTORY PLACE REPORT POINT TIMES

Each dies when the crash point has been reached so many times ("": it does not). The owner commits pairs, and appends a
line to the report for each: its number, the transaction, and when it was acknowledged. It ends when its standard input
does.
"""

import faulthandler
import os
import signal
import sys
import threading
import time

from durus.connection import Connection

from berkeleydb_storage import Archive, BerkeleyDBStorage, CheckpointInline, GarbageManual, Keep, cli, failpoints
from berkeleydb_storage.backup import archiving, chain

INTERVAL = 0.2
BASE_EVERY = 150
"""Transactions."""
PRUNE = 0.5
LONGEST = 100
"""Seconds after which it hangs, and says where."""


def die_at(name, times):
    left = [int(times)]

    def hook(reached):
        if reached == name:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    failpoints.hook = hook if name else None


def hurry():
    """Have everything happen that does, within seconds."""
    archiving.is_outgrown = lambda base, moment: moment.tid > base.noted.tid + BASE_EVERY
    archiving.PRUNE = PRUNE
    chain.MANY = 2


def owner(path, place, report):
    """Commit, and say so; with an archive unless the place is empty."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    archive = Archive(place, interval=INTERVAL, keep=Keep(within=1e9)) if place else None
    options = {"checkpoint": CheckpointInline(log_bytes=1 << 20), "garbage_collection": GarbageManual()}
    out = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with BerkeleyDBStorage(path, archive=archive, **options) as storage:
        connection = Connection(storage)
        root = connection.get_root()
        number = root.get("a", (0,))[0]
        while archive and storage.statistics().archive.tid is None:
            time.sleep(0.01)
        while not ended.is_set():
            number += 1
            root["a"] = root["b"] = (number, os.urandom(20_000))
            connection.commit()
            os.write(out, b"%d %d %f\n" % (number, storage._engine.journal.tid, time.monotonic()))
            time.sleep(0.002)


def command(path, place, report):
    code = cli.main(["archive", path, place, "--interval", str(INTERVAL), "--keep-days", "10000", "-v"])
    sys.exit(code)


def main(kind, path, place, report, point, times):
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    hurry()
    die_at(point, times)
    {"owner": owner, "command": command}[kind](path, place, report)


if __name__ == "__main__":
    main(*sys.argv[1:])
