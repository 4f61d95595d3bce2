"""Unix sockets: paths of any length, files that appear complete, and whom they belong to.

A name is a path, or on Linux "@name", in the abstract namespace: no file, and no permissions either.

1. At a path there is never a socket on which nobody listens yet: the file is made under another name, gets its owner
   and its permissions, is listened on, and only then linked to its name. Nobody can take it for a stale one.
2. A file that is no socket, or on whose socket somebody listens, is never removed.
3. `unlink` removes a file only if it is the one that this process made.

The functions may be called from any thread.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import secrets
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from berkeleydb_storage.errors import ListenError, OptionError

ABSTRACT = "@"
LONGEST = 107 if sys.platform.startswith("linux") else 103
"""Bytes of a path that fit into an address, without the closing zero."""
CREDENTIALS = struct.Struct("3i")
"""pid, uid, gid."""
FIRST_WAIT, LONGEST_WAIT = 0.001, 0.05
"""Seconds between two attempts to connect to a server whose queue is full."""
DESCRIPTORS = Path("/proc/self/fd")
PROBE_TIMEOUT = 1.0
"""Seconds after which a server that does not accept is taken to be alive."""


class _Made(NamedTuple):
    """A socket's file: where, what, and made by which process."""

    path: str
    identity: tuple[int, int, int]
    pid: int


class HasDescriptor(Protocol):
    """A socket, or what asyncio and uvloop show of one."""

    @property
    def family(self) -> int:
        """The address family."""

    def fileno(self) -> int:
        """Return the descriptor."""


_made: WeakKeyDictionary[socket.socket, _Made] = WeakKeyDictionary()
"""The files of listening sockets. Guarded by `_made_lock`."""
_made_lock = threading.Lock()


@contextmanager
def reachable(name: str) -> Iterator[str | bytes]:
    """Give a name that fits into an address and means the same, valid within the context.

    Raises:
        OptionError: there is none.
        OSError: the directory of a long path cannot be opened.
    """
    if name.startswith(ABSTRACT):
        yield _abstract(name)
        return
    if len(os.fsencode(name)) <= LONGEST:
        yield name
        return
    directory, base = os.path.split(name)
    if not hasattr(os, "O_PATH"):
        raise OptionError(f"{name}: the path of a socket has at most {LONGEST} bytes here: choose a shorter one")
    descriptor = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{descriptor}/{base}"
        if len(os.fsencode(short)) > LONGEST:
            raise OptionError(f"{name}: the name of the file is too long for a socket: choose a shorter one")
        yield short
    finally:
        os.close(descriptor)


def _abstract(name: str) -> bytes:
    raw = b"\0" + os.fsencode(name[1:])
    if not sys.platform.startswith("linux"):
        raise OptionError(f"{name}: only Linux has sockets without a file: give a path")
    if len(raw) > LONGEST:
        raise OptionError(f"{name}: a name has at most {LONGEST - 1} bytes: choose a shorter one")
    return raw


