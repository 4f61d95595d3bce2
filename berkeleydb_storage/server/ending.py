"""How the connections of a server end: in order, and in bounded time.

Used by the server's thread alone, after it has stopped to listen.

Invariants:

1. What was asked for is answered, unless that takes longer than the grace; who waits for nothing is hung up on at once.
2. Nobody is waited for who does not take his answers.
3. Afterwards nothing is under way, and the threads of the service have ended.
"""

from __future__ import annotations

import asyncio

from berkeleydb_storage.server.service import Service

STALLED = 1.0
"""Seconds that a client has at the end to take its answers."""
PAUSE = 0.005
"""Seconds between two looks whether they are done."""


async def finish(service: Service, grace: float) -> None:
    """Hang up on those who wait for nothing, let the others have their answers, and hang up on them, too.

    Args:
        service: it is closed at the end.
        grace: seconds that requests under way have.
    """
    service.chores.end()
    loop = asyncio.get_running_loop()
    until = loop.time() + grace
    while loop.time() < until:
        for connection in list(service.connections):
            if not connection.busy or connection.stalled(STALLED):
                connection.end("the server ends")
        if not service.connections and service.desk.idle:
            break
        await asyncio.sleep(PAUSE)
    for connection in list(service.connections):
        connection.end("the server ends, and it was still busy", abort=True)
    while not service.desk.idle:
        await asyncio.sleep(PAUSE)
    await _see_off(service, min(STALLED, grace))


async def _see_off(service: Service, seconds: float) -> None:
    """Wait until all sockets are closed: for a while, where clients do not take their last answers."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while service.door.present > 0 and loop.time() < until:
        for connection in list(service.connections):  # who was accepted before, and arrives only now
            connection.end("the server ends", abort=True)
        await asyncio.sleep(PAUSE)
    for connection in list(service.lingering):
        connection.cut_off()
    service.close()
    while service.door.present > 0 and loop.time() < until + STALLED:
        await asyncio.sleep(PAUSE)
