"""The exceptions: what they are to Durus, and that each says what it is about."""

import ast
import inspect
import pickle
from pathlib import Path

import pytest
from durus.error import ConflictError, DurusError, DurusKeyError, WriteConflictError
from graphs import oid, oids

from berkeleydb_storage import errors
from berkeleydb_storage.errors import (
    BerkeleyDBStorageError,
    CommitRefused,
    DanglingReferenceError,
    DiskFullError,
    OptionError,
    ReadOnlyError,
    StorageClosed,
    StorageInUse,
    StorageNotFound,
    describe_oids,
    missing,
)

CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, Exception) and each.__module__ == errors.__name__
]


def test_all_are_listed():
    assert {each.__name__ for each in CLASSES} | {"describe_oids", "missing"} == set(errors.__all__)
    assert len(CLASSES) > 10


@pytest.mark.parametrize("each", CLASSES)
def test_each_is_one_of_this_package_and_of_durus(each):
    assert issubclass(each, BerkeleyDBStorageError)
    assert issubclass(each, DurusError)


@pytest.mark.parametrize("each", [each for each in CLASSES if each is not BerkeleyDBStorageError])
def test_each_says_in_its_first_line_when_it_is_raised(each):
    first = inspect.getdoc(each).splitlines()[0]
    assert first.startswith(("Raised when", "Base of"))
    assert first.endswith((".", "left untouched."))


@pytest.mark.parametrize("each", [each for each in CLASSES if each is not StorageInUse])
def test_each_prints_its_message(each):
    assert str(each("db is full: free some")) == "db is full: free some"


def test_in_use_knows_the_holder():
    error = StorageInUse("db is in use by process 7", 7)
    assert (str(error), error.pid) == ("db is in use by process 7", 7)
    assert StorageInUse("by a reader", None).pid is None


@pytest.mark.parametrize("each", [CommitRefused, ReadOnlyError, DiskFullError, DanglingReferenceError])
def test_a_refused_commit_is_a_write_conflict(each):
    """Durus' server answers a ConflictError at commit and goes on; anything else ends it."""
    error = each("nothing was stored", oids(3, 4))
    assert isinstance(error, WriteConflictError)
    assert isinstance(error, ConflictError)
    assert error.oids == oids(3, 4)
    assert str(error) == "nothing was stored"
    assert each("nothing was stored").oids == []


def test_no_other_error_is_a_conflict():
    refused = {each for each in CLASSES if issubclass(each, ConflictError)}
    assert refused == {CommitRefused, ReadOnlyError, DiskFullError, DanglingReferenceError}


def test_errors_are_what_the_standard_library_calls_them():
    assert issubclass(OptionError, ValueError)
    assert issubclass(StorageClosed, ValueError)
    assert issubclass(StorageNotFound, FileNotFoundError)


@pytest.mark.parametrize("each", CLASSES)
def test_each_survives_pickling(each):
    """They cross process boundaries, in concurrent.futures and multiprocessing."""
    error = each("the message", 7) if each is StorageInUse else each("the message")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.__dict__) == (each, "the message", error.__dict__)


def test_a_missing_object_prints_itself():
    error = missing(oid(258))
    assert type(error) is DurusKeyError
    assert isinstance(error, KeyError)
    assert str(error) == "258"
    assert error.oids == [oid(258)]
    assert error.args == (oid(258),)


def test_oids_are_described_as_numbers():
    assert describe_oids([]) == ""
    assert describe_oids(oids(3)) == "3"
    assert describe_oids(oids(*range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert describe_oids(oids(*range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert describe_oids(oids(1, 2, 3), limit=1) == "1 and 2 more"
    assert describe_oids([b"\xff" * 8]) == str(2**64 - 1)


def messages():
    """Yield (where, class, message) of every error that the package makes; values are in braces."""
    names = {each.__name__ for each in CLASSES}
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
                text = "".join(part.value if isinstance(part, ast.Constant) else "{value}" for part in parts)
                yield pytest.param(node.func.id, text, id=f"{path.name}:{node.lineno}")


SELF_EVIDENT = (
    "is closed",
    "does not exist",
    "holds no storage",
    "comes twice",
    "was cut off while it was read",
    "is being closed",
    "was closed",
    "was closed before it was open",
    "was closed while it was opened",
    "is of no use without --tls-cert",
    "is of no use without --archive-to",
    "others changed it meanwhile",
)
"""Where nothing needs to be said about what to do."""


THINGS = ("{value}", ".db", "=", "object 0", "--", "server", "the client", "the pool")
"""What a message may be about; who is refused by a server knows which one he asked."""


@pytest.mark.parametrize(("name", "text"), list(messages()))
def test_each_message_names_the_thing_and_says_more_than_that_it_failed(name, text):
    """What it is about is a value, a file or an option; after a colon or the like comes the reason or the remedy."""
    if text == "{value}" or name == "WireError":  # what is against a protocol is for the log, and for programmers
        return
    assert any(thing in text for thing in THINGS)
    assert any(sign in text.rstrip(".") for sign in (": ", "; ", ". ", ", ")) or text.endswith(SELF_EVIDENT)
    assert text[0].islower() or text.startswith(("{value}", "Berkeley DB", "Durus", "--"))
