"""Serves the storage to two client processes that change the same objects at once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from berkeleydb_storage import BerkeleyDBStorage
from demo.building import library_of
from demo.show import Story, seconds

PROJECT = Path(__file__).parents[1]
CLIENTS = ("ada", "grace")
PATIENCE = 30.0
"""Seconds that a process may take to start or to end."""


def serve(story: Story, directory: Path, transactions: int) -> None:
    """Let the clients do so many transactions each, and look whether every one of them is there."""
    story.step(
        "serve it to two client processes",
        f"python server.py serves the directory; {' and '.join(CLIENTS)} are processes with Durus' own ClientStorage. "
        f"Each does {transactions:,} transactions as fast as it can: it counts a review of one of the modules, and "
        "adds one to a total that both share. Whoever finds that the other was faster gets a ConflictError, and does "
        "it again.",
    )
    before = _reviews(directory)
    with server(directory) as port:
        started = time.perf_counter()
        reports = _run_clients(port, transactions)
        elapsed = time.perf_counter() - started
    rows = [["client", "commits", "conflicts, done again", "commit, median", "99 of 100 below"]]
    for report in reports:
        times = (report["median"], report["p99"])
        rows.append([report["name"], f"{report['commits']:,}", f"{report['conflicts']:,}", *map(seconds, times)])
    story.table(rows)
    commits = sum(report["commits"] for report in reports)
    story.figure("served conflicts", sum(report["conflicts"] for report in reports))
    rate = story.figure("served commits per second", commits / elapsed)
    story.line(f"{commits:,} durable commits in {seconds(elapsed)}, {rate:,.0f} a second.")
    total, counted = _reviews(directory)
    expected = len(CLIENTS) * transactions
    story.check(f"the shared total grew by {expected:,}: no change was lost", total - before[0] == expected)
    story.check("so did the reviews of all modules together", counted - before[1] == expected)


def _reviews(directory: Path) -> tuple[int, int]:
    """Return the shared total, and the sum over the modules."""
    with BerkeleyDBStorage(directory) as storage:
        library = library_of(storage)
        return library.reviews.total, sum(module.reviews for module in library.all_modules())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def server(directory: Path) -> Iterator[int]:
    """Serve the storage in a process of its own, which ends with the block. Gives the port.

    Raises:
        RuntimeError: it does not start; its log, beside the directory, says why.
    """
    port = _free_port()
    log = directory.with_suffix(".server.log")
    command = [sys.executable, str(PROJECT / "server.py"), str(directory), "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _await_port(port, process, log)
        yield port
        _ask_to_end(port)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"the server did not start; it said:\n{log.read_text()}")


def _ask_to_end(port: int) -> None:
    """Send Durus' request to end, on which the server closes the storage."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(b"Q")


def _run_clients(port: int, transactions: int) -> list[dict[str, Any]]:
    """Start the clients, let them begin together, and return what they report.

    Raises:
        RuntimeError: one of them failed; what it said is on stderr.
    """
    clients = [_start_client(port, transactions, name) for name in CLIENTS]
    try:
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        reports = [client.communicate()[0] for client in clients]
    finally:
        for client in clients:
            client.kill()
            client.wait()
    if any(client.returncode for client in clients):
        raise RuntimeError("a client failed; see above")
    return [json.loads(report) for report in reports]


def _start_client(port: int, transactions: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demo.reviewer", str(port), str(transactions), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
