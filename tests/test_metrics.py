"""What a server counts, what that costs, and what Prometheus gets of it."""

import http.client
import json
import math
import socket
import threading
from contextlib import closing
from timeit import repeat

import pytest
from concurrency import PATIENCE
from durus.connection import Connection
from durus.error import ConflictError
from durus.persistent_dict import PersistentDict
from graphs import record
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from berkeleydb_storage import BerkeleyDBStorage, ListenError, OptionError, StorageClosed
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.format import unpack_uint64
from berkeleydb_storage.server import Server
from berkeleydb_storage.server.metrics import QUANTILES, SIZES, TIMES, Histogram, Metrics
from berkeleydb_storage.server.prometheus import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, Exporter, families

LARGE = 60_000
"""Objects of a commit that takes a while."""
COST = 0.3e-6
"""Seconds that counting one number may take."""

seconds = (
    st.floats(0, 1000) | st.sampled_from(TIMES) | st.sampled_from(TIMES).map(lambda bound: math.nextafter(bound, 9))
)


@given(st.lists(seconds, min_size=1, max_size=50))
def test_a_histogram_counts_everything_once(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.values()
    assert found["count"] == len(values) == sum(count for _, count in found["buckets"])
    assert found["sum"] == pytest.approx(math.fsum(values))
    assert found["mean"] == pytest.approx(math.fsum(values) / len(values))
    assert found["max"] == max(values)
    for bound in TIMES:
        below = sum(count for upper, count in found["buckets"] if upper is not None and upper <= bound)
        assert below == sum(value <= bound for value in values)


@given(st.lists(st.floats(1e-6, TIMES[-1]), min_size=1, max_size=200))
def test_quantiles_are_at_most_a_quarter_too_high(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.values()
    for name, share in QUANTILES.items():
        exact = sorted(values)[max(math.ceil(share * len(values) - 1e-9), 1) - 1]
        assert exact <= found[name] <= 1.25 * exact * (1 + 1e-9)


def test_an_empty_histogram():
    values = Histogram().values()
    assert values == {"count": 0, "sum": 0, "mean": 0, "p50": 0, "p90": 0, "p99": 0, "p999": 0, "max": 0, "buckets": []}


def test_the_bounds():
    """Four for each doubling, in order; small whole numbers have a bucket each."""
    for bounds in (TIMES, SIZES):
        assert list(bounds) == sorted(set(bounds))
    assert (TIMES[0], TIMES[4], TIMES[8]) == (1e-6, 2e-6, 4e-6)
    assert TIMES[-1] > 100
    assert SIZES[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
    assert all(type(bound) is int for bound in SIZES)


def test_what_counting_costs():
    """It is done for every request."""
    histogram = Histogram()
    number = 10_000
    assert min(repeat(lambda: histogram.add(1.7e-5), number=number, repeat=50)) / number < COST


def test_flushes_for_nobody_are_no_groups():
    metrics = Metrics()
    metrics.flushed(0, 0.001)
    metrics.flushed(3, 0.002)
    metrics.committed(5, 100, 0.003)
    values = metrics.values()
    assert (values["flushes"], values["flushing"]["count"], values["groups"]["buckets"]) == (2, 2, [[3, 1]])
    assert (values["commits"], values["records"], values["committed_bytes"]) == (1, 5, 100)
    assert json.loads(json.dumps(values)) == values


# --- a server


@pytest.fixture
def server(open_storage):
    with Server(open_storage(), "127.0.0.1:0", metrics="127.0.0.1:0") as server:
        yield server


def request(server, method="GET", path="/metrics", **headers):
    host, _, port = server.metrics_address.rpartition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


def scrape(server):
    """Return {sample, with its labels: value}, by the library's own parser."""
    status, text, headers = request(server)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def work(server):
    """Three commits, a conflict, loads; return how many objects there are."""
    with closing(ClientStorage(server.address)) as first, closing(ClientStorage(server.address)) as second:
        one, other = Connection(first), Connection(second)
        one.get_root()["a"] = PersistentDict(n=1)
        one.commit()
        other.sync() if hasattr(other, "sync") else other.abort()
        assert other.get_root()["a"]["n"] == 1
        one.get_root()["a"]["n"] = 2
        one.commit()
        other.get_root()["a"]["n"] = 3
        with pytest.raises(ConflictError):
            other.commit()
        other.abort()
        return first.get_size()


def test_what_a_server_counts(server):
    objects = work(server)
    values = server.information()["server"]
    assert values["accepted"] == 2
    assert (values["commits"], values["asked"], values["conflicts"]) == (3, 1, 1)
    assert values["records"] == 4
    assert values["loads"] >= 3
    assert values["committing"]["count"] == 3
    assert values["groups"]["sum"] == 3
    assert values["flushing"]["count"] == values["flushes"] >= 3
    assert values["serving"]["count"] > 0
    assert 0 < values["committed_bytes"] < values["received"]
    assert values["sent"] > 0
    assert server.information()["storage"]["objects"] == objects == 2


def test_prometheus_gets_the_same(server):
    work(server)
    samples = scrape(server)
    found = server.information()
    for name, (part, key, _) in COUNTERS.items():
        assert key in ("cache_hits", "cache_misses") or samples[f"{PREFIX}{name}_total"] == found[part][key], name
    for name, (key, _) in GAUGES.items():
        assert samples[PREFIX + name] == found["storage"][key], name
    for name, (key, bounds, _) in HISTOGRAMS.items():
        values = found["server"][key]
        buckets = [samples[f"{PREFIX}{name}_bucket{{{float(bound)!r}}}"] for bound in bounds]
        assert buckets == sorted(buckets)
        assert samples[f"{PREFIX}{name}_count"] == samples[f"{PREFIX}{name}_bucket{{+Inf}}"] == values["count"]
        assert samples[f"{PREFIX}{name}_sum"] == values["sum"]
        assert buckets[-1] == values["count"]
    assert samples["durus_bdb_commits_total"] == 3
    assert samples["durus_bdb_group_commits_sum"] == 3
    assert 0 < samples["durus_bdb_uptime_seconds"] < PATIENCE


def test_how_much_log_is_held():
    """By several, of whom one needs all that the others do."""
    storage = {**INFORMATION["storage"], "holds": ({"bytes": 5}, {"bytes": 7}, {"bytes": 0})}
    for values, expected in ((storage, 7), (INFORMATION["storage"], 0)):
        shown = {family.name: family for family in families({**INFORMATION, "storage": values})}
        assert [sample.value for sample in shown["durus_bdb_held_log_bytes"].samples] == [expected]


@given(st.lists(seconds, max_size=30))
def test_histograms_for_prometheus(values):
    """Each bucket has all that is not above its bound."""
    found = INFORMATION["server"]
    metrics = Metrics()
    for value in values:
        metrics.committing.add(value)
    shown = {family.name: family for family in families({**INFORMATION, "server": {**found, **metrics.values()}})}
    for sample in shown["durus_bdb_commit_seconds"].samples:
        if sample.name.endswith("_bucket"):
            assert sample.value == sum(value <= float(sample.labels["le"]) for value in values)


INFORMATION = {
    "connections": 0,
    "seconds": 1.0,
    "server": Metrics().values(),
    "storage": {
        **{key: 0 for part, key, _ in COUNTERS.values() if part == "storage"},
        **{key: None for key, _ in GAUGES.values()},
        "collected": {"objects": 0, "bytes": 0},
        "packing": None,
    },
}


def test_names_as_prometheus_wants_them():
    """Units in full and at the end, no unit twice, a sentence for each."""
    shown = list(families(INFORMATION))
    names = [family.name for family in shown]
    assert len(names) == len(set(names))
    for family in shown:
        assert family.name.startswith("durus_bdb_")
        assert family.name == family.name.lower()
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_kb"))
        assert family.documentation.endswith(".")


def test_openmetrics(server):
    """The other format, which newer ones ask for."""
    status, text, headers = request(server, Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(text)} >= {"durus_bdb_commits", "durus_bdb_flush_seconds"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics?name[]=x", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/metricsx", 404),
        ("HEAD", "/metrics", 501),
        ("POST", "/metrics", 501),
        ("DELETE", "/metrics", 501),
    ],
)
def test_nothing_but_metrics(server, method, path, status):
    found, text, _ = request(server, method, path)
    assert found == status
    assert ("durus_bdb_commits_total" in text) is (status == 200)


@pytest.mark.parametrize("sent", [b"", b"GET", b"\0" * 100, b"GET /metrics HTTP/9.9\r\n\r\n", b"x" * 70_000 + b"\r\n"])
def test_what_is_no_request(server, sent):
    host, _, port = server.metrics_address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    assert scrape(server)["durus_bdb_connections"] == 0


def test_silent_clients_do_not_take_the_server_with_them(server):
    """They take up the endpoint for some seconds, and nothing else."""
    host, _, port = server.metrics_address.rpartition(":")
    held = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(20)]
    work(server)
    assert [sock.recv(1) for sock in held] == [b""] * 20
    for sock in held:
        sock.close()
    assert scrape(server)["durus_bdb_commits_total"] == 3


