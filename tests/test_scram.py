"""The proof of a password: both sides together, each against a liar, and anything at all against both."""

import builtins
import logging
import sys
import time
import unicodedata

import pytest
import scramp
import scramp.core
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage.auth import hashing
from berkeleydb_storage.auth.handshake import LONGEST_MESSAGE, REFUSED, ClientHandshake, ServerHandshake
from berkeleydb_storage.auth.hashing import Parameters, derive, encode
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile, Users
from berkeleydb_storage.errors import AuthenticationError, OptionError

PASSWORD = "geheim, mit Komma = und \U0001f511"
ROUNDS = 3


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = tmp_path_factory.mktemp("scram") / "users"
    PasswordFile(path).set("ada", PASSWORD, Rights.parse("admin"))
    PasswordFile(path).set("Andr\u00e9, x=y", "x", Rights.parse("read"))
    return Users(path)


def converse(server, client, wire=lambda message: message):
    """Let both talk to the end, over a wire that may change what it carries; return what was said."""
    said, message = [], client.start()
    while message is not None:
        reply = server.receive(wire(message))
        said += [message, reply]
        message = client.receive(wire(reply))
    return said


@pytest.mark.parametrize(
    ("name", "password", "rights"),
    [
        ("ada", PASSWORD, "admin"),
        ("Andr\u00e9, x=y", "x", "read"),
        (unicodedata.normalize("NFD", "Andr\u00e9, x=y"), "x", "read"),
    ],
)
def test_a_proof(users, name, password, rights):
    server, client = ServerHandshake(users), ClientHandshake(name, password)
    assert (server.user, server.rights, server.done, client.done) == (None, Rights(0), False, False)
    said = converse(server, client)
    assert len(said) == 2 * ROUNDS
    assert server.done
    assert client.done
    assert server.user == server.claimed == unicodedata.normalize("NFC", name)
    assert server.rights == Rights.parse(rights)


def test_the_password_is_not_among_what_is_said(users):
    key = derive(PASSWORD, users.get("ada").parameters)
    said = b"".join(converse(ServerHandshake(users), ClientHandshake("ada", PASSWORD)))
    for secret in (PASSWORD.encode(), key.encode(), bytes.fromhex(key)):
        assert secret not in said
        assert encode(secret).encode() not in said


def refused(users, name, password):
    """Return the error with which the server refuses, and what it said until then."""
    server, client = ServerHandshake(users), ClientHandshake(name, password)
    said = []
    with pytest.raises(AuthenticationError) as caught:
        converse(server, client, lambda message: said.append(message) or message)
    assert (server.done, server.user, server.rights) == (False, None, Rights(0))
    return caught.value, said


def test_a_wrong_password_and_an_unknown_user_look_the_same(users):
    (wrong, said_to_ada), (unknown, said_to_bob) = refused(users, "ada", "wrong"), refused(users, "bob", "wrong")
    assert str(wrong) == str(unknown) == REFUSED
    assert wrong.reason == "a wrong password of user 'ada'"
    assert unknown.reason == "an unknown user"
    assert [len(each) for each in said_to_ada[1:]] == [len(each) for each in said_to_bob[1:]]
    assert len(said_to_ada) == 2 * ROUNDS - 1


def test_the_answer_for_an_unknown_user_is_always_the_same(users):
    first, second = ServerHandshake(users).receive(b"bob"), ServerHandshake(users).receive(b"bob")
    assert first == second != ServerHandshake(users).receive(b"eve")


def test_it_takes_about_as_long_to_refuse_an_unknown_user(users):
    """Not a proof; it would show a scrypt, or a search, that only one of both goes through."""

    def fastest(name):
        times = []
        for _ in range(200):
            started = time.perf_counter()
            ServerHandshake(users).receive(name)
            times.append(time.perf_counter() - started)
        return min(times)

    known, unknown = fastest(b"ada"), fastest(b"bob")
    assert max(known, unknown) < 3 * min(known, unknown)


def test_a_proof_cannot_be_used_again(users):
    said = converse(ServerHandshake(users), ClientHandshake("ada", PASSWORD))
    server = ServerHandshake(users)
    server.receive(said[0])
    server.receive(said[2])
    with pytest.raises(AuthenticationError):
        server.receive(said[4])


def test_after_an_error_it_is_over(users):
    client = ClientHandshake("ada", PASSWORD)
    server = ServerHandshake(users)
    first = client.receive(server.receive(client.start()))
    with pytest.raises(AuthenticationError):
        server.receive(b"nonsense")
    for message in (first, b"ada"):
        with pytest.raises(AuthenticationError) as caught:
            server.receive(message)
        assert caught.value.reason == "a message too many"


