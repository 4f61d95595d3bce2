"""A bar on a terminal, lines now and then elsewhere, nothing when told so."""

import io

import pytest

from berkeleydb_storage.progress import EVERY, Progress, rate_text


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def work(progress, clock, activity="loading", *, steps=4, seconds=3.0):
    for step in range(1, steps + 1):
        progress(activity, step * 1000)
        clock.now += seconds


def test_lines_come_every_few_seconds(clock):
    stream = io.StringIO()
    with Progress(stream, {"loading": 4000}, clock=clock) as progress:
        work(progress, clock)
    assert EVERY == 5.0
    assert stream.getvalue() == "loading: 3,000 of 4,000 (75%) objects, 6 s, 500/s\n"


def test_lines_without_a_total(clock):
    stream = io.StringIO()
    with Progress(stream, unit="files", every=1, clock=clock) as progress:
        work(progress, clock, "files")
    assert stream.getvalue().splitlines()[0] == "files: 2,000 files, 3 s, 667/s"
    assert len(stream.getvalue().splitlines()) == 3


def test_another_activity_begins_anew(clock):
    stream = io.StringIO()
    with Progress(stream, {"verifying": 2000}, every=1, clock=clock) as progress:
        work(progress, clock, "loading", steps=2)
        work(progress, clock, "verifying", steps=2)
    lines = stream.getvalue().splitlines()
    assert lines == ["loading: 2,000 objects, 3 s, 667/s", "verifying: 2,000 of 2,000 (100%) objects, 3 s, 667/s"]


def test_a_quick_work_prints_nothing(clock):
    stream = io.StringIO()
    with Progress(stream, clock=clock) as progress:
        work(progress, clock, seconds=0)
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal(clock):
    stream = Terminal()
    with Progress(stream, {"loading": 4000}, clock=clock) as progress:
        work(progress, clock)
    shown = stream.getvalue()
    assert "\r" in shown
    assert "loading: 100%" in shown
    assert "4000/4000" in shown
    assert "objects/s" in shown
    assert shown.endswith("\n")


def test_a_bar_for_each_activity():
    stream = Terminal()
    with Progress(stream) as progress:
        progress("loading", 10)
        progress("verifying", 20)
        progress("loading", 30)
    final = [line.rpartition("\r")[2] for line in stream.getvalue().split("\n")]
    assert [line.split()[:2] for line in final if line.strip()] == [
        ["loading:", "10"],
        ["verifying:", "20"],
        ["loading:", "30"],
    ]


def test_totals_may_become_known_later():
    stream = Terminal()
    with Progress(stream) as progress:
        progress.totals["loading"] = 10
        progress("loading", 10)
    assert "100%" in stream.getvalue()


def test_the_bar_has_no_thread():
    import threading

    before = threading.active_count()
    with Progress(Terminal()) as progress:
        progress("loading", 1)
        assert threading.active_count() == before


def test_nowhere():
    with Progress(None) as progress:
        progress("loading", 1)


@pytest.mark.parametrize("stream", [None, io.StringIO(), Terminal()])
def test_poll_is_asked_at_every_step_and_may_end_the_work(stream):
    asked = []

    def poll():
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with Progress(stream, poll=poll) as progress:
        progress("loading", 1)
        progress("loading", 2)
        with pytest.raises(KeyboardInterrupt):
            progress("loading", 3)
    assert len(asked) == 3


def test_close_works_twice():
    progress = Progress(Terminal())
    progress("loading", 1)
    progress.close()
    progress.close()


def test_rates():
    assert rate_text(123_456, 2) == "61,728/s"
    assert rate_text(5, 0) == "at once"