def test_a_scrape_while_a_large_commit_is_applied(server):
    """It is answered when the mutex is free, and the commit is not held up by it."""
    scraped, done = [], threading.Event()

    def keep_scraping():
        while not done.is_set():
            scraped.append(scrape(server)["durus_bdb_commits_total"])

    thread = threading.Thread(target=keep_scraping)
    with closing(ClientStorage(server.address)) as client:
        client.begin()
        oids = [client.new_oid() for _ in range(LARGE)]
        for oid in oids[1:]:
            client.store(oid, record(unpack_uint64(oid)))
        client.store(oids[0], record(0, *map(unpack_uint64, oids[1:])))
        thread.start()
        client.end()
        done.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(scraped) > 1
    assert set(scraped) <= {0, 1}
    assert scrape(server)["durus_bdb_committed_objects_total"] == LARGE


def test_scrapes_while_the_server_ends(open_storage):
    """Whenever that is: an answer, or none; nothing hangs."""
    storage = open_storage()
    for _ in range(10):
        server = Server(storage, "127.0.0.1:0", metrics="127.0.0.1:0")
        server.start()
        address = server.metrics_address
        scrape(server)
        ends = threading.Thread(target=server.close)
        ends.start()
        try:
            while True:
                request_at(address)
        except OSError:
            pass
        ends.join(PATIENCE)
        assert not ends.is_alive()