def test_after_the_end_it_is_over(users):
    server, client = ServerHandshake(users), ClientHandshake("ada", PASSWORD)
    converse(server, client)
    for side in (server, client):
        with pytest.raises(AuthenticationError):
            side.receive(b"v=x")
        assert side.done


@pytest.mark.parametrize("position", range(2 * ROUNDS))
def test_a_message_changed_on_the_way_is_found_out(users, position):
    """Whichever it is: one of the two refuses, and the client never takes the server for the real one."""
    for kind in range(3):
        client, numbers = ClientHandshake("ada", PASSWORD), iter(range(2 * ROUNDS))
        with pytest.raises(AuthenticationError):
            converse(
                ServerHandshake(users),
                client,
                lambda message, kind=kind, numbers=numbers: (
                    changed(message, kind) if next(numbers) == position else message
                ),
            )
        assert not client.done


def changed(message, kind):
    """Change the middle or the end, or append."""
    if kind == 2:
        return message + b"A"
    place = len(message) // 2 if kind else len(message) - 6 if len(message) > 10 else 0
    return message[:place] + (b"B" if message[place : place + 1] != b"B" else b"C") + message[place + 1 :]


def test_a_server_that_does_not_know_the_password(users, tmp_path):
    """It has the parameters of the real one, and the stored key, but not the server's key."""

    class Thief:
        def __init__(self, record):
            self.record = record

        def get(self, name):
            keys = hashing.Keys(self.record.keys.stored, bytes(32))
            return type(self.record)(name, Rights.READ, self.record.parameters, keys)

        def stand_in(self, name):
            return self.get(name)

    client = ClientHandshake("ada", PASSWORD)
    with pytest.raises(AuthenticationError) as caught:
        converse(ServerHandshake(Thief(users.get("ada"))), client)
    assert caught.value.reason == "the server does not know the password"
    assert not client.done


SALT = encode(bytes(16))


@pytest.mark.parametrize(
    "reply",
    [
        f"scrypt,2,8,1,{SALT}",
        f"scrypt,8192,8,1,{SALT}",
        f"scrypt,16384,1,1,{SALT}",
        f"scrypt,16384,8,1,{encode(bytes(12))}",
        f"scrypt,2097152,8,1,{SALT}",
        f"scrypt,1048576,8,1,{SALT}",
        f"scrypt,16384,8,99,{SALT}",
        f"scrypt,16384,99,1,{SALT}",
        f"scrypt,262144,8,16,{SALT}",
        f"scrypt,99999999999999999999,8,1,{SALT}",
        f"scrypt,20000,8,1,{SALT}",
        f"scrypt,-16384,8,1,{SALT}",
        f"scrypt,0,8,1,{SALT}",
        f"pbkdf2,16384,8,1,{SALT}",
        "",
        "scrypt",
        "scrypt,16384,8,1," + "A" * 900,
    ],
)
def test_parameters_that_a_client_refuses(reply, monkeypatch):
    """Neither a downgrade nor an attack on its memory gets to the hash."""
    monkeypatch.setattr(hashing, "_scrypt", None)
    client = ClientHandshake("ada", PASSWORD)
    client.start()
    with pytest.raises(AuthenticationError) as caught:
        client.receive(reply.encode())
    assert caught.value.reason.startswith("the server's parameters are not acceptable")


def test_the_most_expensive_parameters_are_within_memory():
    derive("x", Parameters(1 << 18, 8, 1, bytes(16)))
    derive("x", Parameters(1 << 14, 8, 16, bytes(16)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b",i=4096", b",i=9999999"),
        (b",i=4096", b",i=1"),
        (b",i=4096", b",i=4097"),
        (b",s=", b",s=AAAA"),
        (b"r=", b"e="),
    ],
)
def test_a_first_message_that_a_client_refuses(users, old, new):
    server, client = ServerHandshake(users), ClientHandshake("ada", PASSWORD)
    reply = server.receive(client.receive(server.receive(client.start())))
    assert old in reply
    with pytest.raises(AuthenticationError) as caught:
        client.receive(reply.replace(old, new, 1))
    assert caught.value.reason == "the server's first message is not as agreed"


def test_a_second_handshake_costs_no_scrypt(users, monkeypatch):
    calls = []
    scrypt = hashing._scrypt

    def counted(*arguments):
        calls.append(arguments)
        return scrypt(*arguments)

    monkeypatch.setattr(hashing, "_scrypt", counted)
    hashing.forget()
    for _ in range(3):
        converse(ServerHandshake(users), ClientHandshake("ada", PASSWORD))
    assert len(calls) == 1
    refused(users, "ada", "another password")
    assert len(calls) == 2


def test_few_keys_are_remembered(monkeypatch):
    monkeypatch.setattr(hashing, "_scrypt", lambda password, parameters: "00" * 32)
    for number in range(3 * hashing.REMEMBERED):
        derive(f"{number}", Parameters(1 << 14, 8, 1, bytes(16)))
    assert len(hashing._derived._keys) == hashing.REMEMBERED
    hashing.forget()


