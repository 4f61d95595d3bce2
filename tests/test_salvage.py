"""Salvaging: what can be read is there, exactly; what cannot is named; nothing is written to what is damaged."""

import json
import shutil

import pytest
from damage import contents_of, quiet, replaced
from durus.connection import Connection
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from graphs import commit, copied, number, oid, record, scratch_directory

from berkeleydb_storage import BerkeleyDBStorage, DamagedError, NewerFormat, StorageInUse, cli, environment
from berkeleydb_storage.environment import TABLES
from berkeleydb_storage.files import PAGE_SIZE, log_name, log_numbers, strange_pages
from berkeleydb_storage.missing import Missing
from berkeleydb_storage.salvage import Salvage, making, pages
from berkeleydb_storage.salvage.tables import DamagedTable

OBJECTS = 400
MIDDLE = 307
"""An object without references."""
KEY = "a key of no use to anybody"


@pytest.fixture
def place():
    with scratch_directory() as path:
        yield path


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 1 << 18)
    monkeypatch.setattr(environment, "LOG_BUFFER", 1 << 15)


def tree(count=OBJECTS):
    """Records of a tree: each object refers to four; some take several pages."""
    for key in range(count):
        refs = [child for child in range(4 * key + 1, 4 * key + 5) if child < count]
        yield record(key, *refs, data=b"%d " % key * (3000 if key % 29 == 28 else 40))


