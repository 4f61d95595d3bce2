"""Samples the stacks of another process, with py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RATE = 200
"""Samples a second. Each stops the process for half a millisecond or so: what is measured beside it means nothing."""
STARTING = 30
"""Seconds that py-spy may take beside those of the sampling: it reads the symbols of all libraries."""


class SamplingError(Exception):
    """Raised when a process cannot be sampled; the message says what helps."""


def find() -> str:
    """Return where py-spy is.

    Raises:
        SamplingError: it is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise SamplingError("py-spy is not installed: pip install -e '.[bench]'")
    return found


def sample(pid: int, seconds: int) -> list[str]:
    """Return the stacks of a process, as lines for `layers.attribute`.

    Args:
        pid: a process of Python, which must not end meanwhile.
        seconds: for how long; at least 1.

    Raises:
        SamplingError: that is not possible here.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "stacks")
        options = ["--native", "--idle", "--threads", "--format", "raw", "--rate", str(RATE)]
        command = [find(), "record", *options, "--duration", str(seconds), "--output", output, "--pid", str(pid)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + STARTING)
        if not output.exists():
            raise SamplingError(_reason(ran.stderr or ran.stdout))
        return output.read_text().splitlines()


def _reason(said: str) -> str:
    """Return why it did not work, and what helps."""
    first = next((line for line in said.splitlines() if "rror" in line or "ermission" in line), said.strip())
    if "ermi" in said:
        return (
            "py-spy may not look into another process: run this as root, or set kernel.yama.ptrace_scope to 0, or give "
            f"the container the capability SYS_PTRACE ({first})"
        )
    return f"py-spy did not work: {first}; python -m benchmarks load commit … measures without it"
