"""What a command has of the world: results go to standard output, progress, log and errors to standard error.

Signals are noted, and end the work where it is safe: where it reports its progress.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm

from berkeleydb_storage.commands.lines import LineFormatter
from berkeleydb_storage.progress import Progress

PROGRAM = "durus-bdb"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
ENDING = f"{PROGRAM}: ending; once more to end at once, as if killed\n".encode()


class Interrupted(KeyboardInterrupt):
    """Raised when a signal asked for the end, at a point where that is safe.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Notes SIGINT and SIGTERM from `__enter__` to `__exit__`; for the main thread.

    A second one has its usual effect: the process ends at once, as if it were killed, and the next open recovers.
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        self._noted: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Begin."""
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._noted is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._noted = number
        os.write(STDERR, b"\n" + ENDING if os.isatty(STDERR) else ENDING)

    @property
    def noted(self) -> bool:
        """Whether a signal came."""
        return self._noted is not None

    def poll(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self._noted is not None:
            raise Interrupted(self._noted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _LogHandler(logging.Handler):
    """Writes lines to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        tqdm.write(f"{PROGRAM}: {record.levelname.lower()}: {self.format(record)}", file=sys.stderr)


class Console:
    """The options that all commands have, and what follows from them."""

    def __init__(self, arguments: argparse.Namespace, interrupts: Interrupts) -> None:
        """Take the parsed arguments."""
        self.json: bool = arguments.json
        self.quiet: bool = arguments.quiet
        self.interrupts = interrupts
        self.advice = ""
        """How to go on after an interruption."""
        self._level = logging.ERROR if self.quiet else logging.WARNING - 10 * min(arguments.verbose, 2)
        self._handler: logging.Handler = _LogHandler()

    def __enter__(self) -> Console:
        """Show what the package logs."""
        logger = logging.getLogger("berkeleydb_storage")
        self._before = logger.level
        logger.addHandler(self._handler)
        logger.setLevel(self._level)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave logging as it was."""
        logger = logging.getLogger("berkeleydb_storage")
        logger.removeHandler(self._handler)
        logger.setLevel(self._before)

    def log_lines(self) -> None:
        """Log as a server does from now on: an event a line, from INFO on, --quiet from WARNING, --verbose all."""
        logger = logging.getLogger("berkeleydb_storage")
        logger.removeHandler(self._handler)
        self._handler = logging.StreamHandler(sys.stderr)
        self._handler.setFormatter(LineFormatter(sys.stderr))
        logger.addHandler(self._handler)
        logger.setLevel(
            logging.WARNING if self.quiet else logging.INFO if self._level > logging.INFO else logging.DEBUG
        )

    def progress(self, *, hidden: bool = False, unit: str = "objects", **totals: int) -> Progress:
        """Return a new progress, shown on standard error."""
        stream = None if hidden or self.quiet else sys.stderr
        return Progress(stream, totals, unit=unit, poll=self.interrupts.poll)

    def result(self, values: Mapping[str, Any], text: str, *, essential: bool = False) -> None:
        """Print the result of a command: as JSON, or in words, which --quiet suppresses unless it is `essential`."""
        if self.json:
            print(json.dumps(values, indent=1))
        elif essential or not self.quiet:
            print(text)


def complain(message: object) -> None:
    """Print an error, in one line."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)
