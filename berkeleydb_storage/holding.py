"""Who needs log files longer than recovery does: backups and archives that have not copied them yet.

Owns ``keep.json``, which is replaced whole. `Holds` belongs to one storage; any thread may call it. Whoever has
its lock waits for no other one, so that the thread with the engine's mutex may call it, too.

Invariants:

1. No log file is removed that a holder needs, while it keeps to its limit and the disk has room for commits.
2. Nothing depends on the files that are kept: where one of them, or ``keep.json``, is gone or damaged, the storage is
   as good as before, and who needed it copies everything again.
3. Where a holder is forgotten, that is logged, and `Holds.held` says so from then on.
4. Killed at any point, ``keep.json`` has the state before or the one after. It may name a holder whose log files are
   gone already: that one is forgotten at the next opening.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from berkeleydb_storage import failpoints, files
from berkeleydb_storage.directory import Directory
from berkeleydb_storage.errors import DiskFullError, LogGone, OptionError, StorageClosed
from berkeleydb_storage.files import Position

logger = logging.getLogger(__name__)

KEEP = "keep.json"
FORMAT = 1
"""Version of ``keep.json``."""
LONGEST_NAME = 500
"""Characters of the name of a holder."""
FOLLOWS = "the next backup to it copies everything"


@dataclass(frozen=True)
class Hold:
    """What ``keep.json`` says of a holder."""

    log: int
    """Number of the oldest log file that it needs."""
    offset: int
    """Where in it: what comes before is not needed any more."""
    limit: int
    """Bytes of log files that may be kept for it alone."""
    since: int
    """When it began to hold this very place, in microseconds since the epoch."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: it names the value.
        """
        for name, value in asdict(self).items():
            least = 1 if name in ("log", "limit") else 0
            if type(value) is not int or value < least:
                raise ValueError(f"{name} has an impossible value")

    @property
    def position(self) -> Position:
        """Where what it needs begins."""
        return Position(self.log, self.offset)


@dataclass(frozen=True)
class Held:
    """What is known of a holder at one moment."""

    holder: str
    log: int
    """Number of the oldest log file that it needs."""
    offset: int
    limit: int
    """Bytes of log files that may be kept for it."""
    bytes: int
    """Bytes that the log files take on the disk that recovery does not need, and it does."""
    since: float
    """When it began to hold this very place, in seconds since the epoch."""


def holder_name(what: str, url: str) -> str:
    """Return the name of who holds log for a place: the same for the same one, and no other's; to be read by people."""
    name = f"{what} to {url}"
    if len(name) <= LONGEST_NAME and name.isprintable():
        return name
    digest = hashlib.sha256(os.fsencode(url)).hexdigest()[:16]
    return f"{what} to {ascii(url)[: LONGEST_NAME // 2]}… {digest}"


class Pin:
    """Log files that a copy needs which is being made. Compared by what it is, not by what it says."""

    def __init__(self, log: int) -> None:
        """Need them from file `log` on."""
        self.log = log
        self.lost = False
        """Set when they were removed, for the disk was full: the copy is of no use."""


