"""The documents say what the results say, and nobody wrote a number of theirs by hand."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.catalog import PARTS
from benchmarks.method import pages, results
from benchmarks.method.busy import Busy
from benchmarks.method.chosen import CHOSEN, MOST, Line
from benchmarks.method.document import KEPT, NUMBERS, PAGE, PLOTS, ROOT, Documents
from benchmarks.method.measure import Chart, Result
from benchmarks.method.results import BadResults, Part, Run, merged
from benchmarks.method.selection import BEGIN, END, replaced, rows
from benchmarks.profiling.paths import PATHS

drawing = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws the plots")
QUIET = Busy(10.0, 1.0, 0.01, 0.0, 0.2, 1.0, 200.0, 210.0)
FACTS = {"command": "python -m benchmarks --full", "date": "2026-11-21 12:00", "python": "CPython 3.11.7"}


def loads():
    """Make a result: a peer that is worse, one that is better, one that is the same, and one that does not sync."""
    made = Result("load, records", "1,000 loads.", notes=["a note"])
    rounds = {"ours": 2.0, "FileStorage": 4.0, "bare Berkeley DB": 1.6, "the same": 2.02, "SqliteStorage": 20.0}
    for name, level in rounds.items():
        about = "never syncs" if name == "FileStorage" else "syncs each commit"
        made.row(name, about, **{"µs a load": [level, level * 1.01, level * 0.99], "peak MB": [40.0 / level] * 3})
    made.figure("FileStorage / ours", [2.0, 2.1, 1.9], least=2.0)
    made.figure("ours / bare Berkeley DB", [1.25], most=1.2)
    made.figure("longest", [7.0], unit="ms")
    return made


def commits():
    """Make a result where ours is there twice."""
    made = Result("commit", "1,000 commits.")
    made.row("ours", "syncs each commit", **{"commits/s": [1000.0] * 3})
    made.row("ours, not synced", "never syncs", **{"commits/s": [9000.0] * 3})
    made.row("ZODB FileStorage", "syncs each commit", **{"commits/s": [500.0] * 3})
    made.row("FileStorage", "never syncs", **{"commits/s": [18_000.0] * 3})
    return made


def grown():
    """Make a result with a chart."""
    chart = Chart("growth-open", "Opening", "objects", "ms", {"ours": [(1e4, 1.5), (1e5, 1.25)]})
    made = Result("growth, open", "Opening.", charts=[chart])
    made.row("ours", "syncs each commit", **{"ms at 10,000": [1.5]})
    return made


def profiled():
    """Make the results of a profile."""
    distance = Result("profile load, distance from the limit", "load(oid)")
    distance.row("ours", "the default", **{"µs a load": [2.0]})
    distance.figure("load, ours / bare get", [1.25])
    layers = Result("profile load, layers", "load(oid)")
    for name, share in (("Python of ours", 60.0), ("libdb", 40.0)):
        layers.row(name, "what", **{"%": [share], "µs a load": [share / 50]})
    functions = Result("profile load, layers: functions of ours", "The functions.")
    functions.row("session.load", "own time", **{"%": [60.0], "µs a load": [1.2]})
    return [distance, layers, functions]


def run(*found, part="load", busy=QUIET):
    """Make a run of one part."""
    return Run(dict(FACTS), "full", [Part(part, "2026-11-21 12:00:00", list(found), busy)])


def page(*runs):
    """Return the page of results."""
    return Documents().page(runs)


def section(text, title):
    """Return what is below a title."""
    return text.partition(f"\n## {title}\n\n")[2].partition("\n\n## ")[0]


def test_what_is_nothing_for_one_of_both_is_told():
    made = Result("collect", "w")
    made.row("ours", "syncs each commit", **{"garbage left": [7.0] * 3, "records lost": [0.0] * 3, "MB": [0.0] * 3})
    made.row("ZEO", "syncs each commit", **{"garbage left": [0.0] * 3, "records lost": [9.0] * 3, "MB": [0.0] * 3})
    text = page(run(made))
    assert section(text, "What we lose").splitlines()[-1] == "| collect | garbage left: ZEO ∞ |"
    assert section(text, "What we win").splitlines()[-1] == "| collect | records lost: ZEO ∞ |"


def test_what_we_lose_and_what_we_win():
    text = page(run(loads(), commits()))
    lost, won = section(text, "What we lose").splitlines()[-3:], section(text, "What we win").splitlines()[-3:]
    assert lost == [
        "| load, records | µs a load: bare Berkeley DB 1.25 |",
        "| commit | commits/s: FileStorage 2 |",
        "| peak MB, in some of all these | FileStorage 2 · SqliteStorage 10 |",
    ]
    assert won == [
        "| load, records | µs a load: SqliteStorage 10 · FileStorage† 2 |",
        "| commit | commits/s: ZODB FileStorage 2 |",
        "| peak MB, in some of all these | bare Berkeley DB 1.25 |",
    ]


def test_goals_that_are_not_met_come_first():
    assert section(page(run(loads())), "Goals").splitlines() == [
        "1 of 2 are met.",
        "",
        "| work | figure | value | goal | met |",
        "| --- | --- | --- | --- | --- |",
        "| load, records | ours / bare Berkeley DB | 1.25 | ≤ 1.2 | **no** |",
        "| load, records | FileStorage / ours | 2 ± 2% | ≥ 2 | yes |",
    ]


def test_all_numbers_are_there():
    told = pages.numbers([run(loads())])
    assert "| ours | 2 | 20 | syncs each commit |" in told
    assert "longest: 7 ms." in told
    assert told.endswith("- a note\n")


def test_what_many_tables_say_is_said_once():
    results = []
    for number in range(5):
        made = Result(f"load {number}", "1,000 loads.")
        made.row("ours", "syncs each commit (durable=True, the default)", µs=[1.0])
        made.row("other", f"another thing in each, {number}", µs=[1.0])
        results.append(made)
    told = pages.numbers([run(*results)])
    assert told.count("- ours: syncs each commit (durable=True, the default)") == 1
    assert told.count("| ours | 1 | syncs |") == 5
    assert "| other | 1 | another thing in each, 3 |" in told


def test_a_busy_machine_is_told_before_any_number():
    busy = Busy(10.0, 1.0, 0.5, 0.0, 0.2, 1.0, 200.0, 500.0)
    said = "- load: other processes used 0.50 of a processor; a sync took 200 µs before and 500 µs after"
    assert said in page(run(loads(), busy=busy)).partition("## Goals")[0]
    assert "The machine was busy" not in page(run(loads()))


def test_where_the_time_goes():
    told = section(page(run(*profiled(), part="profile load")), "Where the time goes")
    assert "| load | 2 µs a load | bare get 1.25 |" in told
    assert "| load | Python of ours 60, libdb 40 |" in told
    assert "session.load" not in told


def test_facts_are_told_once():
    told = section(page(run(loads()), run(commits(), part="commit")), "Machine and versions")
    assert told.count("python CPython 3.11.7") == 1
    assert told.count("- `python -m benchmarks --full` (sizes: full; date: 2026-11-21 12:00)") == 2


BESIDE = {"FileStorage": "FileStorage / ours", "a get": "ours / bare Berkeley DB"}
CHOICE = (Line("load: {} µs", "load, records", BESIDE, "synced", (("ours", "µs a load"),)),)


def test_the_readme_gets_its_rows():
    assert rows(merged([run(loads())]), CHOICE) == [["load: 2 µs", "FileStorage; a get", "2; 1.25", "synced"]]


def test_all_that_is_missing_is_told():
    lines = (
        Line("w", "open", {}),
        Line("w", "load, records", {"x": "ZODB / ours", "y": "FileStorage / ours"}),
        Line("w {}", "load, records", {}, own=(("ours", "ms"),)),
        Line("load 1,000 of 10,000", "load, records", {}),
    )
    missing = "open; load, records: ZODB / ours; load, records: ours: ms; load, records: with 10,000; run"
    with pytest.raises(BadResults, match=f"what was not measured: {missing}"):
        rows(merged([run(loads())]), lines)


def test_only_the_table_of_the_readme_changes(monkeypatch):
    before, after = "# Title\n\n1 | 2\n", "\n\nEnd.\n"
    monkeypatch.setattr("benchmarks.method.selection.CHOSEN", CHOICE)
    text = replaced(f"{before}{BEGIN}\nold\n{END}{after}", merged([run(loads())]))
    assert text.startswith(f"{before}{BEGIN}\n| what |")
    assert text.endswith(f"| load: 2 µs | FileStorage; a get | 2; 1.25 | synced |\n{END}{after}")
    with pytest.raises(BadResults, match="lacks the lines"):
        replaced(before, merged([run(loads())]))


def test_a_reader_can_read_the_table():
    assert len(CHOSEN) <= MOST
    assert all(line.what.count("{") == len(line.own) for line in CHOSEN)
    assert {line.result.partition(",")[0] for line in CHOSEN} <= {*PARTS, *(f"profile {path}" for path in PATHS)}


def test_the_command(tmp_path, capsys):
    for name, made in {"one": run(loads(), commits()), "two": run(commits(), part="commit")}.items():
        results.write(tmp_path / name, [made])
    assert main(["document", str(tmp_path / "one"), str(tmp_path / "two"), "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [KEPT, PAGE, NUMBERS]
    documents = Documents(tmp_path)
    assert (tmp_path / PAGE).read_text() == documents.page(documents.kept())
    assert [[result.name for result in each.results] for each in documents.kept()] == [["load, records"], ["commit"]]
    assert not (tmp_path / "README").exists()


@drawing
def test_plots_are_drawn_and_old_ones_removed(tmp_path):
    results.write(tmp_path / "r", [run(grown())])
    (tmp_path / PLOTS).mkdir(parents=True)
    (tmp_path / PLOTS / "old.svg").write_text("")
    assert main(["document", str(tmp_path / "r"), "--root", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / PLOTS).iterdir()} == {"NUMBERS.md", "growth-open.svg", "results.json"}
    assert "![Opening: ms, by objects](benchmarks/growth-open.svg)" in (tmp_path / PAGE).read_text()


def test_nothing_is_written_where_something_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.method.selection.CHOSEN", (Line("w", "open", {}),))
    (tmp_path / "README").write_text(f"{BEGIN}\n{END}\n")
    results.write(tmp_path / "r", [run(loads())])
    assert main(["document", str(tmp_path / "r"), "--root", str(tmp_path), "--readme"]) == 1
    assert "what was not measured: open" in capsys.readouterr().err
    assert main(["document", str(tmp_path / "missing"), "--root", str(tmp_path)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README", "r"]


@pytest.mark.skipif(not (ROOT / KEPT).exists(), reason="nothing was measured for the documents yet")
class TestTheDocuments:
    """What is in docs and in the README is what the results that are kept there give."""

    def test_the_page(self):
        documents = Documents()
        assert (ROOT / PAGE).read_text(encoding="utf-8") == documents.page(documents.kept())
        assert (ROOT / NUMBERS).read_text(encoding="utf-8") == pages.numbers(documents.kept())

    def test_the_readme(self):
        documents = Documents()
        assert (ROOT / "README").read_text(encoding="utf-8") == documents.readme(documents.kept())

    def test_each_plot_is_there_and_is_shown(self):
        documents = Documents()
        names = sorted(documents.plots(documents.kept()))
        assert names == sorted(path.name for path in (ROOT / PLOTS).glob("*.svg"))
        shown = re.findall(r"\(benchmarks/([^)]+\.svg)\)", (ROOT / PAGE).read_text(encoding="utf-8"))
        assert sorted(shown) == names

    def test_the_results_are_those_that_are_reported(self):
        found = json.loads((ROOT / KEPT).read_text(encoding="utf-8"))
        assert {run["size"] for run in found["runs"]} <= {"full", "quick"}
        assert all(Path(run["facts"]["command"].split()[0]).name == "python" for run in found["runs"])
