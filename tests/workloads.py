"""What the clients of a server do at random, each transaction taken down as `histories` has it.

Accounts with a constant sum, counters, pairs that must not both be taken from, lists that are appended to, things that
are moved between boxes, made and thrown away, many cells at once, and readers of it all.
"""

import os
import random
import sys
import threading
import time

from durus.connection import Connection
from durus.error import ConflictError, ProtocolError
from durus.persistent import Persistent
from histories import ABSENT, COMMITTED, GONE, READ, REFUSED, UNKNOWN, Transaction, save

from berkeleydb_storage.client import ClientStorage, Fate
from berkeleydb_storage.errors import BerkeleyDBStorageError, CommitUnknown, ServerUnreachable, WireError

ACCOUNTS, COUNTERS, PAIRS, LISTS, BOXES, MANY = 8, 3, 3, 2, 4, 150
BALANCE = 100
THINGS = 6
"""In a box, more or less."""
PAUSE = 0.005
LOST = (OSError, BerkeleyDBStorageError, ProtocolError)
KINDS = ["transfer"] * 5 + ["increment", "take", "take", "append", "move", "make", "throw", "audit", "look", "look"]
SELDOM = 0.01
"""The chance that many cells are changed at once."""


class Cell(Persistent):
    """A value, and the transaction that has written it."""

    def __init__(self, value):
        self.value, self.version = value, ABSENT


def begin_values():
    """Return name -> value of what is there from the beginning."""
    values = {f"account {number}": BALANCE for number in range(ACCOUNTS)}
    values |= {f"counter {number}": 0 for number in range(COUNTERS)}
    values |= {f"{side} {number}": 5 for side in ("left", "right") for number in range(PAIRS)}
    values |= {f"list {number}": () for number in range(LISTS)}
    values |= {f"many {number}": 0 for number in range(MANY)}
    return values | {f"box {number}": {} for number in range(BOXES)}


def fill(storage):
    """Make what is there from the beginning; its versions are `ABSENT`."""
    connection = Connection(storage)
    connection.get_root().update({name: Cell(value) for name, value in begin_values().items()})
    connection.commit()


def everything(storage):
    """Return name -> (version, value) of all that is there."""
    root = Connection(storage).get_root()
    found = {name: (cell.version, cell.value) for name, cell in root.items()}
    for number in range(BOXES):
        found |= {name: (thing.version, thing.value) for name, thing in root[f"box {number}"].value.items()}
    return found


def wrong_values(found, history, applied):
    """Return what is wrong with the values at the end, beside the versions."""
    faults = []
    total = sum(found[f"account {number}"][1] for number in range(ACCOUNTS))
    if total != ACCOUNTS * BALANCE:
        faults.append(f"the accounts have {total} in all")
    for number in range(PAIRS):
        if found[f"left {number}"][1] + found[f"right {number}"][1] < 0:
            faults.append(f"pair {number} is below zero")
    for number in range(LISTS):
        writers = {each.name for each in history if each.name in applied and f"list {number}" in each.writes}
        entries = found[f"list {number}"][1]
        if set(entries) != writers or len(entries) != len(writers):
            faults.append(f"list {number} has {len(entries)} entries, of {len(writers)} transactions")
    for number in range(COUNTERS):
        writers = sum(each.name in applied and f"counter {number}" in each.writes for each in history)
        if found[f"counter {number}"][1] != writers:
            faults.append(f"counter {number} is {found[f'counter {number}'][1]} after {writers} increments")
    return faults


