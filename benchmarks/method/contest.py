"""Lets peers do the same work in turn, each in a process of its own.

What a peer does beside its work (threads, caches, memory, Python's lock) meets nobody else, the rounds are interleaved,
and the highest memory of each process is its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.method.caches import settle
from benchmarks.method.measure import Result, Series, progress
from benchmarks.method.syncs import CannotCount, counted
from benchmarks.method.usage import forget_highest, memory
from benchmarks.method.workers import Worker
from benchmarks.peers.registry import Peer, present

QUIET = 2.0
"""Seconds between two lines that say what goes on."""
PEAK, SYNCS, SYNCS_A_COMMIT = "peak MB", "syncs", "syncs a commit"


class Found(dict[str, dict[str, Series]]):
    """Name of a peer -> column -> one number a round."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        super().__init__()
        self.notes: list[str] = []
        """What could not be measured."""


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

    def commits_a_round(self) -> int:
        """Return how many commits a round has, where it does nothing else that syncs; else 0."""
        return 0

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
        syncs: whether the syncs of one more round, which is not measured, are counted as well, where strace may.
    """
    found = Found()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        said = 0.0

        def worker(peer: Peer) -> Worker:
            if fresh and peer.name in workers:
                workers.pop(peer.name).close()
            if peer.name not in workers:
                given = [peer.name, directory / peer.name / "store", *arguments]
                workers[peer.name] = stack.enter_context(Worker(kind, *given))
                workers[peer.name].call("forget_highest")
            return workers[peer.name]

        for number in range(rounds + warm):
            for peer in present(peers):
                said = _say(said, f"{kind.__name__}: {peer.name}, round {number + 1} of {rounds + warm}")
                chosen = worker(peer)
                settle(directory)
                measured = chosen.call("round")
                if number >= warm:
                    _note(found.setdefault(peer.name, {}), measured, chosen)
        if syncs:
            _count_syncs(found, {peer.name: partial(worker, peer) for peer in present(peers)})
    return found


def _say(said: float, text: str) -> float:
    """Say what goes on, if nothing was said for a while; return when something was said last."""
    if said and time.monotonic() < said + QUIET:
        return said
    progress(text)
    return time.monotonic()


def _count_syncs(found: Found, workers: dict[str, Callable[[], Worker]]) -> None:
    """Have each of them do one more round, and count its syncs."""
    for name, worker in workers.items():
        progress(f"syncs: {name}")
        chosen = worker()
        try:
            number = counted(chosen.pid, partial(chosen.call, "round"))
        except CannotCount as error:
            found.notes.append(f"Syncs were not counted: {error}.")
            return
        commits = chosen.call("commits_a_round")
        found[name][SYNCS_A_COMMIT if commits else SYNCS] = [number / (commits or 1)]


def _note(columns: dict[str, Series], measured: dict[str, float], worker: Worker) -> None:
    for column, number in (*measured.items(), (PEAK, worker.call("peak"))):
        columns.setdefault(column, []).append(number)


def rows(result: Result, peers: Sequence[Peer], found: Found) -> None:
    """Add a row for each peer that took part."""
    for peer in peers:
        if peer.name in found:
            result.row(peer.name, peer.durability, **found[peer.name])
    result.notes += getattr(found, "notes", [])  # a part may make its own dictionary
    missing = [peer.name for peer in peers if peer.name not in found]
    if missing:
        result.notes.append(f"not installed, so not measured: {', '.join(missing)} (pip install -e '.[bench]')")


def against(found: Found, column: str, peer: Peer, other: Peer) -> Series | None:
    """Return peer / other of a column, round by round; None where one of them took no part."""
    if peer.name not in found or other.name not in found:
        return None
    pairs = zip(found[peer.name][column], found[other.name][column], strict=True)
    return [one / two for one, two in pairs]
