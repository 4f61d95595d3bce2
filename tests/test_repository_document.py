"""docs/FORMAT.md says what is in a repository of backups: compared with the golden one, and with new ones."""

import gzip
import hashlib
import json
import re
import tarfile

import pytest
from backed import bases
from graphs import commit, hand_out, quiet, record
from test_format_document import TEXT, pytestmark, table  # noqa: F401 - the documents are in the source tree only
from test_golden_repository import GOLDEN

from berkeleydb_storage.backup.catalog import DIGITS, FORMAT, MANIFEST, parse_moment
from berkeleydb_storage.backup.repository import PIECE
from berkeleydb_storage.backup.stores import LocalStore

CHAPTER = "## Repositories of backups and archives"
KINDS = {"number": (int, float), "text": str, "two numbers": list, "object": dict, "true or false": bool}
NUMBERS = list(table("number of a piece")) if TEXT else []


@pytest.fixture(params=["golden", "new", "compressed"])
def where(request, tmp_path, monkeypatch):
    (tmp_path / "backups").mkdir()
    if request.param == "golden":
        with tarfile.open(GOLDEN / "format-1.tar.gz") as archive:
            archive.extractall(tmp_path / "backups", filter="data")
        return tmp_path / "backups"
    monkeypatch.setattr(LocalStore, "compressed", request.param == "compressed")
    (tmp_path / "db").mkdir()
    with quiet(tmp_path / "db") as storage:
        hand_out(storage, 2)
        for number in range(3):
            commit(storage, record(0, data=b"%d" % number))
            storage.backup(tmp_path / "backups", full=number == 0)
    return tmp_path / "backups"


def pattern(name):
    """Return what matches a name, or part of one, as the tables say."""
    parts = {"IDENTITY": r"[0-9a-f]{32}", "MOMENT": r"\d{8}T\d{6}\.\d{6}Z-\d{12}"}
    parts["FILE"] = r"(?:\w+\.db|log\.\d{10})(?:\.gz)?"
    parts["PIECE"] = "-".join(f"(?P<{number.replace(' ', '_')}>{digits(how)})" for number, how, _ in NUMBERS)
    parts["PIECE"] += r"(?:\.gz)?"
    return re.sub("IDENTITY|MOMENT|FILE|PIECE", lambda found: parts[found[0]], name.replace(".", r"\."))


def digits(how):
    least, most, kind = re.fullmatch(r"(\d+)(?: to (\d+))? (decimal|hexadecimal)", how).groups()
    return f"{'[0-9]' if kind == 'decimal' else '[0-9a-f]'}{{{least},{most or least}}}"


def objects(where):
    return {str(path.relative_to(where)): path for path in where.rglob("*") if path.is_file()}


def unpacked(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_every_object_is_described(where):
    patterns = [pattern(name) for name, _ in table("name of an object")]
    found = {name: [each for each in patterns if re.fullmatch(each, name)] for name in objects(where)}
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(found, 1)
    assert {each for matching in found.values() for each in matching} == set(patterns)


def test_the_example_of_a_moment():
    (example,) = [how for name, how, _ in table("part of a name") if name == "MOMENT"]
    assert re.fullmatch(pattern("MOMENT"), example)
    assert parse_moment(example)[0] == 42


def test_the_numbers_of_pieces(where):
    (base,) = bases(where)
    paths = [path for name, path in objects(where).items() if "/pieces/" in name]
    assert len(paths) == len(base.pieces) == 2
    for path in paths:
        said = re.fullmatch(pattern("PIECE"), path.name).groupdict()
        (piece,) = [piece for piece in base.pieces if piece.digest == said["digest"]]
        assert (int(said["log"]), int(said["offset"])) == piece.start
        assert (int(said["end_log"]), int(said["end_offset"])) == piece.end
        assert (int(said["tid"]), int(said["time"])) == (piece.tid, piece.time)
        data = unpacked(path)
        assert hashlib.sha256(data).hexdigest()[:DIGITS] == said["digest"]
        assert len(data) == int(said["end_offset"]) - int(said["offset"])


def test_the_keys_of_manifests(where):
    described = {name: kind for name, kind, _ in table("key of a manifest")}
    (path,) = [path for path in objects(where).values() if path.name == MANIFEST]
    values = json.loads(path.read_text())
    assert list(values) == list(described)
    assert not [name for name, kind in described.items() if not isinstance(values[name], KINDS[kind])]
    rest = {name: value for name, value in values.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(", ", ": "))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == values["sha256"]
    assert values["format"] == FORMAT
    for name, entry in values["files"].items():
        data = unpacked(path.with_name(name + ".gz" * values["compressed"]))
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    log, offset = values["end"]
    assert values["files"][f"log.{log:010d}"]["bytes"] == offset
    assert values["first"][1] == 0
    assert f"log.{values['first'][0]:010d}" in values["files"]


def test_the_keys_of_runs(where):
    described = {name: kind for name, kind, _ in table("key of a run")}
    for path in (path for name, path in objects(where).items() if "/runs/" in name):
        values = json.loads(path.read_text())
        assert values.keys() == described.keys()
        assert not [name for name, kind in described.items() if not isinstance(values[name], KINDS[kind])]
        assert parse_moment(path.stem) == (values["tid"], values["time"])


def test_the_figures_of_repositories():
    text = " ".join(TEXT.partition(CHAPTER)[2].split())
    assert f"This is format {FORMAT} of it." in text
    assert f"at some {PIECE >> 20} MiB" in text
