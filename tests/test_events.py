"""Lines of the log: nobody can forge one, and strangers do not fill the disk with them."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_process import WORD

from berkeleydb_storage.commands.lines import LineFormatter
from berkeleydb_storage.events import LONGEST, Event, Sparing, quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("127.0.0.1:2972", "127.0.0.1:2972"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("back\\slash", r'"back\\slash"'),
        ("a\nb\r\0\x1b\x7f\x9b", r'"a\nb\r\x00\x1b\x7f\x9b"'),
        ("\u2028\u202e\ud800", r'"\u2028\u202e\ud800"'),
        ("Käthe", '"Käthe"'),
        (1.5, "1.5"),
        (0.1 + 0.2, "0.3"),
        (10**9, "1000000000"),
        (True, "true"),
        (ValueError("bad\n"), r'"bad\n"'),
        (b"\n", "\"b'\\\\n'\""),
    ],
)
def test_values(value, text):
    assert str(Event("kind", key=value)) == f"kind key={text}"


def test_what_is_left_out():
    assert str(Event("kind", a=None, b="", c=0, d=False)) == "kind c=0 d=false"


@given(st.text(max_size=50))
def test_any_text_is_one_word_of_one_line(text):
    found = quoted(text)
    assert found.isprintable()
    assert re.fullmatch(WORD, found)
    assert len((found + "\n").splitlines()) == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_texts_stay_different(one, other):
    assert (quoted(one) == quoted(other)) is (one == other)


def test_long_values_are_cut():
    assert len(quoted("x" * 10**6)) <= LONGEST + 3


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


@pytest.fixture
def kept():
    """A logger, and what it has written."""
    logger, handler = logging.Logger("test", logging.DEBUG), Kept()
    logger.addHandler(handler)
    return logger, handler.lines


def test_so_many_lines_and_no_more(kept):
    logger, lines = kept
    now = [0.0]
    log = Sparing(logger, burst=3, rate=0.5, clock=lambda: now[0])
    for number in range(10):
        log.log(logging.WARNING, Event("knock", n=number))
    assert lines == ["knock n=0", "knock n=1", "knock n=2"]
    log.log(logging.INFO, Event("other"))
    assert lines[3:] == ["other"]
    now[0] = 2.0
    for number in range(10, 13):
        log.log(logging.WARNING, Event("knock", n=number))
    assert lines[4:] == ["knock n=10 suppressed=7"]
    now[0] = 1000.0
    for number in range(13, 20):
        log.log(logging.WARNING, Event("knock", n=number))
    assert lines[5:] == ["knock n=13 suppressed=2", "knock n=14", "knock n=15"]


def test_what_was_asked_for_is_not_limited(kept):
    logger, lines = kept
    log = Sparing(logger, burst=1)
    for _ in range(5):
        log.log(logging.DEBUG, Event("conflict"))
    assert lines == ["conflict"] * 5


def test_what_nobody_reads_is_not_made():
    class Costly:
        def __str__(self):
            raise AssertionError

    logger = logging.Logger("test", logging.WARNING)
    logger.debug(Event("conflict", reason=Costly()))
    Sparing(logger).log(logging.INFO, Event("conflict", reason=Costly()))


def test_lines_of_a_server(tmp_path):
    logger, handler = logging.Logger("test"), Kept()
    logger.addHandler(handler)
    with (tmp_path / "log").open("w") as stream:
        handler.setFormatter(LineFormatter(stream))
    logger.warning(Event("kind", key="a b"))
    logger.error("%s\nof another kind", "text")
    try:
        raise ValueError("of\nours")
    except ValueError:
        logger.exception(Event("fault"))
    stamps, texts = zip(*(line.split("Z ", 1) for line in handler.lines), strict=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", stamp) for stamp in stamps)
    assert texts[:2] == ('warning kind key="a b"', r'error note text="text\nof another kind"')
    assert texts[2].startswith('error fault traceback="Traceback (most recent call last):')
    assert "ValueError: of" in texts[2]
    assert "\n" not in "".join(texts)