class Wreck:
    """A storage to be damaged, and what is in it."""

    def __init__(self, place, *, closed=True, **options):
        self.place = place
        self.path = place / "storage"
        self.key = options.get("key")
        working = self.path if closed else place / "working"
        working.mkdir()
        with quiet(working, **options) as storage:
            while number(storage.new_oid()) < OBJECTS:
                pass
            records = list(tree())
            commit(storage, *records[: OBJECTS // 2], *self.leaves(records[OBJECTS // 2 :]))
            storage.checkpoint()
            commit(storage, *records[OBJECTS // 2 :])
            self.expected = dict(storage.gen_oid_record())
            if not closed:
                copied(working, self.path)
        self.files = contents_of(self.path)
        self.new = place / "new"

    @staticmethod
    def leaves(records):
        return [record(number(one[:8]), data=b"first") for one in records]

    def change(self, name, change):
        """Replace the contents of a file by what `change` makes of them."""
        (self.path / name).write_bytes(change((self.path / name).read_bytes()))

    def flip(self, name, *places):
        def flipped(contents):
            changed = bytearray(contents)
            for where in places:
                changed[where] ^= 4
            return bytes(changed)

        self.change(name, flipped)

    def page_of(self, key):
        """Return the page that has the row of an object."""
        table = DamagedTable(self.path / "objects.db")
        table.index(lambda *_: None, "")
        found = next(where.page for name, where, _ in table.places() if name == oid(key))
        table.close()
        return found

    def salvaged(self, **options):
        """Salvage; return the report and what is in the new storage, which is sound. The old one is as it was."""
        before = contents_of(self.path)
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir()
        with Salvage(self.path, key=self.key) as salvage, quiet(self.new, **options) as storage:
            storage.migrate(salvage.records())
            assert not storage.check().faults
            found = dict(storage.gen_oid_record())
        assert contents_of(self.path) == before
        report = salvage.report
        made = {*report.missing}
        if report.lost_and_found is not None:
            made |= set(range(OBJECTS, report.lost_and_found + 1)) | {report.lost_and_found}
        right = {key: self.expected[key] for key in found if number(key) not in made}
        assert {key: found[key] for key in right} == right
        assert len(right) == report.objects
        return report, found


@pytest.fixture(params=["btree", "hash"])
def kind(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["closed", "killed"])
def wreck(place, kind, request):
    return Wreck(place, closed=request.param, type=kind)


def test_nothing_is_missing_where_nothing_is_damaged(wreck):
    report, found = wreck.salvaged()
    assert found == wreck.expected
    assert report.complete
    assert report.expected == OBJECTS
    assert report.lost_and_found is None


def test_a_damaged_page_takes_its_records_alone(place, kind):
    wreck = Wreck(place, type=kind)
    page = wreck.page_of(MIDDLE)
    wreck.flip("objects.db", page * PAGE_SIZE + 2000)
    report, found = wreck.salvaged()
    assert report.pages == {"objects.db": [page]}
    assert report.missing[MIDDLE] == [(MIDDLE - 1) // 4]
    assert report.objects + len(report.missing) + report.unknown == OBJECTS
    assert report.objects > OBJECTS * 3 // 4
    assert len(found) + report.unknown == OBJECTS + (report.lost_and_found is not None) * 2


def test_a_lost_part_of_a_large_record_loses_that_alone(wreck):
    wreck.change("objects.db", lambda contents: without_last_overflow(contents))
    report, _ = wreck.salvaged()
    assert len(report.missing) == 1
    (lost,) = report.missing
    assert lost % 29 == 28
    assert "a part of the record" in report.malformed[lost]


def without_last_overflow(contents):
    where = max(at for at in range(0, len(contents), PAGE_SIZE) if contents[at + 25] == pages.OVERFLOW)
    return contents[: where + 99] + b"?" + contents[where + 100 :]


def test_every_inner_page_may_be_lost(place):
    wreck = Wreck(place)
    inner = [
        at for at in range(0, len(wreck.files["objects.db"]), PAGE_SIZE) if wreck.files["objects.db"][at + 25] == 3
    ]
    assert inner
    wreck.flip("objects.db", 60, *(at + 100 for at in inner))
    report, found = wreck.salvaged()
    assert found == wreck.expected
    assert report.complete
    assert report.pages == {"objects.db": [0, *(at // PAGE_SIZE for at in inner)]}


@pytest.mark.parametrize("name", [f"{table}.db" for table in TABLES if table != "objects"])
@pytest.mark.parametrize("how", ["gone", "cut", "first page"])
def test_other_tables_are_not_needed(wreck, name, how):
    if how == "gone":
        (wreck.path / name).unlink()
    elif how == "cut":
        wreck.change(name, lambda contents: contents[:5000])
    else:
        wreck.flip(name, 60)
    report, found = wreck.salvaged()
    assert found == wreck.expected
    assert report.complete
    assert report.absent == ([name] if how == "gone" else [])


@pytest.mark.parametrize("text", [None, b"", b"{}", b'{"format": 3, "lib'])
def test_the_description_is_not_needed(wreck, text):
    if text is None:
        (wreck.path / "storage.json").unlink()
    else:
        (wreck.path / "storage.json").write_bytes(text)
    _, found = wreck.salvaged()
    assert found == wreck.expected


def test_swapped_pages_are_not_trusted(place, kind):
    wreck = Wreck(place, type=kind)
    one, other = (wreck.page_of(key) for key in (MIDDLE, OBJECTS - 30))
    assert one != other
    contents = wreck.files["objects.db"]
    first, second = (contents[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] for page in (one, other))
    changed = bytearray(contents)
    changed[one * PAGE_SIZE : (one + 1) * PAGE_SIZE] = second
    changed[other * PAGE_SIZE : (other + 1) * PAGE_SIZE] = first
    (wreck.path / "objects.db").write_bytes(bytes(changed))
    report, _ = wreck.salvaged()
    assert {MIDDLE, OBJECTS - 30} <= set(report.missing)
    assert report.pages["objects.db"] == sorted([one, other])


def test_the_first_page_is_made_anew_to_apply_the_log(place):
    wreck = Wreck(place, closed=False)
    wreck.flip("objects.db", 60)
    report, found = wreck.salvaged()
    assert found == wreck.expected
    assert report.log == "applied to a copy, around 1 damaged pages"


def test_a_hash_without_its_first_page_is_read_as_it_is(place):
    wreck = Wreck(place, closed=False, type="hash")
    wreck.flip("objects.db", 60)
    wreck.expected |= {one[:8]: one for one in wreck.leaves(list(tree())[OBJECTS // 2 :])}
    report, _ = wreck.salvaged()
    assert not report.up_to_date
    assert not report.complete
    assert "does not make up" in report.log


def test_a_lost_table_is_made_from_a_log_that_goes_back_to_the_beginning(place, kind, monkeypatch):
    monkeypatch.setattr(environment, "LOG_FILE_SIZE", 16 << 20)
    wreck = Wreck(place, closed=False, type=kind)
    (wreck.path / "objects.db").unlink()
    report, found = wreck.salvaged()
    assert found == wreck.expected
    assert report.absent == ["objects.db"]


def test_a_lost_table_without_that_is_an_error(place):
    wreck = Wreck(place)
    (wreck.path / "objects.db").unlink()
    with pytest.raises(DamagedError, match=r"objects\.db is missing, and the log does not make up for it: restore"):
        wreck.salvaged()


def test_a_log_is_applied_up_to_its_damage(place):
    wreck = Wreck(place, closed=False)
    last = log_numbers(wreck.path)[-1]
    used = len(wreck.files[log_name(last)].rstrip(b"\0"))
    wreck.flip(log_name(last), used // 2)
    before = dict(wreck.expected)
    wreck.expected |= {one[:8]: one for one in wreck.leaves(list(tree())[OBJECTS // 2 :])}
    report, found = wreck.salvaged()
    assert not report.up_to_date
    assert f"{log_name(last)} is damaged at offset" in report.log
    assert found.keys() == before.keys()


def test_all_logs_may_be_gone(place):
    wreck = Wreck(place, closed=False)
    for each in log_numbers(wreck.path):
        (wreck.path / log_name(each)).unlink()
    wreck.expected |= {one[:8]: one for one in wreck.leaves(list(tree())[OBJECTS // 2 :])}
    report, _ = wreck.salvaged()
    assert not report.up_to_date
    assert report.log == "there is none, and the storage was not closed"


def test_a_deleted_object_does_not_come_back(place, kind):
    """Neither one whose row was deleted, nor what waits to be collected, as more than garbage."""
    path = place / "storage"
    path.mkdir()
    with quiet(path, type=kind) as storage:
        for _ in range(OBJECTS):
            storage.new_oid()
        commit(storage, *tree())
        commit(storage, record(1, data=b"without children"))
        storage.checkpoint()
        storage.pack()
        kept = dict(storage.gen_oid_record())
        commit(storage, record(2, data=b"without children"))
        kept |= {oid(2): record(2, data=b"without children")}
        waiting = storage.statistics().garbage
        assert len(kept) < OBJECTS
        assert waiting
    (place / "new").mkdir()
    with Salvage(path) as salvage, quiet(place / "new") as storage:
        storage.migrate(salvage.records())
        assert dict(storage.gen_oid_record()) == kept
        assert storage.statistics().garbage == waiting


def test_an_encrypted_storage(place, kind):
    wreck = Wreck(place, closed=False, type=kind, key=KEY)
    table = wreck.files["objects.db"]
    leaf = max(at for at in range(PAGE_SIZE, len(table), PAGE_SIZE) if table[at + 25] in pages.LEAVES)
    wreck.flip("objects.db", leaf + 2000)
    report, found = wreck.salvaged(key="another one")
    assert report.missing
    assert report.objects > OBJECTS // 2
    assert len(wreck.expected.keys() - found.keys()) == report.unknown


class Node(Persistent):
    def __init__(self, name):
        self.name = name
        self.children = PersistentDict()


def family(path):
    """Store objects of an application, and return the oids of a node, its children, and one of these."""
    with quiet(path) as storage:
        connection = Connection(storage)
        for parent in range(30):
            node = connection.get_root()[f"{parent}"] = Node(f"{parent}" * 300)
            for child in range(5):
                node.children[f"{child}"] = Node(f"{parent}.{child}" * 300)
        connection.commit()
        node = connection.get_root()["17"]
        return number(node._p_oid), number(node.children._p_oid), number(node.children["3"]._p_oid)


def lose(path, *lost):
    """Damage the pages that have these objects; return what goes with them."""
    table = DamagedTable(path / "objects.db")
    table.index(lambda *_: None, "")
    places = {number(key): where.page for key, where, _ in table.places()}
    table.close()
    contents = bytearray((path / "objects.db").read_bytes())
    bad = {places[key] for key in lost}
    for page in bad:
        contents[page * PAGE_SIZE + 3000] ^= 1
    (path / "objects.db").write_bytes(bytes(contents))
    return {key for key, page in places.items() if page in bad}


def salvaged(path, new):
    new.mkdir()
    with Salvage(path) as salvage, quiet(new) as storage:
        storage.migrate(salvage.records())
    return salvage.report


def test_an_application_meets_an_error_that_names_what_is_lost(place):
    path, new = place / "storage", place / "new"
    path.mkdir()
    node, children, _ = family(path)
    gone = lose(path, node)
    report = salvaged(path, new)
    assert node in set(report.missing) <= gone
    with quiet(new) as storage:
        connection = Connection(storage)
        lost = connection.get_root()["17"]
        assert isinstance(lost, Node)
        for _ in range(2):
            with pytest.raises(
                DamagedError, match=f"object {node} was lost when its storage was damaged, and could not"
            ):
                lost.name  # noqa: B018
        assert repr(connection.get(oid(node))) in (f"<Missing: object {node} was lost>", repr(lost))
        assert Missing.__name__ == "Missing"
        found = [each for part in connection.get(oid(report.lost_and_found)) for each in part]
        assert children in gone or children in [number(each._p_oid) for each in found]
        connection.get_root()["17"] = Node("another")
        connection.commit()
        assert not storage.check().faults
    with quiet(new) as storage:
        assert Connection(storage).get_root()["17"].name == "another"


def test_a_lost_root_is_replaced_by_one_that_has_everything(place):
    path, new = place / "storage", place / "new"
    path.mkdir()
    family(path)
    gone = lose(path, 0)
    report = salvaged(path, new)
    assert report.root_lost
    with quiet(new) as storage:
        storage.pack()
        assert storage.get_size() == report.objects + len(report.missing) + 2
        root = Connection(storage).get_root()
        assert list(root) == [making.LOST_AND_FOUND]
        names = {each.name for part in root[making.LOST_AND_FOUND] for each in part if isinstance(each, Node)}
        assert names
    assert 0 in gone


def test_a_cycle_that_nothing_refers_to_any_more_is_found(place):
    path, new = place / "storage", place / "new"
    path.mkdir()
    with quiet(path) as storage:
        for _ in range(60):
            storage.new_oid()
        ring = [record(key, key + 1 if key < 49 else 40, data=b"x" * 900) for key in range(40, 50)]
        chain = [record(key, key + 1, data=b"y" * 900) for key in range(40)]
        commit(storage, *chain, *ring)
    gone = lose(path, 30)
    assert 44 not in gone
    report = salvaged(path, new)
    with quiet(new) as storage:
        storage.pack()
        for key in set(range(50)) - gone:
            assert storage.load(oid(key)).startswith(oid(key))
    assert report.adopted


def test_what_is_in_use_or_newer_is_refused(place):
    wreck = Wreck(place)
    with quiet(wreck.path), pytest.raises(StorageInUse), Salvage(wreck.path):
        pass
    values = json.loads((wreck.path / "storage.json").read_text())
    (wreck.path / "storage.json").write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(NewerFormat), Salvage(wreck.path):
        pass


def test_no_object_at_all_is_an_error(place):
    wreck = Wreck(place)
    wreck.change("objects.db", lambda contents: b"?" * len(contents))
    with pytest.raises(DamagedError, match="no object can be read"):
        wreck.salvaged()


def test_the_command(place, capsys):
    wreck = Wreck(place)
    assert cli.main(["salvage", str(wreck.path), str(wreck.new)]) == 0
    assert f"{OBJECTS} objects in" in capsys.readouterr().out
    assert not (place / "new.missing.txt").exists()
    shutil.rmtree(wreck.new)
    page = wreck.page_of(MIDDLE)
    wreck.flip("objects.db", page * PAGE_SIZE + 2000)
    assert cli.main(["salvage", str(wreck.path), str(wreck.new)]) == 1
    told = capsys.readouterr()
    assert f"damaged: 1 pages of objects.db: {page}" in told.out
    listed = (place / "new.missing.txt").read_text()
    assert f"missing\t{MIDDLE}\treferred to by {(MIDDLE - 1) // 4}\n" in listed
    assert cli.main(["salvage", str(wreck.path), str(wreck.new)]) == 2
    assert "is not empty: salvage into a new directory" in capsys.readouterr().err
    shutil.rmtree(wreck.new)
    assert cli.main(["salvage", str(wreck.path), str(wreck.new)]) == 2
    assert "new.missing.txt: File exists: remove it" in capsys.readouterr().err
    (place / "new.missing.txt").unlink()
    assert cli.main(["salvage", str(wreck.path), str(wreck.new), "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["complete"] is False
    assert values["missing"][f"{MIDDLE}"] == [(MIDDLE - 1) // 4]
    assert values["list"] == str(place / "new.missing.txt")
    assert cli.main(["check", str(wreck.new), "-q"]) == 0


def test_an_interrupted_one_can_be_begun_again(place, monkeypatch):
    wreck = Wreck(place)
    wreck.new.mkdir()
    with pytest.raises(KeyError), Salvage(wreck.path) as salvage, BerkeleyDBStorage(wreck.new) as storage:
        storage.migrate(salvage.records(), lambda *_: {}["stop"])
    with BerkeleyDBStorage(wreck.new) as storage:
        assert not storage.get_size()
    assert cli.main(["salvage", str(wreck.path), str(wreck.new), "-q"]) == 0


def test_pages_that_make_no_sense():
    page = bytearray(PAGE_SIZE)
    page[25] = pages.BTREE_LEAF
    page[20:22] = (3).to_bytes(2, "little")
    with pytest.raises(ValueError, match="has 3 items"):
        list(pages.rows(bytes(page)))
    page[20:22] = (2).to_bytes(2, "little")
    page[32:36] = b"\xff\x0f\xff\x0f"
    with pytest.raises(ValueError, match="an item begins"):
        list(pages.rows(bytes(page)))
    page[25] = pages.HASH
    with pytest.raises(ValueError, match="an item of type 0 at 4095"):
        list(pages.rows(bytes(page)))
    with pytest.raises(ValueError, match="does not go on"):
        pages.part(bytes(page), 3, 0)


def test_a_sound_storage_has_no_strange_pages(wreck):
    replaced(wreck.path, wreck.files)
    with quiet(wreck.path):
        pass
    for name in TABLES:
        assert not list(strange_pages(wreck.path / f"{name}.db"))
