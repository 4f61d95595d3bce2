"""The settings of a storage: their defaults, and what is refused."""

from dataclasses import FrozenInstanceError, fields

import pytest

from berkeleydb_storage import BerkeleyDBStorage, OptionError
from berkeleydb_storage.options import MINIMUM_CACHE, Options


def test_the_defaults_are_the_safe_ones():
    options = Options()
    assert options == Options(
        read_only=False,
        type=None,
        cachesize=64 << 20,
        do_recover=None,
        durable=True,
        async_log_write=True,
        validate_garbage=False,
        repair=False,
    )


def test_options_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Options().durable = False


@pytest.mark.parametrize("type", [None, "btree", "hash"])
def test_types(type):
    assert Options(type=type).type == type


@pytest.mark.parametrize("type", ["heap", "", "BTREE", b"btree", 1, True, ["btree"]])
def test_other_types_are_refused(type):
    with pytest.raises(OptionError, match='type is "btree" or "hash", not '):
        Options(type=type)


@pytest.mark.parametrize("cachesize", [MINIMUM_CACHE, 1 << 30, 5 << 30])
def test_cache_sizes(cachesize):
    assert Options(cachesize=cachesize).cachesize == cachesize


@pytest.mark.parametrize("cachesize", [0, -1, MINIMUM_CACHE - 1, True, 1e7, "64 MB", None])
def test_other_cache_sizes_are_refused(cachesize):
    with pytest.raises(OptionError, match=f"cachesize is a number of bytes, at least {MINIMUM_CACHE}, not "):
        Options(cachesize=cachesize)


@pytest.mark.parametrize("option", ["repair", "validate_garbage"])
def test_what_writes_cannot_be_read_only(option):
    with pytest.raises(OptionError, match=f"{option}=True writes: it cannot be combined with read_only=True"):
        Options(read_only=True, **{option: True})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"type": "heap"}, "type is"),
        ({"cachesize": 1}, "cachesize is"),
        ({"read_only": True, "repair": True}, "repair=True writes"),
        ({"readonly": True, "repair": True}, "repair=True writes"),
        ({"readonly": True, "validate_garbage": True}, "validate_garbage=True writes"),
        ({"checkpoint": 5}, "checkpoint is a policy with due, interval; 5 has no due"),
        ({"garbage_collection": "often"}, "garbage_collection is a policy with amount, interval, grace; 'often' has"),
    ],
)
def test_a_storage_refuses_them_before_it_touches_the_directory(tmp_path, given, complaint):
    with pytest.raises(OptionError, match=complaint):
        BerkeleyDBStorage(tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_storage_takes_them_by_name_alone(tmp_path):
    with pytest.raises(TypeError):
        BerkeleyDBStorage(tmp_path, True)
    with pytest.raises(TypeError, match="cache_size"):
        BerkeleyDBStorage(tmp_path, cache_size=1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_the_type_stays(directory, open_storage):
    open_storage(type="hash").close()
    assert open_storage().statistics().type == "hash"
    open_storage.finish()
    with pytest.raises(OptionError, match=f"{directory} was created with type='hash', which stays; leave the option"):
        open_storage(type="btree")


def test_every_option_says_its_cost_or_its_choices():
    """The docstring of each is the line below it; the constructor repeats default, unit and cost."""
    text = BerkeleyDBStorage.__init__.__doc__
    for field in fields(Options):
        assert f"\n            {field.name}: " in text.replace("\n        Args:", ""), field.name
