"""`ClientStorage` at a server that stays: its arguments, what it fetches in advance, what it asks of the server."""

import threading

import pytest
import trustme
from client_peers import Proxy, Site
from concurrency import run_threads
from conftest import check_directory
from durus.btree import BTree
from durus.connection import Connection, gen_every_instance
from durus.error import WriteConflictError
from durus.persistent import Persistent

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile
from berkeleydb_storage.client import ClientStorage, Pool
from berkeleydb_storage.client.news import News
from berkeleydb_storage.client.prefetched import OVERHEAD, Prefetched
from berkeleydb_storage.errors import (
    AccessDenied,
    AuthenticationError,
    DanglingReferenceError,
    OptionError,
    ServerUnreachable,
    StorageClosed,
)
from berkeleydb_storage.server import Server
from berkeleydb_storage.server.fetching import SEARCHED
from berkeleydb_storage.server.interest import Interest
from berkeleydb_storage.testing.records import ROOT, UNKNOWN, commit, loaded, populate, record_of
from berkeleydb_storage.transport.tls import ServerCertificates

OBJECTS = 2000
PASSWORD = "correct horse battery staple"
LARGE = 5 << 20


@pytest.fixture
def site(directory):
    with Site(directory) as site:
        yield site
    check_directory(directory)


@pytest.fixture
def clients(site):
    opened = []

    def open_client(**options):
        opened.append(ClientStorage(site.address, **options))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


# --- coming in


@pytest.mark.parametrize(
    "arguments",
    [
        lambda port: ((("127.0.0.1", port),), {}),
        lambda port: (("127.0.0.1", port), {}),
        lambda port: ((f"127.0.0.1:{port}",), {}),
        lambda port: ((), {"host": "127.0.0.1", "port": port}),
        lambda port: ((), {"port": port}),
        lambda port: ((), {"address": ("127.0.0.1", port)}),
    ],
)
def test_addresses(open_storage, arguments):
    """As Durus' client takes them, and as text."""
    with Server(open_storage(durable=False), "127.0.0.1:0") as server:
        port = int(server.address.rpartition(":")[2])
        positional, named = arguments(port)
        with ClientStorage(*positional, **named) as client:
            assert client.get_size() == 0
            assert repr(client) == f"ClientStorage(127.0.0.1:{port})"


@pytest.mark.parametrize("options", [{"timeout": 0}, {"prefetch": -1}])
def test_options(options):
    """What makes no sense is refused, before anything is connected."""
    with pytest.raises(OptionError):
        ClientStorage("unix:/nowhere", **options)


@pytest.fixture
def guarded(open_storage, tmp_path):
    """A server with TLS and passwords; returns its address, and what a client needs to come in."""
    users = tmp_path / "users"
    PasswordFile(users).set("durus", PASSWORD, Rights.parse("admin"))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    certificates = ServerCertificates(tmp_path / "server.pem")
    with Server(open_storage(durable=False), "tls://localhost:0", certificates=certificates, users=users) as server:
        yield server.address, tmp_path / "ca.pem"


@pytest.mark.parametrize("password", [PASSWORD, lambda: PASSWORD], ids=["text", "function"])
def test_password(guarded, password):
    """Over TLS, by a client and by a pool."""
    address, ca = guarded
    with ClientStorage(address, ca=ca, password=password) as client:
        fill(client, 3)
        size = client.get_size()
    with Pool(address, ca=ca, password=password) as pool, pool.connection() as connection:
        assert connection.get_storage().get_size() == size


@pytest.mark.parametrize("options", [{"password": "wrong"}, {}, {"password": PASSWORD, "user": "somebody"}])
def test_wrong_password(guarded, options):
    """It is an error at once, and shows no password."""
    address, ca = guarded
    with pytest.raises(AuthenticationError) as caught:
        ClientStorage(address, ca=ca, timeout=20, **options)
    assert PASSWORD not in repr(caught.value)
    assert "wrong'" not in repr(caught.value)


def test_unknown_authority(guarded):
    """It is an error at once: trying again would not help."""
    address, _ = guarded
    with pytest.raises(ServerUnreachable, match="certificate"):
        ClientStorage(address, password=PASSWORD, timeout=1000)


