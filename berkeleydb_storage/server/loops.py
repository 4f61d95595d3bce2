"""Which event loop a server uses.

Where gevent has replaced the sockets and threads of the process, all greenlets share one thread, and so do the loops of
several servers, and what the application does with asyncio. Only a loop of asyncio whose selector is gevent's can do
that; and as asyncio notes for each thread which loop runs in it, that is put back as long as this one waits.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import sys
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Awaitable, Generator, Mapping
from typing import Any, TypeVar

Result = TypeVar("Result")


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of uvloop where that is installed and of use, and else one of asyncio."""
    if "gevent" in socket.socket.__module__:
        return SharingLoop()
    if sys.platform == "win32":
        return asyncio.SelectorEventLoop()
    try:
        import uvloop
    except ImportError:
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class SharingLoop(asyncio.SelectorEventLoop):
    """A loop that may run while another one does so in the same thread, in another greenlet."""

    def __init__(self) -> None:
        """Make it, with a selector of its own."""
        self._sharing = SharingSelector()
        super().__init__(self._sharing)

    def run_until_complete(self, future: Generator[Any, None, Result] | Awaitable[Result]) -> Result:
        """Run it until something is done."""
        self._sharing.other = _get_running_loop()
        _set_running_loop(None)
        try:
            return super().run_until_complete(future)
        finally:
            _set_running_loop(self._sharing.other)


class SharingSelector(selectors.BaseSelector):
    """The default selector, which lets other loops run in this thread while it waits."""

    other: asyncio.AbstractEventLoop | None = None
    """Which one runs in the eyes of those who run while this one waits."""

    def __init__(self) -> None:
        """Make the one that it stands for."""
        self._selector = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a file."""
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch a file no more."""
        return self._selector.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for `timeout` seconds, or until something can be read or written."""
        loop = _get_running_loop()
        _set_running_loop(self.other)
        try:
            return self._selector.select(timeout)
        finally:
            self.other = _get_running_loop()
            _set_running_loop(loop)

    def close(self) -> None:
        """Free everything."""
        self._selector.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return what is watched."""
        return self._selector.get_map()
