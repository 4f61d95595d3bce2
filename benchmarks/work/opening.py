"""Figure 4: opening a large storage in a fresh process, and the memory that it takes."""

from __future__ import annotations

from functools import partial
from statistics import median

from benchmarks.method.measure import Result, progress, ratios, scaled
from benchmarks.method.process import in_a_process, processes_in_turn
from benchmarks.peers.durus import FILE, OURS
from benchmarks.work import probes
from benchmarks.work.stores import PACKED, Stores

GOAL_AT = 1_000_000
"""Objects for which there is a goal: what a FileStorage takes grows with them."""


def opening(stores: Stores, count: int, rounds: int) -> list[Result]:
    """Compare the time to open, and the peak of memory after it."""
    names = (FILE, OURS, PACKED)
    paths = {name: stores.get(name, count) for name in names}
    progress(f"open: {count:,} objects, {rounds} times each")
    contestants = {
        name: partial(in_a_process, probes.open_ours if name == OURS else probes.open_file_storage, path)
        for name, path in paths.items()
    }
    processes_in_turn(contestants, 1)  # brings the files into the system's cache
    found = processes_in_turn(contestants, rounds)
    result = Result(
        "open",
        f"Opening {count:,} objects, built in commits of 1,000 and closed, each time in a fresh process; the files are "
        "in the system's cache. Memory in MB: of the interpreter with this program, after the imports, and the highest "
        "until the storage was open.",
    )
    about = {
        FILE: "as built; reads every record's offset",
        OURS: "default policies and cache; reads what it needs later",
        PACKED: "after pack(): it has offsets in the file, until it is written to",
    }
    for name, series in found.items():
        result.row(
            name,
            about[name],
            milliseconds=scaled(series["seconds"], 1e3),
            interpreter=series["interpreter"],
            imported=series["imported"],
            peak=series["peak"],
            increase_by_opening=series["increase"],
        )
    theirs, mine, packed = (found[name] for name in names)
    goal = {"least": 20.0} if count >= GOAL_AT else {}
    result.figure("time, FileStorage / ours", ratios(theirs["seconds"], mine["seconds"]), **goal)
    result.figure("memory that opening takes, FileStorage / ours", ratios(theirs["increase"], mine["increase"]), **goal)
    result.figure("memory of the whole process, FileStorage / ours", ratios(theirs["peak"], mine["peak"]), **goal)
    result.figure("time, FileStorage packed / ours", ratios(packed["seconds"], mine["seconds"]))
    least = min(theirs["imported"])
    result.notes.append(
        f"of the whole process, {least:.1f} MB are the interpreter and what every Durus program imports: "
        f"without any storage the last ratio would be {median(theirs['peak']) / least:.1f}"
    )
    return [result]
