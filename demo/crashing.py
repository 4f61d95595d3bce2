"""Checks the storage, and kills a process that writes to it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from durus.connection import Connection

from berkeleydb_storage import BerkeleyDBStorage
from demo.serving import PROJECT
from demo.show import Story, log_shown, seconds
from demo.writer import DIARY

KILLS = 3
ACKNOWLEDGED_AT_LEAST = 200
"""Commits that a writer has acknowledged before it is killed."""
MOMENT = 0.02
"""Seconds within which the kill comes at random after that: anywhere in a commit."""


def check(story: Story, directory: Path) -> None:
    """Check the storage, crash a writer a few times, and look what is there."""
    story.step(
        "check it, kill a writer, check it again",
        "The check reads everything: records, references, counts, queues, totals. Then a process commits entries of a "
        "diary, one after the other, and tells the number of each when its commit has returned. It is killed by "
        "SIGKILL in the middle of that; the next open recovers. Every number that it told must be there.",
    )
    _check(story, directory)
    acknowledged = entries = lost = 0
    for _ in range(KILLS):
        print()
        told = _write_and_kill(directory, acknowledged + ACKNOWLEDGED_AT_LEAST)
        acknowledged = max(acknowledged, told)
        with log_shown():
            started = time.perf_counter()
            storage = BerkeleyDBStorage(directory)
            elapsed = time.perf_counter() - started
        with storage:
            recovered = storage.statistics().recovered
            diary = Connection(storage).get_root()[DIARY]
            numbers = list(diary.keys())
            entries = len(numbers)
        whole = numbers == list(range(1, entries + 1))
        lost += max(0, told - entries)
        story.line(
            f"killed after commit {told:,} was acknowledged; open again in {seconds(elapsed)}, {entries:,} entries"
        )
        story.check("it was recovered, and every acknowledged commit is there", recovered and whole and entries >= told)
        story.check("and at most the one that was under way", entries <= told + 1)
        story.figure("recovery seconds", elapsed)
    story.figure("acknowledged commits", acknowledged)
    story.figure("acknowledged commits lost", lost)
    print()
    _check(story, directory)


def _check(story: Story, directory: Path) -> None:
    with BerkeleyDBStorage(directory) as storage:
        report = storage.check()
    story.line(f"{report.objects:,} objects and {report.references:,} references checked in {seconds(report.seconds)}.")
    for fault in report.faults[:10]:
        story.line(f"fault: {fault.message}")
    story.figure("check seconds", report.seconds)
    story.check("there is no fault", not report.faults)


def _write_and_kill(directory: Path, until: int) -> int:
    """Run a writer until commit number `until` is acknowledged, kill it, and return the last that was."""
    command = [sys.executable, "-m", "demo.writer", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=PROJECT) as writer:
        assert writer.stdout is not None
        told = 0
        try:
            for line in writer.stdout:
                told = int(line)
                if told == until:
                    time.sleep(random.uniform(0, MOMENT))
                    writer.kill()
        finally:
            writer.kill()
    return told
