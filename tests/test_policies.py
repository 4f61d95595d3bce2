"""When to checkpoint and when to collect: the numbers that the policies give, and what they refuse."""

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


def test_the_defaults():
    assert (LOG_BYTES, SECONDS, GRACE) == (32 << 20, 60.0, 60.0)
    assert (CheckpointInline().log_bytes, CheckpointInline().seconds) == (LOG_BYTES, SECONDS)
    assert (CheckpointThread().log_bytes, CheckpointThread().seconds) == (LOG_BYTES, SECONDS)
    assert (GarbageInline().grace, GarbageThread().grace, GarbageManual().grace) == (GRACE, GRACE, GRACE)


@pytest.mark.parametrize("policy", [CheckpointNever, CheckpointInline, GarbageManual, GarbageInline])
def test_some_are_asked_by_every_commit(policy):
    assert policy().interval is None


@pytest.mark.parametrize("policy", [CheckpointThread, GarbageThread])
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


@pytest.mark.parametrize(("committed", "amount"), [(0, 10), (1, 10), (5, 10), (6, 12), (1000, 2000)])
def test_inline_is_twice_the_commit(committed, amount):
    assert GarbageInline().amount(GarbageNumbers(10**6, committed, 0.0)) == amount


def test_inline_as_it_is_told():
    policy = GarbageInline(grace=1.5, factor=0.5, least=0)
    assert policy.grace == 1.5
    assert policy.amount(GarbageNumbers(10**6, 101, 0.0)) == 50
    assert policy.amount(GarbageNumbers(10**6, 0, 0.0)) == 0


@given(st.integers(1, 10**6))
def test_inline_keeps_up_with_commits_that_replace_everything(committed):
    """Each commit makes at most as much garbage as it stores, besides what hangs on it."""
    assert GarbageInline().amount(GarbageNumbers(committed, committed, 0.0)) >= 2 * committed


@pytest.mark.parametrize(
    ("waiting", "busy", "idle"),
    [(0, 200, 1000), (1000, 200, 1000), (20_000, 200, 1000), (50_000, 500, 2500), (10**7, 2000, 10_000)],
)
def test_the_thread_goes_with_the_queue_and_faster_when_idle(waiting, busy, idle):
    policy = GarbageThread()
    assert policy.amount(GarbageNumbers(waiting, 0, 1.0)) == busy
    assert policy.amount(GarbageNumbers(waiting, 0, 1.1)) == idle


def test_the_thread_as_it_is_told():
    policy = GarbageThread(grace=0, interval=0.01)
    assert (policy.grace, policy.interval) == (0, 0.01)


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        (policy, {name: value})
        for policy, names in ((GarbageInline, ("grace", "factor", "least")), (GarbageThread, ("grace", "interval")))
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
