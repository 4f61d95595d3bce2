"""The command why."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from berkeleydb_storage.commands.command import Command, add_directory, key_of, oid
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.reachability import REFERRERS, SEARCHING, Node, Why, why
from berkeleydb_storage.storage import BerkeleyDBStorage


def _why(arguments: argparse.Namespace, console: Console) -> int:
    with (
        BerkeleyDBStorage(
            arguments.directory, read_only=True, cachesize=arguments.cachesize, key=key_of(arguments)
        ) as storage,
        console.progress() as progress,
    ):
        progress.totals.update({SEARCHING: storage.get_size(), REFERRERS: storage.get_size()})
        answers = why(storage, arguments.oid, progress)
    values = {"directory": arguments.directory, "objects": [_values(answer) for answer in answers]}
    console.result(values, "\n".join(line for answer in answers for line in _lines(answer)), essential=True)
    return 0 if all(answer.reachable for answer in answers) else 1


def _values(answer: Why) -> dict[str, Any]:
    return {
        **_node_values(answer.node),
        "reachable": answer.reachable,
        "path": [_node_values(node) for node in answer.path],
        "count": answer.count,
        "referrers": [_node_values(node) for node in answer.referrers],
    }


def _node_values(node: Node) -> dict[str, Any]:
    return {"oid": node.oid, "class": node.name, "size": node.size, "garbage_since": node.since, "doomed": node.doomed}


def _lines(answer: Why) -> Iterator[str]:
    name = f"object {answer.node.oid}"
    if answer.reachable:
        steps = len(answer.path) - 1
        yield f"{name} is reached from the root in {steps:,} step{'' if steps == 1 else 's'}"
        yield from _table(answer.path)
    elif answer.node.doomed:
        yield f"{name} is garbage: it is being deleted, with others that the root does not reach"
        yield from _table([answer.node])
    elif answer.node.since is not None:
        yield f"{name} is garbage: nothing refers to it; it waits to be collected since {_when(answer.node.since)}"
        yield from _table([answer.node])
    else:
        yield f"{name} is garbage: the root does not reach it"
        yield from _table([answer.node])
        yield from _referrer_lines(answer)


def _referrer_lines(answer: Why) -> Iterator[str]:
    if not answer.referrers:
        yield f"nothing refers to it, and its count is {answer.count:,}: run `check`"
        return
    more = "" if len(answer.referrers) == answer.count else f", {len(answer.referrers):,} of them here"
    yield f"it is kept by what refers to it ({answer.count:,}{more}), which the root does not reach either"
    yield from _table(answer.referrers)


def _table(nodes: Sequence[Node]) -> Iterator[str]:
    yield f"{'oid':>15}{'bytes':>12}  class"
    for node in nodes:
        waiting = "" if node.since is None else f", waits to be collected since {_when(node.since)}"
        doomed = ", is being deleted" if node.doomed else ""
        yield f"{node.oid:>15}{node.size:>12,}  {node.name}{waiting}{doomed}"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


def _why_arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument("oid", type=oid, nargs="+", metavar="OID", help="the number of an object, such as 12 or 0xc")


WHY = Command(
    "why",
    "tell why an object is still there",
    "That is a shortest path of references from the root to it; or it is garbage: then since when it waits to be "
    "collected, or which other garbage, such as a cycle, refers to it. DIRECTORY is not written to. "
    "Exit code: 0 the root reaches it, 1 it is garbage, 2 there is no such object, or an error.",
    "durus-bdb why db 12",
    _why_arguments,
    _why,
)
