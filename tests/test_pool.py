"""`Pool`: who gets which connection, in which state, and what becomes of those that nobody uses or that broke."""

import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from client_peers import Site
from concurrency import PATIENCE, run_threads
from conftest import check_directory
from durus.btree import BTree
from durus.error import ConflictError
from durus.persistent import Persistent
from served import PYTHONPATH

from berkeleydb_storage.client import Pool
from berkeleydb_storage.errors import OptionError, PoolExhausted, ServerUnreachable, StorageClosed

THREADS = 8
INCREMENTS = 25
CONNECTIONS = 50


@pytest.fixture
def site(directory):
    with Site(directory) as site:
        yield site
    check_directory(directory)


@pytest.fixture
def pools(site):
    opened = []

    def open_pool(**options):
        opened.append(Pool(site.address, **({"timeout": PATIENCE, "wait": PATIENCE} | options)))
        return opened[-1]

    yield open_pool
    for pool in opened:
        pool.close()


def test_committed_changes_are_seen_by_the_next(pools):
    """Whichever connection it gets."""
    pool = pools()
    with pool.connection() as first, pool.connection() as second:
        assert first is not second
        first.get_root()["a"] = 1
        first.commit()
    for _ in range(2):
        with pool.connection() as connection:
            assert connection.get_root()["a"] == 1
            connection.get_root()["a"] = 1


def test_the_last_one_used_is_handed_out_first(pools):
    """Its cache is the warmest, and the others may expire."""
    pool = pools()
    with pool.connection() as first, pool.connection():
        pass
    for _ in range(3):
        with pool.connection() as again:
            assert again is first
    assert pool.statistics().made == 2
    assert pool.statistics().handed_out == 5


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, ConflictError])
def test_uncommitted_changes_are_aborted(pools, error):
    """However the block ends; the connection is used again."""
    pool = pools(size=1)
    with pool.connection() as first:
        first.get_root()["kept"] = Persistent()
        first.commit()

    def change():
        with pool.connection() as connection:
            connection.get_root()["lost"] = Persistent()
            connection.get_root()["kept"].value = 1
            if error is not None:
                raise error

    if error is None:
        change()
    else:
        with pytest.raises(error):
            change()
    with pool.connection() as again:
        assert again is first
        assert list(again.get_root()) == ["kept"]
        assert not hasattr(again.get_root()["kept"], "value")


def test_threads_count_together(pools, site):
    """More threads than connections: every increment is there, and no more connections were made."""
    pool = pools(size=3)
    with pool.connection() as connection:
        connection.get_root()["count"] = 0
        connection.commit()

    def count():
        for _ in range(INCREMENTS):
            while True:
                with suppress(ConflictError), pool.connection() as connection:
                    connection.get_root()["count"] += 1
                    connection.commit()
                    break

    run_threads(*[count] * THREADS)
    with pool.connection() as connection:
        assert connection.get_root()["count"] == THREADS * INCREMENTS
    statistics = pool.statistics()
    assert 1 <= statistics.made <= 3
    assert (statistics.in_use, statistics.waiting, statistics.broken) == (0, 0, 0)


def test_first_use_by_many_threads(pools):
    """The root is made once, by one of them."""
    pool = pools(size=THREADS, root_class=BTree)

    def use():
        with pool.connection() as connection:
            assert isinstance(connection.get_root(), BTree)

    run_threads(*[use] * THREADS)


def test_connecting_while_the_root_is_stored_all_the_time(pools):
    """Durus' ``Connection`` gives up when it finds the root changed twice; the pool tries again."""
    busy, over, started = pools(), threading.Event(), threading.Event()

    def store():
        with busy.connection() as connection:
            while not over.is_set():
                connection.get_root()["a"] = 1
                connection.commit()
                started.set()

    def connect():
        try:
            assert started.wait(PATIENCE)
            for _ in range(CONNECTIONS):
                with pools().connection() as connection:
                    assert list(connection.get_root()) == ["a"]
        finally:
            over.set()

    run_threads(store, connect)


def test_exhausted_pool(pools):
    """It says so, with what to do; when one is given back it goes on."""
    pool = pools(size=2, wait=0.01)
    with pool.connection():
        with pool.connection(), pytest.raises(PoolExhausted, match=r"all 2 connections .* 0\.01 s"), pool.connection():
            pass
        with pool.connection():
            pass
    assert pool.statistics().exhausted == 1
    assert pool.statistics().in_use == 0


def test_waiting_for_a_connection(pools):
    """Whoever waits gets the one that is given back."""
    pool = pools(size=1)
    taken = []

    def wait():
        with pool.connection() as connection:
            taken.append(connection)

    with pool.connection() as connection:
        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        until(lambda: pool.statistics().waiting == 1)
        assert taken == []
    waiter.join(PATIENCE)
    assert taken == [connection]


def until(condition):
    """Look again and again, letting others run, until something is so."""
    for _ in range(10_000_000):
        if condition():
            return
        os.sched_yield()
    pytest.fail("it never was")


