"""The command ``durus-bdb``: parses its arguments, runs one of the `commands`, explains what went wrong.

The only place that configures logging and signals; nothing of both is left changed when `main` returns.

Exit codes: 0; 1: ``check`` or ``verify`` found faults, ``why`` garbage, ``salvage`` lost something; 2: an error, in one
line on standard error; 130 and 143:
ended by SIGINT or SIGTERM; 141: nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from durus.error import DurusKeyError

from berkeleydb_storage.commands import ALL
from berkeleydb_storage.commands.console import PROGRAM, Console, Interrupted, Interrupts, complain
from berkeleydb_storage.environment import LIBRARY
from berkeleydb_storage.errors import BerkeleyDBStorageError
from berkeleydb_storage.version import __version__

ERROR = 2
SIGNAL = 128
BROKEN_PIPE = 141


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with all commands."""
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Storages for Durus on Berkeley DB: moves data in and out, checks, inspects.",
        epilog=f"`{PROGRAM} COMMAND --help` tells more about a command, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}, Berkeley DB {LIBRARY}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in ALL:
        command.add_to(commands)
    return parser


def command_names() -> list[str]:
    """Return the names of all commands."""
    return [command.name for command in ALL]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command in the main thread, and return its exit code.

    Args:
        arguments: the command line without the program's name; None: that of the process.

    Raises:
        SystemExit: the arguments are wrong, or ask for help.
    """
    parsed = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with Interrupts() as interrupts, Console(parsed, interrupts) as console:
        try:
            code: int = parsed.run(parsed, console)
            sys.stdout.flush()
            return code
        except Interrupted as signal:
            complain(f"interrupted{'; ' if console.advice else ''}{console.advice}")
            return SIGNAL + signal.number
        except BrokenPipeError:
            _discard_output()
            return BROKEN_PIPE
        except DurusKeyError as error:
            complain(f"object {error} does not exist")
        except BerkeleyDBStorageError as error:
            complain(error)
        except OSError as error:
            complain(f"{error.filename}: {error.strerror}" if error.filename else error)
        return ERROR


def _discard_output() -> None:
    """Keep the interpreter from writing what is left to a pipe that nobody reads, when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
