"""What happened, as a line of the log: ``event key=value …``, that no data of a stranger can forge. Pure.

An `Event` is given to a logger in place of a text, and becomes one when it is written, if it is::

    logger.warning(Event("refused", peer=peer, reason=error))

Invariants:

1. An event is one line of printable characters. A value with a space, a quote or anything unusual is in quotes, and
   what is not printable in it is escaped.
2. What strangers can cause goes through `Sparing`: it writes so many lines and no more, and says how many it did not.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

__all__ = ["Event", "Sparing", "quoted"]

LONGEST = 1000
"""Characters of a value; what follows is cut off."""
BURST = 20
"""Lines of one kind of event that may come at once."""
RATE = 1.0
"""Lines a second of one kind of event, in the long run."""

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""ASCII without spaces, quotes, "=" and backslashes."""


class Event:
    """A kind of event, and what belongs to it."""

    __slots__ = ("kind", "values")

    def __init__(self, kind: str, **values: object) -> None:
        """Take note of it.

        Args:
            kind: such as "logged-in".
            values: what belongs to it; what is None or an empty text is left out.
        """
        self.kind = kind
        self.values = values

    def __str__(self) -> str:
        """Return the line."""
        found = (f"{name}={_text(value)}" for name, value in self.values.items() if value is not None and value != "")
        return " ".join((self.kind, *found))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return quoted(str(value))


def quoted(text: str, longest: int = LONGEST) -> str:
    """Return a text as it is if it is plain, and else in quotes, with what is not printable escaped."""
    if len(text) > longest:
        text = f"{text[:longest]}…"
    if _PLAIN.fullmatch(text):
        return text
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


class Sparing:
    """Writes events to a log, and not more of each kind than a bucket of tokens allows. For one thread.

    What an operator turned on for himself, by the level DEBUG, is not limited.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        burst: int = BURST,
        rate: float = RATE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with full buckets.

        Args:
            logger: where to.
            burst: events of one kind that are written at once.
            rate: events of one kind a second, in the long run.
            clock: seconds.
        """
        self._logger = logger
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # kind -> tokens, as of when
        self._suppressed: dict[str, int] = {}

    def log(self, level: int, event: Event) -> None:
        """Write an event, or count it; the next one that is written tells how many were not."""
        if not self._logger.isEnabledFor(level):
            return
        if level > logging.DEBUG:
            if not self._take(event.kind):
                self._suppressed[event.kind] = self._suppressed.get(event.kind, 0) + 1
                return
            event.values["suppressed"] = self._suppressed.pop(event.kind, None)
        self._logger.log(level, event)

    def _take(self, kind: str) -> bool:
        now = self._clock()
        tokens, since = self._buckets.get(kind, (math.inf, now))
        tokens = min(tokens + (now - since) * self._rate, self._burst)
        allowed = tokens >= 1
        self._buckets[kind] = (tokens - allowed, now)
        return allowed