def test_unverified_server(guarded):
    """Only who asks for it goes without."""
    address, _ = guarded
    with ClientStorage(address, password=PASSWORD, verify=False) as client:
        assert client.get_size() == 0


# --- prefetching


def traverse(client):
    """Meet all items of a tree, as an application does."""
    return [item.number for item in Connection(client).get_root()["tree"].values()]


def fill(client, objects=OBJECTS):
    """Store a tree of items."""
    connection = Connection(client)
    tree = connection.get_root()["tree"] = BTree()
    for number in range(objects):
        item = tree[number] = Persistent()
        item.number = number
    connection.commit()


def requests(site):
    """Return the loads that the server has served so far."""
    return site.server.service.metrics.loads


@pytest.mark.parametrize("prefetch", [30, 300])
def test_cold_traversal(site, clients, prefetch):
    """It takes a request for about as many objects as are prefetched."""
    fill(clients())
    size = clients().get_size()
    before = requests(site)
    assert traverse(clients(prefetch=prefetch)) == list(range(OBJECTS))
    assert requests(site) - before <= 2 * size / prefetch
    before = requests(site)
    traverse(clients())
    assert requests(site) - before == size


def test_prefetched_objects_that_were_changed(clients):
    """They are as old as what was loaded with them until ``sync``; then they are loaded anew."""
    first, second = clients(), clients(prefetch=10)
    records = populate(first, 3)
    one, two, _ = sorted(records)[1:]
    second.sync()
    assert second.load(ROOT) == records[ROOT]
    commit(first, [record_of(one, b"new")])
    assert second.load(one) == records[one]
    told = []
    commit(second, [record_of(two, b"mine")], told.extend)
    assert told == [one]
    assert second.load(two) == record_of(two, b"mine")
    assert second.load(one) == record_of(one, b"new")
    commit(first, [record_of(one, b"newer")])
    assert second.sync() == [one]
    assert second.load(one) == record_of(one, b"newer")


def test_prefetched_object_is_a_conflict(clients):
    """Whoever has read an old one cannot commit."""
    first, second = clients(), clients(prefetch=10)
    records = populate(first, 2)
    one, two = sorted(records)[1:]
    second.sync()
    second.load(ROOT)
    commit(first, [record_of(one, b"new")])
    second.load(one)

    def refuse(oids):
        raise WriteConflictError(oids)

    with pytest.raises(WriteConflictError):
        commit(second, [record_of(two, b"lost")], refuse)
    assert second.sync() == []
    assert second.load(two) == records[two]


def test_prefetching_of_named_objects(site, clients):
    """One request for many; what does not exist, or is there already, is passed over."""
    records = populate(clients(), 500)
    client = clients()
    client.prefetch([*records, UNKNOWN])
    before = requests(site)
    client.prefetch(records)
    assert loaded(client, records) == records
    assert list(client.bulk_load(records)) == list(records.values())
    assert requests(site) == before
    with pytest.raises(KeyError):
        client.load(UNKNOWN)


def test_prefetching_from_a_client_that_has_nearly_everything(site, clients, monkeypatch):
    """The server does not go through all objects there are to find some that it lacks."""
    client = clients(prefetch=3)
    records = populate(client, OBJECTS)
    looked_at = []
    monkeypatch.setattr(Interest, "has", lambda self, oid: looked_at.append(oid) or True)
    assert client.load(min(set(records) - {ROOT})) in records.values()
    assert 0 < len(looked_at) <= 4 * SEARCHED


def test_prefetched_records_are_bounded():
    """What was asked for goes first, then the oldest."""
    records = [record_of(bytes(7) + b"%c" % number, bytes(88)) for number in range(5)]
    kept = Prefetched(3 * (100 + OVERHEAD))
    kept.add(records[:3])
    assert kept.get(records[2][:8]) == records[2]
    kept.add(records[3:4])
    assert [kept.get(record[:8]) is not None for record in records] == [True, True, False, True, False]
    kept.drop([records[0][:8], records[4][:8]])
    kept.add(records[4:])
    assert len(kept) == 3
    kept.clear()
    kept.add(records)
    assert len(kept) == 3
    kept.add([record_of(ROOT, bytes(10_000))])
    assert len(kept) <= 3


