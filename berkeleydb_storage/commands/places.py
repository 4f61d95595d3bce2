"""The place that backups and archives are in, as an argument: a directory or a URL, and how to get there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from berkeleydb_storage.backup.stores import Store, is_url, open_store
from berkeleydb_storage.errors import BackupError, OptionError


def add_place(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the argument PLACE."""
    parser.add_argument("place", metavar="PLACE", help=help)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how to get there."""
    parser.add_argument(
        "--store-options",
        metavar="FILE",
        help="JSON with what fsspec needs for a URL, such as credentials, where the environment does not say it",
    )


def store_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the file of `--store-options` says.

    Raises:
        OptionError: it cannot be read, or is no JSON object.
    """
    if arguments.store_options is None:
        return {}
    try:
        values = json.loads(Path(arguments.store_options).read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(f"--store-options {arguments.store_options}: {error}") from error
    if not isinstance(values, dict):
        raise OptionError(f"--store-options {arguments.store_options} holds no JSON object, such as {{}}")
    return values


def place(arguments: argparse.Namespace, *, create: bool = False) -> Store:
    """Return the store at PLACE; `create` makes the directory where it is not there.

    Raises:
        BackupError: it cannot be used. OptionError: as `store_options`.
    """
    if create and not is_url(arguments.place):
        parent = Path(arguments.place).absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackupError(f"{parent} cannot be made ({error}): give another place, or mend that") from error
    return open_store(arguments.place, create=create, options=store_options(arguments))
