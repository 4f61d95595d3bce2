"""The settings of a storage: each with its default, unit and cost. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from berkeleydb_storage.errors import OptionError
from berkeleydb_storage.keys import require_key

TYPES = ("btree", "hash")
MINIMUM_CACHE = 1 << 20
DEFAULT_CACHE = 64 << 20


@dataclass(frozen=True)
class Options:
    """How a storage is opened. The policies are not among them: they are objects with behaviour of their own."""

    read_only: bool = False
    """Never write to the directory. Cost: none when the last owner closed it; else a recovered private copy of the
    whole storage is made in the temporary directory."""

    type: str | None = None
    """"btree" or "hash": the access method of the objects, chosen when the storage is created and kept from then on.
    None: what the storage has, "btree" for a new one. Cost of hash: loads take 2.3 times as long, more disk."""

    cachesize: int = DEFAULT_CACHE
    """Bytes of memory for database pages, at least 1 MiB. Taken as it is used, never more than a quarter above."""

    do_recover: bool | None = None
    """None: recover when the last owner did not close the storage. True: always. False: never, refuse instead.
    Cost: about a second for 10 MB of log, 4 for 500 MB."""

    durable: bool = True
    """The log is on the disk before a commit returns. Cost: a sync of the disk, which concurrent commits share."""

    async_log_write: bool = True
    """With durable=False only. True: a commit hands its log to the system, so that kill -9 loses nothing and a power
    cut what the system had not written yet (Linux: about 30 s). False: it leaves it in the 1 MiB log buffer; a kill
    or a power cut loses what is there. The storage is consistent after either."""

    validate_garbage: bool = False
    """Re-check every entry of the garbage queue at open. Cost: about 3 microseconds an entry."""

    repair: bool = False
    """Check everything at open, after recovery, and rebuild counts and queues. Cost: reads the whole storage."""

    key: str | None = field(default=None, repr=False)
    """What the tables and the log are encrypted with: long and random. None: a new storage is not encrypted. Cost: a
    page or a record of the log takes about twice as long to read or write; loads from the cache cost the same."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: it names the option, what was given and what it takes.
        """
        if self.type is not None and self.type not in TYPES:
            raise OptionError(f'type is "btree" or "hash", not {self.type!r}')
        if not isinstance(self.cachesize, int) or self.cachesize < MINIMUM_CACHE:
            raise OptionError(f"cachesize is a number of bytes, at least {MINIMUM_CACHE}, not {self.cachesize!r}")
        if self.key is not None:
            require_key(self.key)
        if self.read_only and self.repair:
            raise OptionError("repair=True writes: it cannot be combined with read_only=True")
        if self.read_only and self.validate_garbage:
            raise OptionError("validate_garbage=True writes: it cannot be combined with read_only=True")
