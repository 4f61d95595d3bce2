"""Processes that share a storage are killed, the owner above all: what was acknowledged is there."""

import random
import signal
import statistics
import time

import pytest
from conftest import check_directory
from durus.connection import Connection
from shared_child import Crew, set_up

from berkeleydb_storage import BerkeleyDBStorage

PROCESSES = 4
KILLS = 5
SLOW_KILLS = 100
BETWEEN = 40
"""Commits between two kills."""
CLOSES = 0.02
"""How many of the steps close the storage and open it again."""
POINTS = ["commit.begun", "commit.written", "commit.committed", "commit.flushed"]
KILLED = -signal.SIGKILL


@pytest.fixture
def crew(directory):
    crew = Crew(directory)
    yield crew
    crew.finish()


class Case:
    """Some processes at work on a storage."""

    def __init__(self, crew, seed, closes=CLOSES):
        self.crew = crew
        self.history = crew.history
        self.random = random.Random(seed)
        self.closes = closes
        self.away = []
        set_up(crew.path)
        for _ in range(PROCESSES):
            self.hire()
        self.go_on()

    def hire(self):
        child = self.crew.child()
        began = self.history.began
        child.tell("work", path=self.crew.path, seed=self.random.random(), closes=self.closes)
        self.crew.read_until(lambda: self.history.began > began)

    def go_on(self, commits=BETWEEN):
        until = self.history.commits + commits
        self.crew.read_until(lambda: self.history.commits >= until)

    def owner(self):
        """Return the owner; there is none for moments."""
        while (owner := self.crew.owner()) is None:
            self.go_on(1)
        return owner

    def kill(self, child):
        """Kill a child, and note how long it takes until the others commit; another one takes its place."""
        self.history.note()
        child.kill()
        self.crew.gone(child)
        self.crew.read_until(lambda: self.history.first is not None)
        self.away.append(self.history.first - self.history.mark)
        self.hire()

    def finish(self):
        """Have all stop, and look whether it is all there."""
        self.crew.stop()
        with BerkeleyDBStorage(self.crew.path) as storage:
            lost = self.history.verify(Connection(storage))
        check_directory(self.crew.path)
        assert lost == 0


def kill_owners(crew, seed, kills):
    case = Case(crew, seed)
    for _ in range(kills):
        case.kill(case.owner())
        case.go_on()
    case.finish()
    return case


def test_owners_are_killed(crew):
    kill_owners(crew, 1, KILLS)


@pytest.mark.slow
def test_a_hundred_owners_are_killed(crew, capsys):
    """The figures that are reported."""
    started = time.monotonic()
    case = kill_owners(crew, 2, SLOW_KILLS)
    away, history = case.away, case.history
    with capsys.disabled():
        print(
            f"\n{SLOW_KILLS} kills of the owner among {PROCESSES} processes in {time.monotonic() - started:.0f} s: "
            f"{history.commits} commits acknowledged, 0 lost, {history.conflicts} conflicts; until the next commit "
            f"{1000 * statistics.median(away):.0f} ms in the median, {1000 * max(away):.0f} ms at most; "
            f"the longest commit took {1000 * history.longest:.0f} ms"
        )


def test_clients_are_killed(crew):
    case = Case(crew, 3)
    for _ in range(KILLS):
        owner = case.owner()
        case.kill(case.random.choice([each for each in crew.children.values() if each is not owner]))
        case.go_on()
    case.finish()


def test_anybody_is_killed(crew):
    """Several at once, too."""
    case = Case(crew, 4, closes=0.1)
    for count in (1, 2, 3, 2):
        for child in case.random.sample(list(crew.children.values()), count):
            child.process.kill()
            crew.gone(child)
        for _ in range(count):
            case.hire()
        case.go_on()
    case.finish()


@pytest.mark.parametrize("name", POINTS)
def test_the_owner_is_killed_in_a_commit(directory, name):
    """Its own, or one of a client: at each point where it may be."""
    crew = Crew(directory)
    set_up(directory)
    for times in (1, 7):
        first = crew.child()
        first.ask("open", path=directory)
        assert crew.owner() is first
        first.ask("arm", point=name, times=times)
        others = [crew.child() for _ in range(2)]
        for seed, child in enumerate((*others, first)):
            child.tell("work", path=directory, seed=seed)
        assert crew.wait_for(first) == KILLED
        until = crew.history.commits + BETWEEN
        crew.read_until(lambda until=until: crew.history.commits >= until)
        crew.stop()
        for child in others:
            child.end()
        crew.children.clear()
    crew.finish()
    with BerkeleyDBStorage(directory) as storage:
        assert crew.history.verify(Connection(storage)) == 0
    check_directory(directory)


def test_owners_close_all_the_time(crew):
    """In order, with commits of the others under way: nobody notices."""
    case = Case(crew, 5, closes=0.3)
    case.go_on(10 * BETWEEN)
    case.finish()
