"""When to checkpoint and when to collect: the numbers that the policies give, and what they refuse."""

import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage import (
    CheckpointInline,
    CheckpointNever,
    CheckpointNumbers,
    CheckpointThread,
    GarbageInline,
    GarbageManual,
    GarbageNightly,
    GarbageNumbers,
    GarbageThread,
    OptionError,
    checkpoint_interface,
    garbage_collection_interface,
)
from berkeleydb_storage.checkpoint import LOG_BYTES, SECONDS
from berkeleydb_storage.garbage.policy import GRACE

counts = st.integers(0, 1 << 40)
seconds = st.floats(0, 1e9)
numbers = st.builds(
    GarbageNumbers,
    waiting=counts,
    committed=counts,
    idle=seconds,
    suspects=counts,
    unsettled=counts,
    objects=counts,
    packing=st.booleans(),
    since_pack=seconds,
    since_compact=seconds,
    now=st.floats(1e9, 4e9),
)
POLICIES = [GarbageManual, GarbageInline, GarbageThread, GarbageNightly]


def test_the_defaults():
    assert (LOG_BYTES, SECONDS, GRACE) == (32 << 20, 60.0, 60.0)
    assert (CheckpointInline().log_bytes, CheckpointInline().seconds) == (LOG_BYTES, SECONDS)
    assert (CheckpointThread().log_bytes, CheckpointThread().seconds) == (LOG_BYTES, SECONDS)
    assert [policy().grace for policy in POLICIES] == [GRACE] * 4
    assert GarbageThread().pack_interval == 86_400
    assert (GarbageNightly().begin, GarbageNightly().end) == (120, 300)


@pytest.mark.parametrize("policy", [CheckpointNever, CheckpointInline, GarbageManual, GarbageInline])
def test_some_are_asked_by_every_commit(policy):
    assert policy().interval is None


@pytest.mark.parametrize("policy", [CheckpointThread, GarbageThread, GarbageNightly])
def test_some_are_asked_by_a_thread(policy):
    assert policy().interval > 0


@given(counts, seconds)
def test_never(log_bytes, age):
    assert not CheckpointNever().due(CheckpointNumbers(log_bytes, age))


@pytest.mark.parametrize("policy", [CheckpointInline, CheckpointThread])
@pytest.mark.parametrize(
    ("log_bytes", "age", "due"),
    [
        (0, 0.0, False),
        (999, 9.9, False),
        (1000, 0.0, True),
        (5000, 0.0, True),
        (1, 10.0, True),
        (1, 1e9, True),
        (0, 10.0, False),
        (0, 1e9, False),
    ],
)
def test_by_log_or_by_time(policy, log_bytes, age, due):
    """Either is enough, but an idle storage is left alone."""
    assert policy(log_bytes=1000, seconds=10.0).due(CheckpointNumbers(log_bytes, age)) is due


@pytest.mark.parametrize("policy", [CheckpointInline, CheckpointThread])
@pytest.mark.parametrize(
    "limits", [{"log_bytes": 0}, {"log_bytes": -1}, {"seconds": 0}, {"seconds": -0.5}, {"seconds": float("nan")}]
)
def test_impossible_limits(policy, limits):
    with pytest.raises(OptionError, match="log_bytes and seconds are positive, not "):
        policy(**limits)


@given(counts, counts, seconds)
def test_manual_collects_nothing(waiting, committed, idle):
    assert GarbageManual().amount(GarbageNumbers(waiting, committed, idle)) == 0


@pytest.mark.parametrize(("committed", "amount"), [(0, 10), (1, 10), (2, 10), (3, 12), (1000, 4000)])
def test_inline_is_in_proportion_to_the_commit(committed, amount):
    assert GarbageInline().amount(GarbageNumbers(10**6, committed, 0.0)) == amount


def test_inline_as_it_is_told():
    policy = GarbageInline(grace=1.5, factor=0.5, least=0)
    assert policy.grace == 1.5
    assert policy.amount(GarbageNumbers(10**6, 101, 0.0)) == 50
    assert policy.amount(GarbageNumbers(10**6, 0, 0.0)) == 0


@given(st.integers(1, 10**6))
def test_inline_keeps_up_with_commits_that_replace_everything(committed):
    """Each commit makes at most as much garbage as it stores, in the long run."""
    assert GarbageInline().amount(GarbageNumbers(committed, committed, 0.0)) >= 4 * committed


