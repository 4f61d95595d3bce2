"""Durus' protocol, version 1, for plain Durus clients. Used by the server's thread alone."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from berkeleydb_storage.errors import BerkeleyDBStorageError, CommitInDoubt, WireError
from berkeleydb_storage.protocol import DURUS_VERSION, EXTENDED, INVALID, LENGTH, MISSING, OKAY, REFUSED_VERSION
from berkeleydb_storage.server.commits import Commit, Wish
from berkeleydb_storage.server.connection import ADMIN, AT_ONCE, READ, WRITE, Connection
from berkeleydb_storage.server.limits import STRETCH
from berkeleydb_storage.server.reading import NEWS
from berkeleydb_storage.server.receiving import receive

_LENGTHS = {kind: length for kinds, length in (("NSCPQ.", 1), ("M", 2), ("VB", 5), ("L", 9)) for kind in kinds.encode()}
"""Bytes of each request, as far as they are known from the first of them."""


class Durus:
    """One client that speaks Durus' protocol, or has not said yet what it speaks."""

    def __init__(self, connection: Connection) -> None:
        self.expecting = False
        """The answer to `C` was sent, and its records are due."""
        self._c = connection

    def parse(self, data: bytes) -> int:
        """Serve what is there."""
        c, at, end = self._c, 0, len(data)
        until = c.last + STRETCH
        for _ in range(AT_ONCE):
            if at == end or c.busy or c.ended or c.takes_no_more:
                c.need = 1
                return at
            need = self._records(data, at) if self.expecting else _LENGTHS.get(data[at], 0)
            if not need:
                raise WireError(f"there is no request {data[at : at + 1]!r}")
            if end - at >= 5 and data[at] == _BULK and not self.expecting:
                self._come_in()
                need = 5 + 8 * self._bounded(LENGTH.unpack_from(data, at + 1)[0], 8)
            if end - at < need:
                c.need = need
                return at
            served = self._serve(data, at, need)
            if not served:
                c.need = need
                return at
            at += need
            if at == end or perf_counter() > until:
                break
        if at < end:
            c.later()
        c.need = 1
        return at

    def _records(self, data: bytes, at: int) -> int:
        if len(data) - at < LENGTH.size:
            return LENGTH.size
        return LENGTH.size + self._bounded(LENGTH.unpack_from(data, at)[0])

    def _bounded(self, count: int, size: int = 1) -> int:
        if count * size > self._c.service.limits.frame:
            raise WireError(f"a request of {count * size} bytes; at most {self._c.service.limits.frame} are taken")
        return count

    def _serve(self, data: bytes, at: int, size: int) -> bool:
        """Serve one request; return False if it has to be served again later."""
        c = self._c
        if self.expecting:
            self.expecting = False
            self._commit(data[at + LENGTH.size : at + size])
            return True
        kind = data[at]
        if kind == _LOAD:
            if not c.welcome:
                self._come_in()
            return self._load(data[at + 1 : at + size])
        if kind == _VERSION:
            self._version(data[at + 1 : at + size])
            return True
        if kind == _END:
            c.end("hung up")
            return True
        self._come_in()
        return bool(_REQUESTS[kind](self, data[at + 1 : at + size]))

    def _come_in(self) -> None:
        c = self._c
        if not c.welcome:
            if c.service.users is not None:
                raise WireError("a Durus client, and this server asks for a password")
            c.service.welcome(c)

    def _version(self, version: bytes) -> None:
        c = self._c
        wanted = _extended_version(version)
        if wanted is not None and not c.welcome:
            c.service.speak_extended(c, wanted)
            c.later()  # what follows is for the other dialect
            return
        if version != DURUS_VERSION:
            c.write(DURUS_VERSION)
            raise WireError(f"version {version!r} of the protocol")
        if c.service.users is not None:
            c.write(REFUSED_VERSION)
            raise WireError("a Durus client, and this server asks for a password")
        self._come_in()
        c.write(DURUS_VERSION)

    def _load(self, oid: bytes) -> bool:
        c = self._c
        if not c.rights & READ:
            raise c.service.lacks("read")
        found = c.service.read(c, oid)
        c.service.metrics.loads += 1
        if type(found) is bytes:
            c.interest.add(oid)
            c.write_record(b"O" + LENGTH.pack(len(found)), found)
        elif found is None:
            c.write(MISSING)
        elif found == NEWS:
            c.write(INVALID)
        else:
            c.service.wait(c, found)
            return False
        return True

    def _bulk(self, request: bytes) -> bool:
        self._c.keep(len(request))
        self._c.run(self._load_all(request))
        return True

    def _load_all(self, request: bytes) -> Iterator[bool]:
        c = self._c
        for at in range(4, len(request), 8):
            while not self._load(request[at : at + 8]):
                yield True
            yield False
        c.interest.tidy()
        c.answer()

    def _oids(self, count: int) -> bool:
        c = self._c
        oids = c.service.new_oids(c, count)
        if oids is None:
            return False
        c.write(b"".join(oids))
        return True

    def _oid(self, _: bytes) -> bool:
        return self._oids(1)

    def _some_oids(self, request: bytes) -> bool:
        return self._oids(request[0])

    def _sync(self, _: bytes) -> bool:
        c = self._c
        c.synced = True
        self._tell(c.service.reading.news(c)[0])
        return True

    def _tell(self, news: list[bytes]) -> None:
        self._c.write(LENGTH.pack(len(news)) + b"".join(news))

    def _begin_commit(self, _: bytes) -> bool:
        c = self._c
        c.busy = True
        if c.rights & WRITE:
            c.service.desk.submit(Wish(c))
        else:  # its records will be refused: nobody is to wait for them
            self.take_turn()
        return True

    def take_turn(self) -> None:
        """Answer `C`: what others changed; from now on nobody else commits, for a while."""
        c = self._c
        self.expecting = True
        self._tell(c.service.reading.news(c)[0])
        c.expect()

    def _commit(self, records: bytes) -> None:
        c = self._c
        if records:
            receive(c, records, 0, None)
        else:
            c.service.desk.turns.end(c)

    def _pack(self, _: bytes) -> bool:
        c = self._c
        if not c.rights & WRITE:
            raise c.service.lacks("write")
        c.service.pack()
        c.write(OKAY)
        return True

    def _quit(self, _: bytes) -> bool:
        if not self._c.rights & ADMIN:
            raise WireError("it asks the server to end, and lacks the right to that")
        self._c.service.shut_down(self._c)
        return True

    def ask(self, commit: Commit, news: list[bytes]) -> None:
        """Never called: it cannot be asked."""
        raise NotImplementedError

    def finish(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge a commit."""
        self._c.answer(OKAY)

    def refuse(self, commit: Commit, error: Exception) -> None:
        """Tell that a commit is refused; a doubtful one ends the connection, because there is no word for it."""
        if isinstance(error, CommitInDoubt):
            self._c.end(f"its commit is in doubt: {error}")
        else:
            self._c.conflict(error)
            self._c.answer(INVALID)

    def fail(self, error: Exception) -> None:
        """Refuse a commit that is not allowed; everything else ends the connection."""
        c = self._c
        c.service.desk.turns.end(c)
        if isinstance(error, BerkeleyDBStorageError):
            c.conflict(error)
            c.answer(INVALID)
        else:
            c.violate(str(error))


def _extended_version(version: bytes) -> int | None:
    """Return the version of the extended protocol that a client asks for; None: it wants that of Durus."""
    return version[3] if version.startswith(EXTENDED) else None


_LOAD, _BULK, _VERSION, _END = b"LBV."
_REQUESTS = {
    ord("N"): Durus._oid,
    ord("M"): Durus._some_oids,
    ord("B"): Durus._bulk,
    ord("S"): Durus._sync,
    ord("C"): Durus._begin_commit,
    ord("P"): Durus._pack,
    ord("Q"): Durus._quit,
}
