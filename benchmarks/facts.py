"""What the figures depend on: versions, machine, file system."""

from __future__ import annotations

import logging
import os
import platform
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
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            kind, source, options = after.split()[:3]
            return f"{kind} on {source} ({options})"
    return "unknown"
