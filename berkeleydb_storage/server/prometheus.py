"""The numbers of a server for Prometheus: over HTTP, ``GET /metrics`` and nothing else.

They are taken when they are asked for, in threads of their own: between two scrapes they cost nothing. A scrape waits
for the engine's mutex, as long as a large commit is applied for instance; it holds up nobody. There is no password and
no TLS: listen where only the monitoring can connect.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from berkeleydb_storage.errors import BerkeleyDBStorageError, OptionError
from berkeleydb_storage.events import Event
from berkeleydb_storage.server.metrics import PARTS, SIZES, TIMES
from berkeleydb_storage.transport import unix
from berkeleydb_storage.transport.addresses import Address, bound_address, listen, parse_address

logger = logging.getLogger(__name__)

PATH = "/metrics"
PREFIX = "durus_bdb_"
PATIENCE = 5.0
"""Seconds that a client may be silent for."""
AT_ONCE = 4
"""Requests that are served at the same time; whoever comes then is hung up on."""
POLL = 0.1
"""Seconds after which `Exporter.close` is noticed, at most."""

Information = Callable[[], dict[str, Any]]

COUNTERS = {
    "connections_accepted": ("server", "accepted", "Connections, those that were turned away included."),
    "connections_refused": ("server", "turned_away", "Connections beyond a limit, or from a network not admitted."),
    "connections_violated": ("server", "violations", "Connections ended because of what the client did."),
    "password_failures": ("server", "failed_passwords", "Attempts to come in with a wrong name or password."),
    "loads": ("server", "loads", "Objects that were asked for one by one."),
    "prefetched_objects": ("server", "prefetched", "Objects that were sent beside one that was asked for."),
    "commits": ("server", "commits", "Commits that were acknowledged."),
    "committed_objects": ("server", "records", "Objects stored by these."),
    "committed_bytes": ("server", "committed_bytes", "Bytes of their records."),
    "commits_asked": ("server", "asked", "Commits whose client was asked, because others had changed what it has."),
    "conflicts": ("server", "conflicts", "Commits that were not stored: refused, or given up by a client asked."),
    "commits_refused": ("server", "refused", "Commits that were refused when their turn came."),
    "received_bytes": ("server", "received", "Bytes from clients."),
    "sent_bytes": ("server", "sent", "Bytes to clients."),
    "packs": ("server", "packs", "Full packs that clients asked for."),
    "pack_failures": ("server", "failed_packs", "Those of them that failed."),
    "backups": ("server", "backups", "Backups that clients asked for."),
    "backup_failures": ("server", "failed_backups", "Those of them that failed."),
    "transactions": ("storage", "transactions", "Transactions ever, those of the collector included."),
    "checkpoints": ("storage", "checkpoints", "Checkpoints since the storage was opened."),
    "cache_hits": ("storage", "cache_hits", "Pages found in the cache since the storage was opened."),
    "cache_misses": ("storage", "cache_misses", "Pages that had to be read."),
}
"""Name, without prefix and ``_total``: where it is in the information of a server, what it is."""

GAUGES = {
    "objects": ("objects", "Objects stored, garbage included."),
    "garbage_objects": ("garbage", "Objects without referrers that wait to be deleted."),
    "doomed_objects": ("doomed", "Objects that are being deleted together."),
    "suspect_objects": ("suspects", "Objects that lost a referrer, but not all, since the last full pack."),
    "unsettled_objects": ("unsettled", "Suspects of which only a full pack can tell whether they are garbage."),
    "log_since_checkpoint_bytes": ("log_since_checkpoint", "Log that a recovery would have to read."),
    "cache_size_bytes": ("cache_bytes", "Size of the cache."),
    "last_pack_timestamp_seconds": ("last_pack", "When a full pack was last complete."),
}
"""Name: where it is in the statistics of the storage, what it is."""

HISTOGRAMS = {
    "serve_seconds": ("serving", TIMES[::PARTS], "Requests that came at once and were answered without a wait."),
    "commit_seconds": ("committing", TIMES[::PARTS], "Commits, from the last byte to the acknowledgement."),
    "flush_seconds": ("flushing", TIMES[::PARTS], "Flushes to the disk."),
    "group_commits": ("groups", (1, 2, *SIZES[3::PARTS]), "Commits that became durable together."),
}
"""Name: which one, the bounds that are shown, what it is. Of the buckets for each doubling one is enough here."""


def families(information: dict[str, Any]) -> Iterator[Metric]:
    """Yield the families of metrics with the numbers of a server, as `Service.information` returns them."""
    storage, server = information["storage"], information["server"]
    for name, (part, key, text) in COUNTERS.items():
        yield CounterMetricFamily(PREFIX + name, text, information[part][key])
    for key, text in (("objects", "Objects that the collector deleted."), ("bytes", "Bytes of their records.")):
        yield CounterMetricFamily(f"{PREFIX}collected_{key}", text, storage["collected"][key])
    yield GaugeMetricFamily(f"{PREFIX}connections", "Connections now.", information["connections"])
    yield GaugeMetricFamily(f"{PREFIX}uptime_seconds", "Since the server began.", information["seconds"])
    yield GaugeMetricFamily(f"{PREFIX}packing", "1 while a full pack is under way.", storage["packing"] is not None)
    for name, (key, text) in GAUGES.items():
        if storage[key] is not None:
            yield GaugeMetricFamily(PREFIX + name, text, storage[key])
    held = max((holder["bytes"] for holder in storage.get("holds", ())), default=0)
    yield GaugeMetricFamily(f"{PREFIX}held_log_bytes", "Log that only backups and archives need.", held)
    if storage.get("archive") is not None:
        yield from _archive(storage["archive"])
    for name, (key, bounds, text) in HISTOGRAMS.items():
        yield _histogram(PREFIX + name, text, server[key], bounds)


ARCHIVE = {
    "behind_seconds": "Age of the oldest commit that is not in the archive, at most.",
    "behind_bytes": "Log that is not in the archive.",
}
ARCHIVE_COUNTERS = {
    "shipped_bytes": "Log that was copied to the archive since the storage was opened.",
    "pieces": "In how many objects that was.",
    "bases": "How often everything was copied.",
    "gaps": "How often the log was lost before it was copied.",
}


def _archive(values: dict[str, Any]) -> Iterator[Metric]:
    for key, text in ARCHIVE.items():
        if values[key] is not None:
            yield GaugeMetricFamily(f"{PREFIX}archive_{key}", text, values[key])
    for key, text in ARCHIVE_COUNTERS.items():
        yield CounterMetricFamily(f"{PREFIX}archive_{key}", text, values[key])
    failing = bool(values["failing"])
    yield GaugeMetricFamily(f"{PREFIX}archive_failing", "1 while the archive cannot be written.", failing)


def _histogram(name: str, text: str, values: dict[str, Any], bounds: Iterable[float]) -> Metric:
    counted = [(math.inf if bound is None else bound, count) for bound, count in values["buckets"]]
    buckets: list[Any] = [
        ("+Inf" if most == math.inf else repr(float(most)), sum(count for bound, count in counted if bound <= most))
        for most in (*bounds, math.inf)
    ]
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=values["sum"])


class _Collector(Collector):
    def __init__(self, information: Information) -> None:
        self._information = information

    def describe(self) -> list[Metric]:
        """Return nothing, so that the registry need not collect when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        return families(self._information())


