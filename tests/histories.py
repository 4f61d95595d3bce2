"""What transactions did, and whether they can have done it one after the other.

This knows nothing of servers, clients or storages: it is told what each transaction has read and written. A version of
an object is a text that no other transaction has written. Whoever writes an object has read it before, so that the
order of the versions of an object is in the history itself.

A history is in order if there is one sequence of all transactions, which every one that committed or read something has
a place in, such that

1. each has read what the newest of those before it had written (serialisable, with consistent snapshots for those that
   were refused or only read);
2. whatever was over when a transaction began is before it, unless that went on with what it knew (strict);
3. what was acknowledged is there at the end, what was refused nobody has ever read, and what nobody knows the outcome
   of is there whole or not at all (durable, atomic).
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field

ABSENT = ""
"""The version of an object that is not there yet."""
GONE = "!"
"""With this begins the version of an object that is not there any more."""
COMMITTED, REFUSED, UNKNOWN, READ = "committed", "refused", "unknown", "read"


@dataclass
class Transaction:
    """What one transaction did. Times are those of one clock, in any unit."""

    name: str
    begin: int
    end: int | None = None
    outcome: str = UNKNOWN
    reads: dict[str, str] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)
    synced: bool = True
    """Whether it asked at its beginning for what others had done."""
    inside: bool = False
    """Whether it was made in the process of the storage itself, and may read what a kill takes back, as long as it is
    not acknowledged."""


def save(transaction):
    """Return a transaction as a line."""
    return json.dumps(asdict(transaction)) + "\n"


def load(lines):
    """Return the transactions of some lines; of several with one name the last one counts, a torn line does not."""
    found = {}
    for line in lines:
        if line.endswith("\n"):
            each = Transaction(**json.loads(line))
            found[each.name] = each
    return list(found.values())


class Check:
    """The judgement about a history. `faults` are what is wrong with it, as texts."""

    def __init__(self, transactions, final=None):
        """Judge.

        Args:
            transactions: the whole history.
            final: object -> version, of all objects that are there at the end; None: it is not known.
        """
        self.transactions = transactions
        self.final = final
        self.faults = []
        self._writers = {}
        for each in transactions:
            for item in each.writes.items():
                if item in self._writers:
                    self.faults.append(f"version {item} was written by {self._writers[item].name} and {each.name}")
                self._writers[item] = each
        self.applied = self._find_applied()
        self._next = self._order_versions()
        self._verify_order()

    # --- what counts as done

    def _find_applied(self):
        """Return the names of those that committed, or must have because somebody has read what they wrote."""
        applied = {each.name for each in self.transactions if each.outcome == COMMITTED}
        todo = [(each.name, item) for each in self.transactions if self._counts(each) for item in each.reads.items()]
        todo += [("the end", item) for item in (self.final or {}).items()]
        reported = set()
        while todo:
            reader, item = todo.pop()
            if item[1] == ABSENT:
                continue
            writer = self._writers.get(item)
            if writer is None or writer.outcome in (REFUSED, READ):
                if (reader, item) not in reported:
                    reported.add((reader, item))
                    what = "was never written" if writer is None else f"{writer.name} was refused, or only read"
                    self.faults.append(f"{reader} has read {item}, which {what}")
            elif writer.name not in applied:
                applied.add(writer.name)
                todo += [(writer.name, other) for other in writer.reads.items()]
        return applied

    def _counts(self, each):
        """Tell whether what a transaction has read must be there to stay, whatever became of its commit."""
        return each.outcome == COMMITTED or not each.inside

    # --- the order of the versions of each object

    def _order_versions(self):
        after = defaultdict(list)
        objects = defaultdict(set)
        for each in self.transactions:
            if each.name in self.applied:
                for name, version in each.writes.items():
                    if name not in each.reads:
                        self.faults.append(f"{each.name} has written {name} unread: that is not to be judged")
                    after[name, each.reads.get(name)].append(each)
                    objects[name].add(version)
        for (name, version), writers in after.items():
            if len(writers) > 1:
                names = ", ".join(each.name for each in writers)
                self.faults.append(f"lost update: {names} have all replaced version {version!r} of {name}")
        for name, versions in objects.items():
            self._follow(name, versions, after)
        return after

    def _follow(self, name, versions, after):
        """Go from the first version of an object to the last one."""
        version, left = ABSENT, set(versions)
        while writers := after.get((name, version)):
            version = writers[0].writes[name]
            if version not in left:
                break
            left.discard(version)
        if left:
            self.faults.append(f"not in the order of the versions of {name}: {sorted(left)}")
        if self.final is not None and not left:
            last = self.final.get(name)
            if last != version and not (last is None and version.startswith(GONE)):
                self.faults.append(f"{name} is {last!r} at the end; the last version that was written is {version!r}")

    # --- the order of the transactions

    def _verify_order(self):
        nodes = [each for each in self.transactions if each.name in self.applied or not each.inside]
        edges = defaultdict(set)
        for each in nodes:
            for item in each.reads.items():
                writer = self._writers.get(item)
                if writer is not None and writer is not each and writer.name in self.applied:
                    edges[writer.name].add(each.name)
                for successor in self._next.get(item, ()):
                    if successor is not each:
                        edges[each.name].add(successor.name)
        self._add_times(nodes, edges)
        names = {each.name for each in nodes}
        cycle = find_cycle(names | set(edges), edges)
        if cycle:
            self.faults.append("no order: " + " < ".join(each for each in cycle if each in names))

    @staticmethod
    def _add_times(nodes, edges):
        """Add that what was over before others began is before them, by way of moments in between."""
        events = [(each.begin, 1, each) for each in nodes if each.synced]
        events += [(each.end, 0, each) for each in nodes if each.end is not None and each.outcome != UNKNOWN]
        last = None
        for number, (_, begins, each) in enumerate(sorted(events, key=lambda event: event[:2])):
            if begins:
                if last is not None:
                    edges[last].add(each.name)
                continue
            moment = ("moment", number)
            if last is not None:
                edges[last].add(moment)
            edges[each.name].add(moment)
            last = moment


def find_cycle(names, edges):
    """Return names that are each before the next one, and the last before the first; None if there are none."""
    degree = dict.fromkeys(names, 0)
    for targets in edges.values():
        for each in targets:
            degree[each] = degree.get(each, 0) + 1
    free = [each for each, count in degree.items() if not count]
    while free:
        for each in edges.get(free.pop(), ()):
            degree[each] -= 1
            if not degree[each]:
                free.append(each)
    left = {each for each, count in degree.items() if count}
    if not left:
        return None
    return _walk_back(left, edges)


def _walk_back(left, edges):
    """Each in `left` has one before it there: go back until one comes again."""
    before = {}
    for each in left:
        for target in edges.get(each, ()):
            before.setdefault(target, each)
    path, at = [], next(iter(left))
    while at not in path:
        path.append(at)
        at = before[at]
    return path[path.index(at) :][::-1]


def faults(transactions, final=None):
    """Return what is wrong with a history, as texts; see `Check`."""
    return Check(transactions, final).faults