def test_nothing_shows_a_secret(users, caplog):
    caplog.set_level(logging.DEBUG)
    key = derive(PASSWORD, users.get("ada").parameters)
    server, client = ServerHandshake(users), ClientHandshake("ada", PASSWORD)
    shown = [repr(server), repr(client)]
    message = client.start()
    while message is not None:
        message = client.receive(server.receive(message))
        shown += [repr(server), repr(client)]
    assert PASSWORD not in repr(vars(client))
    for error in (refused(users, "ada", PASSWORD + "?")[0], refused(users, PASSWORD, PASSWORD)[0]):
        shown += [repr(error), str(error), error.reason, repr(error.__cause__)]
    text = "\n".join(shown) + caplog.text
    assert PASSWORD not in text
    assert key not in text


def test_the_library_compares_in_constant_time(users, monkeypatch):
    """On both sides, the keys and the signature: by what the standard library has for that."""
    compared = []

    def watched(first, second):
        compared.append((len(first), len(second)))
        return compare(first, second)

    compare = scramp.core.compare_digest
    monkeypatch.setattr(scramp.core, "compare_digest", watched)
    converse(ServerHandshake(users), ClientHandshake("ada", PASSWORD))
    assert [first in (32, 44) and first == second for first, second in compared].count(True) == 2  # 44: as base64


def test_a_library_that_does_not_is_refused(users, monkeypatch):
    monkeypatch.delattr(scramp.core, "compare_digest")
    for make in (lambda: ServerHandshake(users), lambda: ClientHandshake("ada", PASSWORD)):
        with pytest.raises(OptionError, match=r"1\.4\.9 is needed: pip install 'durus-berkeleydbstorage\[password\]'"):
            make()


def test_without_the_library(users, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.partition(".")[0] == "scramp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "scramp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    for make in (lambda: ServerHandshake(users), lambda: ClientHandshake("ada", PASSWORD)):
        with pytest.raises(OptionError, match=r"pip install 'durus-berkeleydbstorage\[password\]'"):
            make()


@pytest.mark.parametrize("password", ["", "x" * 1025])
def test_a_client_whose_password_is_none(users, password):
    client = ClientHandshake("ada", password)
    with pytest.raises(OptionError, match="password"):
        client.receive(ServerHandshake(users).receive(client.start()))


@pytest.mark.parametrize("name", ["", "x" * 5000, "\ud800", "a:b", "\0", "#"])
def test_names_that_nobody_can_have(users, name):
    assert refused(users, name, "x")[0].reason in (
        "an unknown user",
        "a message that is too long",
        "a message that is no text",
    )


scram = st.from_regex(r"([nyp]?,{0,2}|[a-z]=[!-~]{0,20},?){0,6}", fullmatch=True).map(str.encode)
anything = st.binary(max_size=60) | scram | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
EXAMPLES = 1500


def outcome(side, message):
    """Return the reply, or the message of an AuthenticationError; anything else is a failure."""
    try:
        return side.receive(message)
    except AuthenticationError as error:
        return str(error).encode()


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, ROUNDS - 1), anything, st.integers(0, 400), st.booleans())
def test_a_server_takes_anything(users, position, message, place, splice):
    """In the place of any message, or inside of a real one; and nobody is let in."""
    server, client = ServerHandshake(users), ClientHandshake("ada", PASSWORD)
    real = client.start()
    for _ in range(position):
        real = client.receive(server.receive(real))
    sent = real[:place] + message + real[place + len(message) :] if splice else message
    assert isinstance(outcome(server, sent), bytes)
    assert not server.done or sent == real


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, ROUNDS - 1), anything, st.integers(0, 400), st.booleans())
def test_a_client_takes_anything(users, position, message, place, splice):
    server, client = ServerHandshake(users), ClientHandshake("ada", PASSWORD)
    real = server.receive(client.start())
    for _ in range(position):
        real = server.receive(client.receive(real))
    sent = real[:place] + message + real[place + len(message) :] if splice else message
    assert isinstance(outcome(client, sent), bytes | None)
    assert not client.done or sent == real or sent.startswith(real + b",")  # extensions may follow, says RFC 5802


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_messages_may_be_any_bytes(users, kind):
    server, client = ServerHandshake(users), ClientHandshake("ada", PASSWORD)
    message = client.start()
    while message is not None:
        message = client.receive(kind(server.receive(kind(message))))
    assert server.done


def test_a_message_that_is_too_long(users):
    for side in (ServerHandshake(users), ClientHandshake("ada", PASSWORD)):
        with pytest.raises(AuthenticationError) as caught:
            side.receive(b"x" * (LONGEST_MESSAGE + 1))
        assert caught.value.reason == "a message that is too long"
