"""The password file: who may come in, and what he may do.

Text in UTF-8, one user a line::

    # comments, empty lines
    ada:write:scrypt,16384,8,1,SALT:STORED KEY,SERVER KEY

with the keys of SCRAM-SHA-256 and the salt in base64. A line ``:secret:KEY:`` has what the answers for users that do
not exist are made of; without it they change when the server restarts, and tell who exists.

1. A file that strangers can read or write is refused, and so is one with a malformed line, whole.
2. A change is atomic, on the disk when it is done, and leaves all other lines as they are.
3. No key is in the ``repr`` of anything here, in an error, or in the log.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from berkeleydb_storage.auth.hashing import (
    KEY_SIZE,
    SALT_SIZE,
    Keys,
    N,
    P,
    Parameters,
    R,
    decode,
    encode,
    keys_of,
    new_parameters,
    normal_name,
)
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.errors import OptionError, PasswordFileError

__all__ = ["PasswordFile", "User", "Users"]

LARGEST_FILE = 4 << 20
"""Bytes, for about 25,000 users."""
NEW_MODE = 0o600
KEPT_MODE = 0o640
"""What of the permissions of an existing file its successor gets."""
FORBIDDEN_MODE = 0o027
SECRET = "secret"
COMMENT = "#"


@dataclass(frozen=True)
class User:
    """A user, as the file has him."""

    name: str
    rights: Rights
    parameters: Parameters = field(repr=False)
    keys: Keys = field(repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def line(self) -> str:
        """His line in the file."""
        keys = f"{encode(self.keys.stored)},{encode(self.keys.server)}"
        return f"{self.name}:{self.rights.text}:{self.parameters}:{keys}"


def _parse(line: str) -> User:
    """Return the user of a line.

    Raises:
        ValueError: it is malformed; what it says holds nothing of the line.
    """
    parts = line.split(":")
    if len(parts) != 4:
        raise ValueError("there are not four fields")
    name, rights, parameters, keys = parts
    if normal_name(name) != name:
        raise ValueError("the name is not in its normal form (NFC)")
    found = [decode(key) for key in keys.split(",")]
    if [len(key) for key in found] != [KEY_SIZE, KEY_SIZE]:
        raise ValueError("there are not two keys")
    return User(name, Rights.parse(rights), Parameters.parse(parameters), Keys(*found))


def _parse_secret(line: str) -> bytes:
    parts = line.split(":")
    if len(parts) != 4 or parts[:2] != ["", SECRET] or parts[3]:
        raise ValueError("the name is empty")
    found = decode(parts[2])
    if len(found) != KEY_SIZE:
        raise ValueError("the secret has a wrong length")
    return found


@dataclass(frozen=True)
class _Contents:
    """What a password file says."""

    users: Mapping[str, User] = field(repr=False)
    secret: bytes | None = field(repr=False)
    costs: list[tuple[int, int, int]]
    """The different n, r and p, in order."""


def _parse_all(lines: list[str], path: Path) -> _Contents:
    users: dict[str, User] = {}
    secret = None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(COMMENT):
            continue
        try:
            if line.startswith(":"):
                secret = _parse_secret(line)
                continue
            user = _parse(line)
        except ValueError as error:
            raise PasswordFileError(f"{path}, line {number}: {error}") from None
        if user.name in users:
            raise PasswordFileError(f"{path}, line {number}: the user comes twice")
        users[user.name] = user
    costs = {(user.parameters.n, user.parameters.r, user.parameters.p) for user in users.values()}
    return _Contents(users, secret, sorted(costs) or [(N, R, P)])


def _read(path: Path) -> tuple[list[str], os.stat_result]:
    """Return the lines of a file, and what it was, if nobody else can have written it or can read it.

    Raises:
        PasswordFileError: it cannot be read, others can, or it is too large or no text.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            found = os.fstat(file.fileno())
            _check_access(path, found)
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise PasswordFileError(f"{path}: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise PasswordFileError(f"{path} is too large: a password file has at most {LARGEST_FILE:,} bytes")
    try:
        return data.decode().removesuffix("\n").split("\n"), found
    except UnicodeDecodeError:
        raise PasswordFileError(f"{path} is no text in UTF-8: is it a password file?") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe too, at once, so that it can be refused."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_access(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PasswordFileError(f"{path} is no file: give the path of a password file")
    if found.st_uid not in (0, os.geteuid()):
        raise PasswordFileError(f"{path} belongs to user {found.st_uid}, who could change it: chown it to your own")
    if found.st_mode & FORBIDDEN_MODE:
        mode = stat.S_IMODE(found.st_mode)
        raise PasswordFileError(f"others can read or write {path} (mode {mode:03o}): chmod 600 {path}")


class Users:
    """The users of a server, by name. Immutable between two calls of `reload`; any thread may look one up."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file.

        Raises:
            PasswordFileError: it cannot be read, others can, or a line of it is malformed.
        """
        self._path = Path(path)
        self._random = secrets.token_bytes(KEY_SIZE)
        self._contents = self._read()
        """Replaced as a whole."""

    def _read(self) -> _Contents:
        lines, _ = _read(self._path)
        return _parse_all(lines, self._path)

    def reload(self) -> None:
        """Read the file again, for the handshakes to come.

        Raises:
            PasswordFileError: it cannot be used; what was read before stays in use.
        """
        self._contents = self._read()

    def get(self, name: str) -> User | None:
        """Return the user of this name, in whatever Unicode form it is written; None if there is none."""
        try:
            return self._contents.users.get(normal_name(name))
        except OptionError:
            return None

    def stand_in(self, name: str) -> User:
        """Return a user without rights for a name that does not exist, the same one each time; nobody has his keys."""
        contents = self._contents
        secret = contents.secret or self._random
        raw = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
        salt, stored, server, choice = (hmac.digest(secret, bytes([use]) + raw, "sha256") for use in range(4))
        n, r, p = contents.costs[int.from_bytes(choice, "big") % len(contents.costs)]
        return User(name, Rights(0), Parameters(n, r, p, salt[:SALT_SIZE]), Keys(stored, server))

    def __iter__(self) -> Iterator[User]:
        return iter(self._contents.users.values())

    def __len__(self) -> int:
        return len(self._contents.users)

    def __repr__(self) -> str:
        return f"Users({str(self._path)!r})"


class PasswordFile:
    """A password file to be changed. Processes that change the same one wait for each other."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the path; the file need not exist yet."""
        self.path = Path(os.path.realpath(path))

    def users(self) -> list[User]:
        """Return all users, by name.

        Raises:
            PasswordFileError: the file does not exist or cannot be used.
        """
        return sorted(Users(self.path), key=lambda user: user.name)

    def set(self, name: str, password: str, rights: Rights | None = None) -> bool:
        """Add a user, or change his password; return whether he is new.

        Args:
            name: the user's; it is brought into NFC.
            password: one character or more.
            rights: None: those he has, WRITE for a new one.

        Raises:
            OptionError: the name or the password is not possible, or the library for SCRAM is missing.
            PasswordFileError: the file cannot be used.
        """
        name, parameters = normal_name(name), new_parameters()
        keys = keys_of(password, parameters)
        with self._edited() as users:
            old = users.get(name)
            kept = old.rights if old is not None else Rights.parse("write")
            users[name] = User(name, kept if rights is None else rights, parameters, keys)
        return old is None

    def set_rights(self, name: str, rights: Rights) -> None:
        """Change what a user may do.

        Raises:
            PasswordFileError: there is no such user, or the file cannot be used.
        """
        with self._edited() as users:
            name = self._existing(users, name)
            users[name] = replace(users[name], rights=rights)

    def remove(self, name: str) -> None:
        """Remove a user.

        Raises:
            PasswordFileError: there is no such user, or the file cannot be used.
        """
        with self._edited() as users:
            del users[self._existing(users, name)]

    def _existing(self, users: Mapping[str, User], name: str) -> str:
        name = normal_name(name)
        if name not in users:
            raise PasswordFileError(f"{self.path} has no user {name!r}: --list shows those that it has")
        return name

    @contextmanager
    def _edited(self) -> Iterator[dict[str, User]]:
        """Give the users to change; what was changed is written at the end, unless there is an error."""
        with self._locked():
            lines, old = _read(self.path) if self.path.exists() else ([], None)
            contents = _parse_all(lines, self.path)
            users = dict(contents.users)
            yield users
            if contents.secret is None:
                lines.append(f":{SECRET}:{encode(secrets.token_bytes(KEY_SIZE))}:")
            _write(self.path, _changed(lines, users), old)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PasswordFileError(f"{self.path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _changed(lines: list[str], users: Mapping[str, User]) -> list[str]:
    """Return the lines of a file after a change: those of users anew, new users at the end, all else as it was."""
    left = dict(users)
    result = []
    for line in lines:
        if not line.strip() or line.startswith((COMMENT, ":")):
            result.append(line)
        elif (user := left.pop(line.partition(":")[0], None)) is not None:
            result.append(user.line)
    return result + [user.line for user in left.values()]


def _write(path: Path, lines: list[str], old: os.stat_result | None) -> None:
    """Write a file under a temporary name, bring it to the disk, and give it its name.

    It has the owner, the group and, as far as they are harmless, the permissions of the one that it replaces.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, NEW_MODE)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            if old is not None:
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), NEW_MODE if old is None else old.st_mode & KEPT_MODE)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink()
        raise
