"""All ways for several processes to have the same objects, ours among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.method.workers import Worker
from benchmarks.peers.durus import FILE, FILE2
from benchmarks.peers.registry import NEVER_SYNCS, SYNCS
from benchmarks.serving.keepers import CyberServer, Files, ZeoServer
from benchmarks.serving.servers import DurusServer, OurServer


@dataclass(frozen=True)
class Way:
    """One way for several processes to have the same objects."""

    name: str
    durability: str
    """What a commit promises, and what else must be known to compare it."""
    store: str
    """What the clients open: a name of `STORES`."""
    keeper: type
    """Who has the objects."""
    given: tuple[str, ...] = ()
    """What the keeper gets before the path."""
    package: str = ""
    """The distribution that it is of."""

    def start(self, path: Path, objects: int, contents: str, *more: object) -> Worker:
        """Begin to start the keeper.

        Args:
            path: where it has its files; also what is to be theirs with a longer name.
            objects: how many to make.
            contents: of what kind, as the keeper knows it; "" for what is there.
            more: what the keeper gets beside that.
        """
        after = (self.store,) if self.keeper is Files else more
        return Worker(self.keeper, *self.given, path, objects, contents, *after)


OURS = Way("ours", f"server and clients; {SYNCS}, several together where they come together", "ours", OurServer)
SHARED = Way("ours, shared", f"SharedStorage: no server, one of the processes has the files; {SYNCS}", "shared", Files)
DURUS_FILE = Way("Durus, FileStorage", f"server and clients; {NEVER_SYNCS}", "durus", DurusServer, (FILE,))
DURUS_FILE2 = Way("Durus, FileStorage2", f"server and clients; {SYNCS}", "durus", DurusServer, (FILE2,))
ZEO = Way("ZEO", f"server over FileStorage, and clients; {SYNCS}", "zeo", ZeoServer, (), "ZEO")
RELSTORAGE = Way(
    "RelStorage", f"no server: a file of sqlite3; {SYNCS}, synchronous=full", "relstorage", Files, (), "RelStorage"
)
CYBERDB = Way(
    "CyberDB", "server and clients; a dict in memory: nothing is on the disk before its backup, here every 15 minutes",
    "cyberdb", CyberServer, (), "CyberDB",
)  # fmt: skip
SQLITE3 = Way("sqlite3", f"no server: a file; {SYNCS}, WAL, synchronous=full", "sqlite3", Files)
