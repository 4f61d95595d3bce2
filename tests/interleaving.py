"""Small graphs in a storage, clients that commit between the steps of the collector, and a model of what must be.

A `World` is one graph. Its steps and its commits are all made by `step` and `store`, which compare the storage with
the model afterwards: nothing that the root reaches is gone or differs in a byte; nothing refers to what is gone or
doomed; a commit is refused exactly where it refers to, or stores, something gone or doomed; and no garbage is
forgotten: whatever hangs on itself has a suspect that is still to be looked at, or that only a full pack can settle.
"""

from durus.error import ConflictError
from graphs import (
    EVER,
    assert_books,
    doomed,
    number,
    queue,
    record,
    rows,
)

from berkeleydb_storage import DanglingReferenceError, garbage_collection_interface
from berkeleydb_storage.environment import OBJECTS, SUSPECTS
from berkeleydb_storage.format import ACQUITTED, PENDING, UNSETTLED, unpack_suspect
from berkeleydb_storage.garbage import collector, deletion, packing, suspicion

FEW = 3
"""Steps without anything to do after which the collector is taken to be done."""


def make_small(monkeypatch, step=1, fan=None):
    """Let every step of the collector do as little as it can."""
    for module in (deletion, packing, collector):
        monkeypatch.setattr(module, "STEP", step)
    for name in ("TRACE", "LOOK", "CLEAR"):
        monkeypatch.setattr(packing, name, step)
    monkeypatch.setattr(packing, "CATCH_UP", step - 1)
    if fan:
        monkeypatch.setattr(deletion, "FAN", fan)


TIGHT = ((2, 1), (4, 2))
"""Budgets of the local search that hardly suffice for anything."""


def tight(monkeypatch):
    monkeypatch.setattr(suspicion, "BUDGETS", TIGHT)
    monkeypatch.setattr(World, "thorough", False)


def tree(keys, _):
    return {key: set(keys[2 * index + 1 : 2 * index + 3]) for index, key in enumerate(keys)}


