"""What the figures depend on: versions, machine, file system; and how much memory and disk something takes."""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path


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
        "processor": f"{_processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f} at the beginning",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB",
        "file system": file_system(directory),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def file_system(path: Path) -> str:
    """Return type and device of the file system that holds `path`, where the system tells (Linux)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            kind, source, options = after.split()[:3]
            return f"{kind} on {source} ({options})"
    return "unknown"


def memory() -> tuple[float, float]:
    """Return (now, highest so far) of the memory that this process occupies, in MB."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        return peak, peak
    return tuple(int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def disk(path: Path, pattern: str = "*") -> tuple[int, int]:
    """Return (allocated, apparent) bytes of a file, or of the files in a directory whose names match."""
    files = [path] if path.is_file() else [file for file in path.glob(pattern) if file.is_file()]
    found = [file.stat() for file in files]
    return sum(status.st_blocks * 512 for status in found), sum(status.st_size for status in found)
