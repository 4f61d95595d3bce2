"""Places that backups and archives are put in: a directory, or whatever fsspec knows by a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from berkeleydb_storage.backup.stores.local import LocalStore
from berkeleydb_storage.backup.stores.remote import TIMEOUT, FsspecStore
from berkeleydb_storage.backup.stores.store import Store, without_credentials
from berkeleydb_storage.errors import BackupError

__all__ = ["FsspecStore", "LocalStore", "Store", "is_url", "open_store"]


def is_url(where: str | os.PathLike[str]) -> bool:
    """Tell whether this is a URL, and no path."""
    scheme, found, _ = os.fspath(where).partition("://")
    return bool(found) and scheme.replace("+", "").replace("::", "").isalnum()


def open_store(
    where: str | os.PathLike[str],
    *,
    create: bool = False,
    require: bool = True,
    options: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT,
) -> Store:
    """Return the store at a path or URL. One behind a URL is not spoken to yet.

    Args:
        where: a path, ``file:///path``, or a URL that fsspec knows, such as ``abfs://container/folder``.
        create: make the directory where it is not there, though not those above it. A container or bucket has to be.
        require: whether a directory has to be there now, and not only when it is used.
        options: what fsspec's file system takes, such as credentials; what is not given it finds by itself, in the
            environment and in fsspec's own configuration.
        timeout: seconds that a request may take.

    Raises:
        BackupError: the path is no directory; or what the URL needs is not installed; or there is an error in it.
    """
    if not is_url(where):
        return LocalStore(where, create=create, require=require)
    url = os.fspath(where)
    if "::" in url:
        raise BackupError(f"{without_credentials(url)} is a chain of URLs: give one that is not")
    if urlsplit(url).scheme in ("file", "local"):
        if options:
            raise BackupError(f"{url} is a directory: it takes no options")
        return LocalStore(Path(unquote(urlsplit(url).path)), create=create, require=require)
    return FsspecStore(url, options or {}, timeout=timeout)