def is_closed(connection):
    try:
        connection.get_storage().sync()
    except StorageClosed:
        return True
    return False


def test_idle_connections_are_closed(pools, site):
    """After the time-out, although nobody uses the pool any more; the next user gets a new one."""
    pool = pools(idle_timeout=0.05)
    with pool.connection() as first, pool.connection():
        pass
    until(lambda: pool.statistics().expired == 2)
    assert pool.statistics().idle == 0
    until(lambda: is_closed(first))  # they are counted first
    with pool.connection() as connection:
        assert connection is not first


def test_used_connections_do_not_expire(pools):
    """Only those below them."""
    pool = pools(idle_timeout=0.05)
    with pool.connection() as first:
        with pool.connection():
            pass
        until(lambda: pool.statistics().expired == 1)
        assert first.get_storage().ping() > 0


def test_server_that_restarts(pools, site):
    """The connections come back by themselves, with their caches."""
    pool = pools()
    with pool.connection() as first:
        first.get_root()["a"] = Persistent()
        first.commit()
        loads = first.get_load_count()
    site.restart()
    with pool.connection() as again:
        assert again is first
        assert "a" in again.get_root()
        assert again.get_load_count() == loads
    assert pool.statistics().broken == 0


def test_server_that_is_away(pools, site):
    """An error within the time-out of the storage; no connection is lost to the pool by it."""
    pool = pools(size=1, timeout=0.05)
    with pool.connection():
        pass
    site.stop()
    for _ in range(3):
        with pytest.raises(ServerUnreachable), pool.connection():
            pass
    site.start()
    with pool.connection() as connection:
        assert list(connection.get_root()) == []
    assert pool.statistics().broken == 1
    assert pool.statistics().in_use == 0


def test_broken_connection_is_replaced(pools):
    """One that cannot be brought up to date; and one whose user met an error of the server."""
    pool = pools(size=1)
    with pool.connection() as first:
        pass
    first.get_storage().close()
    with pool.connection() as second:
        assert second is not first
    with pytest.raises(StorageClosed), pool.connection() as second:
        raise StorageClosed("says the test")
    with pool.connection() as third:
        assert third is not second
    assert pool.statistics().broken == 2


def test_closed_pool(pools):
    """Whoever waits is told; connections in use are closed when they are given back."""
    pool = pools(size=1)

    def wait():
        with pytest.raises(StorageClosed), pool.connection():
            pass

    with pool.connection() as connection:
        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        until(lambda: pool.statistics().waiting == 1)
        pool.close()
        pool.close()
        assert connection.get_storage().ping() > 0
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    with pytest.raises(StorageClosed):
        connection.get_storage().ping()
    wait()
    assert pool.statistics().in_use == 0


@pytest.mark.parametrize("options", [{"size": 0}, {"wait": -1}, {"idle_timeout": 0}])
def test_options(options):
    """What makes no sense is refused, before anything is connected."""
    with pytest.raises(OptionError):
        Pool("unix:/nowhere", **options)


def test_forked_child(pools):
    """It begins anew, also while a connection is in use; the parent's go on."""
    pool = pools(size=2)
    with pool.connection() as mine, pool.connection():
        pass
    with pool.connection() as taken:
        taken.get_root()["a"] = 1
        taken.commit()
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(pool, taken))
        assert os.waitpid(pid, 0)[1] == 0
        assert taken is mine
        taken.abort()
        assert taken.get_root()["child"] == 2
    assert pool.statistics().made == 2


def in_child(pool, taken):
    """Use the pool in a child; return its exit status."""
    try:
        if pool.statistics().made:
            return 2
        with pool.connection() as first, pool.connection() as second:
            if taken in (first, second) or first.get_root()["a"] != 1:
                return 3
            first.get_root()["child"] = 2
            first.commit()
        pool.close()
        return 0
    except BaseException:
        return 1


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, gevent
from durus.error import ConflictError
from berkeleydb_storage.client import Pool

pool = Pool(sys.argv[1], size=3)

def count():
    for _ in range(10):
        while True:
            try:
                with pool.connection() as connection:
                    connection.get_root()["count"] = connection.get_root().get("count", 0) + 1
                    connection.commit()
                    break
            except ConflictError:
                pass

waiting = [0]

def tick():
    while True:
        waiting[0] += 1
        gevent.sleep(0)

ticking = gevent.spawn(tick)
gevent.joinall([gevent.spawn(count) for _ in range(20)], raise_error=True)
ticking.kill()
with pool.connection() as connection:
    assert connection.get_root()["count"] == 200
assert waiting[0] > 100, waiting
assert pool.statistics().made <= 3
pool.close()
"""


def test_greenlets(site):
    """More than connections; and the others run while one waits for the server."""
    pytest.importorskip("gevent")
    command = [sys.executable, "-c", GREENLETS, site.address]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, check=True, timeout=PATIENCE)
