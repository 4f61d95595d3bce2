"""Old backups are removed from a real place, killed at any removal: what is listed can be restored."""

import itertools
import random
import shutil

import pytest
from graphs import commit, hand_out, oid, quiet, record, scratch_directory

from berkeleydb_storage import failpoints
from berkeleydb_storage.backup import Keep, list_backups, restore
from berkeleydb_storage.backup.pruning import prune
from berkeleydb_storage.backup.repository import Repository
from berkeleydb_storage.backup.stores import open_store

BACKUPS = 10
FULL_EVERY = 4


class Killed(Exception):
    """In place of a kill."""


@pytest.fixture
def place():
    with scratch_directory() as directory:
        yield directory


@pytest.fixture
def filled(place):
    """Return where the backups are, and tid -> what was committed with it."""
    source, target = place / "db", place / "backups"
    source.mkdir()
    target.mkdir()
    written = {}
    with quiet(source) as storage:
        hand_out(storage, 2)
        commit(storage, record(0, 1), record(1))
        for number in range(BACKUPS):
            for turn in range(3):
                data = b"%d %d" % (number, turn) * 1000
                commit(storage, record(1, data=data))
                written[storage.statistics().transactions] = data
            storage.backup(target, full=number % FULL_EVERY == 0)
    return target, written


def restored(target, where, tid):
    """Return what a restore up to a transaction has."""
    shutil.rmtree(where, ignore_errors=True)
    restore(target, where, to_commit=tid)
    with quiet(where) as storage:
        assert storage.statistics().transactions == tid
        return storage.load(oid(1))


@pytest.mark.parametrize("keep", [1, 3, 6, Keep(last=2, daily=3), Keep(within=3600.0), Keep(last=20)])
def test_killed_at_each_removal(filled, place, monkeypatch, keep):
    target, written = filled
    source = random.Random(str(keep))
    before = list_backups(target)
    assert [backup.kind for backup in before].count("full") == -(-BACKUPS // FULL_EVERY)
    repository = Repository(open_store(target))

    def die(name):
        if name == "backup.removing":
            raise Killed

    for _ in itertools.count():
        monkeypatch.setattr(failpoints, "hook", die)
        try:
            prune(repository, before[0].identity, Keep.of(keep))
            break
        except Killed:
            monkeypatch.setattr(failpoints, "hook", None)
        known = source.choice(list_backups(target))
        assert restored(target, place / "new", known.tid) == record(1, data=written[known.tid])
    after = list_backups(target)
    assert set(after) <= set(before)
    assert after[-1] == before[-1]
    if not isinstance(keep, Keep):
        assert after[-keep:] == before[-keep:]
        assert [backup.kind for backup in after[:-keep]] in ([], ["full"]), "at most the one that the others go on from"
    for known in after:
        assert restored(target, place / "new", known.tid) == record(1, data=written[known.tid])
    if keep in (Keep(within=3600.0), Keep(last=20)):
        assert after == before
        for tid in source.sample(sorted(tid for tid in written if tid >= after[0].tid), 8):
            assert restored(target, place / "new", tid) == record(1, data=written[tid])
