"""More of the server: what disturbs its clients, slow networks, and TLS."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import trustme

from benchmarks.method.measure import Result, progress, ratios
from benchmarks.method.process import processes_in_turn
from benchmarks.method.workers import Worker, together
from benchmarks.objects.shapes import BTREE, FLAT, TREE
from benchmarks.peers.durus import FILE, FILE2, NEVER_SYNCS, SYNCS
from benchmarks.serving.crowd import Contestant, Found, compete, rows, spread, summed
from benchmarks.serving.proxy import Proxy
from benchmarks.serving.serving import Field, Sizes, clients
from benchmarks.serving.stalling import stall

PACE = 0.001
"""Seconds from one load to the next, and from one commit to the next, of those who must not be disturbed."""
ROUND_TRIP = 0.001
"""Seconds, over the slow network."""
BEFORE = 0.1
"""Seconds without a disturbance before there is one."""

Disturbance = Callable[[Contestant, Worker], tuple[float, float]]
"""Does something to a server, with one of its clients; returns when that began and ended."""


# --- disturbances


def large(directory: Path, sizes: Sizes) -> list[Result]:
    """Measure what others notice of a large commit, and of half a commit."""
    progress("serve-large: starting the servers")
    with Field(directory, sizes.objects) as field:
        pair = [field.durus(FILE, NEVER_SYNCS), field.ours("the default: durable")]
        return [_large(field, pair, sizes), _half(field, pair, sizes)]


def _observed(field: Field, each: Contestant, sizes: Sizes, disturb: Disturbance) -> dict[str, float]:
    """Return how long loads of one client and commits of another took, in milliseconds, while something went on."""
    loader, committer, third = workers = field.crowd.get(3)
    together(workers, "connect", *each.where)
    loader.call("pace_loads", sizes.objects, PACE)
    committer.call("pace_commits", sizes.objects, 3, 10 * PACE)
    time.sleep(BEFORE)
    started, ended = disturb(each, third)
    found = {"took": ended - started}
    for kind, times in zip(("load", "commit"), together([loader, committer], "pause"), strict=True):
        meanwhile = [taken for begun, taken in times if begun + taken > started and begun < ended] or [times[-1][1]]
        found |= {f"{kind} {quantile}": taken * 1e3 for quantile, taken in spread(meanwhile).items()}
    together(workers, "disconnect")
    return found


def _disturbed(field: Field, pair: list[Contestant], sizes: Sizes, rounds: int, disturb: Disturbance) -> Found:
    probes = {each.name: lambda each=each: _observed(field, each, sizes, disturb) for each in pair}
    return processes_in_turn(probes, rounds)


def _noticed(result: Result, pair: list[Contestant], found: Found) -> Result:
    """Add what the loads and commits of others took to a table."""
    for each in pair:
        numbers = found[each.name]
        shown = [f"{kind} {quantile}" for kind in ("load", "commit") for quantile in ("p50", "p99", "max")]
        result.row(each.name, each.about, **{f"{name} ms": numbers[name] for name in shown})
    theirs, mine = (found[each.name] for each in pair)
    for quantile in ("load p99", "load max", "commit max"):
        result.figure(f"{quantile}, ours", mine[quantile], unit="ms")
        result.figure(f"{quantile}, Durus / ours", ratios(theirs[quantile], mine[quantile]))
    return result


_OTHERS = (
    f"Meanwhile another client loads an object every {PACE * 1e3:g} ms, and a third one commits one every "
    f"{PACE * 1e4:g} ms: how long that takes them, counted from when it was due."
)


def _large(field: Field, pair: list[Contestant], sizes: Sizes) -> Result:
    progress(f"serve-large: {sizes.large:,} objects")

    def disturb(_: Contestant, worker: Worker) -> tuple[float, float]:
        worker.call("prepare_large", sizes.objects, 3, sizes.large)
        started, ended = worker.call("commit_large")
        return started, ended

    found = _disturbed(field, pair, sizes, sizes.few_rounds, disturb)
    result = Result("serve-large, a commit", f"One client commits {sizes.large:,} objects at once. {_OTHERS}")
    _noticed(result, pair, found)
    theirs, mine = (found[each.name]["took"] for each in pair)
    result.figure("the large commit itself, ours / Durus", ratios(mine, theirs))
    return result


def _half(field: Field, pair: list[Contestant], sizes: Sizes) -> Result:
    progress("serve-large: half a commit")
    extended = replace(pair[1], name="ours, extended protocol")

    def disturb(each: Contestant, _: Worker) -> tuple[float, float]:
        started = time.perf_counter()
        stall(int(each.place), sizes.stall, extended=each is extended)
        return started, time.perf_counter()

    found = _disturbed(field, [*pair, extended], sizes, 1, disturb)
    result = Result(
        "serve-large, half a commit",
        f"One client sends half a commit in Durus' protocol, and waits for {sizes.stall:g} s; or in the extended one. "
        f"{_OTHERS}",
    )
    _noticed(result, pair, found)
    numbers = found[extended.name]
    shown = [f"{kind} {quantile}" for kind in ("load", "commit") for quantile in ("p50", "p99", "max")]
    result.row(extended.name, extended.about, **{f"{name} ms": numbers[name] for name in shown})
    return result


# --- a slow network


def link(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare going through objects, one by one, with an empty cache, over a slow network."""
    progress("serve-link: building the shapes")
    with Field(directory, sizes.traversed, contents="shapes") as field, ExitStack() as stack:
        theirs, mine = field.durus(FILE, NEVER_SYNCS), field.ours("the default: durable")
        far = [replace(each, place=stack.enter_context(_proxy(each)).call("port")) for each in (theirs, mine)]
        return [_traversed(field, far, shape, sizes) for shape in (BTREE, FLAT, TREE)]


