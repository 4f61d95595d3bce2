"""Starts the processes that are killed, and kills them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import crash_child

SETTINGS = {
    "environment.LOG_FILE_SIZE": 1 << 18,
    "environment.LOG_BUFFER": 1 << 15,
    "backup.making.LOG_FILE_SIZE": 1 << 18,
    "oids.OID_BLOCK": 4,
    "migration.BATCH": 200,
}
"""What is made small in the children, so that every crash point is reached soon."""

KILLED = -signal.SIGKILL


class Children:
    """Runs jobs of `crash_child` one after another, each in a child of its own, which may be killed."""

    def __init__(self, directory):
        command = [sys.executable, "-W", "error", crash_child.__file__]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._report = Path(directory) / "report"
        self._read = 0
        self.pid = None

    def start(self, function, path, *, fuse=None, settings=SETTINGS, user=None, **arguments):
        """Start a job; `fuse` is the name of a crash point and the how manieth time it is reached; `user` a uid."""
        job = {
            "function": function,
            "path": str(path),
            "report": str(self._report),
            "fuse": fuse,
            "settings": settings,
            "user": user,
            "arguments": arguments,
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self.pid = int(self._process.stdout.readline())

    def kill(self):
        """Kill the child, which must not end by itself before."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        """Wait for the end of the child; return its exit status, negative where a signal ended it."""
        self.pid = None
        return int(self._process.stdout.readline())

    def run(self, function, path, **arguments):
        """Do a whole job; return the exit status."""
        self.start(function, path, **arguments)
        return self.wait()

    def reported(self):
        """Return the lines that were reported since the last call. A line that was cut off is dropped."""
        if not self._report.exists():
            return []
        with self._report.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        return data.decode().splitlines()

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0
