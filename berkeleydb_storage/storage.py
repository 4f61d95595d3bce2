"""`BerkeleyDBStorage`: a Durus storage in a directory, composed of the engine, its policies and its files.

Owns the order in which everything is opened; `Running` has what runs behind it then. Every method may be called from
any thread.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from berkeleydb_storage import check, compaction, migration
from berkeleydb_storage.backup.archive import Archive
from berkeleydb_storage.backup.making import Backup
from berkeleydb_storage.backup.policy import Every
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.checkpoint import CheckpointThread, checkpoint_interface
from berkeleydb_storage.engine import Engine
from berkeleydb_storage.environment import LIBRARY_ERRORS, explain
from berkeleydb_storage.errors import BerkeleyDBStorageError, ReadOnlyError
from berkeleydb_storage.garbage.policy import GarbageThread, garbage_collection_interface
from berkeleydb_storage.garbage.requests import Packing
from berkeleydb_storage.opening import abandon_storage, open_storage
from berkeleydb_storage.options import DEFAULT_CACHE, Options
from berkeleydb_storage.policies import verify_policies
from berkeleydb_storage.running import Running
from berkeleydb_storage.session import Session
from berkeleydb_storage.statistics import Statistics, take_statistics

logger = logging.getLogger(__name__)


class BerkeleyDBStorage(Session):
    """A Durus storage in a directory of its own.

    It is a session itself: give it to one ``Connection``, or to a server. For another ``Connection`` at the same
    time, in another thread, give that one `session()`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        type: str | None = None,
        cachesize: int = DEFAULT_CACHE,
        do_recover: bool | None = None,
        durable: bool = True,
        async_log_write: bool = True,
        validate_garbage: bool = False,
        checkpoint: checkpoint_interface | None = None,
        garbage_collection: garbage_collection_interface | None = None,
        backup: Every | None = None,
        archive: Archive | None = None,
        readonly: bool | None = None,
        repair: bool | None = None,
        key: str | None = None,
    ) -> None:
        """Open the storage in the directory `path`, or create it there.

        Args:
            path: an existing directory, empty or with a storage.
            read_only: default False. True never writes to the directory, and works on one that is not writable. Cost:
                none if the last owner closed it; otherwise a recovered copy is made in the temporary directory.
            type: "btree" or "hash", for a new storage; default None is "btree", or what an old one has. Cost of
                "hash": loads take 2.3 times as long, and it takes more disk.
            cachesize: bytes of memory for pages; default 64 MiB, at least 1 MiB.
            do_recover: default None recovers when the last owner did not close. True always does; False refuses then.
                Cost: about a second for 10 MB of log, 4 for 500 MB.
            durable: default True: the log is on the disk before `end` returns. Cost: a sync a commit.
            async_log_write: with durable=False; default True hands the log to the system, which survives kill -9 but
                not a power cut; False leaves it in a buffer of 1 MiB, which survives neither. No crash makes the
                storage inconsistent in any of the three.
            validate_garbage: default False. True re-checks the garbage queue now: 3 microseconds an entry.
            checkpoint: when to make checkpoints; default `CheckpointThread()`.
            garbage_collection: when to collect garbage; default `GarbageThread()`.
            backup: when to back it up by itself, and where to; default None: never. Cost: everything is
                copied once; then what is new.
            archive: where to copy what is committed, every second; default None: nowhere. Cost: everything is copied
                once; then the network, and some processor time of another thread.
            readonly: what Durus calls `read_only`.
            repair: Durus' option: check everything now, and rebuild reference counts and queues where they are wrong.
                Cost: reads the whole storage.
            key: what the tables and the log are encrypted with, or are to be in a new storage; default None: nothing.
                `key_from_file`, `key_from_command` and `key_from_environment` find one. Cost: of what is not in the
                cache, about twice the time.

        Raises:
            StorageNotFound: `path` does not exist, or is to be read and holds no storage.
            NotAStorage: it is not a directory, or one with other files.
            StorageInUse: another opener has it; its pid is named.
            NewerFormat, LibraryMismatch: a newer version, or one of another library, wrote it.
            RecoveryNeeded: `do_recover` is False, and it must be.
            DamagedError: a file is missing or damaged; it is named.
            BackupError: `archive` names what cannot be used, such as a URL whose package is not installed.
            OptionError: an option makes no sense, or there is a key and the storage is not encrypted.
            WrongKey, KeyNeeded: it is encrypted with another key, or there is none.
            DiskFullError: there is no room to create or recover it.
        """
        options = Options(
            read_only=bool(read_only or readonly),
            type=type,
            cachesize=cachesize,
            do_recover=do_recover,
            durable=durable,
            async_log_write=async_log_write,
            validate_garbage=validate_garbage,
            repair=bool(repair),
            key=key,
        )
        verify_policies(checkpoint, garbage_collection, backup, archive)
        policies = (checkpoint or CheckpointThread(), garbage_collection or GarbageThread(), backup, archive)
        self._open(options, path, *policies)

    def _open(
        self,
        options: Options,
        path: str | os.PathLike[str],
        checkpoint: checkpoint_interface,
        garbage_collection: garbage_collection_interface,
        backup: Every | None,
        archive: Archive | None,
    ) -> None:
        opened = open_storage(path, options)
        try:
            engine = Engine(opened.environment, durable=options.durable, async_log_write=options.async_log_write)
            self._running = running = Running(opened, engine, checkpoint, garbage_collection, backup, archive)
            super().__init__(engine, ordered=opened.type == "btree", committed=running.committed)
            migration.undo_interrupted(engine)
            engine.begin_oids()
            if options.repair:
                check.repair_at_open(engine)
            if options.validate_garbage and (wrong := running.collector.validate()):
                logger.error("%s: %d wrong entries were taken out of the garbage queue", path, wrong)
        except LIBRARY_ERRORS as error:
            abandon_storage(opened)
            raise explain(error, opened.directory.path) from error
        except BaseException:
            abandon_storage(opened)
            raise
        self._closer = weakref.finalize(self, running.close)
        running.start()

    def __str__(self) -> str:
        """Return the class and the directory."""
        return f"{self.__class__.__name__}({self.get_filename()!r})"

    def get_filename(self) -> str:
        """Return the path of the directory; Durus' server logs it."""
        return str(self._running.opened.directory.path)

    def session(self) -> Session:
        """Return another session on this storage, for a ``Connection`` of another thread.

        It ends with the storage, and keeps it open.
        """
        session = Session(self._engine, ordered=self._ordered, committed=self._running.committed)
        session.storage = self
        return session

    def pack(self, progress: Callable[[Packing], None] | None = None) -> None:
        """Delete every object that the root does not reach, whatever its age; commits go on between the steps.

        Killed or interrupted, it begins anew the next time, but for the deletion, which goes on where it was.
        Memory: about two bits an object.

        Args:
            progress: called between the steps with how far it is; what it raises ends the work.

        Raises:
            ReadOnlyError, DiskFullError, DamagedError, StorageClosed: it cannot go on; what was deleted is.
        """
        if not self._engine.environment.writable:
            raise ReadOnlyError(f"{self.get_filename()} was opened read-only: it cannot be packed")
        collector = self._running.collector
        with closing(collector.pack()) as steps:
            for _ in steps:
                packing = collector.packing
                if progress is not None and packing is not None:
                    progress(packing)

    def get_packer(self) -> Iterator[str | None]:
        """Return `pack` as a generator of small steps, as Durus' server wants it; an empty one when read-only.

        The background thread, or whatever the policy uses, does some of the steps meanwhile: so the pack comes to an
        end even where a busy server never asks the generator to go on.
        """
        if not self._engine.environment.writable:
            logger.warning("%s was opened read-only: it is not packed", self.get_filename())
            return iter(())
        try:
            return self._packer(self._running.collector.pack())
        except BerkeleyDBStorageError as error:
            return iter((_stopped(error),))

    def _packer(self, steps: Iterator[str | None]) -> Iterator[str | None]:
        """Pack; a failure ends it with a message, because it would end a Durus server."""
        try:
            for message in steps:  # noqa: UP028 - that closes it, which takes a lock, wherever Python frees this
                yield message
        except BerkeleyDBStorageError as error:
            yield _stopped(error)

    def checkpoint(self) -> None:
        """Make a checkpoint now, and remove the log files that it makes needless.

        Raises:
            ReadOnlyError: it was opened read-only.
            DiskFullError: there is no room for it; nothing is lost.
        """
        if self._running.checkpointer is None:
            raise ReadOnlyError(f"{self.get_filename()} was opened read-only: there is nothing to checkpoint")
        self._running.checkpointer.checkpoint()

    def backup(
        self,
        target: str | os.PathLike[str],
        progress: Callable[[str, int], None] | None = None,
        *,
        full: bool = False,
        keep: int | Keep | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Backup:
        """Make a backup in `target`, while commits go on: of everything the first time, then of what is new.

        Any thread may call it. What is in it is the state at a moment near the end: every commit is that was
        acknowledged before the call, and no part of any. `restore` makes a storage of it again. The first takes some
        seconds for 1 GB, and makes a checkpoint. From then on log files stay, until the next backup has them or they
        have more bytes than the storage. Killed at any point, it leaves what was there before.

        Args:
            target: an existing directory outside of the storage's, or a URL that fsspec knows.
            progress: called now and then with what is being done and the number of bytes; what it raises ends it.
            full: copy everything again.
            keep: how many backups of this storage stay in `target`, or which; default None: all.
            options: what fsspec's file system takes for a URL, such as credentials, where it does not find that itself;
                default None: those of the option `backup`, if `target` is its place.

        Raises:
            BackupError: another one is being made, or it cannot be made there; there is nothing of it then.
            ReadOnlyError: it was opened read-only.
            DiskFullError: the storage has no room for a checkpoint. CommitRefused: a migration is under way.
            DamagedError, StorageClosed: the storage cannot be used. OptionError: `keep` makes no sense.
        """
        if self._running.backups is None:
            raise ReadOnlyError(f"{self.get_filename()} was opened read-only: open it for writing to back it up")
        kept = None if keep is None else Keep.of(keep)
        return self._running.backups.make(target, progress, full=full, keep=kept, options=options)

    def compact(self, progress: Callable[[str, int], None] | None = None, *, hold: float = compaction.HOLD) -> int:
        """Return the room of deleted objects to the file system; commits go on between the steps.

        Any thread may call it. It takes about 10 seconds for 1,000,000 objects of which half were deleted, and makes
        checkpoints. A step holds up others for about `hold` seconds, and then rests for as long. It holds them up for
        longer where more pages are free than a quarter of the cache holds: 10 microseconds for each of them.

        Args:
            progress: called between the steps with what is being done and how many pages were given back by that;
                what it raises ends the work.
            hold: seconds that a step is to take; default 0.003. Longer ones are fewer, and faster in all.

        Returns:
            Bytes that were given back.

        Raises:
            ReadOnlyError: it was opened read-only.
            DiskFullError: there is no room for the log that it takes; what was given back is.
            CommitRefused: a migration is under way.
            DamagedError, StorageClosed: it cannot go on; nothing is lost.
        """
        if self._running.checkpointer is None:
            raise ReadOnlyError(f"{self.get_filename()} was opened read-only: it cannot be compacted")
        return compaction.run(self._engine, self._running.checkpointer, progress or _silent, hold=hold)

    def migrate(
        self, records: Iterable[tuple[bytes, bytes]], progress: Callable[[str, int], None] | None = None
    ) -> int:
        """Fill this empty storage with the records of another one; streams, and verifies at the end.

        Interrupted or failed, it leaves the storage empty; killed, it is emptied at the next open.

        Args:
            records: (oid, record) of every object once, in any order, such as ``source.gen_oid_record()``.
            progress: called now and then with what is being done and the number of records so far.

        Returns:
            The number of objects.

        Raises:
            StorageNotEmpty: the storage has objects.
            MigrationError: an object comes twice, is malformed, or refers to one that does not come.
            ReadOnlyError, DiskFullError, DamagedError, StorageClosed: it cannot go on.
        """
        return migration.migrate(self._engine, records, progress or _silent)

    def statistics(self) -> Statistics:
        """Return a snapshot of what the storage holds and did."""
        return take_statistics(self._running)

    def check(self, *, repair: bool = False, progress: Callable[[str, int], None] | None = None) -> check.Report:
        """Verify everything: records, references, counts, queues, totals, journal. Others wait until it is done.

        Args:
            repair: rebuild counts, queues and totals where they are wrong.
            progress: called now and then with what is being done and the number so far.

        Returns:
            All faults; none in a sound storage.

        Raises:
            DamagedError: a page cannot be read. ReadOnlyError: there is something to repair, and it is read-only.
            CommitRefused: a migration is under way. DiskFullError: there is no room for the repair.
        """
        return check.check_engine(self._engine, repair=repair, progress=progress)

    def close(self) -> None:
        """Stop the background threads, make a last checkpoint and close the files. Works twice.

        A storage that is not closed is closed when the interpreter ends, or recovered at the next open.
        """
        super().close()
        self._closer()

    def __enter__(self) -> BerkeleyDBStorage:
        """Return the storage."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()


def _stopped(error: BerkeleyDBStorageError) -> str:
    """Log that packing cannot go on, and return what to tell."""
    logger.error("packing stopped: %s", error)
    return f"stopped: {error}"


def _silent(activity: str, records: int) -> None:
    """Show no progress."""
