"""The command that keeps a password file: passwd."""

from __future__ import annotations

import argparse
import getpass
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from berkeleydb_storage.auth.hashing import LONGEST_PASSWORD
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile
from berkeleydb_storage.commands.command import Command
from berkeleydb_storage.commands.console import SIGNALS, Console, Interrupted
from berkeleydb_storage.errors import OptionError

LONGEST_LINE = 4 * LONGEST_PASSWORD + 2
"""Bytes of standard input that are read."""
LEVELS = ("read", "write", "admin")


def _passwd(arguments: argparse.Namespace, console: Console) -> int:
    file = PasswordFile(arguments.file)
    if arguments.list:
        return _list(file, arguments, console)
    if arguments.user is None:
        raise OptionError(f"a user is missing, to be changed in {arguments.file}: only --list needs none")
    if arguments.remove:
        file.remove(arguments.user)
        done = "removed"
    elif arguments.keep:
        if arguments.rights is None:
            raise OptionError(
                f"with --keep only the rights of {arguments.user} change: say which, such as --rights read"
            )
        file.set_rights(arguments.user, Rights.parse(arguments.rights))
        done = "changed the rights of"
    else:
        rights = None if arguments.rights is None else Rights.parse(arguments.rights)
        added = file.set(arguments.user, _password(arguments.user), rights)
        done = "added" if added else "changed the password of"
    values = {"file": arguments.file, "user": arguments.user, "done": done.partition(" ")[0]}
    console.result(values, f"{done} {arguments.user} in {arguments.file}; a server that runs sees it after SIGHUP")
    return 0


def _list(file: PasswordFile, arguments: argparse.Namespace, console: Console) -> int:
    users = [user for user in file.users() if arguments.user in (None, user.name)]
    values = {
        "file": arguments.file,
        "users": [{"user": user.name, "rights": user.rights.text} for user in users],
    }
    lines = [f"{user.rights.text:8}{user.name}" for user in users]
    console.result(values, "\n".join(lines) or f"{arguments.file} has no such user", essential=True)
    return 0


def _password(user: str) -> str:
    """Return the new password: asked for twice on a terminal, else a line of standard input."""
    if not sys.stdin.isatty():
        return _line(user)
    with interruptible():
        password = getpass.getpass(f"new password of {user}: ")
        again = getpass.getpass("once more: ")
    if password != again:
        raise OptionError(f"the passwords of {user!r} were not the same: nothing was changed")
    return password


def _line(user: str) -> str:
    data = sys.stdin.buffer.readline(LONGEST_LINE)
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise OptionError(f"the password of {user!r} on standard input is no text: UTF-8 is expected") from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Have a signal end a question at once, and the terminal get its echo back."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the password file; made if it does not exist")
    parser.add_argument("user", metavar="USER", nargs="?", help="the user's name; with --list not needed")
    parser.add_argument("--rights", choices=LEVELS, help="what he may do (default: as before, write for a new user)")
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--keep", action="store_true", help="keep the password, change the rights only")
    doing.add_argument("--remove", action="store_true", help="remove the user")
    doing.add_argument("--list", action="store_true", help="list users and rights, change nothing")


PASSWD = Command(
    "passwd",
    "add a user to a password file, change, remove or list users",
    "The password is asked for twice on a terminal; otherwise it is the first line of standard input. "
    "It is never an argument, which others could see. What is stored is a hash that costs 16 MiB and some 30 ms for "
    "each guess. `admin` includes `write`, which includes `read`.",
    "durus-bdb passwd users ada --rights admin",
    _arguments,
    _passwd,
)
