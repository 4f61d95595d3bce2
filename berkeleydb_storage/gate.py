"""The gate to the tables of an open storage: one mutex, and whatever shuts it for good.

Owns the mutex, and says whether the tables may still be used. Everything that reads or writes a table goes through it,
from any thread; a method says if its caller holds the mutex.

Invariants:

1. Every read and write of a table is done under `lock`.
2. What was refused once is refused until the storage is opened again; `objects` then raises the reason too.
3. A forked child's copy refuses everything, has a mutex that nobody holds, and never closes the handles.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

from berkeleydb_storage.environment import LIBRARY_ERRORS, OBJECTS, Environment, Table, explain
from berkeleydb_storage.errors import DamagedError, StorageClosed


class _Refusing:
    """Stands in for the table of objects when it must not be used any more."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error.with_traceback(None)  # an error that is raised again keeps the frames of all times before

    def __getitem__(self, key: bytes) -> NoReturn:
        raise self._error.with_traceback(None)


class Gate:
    """The mutex of an open storage, its tables, and what keeps them from being used, if there is something."""

    def __init__(self, environment: Environment) -> None:
        """Open it to the tables of `environment`."""
        self.lock = threading.Lock()
        """The mutex; another one in a forked child."""
        self.environment = environment
        self.objects: Table = environment.tables[OBJECTS]
        self.failure: Exception | None = None
        """What keeps the tables from being used, if there is something; guarded by lock."""
        _watch_forks()
        _gates.add(self)

    @property
    def path(self) -> Path:
        """The directory of the storage, for messages."""
        return self.environment.path

    def require_open(self) -> None:
        """Raise what it is that keeps the tables from being used, if there is something."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    def refuse(self, error: Exception) -> None:
        """Answer everything from now on with `error`. The caller holds the mutex."""
        self.failure = error
        self.objects = _Refusing(error)

    def failed(self, error: Exception) -> Exception:
        """Return what an error of the library means; refuse everything if the library has stopped. Under the mutex."""
        explained = explain(error, self.path)
        if isinstance(explained, DamagedError):
            self.refuse(explained)
        return explained

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what an error of the library means in its place. The caller holds the mutex."""
        try:
            yield
        except LIBRARY_ERRORS as error:
            raise self.failed(error) from error

    def disown(self) -> None:
        """Keep a forked child from touching the files, of which its parent is the owner."""
        if isinstance(self.failure, StorageClosed):
            return
        self.lock = threading.Lock()  # a thread that the child does not have may hold the other
        self.environment.disown()
        self.refuse(
            StorageClosed(
                f"{self.path} was opened by process {os.getppid()}, and this is its child: "
                "open storages after forking, one owner per directory, or use a server"
            )
        )


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_disown_all)


def _disown_all() -> None:
    for gate in list(_gates):
        gate.disown()
