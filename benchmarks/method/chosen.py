"""The rows of the README's table: what is told of all the results. Data only."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 30
"""Rows that a reader can be asked to read."""


@dataclass(frozen=True)
class Line:
    """A row of the README."""

    what: str
    """{} stand for numbers of `own`, in order."""
    result: str
    beside: dict[str, str]
    """With whom it is compared -> title of the figure."""
    durability: str = ""
    own: tuple[tuple[str, str], ...] = ()
    """(row, column) of the result."""
    how: str = "{}"
    """Around the ratios."""


LONGER = "takes {} times as long"
ALL_SYNC = "all sync"
FILE, FILE2, ZODB, REL = "FileStorage", "FileStorage2", "ZODB FileStorage", "RelStorage"
NAMES = {REL: "RelStorage, full", "sqlite3": "sqlite3, full", "FileStorage after `pack()`": "FileStorage, packed"}
"""How rows of results are named, where that is longer."""


def beside(*names: str, before: str = "", ours: str = "ours") -> dict[str, str]:
    """Return the figures "PEER / ours" of these peers."""
    return {name: f"{before}{NAMES.get(name, name)} / {ours}" for name in names}


def _clients(what: str, work: str, durability: str, *names: str) -> Line:
    rate = f"{work}s/s"
    figures = {name: f"{rate}, ours / {server}" for name, server in SERVERS.items() if name in names}
    return Line(what, f"serve-peers, {work}s, 8 clients", figures, durability, (("ours", rate),))


SERVERS = {
    "Durus' server over FileStorage": "Durus, FileStorage",
    "over FileStorage2": "Durus, FileStorage2",
    "ZEO": "ZEO",
    REL: "RelStorage",
}

CHOSEN = (
    Line(
        "load a record, warm, random order: {} µs",
        "load, records",
        beside(FILE, ZODB, REL, before="random order, "),
        own=(("ours", "µs a record, random order"),),
    ),
    Line(
        "load in the order of the oids: {} µs",
        "load, records",
        {
            FILE: "in order of oids, FileStorage / ours",
            "after its `pack()`": "in order of oids, FileStorage, packed / ours",
        },
        own=(("ours", "µs a record, in order of oids"),),
    ),
    Line(
        "load", "load, records", {"a bare Berkeley DB `get`": "random order, ours / bare Berkeley DB get"}, how=LONGER
    ),
    Line("load", "load, records", beside("LMDB", "sqlite3", before="random order, ")),
    Line(
        "load an object through `Connection`: {} µs",
        "load, objects",
        beside(FILE, ZODB, REL, before="from the store, "),
        own=(("ours", "µs an object, from the store"),),
    ),
    Line(
        "load a record, nothing in the system's cache: {} µs",
        "load, cold records",
        beside(FILE, ZODB, REL),
        own=(("ours", "µs a record, cold"),),
    ),
    Line(
        "build 100,000 objects, 1,000 a commit: {} µs each",
        "build",
        beside(FILE, FILE2, ZODB, REL),
        "all but FileStorage sync",
        (("ours", "µs an object"),),
    ),
    Line(
        "commit of one record: {} µs",
        "commit, synced",
        beside(FILE2, ZODB, REL, "SqliteStorage"),
        ALL_SYNC,
        (("ours", "µs a commit, median"),),
    ),
    Line("commit of one record", "commit, synced", beside("LMDB", "sqlite3"), ALL_SYNC),
    Line(
        "commit of one record",
        "profile commit, distance from the limit",
        {"bare Berkeley DB put and sync": "commit, ours / bare put + sync"},
        ALL_SYNC,
        how=LONGER,
    ),
    Line("commit of 1,000 records", "commit, synced", beside(FILE2, ZODB, REL, before="1,000 a commit: "), ALL_SYNC),
    Line(
        "commit of one record, `durable=False`",
        "commit, not synced",
        beside(FILE, ours="ours, not synced") | {"with `async_log_write=False`": "FileStorage / ours, buffered"},
        "none syncs",
    ),
    Line(
        "open 1,000,000 objects: {} ms, {} MB",
        "open, closed",
        {
            "FileStorage: time": "time, FileStorage / ours",
            "memory": "memory that opening takes, FileStorage / ours",
            "of the whole process": "memory of the whole process, FileStorage / ours",
        },
        own=(("ours", "ms to the first load"), ("ours", "MB more by opening")),
    ),
    Line("open 1,000,000 objects", "open, closed", beside("FileStorage after `pack()`", ZODB, REL, before="time, ")),
    Line(
        "open after `kill -9`: {} ms",
        "open, killed",
        beside(ZODB, REL, before="time, "),
        "nothing is lost",
        (("ours", "ms to the first load"),),
    ),
    Line(
        "open 10,000,000 objects",
        "growth, open",
        {"10,000 objects": "ours, at 10,000,000 / at 10,000 objects"},
        how=LONGER,
    ),
    Line(
        "collect the same garbage while 10,000,000 live",
        "growth, collect work",
        {"while 10,000 live": "ours, at 10,000,000 / at 10,000 objects"},
        how=LONGER,
    ),
    Line(
        "size after 1,000,000 updates of 10,000 objects: {} MB",
        "update",
        beside(FILE, ZODB, REL, before="MB on disk, "),
        own=(("ours", "MB on disk"),),
    ),
    Line(
        "delete half of 20,000 objects, and collect: {} s",
        "halve",
        beside(FILE, FILE2, ZODB, before="s until collected, ", ours="ours, pack"),
        own=(("ours, pack", "s until collected"),),
    ),
    Line(
        "visit 10,000 objects, cold; warm",
        "traverse",
        {
            "ZODB FileStorage": "cold, geometric mean of the shapes, ZODB FileStorage / ours",
            "warm": "warm, geometric mean of the shapes, ZODB FileStorage / ours",
        },
    ),
    Line(
        "OO7, small: traversals, cold",
        "oo7, small, traversals, cold",
        {name: f"geometric mean of 6, {NAMES.get(name, name)} / ours" for name in (FILE2, ZODB, REL)},
    ),
    Line(
        "OO7, small: traversals that update, hot",
        "oo7, small, traversals that update, hot",
        {name: f"geometric mean of 7, {NAMES.get(name, name)} / ours" for name in (FILE2, ZODB, REL)},
        ALL_SYNC,
    ),
    _clients("server, 8 clients: {} loads/s", "load", "", *SERVERS),
    _clients("server, 8 clients: {} commits/s", "commit", ALL_SYNC, "over FileStorage2", "ZEO", REL),
    Line(
        "commits of 4 clients while garbage is collected: 99th percentile",
        "collect-busy, commits, steadily",
        {
            "without": "p99 of commits, collecting / not, ours, as it goes",
            "a full pack": "p99 of commits, collecting / not, ours, full pack",
            "ZEO's pack": "p99 of commits, collecting / not, ZEO",
        },
        ALL_SYNC,
        how=LONGER,
    ),
    Line(
        "`migrate` 200,000 records",
        "migrate",
        {"bare Berkeley DB puts": "time, ours / bare Berkeley DB"},
        "verified",
        how=LONGER,
    ),
    Line(
        "visit 10,000 objects over a network of 1 ms, `prefetch=300`",
        "serve-link, tree",
        {"without": "tree: with prefetch / without", "Durus' client": "tree: with prefetch / Durus"},
    ),
)
"""The rows, in order."""
