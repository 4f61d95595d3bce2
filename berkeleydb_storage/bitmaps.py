"""What bitmaps of oids lack. Pure."""

from __future__ import annotations

from itertools import islice

from pyroaring import BitMap64


def members(numbers: BitMap64, start: int, limit: int) -> list[int]:
    """Return up to `limit` of the numbers, from `start` on.

    Iterating over a BitMap64 without getting any number leaks 224 bytes (pyroaring 1.2.0): do that here, or see that
    there is one.
    """
    return list(islice(numbers.iter_equal_or_larger(start), limit)) if numbers and numbers.max() >= start else []