@given(numbers, counts)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_amounts_are_numbers_of_records(policy, told, more):
    """Never negative, never without a bound, and not less where more waits."""
    amount = policy().amount(told)
    assert isinstance(amount, int)
    assert 0 <= amount <= max(10_000, 4 * told.committed)
    assert policy().amount(told._replace(waiting=told.waiting + more)) >= amount
    assert policy().amount(told._replace(suspects=told.suspects + more)) >= amount
    assert policy().amount(told._replace(committed=told.committed + more)) >= amount


@given(numbers, seconds)
@pytest.mark.parametrize("policy", [GarbageThread, GarbageNightly])
def test_the_thread_does_most_when_nobody_is_there(policy, told, idle):
    amount, resting = policy().amount(told), policy().amount(told._replace(idle=2.0))
    assert 0 < amount <= resting
    assert policy().amount(told._replace(idle=0.0)) <= policy().amount(told._replace(idle=idle))
    assert policy().amount(told._replace(packing=True)) >= policy().amount(told._replace(packing=False))


def test_the_thread_is_faster_when_much_waits_and_when_idle():
    """Strictly so, somewhere."""
    little, much = GarbageNumbers(0, 0, 0.0), GarbageNumbers(10**7, 0, 0.0)
    policy = GarbageThread()
    assert policy.amount(little) < policy.amount(much) < policy.amount(much._replace(idle=60.0))


def test_the_thread_as_it_is_told():
    policy = GarbageThread(grace=0, interval=0.01, pack_interval=3600)
    assert (policy.grace, policy.interval, policy.pack_interval) == (0, 0.01, 3600)


@given(numbers)
def test_manual_and_inline_never_ask_for_a_full_pack(told):
    assert not GarbageManual().pack(told)
    assert not GarbageInline().pack(told)
    assert not garbage_collection_interface().pack(told)


@pytest.mark.parametrize(
    ("unsettled", "packing", "since_pack", "wanted"),
    [
        (1, False, 99.9, False),
        (0, False, 100.0, False),
        (1, False, 100.0, True),
        (0, True, 100.0, True),
        (5, True, 0.0, False),
        (0, False, 1e9, False),
    ],
)
def test_the_thread_packs_for_what_is_left_over(unsettled, packing, since_pack, wanted):
    """Where it is due, and something is left over; and then to the end."""
    told = GarbageNumbers(0, 0, 0.0, unsettled=unsettled, packing=packing, since_pack=since_pack)
    assert GarbageThread(pack_interval=100).pack(told) is wanted


@given(numbers)
def test_the_thread_never_packs_where_it_is_told_so(told):
    assert not GarbageThread(pack_interval=None).pack(told)


@pytest.fixture
def local_time(monkeypatch):
    """A function that sets the time zone of the process, until the end of the test."""

    def zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield zone
    monkeypatch.undo()
    time.tzset()


def nightly(policy, text, since_pack=1e6, *, after=0.0):
    """Ask whether it packs at a time such as "2026-06-30 23:15", local, or so many seconds after it."""
    now = datetime.fromisoformat(text).timestamp() + after
    return policy.pack(GarbageNumbers(0, 0, 0.0, since_pack=since_pack, now=now))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize(
    ("begin", "end", "within", "outside"),
    [
        ("02:00", "05:00", ["02:00", "03:30", "04:59"], ["01:59", "05:00", "14:00", "23:59", "00:00"]),
        ("23:30", "01:15", ["23:30", "23:59", "00:00", "01:14"], ["23:29", "01:15", "12:00", "02:00"]),
        ("00:00", "06:00", ["00:00", "05:59"], ["23:59", "06:00"]),
        ("22:00", "00:00", ["22:00", "23:59"], ["00:00", "21:59"]),
        ("05:00", "04:59", ["05:00", "12:00", "00:00", "04:58"], ["04:59"]),
    ],
)
def test_the_window_of_the_night(begin, end, within, outside, zone, local_time):
    local_time(zone)
    policy = GarbageNightly(begin, end)
    assert all(nightly(policy, f"2026-06-30 {text}") for text in within)
    assert not any(nightly(policy, f"2026-06-30 {text}") for text in outside)


def test_one_pack_a_night(local_time):
    """Across midnight; the one of the evening before does not count, nor one that ended when the window began."""
    local_time("Europe/Berlin")
    policy = GarbageNightly("23:30", "02:00")
    assert nightly(policy, "2026-06-30 23:45", since_pack=15 * 60 + 1)
    assert not nightly(policy, "2026-06-30 23:45", since_pack=15 * 60 - 1)
    assert nightly(policy, "2026-07-01 01:30", since_pack=2 * 3600 + 1)
    assert not nightly(policy, "2026-07-01 01:30", since_pack=2 * 3600 - 1)
    assert nightly(policy, "2026-07-01 23:30", since_pack=22 * 3600)


