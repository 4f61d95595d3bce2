"""The extended protocol, for the clients of this package. Used by the server's thread alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

from berkeleydb_storage.errors import AccessDenied, BerkeleyDBStorageError, CommitInDoubt, CommitRefused, WireError
from berkeleydb_storage.format import OID_LENGTH, pack_uint64, references, unpack_uint64
from berkeleydb_storage.protocol import (
    AUTHENTICATE,
    BACKUP,
    BULK,
    CANCEL,
    COMMIT,
    DOUBT,
    ERROR,
    FATE,
    FETCH,
    FORGET,
    GO_ON,
    HEADER,
    IDENTITY_LENGTH,
    INFORMATION,
    LENGTH,
    LIMITS,
    LOAD,
    MARK_LENGTH,
    NOT_COMMITTED,
    OIDS,
    OK,
    PACK,
    PAIR,
    PING,
    PROGRESS,
    REFUSED,
    RESUME,
    ROWS,
    SHUTDOWN,
    STALE,
    SYNC,
    UNKNOWN_OBJECT,
    check_oids,
    frame,
    pack_json,
    pack_refusal,
    pack_rows,
    require,
)
from berkeleydb_storage.server.commits import Commit
from berkeleydb_storage.server.connection import ADMIN, AT_ONCE, READ, WRITE, Connection
from berkeleydb_storage.server.interest import Interest
from berkeleydb_storage.server.limits import STRETCH
from berkeleydb_storage.server.reading import LATER, NEWS, RETRY

_MISSING = frame(UNKNOWN_OBJECT)
_SYNC_FIRST = frame(REFUSED, pack_refusal("ReadConflictError", "others changed it: sync first"))
_LOAD_SIZE = 1 + OID_LENGTH
FIRST_FRAMES = 4096
"""Bytes of a frame of one who has not come in yet."""
MOST_OIDS = 4096
"""Oids that are handed out at once."""
MOST_FETCHED = 10_000
"""Objects in one answer."""
MOST_BYTES = 16 << 20
"""Bytes after which an answer with several records ends."""
SEARCHED = 8
"""Objects that are looked at for each that is to be fetched: a client may have nearly all of them."""


class _Request(NamedTuple):
    right: int
    serve: str
    """Name of the method; it returns False if it has to be called again when the connection proceeds."""


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
        until = perf_counter() + STRETCH
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
            if perf_counter() > until:
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
            return bool(getattr(self, request.serve)(payload))
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
            return self._when_free()
        service.welcome(c)
        changed: list[bytes] | None = []
        if payload:
            require(payload, IDENTITY_LENGTH + 8, "what a client resumes with")
            c.interest = Interest(anything=True)
            since = unpack_uint64(payload[IDENTITY_LENGTH:])
            changed = service.changed_since(payload[:IDENTITY_LENGTH], since)
        known = pack_uint64(service.reading.known(c.told))
        if changed is None:
            c.interest = Interest()
            self._frame(FORGET, service.engine.identity, known, bytes([c.rights]))
        else:
            c.interest.drop(changed)
            self._frame(OK, service.engine.identity, known, bytes([c.rights]), *changed)
        return True

    # --- reading

    def _load(self, oid: bytes) -> bool:
        c = self._c
        found = c.service.read(c, oid)
        c.service.metrics.loads += 1
        if type(found) is bytes:
            c.interest.add(oid)
            c.write_record(HEADER.pack(1 + len(found), OK), found)
        elif found is None:
            c.write(_MISSING)
        elif found == NEWS:
            c.write(_SYNC_FIRST)
        else:
            c.service.wait(c, found)
            return False
        return True

    def _load_one(self, payload: bytes) -> bool:
        return self._load(require(payload, OID_LENGTH, "an oid"))

    def _when_durable(self) -> bool:
        self._c.busy = True
        self._c.service.desk.groups.when_durable(self._c)
        return False

    def _when_free(self) -> bool:
        self._c.busy = True
        self._c.service.desk.hold.when_free(self._c)
        return False

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

    def _fetch(self, payload: bytes) -> bool:
        oid, count, size = LIMITS.unpack(require(payload, LIMITS.size, "a request to fetch"))
        self._c.run(self._fetching(oid, min(count, MOST_FETCHED), min(size, MOST_BYTES)))
        return True

    def _fetching(self, oid: bytes, count: int, size: int) -> Iterator[bool]:
        c = self._c
        while (found := c.service.read(c, oid)) in (LATER, RETRY):
            c.service.wait(c, found)
            yield True
        c.service.metrics.loads += 1
        if type(found) is not bytes:
            c.answer(_MISSING if found is None else _SYNC_FIRST)
            return
        records, left = [found], size - len(found)
        c.interest.update([oid])
        more = self._nearby(oid, found) if count > 1 and left > 0 else ()
        for number, (other, record) in enumerate(more, 1):
            if record is not None:
                records.append(record)
                c.interest.add(other)
                left -= len(record)
            if len(records) >= count or left <= 0 or number >= SEARCHED * count:
                break
            if not number % AT_ONCE:
                yield False
        c.service.metrics.prefetched += len(records) - 1
        c.interest.tidy()
        c.answer(frame(OK, *pack_rows(records)))

    def _nearby(self, oid: bytes, record: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """Go through what an object leads to, breadth first, and then what follows it; None: not to be had.

        Objects that are born together have oids one after the other, so that the next one in a container is often
        among them.
        """
        c = self._c
        interested, read = c.interest.has, c.service.read
        seen, todo, last = {oid}, deque(references(oid, record)), oid
        while todo:
            other = todo.popleft()
            if other in seen:
                continue
            seen.add(other)
            found = None if interested(other) else read(c, other)
            if type(found) is bytes:
                todo.extend(references(other, found))
                yield other, found
            else:
                yield other, None
        number = unpack_uint64(last)
        while number + 1 < c.service.engine.next_oid:
            number += 1
            other = pack_uint64(number)
            found = None if other in seen or interested(other) else read(c, other)
            yield other, found if type(found) is bytes else None

    def _rows(self, payload: bytes) -> bool:
        oid, count, size = LIMITS.unpack(require(payload, LIMITS.size, "a request for rows"))
        if self._c.service.desk.hold.held:
            return self._when_free()
        self._c.run(self._listing(oid, min(count, MOST_FETCHED), min(size, MOST_BYTES)))
        return True

    def _listing(self, oid: bytes, count: int, size: int) -> Iterator[bool]:
        c, service = self._c, self._c.service
        start: bytes | None = oid
        records: list[bytes] = []
        while start is not None and len(records) < count and size > 0:
            if service.desk.hold.held:
                self._when_free()
                yield True
                continue
            rows, after = service.rows(start, min(AT_ONCE, count - len(records)), size)
            start = after
            records += (record for _, record in rows)
            c.interest.update(other for other, _ in rows)
            size -= sum(len(record) for _, record in rows)
            yield False
        newest = service.engine.journal.tid
        if service.reading.known(newest) != newest:  # what the client was not told of must be on the disk, too
            self._when_durable()
            yield True
        c.answer(frame(OK, *pack_rows(records)))

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
        self._c.receive(payload, MARK_LENGTH, payload[:MARK_LENGTH])
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
            return self._when_free()
        state, tid = service.fate(payload[:MARK_LENGTH], unpack_uint64(payload[MARK_LENGTH:]))
        if service.reading.known(tid) != tid:
            return self._when_durable()
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
        kind = REFUSED if isinstance(error, CommitRefused) else DOUBT if isinstance(error, CommitInDoubt) else ERROR
        oids = getattr(error, "oids", ())[:MOST_OIDS]
        self._c.answer(frame(kind, pack_refusal(type(error).__name__, str(error), oids)))

    # --- administration

    def _information(self, _: bytes) -> bool:
        self._c.busy = True
        self._c.service.in_thread(self._c.service.information, self._informed)
        return True

    def _informed(self, values: object) -> None:
        if isinstance(values, Exception):
            self.fail(values)
        else:
            self._c.answer(frame(OK, pack_json(values)))

    def _pack(self, _: bytes) -> bool:
        self._c.service.pack()
        self._frame(OK)
        return True

    def _backup(self, _: bytes) -> bool:
        self._c.busy = True
        self._c.service.backup(self._progress, self._informed)
        return True

    def _progress(self, values: object) -> None:
        self._c.write(frame(PROGRESS, pack_json(values)))
        self._c.send()

    def _shutdown(self, _: bytes) -> bool:
        self._frame(OK)
        self._c.service.shut_down(self._c)
        return True

    def _frame(self, kind: int, *parts: bytes) -> None:
        self._c.write(frame(kind, *parts))


_REQUESTS = {
    LOAD: _Request(READ, "_load_one"),
    FETCH: _Request(READ, "_fetch"),
    BULK: _Request(READ, "_bulk"),
    ROWS: _Request(READ, "_rows"),
    SYNC: _Request(READ, "_sync"),
    PING: _Request(READ, "_ping"),
    FATE: _Request(READ, "_fate"),
    INFORMATION: _Request(READ, "_information"),
    OIDS: _Request(WRITE, "_oids"),
    COMMIT: _Request(WRITE, "_commit"),
    GO_ON: _Request(WRITE, "_go_on"),
    CANCEL: _Request(WRITE, "_cancel"),
    PACK: _Request(WRITE, "_pack"),
    BACKUP: _Request(ADMIN, "_backup"),
    SHUTDOWN: _Request(ADMIN, "_shutdown"),
    AUTHENTICATE: _Request(0, "_authenticate"),
    RESUME: _Request(0, "_resume"),
}
