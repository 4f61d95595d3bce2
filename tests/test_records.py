"""Records as text and as lines of JSON, without the application's classes, and without running what they say."""

import datetime
import decimal
import pickle
import re
from contextlib import closing

import pytest
from durus.connection import Connection
from durus.file_storage import TempFileStorage
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.serialize import extract_class_name, pack_record
from graphs import oid, record
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage.records import UNKNOWN, class_name, from_json, state_text, to_json, to_text


class Outer:
    class Inner(Persistent):
        class Innermost(Persistent):
            pass


class Plain:
    """A class that is not persistent, within a state."""

    def __init__(self):
        self.shape = "round"


class Words(dict):
    pass


class Listing(list):
    pass


def records_of(*objects):
    """Return the record of a root that has these objects in it, and the records of those."""
    with closing(TempFileStorage()) as storage:
        connection = Connection(storage)
        connection.get_root()["objects"] = list(objects)
        connection.commit()
        return [
            storage.load(oid(number)) for number in range(1 + len([o for o in objects if isinstance(o, Persistent)]))
        ]


def state_of(value):
    return state_text(records_of(value)[0])


def test_the_class():
    root, inner, innermost = records_of(Outer.Inner(), Outer.Inner.Innermost())
    assert class_name(root) == "durus.persistent_dict.PersistentDict"
    assert class_name(root).endswith("." + extract_class_name(root).decode())
    assert class_name(inner) == f"{__name__}.Outer.Inner"
    assert class_name(innermost) == f"{__name__}.Outer.Inner.Innermost"


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"no pickle", b"\x80\x02cmodule", b"\x80\x02c__builtin__\ngetattr\n\xff"]
)
def test_a_class_that_cannot_be_told(data):
    assert class_name(pack_record(oid(1), data, b"")) == UNKNOWN


@given(st.binary(max_size=60))
def test_no_data_is_too_strange(data):
    row = pack_record(oid(1), data, b"")
    assert isinstance(class_name(row), str)
    assert to_text(oid(1), row).count("\n") >= 2
    assert from_json(to_json(oid(1), row)) == (oid(1), row)


@pytest.mark.parametrize(
    "value",
    [
        {"text": "ä", 1: 2.5, None: True},
        {b"bytes", b""},
        frozenset([1]),
        bytearray(b"x"),
        1 + 2j,
        datetime.datetime(2026, 1, 2, 3, 4),
        datetime.timedelta(1),
        decimal.Decimal("1.50"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_are_shown_as_they_are(value):
    assert state_of(value) == repr({"data": {"objects": [value]}})


def test_references_are_shown():
    root = records_of(PersistentDict(), Outer.Inner())[0]
    assert "<object 1: durus.persistent_dict.PersistentDict>" in state_text(root)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Plain(), "Plain({'shape': 'round'})"),
        (Words(ada=1), "Words({'ada': 1})"),
        (Listing([1, 2]), "Listing(1, 2)"),
        (Plain, f"<class '{__name__}.Plain'>"),
    ],
    ids=["object", "dict", "list", "class"],
)
def test_instances_of_other_classes_are_shown_by_their_parts(value, shown):
    assert shown in state_of(value)


def test_a_state_that_contains_itself():
    value = Plain()
    value.me = value
    assert "..." in state_of(value)


class Evil:
    def __reduce__(self):
        return print, ("pwned",)


class EvilAttribute:
    def __reduce__(self):
        return getattr, ("text", "upper")


def test_nothing_is_called(capsys):
    assert "print('pwned')" in state_of(Evil())
    assert capsys.readouterr().out == ""
    assert state_of(EvilAttribute()).startswith("(not readable: ")


def test_an_uncompressed_state():
    data = pickle.dumps(PersistentDict, 2) + pickle.dumps({"data": {}}, 2)
    assert state_text(pack_record(oid(0), data, b"")) == "{'data': {}}"


def test_a_state_that_cannot_be_read():
    assert state_text(record(1, data=b"junk")).startswith("(not readable: UnpicklingError")


def test_text():
    root = records_of(PersistentDict())[0]
    head, state, rest = to_text(oid(0), root).split("\n")
    assert head == f"object 0: durus.persistent_dict.PersistentDict, {len(root)} bytes, refers to 1"
    assert state == "    {'data': {'objects': [<object 1: durus.persistent_dict.PersistentDict>]}}"
    assert rest == ""
    assert ", refers to" not in to_text(oid(1), record(1))


def test_text_of_a_malformed_record():
    assert "refers to (not readable: the record of object 1 is malformed" in to_text(oid(1), record(1) + b"x")


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=50), st.lists(st.integers(0, (1 << 64) - 1), max_size=5))
def test_a_line_gives_the_record_back(number, data, others):
    row = record(number, *others, data=data)
    line = to_json(oid(number), row)
    assert line.endswith("\n")
    assert line.isascii()
    assert from_json(line) == from_json(line.encode()) == (oid(number), row)


GOOD = '"record": "AAAAAAAAAAEAAAAA"'


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "not JSON"),
        ('{"oid": 1', "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        ("[1]", "not a JSON object"),
        (f"{{{GOOD}}}", '"oid" is None, and must be a number'),
        (f'{{"oid": "1", {GOOD}}}', "\"oid\" is '1'"),
        (f'{{"oid": true, {GOOD}}}', '"oid" is True'),
        (f'{{"oid": -1, {GOOD}}}', '"oid" is -1'),
        (f'{{"oid": {1 << 64}, {GOOD}}}', "at most 64 bits"),
        ('{"oid": 1}', '"record" is NoneType, and must be text'),
        ('{"oid": 1, "record": "A!"}', '"record" is not base64'),
        ('{"oid": 1, "record": "AAA"}', '"record" is not base64'),
        (f'{{"oid": 1, "size": 13, {GOOD}}}', '"size" is 13, and the record has 12 bytes'),
        (f'{{"oid": 2, {GOOD}}}', "the record stored as object 2 is one of object 1"),
        ('{"oid": 1, "record": "AAAAAAAAAAEAAAAAAA=="}', "do not end in whole references"),
    ],
)
def test_a_line_that_is_malformed(line, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        from_json(line)


def test_only_oid_and_record_are_needed():
    assert from_json(f'{{"oid": 1, {GOOD}, "class": 5, "comment": "edited"}}') == (oid(1), record(1))