class Worker:
    """One client: does one transaction after the other, and takes them down."""

    def __init__(self, name, connect, log, *, inside=False, slow=0.0):
        """Begin.

        Args:
            name: unique.
            connect: returns a storage, or raises `OSError`, or something of `LOST`.
            log: the file to write to.
            inside: whether it works in the process of the server.
            slow: seconds that it takes for its answer within a commit, now and then.
        """
        self.name, self._connect, self._inside, self._slow = name, connect, inside, slow
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._random = random.Random(name)
        self._number = 0
        self._storage = self._connection = None
        self._warm = False

    def run(self, stop):
        """Work until `stop` is set."""
        while not stop.is_set():
            try:
                self._attempt()
            except LOST as error:
                self._lose(error)
                stop.wait(PAUSE)
        os.close(self._log)

    def _lose(self, error):
        """Begin anew after the server has gone, but for a storage that connects again by itself."""
        if isinstance(error, WireError):
            complain(f"{self.name}: {error!r}")
        self._connection, self._warm = None, False
        if not isinstance(self._storage, ClientStorage):
            if self._storage is not None and hasattr(self._storage, "s"):
                self._storage.s.close()
            self._storage = None

    def _root(self):
        if self._connection is None:
            if self._storage is None:
                self._storage = self._connect()
                self._dawdle()
            self._connection = Connection(self._storage)
            self._warm = False
        return self._connection.get_root()

    def _dawdle(self):
        if self._slow and isinstance(self._storage, ClientStorage):
            end, pause = self._storage.end, threading.Event()

            def slowly(handle):
                end(lambda oids: (pause.wait(self._slow * (self._random.random() < 0.2)), handle(oids)))

            self._storage.end = slowly

    # --- one transaction

    def _attempt(self):
        begin = time.monotonic_ns()
        synced = not self._warm or self._random.random() < 0.5
        root = self._root()
        if synced:
            self._connection.abort()
        self._number += 1
        now = self._now = Transaction(f"{self.name}/{self._number}", begin, synced=synced, inside=self._inside)
        kind = "flood" if self._random.random() < SELDOM else self._random.choice(KINDS)
        try:
            getattr(self, f"_{kind}")(root)
            if now.writes:
                self._commit()
            else:
                now.outcome = READ
        except ConflictError:
            now.outcome = REFUSED
            self._warm = False
        except BaseException:
            if not now.end:
                now.outcome = REFUSED
                self._note()
            raise
        self._note()

    def _note(self):
        self._now.end = time.monotonic_ns()
        os.write(self._log, save(self._now).encode())

    def _commit(self):
        now = self._now
        os.write(self._log, save(now).encode())
        try:
            self._connection.commit()
            now.outcome, self._warm = COMMITTED, True
        except ConflictError:
            raise
        except ServerUnreachable:
            now.outcome = REFUSED
            self._note()
            raise
        except CommitUnknown as error:
            self._ask(error)
            self._note()
            raise
        except BaseException:
            self._note()
            raise

    def _ask(self, error):
        """Ask for the fate of a commit until the server is back."""
        while True:
            try:
                fate = self._storage.fate(error)
                break
            except ServerUnreachable:
                continue
        self._now.outcome = {Fate.STORED: COMMITTED, Fate.NOT_STORED: REFUSED, Fate.UNKNOWN: UNKNOWN}[fate]

    def _see(self, name, cell):
        if name not in self._now.reads:
            self._now.reads[name] = cell.version
        return cell.value

    def _change(self, name, cell, value):
        self._see(name, cell)
        cell.value = value
        cell.version = self._now.writes[name] = self._now.name

    def _pick(self, root, what, count):
        name = f"{what} {self._random.randrange(count)}"
        return name, root[name]

    # --- kinds of transactions

    def _transfer(self, root):
        amount = self._random.randrange(10)
        for number, sign in zip(self._random.sample(range(ACCOUNTS), 2), (1, -1), strict=True):
            cell = root[f"account {number}"]
            self._change(f"account {number}", cell, cell.value + sign * amount)

    def _increment(self, root):
        name, cell = self._pick(root, "counter", COUNTERS)
        self._change(name, cell, cell.value + 1)

    def _take(self, root):
        number = self._random.randrange(PAIRS)
        names = [f"left {number}", f"right {number}"]
        values = {name: self._see(name, root[name]) for name in names}
        chosen = self._random.choice(names)
        if sum(values.values()) < 0:
            complain(f"{self._now.name}: a pair has {values}")
        self._change(chosen, root[chosen], values[chosen] + (-1 if sum(values.values()) >= 1 else 3))

    def _append(self, root):
        name, cell = self._pick(root, "list", LISTS)
        self._change(name, cell, (*cell.value, self._now.name))

    def _audit(self, root):
        total = sum(self._see(f"account {number}", root[f"account {number}"]) for number in range(ACCOUNTS))
        if total != ACCOUNTS * BALANCE:
            complain(f"{self._now.name}: the accounts have {total} in all")

    def _look(self, root):
        """Look at much, and change one thing."""
        for name in self._random.sample(sorted(begin_values()), 8):
            self._see(name, root[name])
        self._increment(root)

    def _flood(self, root):
        for number in range(MANY):
            cell = root[f"many {number}"]
            self._change(f"many {number}", cell, cell.value + 1)

    def _move(self, root):
        (one, other) = self._random.sample(range(BOXES), 2)
        source, target = root[f"box {one}"], root[f"box {other}"]
        things = dict(self._see(f"box {one}", source))
        if things:
            name = self._random.choice(sorted(things))
            thing = things.pop(name)
            self._change(name, thing, thing.value + 1)
            self._change(f"box {one}", source, things)
            self._change(f"box {other}", target, {**target.value, name: thing})

    def _make(self, root):
        box, cell = self._pick(root, "box", BOXES)
        things = self._see(box, cell)
        if len(things) < THINGS:
            name = f"thing {self._now.name}"
            thing = Cell(0)
            self._change(name, thing, 0)
            self._change(box, cell, {**things, name: thing})

    def _throw(self, root):
        box, cell = self._pick(root, "box", BOXES)
        things = dict(self._see(box, cell))
        if len(things) > 1:
            name = self._random.choice(sorted(things))
            self._see(name, things.pop(name))
            self._now.writes[name] = GONE + self._now.name
            self._change(box, cell, things)


def complain(text):
    """Say what must not happen: whoever started this process looks at what it says."""
    print(text, file=sys.stderr, flush=True)
