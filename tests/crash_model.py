"""What a storage must hold after any number of commits, to be compared with what it holds after a crash.

The root refers to hubs. Each hub belongs to one writer, which commits steps 1, 2, 3 ... to it; what a step does follows
from the numbers of the writer and of the step alone, but for the oids, and those are reported before the commit. In
each slot of a hub there is a pair of objects that were stored by one commit, with the same contents; a pair that is
replaced or dropped is garbage.
"""

from contextlib import suppress
from hashlib import sha256
from struct import pack, unpack_from
from zlib import crc32

from durus.error import DurusKeyError
from graphs import number, oid, record

from berkeleydb_storage import DanglingReferenceError

SLOTS = 12
SIZES = (0, 20, 300, 1000, 2500, 9000, 30_000)
"""Of the contents of a pair, in bytes: some take several pages."""


def contents(writer, step):
    """Return what both objects of a pair contain."""
    seed = sha256(pack(">QQ", writer, step)).digest()
    size = SIZES[crc32(seed) % len(SIZES)]
    return pack(">QQ", writer, step) + (seed * (size // len(seed) + 1))[:size]


def pair(writer, step, x, y):
    return [record(x, y, data=contents(writer, step)), record(y, data=contents(writer, step))]


def hub(key, writer, step, slots):
    """Return a hub's record; `slots` is slot -> (step, x, y)."""
    data = pack(">QQ", writer, step) + bytes(sorted(slots))
    return record(key, *(slots[slot][1] for slot in sorted(slots)), data=data)


def plan(writer, step, slots):
    """Return what a step does, "new", "rewrite" or "drop", and to which slot."""
    slot = (step * 5 + writer) % SLOTS
    if slot not in slots:
        return "new", slot
    return ("new", "rewrite", "drop", "rewrite")[crc32(pack(">QQ", writer, step)) % 4], slot


def apply(slots, step, action, slot, x, y):
    """Do to the slots what a step does."""
    if action == "drop":
        del slots[slot]
    else:
        slots[slot] = (step, x, y)


class Writer:
    """Commits the steps of one writer, and reports what it is about to do and what was acknowledged."""

    def __init__(self, session, index, key, report):
        self._session = session
        self._index = index
        self._key = key
        self._report = report
        self.step, self._slots = read_hub(session, key)

    def next(self):
        """Commit the next step."""
        step, slots = self.step + 1, dict(self._slots)
        action, slot = plan(self._index, step, slots)
        x, y = slots[slot][1:] if slot in slots else (0, 0)
        if action == "new":
            x, y = new_oid(self._session, self._report), new_oid(self._session, self._report)
        apply(slots, step, action, slot, x, y)
        self._report(f"try {self._index} {step} {action} {slot} {x} {y}")
        records = [hub(self._key, self._index, step, slots)]
        if action != "drop":
            records += pair(self._index, step, x, y)
        store(self._session, records)
        self._report(f"ack {self._index} {step}")
        self.step, self._slots = step, slots
        if step % 5 == 0:
            self._fail()

    def _fail(self):
        """Try a commit that takes new pages, and is refused: nothing of it may ever be seen."""
        key = new_oid(self._session, self._report)
        with suppress(DanglingReferenceError):
            store(self._session, [record(key, (1 << 64) - 1, data=b"never" * 10_000)])
            raise AssertionError("a commit with a dangling reference succeeded")


def new_oid(session, report):
    key = number(session.new_oid())
    report(f"oid {key}")
    return key


def store(session, records):
    session.begin()
    for one in records:
        session.store(one[:8], one)
    session.end()


def read_hub(session, key):
    """Return (step, slots) as a storage has them."""
    whole = session.load(oid(key))
    size = int.from_bytes(whole[8:12], "big")
    data, refs = whole[12 : 12 + size], whole[12 + size :]
    step = unpack_from(">Q", data, 8)[0]
    slots = {}
    for position, slot in enumerate(data[16:]):
        x = refs[8 * position : 8 * position + 8]
        loaded = session.load(x)
        length = int.from_bytes(loaded[8:12], "big")
        slots[slot] = (unpack_from(">Q", loaded, 20)[0], number(x), number(loaded[12 + length :]))
    return step, slots


def set_up(session, writers, report):
    """Commit the root and the hubs, if there is none; return the oids of the hubs."""
    try:
        root = session.load(oid(0))
    except DurusKeyError:
        report("empty")
        keys = [new_oid(session, report) for _ in range(writers + 1)]
        assert keys[0] == 0
        report("set up " + " ".join(map(str, keys[1:])))
        hubs = [hub(key, index, 0, {}) for index, key in enumerate(keys[1:])]
        store(session, [record(0, *keys[1:], data=b"root"), *hubs])
        report("is set up")
        return keys[1:]
    return [number(root[start : start + 8]) for start in range(16, len(root), 8)]


class _Account:
    """What one writer tried to do and what was acknowledged."""

    def __init__(self):
        self.tries = []
        self.acknowledged = 0

    def slots(self, step):
        """Return what the slots are after a step."""
        slots = {}
        for tried, action, slot, x, y in self.tries[:step]:
            apply(slots, tried, action, slot, x, y)
        return slots


class History:
    """All that was reported about one storage, over any number of crashes, and what must therefore be in it."""

    def __init__(self, *, losing=False):
        """Begin; `losing`: acknowledged commits may be missing after a crash, as long as it is the last ones."""
        self.losing = losing
        self.hubs = None
        self.is_set_up = False
        self.commits = 0
        self.lost = 0
        self._accounts = {}
        self._handed_out = set()

    def report(self, line):
        """Take one line of a report."""
        what, *values = line.split()
        if what == "oid":
            assert int(values[0]) not in self._handed_out, f"oid {values[0]} was handed out twice"
            self._handed_out.add(int(values[0]))
        elif what == "empty":
            self._begin_anew()
        elif what == "set":
            self.hubs = list(map(int, values[1:]))
            self._accounts = {index: _Account() for index in range(len(self.hubs))}
        elif what == "is":
            self.is_set_up = True
            self.commits += 1
        elif what == "try":
            index, step, action, *rest = values
            self._survived(self._accounts[int(index)], int(step) - 1)
            self._accounts[int(index)].tries.append((int(step), action, *map(int, rest)))
        elif what == "ack":
            index, step = map(int, values)
            account = self._accounts[index]
            assert step == len(account.tries)
            account.acknowledged = step
            self.commits += 1
        elif what != "many":
            raise AssertionError(line)

    def _begin_anew(self):
        """Take note that the storage was found empty, which begins with oid 0 again; it may be if nothing was in it."""
        assert self.losing or not self.is_set_up, "everything is gone"
        self.lost += sum(account.acknowledged for account in self._accounts.values()) + self.is_set_up
        self.hubs, self.is_set_up, self._accounts, self._handed_out = None, False, {}, set()

    def _survived(self, account, step):
        """Take note that a writer found its work done up to `step`."""
        least = 0 if self.losing else account.acknowledged
        assert least <= step <= len(account.tries), f"step {step}, and {account.acknowledged} were acknowledged"
        self.lost += max(0, account.acknowledged - step)
        account.acknowledged = min(account.acknowledged, step)
        del account.tries[step:]

    def verify(self, storage):
        """Compare a storage that was opened after a crash with what was reported."""
        if not storage.get_size():
            self._begin_anew()
            return
        expected = [record(0, *self.hubs, data=b"root")]
        for index, account in self._accounts.items():
            step, _ = read_hub(storage, self.hubs[index])
            self._survived(account, step)
            account.acknowledged = step
            slots = account.slots(step)
            expected.append(hub(self.hubs[index], index, step, slots))
            for written, x, y in slots.values():
                expected += pair(index, written, x, y)
        for one in expected:
            assert storage.load(one[:8]) == one
        self.is_set_up = True
