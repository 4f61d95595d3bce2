"""What a command is, and the arguments that several have in common."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import fill

from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.keys import VARIABLE, key_from_command, key_from_environment, key_from_file
from berkeleydb_storage.options import DEFAULT_CACHE

WIDTH = 80
"""Of the descriptions."""
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


@dataclass(frozen=True)
class Command:
    """One command of ``durus-bdb``."""

    name: str
    summary: str
    """One line: what it does."""
    description: str
    """What a user has to know: what is written, what happens on errors, exit codes."""
    example: str
    """A command line, and perhaps what it prints."""
    configure: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments."""
    run: Callable[[argparse.Namespace, Console], int]
    """Does it, and returns the exit code."""

    def add_to(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the parser of the command."""
        parser = commands.add_parser(
            self.name,
            help=self.summary,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.\n\n{fill(self.description, WIDTH)}",
            epilog=f"example:\n  {self.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.configure(parser)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no result in words: only errors")
        parser.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice: everything")
        parser.set_defaults(run=self.run)


def add_directory(parser: argparse.ArgumentParser, help: str = "the directory of the storage") -> None:
    """Add the argument DIRECTORY, and how much memory to use for it."""
    parser.add_argument("directory", metavar="DIRECTORY", help=help)
    parser.add_argument(
        "--cachesize",
        type=size,
        default=DEFAULT_CACHE,
        metavar="BYTES",
        help="memory for pages, such as 64M (default) or 1G",
    )
    add_key(parser)


def add_key(parser: argparse.ArgumentParser, prefix: str = "", of: str = "the storage, if it is encrypted") -> None:
    """Add the options --key-file and --key-command; `key_of` with the same prefix, such as "new-", returns the key."""
    group = parser.add_mutually_exclusive_group()
    where = "" if prefix else f"; without either: ${VARIABLE}"
    group.add_argument(
        f"--{prefix}key-file", metavar="FILE", help=f"its first line is the key of {of}; for its owner's eyes only"
    )
    group.add_argument(
        f"--{prefix}key-command", metavar="COMMAND", help=f"the first line that it prints is the key of {of}{where}"
    )


def key_of(arguments: argparse.Namespace, prefix: str = "") -> str | None:
    """Return the key that the options of `add_key` lead to, or else, without a prefix, the environment; or None.

    Raises:
        KeySourceError: there is none where it is to come from.
    """
    names = prefix.replace("-", "_")
    if (file := getattr(arguments, f"{names}key_file")) is not None:
        return key_from_file(file)
    if (command := getattr(arguments, f"{names}key_command")) is not None:
        return key_from_command(command)
    return None if prefix else key_from_environment()


def size(text: str) -> int:
    """Return the number of bytes in a text such as "64M"."""
    found = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 1000000, 64M or 1G")
    return int(found[1]) << _UNITS[found[2]]


def oid(text: str) -> int:
    """Return the number of an object, given as a decimal number or, such as "0xff", a hexadecimal one."""
    found = re.fullmatch(r"(\d+)|0x([0-9a-f]+)", text.lower())
    number = -1 if found is None else int(found[1]) if found[1] else int(found[2], 16)
    if not 0 <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of an object")
    return number
