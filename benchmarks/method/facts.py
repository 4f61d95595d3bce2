"""What the figures depend on: versions, machine, file system."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median


def quiet_durus() -> None:
    """Keep Durus' storages from writing a line for each commit, as they would: it would flatter us."""
    from durus.logger import logger  # sets its own level when it is imported

    logger.setLevel(logging.WARNING)


def facts(directory: Path) -> dict[str, str]:
    """Return what a reader of the figures has to know."""
    from berkeleydb_storage import __version__
    from berkeleydb_storage.environment import LIBRARY

    return {
        "berkeleydb_storage": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "durus": version("durus"),
        "libdb": LIBRARY,
        "berkeleydb (binding)": version("berkeleydb"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "file system": file_system(directory),
        "a sync there": f"{sync_time(directory) * 1e6:.0f} microseconds (1 KiB appended to a file, fdatasync)",
        "load average": load_average(),
    }


def load_average() -> str:
    """Return how many processes wanted to run during the last minute: more than one or two disturb."""
    return f"{os.getloadavg()[0]:.2f}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


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
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            kind, source, options = after.split()[:3]
            return f"{kind} on {source} ({options})"
    return "unknown"
