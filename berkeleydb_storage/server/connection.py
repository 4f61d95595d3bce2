"""One client's connection: bytes in, bytes out, what it may take up of the server, and how it ends.

Used by the server's thread alone. What the bytes mean is the business of its dialect, `durus` or `extended`.

Invariants:

1. Requests are served one after the other, in their order; while one waits for something, `busy`, the others stay in
   `_rest`, and the client is not read from when that gets long.
2. No request holds the thread for much longer than `STRETCH`: what is long is a job, and others have turns meanwhile.
3. Whatever goes wrong here ends this connection and no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, cast

from berkeleydb_storage.errors import BerkeleyDBStorageError, WireError
from berkeleydb_storage.events import Event
from berkeleydb_storage.server.commits import Commit
from berkeleydb_storage.server.dialect import Dialect
from berkeleydb_storage.server.door import Visitor
from berkeleydb_storage.server.interest import Interest
from berkeleydb_storage.server.limits import RATE, STRETCH

if TYPE_CHECKING:
    from berkeleydb_storage.server.service import Service

logger = logging.getLogger(__name__)

READ_AHEAD = 256 << 10
"""Bytes that are read from a client whose request before is not answered yet."""
COUNTED = 16 << 10
"""Bytes from which on a request counts for the limit on memory, and a record is sent without waiting for others."""
AT_ONCE = 64
"""Requests of a client that are served before others have a turn."""

READ, WRITE, ADMIN = 1, 2, 4
"""Rights, as bits."""


class Connection(asyncio.Protocol):
    """A client, as the event loop and the desk see it."""

    def __init__(self, service: Service, visitor: Visitor) -> None:
        self.service = service
        self.visitor = visitor
        self.arrived = False
        """Whether the event loop has handed it over."""
        self.loop = service.loop
        self.told = 0
        self.interest = Interest()
        self.can_be_asked = False
        self.ended = False
        self.busy = False
        self.synced = False
        """Whether it has ever asked what others changed."""
        self.welcome = False
        """Whether it has made a request that was served."""
        self.rights = 0
        self.granted = 0
        """The rights that it has when it comes in."""
        self.descriptor = -1
        self.host = visitor.host
        self.peer = visitor.peer
        self.takes_no_more = False
        """Whether the client leaves its answers lying."""
        self.user = ""
        self.verdict = "disconnected"
        """How it ends, for the log."""
        self.need = 1
        """Bytes that must be there before it is worth to look at them again."""
        self.last = self.connected = perf_counter()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._rest = bytearray()
        self._held = 0
        self._begun: float | None = None  # when a request began that is not there whole
        self._paused: float | None = None  # since when it takes no more bytes
        self._gone = False
        self._due = False  # whether it was to proceed, and could not because it takes no more bytes
        self._kept = 0  # bytes of the request that is being served
        self._reading = True
        self._job: Iterator[bool] | None = None
        self._out: list[bytes] = []
        self._dialect: Dialect = service.greet(self)
        self.write = self._out.append
        """Add bytes to the answer."""

    # --- of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.arrived = True
        self._transport = cast(asyncio.Transport, transport)
        self.service.arrived(self, self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self._gone = True
        self.service.gone(self)
        if self.ended:
            self._hold()
        else:
            self._end("hung up" if error is None else f"lost: {error}")

    def pause_writing(self) -> None:
        """Stop serving a client that does not take its answers."""
        self._paused, self.takes_no_more = perf_counter(), True
        self.loop.call_soon(self._hold)

    def resume_writing(self) -> None:
        """Go on."""
        self._paused, self.takes_no_more = None, False
        if self._held:
            self._hold()
        if self._due or not self.busy:
            self.proceed()

    def data_received(self, data: bytes) -> None:
        """Serve what came."""
        self.service.metrics.received += len(data)
        rest = self._rest
        if rest or self.busy or self._paused is not None:
            rest += data
            if self._held or len(rest) > COUNTED:
                self._hold()
            if self.ended:
                return
            if self.busy or self._paused is not None:
                if len(rest) > READ_AHEAD and self._reading:
                    self._transport.pause_reading()
                    self._reading = False
                return
            if len(rest) < self.need:
                return
            data = bytes(rest)
            rest.clear()
        self._serve(data)

    # --- serving

    def _serve(self, data: bytes) -> None:
        started = self.last = perf_counter()
        try:
            at = self._dialect.parse(data)
        except WireError as error:
            self.violate(str(error))
            return
        except BerkeleyDBStorageError as error:
            self.end(f"refused: {error}")
            return
        except Exception as error:  # a fault of ours: it must not end the server
            logger.exception(Event("fault", peer=self.peer))
            self.end(f"a fault of the server: {error!r}")
            return
        if at < len(data):
            self._rest[:0] = data[at:]
            if not self.busy and (at or self._begun is None):
                self._begun = started
        else:
            self._begun = started if self._dialect.expecting else None
        if self._held or len(self._rest) > COUNTED:
            self._hold()
        self.interest.tidy()
        if self._out:
            self.send()
            self.service.metrics.serving.add(perf_counter() - started)

    def _hold(self) -> None:
        """Count the bytes of requests that are kept, and of answers that are not taken."""
        service, size = self.service, 0 if self.ended else len(self._rest) + self._kept
        if not self._gone and (self._paused is not None or self.ended):
            size += self._transport.get_write_buffer_size()
        service.held += size - self._held
        self._held = size
        if service.held > service.limits.memory and size > COUNTED and not self.ended:
            self._largest()._make_room()

    def _largest(self) -> Connection:
        """Return whose requests, not complete, or answers, not taken, are the most: not who came last has to go."""
        others = (each for each in self.service.connections if not each.busy or each.takes_no_more)
        return max((*others, self), key=lambda each: each._held)

    def _make_room(self) -> None:
        reason = f"all under way has more than {self.service.limits.memory} bytes: no room for its {self._held}"
        self.violate(reason, abort=self._paused is not None)

    def keep(self, size: int) -> None:
        """Count the bytes of a request until it is answered."""
        if size > COUNTED or self._kept:
            self._kept = size
            self._hold()

    def send(self) -> None:
        """Hand what was written to the event loop."""
        if self._out and not self.ended:
            data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
            self._out.clear()
            self.service.metrics.sent += len(data)
            self._transport.write(data)
        self._out.clear()

    def write_record(self, head: bytes, record: bytes) -> None:
        """Add a record to the answer. A large one is sent at once: many of them would be much memory."""
        if len(record) < COUNTED:
            self._out.append(head + record)
        else:
            self._out += (head, record)
            self.send()

    def answer(self, *parts: bytes) -> None:
        """Write the answer of the request that made the connection busy, and go on with the next one."""
        self._out += parts
        self.send()
        self.keep(0)
        self.resume()

    def resume(self) -> None:
        """Be busy no more."""
        self.busy = False
        if self._rest or not self._reading:
            self.busy = True
            self.loop.call_soon(self.proceed)

    def expect(self) -> None:
        """Send what was written, and wait for the client to go on with what it has begun."""
        self._begun = perf_counter()
        self.send()
        self.resume()

    def conflict(self, error: Exception) -> None:
        """Count a commit that was refused, and log why."""
        self.service.metrics.conflicts += 1
        logger.debug(Event("conflict", peer=self.peer, user=self.user, reason=error))

    def later(self) -> None:
        """Let others have a turn before the next request."""
        self.busy = True
        self.loop.call_soon(self.proceed)

    def proceed(self) -> None:
        """Go on with the requests that are there already. Called once for each time that it was made to wait."""
        if self.ended:
            return
        if self._paused is not None:
            self._due = True  # `resume_writing` goes on
            return
        self._due = False
        if self._job is not None:
            self._step()
            return
        self.busy = False
        if self._rest and len(self._rest) >= self.need:
            data = bytes(self._rest)
            self._rest.clear()
            self._serve(data)
        if not self._reading and not self.busy and not self.ended:
            self._transport.resume_reading()
            self._reading = True

    def give_up(self, error: Exception) -> None:
        """End the connection, because what a request waits for does not get to the disk."""
        self.end(f"what it asks for is not on the disk: {error}")

    def run(self, job: Iterator[bool]) -> None:
        """Serve a request in steps; it ends with `answer`, or by making something else go on.

        The job yields True where it has to wait for `proceed`, and False where others may have a turn.
        """
        self.busy = True
        self._job = job
        self._step()

    def _step(self) -> None:
        job = self._job
        if job is None or self.ended:
            return
        try:
            done = self._work(job)
        except WireError as error:
            self._job = None
            self.violate(str(error))
        except (BerkeleyDBStorageError, ValueError) as error:
            self._job = None
            self._dialect.fail(error)
        except Exception as error:
            logger.exception(Event("fault", peer=self.peer))
            self.end(f"a fault of the server: {error!r}")
        else:
            if done:
                self._job = None
            else:
                self.send()

    def _work(self, job: Iterator[bool]) -> bool:
        """Do some of a job; return whether it is done. It goes on by itself, or waits to be told to `proceed`."""
        until = perf_counter() + STRETCH
        for waits in job:
            if waits:
                return False
            if len(self._out) > AT_ONCE:
                self.send()
            if self._paused is not None:
                self._due = True
                return False
            if perf_counter() > until:
                self.loop.call_soon(self.proceed)
                return False
        return True

    # --- of the desk

    def ask(self, commit: Commit, news: list[bytes]) -> None:
        """Ask the client whether it still wants a commit."""
        self.service.metrics.asked += 1
        self._dialect.ask(commit, news)

    def stored(self, commit: Commit) -> None:
        """Take note that a commit was applied. Others may be shown its objects before it is acknowledged."""
        self.service.oids.used(self, commit.records)

    def finish(self, commit: Commit, news: list[bytes], tid: int) -> None:
        """Acknowledge a commit."""
        if not self.ended:
            self._dialect.finish(commit, news, tid)

    def refuse(self, commit: Commit, error: Exception) -> None:
        """Tell that a commit is refused."""
        if not self.ended:
            self._dialect.refuse(commit, error)

    def take_turn(self) -> None:
        """Go on with the turn."""
        self._dialect.take_turn()

    def fail(self, error: Exception) -> None:
        """Tell that the request failed that made the connection busy."""
        self._dialect.fail(error)

    def reject(self, error: Exception) -> None:
        """Tell what is wrong, and end the connection."""
        self._dialect.fail(error)
        self.violate(str(error))

    # --- the dialect

    def speak(self, dialect: Dialect) -> None:
        """Go over to another protocol."""
        self._dialect = dialect

    # --- the end

    def check_time(self, now: float) -> None:
        """End the connection if the client is too slow. Called now and then."""
        limits = self.service.limits
        if self._paused is not None:
            if now - self._paused > limits.stall + self._transport.get_write_buffer_size() / RATE:
                self.violate("it does not take its answers", abort=True)
        elif self.busy:
            return
        elif not self.welcome:
            if now - self.connected > limits.handshake:
                self.violate(f"it has not come in within {limits.handshake:g} s")
        elif self._begun is not None:
            if now - self._begun > limits.stall + len(self._rest) / RATE:
                self.violate(f"a request is not complete after {now - self._begun:.0f} s and {len(self._rest)} bytes")
        elif now - self.last > limits.idle:
            self.end(f"idle for {limits.idle:g} s")

    def violate(self, reason: str, *, abort: bool = False) -> None:
        """End the connection, because of what the client does."""
        self.service.metrics.violations += 1
        self.verdict = "violated"
        self.end(reason, abort=abort)

    def end(self, reason: str, *, abort: bool = False) -> None:
        """Send what was written, and end the connection."""
        if self.ended:
            return
        self.send()
        if abort:
            self._transport.abort()
        else:
            self._transport.close()
            if left := self._transport.get_write_buffer_size():
                self.service.linger(self, self.service.limits.stall + left / RATE)
        self._end(reason)

    def cut_off(self) -> None:
        """Do not wait any longer until a client has taken its last answers."""
        self._transport.abort()

    def stalled(self, seconds: float) -> bool:
        """Tell whether the client has left its answers lying for so long."""
        return self._paused is not None and perf_counter() - self._paused > seconds

    def _end(self, reason: str) -> None:
        self.ended = True
        self._rest.clear()
        self._hold()
        self._job = None
        self.service.left(self, reason)
