"""docs/FORMAT.md says what the code does: the tables of the document are parsed and compared with real bytes."""

import hmac
import json
import os
import re
import stat
import struct
from dataclasses import fields
from pathlib import Path

import pytest
from graphs import EVER, commit, hand_out, meta, oid, oids, quiet, record, rows
from pyroaring import BitMap64

from berkeleydb_storage import format as format_module
from berkeleydb_storage.directory import Description
from berkeleydb_storage.environment import LOG_FILE_SIZE, META, TABLES
from berkeleydb_storage.files import PAGE_SIZE, log_number
from berkeleydb_storage.format import (
    ENCRYPTED_VERSION,
    FORMAT_VERSION,
    UNSETTLED,
    State,
    Suspect,
    pack_condemned,
    pack_count,
    pack_garbage_key,
    pack_journal,
    pack_suspect,
    pack_uint64,
    unpack_uint64,
)
from berkeleydb_storage.garbage import deletion
from berkeleydb_storage.journal import HORIZON

DOCUMENT = Path(__file__).parents[1] / "docs" / "FORMAT.md"
pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="the documents are in the source tree only")

TEXT = DOCUMENT.read_text() if DOCUMENT.exists() else ""
SIZES = {"u64": 8, "u32": 4, "u8": 1}


def table(heading, after=""):
    """Return the rows of the first table that begins with this heading, as tuples without backquotes."""
    lines = iter(TEXT.partition(after)[2].splitlines() if after else TEXT.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append(tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")))
    assert found
    return found


LAYOUT = table("table") if TEXT else []
PARTS = {(name, part) for name, part, *_ in LAYOUT}


def decoded(name, part, data):
    """Return the values of a key or row, as the document says; all of its bytes must be explained."""
    values, end, n = {}, 0, None
    for where, of, field, offset, size, kind, _ in LAYOUT:
        if (where, of) != (name, part):
            continue
        start = eval(offset, {"n": n})
        assert start == end, f"{name}, {part}, {field}: there is a gap before it, or it overlaps"
        if size == "8 each":
            assert (len(data) - start) % 8 == 0
            values[field] = [int.from_bytes(data[at : at + 8], "big") for at in range(start, len(data), 8)]
            end = len(data)
            continue
        end = start + eval(size, {"n": n})
        values[field] = data[start:end] if kind == "bytes" else int.from_bytes(data[start:end], "big")
        assert kind == "bytes" or SIZES[kind] == end - start
        if field == "length":
            n = values[field]
    assert end == len(data), f"{name}, {part}: bytes that the document does not explain"
    return values


EXAMPLES = [
    ("objects", "key", oid(258), {"oid": 258}),
    (
        "objects",
        "value",
        record(7, 3, 2, 3, data=b"abc"),
        {"oid": 7, "length": 3, "data": b"abc", "references": [3, 2, 3]},
    ),
    ("refcounts", "key", oid(258), {"oid": 258}),
    ("refcounts", "value", pack_count(77), {"count": 77}),
    ("refcounts", "value of 0", pack_condemned(10**15), {"count": 0, "since": 10**15}),
    ("garbage", "key", pack_garbage_key(10**15, oid(9)), {"since": 10**15, "oid": 9}),
    ("garbage", "value", b"", {"nothing": b""}),
    ("suspects", "key", oid(9), {"oid": 9}),
    (
        "suspects",
        "value",
        pack_suspect(Suspect(10**15, 300, UNSETTLED)),
        {"since": 10**15, "spent": 300, "state": 2},
    ),
    ("suspects", "value of format 1", pack_uint64(10**15), {"since": 10**15}),
    ("journal", "key", pack_uint64(12), {"tid": 12}),
    (
        "journal",
        "value",
        pack_journal(State(5, 6, 7, 8), oids(1, 2)),
        {"time": 5, "objects": 6, "garbage": 7, "suspects": 8, "flags": 0, "oids": [1, 2]},
    ),
    (
        "journal",
        "value with a mark",
        pack_journal(State(5, 6, 7, 8), oids(1, 2), b"0123456789abcdef"),
        {
            "time": 5,
            "objects": 6,
            "garbage": 7,
            "suspects": 8,
            "flags": 2,
            "mark": b"0123456789abcdef",
            "oids": [1, 2],
        },
    ),
]


@pytest.mark.parametrize(("name", "part", "data", "values"), EXAMPLES)
def test_layouts(name, part, data, values):
    assert decoded(name, part, data) == values


def test_the_states_of_suspects():
    """The document numbers and names them in the order of the code."""
    (meaning,) = [row[-1] for row in LAYOUT if row[:3] == ("suspects", "value", "state")]
    named = {name: int(number) for number, name in re.findall(r"(\d), (\w+)", meaning)}
    assert named == {name.lower(): getattr(format_module, name) for name in ("PENDING", "ACQUITTED", "UNSETTLED")}


def test_the_flags_of_transactions():
    (meaning,) = [row[-1] for row in LAYOUT if row[:3] == ("journal", "value", "flags")]
    assert re.findall(r"(\d), (\w+)", meaning) == [("1", "everything"), ("2", "marked")]
    assert decoded("journal", "value", pack_journal(State(5, 6, 7, 8), None))["flags"] == 1
    both = decoded("journal", "value with a mark", pack_journal(State(5, 6, 7, 8), None, b"m" * 16))
    assert (both["flags"], both["mark"], both["oids"]) == (3, b"m" * 16, [])


def test_every_table_is_described():
    assert {(name, part) for name, part, *_ in EXAMPLES} == PARTS
    assert {name for name, _ in PARTS} | {META} == set(TABLES)


@pytest.fixture
def storage(tmp_path):
    with quiet(tmp_path) as opened:
        hand_out(opened, 8)
        commit(opened, record(0, 1, 2, 3), record(1, 3, data=b"1"), record(2, 3), record(3, 5), record(4), record(5))
        change = record(1, 1)
        opened._engine.commit({oid(1): (change, ())}, len(change), mark=b"0123456789abcdef")
        yield opened


def test_real_rows_are_as_described(storage):
    """Every row of a storage decodes, and the fields are what happened."""
    found = {
        name: [
            (decoded(name, "key", key), decoded(name, part(name, row), row)) for key, row in rows(storage, name).items()
        ]
        for name in TABLES
        if name != META
    }
    assert [value["references"] for _, value in found["objects"]] == [[1, 2, 3], [1], [3], [5], [], []]
    assert [(key["oid"], value["count"]) for key, value in found["refcounts"]] == [(3, 2), (4, 0)]
    ((waiting, _),) = found["garbage"]
    assert waiting == {"since": found["refcounts"][1][1]["since"], "oid": 4}
    ((suspect, known),) = found["suspects"]
    assert (suspect, known) == ({"oid": 3}, {"since": found["journal"][2][1]["time"], "spent": 0, "state": 0})
    changed = [(key["tid"], value["oids"]) for key, value in found["journal"]]
    assert changed == [(0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [1])]
    assert [value.get("mark") for _, value in found["journal"]] == [None, None, b"0123456789abcdef"]
    totals = [(value["objects"], value["garbage"], value["suspects"]) for _, value in found["journal"]]
    assert totals == [(0, 0, 0), (6, 1, 0), (6, 1, 1)]


def part(name, row):
    """Return what the document calls a row."""
    if name == "refcounts" and row[:8] == bytes(8):
        return "value of 0"
    if name == "journal" and row[32] & 2:
        return "value with a mark"
    return "value of format 1" if name == "suspects" and len(row) == 8 else "value"


def test_the_rows_of_meta(storage):
    described = {key.encode(): kind for key, kind, _ in table("key", after="The table `meta`")}
    assert described == {
        format_module.META_FORMAT: "u64",
        format_module.META_NEXT_OID: "u64",
        format_module.META_MIGRATING: "bytes",
        format_module.META_PACKED: "u64",
        format_module.META_SEARCHED: "u64",
        format_module.META_UNMARKED: "bytes",
        format_module.META_DOOMED: "bytes",
        format_module.META_DOOMED_FROM: "u64",
        format_module.META_IDENTITY: "bytes",
    }
    assert described.keys() == {key for name, key in vars(format_module).items() if name.startswith("META_")}
    assert rows(storage, META).keys() == {
        format_module.META_FORMAT,
        format_module.META_NEXT_OID,
        format_module.META_PACKED,
        format_module.META_IDENTITY,
    }
    assert len(meta(storage, b"identity")) == 16
    assert meta(storage, b"format") == pack_uint64(FORMAT_VERSION)


def test_the_rows_of_meta_that_a_deletion_writes(storage, monkeypatch):
    """A ring of three is doomed, and two of them are deleted."""
    monkeypatch.setattr(deletion, "STEP", 2)
    commit(storage, record(0, 1, 2, 3, 4), record(4, 6), record(6, 7), record(7, 4))
    commit(storage, record(0, 1, 2, 3))
    while not meta(storage, b"doomed"):
        assert storage._running.collector.step(50, EVER)
    written = rows(storage, META)
    assert {key: len(written[key]) for key in (b"searched", b"doomed from")} == {b"searched": 8, b"doomed from": 8}
    assert BitMap64.deserialize(written[b"doomed"]) == BitMap64(roaring(written[b"doomed"])) == BitMap64([4, 6, 7])
    assert unpack_uint64(written[b"doomed from"]) == 7


def roaring(data):
    """Return the numbers in a bitmap of less than 4,096 of them below 65,536, as the specification has its bytes."""
    buckets, high, cookie, containers = struct.unpack_from("<QLLL", data)
    assert (buckets, high, cookie, containers) == (1, 0, 12346, 1)
    key, cardinality, offset = struct.unpack_from("<HHL", data, 20)
    assert (key, offset) == (0, 16)
    return struct.unpack_from(f"<{cardinality + 1}H", data, 12 + offset)


def test_the_keys_of_storage_json(storage, tmp_path):
    described = {key: kind for key, kind, _ in table("key")}
    written = json.loads((tmp_path / "storage.json").read_text())
    kinds = {int: "number", str: "text", dict: "object", bool: "true or false"}
    assert {key: kinds[type(value)] for key, value in written.items()} == described
    more = {key: kind for key, kind, _ in table("key of format 4")}
    assert [*described, *more] == [field.name for field in fields(Description)]


def test_the_keys_of_an_encrypted_one(tmp_path):
    with quiet(tmp_path, key="the key"):
        written = json.loads((tmp_path / "storage.json").read_text())
    plain, more = ([key for key, *_ in table(heading)] for heading in ("key", "key of format 4"))
    assert list(written) == [*plain, *more]
    salt, _, digest = written["key_check"].partition(":")
    message = b"berkeleydb_storage key check" + bytes.fromhex(salt)
    assert hmac.new(b"the key", message, "sha256").hexdigest() == digest
    assert f"format {ENCRYPTED_VERSION}, and has two keys more" in TEXT
    assert written["format"] == ENCRYPTED_VERSION == 4


UNUSUAL = {"storage.json.new", "log.0000000001", "kept.log.0000000001", "keep.json", "keep.json.new"}
"""Files that are not in every storage, or that have many names."""


def test_the_files(tmp_path):
    described = {name.strip("`") for names, _ in table("file") for name in re.findall(r"[\w.]+", names)}
    with quiet(tmp_path):
        present = set(os.listdir(tmp_path))
        assert [name for name in present if not stat.S_ISREG((tmp_path / name).stat().st_mode)] == ["control"]
    assert {name for name in present if log_number(name) is None} == described - UNUSUAL
    assert {name for name in present if log_number(name) is not None} == {"log.0000000001"}


def test_the_figures():
    assert TEXT.startswith(f"# Format {FORMAT_VERSION}\n")
    assert f"| `format` | number | version of this format: {FORMAT_VERSION} |" in TEXT
    assert f"Pages have {PAGE_SIZE} bytes" in TEXT
    assert f"{LOG_FILE_SIZE >> 20} MiB a file" in TEXT
    assert f"At most {HORIZON:,} rows" in TEXT
