"""Rights, networks, and patience with failures: what they decide, without a server."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage.auth.networks import Networks
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.throttle import CEILING, FIRST, HALF_LIFE, USER_CEILING, Throttle
from berkeleydb_storage.errors import OptionError

HERE, THERE = "192.0.2.1", "198.51.100.7"


def test_higher_rights_include_lower_ones():
    read, write, admin = map(Rights.parse, ("read", "write", "admin"))
    assert read == Rights.READ
    assert write == Rights.READ | Rights.WRITE
    assert admin == Rights.READ | Rights.WRITE | Rights.ADMIN
    assert Rights.WRITE not in read
    assert Rights.ADMIN not in write


@pytest.mark.parametrize("text", ["read", "write", "admin"])
def test_rights_are_text_and_back(text):
    assert Rights.parse(text).text == text


def test_no_rights():
    assert Rights(0).text == "none"


@pytest.mark.parametrize("text", ["", "none", "READ", "read,write", "root"])
def test_texts_that_are_no_rights(text):
    with pytest.raises(OptionError, match='rights are "read", "write" or "admin", not'):
        Rights.parse(text)


@pytest.mark.parametrize(
    ("networks", "host", "expected"),
    [
        (None, "8.8.8.8", True),
        ([], "no address", True),
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:11.1.2.3", False),
        (["10.0.0.0/8"], "::10.1.2.3", False),
        (["::ffff:10.0.0.0/104"], "10.1.2.3", True),
        (["::ffff:10.0.0.0/104"], "11.1.2.3", False),
        (["::1"], "::1", True),
        (["::1"], "0:0:0:0:0:0:0:1", True),
        (["::1"], "127.0.0.1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["fe80::/10"], "fec0::1%eth0", False),
        (["::/0"], "10.1.2.3", False),
        (["0.0.0.0/0"], "::1", False),
        (["10.0.0.0/8", "::1"], "::1", True),
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
        (["10.0.0.0/8"], "", False),
        (["10.0.0.0/8"], "localhost", False),
        (["10.0.0.0/8"], "10.0.0.1.example.org", False),
        (["10.0.0.0/8"], "010.0.0.1", False),
    ],
)
def test_networks(networks, host, expected):
    assert Networks(networks).admits(host) is expected


@pytest.mark.parametrize(
    ("text", "advice"),
    [("10.0.0.1/8", "write 10.0.0.0/8"), ("10.0.0", "such as"), ("localhost", "such as"), ("10.0.0.0/33", "such as")],
)
def test_networks_that_are_none(text, advice):
    with pytest.raises(OptionError, match=f"{text!r} is no network: .*{advice}"):
        Networks([text])


def test_a_text_is_no_list():
    with pytest.raises(OptionError, match="a list of texts"):
        Networks("10.0.0.0/8")


def test_networks_as_text():
    assert str(Networks(["10.0.0.0/8", "::1"])) == "10.0.0.0/8, ::1/128"
    assert str(Networks()) == "everywhere"


@given(st.text(max_size=40))
def test_any_host_is_admitted_or_not(host):
    assert Networks(["10.0.0.0/8"]).admits(host) is False


def guess(throttle, address, user, times, now=0.0):
    """Fail again and again, each time after the delay; return when that is over."""
    for _ in range(times):
        now += throttle.delay(address, user, now)
        throttle.failed(address, user, now)
    return now


def test_who_never_failed_does_not_wait():
    assert Throttle().delay(HERE, "ada", 0.0) == 0


def test_each_failure_doubles_the_delay_up_to_a_ceiling():
    throttle, delays = Throttle(), []
    for _ in range(12):
        throttle.failed(HERE, "ada", 0.0)
        delays.append(throttle._addresses.penalty(HERE, 0.0))
    assert delays[:7] == [FIRST * 2**number for number in range(7)]
    assert delays[-3:] == [CEILING] * 3


def test_guessing_is_slow():
    """A thousand guesses from one address, of one name or of many, take hours."""
    for name in ("ada{0:.0}", "user{0}"):
        throttle, now = Throttle(), 0.0
        for number in range(1000):
            now = guess(throttle, HERE, name.format(str(number)), 1, now)
        assert now > 1000 * CEILING / 2


def test_many_connections_guess_no_faster_than_one():
    throttle = Throttle()
    now = guess(throttle, HERE, "ada", 4)
    penalty = throttle._addresses.penalty(HERE, now)
    delays = [throttle.delay(HERE, f"user{number}", now) for number in range(5)]
    assert delays == pytest.approx([penalty * (number + 1) for number in range(5)])
    assert max(throttle.delay(HERE, "x", now) for _ in range(1000)) <= CEILING


def test_failures_are_forgotten():
    throttle = Throttle()
    for _ in range(100):
        throttle.failed(HERE, "ada", 0.0)
    worst = throttle._addresses.penalty(HERE, 0.0)
    assert worst == CEILING
    assert throttle._addresses.penalty(HERE, HALF_LIFE) < worst / 4
    assert throttle.delay(HERE, "ada", 6 * HALF_LIFE) == 0


def test_a_user_whose_name_is_guessed_elsewhere_is_held_up_a_little():
    throttle = Throttle()
    now = guess(throttle, THERE, "ada", 1000)
    delays = [throttle.delay(HERE, "ada", now) for _ in range(10)]
    assert delays == [USER_CEILING] * 10
    assert throttle.delay(HERE, "bob", now) == 0


def test_who_succeeded_does_not_wait():
    """Whoever fails from the same address with other names, or elsewhere with his."""
    throttle = Throttle()
    throttle.succeeded(HERE, "ada", 0.0)
    now = guess(throttle, THERE, "ada", 50)
    now = guess(throttle, HERE, "bob", 50, now)
    assert throttle.delay(HERE, "ada", now) == 0
    assert throttle.delay(HERE, "eve", now) > 0
    throttle.failed(HERE, "ada", now)
    assert throttle.delay(HERE, "ada", now) > 0


def test_an_account_of_his_own_does_not_help_a_guesser():
    throttle, now = Throttle(), 0.0
    for _ in range(50):
        now = guess(throttle, HERE, "ada", 1, now)
        throttle.succeeded(HERE, "mallory", now)
    assert throttle.delay(HERE, "ada", now) > CEILING / 2


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("uid 1000", "uid 1001", False),
        ("", "", True),
    ],
)
def test_what_counts_as_one_address(first, second, same):
    throttle = Throttle()
    now = guess(throttle, first, "ada", 5)
    assert (throttle.delay(second, "bob", now) > 0) is same


def test_memory_is_bounded():
    """Neither many addresses, nor many names, nor long ones, nor many that succeed make it grow."""
    throttle = Throttle(capacity=50)
    for number in range(1000):
        name = f"{number}" * 1000
        throttle.delay(f"2001:db8:{number:x}::1", name, float(number))
        throttle.failed(f"2001:db8:{number:x}::1", name, float(number))
        throttle.failed(name, name, float(number))
        throttle.succeeded(f"2001:db8:{number:x}::1", name, float(number))
    assert len(throttle) == 150
    kept = [*throttle._addresses._failures, *throttle._users._failures]
    assert max(sys.getsizeof(key) for key in kept) < 400


def test_the_oldest_is_forgotten_first():
    throttle = Throttle(capacity=2)
    for number, address in enumerate([HERE, THERE, HERE, "203.0.113.1"]):
        throttle.failed(address, "ada", float(number))
    assert throttle.delay(HERE, "bob", 4.0) > 0
    assert throttle.delay(THERE, "bob", 4.0) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["failed", "succeeded", "delay"]),
            st.sampled_from("ab"),
            st.sampled_from("uv"),
            st.floats(0, 1e6),
        ),
        max_size=40,
    )
)
def test_a_delay_is_within_its_bounds(events):
    """Even on a clock that goes back."""
    throttle = Throttle(capacity=2)
    for what, address, user, now in events:
        getattr(throttle, what)(address, user, now)
        assert 0 <= throttle.delay(address, user, now) <= CEILING
