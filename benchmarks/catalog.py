"""All benchmarks by name, each with its sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.backups import archiving, backing
from benchmarks.garbage import collecting
from benchmarks.growth import growing
from benchmarks.method.measure import Result
from benchmarks.oo7 import oo7
from benchmarks.serving import beside, collecting_meanwhile, serving, serving_more
from benchmarks.work import (
    building,
    committing,
    encrypting,
    halving,
    loading,
    migrating,
    opening,
    traversing,
    updating,
)

TINY, QUICK, FULL = "tiny", "quick", "full"
"""So small that the numbers mean nothing; minutes; what is reported."""


@dataclass(frozen=True)
class Part:
    """One benchmark."""

    run: Callable[[Path, Any], list[Result]]
    """Does it in an empty directory of its own."""
    sizes: Mapping[str, Any]
    """Of `TINY`, `QUICK` and `FULL`: how much is done."""


PARTS: dict[str, Part] = {
    "build": Part(building.building, building.SIZES),
    "load": Part(loading.load, loading.SIZES),
    "commit": Part(committing.commit, committing.SIZES),
    "update": Part(updating.update, updating.SIZES),
    "halve": Part(halving.halve, halving.SIZES),
    "traverse": Part(traversing.traverse, traversing.SIZES),
    "oo7": Part(oo7.oo7, oo7.SIZES),
    "growth": Part(growing.growing, growing.SIZES),
    "open": Part(opening.open, opening.SIZES),
    "encryption": Part(encrypting.encryption, encrypting.SIZES),
    "archive": Part(archiving.archive, archiving.SIZES),
    "migrate": Part(migrating.migrate, migrating.SIZES),
    "collect": Part(collecting.collect, collecting.SIZES),
    "backup": Part(backing.backup, backing.SIZES),
    "serve-peers": Part(beside.beside, beside.SIZES),
    "collect-busy": Part(collecting_meanwhile.collecting_meanwhile, collecting_meanwhile.SIZES),
    "serve-loads": Part(serving.loads, serving.SIZES),
    "serve-commits": Part(serving.commits, serving.SIZES),
    "serve-slow": Part(serving.slow, serving.SIZES),
    "serve-large": Part(serving_more.large, serving.SIZES),
    "serve-link": Part(serving_more.link, serving.SIZES),
    "serve-shared": Part(serving_more.shared, serving.SIZES),
    "serve-tls": Part(serving_more.tls, serving.SIZES),
}

COMPARED = [
    "build",
    "load",
    "commit",
    "update",
    "halve",
    "open",
    "traverse",
    "oo7",
    "growth",
    "serve-peers",
    "collect-busy",
]
"""What is run where no name is given: ours beside everyone else."""
GROUPS = {
    "compared": COMPARED,
    "serve": [name for name in PARTS if name.startswith("serve-")],
    "all": list(PARTS),
}
"""What stands for several benchmarks."""


def named(names: list[str]) -> list[str]:
    """Return the benchmarks that these names stand for; `COMPARED` where there are none.

    Raises:
        KeyError: there is none of a name.
    """
    found = [each for name in names for each in GROUPS.get(name, [name])] or COMPARED
    for name in found:
        PARTS[name]
    return found
