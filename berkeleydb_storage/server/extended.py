"""The extended protocol, for the clients of this package: its frames, and the requests that one client makes.

Used by the server's thread alone. Requests for several objects are in `fetching`, those about the storage as a whole
in `administration`.

Invariants:

1. Before a client has come in it can do nothing but that, and afterwards nothing that it lacks the right to.
2. A client that is asked about its commit answers that, before it makes any other request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import NamedTuple

from berkeleydb_storage.errors import AccessDenied, BerkeleyDBStorageError, CommitInDoubt, WireError
from berkeleydb_storage.format import OID_LENGTH, pack_uint64, unpack_uint64
from berkeleydb_storage.protocol import (
    AUTHENTICATE,
    BACKUP,
    BULK,
    CANCEL,
    COMMIT,
    FATE,
    FETCH,
    FORGET,
    GO_ON,
    HEADER,
    IDENTITY_LENGTH,
    INFORMATION,
    LENGTH,
    LOAD,
    MARK_LENGTH,
    NOT_COMMITTED,
    OIDS,
    OK,
    PACK,
    PAIR,
    PING,
    RESUME,
    ROWS,
    SHUTDOWN,
    STALE,
    SYNC,
    check_oids,
    frame,
    require,
)
from berkeleydb_storage.server import administration, fetching
from berkeleydb_storage.server.answers import MISSING, SYNC_FIRST, failure
from berkeleydb_storage.server.commits import Commit
from berkeleydb_storage.server.connection import ADMIN, AT_ONCE, READ, WRITE, Connection
from berkeleydb_storage.server.interest import Interest
from berkeleydb_storage.server.limits import STRETCH
from berkeleydb_storage.server.reading import NEWS
from berkeleydb_storage.server.receiving import receive

_LOAD_SIZE = 1 + OID_LENGTH
FIRST_FRAMES = 4096
"""Bytes of a frame of one who has not come in yet."""
MOST_OIDS = 4096
"""Oids that are handed out at once."""


class _Request(NamedTuple):
    right: int
    serve: Callable[[Extended, bytes], bool]
    """It returns False if it has to be called again when the connection proceeds."""


class Extended:
    """One client that speaks the extended protocol."""

    def __init__(self, connection: Connection) -> None:
        self.expecting = False
        self._c = connection
        self._asked: Commit | None = None

    def parse(self, data: bytes) -> int:
        """Serve what is there."""
        c, at, end = self._c, 0, len(data)
        most = c.service.limits.frame if c.rights else FIRST_FRAMES
        until = c.last + STRETCH
        for _ in range(AT_ONCE):
            if end - at < HEADER.size or c.busy or c.ended or c.takes_no_more:
                c.need = HEADER.size
                return at
            length, kind = HEADER.unpack_from(data, at)
            if not 0 < length <= most:
                raise WireError(f"a frame of {length} bytes; at most {most} are taken")
            after = at + LENGTH.size + length
            if after > end:
                c.need = after - at
                return at
            if kind == LOAD and length == _LOAD_SIZE and c.rights & READ and self._asked is None:
                try:
                    served = self._load(data[at + HEADER.size : after])
                except BerkeleyDBStorageError as error:
                    self.fail(error)
                    served = True
            else:
                served = self._serve(kind, data[at + HEADER.size : after])
            if not served:
                c.need = HEADER.size
                return at
            at = after
            if at == end or perf_counter() > until:
                break
        if end - at >= HEADER.size:
            c.later()
        c.need = HEADER.size
        return at

    def _serve(self, kind: int, payload: bytes) -> bool:
        c = self._c
        request = _REQUESTS.get(kind)
        if request is None:
            raise WireError(f"there is no request {bytes([kind])!r}")
        if not c.rights and kind not in (AUTHENTICATE, RESUME):
            self.fail(AccessDenied("the server takes no request before R: come in first"))
            c.violate("it makes requests before it has come in")
            return True
        if request.right & ~c.rights:
            self.fail(c.service.lacks({READ: "read", WRITE: "write", ADMIN: "admin"}[request.right]))
            return True
        if self._asked is not None and kind not in (GO_ON, CANCEL):
            raise WireError("it was asked about its commit, and does not answer")
        try:
            return request.serve(self, payload)
        except WireError:
            raise
        except BerkeleyDBStorageError as error:
            self.fail(error)
            return True

    # --- coming in

    def _authenticate(self, message: bytes) -> bool:
        c = self._c
        try:
            c.service.authenticate(c, message)
        except AccessDenied as error:
            self.fail(error)
            if not c.welcome:
                c.violate(str(error))
        return True

    def _resume(self, payload: bytes) -> bool:
        c, service = self._c, self._c.service
        if c.welcome:
            raise WireError("it has come in already")
        if service.users is not None and not c.user:
            self.fail(AccessDenied("this server asks for a password: give user=… and password=…"))
            c.violate("it comes without a password")
            return True
        if service.desk.hold.held:
            service.when_free(c)
            return False
        if payload:
            require(payload, IDENTITY_LENGTH + 8, "what a client resumes with")
            c.run(self._resuming(payload[:IDENTITY_LENGTH], unpack_uint64(payload[IDENTITY_LENGTH:])))
        else:
            service.welcome(c)
            self._welcome([])
        return True

    def _resuming(self, identity: bytes, since: int) -> Iterator[bool]:
        """Tell a client that comes back what was changed since, some transactions at a time."""
        c, service = self._c, self._c.service
        if identity != service.engine.identity:
            service.welcome(c)
            self._welcome(None)
            c.answer()
            return
        changed: dict[bytes, None] = {}
        while not c.welcome:
            while service.desk.hold.held:
                service.when_free(c)
                yield True
            rows = service.catch_up(c, since)
            if rows is None:
                self._welcome(None)
                c.answer()
                return
            since += len(rows)
            changed.update(dict.fromkeys(oid for row in rows for oid in row.oids or ()))
            yield False
        c.interest = Interest(anything=True)
        c.interest.drop(list(changed))
        self._welcome(changed)
        c.answer()

    def _welcome(self, changed: Iterable[bytes] | None) -> None:
        """Let the client in, told of everything that was changed; None: that may be anything."""
        c, service = self._c, self._c.service
        known = pack_uint64(service.reading.known(c.told))
        kind = FORGET if changed is None else OK
        self._frame(kind, service.engine.identity, known, bytes([c.rights]), *(changed or ()))

    # --- reading

    def _load(self, oid: bytes) -> bool:
        c = self._c
        found = c.service.read(c, oid)
        c.service.metrics.loads += 1
        if type(found) is bytes:
            c.interest.add(oid)
            c.write_record(HEADER.pack(1 + len(found), OK), found)
        elif found is None:
            c.write(MISSING)
        elif found == NEWS:
            c.write(SYNC_FIRST)
        else:
            c.service.wait(c, found)
            return False
        return True

    def _load_one(self, payload: bytes) -> bool:
        return self._load(require(payload, OID_LENGTH, "an oid"))

    def _bulk(self, oids: bytes) -> bool:
        check_oids(oids)
        self._c.keep(len(oids))
        self._c.run(self._load_all(oids))
        return True

    def _load_all(self, oids: bytes) -> Iterator[bool]:
        for at in range(0, len(oids), OID_LENGTH):
            while not self._load(oids[at : at + OID_LENGTH]):
                yield True
            yield False
        self._c.interest.tidy()
        self._c.answer()

    def _sync(self, payload: bytes) -> bool:
        c = self._c
        c.synced = True
        news, known = c.service.reading.news(c)
        self._frame(OK, pack_uint64(known), *news)
        return True

    def _ping(self, _: bytes) -> bool:
        service = self._c.service
        state = service.engine.journal.state
        self._frame(OK, PAIR.pack(service.reading.known(service.engine.journal.tid), state.objects))
        return True

    # --- writing

    def _oids(self, payload: bytes) -> bool:
        count = LENGTH.unpack(require(payload, LENGTH.size, "a number of oids"))[0]
        if not 0 < count <= MOST_OIDS:
            raise WireError(f"{count} oids at once; from 1 to {MOST_OIDS} are handed out")
        oids = self._c.service.new_oids(self._c, count)
        if oids is None:
            return False
        self._frame(OK, *oids)
        return True

    def _commit(self, payload: bytes) -> bool:
        if len(payload) < MARK_LENGTH:
            raise WireError("a commit without a mark")
        receive(self._c, payload, MARK_LENGTH, payload[:MARK_LENGTH])
        return True

    def _go_on(self, _: bytes) -> bool:
        c, commit = self._c, self._asked
        if commit is None:
            raise WireError("it answers, and was not asked")
        self._asked, self.expecting = None, False
        c.busy = True
        c.service.desk.submit(commit)
        c.service.desk.groups.flush_now()
        return True

    def _cancel(self, _: bytes) -> bool:
        if self._asked is None:
            raise WireError("it answers, and was not asked")
        self._asked, self.expecting = None, False
        self._c.service.metrics.conflicts += 1
        self._c.service.desk.turns.end(self._c)
        self._c.keep(0)
        self._frame(OK)
        return True

    def _fate(self, payload: bytes) -> bool:
        require(payload, MARK_LENGTH + 8, "the question for a fate")
        service = self._c.service
        if service.desk.hold.held:
            service.when_free(self._c)
            return False
        state, tid = service.fate(payload[:MARK_LENGTH], unpack_uint64(payload[MARK_LENGTH:]))
        if service.reading.known(tid) != tid:
            service.when_durable(self._c)
            return False
        if state == NOT_COMMITTED:
            service.desk.abandon(payload[:MARK_LENGTH])
        self._frame(OK, bytes([state]), pack_uint64(tid))
        return True

    def take_turn(self) -> None:
        """Never called: it has no wish for it."""
        raise NotImplementedError

    def ask(self, commit: Commit, news: list[bytes]) -> None:
        """Ask whether a commit is still wanted."""
        self._asked, self.expecting = commit, True
        known = self._c.service.reading.known(self._c.told)
        self._c.write(frame(STALE, pack_uint64(known), *news))
        self._c.expect()

    def finish(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge a commit."""
        self._c.answer(frame(OK, pack_uint64(tid), *news))

    def refuse(self, commit: Commit, error: Exception) -> None:
        """Tell that a commit is refused, or in doubt."""
        if not isinstance(error, CommitInDoubt):
            self._c.conflict(error)
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """Tell that a request failed."""
        self._c.answer(failure(error))

    def _frame(self, kind: int, *parts: bytes) -> None:
        self._c.write(frame(kind, *parts))


def _of(serve: Callable[[Connection, bytes], bool]) -> Callable[[Extended, bytes], bool]:
    """Return how a request is served that needs the connection alone."""
    return lambda dialect, payload: serve(dialect._c, payload)


_REQUESTS = {
    LOAD: _Request(READ, Extended._load_one),
    FETCH: _Request(READ, _of(fetching.fetch)),
    BULK: _Request(READ, Extended._bulk),
    ROWS: _Request(READ, _of(fetching.rows)),
    SYNC: _Request(READ, Extended._sync),
    PING: _Request(READ, Extended._ping),
    FATE: _Request(READ, Extended._fate),
    INFORMATION: _Request(READ, _of(administration.information)),
    OIDS: _Request(WRITE, Extended._oids),
    COMMIT: _Request(WRITE, Extended._commit),
    GO_ON: _Request(WRITE, Extended._go_on),
    CANCEL: _Request(WRITE, Extended._cancel),
    PACK: _Request(WRITE, _of(administration.pack)),
    BACKUP: _Request(ADMIN, _of(administration.backup)),
    SHUTDOWN: _Request(ADMIN, _of(administration.shutdown)),
    AUTHENTICATE: _Request(0, Extended._authenticate),
    RESUME: _Request(0, Extended._resume),
}
