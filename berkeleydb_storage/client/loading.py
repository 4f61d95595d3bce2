"""How a client loads: from what was fetched before, or from the server, and nothing that the application must not see.

Its storage's lock guards it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from durus.error import ReadConflictError

from berkeleydb_storage.client.line import Line
from berkeleydb_storage.client.news import News
from berkeleydb_storage.client.prefetched import Prefetched
from berkeleydb_storage.format import OID_LENGTH, pack_uint64

FETCH_BYTES = 1 << 20
"""Bytes of records after which an answer with several of them ends."""
PREFETCH_BYTES = 32 << 20
"""Bytes of records that were fetched in advance which are kept at most."""


class Loader:
    """Loads records of one server."""

    def __init__(self, line: Line, news: News, ahead: int) -> None:
        """Begin with nothing.

        Args:
            line: the way to the server.
            news: what the application was not told yet, and has seen.
            ahead: objects that are fetched with each that is loaded.
        """
        self._line = line
        self._news = news
        self._prefetched = Prefetched(PREFETCH_BYTES)
        self.ahead = ahead
        self.drop = self._prefetched.drop
        """Forget what was changed."""
        self.clear = self._prefetched.clear
        """Forget everything."""

    def load(self, oid: bytes) -> bytes:
        """Return the record of an object. Raises: as `ClientStorage.load`."""
        _require_oid(oid)
        record = self._prefetched.get(oid) if self._prefetched.size else None
        if record is None:
            record = self._fetch(oid) if self.ahead else self._line.repeat(lambda link: link.load(oid))
        self._line.require_open()
        if self._news.concerns(oid):  # looked at after the answer: the connection may have been lost meanwhile
            raise ReadConflictError([oid])
        self._news.saw_one(oid)
        return record

    def _fetch(self, oid: bytes) -> bytes:
        records = self._line.repeat(lambda link: link.fetch(oid, 1 + self.ahead, FETCH_BYTES))
        self._keep(records[1:])
        return records[0]

    def _keep(self, records: Iterable[bytes]) -> None:
        self._prefetched.add(record for record in records if not self._news.concerns(record[:OID_LENGTH]))

    def load_all(self, oids: Collection[bytes]) -> list[bytes | Exception]:
        """Return for each object its record, or what `load` would raise, but for what ends everything."""
        for oid in oids:
            _require_oid(oid)
        self._line.require_open()
        found: dict[bytes, bytes | Exception] = {}
        for oid in oids:
            record = self._prefetched.get(oid)
            if record is not None:
                found[oid] = record
        missing = [oid for oid in dict.fromkeys(oids) if oid not in found]
        if missing:
            found.update(zip(missing, self._line.repeat(lambda link: link.bulk(missing)), strict=True))
        self._news.saw(oids)
        return [ReadConflictError([oid]) if self._news.concerns(oid) else found[oid] for oid in oids]

    def fetch_ahead(self, oids: Collection[bytes]) -> None:
        """Fetch objects that are going to be loaded. Raises: as `ClientStorage.prefetch`."""
        for oid in oids:
            _require_oid(oid)
        wanted = [oid for oid in dict.fromkeys(oids) if self._prefetched.get(oid) is None]
        if wanted:
            found = self._line.repeat(lambda link: link.bulk(wanted))
            self._keep(record for record in found if isinstance(record, bytes))

    def rows(self, number: int, count: int) -> list[bytes]:
        """Return the records of up to `count` objects from an oid on, as they are now."""
        self._line.require_open()
        records = self._line.repeat(lambda link: link.rows(pack_uint64(number), count, FETCH_BYTES))
        self._news.saw([record[:OID_LENGTH] for record in records])
        return records


def _require_oid(oid: bytes) -> None:
    if len(oid) != OID_LENGTH:
        raise ValueError(f"an oid has {OID_LENGTH} bytes, not {len(oid)}: {oid[:16]!r}")
