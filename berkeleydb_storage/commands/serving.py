"""The command that serves a storage: serve."""

from __future__ import annotations

import argparse
import logging
import math
import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from berkeleydb_storage.auth.users import Users
from berkeleydb_storage.backup import Every
from berkeleydb_storage.backup.archive import QUEUE, Archive
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.commands.command import Command, add_directory, key_of, size
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.commands.places import add_options, store_options
from berkeleydb_storage.errors import OptionError
from berkeleydb_storage.events import Event
from berkeleydb_storage.server import Limits, Server
from berkeleydb_storage.storage import BerkeleyDBStorage
from berkeleydb_storage.transport.addresses import DEFAULT_PORT
from berkeleydb_storage.transport.systemd import inherited_sockets
from berkeleydb_storage.transport.tls import ServerCertificates

logger = logging.getLogger("berkeleydb_storage.server")

DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
OTHER_FILES = 200
"""Descriptors for what is no connection: the files of the storage, a backup, a scrape."""
LIMITS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "connections": (int, "N", "connections at the same time"),
    "connections_per_address": (int, "N", "the same from one address"),
    "frame": (size, "BYTES", "longest request, a commit for instance, such as 256M"),
    "memory": (size, "BYTES", "requests under way, of all clients together"),
    "handshake": (float, "SECONDS", "until a client must have come in"),
    "stall": (float, "SECONDS", "for which a request may stay incomplete, or an answer not be taken"),
    "idle": (float, "SECONDS", "without a request after which a connection ends"),
}
"""Of `Limits`: type, placeholder, meaning; the options are called by `_option`."""


def _serve(arguments: argparse.Namespace, console: Console) -> int:
    console.log_lines()
    sockets = inherited_sockets()
    if sockets and arguments.listen:
        logger.warning(Event("ignored", option="--listen", reason="systemd hands over sockets"))
    certificates, users = _certificates(arguments), _users(arguments)
    limits = _with_files(_limits(arguments))
    with _noting_hangups() as hangups, _storage(arguments) as storage:
        server = Server(
            storage,
            arguments.listen or DEFAULT_ADDRESS,
            certificates=certificates,
            users=users,
            allow=arguments.allow,
            rights=arguments.rights or "write",
            limits=limits,
            insecure=arguments.insecure,
            sockets=sockets,
            owner=_number_or_name(arguments.owner),
            group=_number_or_name(arguments.group),
            umask=arguments.umask,
            backup_to=arguments.backup_to,
            metrics=arguments.metrics,
        )
        if hangups:
            server.reload()
        if not console.interrupts.noted:
            server.run()
            if console.json:
                console.result(server.information(), "")
    logger.info(Event("closed", storage=arguments.directory))
    return 0


def _storage(arguments: argparse.Namespace) -> BerkeleyDBStorage:
    return BerkeleyDBStorage(
        arguments.directory,
        read_only=arguments.read_only,
        cachesize=arguments.cachesize,
        backup=_backups(arguments),
        archive=_archive(arguments),
        key=key_of(arguments),
    )


def _backups(arguments: argparse.Namespace) -> Every | None:
    """Return when the storage is backed up by itself."""
    if arguments.backup_every is None:
        if arguments.backup_keep is not None:
            raise OptionError("--backup-keep is for backups made by --backup-every; others stay")
        return None
    if arguments.backup_to is None or arguments.read_only:
        raise OptionError("--backup-every takes a directory, --backup-to, and a storage that is not --read-only")
    keep = {} if arguments.backup_keep is None else {"keep": arguments.backup_keep}
    return Every(arguments.backup_every, arguments.backup_to, options=store_options(arguments), **keep)


def _archive(arguments: argparse.Namespace) -> Archive | None:
    """Return where the storage is archived."""
    if arguments.archive_to is None:
        for option in ("archive_interval", "archive_queue", "archive_keep_days"):
            if getattr(arguments, option) is not None:
                raise OptionError(f"{_name(option)} is of no use without --archive-to")
        if arguments.store_options is not None and arguments.backup_every is None:
            raise OptionError("--store-options is for a URL of --archive-to or --backup-every: give one of them")
        return None
    if arguments.read_only:
        raise OptionError("--archive-to takes a storage that may be written: leave --read-only out")
    days = arguments.archive_keep_days
    return Archive(
        arguments.archive_to,
        interval=1.0 if arguments.archive_interval is None else arguments.archive_interval,
        queue=QUEUE if arguments.archive_queue is None else arguments.archive_queue,
        keep=None if days is None else Keep(within=days * 86400.0),
        options=store_options(arguments),
    )


def _certificates(arguments: argparse.Namespace) -> ServerCertificates | None:
    if arguments.tls_cert is None:
        for option in ("tls_key", "tls_client_ca"):
            if getattr(arguments, option) is not None:
                raise OptionError(f"{_name(option)} is of no use without --tls-cert")
        return None
    return ServerCertificates(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca)


def _users(arguments: argparse.Namespace) -> Users | None:
    if arguments.password_file is None:
        return None
    if arguments.rights is not None:
        raise OptionError("--rights is for clients without a user: those of the users are in the --password-file")
    return Users(arguments.password_file)


