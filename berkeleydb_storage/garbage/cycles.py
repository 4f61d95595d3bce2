"""The search for a closed set around a suspect: garbage that hangs on itself, found without a look at the rest.

A set of objects, without the root, in which every count is explained by references from inside the set, is garbage:
nothing else refers to it. The search starts with the suspect and reads forward, along references, because whatever
keeps a dead suspect can be reached from it. `_holders` are the objects read so far from which the suspect can be
reached; all of them must be explained. So a record that is read either refers to a holder, and then is one itself, or
it is of no use but as a way to others.

What is read next decides how much is read in vain:

- A holder's unexplained references are first looked for among the newer objects that it refers to: parents come
  before their children, and the children may have pointers back. As long as that can still explain all of them, and
  mostly does, the search goes on, however large the set is.
- A holder with more unexplained references than that is either alive or on a ring that leads through others. A limited
  number of records is read to find out (the budget): first the older objects that it refers to, among them its parent;
  then whatever was reached last, those with the fewest unexplained references first. Popular objects are left aside.
- An object that needs the root's help to be explained, because it refers to the root, is taken for alive.

This is trial deletion (Lins 1992; Bacon and Rajan 2001), turned around to stop early, and ordered by age. Pure: what it
reads it gets from the functions it is given. Memory: some 200 bytes for each object read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache

from pyroaring import BitMap64

ROOT = 0
WIDE = 64
"""References by unknown objects that make an object popular: it is read only when nothing else is left to explain
what it may hold."""
BRANCHES = 256
"""References of one object that are followed one by one in search of a ring."""
REFUND = 4
"""What a record that explains something gives back to the budget: 1 in 5 has to."""
AT_ONCE = 2000
"""References that are looked at before others get a turn: 2 to 5 milliseconds, and those of one more record."""
LARGEST = 200_000
"""Objects in a set at most: about 50 MB. Larger ones are left to a full pack."""

CLOSED, ALIVE, UNKNOWN, UNSETTLED = "closed", "alive", "unknown", "unsettled"
NOT_WORTH_IT, LATER = -1, -2

Read = Callable[[int], tuple[int, ...] | None]
"""Returns what an object refers to, itself left out; None where it cannot be read, or is too large to be looked at."""
Count = Callable[[int], int]
"""Returns how many objects refer to an object."""


class _Seen:
    """An object that was read."""

    __slots__ = ("holder", "near", "refs", "unexplained")

    def __init__(self, refs: tuple[int, ...], unexplained: int) -> None:
        self.refs = refs  # of a holder that is explained: those that were not read
        self.unexplained = unexplained
        self.holder = False
        self.near: list[int] = []  # of a holder: the newer objects it refers to, newest first; some may be read


class Search:
    """One search. Run it until `outcome` is there."""

    def __init__(self, suspect: int, budget: int, allowance: int) -> None:
        """Begin.

        Args:
            suspect: whose count fell.
            budget: records to read at most that explain nothing.
            allowance: records to read at most in all, if that is more.
        """
        self.suspect = suspect
        self.outcome: str | None = None
        """`CLOSED`; `ALIVE`, or kept by garbage that is a suspect itself; `UNKNOWN`: a larger budget might tell;
        `UNSETTLED`: only a full pack can."""
        self.reads = 0
        self._budget = self._left = budget
        self._allowance = max(budget, min(allowance, LARGEST))
        self._seen: dict[int, _Seen] = {}
        self._referrers: dict[int, list[int]] = {}  # of what was reached and is no holder: those read that refer to it
        self._holders = BitMap64()
        self._open: deque[int] = deque()  # holders to be explained; those that need help from afar first
        self._unspread: list[int] = []  # read, and their references not yet among the branches
        self._branches: list[int] = []  # where a ring may lead, the most promising last
        self._aside = False  # something was left aside, so that not all was seen
        self._references = 0  # that were looked at
        self._rest = 0  # when they are as many, others get a turn

    @property
    def closed(self) -> BitMap64:
        """The closed set, when the outcome is `CLOSED`."""
        return self._holders

    def run(self, read: Read, count: Count, reads: int) -> None:
        """Go on, and read up to `reads` records; fewer where they have more than `AT_ONCE` references.

        No count changes meanwhile, so that each is asked for once.
        """
        count = cache(count)
        until, self._rest = self.reads + reads, self._references + AT_ONCE
        if not self._seen:
            self._visit(self.suspect, read, count)
        while self.outcome is None and self.reads < until and self._references < self._rest:
            self._go_on(read, count)

    def shed(self, pieces: int) -> bool:
        """Free some of the memory of a search that has ended, except for `closed`; return whether there is more.

        Freed at once, a large search would keep all threads from running for 40 milliseconds.
        """
        for table in (self._seen, self._referrers):
            for _ in range(min(pieces, len(table))):
                table.popitem()
        return bool(self._seen or self._referrers)

    def _go_on(self, read: Read, count: Count) -> None:
        """Read the next record, or end."""
        head = self._head()
        if head is None:
            self.outcome = CLOSED
            return
        near = self._near(head, count)
        following = self._far(head, count) if near is None else near
        if following == LATER:
            return
        if following is None:
            self.outcome = UNSETTLED if self._aside else ALIVE
        elif following == NOT_WORTH_IT or self.reads >= self._allowance:
            self.outcome = UNSETTLED
        elif self._left <= 0:
            self.outcome = UNKNOWN
        else:
            hit = self._visit(following, read, count)
            gain = REFUND if hit and (near is not None or following > head) else -1
            self._left = min(self._left + gain, self._budget)

    def _head(self) -> int | None:
        """Return the holder to be explained next, None where all of them are."""
        while self._open:
            holder = self._seen[self._open[0]]
            if holder.unexplained:
                return self._open[0]
            holder.near = []
            holder.refs = tuple(number for number in holder.refs if number not in self._seen)
            self._open.popleft()
        return None

    def _near(self, head: int, count: Count) -> int | None:
        """Return a newer object that a holder refers to, where those can explain all that is left; or `LATER`."""
        holder = self._seen[head]
        near = holder.near
        while len(near) >= holder.unexplained:
            if self._references >= self._rest:
                return LATER
            self._references += 1
            number = near.pop()
            if number not in self._seen:
                if self._unknown(number, count) <= WIDE:
                    return number
                self._aside = True
        return None

    def _far(self, head: int, count: Count) -> int | None:
        """Return what to read to find the unknown referrers of a holder; None where nothing is left to be read."""
        holder = self._seen[head]
        unread = [number for number in holder.refs[:BRANCHES] if number not in self._seen]
        self._references += len(unread)
        parents = [number for number in unread if ROOT < number < head and self._unknown(number, count) <= WIDE]
        if parents:
            return min(parents, key=lambda number: self._unknown(number, count))
        if ROOT in unread:
            return NOT_WORTH_IT
        children = [number for number in unread if number > head]
        if children:
            return min(children, key=lambda number: self._unknown(number, count))
        return self._branch(count)

    def _branch(self, count: Count) -> int | None:
        """Return the most promising of what was reached and not read, from what was read last."""
        while self._branches or self._unspread:
            if not self._branches:
                self._branches = self._promising(self._unspread.pop(), count)
            elif (number := self._branches.pop()) not in self._seen:
                return number
        return None

    def _promising(self, number: int, count: Count) -> list[int]:
        """Return the unread references of an object, those with the fewest unknown referrers last."""
        refs = self._seen[number].refs
        unread = [ref for ref in refs[:BRANCHES] if ref != ROOT and ref not in self._seen]
        known = sorted(((self._unknown(ref, count), ref) for ref in unread), reverse=True)
        found = [ref for unknown, ref in known if unknown <= WIDE]
        self._aside = self._aside or len(found) < len(unread) or len(refs) > BRANCHES
        return found

    def _unknown(self, number: int, count: Count) -> int:
        """Return how many unknown objects refer to one that was reached and not read."""
        return count(number) - len(self._referrers[number])

    def _visit(self, number: int, read: Read, count: Count) -> bool:
        """Read an object, and see what it explains; return whether it is a holder."""
        self.reads += 1
        refs = read(number)
        if refs is None:
            self._aside = True
            refs = ()
        self._references += len(refs)
        seen, referrers = self._seen, self._referrers
        seen[number] = found = _Seen(refs, count(number) - len(referrers.get(number, ())))
        holds, fewest = number == self.suspect, found.unexplained
        for ref in refs:
            known = seen.get(ref)
            if known is not None:
                known.unexplained -= 1
                fewest = min(fewest, known.unexplained)
                holds = holds or known.holder
            if known is None or not known.holder:
                referrers.setdefault(ref, []).append(number)
        if fewest < 0:
            self.outcome = UNKNOWN  # counts have changed meanwhile
        self._unspread.append(number)
        if holds:
            self._join(number, count)
        return holds

    def _newer(self, number: int, refs: tuple[int, ...], count: Count) -> list[int]:
        """Return what a holder refers to and may refer back to it: what is newer and not read, the newest first."""
        near = sorted((ref for ref in refs if ref > number and ref not in self._seen), reverse=True)
        if len(near) > BRANCHES:
            return near
        found = [ref for ref in near if self._unknown(ref, count) <= WIDE]
        self._aside = self._aside or len(found) < len(near)
        return found

    def _join(self, number: int, count: Count) -> None:
        """Make an object a holder, with all that were read and lead to it."""
        joining = [number]
        while joining:
            number = joining.pop()
            holder = self._seen[number]
            if holder.holder:
                continue
            holder.holder = True
            self._holders.add(number)
            joining += self._referrers.pop(number, ())
            if holder.unexplained:
                holder.near = self._newer(number, holder.refs, count)
                if holder.unexplained > len(holder.near):
                    self._open.appendleft(number)
                else:
                    self._open.append(number)
