"""The commands that get storages back out of backups and archives, and prove that this is possible."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime

from berkeleydb_storage.backup.recalling import restore
from berkeleydb_storage.backup.restoring import moment_text
from berkeleydb_storage.backup.verifying import Chain, verify_backups
from berkeleydb_storage.commands.command import Command, add_key, key_of
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.commands.places import add_options, add_place, store_options


def _restore(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = f"{arguments.target} is as it was; to start again, run it again"
    with console.progress(unit="bytes") as progress:
        restored = restore(
            arguments.place,
            arguments.target,
            to=arguments.to,
            to_commit=arguments.to_commit,
            of=arguments.of,
            key=key_of(arguments),
            new_key=key_of(arguments, "new-"),
            decrypt=arguments.decrypt,
            progress=progress,
            options=store_options(arguments),
        )
    console.result(
        {**asdict(restored), "path": str(restored.path)},
        f"restored {restored.storage} to {restored.path}: up to transaction {restored.tid}, of "
        f"{moment_text(round(restored.time * 1e6))}; {restored.objects:,} objects, {restored.bytes:,} bytes in "
        f"{restored.seconds:.1f} s",
    )
    return 0


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.removesuffix("Z") + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no time, such as "2026-11-21 03:00:00" or with +01:00') from None


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser, "where the backups or the archive are, a directory or a URL")
    parser.add_argument("target", metavar="NEW-DIRECTORY", help="for the storage: not there, or empty")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--to", type=_moment, metavar="TIME", help="every commit up to then; local time unless it says")
    point.add_argument("--to-commit", type=int, metavar="TID", help="every commit up to this transaction")
    parser.add_argument("--of", metavar="STORAGE", help="the path, or identity, of the storage, if there are several")
    add_key(parser, of="the storage that was backed up, if it is encrypted")
    add_key(parser, "new-", "the new storage, if that is to be another one")
    parser.add_argument("--decrypt", action="store_true", help="the new storage is not encrypted")
    add_options(parser)


def _verify(arguments: argparse.Namespace, console: Console) -> int:
    console.advice = "nothing was changed; to start again, run it again"
    with console.progress(unit="bytes") as progress:
        found = verify_backups(
            arguments.place,
            of=arguments.of,
            key=key_of(arguments),
            scratch=arguments.scratch,
            progress=progress,
            options=store_options(arguments),
        )
    lines = [line for chain in found.chains for line in _lines(chain)]
    lines += [f"{name} is not complete: being made, or interrupted; it does no harm" for name in found.interrupted]
    verdict = "sound" if found.sound else "NOT SOUND" if found.chains else "no backup that is complete"
    lines.append(f"{found.where}: {verdict}; {found.bytes:,} bytes in {found.seconds:.1f} s")
    console.result({**asdict(found), "sound": found.sound}, "\n".join(lines), essential=not found.sound)
    return 0 if found.sound else 1


def _lines(chain: Chain) -> list[str]:
    if chain.faults:
        return [f"{chain.name}: {fault}" for fault in chain.faults]
    when = moment_text(round(chain.time * 1e6))
    return [
        f"{chain.name}: transactions {chain.first} to {chain.last} of {chain.storage}, up to {when}: restored and "
        f"checked, {chain.objects:,} objects"
    ]


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser, "where the backups or the archive are, a directory or a URL")
    parser.add_argument("--of", metavar="STORAGE", help="only those of the storage with this path, or identity")
    parser.add_argument("--scratch", metavar="DIR", help="where to restore to, instead of the temporary directory")
    add_key(parser, of="the storage that was backed up, if it is encrypted")
    add_options(parser)


RESTORE = Command(
    "restore",
    "make a new storage of a backup or an archive, as of its end or of any time or commit",
    "It says up to which commit the new storage goes, and when that was. Nothing is overwritten. Killed at any point, "
    "it leaves NEW-DIRECTORY as it was, and beside it a directory .restoring-… that the next restore removes.",
    'durus-bdb restore /backups/db new-db --to "2026-11-21 03:00:00"',
    _restore_arguments,
    _restore,
)
VERIFY = Command(
    "verify",
    "restore everything in a place of backups into a scratch directory, and check it",
    "It reads every object there, restores each chain up to its end, and checks the storage that comes out, as `check` "
    "does. It takes room for one storage in the scratch directory. Exit code 1 where something is wrong.",
    "durus-bdb verify /backups/db",
    _verify_arguments,
    _verify,
)