def connect(name: str, deadline: float) -> socket.socket:
    """Return a socket connected to `name`.

    Args:
        name: a path, or "@name".
        deadline: of ``time.monotonic()``; until then a server whose queue is full is tried again.

    Raises:
        OSError: nobody listens, there is no such file, or the time is over.
        OptionError: the name is too long.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reachable(name) as short:
            _connect(sock, short, deadline)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, name: str | bytes, deadline: float) -> None:
    """Connect. Where the queue is full Linux answers EAGAIN at once, and nothing tells when there is room."""
    wait = FIRST_WAIT
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        sock.settimeout(left)
        try:
            return sock.connect(name)
        except BlockingIOError:
            time.sleep(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT)


def listen(
    name: str,
    backlog: int,
    *,
    owner: str | int | None = None,
    group: str | int | None = None,
    umask: int | None = None,
) -> socket.socket:
    """Return a listening, non-blocking socket; a stale file at the path is replaced.

    Args:
        name: a path, or "@name".
        backlog: how many connections may wait to be accepted.
        owner: of the file: a name or a number.
        group: likewise.
        umask: the permissions that the file does not get; None: the process's.

    Raises:
        ListenError: somebody listens there, or the file is no socket.
        OptionError: the name is too long, or there is no such owner.
        OSError: the directory does not exist or may not be written to.
    """
    if name.startswith(ABSTRACT):
        return _listen_abstract(name, backlog)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = _temporary(name)
    try:
        with reachable(temporary) as short:
            sock.bind(short)
        try:
            _permit(temporary, owner, group, umask)
            sock.setblocking(False)
            sock.listen(backlog)
            made = _Made(name, _identity(temporary), os.getpid())
            _publish(temporary, name)
        finally:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
    except BaseException:
        sock.close()
        raise
    with _made_lock:
        _made[sock] = made
    return sock


def _temporary(name: str) -> str:
    """Return a name beside `name`, which begins as it does: tools that list sockets will show it for ever."""
    path = Path(name)
    start = os.fsdecode(os.fsencode(path.name)[:32])
    return str(path.with_name(f"{start}.{secrets.token_hex(4)}"))


def _permit(path: str, owner: str | int | None, group: str | int | None, umask: int | None) -> None:
    """Set owner and permissions, while nobody can connect yet."""
    if owner is not None or group is not None:
        os.chown(path, _user_id(owner), _group_id(group))
    if umask is not None:
        Path(path).chmod(0o777 & ~umask)


def _user_id(owner: str | int | None) -> int:
    if owner is None or isinstance(owner, int):
        return -1 if owner is None else owner
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise OptionError(f"owner={owner!r}: there is no such user") from None


def _group_id(group: str | int | None) -> int:
    if group is None or isinstance(group, int):
        return -1 if group is None else group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OptionError(f"group={group!r}: there is no such group") from None


def _publish(temporary: str, name: str) -> None:
    """Give the socket its name: never over a file that is there, unless that is a stale socket."""
    try:
        _link(temporary, name)
    except FileExistsError:
        _remove_stale(name)
        try:
            _link(temporary, name)
        except FileExistsError:
            raise _live(name) from None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        _rename(source, target)  # a file system without hard links


def _rename(source: str, target: str) -> None:
    """Rename, unless there is something already; two that do this at the same moment are not kept apart."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    Path(source).rename(target)


def _remove_stale(name: str) -> None:
    """Remove a socket's file on which nobody listens.

    It is first moved aside and looked at: another server may have put its own there meanwhile.
    """
    try:
        found = _identity(name)
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            raise ListenError(f"{name} is no socket: remove it, or choose another address")
        if _listens(name):
            raise _live(name)
        aside = _temporary(name)
        Path(name).rename(aside)
    except FileNotFoundError:
        return  # whoever it was has gone
    if _identity(aside) != found:
        with suppress(FileExistsError):
            _link(aside, name)
        with suppress(FileNotFoundError):
            Path(aside).unlink()
        raise _live(name)
    Path(aside).unlink()


def _listens(name: str) -> bool:
    try:
        connect(name, time.monotonic() + PROBE_TIMEOUT).close()
    except ConnectionRefusedError:
        return False
    except TimeoutError:
        return True
    return True


def _live(name: str) -> ListenError:
    return ListenError(f"{name} is in use: another server listens there, stop it or choose another address")


def _identity(path: str) -> tuple[int, int, int]:
    """Return what tells a file from others, also from one that got its inode after it: links leave its time alone."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def unlink(sock: socket.socket) -> bool:
    """Remove the file of a socket that `listen` made, if it is still that file; return whether it was.

    To be called before the socket is closed: as long as somebody listens nobody replaces the file. A socket without a
    file, or one made by another process (before a fork, by systemd), is left alone.
    """
    with _made_lock:
        made = _made.pop(sock, None)
    if made is None or made.pid != os.getpid():
        return False
    try:
        if _identity(made.path) != made.identity:
            return False
        Path(made.path).unlink()
    except FileNotFoundError:
        return False
    return True


def _listen_abstract(name: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(_abstract(name))
        sock.setblocking(False)
        sock.listen(backlog)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise _live(name) from None
        raise
    return sock


def let_go(names: Collection[str]) -> None:
    """Put nothing in place of all sockets that are bound to one of the names, also of those just being accepted.

    For a forked child, which would keep them open. Where there is no /proc, it does nothing.
    """
    try:
        numbers = [int(name) for name in os.listdir(DESCRIPTORS)] if names else []
    except OSError:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode) and _name(number) in names:
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def _name(descriptor: int) -> object:
    sock = socket.socket(fileno=descriptor)
    try:
        return sock.getsockname()
    finally:
        sock.detach()


def peer_uid(sock: HasDescriptor) -> int | None:
    """Return the user id of the process at the other end of a Unix socket, None of any other and where it is not told.

    Args:
        sock: connected: a socket, or the "socket" of an asyncio transport.
    """
    if sock.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(fileno=os.dup(sock.fileno())) as copy:
        _, uid, _ = CREDENTIALS.unpack(copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return int(uid)
