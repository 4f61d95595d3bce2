"""A process that commits, makes checkpoints and holds log files, tells what was done, and is killed at a point."""

import os
import random
import signal
import sys

from graphs import commit, hand_out, oid, quiet, record

from berkeleydb_storage import environment, failpoints
from berkeleydb_storage.files import Position

PLENTY = 1 << 40


def die_at(name, times):
    left = times

    def hook(reached):
        nonlocal left
        left -= reached == name
        if reached == name and not left:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.hook = hook


def stored(storage):
    """Return the number of the last commit."""
    return int(storage.load(oid(1))[12:].split()[0])


def main(path, seed, name, times):
    source = random.Random(seed)
    environment.LOG_FILE_SIZE, environment.LOG_BUFFER = 1 << 18, 1 << 15
    storage = quiet(path, durable=True)
    holds = storage._running.holds
    if not storage.get_size():
        hand_out(storage, 2)
        commit(storage, record(0, 1), record(1, data=b"0 "))
    number = stored(storage)
    die_at(name, times)
    while True:
        number += 1
        print("committing", number, flush=True)
        commit(storage, record(1, data=b"%d " % number + os.urandom(source.randrange(1 << 17))))
        print("committed", number, flush=True)
        choice, holder = source.random(), source.choice("ab")
        if choice < 0.3:
            place = Position(*storage._engine.environment.end_of_log())
            print("holding", holder, *place, flush=True)
            holds.hold(holder, place, PLENTY)
            print("held", holder, *place, flush=True)
        elif choice < 0.35:
            print("releasing", holder, flush=True)
            holds.release(holder)
            print("released", holder, flush=True)
        elif choice < 0.4:
            print("relieving", flush=True)
            holds.relieve(1)
            print("relieved", *(held.holder for held in holds.figures()), flush=True)
        elif choice < 0.6:
            storage.checkpoint()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
