"""The command that asks a server for something: server."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.commands.command import Command
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.commands.passwords import interruptible
from berkeleydb_storage.errors import OptionError, ServerError

VARIABLE = "DURUS_BDB_PASSWORD"
LOOK = 0.2
"""Seconds between two looks how far a pack is."""
PINGS = 5
TIMEOUT = 10.0
LATENCIES = {"serving": "requests at once", "committing": "commits", "flushing": "flushes"}


def _server(arguments: argparse.Namespace, console: Console) -> int:
    with ClientStorage(
        arguments.address,
        user=arguments.user,
        password=_Password(arguments),
        ca=arguments.ca,
        certificate=arguments.cert,
        key=arguments.key,
        verify=not arguments.insecure,
        timeout=arguments.timeout,
    ) as storage:
        ACTIONS[arguments.action](storage, arguments, console)
    return 0


class _Password:
    """The password, found when the server asks for one: in a file, the environment, or on the terminal."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._file: str | None = arguments.password_from
        self._user: str = arguments.user
        self._address: str = arguments.address
        self._found: str | None = None

    def __call__(self) -> str:
        """Return it; it is looked for once.

        Raises:
            OptionError: there is none.
        """
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> str:
        if self._file is not None:
            return _first_line(self._file)
        if VARIABLE in os.environ:
            return os.environ[VARIABLE]
        if not sys.stdin.isatty():
            raise OptionError(f"{self._address} asks for the password of {self._user}: --password-from, or {VARIABLE}")
        with interruptible():
            return getpass.getpass(f"password of {self._user} at {self._address}: ")


def _first_line(path: str) -> str:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise OptionError(f"{path} is no text in UTF-8: a password is expected, on the first line") from None
    if not lines or not lines[0]:
        raise OptionError(f"{path}: a password is expected, on the first line")
    return lines[0]


def _ping(storage: ClientStorage, arguments: argparse.Namespace, console: Console) -> None:
    seconds = min(storage.ping() for _ in range(PINGS))
    found = storage.information()["storage"]
    values = {
        "address": arguments.address,
        "seconds": seconds,
        "transaction": found["transactions"],
        "objects": found["objects"],
    }
    text = f"transaction {found['transactions']:,}, {found['objects']:,} objects"
    console.result(values, f"{arguments.address}: {seconds * 1000:.3f} ms (best of {PINGS}), {text}", essential=True)


def _pack(storage: ClientStorage, arguments: argparse.Namespace, console: Console) -> None:
    console.advice = "the server goes on packing"
    before, started = storage.information(), time.monotonic()
    storage.pack()
    with console.progress() as progress:
        while (now := storage.information())["packing"]:
            if (packing := now["storage"]["packing"]) is not None:
                if packing["total"] is not None:
                    progress.totals[packing["activity"]] = packing["total"]
                progress(packing["activity"], packing["done"])
            console.interrupts.poll()
            time.sleep(LOOK)
    if now["server"]["failed_packs"] > before["server"]["failed_packs"]:
        raise ServerError(f"{arguments.address}: the pack failed: {now['pack_failed']}")
    deleted = now["storage"]["collected"]["objects"] - before["storage"]["collected"]["objects"]
    left, seconds = now["storage"]["objects"], time.monotonic() - started
    values = {"address": arguments.address, "collected": deleted, "objects": left, "seconds": round(seconds, 3)}
    console.result(values, f"packed {arguments.address}: {deleted:,} objects deleted in {seconds:.1f} s, {left:,} left")


def _backup(storage: ClientStorage, arguments: argparse.Namespace, console: Console) -> None:
    console.advice = "the server goes on with the backup"
    with console.progress(unit="bytes") as progress:
        made = storage.backup(lambda values: progress(values["activity"], values["bytes"]))
    text = f"{made['path']} (there): {made['objects']:,} objects, {made['bytes']:,} bytes in {made['seconds']:.1f} s"
    console.result({"address": arguments.address, **made}, f"backed up {arguments.address} to {text}")


