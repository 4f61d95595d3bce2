"""Brings a copy of a damaged storage to the end of its log, as far as that goes, by the library.

Damaged pages are replaced in the copy by blank ones that no record in the log is for, so that those around them are
recovered; the log is cut at its first damage; tables that salvaging does not need are left out, which the library takes
for deleted. Nothing is written but in the copy.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from berkeleydb_storage import files, keyed
from berkeleydb_storage.directory import CLOSED, Description
from berkeleydb_storage.environment import GARBAGE, JOURNAL, LIBRARY_ERRORS, META, OBJECTS, end_of_log, run_recovery
from berkeleydb_storage.files import BTREE_META, META_CHECKSUM, META_SIZE, PAGE_CHECKSUM, PAGE_SIZE, PAGE_TYPE
from berkeleydb_storage.keys import mac_key
from berkeleydb_storage.salvage import pages

logger = logging.getLogger(__name__)

NEEDED = (OBJECTS, META, JOURNAL, GARBAGE)
"""Tables that say something that is not in the records."""
CACHE = 64 << 20


class Prepared(NamedTuple):
    """Where to read the tables."""

    path: Path
    up_to_date: bool
    """Whether they hold all that was committed, but for what is damaged, and nothing else."""
    log: str
    """What became of the log, for the report."""


def prepare(path: Path, scratch: Path, description: Description | None, key: str | None) -> Prepared:
    """Return where the tables of a storage can be read: as they are, or brought to the end of the log in `scratch`."""
    if description is not None and description.state == CLOSED:
        return Prepared(path, True, "not needed: the storage was closed")
    present = files.log_numbers(path)
    if not present:
        return Prepared(path, False, "there is none, and the storage was not closed")
    whole = not (path / f"{OBJECTS}.db").exists()
    oldest = files.oldest_without_gap(path)
    if whole and oldest != 1:
        return Prepared(path, False, f"begins with file {oldest}: it does not make up for the missing table")
    if not whole and description is not None and description.first_log in present:
        oldest = max(oldest, description.first_log)  # those before may be kept for others, and damaged
    _copy(path, scratch)
    cut = _cut_logs(scratch, key, oldest) or _end_too_early(scratch, description)
    blanks = sum(_blank(scratch, name, key) for name in NEEDED)
    try:
        run_recovery(scratch, CACHE, whole_log=whole, key=key)
    except LIBRARY_ERRORS as error:
        logger.warning("the log of %s cannot be applied: %s", path, error)
        return Prepared(path, False, f"cannot be applied ({error.args[-1]})")
    if not (scratch / f"{OBJECTS}.db").exists():
        return Prepared(path, False, "does not make up for the missing table")
    applied = f"applied to a copy, around {blanks} damaged pages" if blanks else "applied to a copy"
    return Prepared(scratch, cut is None, f"{applied}; {cut}" if cut else applied)


def _copy(path: Path, scratch: Path) -> None:
    names = [name for name in os.listdir(path) if files.log_number(name) is not None]
    for name in (*names, *(f"{table}.db" for table in NEEDED)):
        if (path / name).exists():
            shutil.copyfile(path / name, scratch / name)


def _cut_logs(path: Path, key: str | None, oldest: int) -> str | None:
    """Cut the log, of which file `oldest` and those after it are needed, where it is damaged; return where, or None."""
    numbers = [number for number in files.log_numbers(path) if number >= oldest]
    for number in files.log_numbers(path):
        if number < oldest:
            (path / files.log_name(number)).unlink()
    for number in numbers:
        log = path / files.log_name(number)
        end = end_of_log(log, key)
        tail = files.log_tail(log, end)
        last = number == numbers[-1]
        if tail.size or not end:
            os.truncate(log, end)
        if not last and (tail.size or not end):
            for following in numbers[numbers.index(number) + 1 :]:
                (path / files.log_name(following)).unlink()
            return f"{log.name} is damaged at offset {end}"
        if last and tail.size and not tail.unfinished:
            return f"{log.name} is damaged at offset {end}"
    return None


def _end_too_early(path: Path, description: Description | None) -> str | None:
    """Return where the log ends, if there was more once: a table, or what is noted, is ahead of it."""
    last = files.log_numbers(path)[-1]
    end = last, (path / files.log_name(last)).stat().st_size
    ahead = [files.newest_position(table) for name in NEEDED if (table := path / f"{name}.db").exists()]
    if description is not None:
        ahead.append((description.checkpoint_log, description.checkpoint_offset))
    return f"{files.log_name(last)} ends at offset {end[1]}, and had more once" if max(ahead) >= end else None


def _blank(path: Path, name: str, key: str | None) -> int:
    """Put blank pages in the place of the damaged ones of a table; return how many."""
    table, count = path / f"{name}.db", 0
    if not table.exists():
        return 0
    mac = mac_key(key)
    size = -(-table.stat().st_size // PAGE_SIZE) * PAGE_SIZE
    os.truncate(table, size)
    bad = list(files.bad_pages(table, key, zeros=True))
    with table.open("r+b") as file:
        for number in bad:
            page = pages.blank(number) if number else _first_page(path, name, size // PAGE_SIZE, key)
            if page is None:
                table.unlink()
                return count
            file.seek(number * PAGE_SIZE)
            file.write(_sealed(page, mac))
            count += 1
    return count


def _first_page(path: Path, name: str, count: int, key: str | None) -> bytes | None:
    """Return the first page of a btree as that of another one, and the log, suggest; None where they do not."""
    with (path / f"{name}.db").open("rb") as file:
        file.seek(PAGE_SIZE)
        root = file.read(PAGE_SIZE)
    if not files.page_is_sound(root) or root[PAGE_TYPE : PAGE_TYPE + 1] not in pages.BTREE:
        return None  # of a hash too little is known
    identity = None
    for number in reversed(files.log_numbers(path)):
        identity = identity or pages.identity_in_log((path / files.log_name(number)).read_bytes(), f"{name}.db")
    for other in NEEDED:
        table = path / f"{other}.db"
        if other == name or not table.exists() or identity is None or key is not None:
            continue
        with table.open("rb") as file:
            template = file.read(PAGE_SIZE)
        if files.page_is_sound(template) and template[PAGE_TYPE] == BTREE_META:
            return pages.first_page(template, identity, count)
    return None


def _sealed(page: bytes, mac: bytes | None) -> bytes:
    """Return a page with its checksum, in the place of which it has zeros."""
    first = page[PAGE_TYPE] == BTREE_META
    where, size = (META_CHECKSUM, META_SIZE) if first else (PAGE_CHECKSUM, PAGE_SIZE)
    found = (
        files.checksum(page[:size]).to_bytes(files.CHECKSUM_SIZE, sys.byteorder)
        if mac is None
        else keyed.mac(mac, page[:size])
    )
    return page[:where] + found + page[where + len(found) :]


__all__ = ["NEEDED", "Prepared", "prepare"]