def request_at(address):
    host, _, port = address.rpartition(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
        try:
            connection.request("GET", "/metrics")
            assert connection.getresponse().status in (200, 503)
        except http.client.HTTPException:
            pass


def test_a_storage_that_is_closed(tmp_path):
    def closed():
        raise StorageClosed("it is closed")

    exporter = Exporter(f"unix:{tmp_path}/metrics", closed)
    exporter.start()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{tmp_path}/metrics")
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.0 503 ")
    finally:
        exporter.close()
        exporter.close()
    assert not (tmp_path / "metrics").exists()


def test_off_by_default(open_storage):
    with Server(open_storage(), "127.0.0.1:0") as server:
        assert server.metrics_address is None
        assert not [thread for thread in threading.enumerate() if thread.name == "berkeleydb_storage metrics"]


def test_an_address_that_is_in_use(server, tmp_path):
    (tmp_path / "other").mkdir()
    with BerkeleyDBStorage(tmp_path / "other") as storage:
        other = Server(storage, "127.0.0.1:0", metrics=server.metrics_address)
        with pytest.raises(ListenError):
            other.start()
    assert scrape(server)["durus_bdb_commits_total"] == 0


def test_there_is_no_tls():
    with pytest.raises(OptionError, match=r"there is no TLS for metrics: tls://127\.0\.0\.1:0"):
        Exporter("tls://127.0.0.1:0", dict)
