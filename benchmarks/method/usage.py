"""How much memory and disk something takes. Imports next to nothing, for it measures what imports take."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def memory() -> tuple[float, float]:
    """Return (now, highest so far) of the memory that this process occupies, in MB."""
    if sys.platform != "linux":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return peak, peak
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    now, highest = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, highest


def forget_highest() -> None:
    """Let the highest of `memory` begin anew, where the system can do that (Linux)."""
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")


def disk(path: str | os.PathLike[str]) -> dict[str, float]:
    """Return the MB that a storage takes, a file or a directory: of blocks, and as its files seem to be long."""
    found = dict.fromkeys(("data", "logs", "data apparent", "logs apparent"), 0.0)
    for file in files(path):
        kind = "logs" if file.name.startswith("log.") else "data"
        status = file.stat()
        found[kind] += status.st_blocks * 512 / 1e6
        found[f"{kind} apparent"] += status.st_size / 1e6
    return found


def parts(path: str | os.PathLike[str]) -> list[Path]:
    """Return what a storage consists of: its file or directory, and what lies beside it under its name and an ending.

    An ending begins with a dot or a hyphen: "a.lock", "a-wal"; "a b" and "a2" are something else.
    """
    from pathlib import Path

    store = Path(path)
    beside = [each for each in store.parent.iterdir() if each.name.startswith((f"{store.name}.", f"{store.name}-"))]
    return [store, *sorted(beside)] if store.exists() else sorted(beside)


def files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a storage consists of, in all directories."""
    found = []
    for part in parts(path):
        found += [each for each in sorted(part.rglob("*")) if each.is_file()] if part.is_dir() else [part]
    return found
