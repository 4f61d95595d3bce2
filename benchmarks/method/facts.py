"""What the figures depend on: versions, machine, file system."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

DISTRIBUTIONS = (
    "durus", "berkeleydb", "pyroaring", "uvloop",
    "ZODB", "ZEO", "BTrees", "persistent", "RelStorage", "lmdb", "CyberDB", "matplotlib",
)  # fmt: skip
"""What may take part."""
MACHINE = ("system", "processor", "memory", "disk", "file system", "governor", "runs in")
"""Facts that name the machine: numbers of two machines are not compared."""
RUN = ("command", "date", "commit", "a sync there", "load average", "load average at the end")
"""Facts about a single run. All others are versions."""
UNTOLD = "not told"


def quiet_durus() -> None:
    """Keep Durus' storages from writing a line for each commit, as they would: it would flatter us."""
    from durus.logger import logger  # sets its own level when it is imported

    logger.setLevel(logging.WARNING)


def facts(directory: Path, command: str = "python -m benchmarks") -> dict[str, str]:
    """Return what a reader of the figures has to know.

    Args:
        directory: where the work is done.
        command: what measures the same once more.
    """
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        **versions(),
        **machine(directory),
        "a sync there": f"{sync_time(directory) * 1e6:.0f} µs (1 KiB appended to a file, fdatasync; median)",
        "load average": load_average(),
    }


def versions() -> dict[str, str]:
    """Return those of everything that may take part and is here."""
    from berkeleydb_storage import __version__
    from berkeleydb_storage.environment import LIBRARY

    found = {
        "berkeleydb_storage": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libdb": LIBRARY,
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if "lmdb" in found:
        import lmdb

        found["LMDB library"] = ".".join(map(str, lmdb.version()))
    return found | {"sqlite3 library": sqlite3.sqlite_version}


def commit() -> str:
    """Return the commit that is measured, where the project is a checkout of git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return UNTOLD
    found = _git(root, "rev-parse", "--short=12", "HEAD")
    return f"{found}, changed" if found and _git(root, "status", "--porcelain", "--", "berkeleydb_storage") else found


def _git(root: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
    return ran.stdout.strip()


def machine(directory: Path) -> dict[str, str]:
    """Return what the machine is, as far as it tells."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{_processor()}, {cores()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "disk": _disk(directory),
        "file system": file_system(directory),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or UNTOLD,
        "runs in": _kept_in(),
    }


def cores() -> int:
    """Return how many processors we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> str:
    """Return how many processes wanted to run during the last minute: more than one or two disturb."""
    return f"{os.getloadavg()[0]:.2f}"


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _processor() -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _disk(directory: Path) -> str:
    device = directory.stat().st_dev
    found = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not found.exists():
        return UNTOLD
    whole = found.resolve()
    whole = whole.parent if (whole / "partition").exists() else whole
    model = _text(whole / "device/model") or "no model told"
    turns = {"0": "not rotational", "1": "says it is rotational"}.get(_text(whole / "queue/rotational"), UNTOLD)
    return f"{whole.name}: {model}, {turns}, {_text(whole / 'queue/write_cache') or UNTOLD}"


def _kept_in() -> str:
    """Return what is around us: the limits of that may be others than those of the machine."""
    found = []
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        found.append("a container")
    if " hypervisor " in f"{_text('/proc/cpuinfo')} ".replace("\n", " "):
        found.append("a virtual machine")
    return " in ".join(found) or UNTOLD


def sync_time(directory: Path, times: int = 100) -> float:
    """Return the seconds that it takes to bring a little to the disk: the least that a durable commit can take."""
    taken = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(times):
            started = time.perf_counter()
            file.write(bytes(1024))
            os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    return median(taken)


def on_disk() -> Path:
    """Return a directory for temporary files that is not in memory, if there is one."""
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    return next((path for path in candidates if path.is_dir() and not in_memory(path)), candidates[0])


def in_memory(path: Path) -> bool:
    """Tell whether the files in a directory are in memory, where a sync costs nothing."""
    return file_system(path).startswith(("tmpfs", "ramfs"))


def file_system(path: Path) -> str:
    """Return type and device of the file system that holds `path`, where the system tells (Linux)."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _text("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            kind, source, options = after.split()[:3]
            return f"{kind} on {source} ({options})"
    return "unknown"


def differing(one: dict[str, str], other: dict[str, str], names: Sequence[str] | None = None) -> list[str]:
    """Return which facts differ, "name: one -> other"; without `names`, of those that are not of a single run."""
    chosen = [name for name in (*one, *other) if name not in RUN] if names is None else names
    return [
        f"{name}: {one.get(name, 'none')} -> {other.get(name, 'none')}"
        for name in dict.fromkeys(chosen)
        if one.get(name) != other.get(name)
    ]
