"""The proof of a password, as messages: three of the client, three replies. Without sockets; one thread each.

| client | server |
|---|---|
| the user's name, UTF-8 | how his password was hashed: ``scrypt,n,r,p,SALT`` |
| SCRAM's client-first | SCRAM's server-first |
| SCRAM's client-final | SCRAM's server-final, with which the server proves that it knows the user as well |

The name that SCRAM's messages have is not the user's, but a hash of the first two messages: whoever changes one of
them on the way is found out.

1. Whatever the other side sends, nothing but `AuthenticationError` comes out.
2. For a user that does not exist everything goes on as for one with a wrong password, to the end.
3. After an error a handshake is over: nothing can be received any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from berkeleydb_storage.auth.hashing import (
    ITERATIONS,
    MECHANISM,
    Parameters,
    decode,
    derive,
    library,
)
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import User, Users
from berkeleydb_storage.errors import AuthenticationError

__all__ = ["LONGEST_MESSAGE", "REFUSED", "ClientHandshake", "ServerHandshake"]

LONGEST_MESSAGE = 1024
"""Bytes."""
REFUSED = "the user's name or the password is wrong, or the other side is not what it says to be"

_SERVER_FIRST = re.compile(r"r=[^,]+,s=(?P<salt>[^,]+),i=(?P<iterations>[0-9]{1,9})", re.ASCII)


class _Handshake:
    """What both sides have in common: a sequence of steps, and an end after any error."""

    def __init__(self) -> None:
        self._step: Callable[[str], str] | None = None
        self.done = False
        """Whether it has succeeded."""

    def _take(self, message: bytes) -> str:
        """Do the next step, and return what it answers."""
        step, self._step = self._step, None
        try:
            if step is None:
                raise _refused("a message too many")
            if len(message) > LONGEST_MESSAGE:
                raise _refused("a message that is too long")
            return step(str(message, "utf-8"))
        except UnicodeDecodeError:
            raise _refused("a message that is no text") from None


def _refused(reason: str) -> AuthenticationError:
    return AuthenticationError(REFUSED, reason)


def _library_call(reason: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call the library with what a stranger sent. Whatever it raises, its text is the stranger's: it is not kept."""
    try:
        return call(*arguments)
    except Exception:
        raise _refused(reason) from None


def _transcript(name: str, parameters: str) -> str:
    """Return the name for SCRAM's messages: a hash of what was said before them."""
    return sha256(name.encode("utf-8", "surrogatepass") + b"\0" + parameters.encode()).hexdigest()


class ServerHandshake(_Handshake):
    """The server's side of one client's proof; takes about 0.1 ms in all."""

    def __init__(self, users: Users) -> None:
        """Wait for the user's name.

        Raises:
            OptionError: the library for SCRAM is missing.
        """
        super().__init__()
        self._scram = library()
        self._users = users
        self._user: User | None = None
        self._step = self._named
        self.claimed = ""
        """Whom the client says to be, from the first message on: for the delay after failures, not for the log."""

    def __repr__(self) -> str:
        return f"<ServerHandshake done={self.done}>"

    @property
    def user(self) -> str | None:
        """The user's name, None before he has proved that it is his."""
        return self._user.name if self.done and self._user is not None else None

    @property
    def rights(self) -> Rights:
        """What he may do; nothing before that."""
        return self._user.rights if self.done and self._user is not None else Rights(0)

    def receive(self, message: bytes) -> bytes:
        """Return the reply to the client's next message; the last one is to be sent when `done` is true, too.

        Raises:
            AuthenticationError: it is malformed, or proves nothing. Its `reason` is for the log.
        """
        return self._take(message).encode()

    def _named(self, name: str) -> str:
        known, stand_in = self._users.get(name), self._users.stand_in(name)
        self.claimed = name if known is None else known.name
        self._user = known
        self._record = stand_in if known is None else known
        self._hashed = str(self._record.parameters)
        self._expected = _transcript(name, self._hashed)
        self._step = self._first
        return self._hashed

    def _first(self, message: str) -> str:
        mechanism = self._scram.ScramMechanism(MECHANISM)
        self._server = mechanism.make_server(self._keys)
        _library_call("a malformed first message", self._server.set_client_first, message)
        self._step = self._final
        return str(_library_call("a malformed first message", self._server.get_server_first))

    def _keys(self, name: str) -> tuple[bytes, bytes, bytes, int] | None:
        """Return what the library needs of the user, None where the messages before were not the same for both."""
        if name != self._expected:
            return None
        keys = self._record.keys
        return self._record.parameters.salt, keys.stored, keys.server, ITERATIONS

    def _final(self, message: str) -> str:
        reason = "an unknown user" if self._user is None else f"a wrong password of user {self._user.name!r}"
        _library_call(reason, self._server.set_client_final, message)
        if self._user is None:
            raise _refused(reason)
        self.done = True
        return str(_library_call(reason, self._server.get_server_final))


class ClientHandshake(_Handshake):
    """The client's side of a proof. The first with a password takes a scrypt, about 30 ms; later ones 1 ms."""

    def __init__(self, user: str, password: str) -> None:
        """Take the credentials; the password is kept until the first reply.

        Raises:
            OptionError: the library for SCRAM is missing.
        """
        super().__init__()
        self._scram = library()
        self._name = user
        self._password: str | None = password
        self._step = self._hashed

    def __repr__(self) -> str:
        return f"<ClientHandshake done={self.done}>"

    def start(self) -> bytes:
        """Return the first message."""
        return self._name.encode("utf-8", "surrogatepass")

    def receive(self, reply: bytes) -> bytes | None:
        """Return the message after the server's next reply, None after the last, when the server has proved itself.

        Raises:
            AuthenticationError: the reply is malformed, asks for a hash that is too weak or too expensive, or the
                server does not know the password.
            OptionError: the password is empty or too long.
        """
        return self._take(reply).encode() or None

    def _hashed(self, text: str) -> str:
        password, self._password = self._password, None
        try:
            self._parameters = Parameters.parse(text)
        except ValueError as error:
            raise _refused(f"the server's parameters are not acceptable: {error}") from None
        secret = derive(password or "", self._parameters)
        self._client = self._scram.ScramClient([MECHANISM], _transcript(self._name, text), secret)
        self._step = self._first
        return str(self._client.get_client_first())

    def _first(self, message: str) -> str:
        found = _SERVER_FIRST.fullmatch(message)
        if found is None or not self._as_agreed(found):
            raise _refused("the server's first message is not as agreed")
        _library_call("a malformed first message", self._client.set_server_first, message)
        self._step = self._final
        return str(_library_call("a malformed first message", self._client.get_client_final))

    def _as_agreed(self, found: re.Match[str]) -> bool:
        """Tell whether the salt is the one of before, and the work what it should be: not made up to attack us."""
        try:
            return decode(found["salt"]) == self._parameters.salt and int(found["iterations"]) == ITERATIONS
        except ValueError:
            return False

    def _final(self, message: str) -> str:
        _library_call("the server does not know the password", self._client.set_server_final, message)
        del self._client
        self.done = True
        return ""
