"""Keys of encrypted storages: where they come from, and what is derived from them. Any thread may call everything.

A key is a text. Berkeley DB derives two from it, each with one hash: one for AES with 128 bits, and one for the
checksums of pages and of records in the log. To try a key takes no longer than that, so it has to be long and random.

Invariants:

1. No key is in a message, a log line, or a representation.
2. A key is never taken from an argument of a process, which every other process can read.
"""

from __future__ import annotations

import hmac
import os
import stat
import subprocess
from pathlib import Path

from berkeleydb_storage import keyed
from berkeleydb_storage.errors import KeySourceError, OptionError

VARIABLE = "DURUS_BDB_KEY"
"""The environment variable that may hold a key."""
COMMAND_SECONDS = 60.0
"""How long a command may take to print a key."""
LONGEST = 4096
"""Bytes of a key, and of what is read to find one."""

_CHECK = b"berkeleydb_storage key check"
_SALT = 16


def require_key(key: object) -> None:
    """Refuse what cannot be a key.

    Raises:
        OptionError: it is not a text, or is empty, too long, or has a character that cannot be in one.
    """
    if not isinstance(key, str) or not key:
        raise OptionError("key=… takes a text that is not empty, or None: `openssl rand -base64 32` makes a good one")
    if "\0" in key or len(key.encode(errors="replace")) > LONGEST or key != key.encode(errors="replace").decode():
        raise OptionError(f"key=… has a NUL, half a character, or more than {LONGEST} bytes: make another one")


def mac_key(key: str | None) -> bytes | None:
    """Return what Berkeley DB's checksums are keyed with, for `keyed`; None where nothing is encrypted."""
    return None if key is None else keyed.mac_key(key.encode())


def make_check(key: str) -> str:
    """Return a new text by which `fits` recognises the key, and nobody learns it but by trying."""
    salt = os.urandom(_SALT)
    return f"{salt.hex()}:{_digest(key, salt)}"


def fits(key: str, check: str) -> bool:
    """Return whether a check was made of this key.

    Raises:
        ValueError: it is none.
    """
    salt, _, digest = check.partition(":")
    return hmac.compare_digest(_digest(key, bytes.fromhex(salt)), digest)


def _digest(key: str, salt: bytes) -> str:
    return hmac.new(key.encode(), _CHECK + salt, "sha256").hexdigest()


def key_from_file(path: str | os.PathLike[str]) -> str:
    """Return the first line of a file, without white space around it.

    Raises:
        KeySourceError: it cannot be read, has no key, or may be read by others than its owner.
    """
    where = Path(path)
    try:
        with where.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise KeySourceError(f"the key file {where} may be read or changed by others: chmod 600 {where}")
            line = file.readline(LONGEST + 2)
    except OSError as error:
        raise KeySourceError(f"the key file {where} cannot be read ({error.strerror}): mend that") from error
    return _key_in(line, f"the key file {where}")


def key_from_command(command: str) -> str:
    """Return the first line that a command of the shell prints, without white space around it.

    What it prints to standard error goes there.

    Raises:
        KeySourceError: it fails, takes longer than `COMMAND_SECONDS`, or prints no key.
    """
    what = "the command for the key"
    try:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = f"took longer than {COMMAND_SECONDS:g} s" if isinstance(error, subprocess.TimeoutExpired) else error
        raise KeySourceError(f"{what} failed ({why}): run it by hand") from None
    if done.returncode:
        raise KeySourceError(f"{what} failed with exit code {done.returncode}: run it by hand")
    return _key_in(done.stdout.partition(b"\n")[0], what)


def key_from_environment() -> str | None:
    """Return the key in the environment variable `VARIABLE`; None where that is not set.

    Raises:
        KeySourceError: it is empty, or no text.
    """
    found = os.environb.get(VARIABLE.encode())
    return None if found is None else _key_in(found, f"the environment variable {VARIABLE}")


def _key_in(line: bytes, what: str) -> str:
    try:
        key = line.decode().strip()
        require_key(key)
    except (UnicodeDecodeError, OptionError):
        raise KeySourceError(
            f"{what} has no key in its first line: a key is a text of at most {LONGEST} bytes"
        ) from None
    return key
