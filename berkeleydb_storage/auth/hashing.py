"""Passwords → keys. The only importer of the library for SCRAM, which is an extra.

A password is hashed with scrypt; the hexadecimal text of the result is the password of SCRAM-SHA-256. So each guess at
a stolen password file, or at a recorded handshake, costs a scrypt, and the server itself never computes one.

1. No key and no password is in the ``repr`` of anything here, in an error, or in the log.
2. Parameters are within bounds, wherever they come from: neither so weak that they give the password away, nor so
   expensive that they are an attack.

Thread-safe.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass, field
from types import ModuleType

from berkeleydb_storage.errors import OptionError

__all__ = ["MECHANISM", "Keys", "Parameters", "derive", "keys_of", "library", "new_parameters", "normal_name"]

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 4096
"""Of SCRAM, the least it allows: scrypt does the work."""
N, R, P = 1 << 14, 8, 1
"""What new passwords are hashed with: 16 MiB and about 30 ms."""
LARGEST_N, LARGEST_R, LARGEST_P = 1 << 20, 32, 16
LARGEST_WORK = 1 << 21
"""Of n * r * p: 256 MiB and about half a second."""
SALT_SIZE = 16
KEY_SIZE = 32
LONGEST_PASSWORD = 1024
"""Characters."""
LONGEST_NAME = 128
"""Characters."""
REMEDY = "pip install 'durus-berkeleydbstorage[password]'"
REMEMBERED = 16
"""Derived keys in the memory of a process."""

_PARAMETERS = re.compile(r"scrypt,([1-9][0-9]{0,6}),([1-9][0-9]?),([1-9][0-9]?),([A-Za-z0-9+/=]{16,100})", re.ASCII)


@dataclass(frozen=True, order=True)
class Parameters:
    """How a password was hashed. Not secret: a client gets them before it has proved anything."""

    n: int
    r: int
    p: int
    salt: bytes

    @classmethod
    def parse(cls, text: str) -> Parameters:
        """Return the parameters that ``str()`` made a text of.

        Raises:
            ValueError: the text is malformed, or they are out of bounds.
        """
        found = _PARAMETERS.fullmatch(text)
        if found is None:
            raise ValueError("malformed parameters")
        n, r, p = (int(number) for number in found.groups()[:3])
        parameters = cls(n, r, p, decode(found[4]))
        parameters.check()
        return parameters

    def check(self) -> None:
        """Refuse parameters that are too weak, too expensive, or none.

        Raises:
            ValueError: it says which.
        """
        if self.n & (self.n - 1):
            raise ValueError("n is no power of two")
        if self.n < N or self.r < R or self.p < P or len(self.salt) < SALT_SIZE:
            raise ValueError("the parameters are weaker than they may be")
        if self.n > LARGEST_N or self.r > LARGEST_R or self.p > LARGEST_P or self.n * self.r * self.p > LARGEST_WORK:
            raise ValueError("the parameters are more expensive than they may be")

    def __str__(self) -> str:
        return f"scrypt,{self.n},{self.r},{self.p},{encode(self.salt)}"


@dataclass(frozen=True)
class Keys:
    """What a server knows of a password: enough to recognise it, not to use it."""

    stored: bytes = field(repr=False)
    server: bytes = field(repr=False)


def library() -> ModuleType:
    """Return the library for SCRAM.

    Raises:
        OptionError: it is not installed, or too old: before 1.4.7 it compared keys in a time that depends on them.
    """
    try:
        import scramp
        import scramp.core
    except ImportError as error:
        raise OptionError(f"a password needs scramp: {REMEDY}") from error
    if not hasattr(scramp.core, "compare_digest"):
        raise OptionError(f"scramp is too old, 1.4.9 is needed: {REMEDY}")
    module: ModuleType = scramp
    return module


def encode(data: bytes) -> str:
    """Return base64."""
    return base64.b64encode(data).decode()


def decode(text: str) -> bytes:
    """Return what `encode` made a text of.

    Raises:
        ValueError: it did not make this one.
    """
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("malformed base64") from None
    if encode(data) != text:
        raise ValueError("malformed base64")
    return data


def normal_name(name: str) -> str:
    """Return the form in which the name of a user is compared: NFC.

    Raises:
        OptionError: a user cannot have this name.
    """
    normal = unicodedata.normalize("NFC", name) if len(name) <= LONGEST_NAME else ""
    if not normal or not normal.isprintable() or ":" in normal or normal[0] in "# " or normal[-1] == " ":
        raise OptionError(
            f"a user's name has 1 to {LONGEST_NAME} printable characters, no colon, no space at an end, no # in front"
        )
    return normal


def _normal_password(password: str) -> bytes:
    if not password:
        raise OptionError("password='' is empty: it has at least one character")
    if len(password) > LONGEST_PASSWORD:
        raise OptionError(f"a password has at most {LONGEST_PASSWORD} characters, not more")
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def new_parameters() -> Parameters:
    """Return parameters for a new password, with a salt of their own."""
    return Parameters(N, R, P, secrets.token_bytes(SALT_SIZE))


def keys_of(password: str, parameters: Parameters) -> Keys:
    """Return the keys that a server keeps of a password. Takes as long as `derive` the first time.

    Raises:
        OptionError: the password is empty or too long, or the library is missing.
    """
    mechanism = library().ScramMechanism(MECHANISM)
    made = mechanism.make_auth_info(derive(password, parameters), iteration_count=ITERATIONS, salt=parameters.salt)
    return Keys(stored=made[1], server=made[2])


class _Derived:
    """The keys that were derived lately, by a keyed hash of password and parameters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(KEY_SIZE)
        self._keys: OrderedDict[bytes, str] = OrderedDict()
        """Guarded by `_lock`."""

    def get(self, password: bytes, parameters: Parameters) -> str:
        name = hmac.digest(self._secret, str(parameters).encode() + b":" + password, "sha256")
        with self._lock:
            if name in self._keys:
                self._keys.move_to_end(name)
                return self._keys[name]
        key = _scrypt(password, parameters)
        with self._lock:
            self._keys[name] = key
            while len(self._keys) > REMEMBERED:
                self._keys.popitem(last=False)
        return key

    def clear(self) -> None:
        with self._lock:
            self._keys.clear()


_derived = _Derived()


def derive(password: str, parameters: Parameters) -> str:
    """Return the password of SCRAM; 16 MiB and about 30 ms the first time, then from the memory of the process.

    What is remembered is the result, not the password; it opens the same doors, on this server alone.

    Raises:
        OptionError: the password is empty or too long.
        ValueError: the parameters are out of bounds.
    """
    parameters.check()
    return _derived.get(_normal_password(password), parameters)


def forget() -> None:
    """Forget the keys that were derived."""
    _derived.clear()


def _scrypt(password: bytes, parameters: Parameters) -> str:
    n, r, p, salt = parameters.n, parameters.r, parameters.p, parameters.salt
    room = 128 * r * (n + p + 2) + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=room, dklen=KEY_SIZE).hex()