def _proxy(each: Contestant) -> Worker:
    return Worker(Proxy, each.place, ROUND_TRIP)


def _traversed(field: Field, far: list[Contestant], shape: str, sizes: Sizes) -> Result:
    progress(f"serve-link: {shape}")
    theirs, mine = far
    ahead = replace(mine, name=f"ours, prefetch={sizes.prefetch}", prefetch=sizes.prefetch)
    few = min(sizes.traversed, sizes.traversed_slowly)
    most = {theirs.name: few, mine.name: few, ahead.name: sizes.traversed}
    worker = field.crowd.get(1)[0]

    def work(each: Contestant) -> dict[str, float]:
        worker.call("connect", *each.where)
        numbers: dict[str, float] = worker.call("traverse", shape, most[each.name])
        worker.call("disconnect")
        return numbers

    found = processes_in_turn({each.name: lambda each=each: work(each) for each in (*far, ahead)}, sizes.few_rounds)
    result = Result(
        f"serve-link, {shape}",
        f"{sizes.traversed:,} objects visited through Connection with an empty cache, over a network whose round trip "
        f"takes {ROUND_TRIP * 1e3:g} ms; without prefetch the first {few:,} of them. Objects a second.",
    )
    for each in (*far, ahead):
        result.row(each.name, each.about, **{"objects/s": found[each.name]["rate"]})
    rates = {name: numbers["rate"] for name, numbers in found.items()}
    result.figure(f"{shape}: with prefetch / without", ratios(rates[ahead.name], rates[mine.name]), least=20.0)
    result.figure(f"{shape}: with prefetch / Durus", ratios(rates[ahead.name], rates[theirs.name]), least=20.0)
    return result


# --- without a server to run


def shared(directory: Path, sizes: Sizes) -> list[Result]:
    """Compare processes that share a storage with clients of Durus' server."""
    progress("serve-shared: starting the servers")
    with Field(directory, sizes.objects) as field:
        mine, loading, committing = field.shared(), field.durus(FILE, NEVER_SYNCS), field.durus(FILE2, SYNCS)
        number = sizes.sharing
        return [
            _sharing(field, [loading, mine], sizes, "loads", sizes.objects, sizes.window),
            _sharing(field, [committing, mine], sizes, "commits", sizes.objects, number, sizes.window),
        ]


def _sharing(field: Field, pair: list[Contestant], sizes: Sizes, method: str, *arguments: object) -> Result:
    progress(f"serve-shared: {method}")
    found = compete(pair, sizes.rounds, lambda each: field.crowd.work(each, sizes.sharing, method, *arguments))
    result = Result(f"serve-shared, {method}", f"As serve-{method}, {sizes.sharing} processes with a storage each.")
    rows(result, pair, found, f"{method}/s")
    theirs, mine = (found[each.name] for each in pair)
    result.figure(f"{method}, SharedStorage / Durus' server", ratios(mine["rate"], theirs["rate"]))
    return result


# --- TLS


def tls(directory: Path, sizes: Sizes) -> list[Result]:
    """Measure what TLS costs."""
    progress("serve-tls: starting the servers")
    authority, pair = _certificates(directory)
    with Field(directory, sizes.objects) as field:
        plain = field.ours("TCP")
        secure = field.ours("TLS, the server's certificate verified", certificate=pair, authority=authority)
        both = [plain, secure]
        results = []
        for number in (sizes.loading[0], sizes.loading[-1]):
            results.append(_cost(field, both, sizes, number, "loads", "loads", sizes.objects, sizes.window))
            results.append(_cost(field, both, sizes, number, "commits", "commits", sizes.objects, number, sizes.window))
        return [*results, _connecting(field, both, sizes)]


def _certificates(directory: Path) -> tuple[Path, Path]:
    """Return the files of an authority, and of a server's certificate with its key."""
    authority, pair = directory / "authority.pem", directory / "server.pem"
    made = trustme.CA()
    made.cert_pem.write_to_path(str(authority))
    made.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pair))
    return authority, pair


def _cost(
    field: Field, both: list[Contestant], sizes: Sizes, number: int, unit: str, method: str, *arguments: object
) -> Result:
    what = f"{unit}, {clients(number)}"
    progress(f"serve-tls: {what}")
    found = compete(both, sizes.rounds, lambda each: field.crowd.work(each, number, method, *arguments))
    result = Result(f"serve-tls, {what}", f"As serve-{unit}, our server and client, with TLS and without.")
    return _slower(result, both, found, unit, what)


def _connecting(field: Field, both: list[Contestant], sizes: Sizes) -> Result:
    progress("serve-tls: connecting")
    worker = field.crowd.get(1)[0]
    found = compete(both, sizes.rounds, lambda each: summed([worker.call("connecting", sizes.window, *each.where)]))
    result = Result("serve-tls, connecting", "One client connects, loads an object, and hangs up, again and again.")
    return _slower(result, both, found, "connections", "connecting")


def _slower(result: Result, both: list[Contestant], found: Found, unit: str, what: str) -> Result:
    rows(result, both, found, f"{unit}/s")
    plain, secure = (found[each.name] for each in both)
    result.figure(f"{what}: without TLS / with", ratios(plain["rate"], secure["rate"]))
    return result
