"""Which objects a client may have, beside a set of them."""

import pytest
from durus.connection import Connection
from hypothesis import given
from hypothesis import strategies as st

from berkeleydb_storage import BerkeleyDBStorage
from berkeleydb_storage.client import ClientStorage
from berkeleydb_storage.format import ROOT_OID, pack_uint64
from berkeleydb_storage.server import Server
from berkeleydb_storage.server.interest import FOLDED, Interest

NUMBERS = range(6)
OIDS = [pack_uint64(number) for number in NUMBERS]
SOME = st.lists(st.sampled_from(OIDS))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(OIDS)),
        st.tuples(st.just("update"), SOME),
        st.tuples(st.just("drop"), SOME),
        st.tuples(st.just("tidy"), st.none()),
        st.tuples(st.just("meets"), SOME),
    )
)


@given(steps=STEPS, anything=st.booleans())
def test_beside_a_set(steps, anything):
    interest, has = Interest(anything=anything), set(OIDS) if anything else set()
    for what, argument in steps:
        if what == "add":
            interest.add(argument)
            has.add(argument)
        elif what == "update":
            interest.update(argument)
            has.update(argument)
        elif what == "drop":
            interest.drop(argument)
            has.difference_update(argument)
        elif what == "tidy":
            interest.tidy()
        else:
            assert interest.meets(argument) == (not has.isdisjoint(argument))
    assert {oid for oid in OIDS if interest.has(oid)} == has


@pytest.mark.parametrize("anything", [False, True])
def test_what_was_never_heard_of(anything):
    interest = Interest(anything=anything)
    assert interest.has(pack_uint64(1 << 63)) == anything
    assert interest.meets([pack_uint64(1 << 63)]) == anything
    assert not interest.meets([])


def test_the_list_stays_short():
    interest = Interest()
    for number in range(2 * FOLDED):
        interest.add(pack_uint64(number))
        interest.tidy()
        assert len(interest._loaded) <= FOLDED
        assert len(interest._recent) <= FOLDED
    interest.update(pack_uint64(number) for number in range(3 * FOLDED))
    assert not interest._loaded
    assert not interest._recent
    assert interest.has(pack_uint64(3 * FOLDED - 1))


def test_what_is_loaded_one_by_one_takes_little_memory(tmp_path):
    with (
        BerkeleyDBStorage(tmp_path, durable=False) as storage,
        Server(storage, "127.0.0.1:0") as server,
        ClientStorage(server.address) as client,
    ):
        Connection(client)
        for _ in range(FOLDED + 10):
            client.load(ROOT_OID)
        (connection,) = server.service.connections
        assert len(connection.interest._loaded) <= FOLDED
        assert connection.interest.has(ROOT_OID)
