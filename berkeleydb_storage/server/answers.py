"""Answers of the extended protocol that several kinds of requests have in common. Pure."""

from __future__ import annotations

from berkeleydb_storage.errors import CommitInDoubt, CommitRefused
from berkeleydb_storage.protocol import DOUBT, ERROR, REFUSED, UNKNOWN_OBJECT, frame, pack_refusal

MISSING = frame(UNKNOWN_OBJECT)
SYNC_FIRST = frame(REFUSED, pack_refusal("ReadConflictError", "others changed it: sync first"))
MOST_NAMED = 4096
"""Objects that an error names."""


def failure(error: Exception) -> bytes:
    """Return the answer to a request that failed."""
    kind = REFUSED if isinstance(error, CommitRefused) else DOUBT if isinstance(error, CommitInDoubt) else ERROR
    oids = getattr(error, "oids", ())[:MOST_NAMED]
    return frame(kind, pack_refusal(type(error).__name__, str(error), oids))