def test_news():
    """What was taken was told; where everything may have changed, that is all that was seen, once."""
    news = News()
    assert not news
    news.saw([ROOT])
    news.add([UNKNOWN])
    assert news.concerns(UNKNOWN)
    assert not news.concerns(ROOT)
    news.forget()
    assert news.concerns(ROOT)
    assert news.among([ROOT, UNKNOWN, bytes(7) + b"\1"]) == [ROOT, UNKNOWN]
    assert news.take() == [ROOT, UNKNOWN]
    assert not news
    news.forget()
    assert news.take() == []


# --- the rest


def test_large_commit(clients):
    """Sent in pieces; records larger than a piece, and many small ones."""
    client = clients()
    records = populate(client, OBJECTS)
    oid = max(records)
    records[oid] = record_of(oid, bytes(LARGE))
    commit(client, records.values())
    other = clients()
    assert other.load(oid) == records[oid]
    assert dict(other.gen_oid_record()) == records


def test_dangling_reference(clients):
    """The error names the object, and the oids are used again."""
    client = clients()
    populate(client, 1)
    client.begin()
    missing = client.new_oid()
    client.store(ROOT, record_of(ROOT, b"", [missing]))
    with pytest.raises(DanglingReferenceError) as caught:
        client.end()
    assert caught.value.oids == [missing]
    assert client.new_oid() == missing


def test_handler_that_fails(clients):
    """Its error comes out, nothing is stored, and the news are told again."""
    first, second = clients(), clients()
    records = populate(first, 2)
    one, two = sorted(records)[1:]
    second.sync()
    second.load(one)
    commit(first, [record_of(one, b"new")])

    def fail(oids):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        commit(second, [record_of(two, b"lost")], fail)
    assert second.sync() == [one]
    assert second.load(two) == records[two]


def test_tools_of_durus(clients):
    """Those that go through all objects and load some."""
    fill(clients())
    assert len(list(gen_every_instance(Connection(clients(prefetch=50)), Persistent))) == OBJECTS


def test_server_is_asked(site, clients):
    """What an administrator asks; a Unix socket's owner is one."""
    client = clients()
    populate(client, 3)
    assert client.ping() > 0
    assert client.information()["storage"]["objects"] == client.get_size() == 4
    commit(client, [record_of(ROOT)])
    client.pack()
    site.server.service.finish_packing()
    assert client.get_size() == 1
    client.shutdown()
    with pytest.raises(ServerUnreachable):
        clients(timeout=0.05)


def test_backup_that_is_not_possible(clients):
    """The server's reason comes out, and the client goes on."""
    client = clients()
    populate(client, 1)
    with pytest.raises(AccessDenied, match="backup"):
        client.backup()
    assert client.get_size() == 2


def test_request_of_a_forgetful_connection_is_not_repeated(site, clients):
    """A backup is not begun twice: the caller is told that nobody knows."""
    with Proxy(site.path) as proxy, ClientStorage(proxy.address) as client:
        proxy.cut(down=8 + 5 + 8)
        with pytest.raises(ServerUnreachable, match="sent"):
            client.shutdown()


def test_closed_client(clients):
    """Everything but closing is an error."""
    client = clients()
    populate(client, 1)
    client.close()
    client.close()
    for use in (client.sync, client.new_oid, client.ping, client.end, client.pack, lambda: client.load(ROOT)):
        with pytest.raises(StorageClosed):
            use()


def test_threads_share_a_client(clients):
    """Each gets the answer to what it has asked."""
    client = clients(prefetch=5)
    records = populate(client, 200)

    def read():
        for oid, record in records.items():
            assert client.load(oid) == record

    def read_backwards():
        for oid in reversed(records):
            assert next(iter(client.bulk_load([oid]))) == records[oid]

    run_threads(read, read_backwards, read)
    assert threading.active_count() < 50


def test_storage_is_the_same_from_all_sides(site, clients):
    """What the client stores, the storage has."""
    records = populate(clients(), 3)
    assert isinstance(site.storage, BerkeleyDBStorage)
    assert dict(site.storage.gen_oid_record()) == records
