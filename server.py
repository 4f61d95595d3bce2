"""Serves a storage to the clients of Durus, by Durus' own server: ``python server.py DIRECTORY``.

Ends by SIGTERM, SIGINT, or the message of ``durus -s --stop``: after the request under way, with the storage closed,
exit code 0. Where systemd hands a socket over, Durus' server takes it in place of the address.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from durus.storage_server import DEFAULT_GCBYTES, DEFAULT_HOST, DEFAULT_PORT, SocketAddress, StorageServer

from berkeleydb_storage import BerkeleyDBStorage, BerkeleyDBStorageError
from berkeleydb_storage.commands.command import size
from berkeleydb_storage.options import DEFAULT_CACHE

DIRECTORY = "db"


class Server(StorageServer):  # type: ignore[misc]
    """Durus' server, which a byte on a socket of its own ends between two requests."""

    def __init__(self, storage: BerkeleyDBStorage, address: SocketAddress, gcbytes: int, end: socket.socket) -> None:
        """Serve nothing yet; a byte on `end` is the wish to end."""
        super().__init__(storage, address=address, gcbytes=gcbytes)
        self._end = end
        self.sockets.append(end)

    def handle(self, s: socket.socket) -> None:
        """Do what a client asks for."""
        if s is self._end:
            raise SystemExit(0)
        super().handle(s)

    def serve(self) -> None:
        """Serve until the end, which closes the connections."""
        try:
            super().serve()
        finally:
            for client in self.clients:
                client.s.close()


@contextmanager
def ending_signals() -> Iterator[socket.socket]:
    """Yield a socket that has something to read when SIGTERM or SIGINT came; nothing else happens then."""
    end, begin = socket.socketpair()
    with end, begin:
        begin.setblocking(False)
        signal.set_wakeup_fd(begin.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        yield end
        signal.set_wakeup_fd(-1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser("server.py", description="Serves a storage to Durus clients.")
    parser.add_argument("directory", nargs="?", help=f"the storage; without one: ./{DIRECTORY}, created when missing")
    parser.add_argument("--host", default=DEFAULT_HOST, help="default: %(default)s")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    parser.add_argument("--address", help="path of a Unix domain socket, in place of host and port; @name: abstract")
    parser.add_argument("--owner", type=name_or_number, help="owner of that socket")
    parser.add_argument("--group", type=name_or_number, help="group of that socket")
    parser.add_argument("--umask", type=lambda text: int(text, 8), metavar="OCTAL", help="umask for it, such as 077")
    parser.add_argument("--gcbytes", type=int, default=DEFAULT_GCBYTES, help="pack after so many bytes of commits")
    parser.add_argument("--read-only", action="store_true", help="refuse commits; never write to the directory")
    parser.add_argument("--cachesize", type=size, default=DEFAULT_CACHE, help="memory for pages, such as 64M or 1G")
    parser.add_argument("--no-durable", action="store_true", help="do not wait for the disk at every commit")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser.parse_args(arguments)


def name_or_number(text: str) -> str | int:
    """Return a user or group as Durus wants it: a number is an id."""
    return int(text) if text.isdecimal() else text


def address(options: argparse.Namespace) -> SocketAddress:
    """Return where to listen."""
    if options.address is None:
        return SocketAddress.new((options.host, options.port))
    if options.address.startswith("@"):
        return SocketAddress.new(options.address)
    return SocketAddress.new(options.address, owner=options.owner, group=options.group, umask=options.umask)


def serve(options: argparse.Namespace) -> None:
    """Open the storage, serve it until a signal comes, close it."""
    if options.directory is None:
        Path(DIRECTORY).mkdir(exist_ok=True)
    with (
        ending_signals() as end,
        BerkeleyDBStorage(
            options.directory or DIRECTORY,
            read_only=options.read_only,
            cachesize=options.cachesize,
            durable=not options.no_durable,
        ) as storage,
    ):
        where = address(options)
        logging.info("serving %s, %d objects", storage.get_filename(), storage.get_size())
        try:
            Server(storage, where, options.gcbytes, end).serve()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(where)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, and return the exit code: 0, or 2 for an error."""
    options = parse(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, format="%(message)s")
    try:
        serve(options)
    except SystemExit:
        logging.info("ended")
    except (BerkeleyDBStorageError, OSError) as error:
        sys.stderr.write(f"server.py: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
