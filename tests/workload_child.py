"""Forks servers and clients for `test_workloads`, so that each is there at once: lines of JSON in, lines out.

A line is the name of a function here and its arguments; the answer is the process's number, and for a server another
line when it listens. ``{"wait": pid}`` is answered by the exit status.
"""

import json
import logging
import os
import random
import signal
import sys
import threading
import traceback
from functools import partial
from pathlib import Path

import mutants
from durus.client_storage import ClientStorage as DurusClient
from workloads import Worker

from berkeleydb_storage import BerkeleyDBStorage, GarbageThread, failpoints
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.server import Server, desk, groups


class Slow:
    """The socket of a Durus client that takes its time between the answer to `C` and its records."""

    def __init__(self, sock, seconds):
        self._socket, self._seconds, self._began = sock, seconds, False

    def __getattr__(self, name):
        return getattr(self._socket, name)

    def send(self, data):
        if self._began:
            threading.Event().wait(self._seconds * (random.random() < 0.2))
        self._began = data == b"C"
        return self._socket.send(data)


def until_told():
    """Return an event that SIGTERM sets."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def serve(directory, addresses, logs, run, sessions=0, slow=0.0, mutant=None, kept=None, flusher=False, fuse=None):
    """Serve a storage, with sessions in this process that commit as well; every flush may take `slow` seconds."""
    plant(mutant)
    if fuse is not None:
        failpoints.hook = lambda name: name == fuse and os.kill(os.getpid(), signal.SIGKILL)
    if kept is not None:
        desk.History = partial(desk.History, kept=kept)
    if flusher:
        groups.QUICK = -1.0
    stop = until_told()
    with BerkeleyDBStorage(directory, garbage_collection=GarbageThread(grace=0, interval=0.01)) as storage:
        if slow:
            slow_down(storage.engine.environment, slow)
        with Server(storage, addresses):
            workers = [
                Worker(f"inside{run}.{n}", storage.session, Path(logs, f"inside{run}.{n}"), inside=True)
                for n in range(sessions)
            ]
            threads = [threading.Thread(target=worker.run, args=(stop,)) for worker in workers]
            for thread in threads:
                thread.start()
            print("ready", flush=True)
            stop.wait()
            for thread in threads:
                thread.join()


def plant(mutant):
    if mutant is not None:
        setattr(*mutants.OVER_KILLS[mutant])


def slow_down(environment, seconds):
    flush, pause = environment.flush, threading.Event()

    def slowly():
        pause.wait(random.uniform(0, seconds))
        flush()

    environment.flush = slowly


def work(name, clients, logs, mutant=None):
    """Be some clients, each in a thread: pairs of a kind and an address."""
    plant(mutant)
    stop = until_told()
    threads = []
    for number, (kind, address) in enumerate(clients):
        own = f"{name}.{number}.{kind}"
        worker = Worker(own, lambda k=kind, a=address: connect(k, a), Path(logs, own), slow=0.03 * (kind == "new-slow"))
        threads.append(threading.Thread(target=worker.run, args=(stop,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def connect(kind, address):
    if kind.startswith("old"):
        host, _, port = address.rpartition(":")
        try:
            found = DurusClient(address=port if host == "unix" else (host, int(port)))
        except AssertionError as error:  # nobody listens
            raise ConnectionError(str(error)) from None
        if kind == "old-slow":
            found.s = Slow(found.s, 0.03)
        return found
    prefetch = 50 if kind == "new-ahead" else 0
    return ClientStorage(address, prefetch=prefetch, timeout=0.3 if kind == "new-hasty" else 30)


def main():
    logging.getLogger("berkeleydb_storage").setLevel(logging.ERROR)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            run(job)
        print(pid, flush=True)


def run(job):
    code = 1
    try:
        os.close(0)
        globals()[job.pop("function")](**job)
        code = 0
    except BaseException:
        traceback.print_exc()
        print("failed", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
