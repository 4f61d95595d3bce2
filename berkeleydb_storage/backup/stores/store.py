"""What every place is that backups and archives are put in: named objects that are whole, and never change.

Pure but for the `Store` that somebody else implements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

from berkeleydb_storage.errors import BackupError

CHUNK = 1 << 20
"""Bytes that are read at a time."""
HIDDEN = ".making"
"""Below the root: what is not whole yet. Never listed."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]*@")
_QUERY = re.compile(r"(://[^\s?#'\"]*)[?#][^\s'\"]*")
_SECRET = re.compile(r"(?i)\b((?:[a-z_]*(?:key|secret|token|password|passwd|sig|signature))=)[^\s;&,'\"]+")


class Store(Protocol):
    """A place with objects. Any thread may call it, several at once.

    Every method raises `BackupError` with what is to be done, `StoreUnreachable` where trying again may help.
    """

    @property
    def url(self) -> str:
        """Where it is, for people: without credentials."""

    @property
    def compressed(self) -> bool:
        """Whether what is put there is to be compressed before."""

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the objects that are whole: name -> bytes, sorted by name.

        Args:
            prefix: whole parts of names: "a/b" gives "a/b/c", and not "a/bc". One that is not there gives nothing.
        """

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of an object. `BackupError` where there is none of that name."""

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Make an object: whole or not at all, and on the disk there when this returns.

        What the iterable raises ends it, and is passed on; nothing is left then.

        Raises:
            ObjectExists: there is one of that name, which stays as it is.
        """

    def remove(self, *names: str) -> None:
        """Remove objects, in that order; no error where one is gone."""


def verify_name(name: str) -> str:
    """Return a name of an object, or a prefix of some.

    Raises:
        BackupError: it is no such name.
    """
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise BackupError(f"{name!r} is no name of an object: letters, digits and _.=+- in parts, with / in between")
    return name


def without_credentials(text: str) -> str:
    """Return a URL, or a message with some, without passwords and who they are of, signatures and keys."""
    text = _QUERY.sub(r"\1", _CREDENTIALS.sub("", text))
    return _SECRET.sub(r"\1…", text)
