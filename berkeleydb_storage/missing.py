"""What stands in a salvaged storage for an object that was lost.

Durus makes an object of the class that whoever refers to it remembers, so that the state has to say it: unpickling it
raises. Nobody gets a wrong value, whatever the class. Replace the reference to it, or delete it: neither loads it.
"""

from __future__ import annotations

from typing import NoReturn

from durus.persistent import Persistent

from berkeleydb_storage.errors import DamagedError


class Missing(Persistent):  # type: ignore[misc]
    """An object that was lost. Any use of it raises `DamagedError`, which names it."""

    def __repr__(self) -> str:
        """Name it, without loading it."""
        oid = self._p_oid
        return f"<{type(self).__name__}: object {int.from_bytes(oid, 'big') if oid else '?'} was lost>"


def lost(number: int) -> NoReturn:
    """Say that an object was lost; the state of a `Missing` calls this.

    Raises:
        DamagedError: always.
    """
    raise DamagedError(
        f"object {number} was lost when its storage was damaged, and could not be salvaged: restore it from a backup, "
        "or replace what refers to it"
    )
