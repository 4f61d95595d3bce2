"""Runs a probe in a fresh process, because memory and the time to open depend on what a process did before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.method.measure import Series


def in_a_process(probe: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Call a function of `probes` in a new interpreter, and return what it returns."""
    given = json.dumps([str(argument) if isinstance(argument, Path) else argument for argument in arguments])
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.method.child", probe.__name__, given],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    numbers: dict[str, float] = json.loads(found.stdout)
    return numbers


def processes_in_turn(
    probes: Mapping[str, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, dict[str, Series]]:
    """Let each contestant run once a round; return name -> what was measured -> one number a round."""
    found: dict[str, dict[str, Series]] = {name: {} for name in probes}
    for _ in range(rounds):
        for name, probe in probes.items():
            for what, number in probe().items():
                found[name].setdefault(what, []).append(number)
    return found
