"""Damage to the files of a storage, and what becomes of it: found at open, at a load, by a check, harmless, or not.

Each try is a process of its own, which may hang in the library, and is killed then.
"""

import logging
import os
import select
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from durus.error import DurusKeyError

from berkeleydb_storage import BerkeleyDBStorage, BerkeleyDBStorageError, CheckpointNever, GarbageManual
from berkeleydb_storage.check import check_pages
from berkeleydb_storage.files import PAGE_SIZE

PATIENCE = 20
"""Seconds until a try is taken to hang."""

OPENING, LOADING, CHECKING, TOLD, HARMLESS = "at open", "at a load", "by a check", "told in the log", "harmless"
WRONG_FOUND, WRONG, HANGS, CRASHED = "wrong, found by a check", "SILENTLY WRONG", "HANGS", "CRASHED"


@dataclass
class Tally:
    """How often each outcome was met, and what led to those that must not be."""

    counts: dict = field(default_factory=dict)
    cases: dict = field(default_factory=dict)

    def add(self, outcome, case):
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        self.cases.setdefault(outcome, []).append(case)

    @property
    def tried(self):
        return sum(self.counts.values())


class Noted(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def is_told(lines):
    return any("MAY BE LOST" in line or "of a record that was being written" in line for line in lines)


def quiet(path, **options):
    policies = {"checkpoint": CheckpointNever(), "garbage_collection": GarbageManual()}
    return BerkeleyDBStorage(path, **{"cachesize": 1 << 20} | policies | options)


def differs(storage, expected):
    """Load everything; tell whether something is wrong. Raises what a load raises, but for a missing object."""
    for key, record in expected.items():
        try:
            if storage.load(key) != record:
                return True
        except DurusKeyError:
            return True
    return storage.get_size() != len(expected) or dict(storage.gen_oid_record()) != expected


def outcome(path, expected):
    """Use a damaged storage; return what became of it."""
    noted = Noted()
    logger = logging.getLogger("berkeleydb_storage")
    logger.addHandler(noted)
    logger.propagate = False
    try:
        storage = quiet(path)
    except BerkeleyDBStorageError:
        return OPENING
    try:
        wrong = differs(storage, expected)
        if wrong and is_told(noted.lines):
            return TOLD
        found = bool(storage.check().found)
    except BerkeleyDBStorageError:
        return LOADING
    finally:
        storage.close()
    found = found or bool(check_pages(Path(path)))
    if wrong:
        return WRONG_FOUND if found else WRONG
    return CHECKING if found else HARMLESS


def is_one_of(found, *allowed):
    return set(found) <= set(allowed)


def tried(work):
    """Return what `work` returns, a short text, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reader)
            os.write(writer, work().encode())
            code = 0
        except BaseException as error:
            os.write(writer, f"{CRASHED}: {error!r}"[:1000].encode())
        finally:
            os._exit(code)
    os.close(writer)
    try:
        if not select.select([reader], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
            return HANGS
        return os.read(reader, 2000).decode() or CRASHED
    finally:
        os.close(reader)
        os.waitpid(child, 0)


def flip(contents, source):
    where = source.randrange(len(contents))
    return where, contents[:where] + bytes([contents[where] ^ source.randrange(1, 256)]) + contents[where + 1 :]


def flip_bit(contents, source):
    where = source.randrange(len(contents))
    return where, contents[:where] + bytes([contents[where] ^ 1 << source.randrange(8)]) + contents[where + 1 :]


def flip_in_header(contents, source):
    """In the first bytes of a page, where it says what it is."""
    where = source.randrange(max(1, len(contents) // PAGE_SIZE)) * PAGE_SIZE + source.randrange(32)
    where = min(where, len(contents) - 1)
    return where, contents[:where] + bytes([contents[where] ^ 1 << source.randrange(8)]) + contents[where + 1 :]


def cut(contents, source):
    where = source.randrange(len(contents))
    return where, contents[:where]


def cut_pages(contents, source):
    where = source.randrange(len(contents) // PAGE_SIZE) * PAGE_SIZE
    return where, contents[:where]


def zero_page(contents, source):
    where = source.randrange(max(1, len(contents) // PAGE_SIZE)) * PAGE_SIZE
    return where, contents[:where] + bytes(len(contents[where : where + PAGE_SIZE])) + contents[where + PAGE_SIZE :]


def swap_pages(contents, source):
    pages = [contents[start : start + PAGE_SIZE] for start in range(0, len(contents), PAGE_SIZE)]
    if len(pages) < 2:
        return 0, contents
    one, other = source.sample(range(len(pages)), 2)
    pages[one], pages[other] = pages[other], pages[one]
    return (one, other), b"".join(pages)


def remove(contents, source):
    return 0, None


TABLE_DAMAGE = (flip, flip, flip_bit, flip_in_header, flip_in_header, cut, cut_pages, zero_page, swap_pages, remove)
FILE_DAMAGE = (flip, flip, flip, flip_bit, cut, remove)


def damage(path, name, how, source):
    """Damage a file; return what was done to it."""
    where = path / name
    contents = where.read_bytes()
    used = (contents if name.endswith(".db") else contents.rstrip(b"\0")) or b"\0"
    place, changed = how(used, source)
    if changed is None:
        where.unlink()
    else:
        where.write_bytes(changed + (contents[len(used) :] if len(changed) == len(used) else b""))
    return name, how.__name__, place, changed != used


def replaced(path, files):
    """Put everything back as it was."""
    for name in os.listdir(path):
        if (path / name).is_file() or (path / name).is_symlink():
            (path / name).unlink()
        else:
            shutil.rmtree(path / name)
    for name, contents in files.items():
        (path / name).write_bytes(contents)


def contents_of(path):
    return {name: (path / name).read_bytes() for name in os.listdir(path) if (path / name).is_file()}