def _limits(arguments: argparse.Namespace) -> Limits:
    given = {name: getattr(arguments, f"limit_{name}") for name in LIMITS}
    return replace(Limits(), **{name: value for name, value in given.items() if value is not None})


def _with_files(limits: Limits) -> Limits:
    """Have the system allow as many descriptors as the connections need, or else allow fewer connections."""
    needed = limits.connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return limits
    possible = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible == needed:
        return limits
    fewer = max(possible - OTHER_FILES, 1)
    logger.warning(
        Event("limited", connections=fewer, wanted=limits.connections, reason=f"at most {hard} open files: ulimit -Hn")
    )
    return replace(limits, connections=fewer)


@contextmanager
def _noting_hangups() -> Iterator[list[int]]:
    """Keep SIGHUP from ending the process; while the server runs it has a handler of its own."""
    noted: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGHUP, before)


def _number_or_name(text: str | None) -> str | int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else text


def _umask(text: str) -> int:
    if re.fullmatch(r"0?o?[0-7]{1,3}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mask of permissions in octal digits, such as 007")
    return int(text.replace("o", ""), 8)


def _name(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _option(limit: str) -> str:
    """Return the option for a limit."""
    if limit.startswith("connections"):
        return _name(f"max_{limit}")
    return _name({"frame": "frame_size"}.get(limit, limit if limit == "memory" else f"{limit}_timeout"))


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_directory(parser, "the directory of the storage, which exists; an empty one becomes a new storage")
    add = parser.add_argument
    add(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help=f"host:port, or unix:path; may be repeated (default: {DEFAULT_ADDRESS}, or what systemd hands over)",
    )
    add("--read-only", action="store_true", help="never write to DIRECTORY; commits are refused")
    _add_security(parser)
    add("--metrics", metavar="ADDRESS", help="answer Prometheus there: GET /metrics, without a password")
    backups = parser.add_argument_group("backups")
    backups.add_argument("--backup-to", metavar="PLACE", help="for those that `durus-bdb server … backup` asks for")
    backups.add_argument("--backup-every", type=float, metavar="SECONDS", help="make them by itself, too")
    backups.add_argument("--backup-keep", type=int, metavar="N", help="of these the newest N stay (default: 10)")
    archive = parser.add_argument_group("archive").add_argument
    archive("--archive-to", metavar="PLACE", help="a directory or URL: what is committed is copied there every second")
    archive("--archive-interval", type=float, metavar="SECONDS", help="of commits that may be missing (default: 1)")
    archive("--archive-queue", type=size, metavar="BYTES", help="log that is kept while it is away (default: 1G)")
    archive("--archive-keep-days", type=float, metavar="DAYS", help="every commit of so many stays (default: of all)")
    add_options(parser)
    files = parser.add_argument_group("the file of a Unix socket")
    files.add_argument("--owner", metavar="USER", help="whose it is (default: the process's)")
    files.add_argument("--group", metavar="GROUP", help="likewise")
    files.add_argument("--umask", type=_umask, metavar="MASK", help="permissions that it does not get, such as 007")
    limits = parser.add_argument_group("limits")
    defaults = {each.name: each.default for each in fields(Limits)}
    for name, (kind, placeholder, meaning) in LIMITS.items():
        default = (
            "never"
            if defaults[name] == math.inf
            else f"{defaults[name]:g}"
            if kind is not size
            else _mega(defaults[name])
        )
        limits.add_argument(
            _option(name), dest=f"limit_{name}", type=kind, metavar=placeholder, help=f"{meaning} (default: {default})"
        )


def _mega(count: Any) -> str:
    return f"{count >> 20}M"


def _add_security(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("who may come in").add_argument
    add("--tls-cert", metavar="FILE", help="certificate, with those between it and an authority: all TCP is TLS then")
    add("--tls-key", metavar="FILE", help="its key (default: in the same file)")
    add("--tls-client-ca", metavar="FILE", help="clients need a certificate of these authorities")
    add("--password-file", metavar="FILE", help="users and their rights, as `passwd` writes them")
    add("--insecure", action="store_true", help="ask for passwords without TLS where more than this machine listens")
    add("--allow", action="append", default=[], metavar="NETWORK", help="such as 10.0.0.0/8; may be repeated")
    add("--rights", choices=("read", "write"), help="of clients without a user (default: write)")


SERVE = Command(
    "serve",
    "serve a storage to clients, until SIGTERM or SIGINT",
    "In the foreground; the log goes to standard error, an event a line. SIGTERM and SIGINT end it in order: commits "
    "under way are finished, the storage is closed, the exit code is 0; a second one ends it at once. SIGHUP has it "
    "read certificates and users again. systemd may hand over sockets, and is told when it is ready. --json prints "
    "statistics at the end.",
    "durus-bdb serve db --listen 0.0.0.0:2972 --tls-cert cert.pem --tls-key key.pem --password-file users",
    _arguments,
    _serve,
)
