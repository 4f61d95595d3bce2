"""A disk that is slow to sync: a library that is preloaded into the processes of servers."""

from __future__ import annotations

import subprocess
from pathlib import Path


def slow_disk(directory: Path, seconds: float) -> dict[str, str]:
    """Compile the library in a directory; return the environment in which each sync takes so many seconds.

    Raises:
        OSError: there is no C compiler.
        subprocess.CalledProcessError: it fails.
    """
    library = directory / "slowsync.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOWSYNC": str(round(seconds * 1e6))}
