"""Short programs of a few clients, interleaved in every way there is, at a server of ours and at Durus' own.

A program is a text such as ``"rx wy c"``: read x, change y, commit; ``a`` aborts, ``nx`` gives x a new child, ``dx``
drops that, ``ux`` uses it. Each client runs it on a ``Connection``; after a conflict it aborts, and goes on with its
next step. A schedule says whose step is next. What comes out is what each step has seen: a value, that it committed, or
which conflict it met.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import count

from concurrency import PATIENCE
from durus.client_storage import ClientStorage as DurusClient
from durus.connection import Connection
from durus.error import ReadConflictError, WriteConflictError
from durus.persistent import Persistent
from durus.storage_server import StorageServer
from histories import ABSENT, COMMITTED, GONE, READ, REFUSED, Transaction, faults

from berkeleydb_storage import BerkeleyDBStorage, CheckpointNever, GarbageManual
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.server import Server

CELLS = "xyz"


class Cell(Persistent):
    """One number, and which transaction has written it."""

    def __init__(self):
        self.value, self.version, self.child = 0, "", None


def interleavings(*lengths):
    """Yield every order of so many steps of each client, as tuples of the numbers of the clients."""
    if not any(lengths):
        yield ()
    for number, steps in enumerate(lengths):
        if steps:
            for rest in interleavings(*lengths[:number], steps - 1, *lengths[number + 1 :]):
                yield (number, *rest)


class World:
    """Connections of several clients to one server, in this thread."""

    def __init__(self, storages):
        """`storages` are those of the clients."""
        self.connections = [Connection(storage) for storage in storages]
        self._clock = count(1)
        self._runs = count()
        for name in CELLS:
            self.connections[0].get_root()[name] = Cell()
        self.connections[0].commit()

    def run(self, programs, schedule, warm):
        """Run one schedule; return what came out, and what is wrong with the history.

        Args:
            programs: of each client, as texts.
            schedule: numbers of clients.
            warm: whether each client has all objects in its cache at the beginning.
        """
        self._begin(warm)
        prefix = next(self._runs)
        clients = [_Client(f"{prefix}.{n}", c, self._clock) for n, c in enumerate(self.connections[: len(programs)])]
        steps = [iter(program.split()) for program in programs]
        outcomes = [(number, clients[number].step(next(steps[number]))) for number in schedule]
        history = [each for client in clients for each in client.history]
        first = self.connections[0]
        first.abort()
        cells = {name: first.get_root()[name] for name in CELLS}
        final = {name: cell.version for name, cell in cells.items()}
        final |= {_name_of(cell.child): cell.child.version for cell in cells.values() if cell.child is not None}
        return outcomes, faults(history, {name: version for name, version in final.items() if version})

    def _begin(self, warm):
        first = self.connections[0]
        first.abort()
        for name in CELLS:
            first.get_root()[name].__init__()
        first.commit()
        for each in self.connections:
            each.abort()
            for name in CELLS:
                cell = each.get_root()[name]
                if warm:
                    assert cell.value == 0
                elif not cell._p_is_ghost():
                    cell._p_set_status_ghost()
            each.transaction_serial += 1


class _Client:
    """Runs the steps of one client, and takes down what its transactions do."""

    def __init__(self, name, connection, clock):
        self._name, self._connection, self._clock = name, connection, clock
        self._numbers = count()
        self.history = []
        self._new(synced=True)

    def _new(self, *, synced):
        name = f"{self._name}.{next(self._numbers)}"
        self._now = Transaction(name, next(self._clock), synced=synced)
        self.history.append(self._now)

    def step(self, text):
        try:
            return getattr(self, f"_{text[0]}")(*text[1:])
        except (ReadConflictError, WriteConflictError) as error:
            self._end(REFUSED)
            begin = next(self._clock)
            self._connection.abort()
            self._new(synced=True)
            self._now.begin = begin
            return "read conflict" if isinstance(error, ReadConflictError) else "write conflict"

    def _end(self, outcome):
        self._now.end, self._now.outcome = next(self._clock), outcome

    def _r(self, name):
        cell = self._connection.get_root()[name]
        value, version = cell.value, cell.version
        known = self._now.writes.get(name, self._now.reads.get(name, version))
        assert known == version, "it was changed within a transaction"
        self._now.reads.setdefault(name, version)
        return value

    def _w(self, name):
        self._r(name)
        cell = self._connection.get_root()[name]
        cell.value += 1
        cell.version = self._now.writes[name] = self._now.name
        return cell.value

    def _n(self, name):
        self._d(name)
        child = self._connection.get_root()[name].child = Cell()
        child.version = self._now.name
        child.value = name
        self._now.reads[_name_of(child)] = ABSENT
        self._now.writes[_name_of(child)] = child.version
        return "new"

    def _d(self, name):
        self._w(name)
        cell = self._connection.get_root()[name]
        child, cell.child = cell.child, None
        if child is None:
            return None
        if self._now.writes.pop(_name_of(child), None):  # made by this transaction
            del self._now.reads[_name_of(child)]
        else:
            self._now.reads[_name_of(child)] = child.version
            self._now.writes[_name_of(child)] = GONE + self._now.name
        return "dropped"

    def _u(self, name):
        self._r(name)
        child = self._connection.get_root()[name].child
        if child is None:
            return None
        if _name_of(child) not in self._now.writes:
            self._now.reads[_name_of(child)] = child.version
        return child.value

    def _c(self):
        """A commit of nothing looks what others did; any other begins the next transaction with what is known."""
        writes = bool(self._now.writes)
        begin = next(self._clock)
        self._connection.commit()
        self._end(COMMITTED if writes else READ)
        self._new(synced=not writes)
        self._now.begin = begin if not writes else self._now.begin
        return "committed"

    def _a(self):
        self._end(REFUSED)
        begin = next(self._clock)
        self._connection.abort()
        self._new(synced=True)
        self._now.begin = begin
        return "aborted"


def _name_of(child):
    """Return the name of a child, which is never changed."""
    return f"child {child.version} {child.value}"


# --- servers and clients


class Reference:
    """Durus' own server on a storage, in a thread."""

    def __init__(self, storage, path):
        self._server = StorageServer(storage, address=str(path))
        self.path = str(path)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        while not self._listens():
            assert self._thread.is_alive()
            time.sleep(0.005)

    def _listens(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return not probe.connect_ex(self.path)

    def _serve(self):
        with suppress(SystemExit):
            self._server.serve()

    def close(self):
        quitter = DurusClient(address=self.path)
        quitter.s.sendall(b"Q")
        self._thread.join(PATIENCE)
        for each in (quitter.s, *self._server.sockets):
            each.close()


def old(path, storage=None):
    """Return Durus' client."""
    return DurusClient(address=str(path))


def new(path, storage=None):
    """Return ours."""
    return ClientStorage(f"unix:{path}")


def ahead(path, storage=None):
    """Return ours, with prefetch."""
    return ClientStorage(f"unix:{path}", prefetch=100)


def inside(path, storage):
    """Return a session in the process of the server."""
    return storage.session()


@contextmanager
def world_of(directory, kinds, **options):
    """Serve a new storage in `directory` to clients of these kinds."""
    with ExitStack() as stack:
        options = {"garbage_collection": GarbageManual(), "checkpoint": CheckpointNever(), **options}
        storage = stack.enter_context(BerkeleyDBStorage(directory, **options))
        path = directory.parent / f"{directory.name}.sock"
        stack.enter_context(Server(storage, f"unix:{path}"))
        storages = [kind(path, storage) for kind in kinds]
        for each in storages:
            stack.callback(each.close)
        yield World(storages)


@contextmanager
def reference_of(storage, path, clients):
    """Serve a storage by Durus' own server to so many of its clients."""
    with ExitStack() as stack:
        reference = Reference(storage, path)
        stack.callback(reference.close)
        storages = [old(path) for _ in range(clients)]
        for each in storages:
            stack.callback(each.close)
        yield World(storages)


def pairs(programs):
    """Return each program with each, itself included, in one order."""
    return [(one, other) for at, one in enumerate(programs) for other in programs[at:]]