class Holds:
    """The holders of one storage."""

    def __init__(self, directory: Directory, *, writable: bool = True) -> None:
        """Read who there is.

        Args:
            directory: of the storage; its owner's, if `writable`.
            writable: whether holders may come, go and be forgotten.
        """
        self._directory = directory
        self._writable = writable
        self._lock = threading.Lock()
        self._holds = self._read()  # guarded by _lock
        self._pins: list[Pin] = []  # guarded by _lock
        self._unwritten = False  # guarded by _lock: what keep.json says is older
        description = directory.read()
        self.needed = description.first_log if description is not None else 0  # changed under _lock
        """Number of the oldest log file that recovery may need, as ``storage.json`` says; it never falls."""
        if writable:
            self._forget_gone()

    def _read(self) -> dict[str, Hold]:
        where = self._directory.path / KEEP
        try:
            return _unpack(json.loads(where.read_bytes()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.warning(
                "%s cannot be used (%s): no log is kept for backups and archives; the next one copies everything",
                where,
                error,
            )
            return {}

    def _forget_gone(self) -> None:
        oldest = files.oldest_without_gap(self._directory.path)
        for name, hold in list(self._holds.items()):
            if hold.log < oldest:
                del self._holds[name]
                self._unwritten = True
                where = self._directory.path / files.log_name(hold.log)
                logger.warning("%s, or one after it, is gone, which %s needs: %s", where, name, FOLLOWS)

    def hold(self, holder: str, position: Position, limit: int) -> None:
        """Keep the log from there on, until `release`, or until the same holder says another place. Survives a crash.

        Args:
            holder: its name: the same each time, and no other's.
            position: the first byte that it needs.
            limit: bytes of log files that may be kept for it, when recovery does not need them any more. Where it
                takes more, it is forgotten, with a warning; it takes up to a log file more in between.

        Raises:
            LogGone: that log file is not there any more. OptionError: an argument is not possible.
            DiskFullError, OSError: it could not be noted; what was held before still is.
            StorageClosed: nothing is held here.
        """
        known = _require(holder, position, limit)
        with self._lock:
            self._require_writable()
            oldest = files.oldest_without_gap(self._directory.path)
            if known.log < oldest:
                raise LogGone(
                    f"{self._directory.path / files.log_name(known.log)} is gone, the log goes back to file {oldest}: "
                    "copy everything"
                )
            now = self._holds.get(holder)
            if now is None or (now.position, now.limit) != (known.position, limit):
                self._write({**self._holds, holder: known})

    def release(self, holder: str) -> None:
        """Forget a holder; the next checkpoint removes what nobody needs any more. Nothing happens without it.

        Raises:
            DiskFullError, OSError: that could not be noted; what was held still is.
            StorageClosed: nothing is held here.
        """
        with self._lock:
            self._require_writable()
            if holder in self._holds:
                self._write({name: hold for name, hold in self._holds.items() if name != holder})

    def held(self, holder: str) -> Position | None:
        """Return from where on the log is kept for a holder; None: it never said so, or is forgotten."""
        with self._lock:
            hold = self._holds.get(holder)
        return None if hold is None else hold.position

    def first(self) -> int | None:
        """Return the number of the oldest log file that somebody holds; None where nobody does."""
        with self._lock:
            return min((hold.log for hold in self._holds.values()), default=None)

    def figures(self) -> tuple[Held, ...]:
        """Return what is known of each holder, the one who holds most first."""
        with self._lock:
            holds, needed = dict(self._holds), self.needed
        sizes = self._sizes(needed) if holds else {}
        found = [
            Held(name, hold.log, hold.offset, hold.limit, _sum(sizes, hold.log), hold.since / 1e6)
            for name, hold in holds.items()
        ]
        return tuple(sorted(found, key=lambda held: (held.log, held.offset, held.holder)))

    def stop(self) -> None:
        """Let nobody hold anything any more: the storage is closed. What is held stays so."""
        with self._lock:
            self._writable = False

    @contextmanager
    def pinned(self, log: int) -> Iterator[Pin]:
        """Keep log files from this one on, as long as there is room, until the block is left: for a copy."""
        pin = Pin(log)
        with self._lock:
            self._pins.append(pin)
        try:
            yield pin
        finally:
            with self._lock:
                self._pins.remove(pin)

    def _pinned(self) -> list[int]:
        return [pin.log for pin in self._pins if not pin.lost]

    @contextmanager
    def settling(self, needed: int) -> Iterator[int]:
        """Give the number of the oldest log file that is to stay. Until the block is left nobody else can hold one.

        Who keeps more than its limit is forgotten.

        Args:
            needed: the oldest log file that recovery needs; ``storage.json`` says so when the block is left.
        """
        with self._lock:
            self._keep_to_limits(needed)
            yield min([needed, *self._pinned(), *(hold.log for hold in self._holds.values())])
            self.needed = max(needed, self.needed)

    def _keep_to_limits(self, needed: int) -> None:
        sizes = self._sizes(needed) if self._holds else {}
        for name, hold in list(self._holds.items()):
            size = _sum(sizes, hold.log)
            if size > hold.limit:
                self._forget(name)
                logger.warning(
                    "%s: %s bytes of log are kept for %s, and %s is its limit: they are kept no longer, and %s",
                    self._directory.path,
                    f"{size:,}",
                    name,
                    f"{hold.limit:,}",
                    FOLLOWS,
                )
        self._write_later()

    def relieve(self, wanted: int) -> bool:
        """Make room on a full disk: forget holders, who keep most first, and remove what was kept for them alone.

        Where that is not enough, copies that are being made end, too. It removes nothing where that would not be
        enough, either. Nothing here asks the library, or waits for it.

        Args:
            wanted: bytes that are to become free.

        Returns:
            Whether they did, as far as the sizes of the files tell.
        """
        with self._lock:
            if not self._writable:
                return False
            found = self._enough(wanted, self._pinned()) or self._enough(wanted, [])
            if found is None:
                return False
            self._sacrifice(*found)
            return True

    def _enough(self, wanted: int, pinned: list[int]) -> tuple[list[str], int, dict[int, int]] | None:
        """Return whom to forget for so much room, and the log file before which all goes then; None: it is too much."""
        floor = min([self.needed, *pinned])
        sizes = self._sizes(floor)
        victims: list[str] = []
        for name, hold in sorted(self._holds.items(), key=lambda item: item[1].position):
            if _sum(sizes, 0, hold.log) >= wanted:
                break
            victims.append(name)
        floor = min([floor, *(hold.log for name, hold in self._holds.items() if name not in victims)])
        return (victims, floor, sizes) if _sum(sizes, 0, floor) >= wanted else None

    def _sacrifice(self, victims: list[str], floor: int, sizes: dict[int, int]) -> None:
        for name in victims:
            size = _sum(sizes, self._holds[name].log)
            self._forget(name)
            logger.error(
                "the disk of %s is full: the %s bytes of log that %s has not copied yet are removed, and %s. Free some",
                self._directory.path,
                f"{size:,}",
                name,
                FOLLOWS,
            )
        for pin in self._pins:
            if pin.log < floor and not pin.lost:
                pin.lost = True
                logger.error(
                    "the disk of %s is full: the copy of everything that is being made ends, because the log files "
                    "that it needs are removed. Free some, then make it again",
                    self._directory.path,
                )
        self._write_later()
        failpoints.reached("hold.forgotten")
        for number in sizes:
            if number < floor:
                (self._directory.path / files.log_name(number)).unlink(missing_ok=True)
        self._write_later()
        failpoints.reached("hold.removed")

    def _forget(self, holder: str) -> None:
        del self._holds[holder]
        self._unwritten = True

    def _write_later(self) -> None:
        """Bring it to the disk that somebody is forgotten, or try so again another time: opening finds it out, too."""
        if self._unwritten:
            try:
                self._write(self._holds)
            except (DiskFullError, OSError) as error:
                logger.warning("%s is not up to date, which is tried again: %s", self._directory.path / KEEP, error)

    def _write(self, holds: dict[str, Hold]) -> None:
        failpoints.reached("hold.begun")
        holders = {name: asdict(hold) for name, hold in holds.items()}
        self._directory.replace_file(KEEP, {"format": FORMAT, "holders": holders})
        self._holds, self._unwritten = holds, False
        failpoints.reached("hold.noted")

    def _sizes(self, end: int) -> dict[int, int]:
        """Return the bytes on the disk of each log file before file `end`."""
        found = {}
        for number in files.log_numbers(self._directory.path):
            if number < end:
                found[number] = files.used_bytes(self._directory.path / files.log_name(number))
        return found

    def _require_writable(self) -> None:
        if not self._writable:
            raise StorageClosed(f"{self._directory.path} is closed, or was opened read-only: no log file is kept")


def _sum(sizes: dict[int, int], start: int, end: float = float("inf")) -> int:
    return sum(size for number, size in sizes.items() if start <= number < end)


def _require(holder: str, position: Position, limit: int) -> Hold:
    if not (isinstance(holder, str) and 0 < len(holder) <= LONGEST_NAME and holder.isprintable()):
        raise OptionError(f"the name of a holder has 1 to {LONGEST_NAME} printable characters: {holder!r} is none")
    try:
        return Hold(*position, limit=limit, since=time.time_ns() // 1000)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{position!r} up to {limit!r} bytes cannot be held: {error}") from error


def _unpack(values: Any) -> dict[str, Hold]:
    """Return what the contents of ``keep.json`` say.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: they are not what this version of the package writes.
    """
    if values["format"] != FORMAT:
        raise ValueError(f"it has format {values['format']!r}, and this version of the package knows {FORMAT}")
    return {name: Hold(**hold) for name, hold in values["holders"].items()}
