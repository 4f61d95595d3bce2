"""A client process of the demo: ``python -m demo.reviewer PORT TRANSACTIONS NAME``.

It prints a line when it is connected, begins when it gets one, and ends with a line of JSON that says how it went.
"""

from __future__ import annotations

import json
import random
import sys
import time

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ConflictError

from demo.building import library_of
from demo.model import Library
from demo.show import quantile

MODULES = 20
"""How many modules the clients share: few, so that they meet there, too."""


def review(connection: Connection, library: Library, names: list[str], choice: random.Random) -> None:
    """Count a review of some module, in one transaction."""
    library.modules[choice.choice(names)].reviews += 1
    library.reviews.total += 1
    connection.commit()


def main(port: int, transactions: int, name: str) -> None:
    """Do so many transactions, each again until it succeeds."""
    library = library_of(ClientStorage(port=port))
    connection: Connection = library._p_connection
    names = sorted(library.modules.keys())[:MODULES]
    choice = random.Random(name)
    print("ready", flush=True)
    sys.stdin.readline()
    conflicts = 0
    times: list[float] = []
    while len(times) < transactions:
        started = time.perf_counter()
        try:
            review(connection, library, names, choice)
        except ConflictError:
            connection.abort()
            conflicts += 1
        else:
            times.append(time.perf_counter() - started)
    median, p99 = quantile(times, 0.5), quantile(times, 0.99)
    print(json.dumps({"name": name, "commits": len(times), "conflicts": conflicts, "median": median, "p99": p99}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
