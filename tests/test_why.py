"""Why an object is still there: paths against a search in a dict, garbage and what keeps it, commits meanwhile."""

import json
import re
from collections import deque
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from random import Random

import pytest
from durus.connection import Connection
from durus.error import DurusKeyError
from durus.persistent import Persistent
from graphs import commit, oid, record, scratch_storage, table
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage import (
    BerkeleyDBStorage,
    BerkeleyDBStorageError,
    CommitRefused,
    DamagedError,
    GarbageManual,
    StorageClosed,
    cli,
    reachability,
)
from berkeleydb_storage.environment import REFCOUNTS
from berkeleydb_storage.reachability import READING, REFERRERS, RETURNING, SEARCHING, Node, why

EXAMPLES = 200
DEEP = 100_000
WIDE = 50_000
NODE = b"\x80\x02capp\nNode\n"
"""The beginning of the data of an ``app.Node``."""
ROUNDS = 500
"""Of the test with random commits, each on another graph."""


@contextmanager
def graph_storage(graph, **options):
    """Give a storage with these objects: {object: what it refers to}."""
    with scratch_storage(**options) as storage:
        storage.migrate((oid(number), record(number, *refs)) for number, refs in graph.items())
        yield storage


def distances(graph):
    """Return {object: how many references it is from the root}."""
    found, todo = {0: 0}, deque([0])
    while todo:
        number = todo.popleft()
        for ref in graph[number]:
            if ref not in found:
                found[ref] = found[number] + 1
                todo.append(ref)
    return found


def path(answer):
    return [node.oid for node in answer.path]


def assert_path(graph, target, found):
    """Fail unless `found` leads from the root to the target by references that there are."""
    assert (found[0], found[-1]) == (0, target)
    assert all(second in graph[first] for first, second in pairwise(found))


def graphs(objects=12, references=30):
    """Random graphs, of which the root reaches a part."""
    return st.integers(1, objects).flatmap(
        lambda count: st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=references
        ).map(lambda pairs: make_graph(count, pairs))
    )


def make_graph(count, pairs):
    graph = {number: [] for number in range(count)}
    for source, target in pairs:
        graph[source].append(target)
    return graph


@pytest.fixture
def small_batches(monkeypatch):
    """Read one record at a time, and report each."""
    monkeypatch.setattr(reachability, "BATCH", 1)
    monkeypatch.setattr(reachability, "REPORT_EVERY", 1)


@pytest.mark.parametrize("small", [0, 3, 64])
def test_shortest_paths_of_random_graphs(small, monkeypatch):
    monkeypatch.setattr(reachability, "SMALL", small)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(graphs())
    def compare(graph):
        expected = distances(graph)
        with graph_storage(graph) as storage:
            for target, answer in zip(graph, why(storage, graph), strict=True):
                assert answer.node.oid == target
                assert answer.reachable == (target in expected)
                if answer.reachable:
                    assert len(answer.path) == expected[target] + 1
                    assert_path(graph, target, path(answer))
                else:
                    assert_garbage(graph, target, answer)
            for target in graph:
                assert why(storage, [target])[0].reachable == (target in expected)

    compare()


def assert_garbage(graph, target, answer):
    referrers = [number for number, refs in graph.items() if target in refs and number != target]
    assert [node.oid for node in answer.referrers] == referrers[: reachability.LISTED]
    assert answer.count == len(referrers)
    assert (answer.node.since is None) == bool(referrers)


def test_what_is_told_of_a_path(open_storage):
    storage = open_storage()
    connection = Connection(storage)
    connection.get_root()["thing"] = thing = Persistent()
    connection.commit()
    number = int.from_bytes(thing._p_oid, "big")
    [answer] = why(storage, [number])
    root, last = answer.path
    assert root == Node(0, "durus.persistent_dict.PersistentDict", len(storage.load(oid(0))))
    assert last == answer.node == Node(number, "durus.persistent.Persistent", len(storage.load(thing._p_oid)))


def test_the_root_itself():
    with graph_storage({0: [0, 1], 1: [0]}) as storage:
        assert path(why(storage, [0])[0]) == [0]


def test_several_in_any_order_and_twice():
    with graph_storage({0: [1, 4], 1: [2], 2: [3], 3: [], 4: [], 5: []}) as storage:
        found = why(storage, (number for number in (3, 5, 0, 3, 4)))
        assert [path(answer) for answer in found] == [[0, 1, 2, 3], [], [0], [0, 1, 2, 3], [0, 4]]
        assert why(storage, []) == []


