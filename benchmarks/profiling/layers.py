"""What a sample of a stack counts for: the layer whose own work was going on. Pure.

A sample is a line of ``py-spy record --native --threads --format raw``: the frames from the outermost to the innermost,
and how often exactly these were seen. A frame of Python is "function (file.py:line)", one of C "function (file.c:line)"
or "function (library)", and an address where the function has no name.

A function of the C library belongs to who calls it, unless it asks the system for something.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

OURS = "Python of ours: "
"""Followed by the module."""
PYTHON, DURUS, PICKLE, ZLIB = "Python itself", "Durus", "pickle", "zlib (Durus compresses)"
BINDING, BITMAPS, LOOP = "binding (berkeleydb C module)", "bitmaps (pyroaring)", "event loop"
BENCHMARK = "the benchmark itself"
LIBDB = "libdb: "
"""Followed by what its functions are for."""
SYNC, CALLS = "system: sync", "system: other (files, sockets)"
AWAIT, LOCKS = "waiting: for the other side", "waiting: locks"
OTHERS = "beside it: "
"""Followed by the name of another thread of the same process."""
UNKNOWN = "unknown"

_FRAME = re.compile(r"^(.*) \(([^()]*)\)$")
_THREAD = re.compile(r"^thread \(([^()]*)\)(?:: (.*))?$")
_VERSIONED = re.compile(r"_\d{4}$")
"""What Debian's libdb adds to names that others may use."""

_SYNCS = {"fdatasync", "fsync", "sync_file_range", "msync"}
_CALLS = {
    *("read", "write", "readv", "writev", "pread64", "pwrite64", "pread", "pwrite", "__write", "__read"),
    *("send", "sendto", "sendmsg", "__send", "open64", "open", "close", "fstat64", "fstatat64", "stat64", "fstat"),
    *("ftruncate64", "unlink", "rename", "fallocate64", "epoll_ctl", "getrandom", "sched_yield", "lseek64", "fcntl64"),
    *("statvfs64", "fstatvfs64", "statfs64", "fstatfs64", "statfs", "fstatfs", "getdents64", "mmap64", "munmap", "brk"),
}
_AWAITS = {
    *("recv", "__recv", "recvfrom", "recvmsg", "accept", "accept4", "connect"),
    *(
        "poll",
        "ppoll",
        "select",
        "pselect",
        "epoll_wait",
        "epoll_pwait",
        "epoll_pwait2",
        "nanosleep",
        "clock_nanosleep",
    ),
}
_LOCKS = {
    *("PyThread_acquire_lock_timed", "take_gil", "pthread_cond_wait", "pthread_cond_timedwait"),
    *("pthread_cond_clockwait", "sem_wait", "sem_timedwait", "sem_clockwait"),
}
_QUICK = {
    "sem_trywait",
    "sem_post",
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "pthread_cond_signal",
    "clock_gettime",
}

_LIBDB = (
    (
        "checksum",
        ("__db_chksum", "__db_check_chksum", "__ham_func4", "__db_hmac", "__db_SHA1", "__db_rijndael", "__aes"),
    ),
    ("mutexes", ("__mutex", "__db_pthread_mutex", "__db_tas", "__db_mutex")),
    ("locks", ("__lock", "__db_lget", "__db_lput")),
    ("log", ("__log", "__dbreg", "__logc")),
    ("pages in memory", ("__memp", "__mp_")),
    ("btree", ("__bam", "__bamc", "__ram")),
    ("hash", ("__ham", "__hamc")),
    ("transactions", ("__txn", "__ckp")),
    ("files", ("__os_", "__fop", "__dbt_file")),
    ("memory", ("__env_alloc", "__env_free", "__os_malloc", "__os_free", "__os_umalloc", "__os_ufree", "__os_calloc")),
    ("cursors, access", ("__db", "__dbc", "__dbt", "__cdb", "__part", "__heap", "__qam", "db_")),
)
"""What they are for -> how their names begin; the longest beginning counts."""