def parents(keys, _):
    """A tree with parent pointers."""
    refs = tree(keys, _)
    for index, key in enumerate(keys[1:]):
        refs[key].add(keys[index // 2])
    return refs


def ring(keys, _):
    return {key: {keys[(index + 1) % len(keys)]} for index, key in enumerate(keys)}


def doubly(keys, _):
    """A doubly linked list."""
    return {key: {*keys[max(0, index - 1) : index], *keys[index + 1 : index + 2]} for index, key in enumerate(keys)}


def digraph(keys, source):
    """Any graph, with references to itself."""
    density = source.choice((0.15, 0.3, 0.5))
    return {key: {other for other in keys if source.random() < density} for key in keys}


def rooted(keys, source):
    """Any graph, where some refer to the root."""
    return {key: refs | ({0} if source.random() < 0.3 else set()) for key, refs in digraph(keys, source).items()}


SHAPES = {"tree": tree, "parents": parents, "ring": ring, "list": doubly, "digraph": digraph, "rooted": rooted}


def reach(refs, start=(0,)):
    """Return what these references lead to."""
    found, todo = set(), list(start)
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += refs.get(key, ())
    return found


class Client:
    """A session with its own view: what it once saw of each object."""

    def __init__(self, world, session):
        self.session = session
        self.seen = dict(world.refs)
        self.owed = set()
        """What was deleted of that, and not reported yet."""

    def view(self, key):
        """Return what an object referred to when this client last saw it."""
        return self.seen.get(key, set())

    def sync(self):
        self.told(self.session.sync())

    def told(self, oids):
        """Forget what was changed or deleted."""
        numbers = {number(key) for key in oids}
        assert self.owed <= numbers, f"{self.owed - numbers} were deleted, and nobody said so"
        self.owed.clear()
        for key in numbers:
            self.seen.pop(key, None)

    def conflict(self, oids):
        """What Durus' Connection does with what was changed meanwhile, for one that has accessed all that it saw."""
        self.told(oids)
        raise ConflictError(oids)


class World:
    """One graph."""

    thorough = True
    """Whether the budgets of the local search suffice for graphs like these."""

    def __init__(self, storage, source, refs, entries, left=(), clients=2):
        """Store a graph.

        Args:
            storage: with nothing but a root that refers to nothing, if at all.
            source: of randomness.
            refs: of all objects but the root.
            entries: what the root refers to at first.
            left: what it refers to after something was unlinked.
            clients: how many there are; they saw all that was there before.
        """
        self.storage, self.source = storage, source
        self.collector = storage._running.collector
        self.refs, self.bytes = {}, {}
        self.commits = self.refused = self.steps = 0
        self.simple = self.thorough
        """Whether local steps alone must find all garbage: nothing refers to the root."""
        self.writer = storage.session()
        self.clients = []
        self.store({0: set(entries), **refs}, self.writer)
        self.nodes = sorted(refs)
        self.clients = [Client(self, storage.session()) for _ in range(clients)]
        self.store({0: set(left)}, self.writer)

    @classmethod
    def random(cls, storage, source, shape, size, clients=2):
        keys = [number(storage.new_oid()) or number(storage.new_oid()) for _ in range(size)]
        entries = {keys[0], *source.sample(keys, source.randrange(3))}
        left = {key for key in entries if source.random() < 0.25}
        refs = SHAPES[shape](keys, source)
        for key in keys:
            entries |= {key} - reach(refs, entries)
        return cls(storage, source, refs, entries, left, clients)

    @property
    def live(self):
        return reach(self.refs)

    def fresh(self):
        return number(self.storage.new_oid())

    # what is done

    def step(self, work):
        """Do the next step of a generator; return whether there was one."""
        try:
            next(work)
        except StopIteration:
            return False
        finally:
            self.look()
        self.steps += 1
        return True

    def store(self, pending, session, handle=None):
        """Commit these references, and compare what comes of it with what must."""
        self.commits += 1
        records = {key: record(key, *sorted(refs), data=b"%d" % self.commits) for key, refs in pending.items()}
        named = {ref for refs in pending.values() for ref in refs}
        gone = doomed(self.storage)
        bad = (named - self.refs.keys() - pending.keys()) | ((named | pending.keys()) & gone)
        try:
            self.end(session, records, handle)
        except DanglingReferenceError as refusal:
            assert bad, "refused, and nothing that it names is gone"
            named = {number(key) for key in refusal.oids}
            assert set() < named <= bad | gone
            self.refused += 1
        except ConflictError:
            assert handle is not None
            self.refused += 1
        else:
            assert not bad, f"not refused, and {bad} are gone"
            for key in pending:
                self.refs[key], self.bytes[key] = set(pending[key]) - {key}, records[key]
                self.simple = self.simple and 0 not in pending[key]
            for client in self.clients:
                if client.session is session:
                    client.seen |= pending
        self.look()

    @staticmethod
    def end(session, records, handle):
        session.begin()
        for one in records.values():
            session.store(one[:8], one)
        session.end(handle)

    # what must be

    def look(self):
        """Compare the storage with the model."""
        found = {number(key): value for key, value in rows(self.storage, OBJECTS).items()}
        deleted, parts = self.refs.keys() - found.keys(), found.keys() - self.refs.keys()
        live = self.live
        assert deleted.isdisjoint(live), f"{deleted & live} were deleted"
        for client in self.clients:
            client.owed |= deleted & client.seen.keys()
        for key in deleted:
            del self.refs[key], self.bytes[key]
        for key in parts:
            self.bytes[key], self.refs[key] = found[key], {number(found[key][at : at + 8]) for at in ends(found[key])}
        assert found == self.bytes
        assert live.isdisjoint(doomed(self.storage)), "what lives is doomed"
        assert live.isdisjoint(parts)
        assert_books(self.storage)
        self.nothing_is_forgotten(live)

    def nothing_is_forgotten(self, live):
        """Of all garbage somebody knows: what is queued or doomed, or a suspect to be settled, leads to it."""
        garbage = self.refs.keys() - live
        if garbage:
            known = {key for key, state in self.states().items() if state != ACQUITTED}
            known |= set(queue(self.storage)) | doomed(self.storage)
            assert garbage <= reach(self.refs, known & garbage), f"{garbage} with {known} known: some is forgotten"

    def states(self):
        """Return {suspect: its state}, where one that nobody will look at is as good as acquitted."""
        pending = self.storage._engine.counts.pending
        found = {number(key): unpack_suspect(row).state for key, row in rows(self.storage, SUSPECTS).items()}
        return {key: ACQUITTED if state == PENDING and key not in pending else state for key, state in found.items()}

    def run(self, work):
        while self.step(work):
            pass

    def finish(self):
        """Collect the rest: locally, which suffices for what is simple; then by a pack, which always does.

        Returns:
            How many objects the local steps left.
        """
        self.run(local(self))
        assert PENDING not in self.states().values(), "suspects were not looked at"
        assert not doomed(self.storage)
        assert not queue(self.storage)
        left = self.refs.keys() - self.live
        assert not (left and self.simple), f"local steps left {left}"
        assert not left or UNSETTLED in self.states().values()
        self.pack()
        for client in self.clients:
            client.sync()
        return len(left)

    def pack(self):
        """After a full pack there is what the root reaches, and nothing else."""
        self.run(self.collector.pack())
        assert self.refs.keys() == self.live
        assert not queue(self.storage)

    def clear(self):
        """Leave the storage with an empty root."""
        self.store({0: set()}, self.writer)
        self.storage.pack()
        self.look()
        assert self.refs == {0: set()}


def ends(one):
    """Yield where the references of a record begin."""
    return range(12 + int.from_bytes(one[8:12], "big"), len(one), 8)


def local(world):
    """What needs no full pack: the queue, suspects, doomed sets."""
    idle = 0
    while idle < FEW:
        idle = 0 if world.collector.step(1, EVER) else idle + 1
        yield


def full(world):
    return world.collector.pack()


def mixed(world):
    """A full pack of which others do some of the steps, and local steps besides."""
    work = world.collector.pack()
    while next(work, world) is not world:
        yield
        world.collector.step(1, EVER)
        yield


def driven(world):
    """A full pack that is asked for, and that only others go on with."""
    work = world.collector.pack()
    next(work)
    while world.collector.step(1, EVER) or world.collector.packing:
        yield
    yield from work


def two(world):
    """Two full packs, one asked for while the other one is under way."""
    first = world.collector.pack()
    for _ in range(world.source.randrange(12)):
        next(first, None)
        yield
    second = world.collector.pack()
    works = [first, second]
    while works:
        work = world.source.choice(works)
        if next(work, world) is world:
            works.remove(work)
        yield


def called_off(world):
    """A full pack that is called off in its middle, and then local steps."""
    work = world.collector.pack()
    for _ in range(world.source.randrange(15)):
        next(work, None)
        yield
    work.close()
    yield
    yield from local(world)


class Moody(garbage_collection_interface):
    """Does next to nothing at a time, and wants a full pack when it is told to."""

    grace = 0.0
    packs = False

    def amount(self, numbers):
        return 1

    def pack(self, numbers):
        return self.packs


def put_off(world):
    """A full pack that a policy wants, does not want any more, and wants again until it is done; after commits, too."""
    source, policy = world.source, Moody()
    before, world.collector.policy = world.collector.policy, policy
    try:
        for _ in range(source.randrange(2, 6)):
            policy.packs = not policy.packs
            for _ in range(source.randrange(12)):
                world.collector.turn()
                yield
        policy.packs = True
        world.collector.turn()
        while world.collector.packing is not None:
            yield
            world.collector.turn()
    finally:
        world.collector.policy = before


DRIVERS = {work.__name__: work for work in (local, full, mixed, driven, two, called_off, put_off)}
