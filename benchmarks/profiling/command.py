"""``python -m benchmarks profile [path ...] [--seconds N] [--clients N] [--json FILE] [--directory DIRECTORY]``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.method import report, results
from benchmarks.method.busy import Watch
from benchmarks.method.facts import facts, on_disk, quiet_durus
from benchmarks.method.measure import Result, Series, in_turn, progress, ratios, scaled
from benchmarks.profiling import layers
from benchmarks.profiling.paths import PATHS, QUICK, TINY, Profiled, Running, Setting, Sizes
from benchmarks.profiling.sampling import SamplingError, find, sample

MOST_FUNCTIONS = 10
"""Functions of ours that are named."""
NAMED = 3
"""Functions that are named for each layer."""
LEAST = 0.5
"""Percent of the time from which on a layer has a line of its own."""
OURS = "ours"
TINY_SIZE, QUICK_SIZE = "tiny", "quick"
MAIN, SERVER = "MainThread", "berkeleydb_storage server"
"""Threads that the shares are of."""


def profile(path: Profiled, directory: Path, sizes: Sizes, seconds: int, clients: int) -> list[Result]:
    """Measure how far a path is from its limits, and then what it spends its time on."""
    with ExitStack() as stack:
        setting = Setting(stack, directory, sizes, clients if path.served else 1, seconds)
        number = max(2 if path.name != "collect" else 500, round(path.batch * sizes.batch))
        progress(f"{_title(path, setting)}: preparing")
        starts = {OURS: path.start, **{limit.name: limit.start for limit in path.limits}}
        running = {name: start(setting, directory / name) for name, start in starts.items()}
        progress(f"{_title(path, setting)}: {sizes.rounds} rounds beside its limits")
        taken = _compete(running, number, sizes.rounds)
        return [
            _distance(path, setting, taken),
            *_sampled(path, setting, running[OURS], number, Series(taken[OURS])),
        ]


def _title(path: Profiled, setting: Setting) -> str:
    clients = f", {setting.clients} client{'s' if setting.clients > 1 else ''}" if path.served else ""
    return f"profile {path.name}{clients}"


def _compete(running: dict[str, Running], number: int, rounds: int) -> dict[str, Series]:
    contestants: dict[str, Callable[[], float]] = {
        name: lambda each=each: each.round(number) for name, each in running.items()
    }
    in_turn(contestants, 1)
    return in_turn(contestants, rounds)


def _distance(path: Profiled, setting: Setting, taken: dict[str, Series]) -> Result:
    result = Result(
        f"{_title(path, setting)}, distance from the limit",
        f"{path.what}; beside it what limits it, in turn. Microseconds per {path.unit}.",
    )
    about = {OURS: "the default policies", **{limit.name: limit.about for limit in path.limits}}
    for name, series in taken.items():
        result.row(name, about[name], **{f"µs per {path.unit}": scaled(series, 1e6)})
    for limit in path.limits:
        result.figure(f"{path.name}, ours / {limit.name}", ratios(taken[OURS], taken[limit.name]))
    return result


def _sampled(path: Profiled, setting: Setting, ours: Running, number: int, taken: Series) -> list[Result]:
    """Sample each of the processes in turn, while the work goes on."""
    found = []
    processes = {"client": ours.client, "server": ours.server} if ours.server else {"": ours.client}
    for role, worker in processes.items():
        progress(f"{_title(path, setting)}: sampling {role or 'it'} for {setting.seconds} s")
        assert worker is not None
        ours.start(setting.seconds + 1.5, number)
        try:
            lines = sample(worker.pid, setting.seconds)
        finally:
            ours.wait()
        thread, counts = (SERVER, _is_any) if role == "server" else (MAIN, _is_measured)
        profile = layers.attribute(lines, thread, counts)
        profile.inside = _inside(setting, ours, number, worker.pid, profile.number if role == "server" else "")
        found += _layers(path, setting, role, profile, taken)
    return found


def _inside(setting: Setting, ours: Running, number: int, pid: int, thread: str) -> float | None:
    """Work on without samples; return the share of the time that the first client, or a thread, is in user mode."""
    task = Path(f"/proc/{pid}/task/{thread}/stat")
    if thread and not task.exists():
        return None
    before = _user_time(task) if thread else 0.0
    ours.start(setting.seconds / 2, number)
    done = ours.wait()
    if not done[0]["taken"]:
        return None
    if not thread:
        return done[0]["inside"] / done[0]["taken"]
    each = (_user_time(task) - before) / sum(one["operations"] for one in done)
    return min(1.0, each * sum(one["operations"] / one["taken"] for one in done))


def _user_time(task: Path) -> float:
    """Return the seconds that a thread has worked in user mode (Linux)."""
    return int(task.read_text().rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK")


def _is_measured(sample: layers.Sample) -> bool:
    return any(frame.name.endswith("measured") and "profiling/contestants" in frame.place for frame in sample.stack)


def _is_any(_: layers.Sample) -> bool:
    return True


def _layers(path: Profiled, setting: Setting, role: str, found: layers.Profile, taken: Series) -> list[Result]:
    title = f"{_title(path, setting)}, layers{role and f' of the {role}'}"
    result = Result(
        title,
        f"{path.what}. Where the time{role and f' of the {role}'} goes, by {found.total:,} samples of the stack of the "
        f"thread {found.thread}: own time of each layer in percent, and as microseconds of the time per {path.unit}."
        + ("" if found.inside is None else f" The system counts {100 * found.inside:.0f} % of it outside of itself."),
    )
    rest = 0.0
    shares = {layer: found.share(layer, count) for layer, count in found.layers.items()}
    for layer, share in sorted(shares.items(), key=lambda each: -each[1]):
        if share < LEAST or layer == layers.OTHERS + MAIN:
            rest += share if share < LEAST else 0
        else:
            _row(result, path, layer, share, _biggest(found, layer), taken)
    if rest:
        _row(result, path, "less than that each", rest, "all other layers", taken)
    biggest = Result(f"{title}: functions of ours", "The functions of ours that take the most time themselves.")
    for layer, name, count in found.ours(MOST_FUNCTIONS):
        _row(biggest, path, name, found.share(layer, count), "own time", taken)
    return [result, biggest] if biggest.rows else [result]


def _row(result: Result, path: Profiled, name: str, share: float, about: str, taken: Series) -> None:
    result.row(name, about, **{"%": [share], f"µs per {path.unit}": [median(taken) * share * 1e4]})


def _biggest(found: layers.Profile, layer: str) -> str:
    most = found.functions[layer].most_common(NAMED)
    return ", ".join(f"{name} {found.share(layer, count):.1f} %" for name, count in most)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description="Show where our own time goes.")
    parser.add_argument("names", nargs="*", metavar="path", help=f"which ({', '.join(PATHS)}); all by default")
    parser.add_argument("--seconds", type=int, default=5, help="for which each process is sampled; default 5")
    parser.add_argument("--clients", type=int, default=1, help="of a server, at the same time; default 1")
    parser.add_argument("--tiny", action="store_true", help="so small that the numbers mean nothing: to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument("--directory", type=Path, help="where to work, on a real disk; a temporary one by default")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(PATHS):
        parser.error(f"no path is called {', '.join(sorted(unknown))}; there are {', '.join(PATHS)}")
    if chosen.seconds < 1 or chosen.clients < 1:
        parser.error("seconds and clients are 1 or more")
    quiet_durus()
    try:
        find()
        return _run(chosen)
    except SamplingError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace) -> int:
    command = " ".join(["python -m benchmarks profile", *chosen.names, *(["--tiny"] if chosen.tiny else [])])
    options = f" --seconds {chosen.seconds} --clients {chosen.clients}"
    with tempfile.TemporaryDirectory(prefix="profile-", dir=chosen.directory or on_disk()) as directory:
        run = results.Run(facts(Path(directory), command + options), TINY_SIZE if chosen.tiny else QUICK_SIZE)
        print(report.heading(run.facts, run.size))
        for name in chosen.names or PATHS:
            run.parts.append(_part(name, Path(directory), chosen))
            print(report.part(run.parts[-1]), flush=True)
            if chosen.json:
                results.write(chosen.json, [run])
    return 0


def _part(name: str, directory: Path, chosen: argparse.Namespace) -> results.Part:
    scratch = directory / name
    scratch.mkdir()
    began, watch = time.strftime("%Y-%m-%d %H:%M:%S"), Watch(directory)
    found = profile(PATHS[name], scratch, TINY if chosen.tiny else QUICK, chosen.seconds, chosen.clients)
    return results.Part(f"profile {name}", began, found, watch.end())