class Frame(NamedTuple):
    """One frame of a stack."""

    name: str
    place: str
    """The library or file, without the line."""
    is_python: bool

    @classmethod
    def of(cls, text: str) -> Frame:
        """Return what a part of a line says."""
        found = _FRAME.match(text)
        if found is None:
            return cls(text, "", False)
        place = found[2].rpartition(":")[0] or found[2]
        return cls(_VERSIONED.sub("", found[1]), place, place.endswith(".py") or place.startswith("<"))

    @property
    def has_a_name(self) -> bool:
        """Whether it is more than an address."""
        return not self.name.startswith("0x")

    @property
    def is_of_the_c_library(self) -> bool:
        """Whether it is code that works for whoever calls it."""
        return self.place.startswith(("libc.", "libc-", "libpthread", "ld-", "[", "libm.", "libgcc"))


class Sample(NamedTuple):
    """One line."""

    thread: str
    """Its name; "" where the line says none."""
    number: str
    """The thread's, as the system counts them; likewise."""
    stack: list[Frame]
    """The innermost comes last."""
    count: int


def parse(line: str) -> Sample:
    """Return what a line says; ValueError where it is none."""
    text, _, count = line.rstrip("\n").rpartition(" ")
    first, *rest = text.split(";")
    thread = _THREAD.match(first)
    frames = rest if thread else [first, *rest]
    name, number = (thread[2] or "", thread[1]) if thread else ("", "")
    return Sample(name, number, [Frame.of(each) for each in frames if each], int(count))


def layer_of(stack: list[Frame]) -> str:
    """Return the layer that a sample counts for."""
    return _of_the_system(stack) or next(
        (layer for frame in reversed(stack) if (layer := _owner(frame, stack))), UNKNOWN
    )


def _of_the_system(stack: list[Frame]) -> str:
    """Return the layer where the system is at work, or somebody waits; "" where neither is so."""
    called: set[str] = set()
    for frame in reversed(stack):
        if frame.is_python:
            break
        called.add(frame.name)
    last = stack[-1] if stack else Frame("", "", False)
    asks = {frame.name for frame in _tail(stack)}
    for layer, names in ((SYNC, _SYNCS), (CALLS, _CALLS), (AWAIT, _AWAITS)):
        if asks & names:
            return layer
    if called & _LOCKS and last.is_of_the_c_library and last.name not in _QUICK:
        return LOCKS
    return ""


def _tail(stack: list[Frame]) -> Iterable[Frame]:
    """Yield the innermost frames that are of the C library."""
    for frame in reversed(stack):
        if not frame.is_of_the_c_library:
            return
        yield frame


_BY_PLACE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (PICKLE, ("_pickle.c", "_pickle.cpython", "pickle.py")),
    (ZLIB, ("zlibmodule.c", "libz.so", "libz-", "zlib.cpython")),
    (DURUS, ("_persistent.c", "_persistent.cpython", "durus/")),
    (BINDING, ("berkeleydb.c", "_berkeleydb", "berkeleydb/", "bsddb")),
    (BITMAPS, ("pyroaring", "roaring.c", "croaring")),
    (LOOP, ("uvloop", "libuv", "asyncio/", "selectors.py", "selectmodule.c")),
    (BENCHMARK, ("benchmarks/",)),
)
"""Layer -> how the place of a frame begins, or a directory in it."""


def _owner(frame: Frame, stack: list[Frame]) -> str:
    """Return the layer that a frame is of; "" where it works for who calls it."""
    if frame.is_of_the_c_library:
        return ""
    if frame.place.startswith("libdb"):
        return LIBDB + _purpose(stack)
    if module := module_of(frame):
        return OURS + module
    for layer, places in _BY_PLACE:
        if any(frame.place.startswith(place) or f"/{place}" in frame.place for place in places):
            return layer
    return PYTHON