@pytest.mark.parametrize(("begin", "day"), [("01:30", "2026-10-25"), ("02:30", "2026-10-25"), ("02:30", "2026-03-29")])
def test_one_pack_in_a_night_in_which_the_clocks_change(begin, day, local_time):
    """Back at 3 to 2, or forward at 2 to 3: wherever in the window it ended, there is no second one."""
    local_time("Europe/Berlin")
    policy = GarbageNightly(begin, "05:00")
    evening, done = f"{day} 00:00", None
    for minute in range(12 * 60):
        since_pack = 1e6 if done is None else (minute - done) * 60.0
        if nightly(policy, evening, since_pack, after=minute * 60.0):
            assert done is None, f"again after {minute - done} minutes"
            done = minute + 7
    assert done is not None


@pytest.mark.parametrize("minutes", range(0, 240, 20))
def test_a_pack_that_ends_anywhere_in_such_a_night(minutes, local_time):
    """It ends so many minutes after it may begin."""
    local_time("Europe/Berlin")
    policy = GarbageNightly("01:30", "05:00")
    done = 90 + minutes
    later = range(done + 1, 8 * 60)
    assert not any(nightly(policy, "2026-10-25 00:00", (minute - done) * 60.0, after=minute * 60.0) for minute in later)


@pytest.mark.parametrize(
    ("text", "since_pack", "since_compact", "wanted"),
    [
        ("03:00", 3599, float("inf"), True),
        ("03:00", 3599, 3601, True),
        ("03:00", 3599, 3599, False),
        ("03:00", 3601, float("inf"), False),
        ("01:59", 1, float("inf"), False),
        ("05:00", 1, float("inf"), False),
    ],
)
def test_one_compaction_a_night_after_the_pack(text, since_pack, since_compact, wanted):
    now = datetime.fromisoformat(f"2026-06-30 {text}").timestamp()
    told = GarbageNumbers(0, 0, 0.0, since_pack=since_pack, since_compact=since_compact, now=now)
    assert GarbageNightly().compact(told) is wanted


@given(numbers)
@pytest.mark.parametrize("policy", [GarbageManual, GarbageInline, GarbageThread, garbage_collection_interface])
def test_others_do_not_compact(policy, told):
    assert not policy().compact(told)


@pytest.mark.parametrize("text", ["24:00", "2", "02:60", "", "noon", "02:00:00", None, 2, "-1:00"])
def test_a_window_that_is_none(text):
    for arguments in ((text, "05:00"), ("02:00", text)):
        with pytest.raises(OptionError, match='a time of the day is "HH:MM", not'):
            GarbageNightly(*arguments)


def test_a_window_that_is_empty():
    with pytest.raises(OptionError, match="the window of 02:00 to 2:00 is empty"):
        GarbageNightly("02:00", "2:00")


@pytest.mark.parametrize("value", [-1, -0.1, float("nan"), float("inf")])
def test_an_impossible_time_between_packs(value):
    with pytest.raises(OptionError, match="pack_interval is a number of seconds, or None, not "):
        GarbageThread(pack_interval=value)


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (policy, {name: value})
        for policy, names in (
            (GarbageInline, ("grace", "factor", "least")),
            (GarbageThread, ("grace", "interval")),
            (GarbageNightly, ("grace", "interval")),
        )
        for name in names
        for value in (-1, -0.1, float("nan"), float("inf"))
        if (name, value) != ("least", float("inf"))
    ],
)
def test_impossible_arguments(policy, arguments):
    with pytest.raises(OptionError, match="not negative"):
        policy(**arguments)


def test_no_pause_at_all():
    with pytest.raises(OptionError, match="interval finite and positive"):
        GarbageThread(interval=0)


def test_one_limit_alone():
    """Infinity stands for no limit."""
    by_log = CheckpointInline(seconds=float("inf"))
    assert not by_log.due(CheckpointNumbers(1, 1e9))
    assert by_log.due(CheckpointNumbers(LOG_BYTES, 0.0))
    by_time = CheckpointInline(log_bytes=float("inf"))
    assert not by_time.due(CheckpointNumbers(1 << 50, 1.0))
    assert by_time.due(CheckpointNumbers(1, SECONDS))


def test_the_interfaces_decide_nothing():
    with pytest.raises(NotImplementedError):
        checkpoint_interface().due(CheckpointNumbers(0, 0.0))
    with pytest.raises(NotImplementedError):
        garbage_collection_interface().amount(GarbageNumbers(0, 0, 0.0))
    assert (checkpoint_interface.interval, garbage_collection_interface.interval) == (None, None)
    assert garbage_collection_interface.grace == GRACE