def test_references_to_itself_and_back():
    with graph_storage({0: [1], 1: [1, 0, 2], 2: [2, 1, 0, 3], 3: [0]}) as storage:
        assert path(why(storage, [3])[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("type", ["btree", "hash"])
def test_a_deep_chain(type):
    chain = {number: [number + 1] for number in range(DEEP)} | {DEEP: []}
    with graph_storage(chain, type=type) as storage:
        assert path(why(storage, [DEEP])[0]) == list(chain)


def test_a_wide_fan():
    fan = {0: range(1, WIDE)} | {number: [] for number in range(1, WIDE - 1)} | {WIDE - 1: [WIDE], WIDE: []}
    with graph_storage(fan) as storage:
        assert path(why(storage, [WIDE])[0]) == [0, WIDE - 1, WIDE]


def test_a_hash_table():
    graph = {0: [7], 7: [3], 3: [], 4: [5], 5: [4]}
    with graph_storage(graph, type="hash") as storage:
        alive, dead = why(storage, [3, 5])
        assert path(alive) == [0, 7, 3]
        assert [node.oid for node in dead.referrers] == [4]


def test_garbage_in_the_queue_takes_no_search():
    with graph_storage({0: [1], 1: []}) as storage:
        commit(storage, record(0))
        calls = []
        [answer] = why(storage, [1], lambda *call: calls.append(call))
        assert (answer.reachable, answer.count, answer.referrers, calls) == (False, 0, (), [])
        assert answer.node.since * 1e6 == pytest.approx(storage._engine.journal.state.time, abs=2)


def test_garbage_that_hangs_on_garbage_in_the_queue():
    with graph_storage({0: [1], 1: [2], 2: []}) as storage:
        commit(storage, record(0))
        [answer] = why(storage, [2])
        [referrer] = answer.referrers
        assert (referrer.oid, referrer.size, answer.count, answer.node.since) == (1, 12 + 8, 1, None)
        assert referrer.since == why(storage, [1])[0].node.since


def test_a_cycle_of_garbage():
    with graph_storage({0: [1], 1: [], 5: [6], 6: [7], 7: [5]}) as storage:
        answers = why(storage, [5, 6, 7])
        assert [[node.oid for node in answer.referrers] for answer in answers] == [[7], [5], [6]]
        assert all(answer.referrers[0].since is None for answer in answers)


def test_garbage_with_many_referrers():
    graph = {0: [], 1: [2], 2: [1]} | {number: [1] for number in range(3, 40)}
    with graph_storage(graph) as storage:
        [answer] = why(storage, [1])
        assert answer.count == 38
        assert [node.oid for node in answer.referrers] == list(range(2, 2 + reachability.LISTED))


def test_garbage_with_a_wrong_count():
    with graph_storage({0: [], 1: []}) as storage:
        table(storage, REFCOUNTS).delete(oid(1))
        [answer] = why(storage, [1])
        assert (answer.reachable, answer.count, answer.referrers) == (False, 1, ())


def test_no_such_object():
    with graph_storage({0: [1], 1: []}) as storage:
        with pytest.raises(DurusKeyError) as caught:
            why(storage, [1, 8])
        assert caught.value.oids == [oid(8)]
        for number in (-1, 1 << 64):
            with pytest.raises(ValueError, match="64 bits"):
                why(storage, [number])


def test_an_empty_storage(open_storage):
    with pytest.raises(DurusKeyError):
        why(open_storage(), [0])


def test_a_malformed_record_on_the_way():
    with graph_storage({0: [1, 2], 1: [3], 2: [], 3: []}) as storage:
        storage._engine.objects.put(oid(1), record(1, 3)[:-1])
        with pytest.raises(DamagedError, match="the record of object 1 is malformed") as caught:
            why(storage, [3])
        assert "run `durus-bdb check`" in str(caught.value)
        assert path(why(storage, [2])[0]) == [0, 2], "on another way"


def test_a_malformed_count():
    with graph_storage({0: [1], 1: []}) as storage:
        table(storage, REFCOUNTS).put(oid(1), b"7")
        with pytest.raises(DamagedError, match="object 1: a reference count row of 1 bytes"):
            why(storage, [1])


def test_malformed_garbage_is_passed_over():
    with graph_storage({0: [], 1: [2], 2: [1], 3: [1]}) as storage:
        storage._engine.objects.put(oid(2), record(2, 1)[:-1])
        assert [node.oid for node in why(storage, [1])[0].referrers] == [3]


def test_a_reference_to_nothing_is_passed_over():
    with graph_storage({0: [1, 2], 1: [], 2: [3], 3: []}) as storage:
        storage._engine.objects.delete(oid(1))
        assert path(why(storage, [3])[0]) == [0, 2, 3]


def test_a_storage_without_a_root():
    with scratch_storage(handed_out=3) as storage:
        commit(storage, record(1, 2), record(2, 1))
        assert not why(storage, [1])[0].reachable


def test_a_closed_storage(open_storage):
    storage = open_storage()
    Connection(storage)
    storage.close()
    with pytest.raises(StorageClosed):
        why(storage, [0])


def test_a_session_that_others_changed_something_for():
    """A load would raise a ReadConflictError."""
    with graph_storage({0: [1], 1: [2], 2: []}) as storage:
        session = storage.session()
        commit(storage, record(1, 2, data=b"changed"))
        assert path(why(session, [2])[0]) == [0, 1, 2]
        assert session.sync() == [oid(1)], "and it is still to be told"


def test_while_a_migration_is_under_way(open_storage):
    storage = open_storage()

    def records():
        yield oid(0), record(0)
        with pytest.raises(CommitRefused, match="busy"):
            why(storage, [0])

    storage.migrate(records())


def test_progress_and_interruption(small_batches):
    graph = {0: [1], 1: [2], 2: [], 3: [4], 4: [3]}
    with graph_storage(graph) as storage:
        calls = []
        why(storage, [2, 3], lambda *call: calls.append(call))
        assert calls == [
            *[(SEARCHING, number) for number in range(3)],
            *[(RETURNING, number) for number in range(2)],
            *[(READING, number) for number in range(3)],
            *[(REFERRERS, number) for number in range(5)],
        ]

        def interrupt(activity, count):
            if activity == REFERRERS:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            why(storage, [3], interrupt)
        assert [path(answer) for answer in why(storage, [2])] == [[0, 1, 2]]


class During:
    """A progress that does something once, at a certain point."""

    def __init__(self, activity, count, action, times=1):
        self._at, self._action, self.left = (activity, count), action, times

    def __call__(self, activity, count):
        if self.left and (activity, count) == self._at:
            self.left -= 1
            self._action()


def test_an_object_moves_to_where_the_search_was_already(small_batches):
    """1 was read, and refers to 3 now; 2, which did, was not read yet."""
    with graph_storage({0: [1, 2], 1: [], 2: [3], 3: []}) as storage:
        moving = During(SEARCHING, 2, lambda: commit(storage.session(), record(1, 3), record(2)))
        assert path(why(storage, [3], moving)[0]) == [0, 1, 3]
        assert not moving.left


def test_it_moves_there_with_the_last_record(small_batches):
    with graph_storage({0: [1, 2], 1: [], 2: [3], 3: [4], 4: []}) as storage:
        moving = During(SEARCHING, 2, lambda: commit(storage.session(), record(0, 3), record(1), record(2)))
        found = path(why(storage, [4], moving)[0])
        assert found == [0, 3, 4]
        assert not moving.left


def test_a_path_that_breaks_while_it_is_followed(small_batches):
    """Of the two ways to 3 the one that was found goes; there is another."""
    with graph_storage({0: [1, 2], 1: [3], 2: [4], 3: [], 4: [3]}) as storage:
        cutting = During(READING, 2, lambda: commit(storage.session(), record(0, 2), record(1)))
        assert path(why(storage, [3], cutting)[0]) == [0, 2, 4, 3]
        assert not cutting.left


def test_what_was_reached_becomes_garbage(small_batches):
    with graph_storage({0: [1], 1: [2], 2: [3], 3: [2]}) as storage:
        cutting = During(RETURNING, 1, lambda: commit(storage.session(), record(1)))
        [answer] = why(storage, [3], cutting)
        assert not answer.reachable
        assert [node.oid for node in answer.referrers] == [2]
        assert not cutting.left


def test_a_change_that_leaves_the_path_as_it_was(small_batches):
    with graph_storage({0: [1], 1: [2], 2: []}) as storage:
        searches = []

        def change(activity, count):
            if (activity, count) == (READING, 1):
                commit(storage.session(), record(0, 1, data=b"changed"), record(2, data=b"changed"))
            searches.append((activity, count))

        assert path(why(storage, [2], change)[0]) == [0, 1, 2]
        assert searches.count((SEARCHING, 0)) == 1


def test_an_object_that_is_collected_meanwhile(small_batches):
    with graph_storage({0: [1], 1: [2], 2: []}) as storage:

        def collect():
            commit(storage.session(), record(0))
            storage.pack()

        with pytest.raises(DurusKeyError) as caught:
            why(storage, [2], During(READING, 1, collect))
        assert caught.value.oids == [oid(2)]


def test_paths_that_break_again_and_again(small_batches):
    """Each time the search comes to its end the one of the two ways that it found is exchanged for the other."""
    with graph_storage({0: [1, 2], 1: [3], 2: [], 3: []}) as storage:
        here, there = 1, 2

        def exchange(activity, count):
            nonlocal here, there
            if (activity, count) == (READING, 2):
                here, there = there, here
                commit(storage.session(), record(here, 3), record(there))

        with pytest.raises(BerkeleyDBStorageError, match="written to so fast"):
            why(storage, [3], exchange)


def test_garbage_that_is_linked_again_after_it_was_certain(small_batches):
    """The answer is about the moment when it was certain; and 1, which refers to it since then, is not in it."""
    with graph_storage({0: [1], 1: [], 2: [3], 3: [2]}) as storage:
        linking = During(REFERRERS, 0, lambda: commit(storage.session(), record(1, 2)))
        [answer] = why(storage, [2], linking)
        assert not linking.left
        assert [node.oid for node in answer.referrers] == [3]
        assert path(why(storage, [2])[0]) == [0, 1, 2]


def test_what_refers_to_garbage_only_since_then_is_not_listed(small_batches):
    with graph_storage({0: [], 1: [3], 2: [], 3: [1]}) as storage:
        linking = During(REFERRERS, 0, lambda: commit(storage.session(), record(2, 1)))
        [answer] = why(storage, [1], linking)
        assert not linking.left
        assert [node.oid for node in answer.referrers] == [3]


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_commits_at_every_step(seed, small_batches, monkeypatch):
    """Whatever is committed between two records: a path is one there is, and of garbage there is none."""
    commits, chance = 60, Random(seed)
    monkeypatch.setattr(reachability, "ATTEMPTS", commits + 1)
    count = chance.randrange(4, 9)
    graph = {number: chance.sample(range(count), chance.randrange(4)) for number in range(count)}
    with graph_storage(graph) as storage:
        session = storage.session()

        def disturb(activity, _):
            nonlocal commits
            if commits and activity != REFERRERS:
                commits -= 1
                changed = {
                    number: chance.sample(range(count), chance.randrange(4))
                    for number in chance.sample(range(count), chance.randrange(3))
                }
                graph.update(changed)
                commit(session, *(record(number, *refs) for number, refs in changed.items()))

        for _ in range(5):
            target = chance.randrange(count)
            [answer] = why(storage, [target], disturb)
            if answer.reachable:
                assert_path(graph, target, path(answer))
            else:
                assert target not in distances(graph)
                assert_garbage(graph, target, answer)


@pytest.fixture
def db(open_storage, directory):
    """A storage with a path to 2, garbage in the queue (3) that keeps 4, and a cycle of garbage, 5 and 6."""
    storage = open_storage(garbage_collection=GarbageManual())
    graph = {0: [1], 1: [2, 0], 2: [3], 3: [4], 4: [], 5: [6], 6: [5]}
    storage.migrate(
        (oid(number), record(number, *refs, data=b"\x80\x02capp\nNode\n")) for number, refs in graph.items()
    )
    commit(storage, record(2, data=b"\x80\x02capp\nNode\n"))
    storage.close()
    return directory


def run(capsys, *arguments, code=0):
    capsys.readouterr()
    assert cli.main(["why", *map(str, arguments)]) == code
    return capsys.readouterr()


def rows(text):
    """Return [oid, size, class and more] of the lines of the tables."""
    return [line.split(None, 2) for line in text.splitlines() if re.match(r" +\d+ ", line)]


def test_the_command(db, capsys):
    found = run(capsys, db, 2)
    assert found.out.splitlines()[0] == "object 2 is reached from the root in 2 steps"
    assert rows(found.out) == [["0", "32", "app.Node"], ["1", "40", "app.Node"], ["2", "24", "app.Node"]]
    assert found.err == ""
    assert "object 1 is reached from the root in 1 step\n" in run(capsys, db, "0x1", "--quiet").out


def test_the_command_of_garbage(db, capsys):
    with BerkeleyDBStorage(db, read_only=True) as storage:
        since = datetime.fromtimestamp(why(storage, [3])[0].node.since).astimezone()
    when = since.isoformat(sep=" ", timespec="seconds")
    out = run(capsys, db, 3, code=1).out
    assert out.startswith(f"object 3 is garbage: nothing refers to it; it waits to be collected since {when}\n")
    out = run(capsys, db, 4, code=1).out
    assert "it is kept by what refers to it (1), which the root does not reach either" in out
    assert rows(out) == [["4", "24", "app.Node"], ["3", "32", f"app.Node, waits to be collected since {when}"]]
    out = run(capsys, db, 5, code=1).out
    assert out.startswith("object 5 is garbage: the root does not reach it\n")
    assert rows(out) == [["5", "32", "app.Node"], ["6", "32", "app.Node"]]


def test_the_command_with_several(db, capsys):
    out = run(capsys, db, 1, 5, code=1).out
    assert [line for line in out.splitlines() if line.startswith("object")] == [
        "object 1 is reached from the root in 1 step",
        "object 5 is garbage: the root does not reach it",
    ]


def test_the_command_with_more_referrers_than_it_lists(open_storage, directory, capsys):
    storage = open_storage(garbage_collection=GarbageManual())
    graph = {0: [], 1: [2], 2: [1]} | {number: [1] for number in range(3, 20)}
    storage.migrate((oid(number), record(number, *refs)) for number, refs in graph.items())
    storage.close()
    assert "(18, 10 of them here)" in run(capsys, directory, 1, code=1).out


def test_the_command_with_a_wrong_count(db, open_storage, capsys):
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        row = table(storage, REFCOUNTS).get(oid(3))
        table(storage, REFCOUNTS).delete(oid(3))
    out = run(capsys, db, 3, code=1).out
    assert "nothing refers to it, and its count is 1: run `check`" in out
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        table(storage, REFCOUNTS).put(oid(3), row)


def test_the_command_as_json(db, capsys):
    values = json.loads(run(capsys, db, 1, 4, "--json", code=1).out)
    assert values["directory"] == str(db)
    alive, dead = values["objects"]
    root = {"oid": 0, "class": "app.Node", "size": 32, "garbage_since": None, "doomed": False}
    node = {"oid": 1, "class": "app.Node", "size": 40, "garbage_since": None, "doomed": False}
    assert alive == {**node, "reachable": True, "path": [root, node], "count": 0, "referrers": []}
    assert (dead["oid"], dead["reachable"], dead["path"], dead["count"]) == (4, False, [], 1)
    assert [(known["oid"], known["garbage_since"] > 0) for known in dead["referrers"]] == [(3, True)]


def test_the_command_without_such_an_object(db, capsys):
    found = run(capsys, db, 1, 77, code=2)
    assert (found.out, found.err) == ("", "durus-bdb: object 77 does not exist\n")


def test_the_command_on_a_malformed_record(db, capsys):
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        whole = storage.load(oid(1))
        storage._engine.objects.put(oid(1), whole[:-1])
    assert "the record of object 1 is malformed" in run(capsys, db, 2, code=2).err
    with BerkeleyDBStorage(db, garbage_collection=GarbageManual()) as storage:
        storage._engine.objects.put(oid(1), whole)


@pytest.mark.parametrize("text", ["x", "0x", "-1", "0x1_0", "1.0", str(1 << 64), hex(1 << 64), ""])
def test_what_is_no_oid(text, db, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["why", str(db), text])
    assert caught.value.code == 2
    assert "is not the number of an object" in capsys.readouterr().err or text == "-1"


@pytest.mark.parametrize("text", ["2", "0x2", "0X02", "0000000000000000000002"])
def test_what_is_an_oid(text, db, capsys):
    assert json.loads(run(capsys, db, text, "--json").out)["objects"][0]["oid"] == 2
