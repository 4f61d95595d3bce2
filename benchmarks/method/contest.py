"""Lets peers do the same work in turn, each in a process of its own.

What a peer does beside its work (threads, caches, memory, Python's lock) meets nobody else, the rounds are interleaved,
and the highest memory of each process is its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.method.measure import Result, Series, progress
from benchmarks.method.syncs import counted
from benchmarks.method.usage import forget_highest, memory
from benchmarks.method.workers import Worker
from benchmarks.peers.registry import Peer, present

PEAK, SYNCS = "peak MB", "syncs"

Found = dict[str, dict[str, Series]]
"""Name of a peer -> column -> one number a round."""


class Contender:
    """What one peer does in a contest. Lives in a process of its own; `round` is called once a round.

    Subclasses prepare in their constructor, which is not measured, and may import a peer's code there only.
    """

    def __init__(self, peer: str, path: str) -> None:
        """Prepare.

        Args:
            peer: a name of `PEERS`.
            path: where it may keep its things: a file or directory, and others beside it; the directory that it is
                in is its own.
        """
        self.peer = peer
        self.path = Path(path)
        self.path.parent.mkdir(exist_ok=True)

    def round(self) -> dict[str, float]:
        """Do the work once; return what was measured, by column."""
        raise NotImplementedError

    def forget_highest(self) -> None:
        """Let the highest memory begin anew."""
        forget_highest()

    def peak(self) -> float:
        """Return the highest memory of this process since then, in MB."""
        return memory()[1]

    def close(self) -> None:
        """End."""

    def remove(self) -> None:
        """Remove everything that was kept."""
        for path in self.path.parent.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def contest(
    kind: type[Contender],
    peers: Sequence[Peer],
    directory: Path,
    arguments: Sequence[object],
    rounds: int,
    *,
    warm: bool = True,
    fresh: bool = False,
    syncs: bool = False,
) -> Found:
    """Let all of these peers that are installed work in turn, round after round.

    Args:
        kind: what they do.
        peers: who.
        directory: where; each gets a path of its own below, which `kind` finds as the last round left it.
        arguments: those of `kind` after peer and path.
        rounds: how many are measured.
        warm: whether there is a round before, which is not measured.
        fresh: whether each round has a new process: of what depends on what a process did before.
        syncs: whether the syncs of one more round, which is not measured, are counted as well.
    """
    found: Found = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for number in range(rounds + warm):
            for peer in present(peers):
                if fresh or number == 0:
                    progress(f"{kind.__name__}: {peer.name}, round {number + 1} of {rounds + warm}")
                    given = [peer.name, directory / peer.name / "store", *arguments]
                    workers[peer.name] = stack.enter_context(Worker(kind, *given))
                    workers[peer.name].call("forget_highest")
                measured = workers[peer.name].call("round")
                if number >= warm:
                    _note(found.setdefault(peer.name, {}), measured, workers[peer.name])
                if fresh and number < rounds + warm - 1:
                    workers[peer.name].close()
        if syncs:
            for name, worker in workers.items():
                found[name][SYNCS] = [counted(worker.pid, lambda worker=worker: worker.call("round"))]
    return found


def _note(columns: dict[str, Series], measured: dict[str, float], worker: Worker) -> None:
    for column, number in (*measured.items(), (PEAK, worker.call("peak"))):
        columns.setdefault(column, []).append(number)


def rows(result: Result, peers: Sequence[Peer], found: Found) -> None:
    """Add a row for each peer that took part."""
    for peer in peers:
        if peer.name in found:
            result.row(peer.name, peer.durability, **found[peer.name])
    missing = [peer.name for peer in peers if peer.name not in found]
    if missing:
        result.notes.append(f"not installed, so not measured: {', '.join(missing)} (pip install -e '.[bench]')")


def against(found: Found, column: str, peer: Peer, other: Peer) -> Series | None:
    """Return peer / other of a column, round by round; None where one of them took no part."""
    if peer.name not in found or other.name not in found:
        return None
    pairs = zip(found[peer.name][column], found[other.name][column], strict=True)
    return [one / two for one, two in pairs]
