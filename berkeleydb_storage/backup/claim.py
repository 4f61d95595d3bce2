"""Who archives a storage to a place: one at a time, in whatever process.

Owns a file for each place in the directory of the storage, locked with flock by who does, with its process id in it.
A process that is killed has let go of it; a forked child has none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from weakref import WeakSet

PREFIX = "archiving-"


class Claim:
    """The right to archive. For one thread at a time."""

    def __init__(self, directory: Path, url: str) -> None:
        """Claim nothing yet."""
        self._path = directory / f"{PREFIX}{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Have it from now on, and return True; False where another has it.

        Raises:
            OSError: the file cannot be made.
        """
        while self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else who had it removed it just now
                    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                    self._descriptor, descriptor = descriptor, -1
                    _watch_forks()
                    _claims.add(self)
            except BlockingIOError:
                return False
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return True

    def holder(self) -> int | None:
        """Return the process id of who has it, as far as that is known."""
        with suppress(OSError, ValueError):
            return int(self._path.read_bytes())
        return None

    def release(self) -> None:
        """Let another have it. Works twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                self._path.unlink()
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # whoever inherited the descriptor would keep it locked
            os.close(descriptor)

    def let_go(self) -> None:
        """Forget it in a forked child: it is the parent's."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_claims: WeakSet[Claim] = WeakSet()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_let_go_of_all)


def _let_go_of_all() -> None:
    for claim in list(_claims):
        claim.let_go()
