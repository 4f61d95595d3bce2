"""The full pack, beside that of Durus' FileStorage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

from durus.file_storage import FileStorage

from benchmarks.method.measure import Result, progress, ratios
from benchmarks.method.process import in_a_process, processes_in_turn
from benchmarks.objects.graphs import ROOT, Graph
from benchmarks.peers.durus import FILE, OURS, ours
from benchmarks.work import probes

TREE = 1000
COMMIT = 1000

Probe = Callable[[], dict[str, float]]


def _graph(live: int, garbage: int) -> tuple[Graph, int]:
    """Make trees with pointers to parents, those that are garbage between those that live.

    Returns:
        It, and how many of its objects live.
    """
    graph, lost = Graph(), 0
    trees = max(2, live // TREE)
    for n in range(trees):
        graph.tree(live // trees, ROOT)
        while lost < garbage * (n + 1) // trees:
            size = min(garbage - lost, graph.random.randint(2, 2000))
            graph.tree(size) if size > 1 else graph.ring(2)
            lost += max(size, 2)
    return graph, len(graph) - lost


def _build(directory: Path, graph: Graph) -> None:
    """Store the graph in both storages."""
    with ours(directory / OURS, durable=False) as storage:
        storage.migrate(graph.records())
    with closing(FileStorage(str(directory / FILE))) as storage:
        records = graph.records()
        while batch := list(islice(records, COMMIT)):
            storage.begin()
            for _, record in batch:
                storage.store(storage.new_oid(), record)
            storage.end()


def _once(path: Path, probe: Callable[..., dict[str, float]], live: int) -> dict[str, float]:
    """Pack a copy in a fresh process."""
    progress(f"collect: pack, {path.name}")
    copy = path.with_name(f"{path.name} packed")
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    found = in_a_process(probe, copy, live)
    for left in path.parent.glob(f"{copy.name}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return found


def packs(directory: Path, live: int, garbage: int, rounds: int) -> list[Result]:
    """Compare full packs of objects that live, and of cyclic garbage."""
    progress(f"collect: building {live:,} objects and {garbage:,} of garbage")
    directory.mkdir()
    graph, live = _graph(live, garbage)
    _build(directory, graph)
    garbage = len(graph) - live
    del graph
    contestants: dict[str, Probe] = {
        FILE: partial(_once, directory / FILE, probes.pack_file_storage, live),
        OURS: partial(_once, directory / OURS, probes.pack_ours, live),
    }
    found = processes_in_turn(contestants, rounds)
    result = Result(
        "collect, full pack",
        f"pack() of {live:,} objects that live, in trees with pointers to the parents, and {garbage:,} in such trees "
        "that the root does not reach; in a fresh process, nobody else uses the storage, which was read once before. "
        "MB of memory before, and at most more than that meanwhile. Verified: what lives is left, and nothing else.",
    )
    about = {
        FILE: "commits wait until it ends; writes a second file, then replaces the first",
        OURS: "durable=True; steps of about a millisecond, between which commits go on",
    }
    for name, series in found.items():
        result.row(
            name,
            about[name],
            seconds=series["seconds"],
            **{"thousand objects/s": [(live + garbage) / taken / 1e3 for taken in series["seconds"]]},
            MB_before=series["open"],
            MB_more=series["increase"],
        )
    result.figure("seconds", found[OURS]["seconds"])
    result.figure("memory more than before", found[OURS]["increase"], unit="MB")
    result.figure("time, ours / FileStorage", ratios(found[OURS]["seconds"], found[FILE]["seconds"]))
    result.figure("memory, FileStorage / ours", ratios(found[FILE]["increase"], found[OURS]["increase"]))
    return [result]
