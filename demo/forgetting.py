"""Deletes a package, and watches the collector take it while the application goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from durus.connection import Connection

from berkeleydb_storage import BerkeleyDBStorage, GarbageThread, Session
from demo.building import CACHE_OBJECTS
from demo.library import DOOMED, is_doomed
from demo.model import Library, Module, Package, nodes_in
from demo.show import Story, quantile, seconds

GRACE = 1.0
"""Seconds of grace for unlinked objects: short, so that there is something to see. The default is a minute."""
QUIET = 1.5
"""Seconds of the foreground loop without garbage, to compare with."""
LOADS = 20
"""Loads between two commits of the foreground loop."""
TELL_EVERY = 0.4
"""Seconds between two lines."""
PATIENCE = 60.0
"""Seconds after which garbage that is still there is a failure."""


class Unlinked(NamedTuple):
    """What it took to let a package go."""

    pointers: int
    importers: int
    objects: int


def unlink(library: Library) -> Unlinked:
    """Take the package `DOOMED` out of the library, and cut every cycle that it is in. Does not commit."""
    package = library.contents.pop(DOOMED)
    assert isinstance(package, Package)
    doomed = modules_in(package)
    importers = 0
    for module in library.all_modules():
        kept = tuple([target for target in module.imports if not is_doomed(target.name)])
        if is_doomed(module.name):
            module.imports = ()
            del library.modules[module.name]
        elif kept != module.imports:
            module.imports = kept
            importers += 1
    pointers, objects = cut_downward(package, doomed)
    return Unlinked(pointers, importers, objects)


def modules_in(package: Package) -> list[Module]:
    """Return the modules of a package and of those in it."""
    found: list[Module] = []
    for each in package.contents.values():
        found += [each] if isinstance(each, Module) else modules_in(each)
    return found


def cut_downward(package: Package, modules: Sequence[Module]) -> tuple[int, int]:
    """Clear the pointers from containers to what is in them; return how many containers and objects there are."""
    nodes = [node for module in modules for node in nodes_in(module)]
    containers = [node for node in nodes if node.statements or getattr(node, "definitions", ())]
    for node in containers:
        node.statements = ()
        if hasattr(node, "definitions"):
            node.definitions = ()
    packages = [package]
    for each in packages:
        packages += [inner for inner in each.contents.values() if isinstance(inner, Package)]
        each.contents.clear()
    return len(containers) + len(packages), len(nodes) + len(modules) + 2 * len(packages)


class Foreground:
    """The application: loads objects at random, and commits a change after every few of them."""

    def __init__(self, session: Session) -> None:
        """Find the objects that stay."""
        self._session = session
        self._connection = Connection(session, cache_size=CACHE_OBJECTS)
        library: Library = self._connection.get_root()["library"]
        self._modules = [module for module in library.all_modules() if not is_doomed(module.name)]
        self._oids = [node._p_oid for module in self._modules for node in nodes_in(module)]
        self._choice = random.Random(1)
        self.loads: list[float] = []
        self.commits: list[float] = []

    def turn(self) -> None:
        """See what others did, load, change, commit; the loads are the storage's, past the connection's cache."""
        self._connection.abort()
        for oid in self._choice.choices(self._oids, k=LOADS):
            started = time.perf_counter()
            self._session.load(oid)
            self.loads.append(time.perf_counter() - started)
        self._choice.choice(self._modules).reviews += 1
        started = time.perf_counter()
        self._connection.commit()
        self.commits.append(time.perf_counter() - started)

    def row(self, name: str) -> list[str]:
        """Return a row of the table of latencies, and begin anew."""
        cells = [name, f"{len(self.loads):,}", f"{len(self.commits):,}"]
        for times in (self.loads, self.commits):
            cells += [seconds(quantile(times, share)) for share in (0.5, 0.99, 1.0)]
            times.clear()
        return cells


def forget(story: Story, directory: Path) -> None:
    """Delete `DOOMED` and watch."""
    story.step(
        f"delete the package {DOOMED}, and watch the garbage go",
        "Objects are collected by reference counts; cycles are not collected yet. Here every object points to what it "
        f"is in, and is pointed to from there: a cycle. So the demo takes {DOOMED} out of the library, cuts the "
        "imports of it, and clears the pointers from the containers down; the parent pointers may stay. A background "
        f"thread then deletes what has no referrer, after {GRACE:.0f} s of grace (the default is 60), while this "
        f"process goes on: {LOADS} random loads, a change, a durable commit, and again.",
    )
    with BerkeleyDBStorage(directory, garbage_collection=GarbageThread(grace=GRACE)) as storage:
        foreground = Foreground(storage.session())
        started = time.monotonic()
        while time.monotonic() - started < QUIET:
            foreground.turn()
        story.figure("quiet commit p99", quantile(foreground.commits, 0.99))
        story.figure("quiet load p99", quantile(foreground.loads, 0.99))
        rows = [["", "loads", "commits", "load, median", "99 %", "longest", "commit, median", "99 %", "longest"]]
        rows.append(foreground.row("before"))

        before = storage.get_size()
        unlinked = _unlink(storage)
        story.line(
            f"One commit cut the pointers of {unlinked.pointers:,} containers and the imports of {unlinked.importers} "
            "modules."
        )
        gone_after = _watch(story, storage, foreground, before)
        story.figure("collecting commit p99", quantile(foreground.commits, 0.99))
        story.figure("collecting load p99", quantile(foreground.loads, 0.99))
        rows.append(foreground.row("while it goes"))
        print()
        story.table(rows)

        collected = story.figure("objects collected", storage.statistics().collected.objects)
        story.figure("collection seconds", gone_after)
        story.check(f"all {unlinked.objects:,} objects of {DOOMED} were collected", collected >= unlinked.objects)
        story.check("no garbage is left", storage.statistics().garbage == 0)
        story.check("whatever is left can be reached from the root", _reachable(storage) == storage.get_size())


def _unlink(storage: BerkeleyDBStorage) -> Unlinked:
    connection = Connection(storage.session(), cache_size=CACHE_OBJECTS)
    unlinked = unlink(connection.get_root()["library"])
    connection.commit()
    return unlinked


def _watch(story: Story, storage: BerkeleyDBStorage, foreground: Foreground, before: int) -> float:
    """Run the foreground until the garbage is gone, with a line now and then; return the seconds that it took."""
    print()
    story.line("   time     objects   in the queue")
    started = time.monotonic()
    most = told = 0.0
    while True:
        elapsed, statistics = time.monotonic() - started, storage.statistics()
        most = max(most, statistics.garbage)
        done = (statistics.garbage == 0 and statistics.objects < before) or elapsed > PATIENCE
        if done or elapsed >= told:
            bar = "#" * round(50 * statistics.garbage / most) if most else ""
            story.line(f"{elapsed:5.1f} s  {statistics.objects:10,}  {statistics.garbage:6,}  {bar}")
            told = elapsed + TELL_EVERY
        if done:
            return elapsed
        foreground.turn()


def _reachable(storage: BerkeleyDBStorage) -> int:
    return sum(1 for _ in storage.session().gen_oid_record(start_oid=b"\0" * 8))
