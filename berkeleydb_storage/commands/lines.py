"""The log of a server: an event a line, with the time, or, under systemd, with the priority that it wants to have."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timezone
from typing import TextIO

from berkeleydb_storage.events import Event, quoted

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Of syslog, as ``sd-daemon(3)`` has them; what is below is 7."""

LONGEST_TRACEBACK = 20_000
"""Characters."""


class LineFormatter(logging.Formatter):
    """Makes one line of everything that is logged: ``2026-01-31T12:00:00.123Z info event key=value …``."""

    def __init__(self, stream: TextIO) -> None:
        """Take note where the lines go; the journal has times of its own."""
        super().__init__()
        self._journal = goes_to_journal(stream)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. What is no event becomes one: ``note``, with its text."""
        event = record.msg if isinstance(record.msg, Event) else Event("note", text=record.getMessage())
        text = str(event)
        if record.exc_info:
            text += f" traceback={quoted(self.formatException(record.exc_info), LONGEST_TRACEBACK)}"
        if self._journal:
            return f"<{_priority(record.levelno)}>{text}"
        when = datetime.fromtimestamp(record.created, timezone.utc)
        return f"{when:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z {record.levelname.lower()} {text}"


def _priority(level: int) -> int:
    return next((priority for least, priority in PRIORITIES if level >= least), 7)


def goes_to_journal(stream: TextIO) -> bool:
    """Tell whether systemd's journal reads a stream: it tells its processes device and inode of theirs."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