class _Handler(BaseHTTPRequestHandler):
    server: _HTTP
    server_version, sys_version = "durus-bdb", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except BerkeleyDBStorageError as error:
            logger.info(Event("scrape-failed", reason=error))
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(Event("scrape", text=format % arguments))


class _HTTP(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket, registry: CollectorRegistry) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.registry = registry
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug(Event("scrape-failed"), exc_info=True)


class Exporter:
    """Answers Prometheus, from `start` to `close`."""

    def __init__(self, address: str | Address, information: Information) -> None:
        """Prepare it.

        Args:
            address: where to listen, such as "127.0.0.1:9100".
            information: returns the numbers; called by threads of the exporter. What it raises of this package's
                errors is answered by "503".

        Raises:
            OptionError: the address is malformed, or asks for TLS.
        """
        self._wanted = parse_address(address)
        if self._wanted.tls:
            raise OptionError(f"there is no TLS for metrics: {self._wanted}")
        self._information = information
        self._server: _HTTP | None = None
        self.address = ""
        """Where it listens."""

    def start(self) -> None:
        """Listen, and answer.

        Raises:
            ListenError: it cannot.
        """
        sock = listen(self._wanted)
        self.address = str(bound_address(self._wanted, sock))
        registry = CollectorRegistry()
        registry.register(_Collector(self._information))
        self._server = _HTTP(sock, registry)
        threading.Thread(
            target=self._server.serve_forever, args=(POLL,), name="berkeleydb_storage metrics", daemon=True
        ).start()

    def fileno(self) -> int:
        """Return the descriptor that it listens on, -1 if it does not."""
        return -1 if self._server is None else self._server.fileno()

    def close(self) -> None:
        """Listen no more. Works twice."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            unix.unlink(server.socket)
            server.server_close()