def _shutdown(storage: ClientStorage, arguments: argparse.Namespace, console: Console) -> None:
    storage.shutdown()
    console.result({"address": arguments.address, "ending": True}, f"{arguments.address} ends")


def _statistics(storage: ClientStorage, arguments: argparse.Namespace, console: Console) -> None:
    found = storage.information()
    console.result(found, "\n".join(_lines(arguments.address, found)), essential=True)


def _lines(address: str, found: dict[str, Any]) -> Iterator[str]:
    server, storage = found["server"], found["storage"]
    yield f"{address}: version {found['version']}, up {timedelta(seconds=int(found['seconds']))}"
    yield ""
    yield from _numbers(
        ("connections", found["connections"]),
        ("accepted since the start", server["accepted"]),
        ("turned away", server["turned_away"]),
        ("ended for what they did", server["violations"]),
        ("wrong passwords", server["failed_passwords"]),
        ("bytes received", server["received"]),
        ("bytes sent", server["sent"]),
        ("loads", server["loads"]),
        ("objects prefetched", server["prefetched"]),
        ("commits", server["commits"]),
        ("objects committed", server["records"]),
        ("commits asked about", server["asked"]),
        ("conflicts", server["conflicts"]),
        ("commits in a flush, mean", round(server["groups"]["mean"], 1)),
        ("commits in a flush, p99", server["groups"]["p99"]),
    )
    yield ""
    yield f"{'milliseconds':<26}{'count':>14}{'mean':>10}{'p50':>10}{'p99':>10}{'p99.9':>10}{'max':>10}"
    for name, text in LATENCIES.items():
        values = server[name]
        times = (values[key] * 1000 for key in ("mean", "p50", "p99", "p999", "max"))
        yield f"{text:<26}{values['count']:>14,}{''.join(f'{each:>10.3f}' for each in times)}"
    yield ""
    looked = storage["cache_hits"] + storage["cache_misses"]
    yield from _numbers(
        ("objects", storage["objects"]),
        ("garbage waiting", storage["garbage"]),
        ("suspects", storage["suspects"]),
        ("collected since opened", storage["collected"]["objects"]),
        ("transactions ever", storage["transactions"]),
        ("log since checkpoint", storage["log_since_checkpoint"]),
        ("checkpoints", storage["checkpoints"]),
        ("cache, bytes", storage["cache_bytes"]),
        ("cache hits, percent", round(100 * storage["cache_hits"] / looked, 1) if looked else 100.0),
    )
    if found["packing"]:
        yield "a full pack is under way"
    if found["pack_failed"]:
        yield f"the last pack failed: {found['pack_failed']}"


def _numbers(*lines: tuple[str, float]) -> Iterator[str]:
    for name, value in lines:
        yield f"{name:<26}{value:>14,}"


ACTIONS: dict[str, Callable[[ClientStorage, argparse.Namespace, Console], None]] = {
    "ping": _ping,
    "statistics": _statistics,
    "pack": _pack,
    "backup": _backup,
    "shutdown": _shutdown,
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("address", metavar="URL", help="such as host:2972, tls://host:2972 or unix:/run/app.sock")
    add("action", choices=ACTIONS, help="what to do")
    add("--user", default="durus", help="whom the password is of (default: durus)")
    add(
        "--password-from",
        metavar="FILE",
        help=f"its first line is the password (default: {VARIABLE}, or you are asked)",
    )
    add("--ca", metavar="FILE", help="authorities of the server's certificate (default: the system's)")
    add("--insecure", action="store_true", help="do not verify the server's certificate")
    add("--cert", metavar="FILE", help="your own certificate, for a server that wants one")
    add("--key", metavar="FILE", help="its key (default: in the same file)")
    add("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="for the server to answer (default: 10)")


SERVER = Command(
    "server",
    "ask a server for something: ping, statistics, pack, backup, shutdown",
    "`pack` takes the right to write, `backup` and `shutdown` that to administer, which whoever runs the server has "
    "over its Unix socket where there are no users. A backup is made on the server's machine, where its --backup-to "
    "says. The password is never an argument, which others could see.",
    "durus-bdb server unix:/run/app.sock statistics",
    _arguments,
    _server,
)
