"""Processes that wait to be told what to do: the servers and the clients of the benchmarks of serving.

A worker is an object in a process of its own. The parent says which of its methods to call, with arguments that JSON
can express, a line for each call; the answer is a line, too. ``python -m benchmarks.method.workers CLASS ARGUMENTS``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.method.facts import quiet_durus

PATIENCE = 60
"""Seconds for a process to end by itself."""


class Worker:
    """A process with one object."""

    def __init__(self, kind: type, *arguments: object, environment: dict[str, str] | None = None) -> None:
        """Begin to start it: `wait` returns when it is there.

        Args:
            kind: the object's class, at the top of its module.
            arguments: those of its constructor.
            environment: variables beside those of this process.
        """
        name = f"{kind.__module__}:{kind.__name__}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.method.workers", name, _packed(arguments)],
            cwd=Path(__file__).parents[2],
            env=os.environ | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl+C is for the parent, which ends all of them
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def start(self, method: str, *arguments: object) -> None:
        """Have a method called, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{_packed([method, *arguments])}\n")
        self._process.stdin.flush()

    def wait(self) -> Any:
        """Return what the method that was started returned; of a new worker, None."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the benchmark ended by itself: {self._process.wait(PATIENCE)}")
        return json.loads(line)

    def call(self, method: str, *arguments: object) -> Any:
        """Call a method, and return what it returns."""
        self.start(method, *arguments)
        return self.wait()

    def close(self) -> None:
        """End it: its object is closed; but where the user interrupts, it is killed, with all that it began."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            self._kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
            raise

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Worker:
        """Wait until it is there."""
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()


def together(workers: Sequence[Worker], method: str, *arguments: object) -> list[Any]:
    """Have all workers call a method at the same time; return what they return."""
    for worker in workers:
        worker.start(method, *arguments)
    return [worker.wait() for worker in workers]


def _packed(arguments: Sequence[object]) -> str:
    return json.dumps([str(argument) if isinstance(argument, Path) else argument for argument in arguments])


def _work(name: str, arguments: str) -> None:
    module, _, kind = name.partition(":")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a peer prints is no answer
    quiet_durus()
    worker = getattr(importlib.import_module(module), kind)(*json.loads(arguments))
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        method, *given = json.loads(line)
        print(json.dumps(getattr(worker, method)(*given)), file=answers, flush=True)
    worker.close()


if __name__ == "__main__":
    _work(*sys.argv[1:])
