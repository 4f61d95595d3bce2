"""Faults that are planted in the server and the client, each of which the tests of histories must find."""

from berkeleydb_storage.client.loading import Loader
from berkeleydb_storage.client.news import News
from berkeleydb_storage.server.desk import Desk
from berkeleydb_storage.server.groups import Groups
from berkeleydb_storage.server.history import History
from berkeleydb_storage.server.interest import Interest
from berkeleydb_storage.server.reading import LATER, NEWS, Reading
from berkeleydb_storage.server.service import Service

READ, SINCE, INVALIDATE, DECIDE = Reading._read, History.since, History.invalidate, Desk._decide
FATE, FLUSH = Service.fate, Groups._flush


def _read_but(answer):
    """Return a way to read that shows the record where it should answer otherwise."""

    def read(reading, client, oid):
        found = READ(reading, client, oid)
        return found if found != answer else reading.engine.objects.get(oid)

    return read


def _without_insiders(history, oids):
    if history.author is not None:
        INVALIDATE(history, oids)


def _everything_is_told(desk, commit):
    commit.client.told = desk.engine.journal.tid
    DECIDE(desk, commit)


def _told_by_loading(reading, client, oid):
    found = READ(reading, client, oid)
    client.told = reading.engine.journal.tid
    return found


def _only_the_newest(history, told, client):
    return SINCE(history, max(told, history._engine.journal.tid - 1), client)


def _acknowledge_first(groups):
    """Let the commits be acknowledged, and flush them when somebody wants to read them, or never."""
    group, groups._group = groups._group, []
    for commit, news, tid in group:
        commit.client.finish(commit, news, tid)
    FLUSH(groups)


def _never_stored(service, mark, since):
    return (1, 0) if FATE(service, mark, since)[0] == 0 else FATE(service, mark, since)


def _nothing(*arguments):
    return None


AT_ONCE = {
    "what a client has is not minded": (Interest, "meets", lambda interest, oids: False),
    "changed objects are shown": (Reading, "_read", _read_but(NEWS)),
    "commits in the server's own process are not noticed": (History, "invalidate", _without_insiders),
    "nothing has changed when a commit comes": (Desk, "_decide", _everything_is_told),
    "who loads counts as told": (Reading, "_read", _told_by_loading),
    "only the newest transaction is told of": (History, "since", _only_the_newest),
    "own commits are news": (History, "since", lambda history, told, client: SINCE(history, told, None)),
    "prefetched records stay when they were changed": (Loader, "__init__", None),
    "what a client stored is not noted": (Interest, "update", _nothing),
}
"""Found by the schedules of a few clients: class, attribute, what is put there."""

OVER_KILLS = {
    "commits are acknowledged before they are on the disk": (Groups, "_flush", _acknowledge_first),
    "what is not on the disk is shown": (Reading, "_read", _read_but(LATER)),
    "who comes back is told nothing": (Service, "changed_since", lambda service, identity, tid: []),
    "a commit that is stored is said not to be": (Service, "fate", _never_stored),
    "news of before are forgotten by those who come back": (News, "add", _nothing),
}
"""Found where the server is killed."""


def _keeping(loader, line, news, ahead, begin=Loader.__init__):
    begin(loader, line, news, ahead)
    loader.drop = _nothing


AT_ONCE["prefetched records stay when they were changed"] = (Loader, "__init__", _keeping)