def module_of(frame: Frame) -> str:
    """Return the module of ours that a frame is of, without the name of the package; "" where it is none."""
    _, found, path = f"/{frame.place}".rpartition("/berkeleydb_storage/")
    return path.removesuffix(".py").replace("/", ".") if found and frame.is_python else ""


def _purpose(stack: list[Frame]) -> str:
    """Tell what libdb is doing: what the innermost of its functions with a name is for."""
    named = (frame for frame in reversed(stack) if frame.place.startswith("libdb") and frame.has_a_name)
    name = next(named, Frame("", "", False)).name
    fitting = [(len(start), purpose) for purpose, starts in _LIBDB for start in starts if name.startswith(start)]
    return max(fitting)[1] if fitting else "other"


def is_waiting(layer: str) -> bool:
    """Tell whether a layer is none that works."""
    return layer in (AWAIT, LOCKS)


def is_outside(layer: str) -> bool:
    """Tell whether a layer is the system's: at work, or waiting for something."""
    return layer in (SYNC, CALLS, AWAIT, LOCKS)


@dataclass
class Profile:
    """What the samples of one thread come to, and what others of its process did meanwhile."""

    thread: str
    """Its name: the shares are those of its time."""
    number: str = ""
    """As the system counts them."""
    total: int = 0
    """Its samples."""
    layers: Counter[str] = field(default_factory=Counter)
    """Layer -> samples; `OTHERS` are the samples of other threads that work at the same time."""
    functions: dict[str, Counter[str]] = field(default_factory=dict)
    """Layer -> function -> samples."""
    inside: float | None = None
    """The share of its time that the thread has worked in user mode, as the system counts it; None: not known.

    A thread that is to be sampled is stopped, and that takes some microseconds: of one that asks the system for
    something every few microseconds, too many samples show that. Where this is known, it mends it.
    """

    def share(self, layer: str, count: int) -> float:
        """Return samples of a layer as percent of the thread's time."""
        if not self.total:
            return 0.0
        plain = 100 * count / self.total
        if self.inside is None or layer.startswith(OTHERS):
            return plain
        outside = sum(number for name, number in self.layers.items() if is_outside(name)) / self.total
        if not 0 < outside < 1:
            return plain
        return plain * ((1 - self.inside) / outside if is_outside(layer) else self.inside / (1 - outside))

    def ours(self, most: int) -> list[tuple[str, str, int]]:
        """Return the functions of ours that take the most time themselves: layer, name, samples."""
        found = [
            (layer, f"{layer.removeprefix(OURS)}.{name}", count)
            for layer, functions in self.functions.items()
            for name, count in functions.items()
            if layer.startswith(OURS)
        ]
        return sorted(found, key=lambda each: -each[2])[:most]


def attribute(lines: Iterable[str], thread: str, within: Callable[[Sample], bool] = lambda _: True) -> Profile:
    """Return what the lines of py-spy come to.

    Args:
        lines: those that it has written.
        thread: the name of the one whose time is shown.
        within: which of its samples count; the others are of what is not measured.
    """
    profile = Profile(thread)
    for line in lines:
        if line.strip():
            _count(profile, parse(line), within)
    return profile


def _count(profile: Profile, sample: Sample, within: Callable[[Sample], bool]) -> None:
    layer = layer_of(sample.stack)
    if sample.thread != profile.thread:
        if is_waiting(layer):
            return
        layer = OTHERS + (sample.thread or "a thread without a name")
    elif not within(sample):
        return
    else:
        profile.total += sample.count
        profile.number = sample.number
    profile.layers[layer] += sample.count
    profile.functions.setdefault(layer, Counter())[_function(layer, sample.stack)] += sample.count


def _function(layer: str, stack: list[Frame]) -> str:
    """Return the name of the innermost function that tells something."""
    of_the_system = layer in (SYNC, CALLS, AWAIT, LOCKS)
    for frame in reversed(stack):
        if frame.has_a_name and (of_the_system or not frame.is_of_the_c_library):
            return frame.name
    return "?"
