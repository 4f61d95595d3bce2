"""Clients that work at the same time, and what their work comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles
from types import TracebackType
from typing import Any

from benchmarks.method.measure import Result, Series
from benchmarks.method.process import processes_in_turn
from benchmarks.method.workers import Worker, together
from benchmarks.serving.clients import Client


@dataclass(frozen=True)
class Contestant:
    """A server, and the clients that it is used with."""

    name: str
    about: str
    place: int | str
    """The port of a server of this machine, or the directory of a shared storage."""
    kind: str
    """Of the clients."""
    authority: str = ""
    """A file, where it is TLS."""
    prefetch: int = 0

    @property
    def where(self) -> list[object]:
        """What clients connect to: arguments of `Client.connect`."""
        return [self.kind, self.place, self.authority, self.prefetch]


class Crowd:
    """Processes of clients, which connect to one server after the other."""

    def __init__(self) -> None:
        """Start none yet."""
        self._stack = ExitStack()
        self._workers: list[Worker] = []

    def get(self, number: int) -> list[Worker]:
        """Return so many of them, the same ones each time."""
        new = [Worker(Client, n) for n in range(len(self._workers), number)]
        self._workers += [self._stack.enter_context(worker) for worker in new]
        return self._workers[:number]

    def work(self, contestant: Contestant, number: int, method: str, *arguments: object) -> dict[str, float]:
        """Have so many clients connect, call a method at the same time, and hang up; return what it comes to."""
        workers = self.get(number)
        together(workers, "connect", *contestant.where)
        try:
            return summed(together(workers, method, *arguments))
        finally:
            together(workers, "disconnect")

    def __enter__(self) -> Crowd:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them all."""
        self._stack.close()


def summed(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the rates of all clients added, that of the slowest, and quantiles of what each single thing took."""
    rates = [each["rate"] for each in measured]
    return {"rate": sum(rates), "slowest": min(rates), **spread([t for each in measured for t in each["taken"]])}


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return the quantiles that are shown."""
    shares = quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else [taken[0]] * 99
    return {"p50": shares[49], "p99": shares[98], "max": max(taken)}


Found = dict[str, dict[str, Series]]
"""Name of a contestant -> what was measured -> one number a round."""


def compete(contestants: Sequence[Contestant], rounds: int, work: Callable[[Contestant], dict[str, float]]) -> Found:
    """Let all of them warm up, and work once a round."""
    for contestant in contestants:
        work(contestant)
    return processes_in_turn({each.name: lambda each=each: work(each) for each in contestants}, rounds)


def rows(result: Result, contestants: Sequence[Contestant], found: Found, unit: str) -> None:
    """Add what was found to a table."""
    for each in contestants:
        numbers = found[each.name]
        columns = {
            unit: numbers["rate"],
            f"slowest client's {unit}": numbers["slowest"],
            "p50 µs": numbers["p50"],
            "p99 µs": numbers["p99"],
        }
        result.row(each.name, each.about, **columns)
