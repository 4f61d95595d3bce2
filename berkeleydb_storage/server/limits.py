"""What a server lets its clients do: each limit with its default, unit and reason. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from berkeleydb_storage.errors import OptionError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. What exceeds one of them ends the connection, with a line in the log, and nothing else."""

    connections: int = 10_000
    """Connections at the same time. Cost: about 10 KB each, and a file descriptor."""

    connections_per_address: int = 10_000
    """Connections at the same time from one address; those over a Unix socket count as one address."""

    frame: int = 256 << 20
    """Bytes of one request, a commit for instance. A client that sends as much takes up three times that."""

    memory: int = 1 << 30
    """Bytes of requests that are not answered yet, and of answers that are not taken, of all clients together."""

    handshake: float = 10.0
    """Seconds until a client must have come in, or made its first request."""

    stall: float = 30.0
    """Seconds for which a request that has begun, or an answer, may go on without being whole; a larger one gets a
    second more for each `RATE` bytes."""

    idle: float = math.inf
    """Seconds without a request after which a connection ends; default: never, because a plain Durus client does not
    come back."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: it names the limit.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise OptionError(f"the limit {each.name} is a positive number, not {value!r}")
        if not self.frame < 1 << 32:
            raise OptionError(f"the limit frame is less than 4 GiB, not {self.frame!r}")


STRETCH = 0.0005
"""Seconds for which the thread works on something long before it looks at other clients."""
RATE = 64 << 10
"""Bytes per second that a large request or answer has to make at least: a slow modem's, and no slow loris'."""
