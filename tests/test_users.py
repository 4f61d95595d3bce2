"""The password file: what is in it, who may read it, what is refused, and that a change is all or nothing."""

import hashlib
import hmac
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berkeleydb_storage.auth import hashing, users
from berkeleydb_storage.auth.hashing import Parameters, decode, encode, keys_of, new_parameters, normal_name
from berkeleydb_storage.auth.rights import Rights
from berkeleydb_storage.auth.users import PasswordFile, User, Users
from berkeleydb_storage.errors import OptionError, PasswordFileError

ROOT = Path(users.__file__).parents[2]
PASSWORD = "geheim-und-lang"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users"


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The lines of a file with one user; made once, because of the hash."""
    path = tmp_path_factory.mktemp("made") / "users"
    PasswordFile(path).set("ada", PASSWORD)
    return path.read_text().splitlines()


def write(path, *lines, mode=0o600):
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return path


def test_a_new_file(path):
    assert PasswordFile(path).set("ada", PASSWORD, Rights.parse("read")) is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = Users(path).get("ada")
    assert (found.name, found.rights, str(found)) == ("ada", Rights.READ, "ada")
    assert PASSWORD not in path.read_text()
    assert os.listdir(path.parent) == ["users"]


def test_the_keys_are_those_of_scram_over_scrypt(path):
    """Computed here by the standards alone: RFC 7914, RFC 5802, RFC 7677."""
    PasswordFile(path).set("ada", PASSWORD)
    name, rights, parameters, keys = path.read_text().splitlines()[1].split(":")
    kind, n, r, p, salt = parameters.split(",")
    assert (name, rights, kind, int(n), int(r), int(p)) == ("ada", "write", "scrypt", 16384, 8, 1)
    salt = decode(salt)
    assert len(salt) == 16
    inner = hashlib.scrypt(PASSWORD.encode(), salt=salt, n=16384, r=8, p=1, maxmem=64 << 20, dklen=32).hex()
    salted = hashlib.pbkdf2_hmac("sha256", inner.encode(), salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    assert keys == f"{encode(stored)},{encode(server)}"


def test_changes_leave_all_else_as_it_was(path, lines):
    write(path, "# people", "", lines[1], "# machines", lines[0])
    file = PasswordFile(path)
    assert file.set("bob", PASSWORD, Rights.parse("admin")) is True
    after = path.read_text().splitlines()
    assert after[:5] == ["# people", "", lines[1], "# machines", lines[0]]
    file.set_rights("ada", Rights.parse("read"))
    assert path.read_text().splitlines() == [
        *("# people", "", lines[1].replace("write", "read"), "# machines", lines[0], after[5])
    ]
    assert file.set("ada", "another") is False
    assert Users(path).get("ada").rights == Rights.READ
    assert path.read_text().splitlines()[2] != lines[1].replace("write", "read")
    file.remove("ada")
    assert path.read_text().splitlines() == ["# people", "", "# machines", lines[0], after[5]]
    assert [user.name for user in file.users()] == ["bob"]


def test_each_password_has_a_salt_of_its_own(path):
    file = PasswordFile(path)
    file.set("ada", PASSWORD)
    file.set("bob", PASSWORD)
    ada, bob = file.users()
    assert ada.parameters.salt != bob.parameters.salt
    assert ada.keys != bob.keys


def test_a_user_that_does_not_exist(path, lines):
    write(path, *lines)
    for change in (lambda: PasswordFile(path).remove("bob"), lambda: PasswordFile(path).set_rights("bob", Rights.READ)):
        with pytest.raises(PasswordFileError, match="has no user 'bob'"):
            change()
    assert path.read_text().splitlines() == lines


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_permissions_that_are_accepted_are_kept(path, lines, mode):
    write(path, *lines, mode=mode)
    assert len(Users(path)) == 1
    PasswordFile(path).set_rights("ada", Rights.READ)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620, 0o602, 0o601, 0o666])
def test_permissions_that_are_refused(path, lines, mode):
    write(path, *lines, mode=mode)
    with pytest.raises(PasswordFileError, match=f"others can read or write .*mode {mode:03o}.: chmod 600"):
        Users(path)
    with pytest.raises(PasswordFileError, match="chmod 600"):
        PasswordFile(path).remove("ada")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else(path, lines):
    os.chown(write(path, *lines), 12345, -1)
    with pytest.raises(PasswordFileError, match="belongs to user 12345, who could change it"):
        Users(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_group_is_kept(path, lines):
    os.chown(write(path, *lines, mode=0o640), -1, 12345)
    PasswordFile(path).set("bob", PASSWORD)
    assert path.stat().st_gid == 12345


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file(path, make):
    make(path)
    path.chmod(0o600)
    with pytest.raises(PasswordFileError, match=r"is no file|Is a directory"):
        Users(path)


def test_what_is_not_there(path):
    with pytest.raises(PasswordFileError, match="users: No such file"):
        Users(path)
    with pytest.raises(PasswordFileError, match="no user 'ada'"):
        PasswordFile(path).remove("ada")
    with pytest.raises(PasswordFileError, match="nowhere: No such file"):
        PasswordFile(path.parent / "nowhere" / "users").set("ada", PASSWORD)


def test_a_file_that_is_too_large(path, lines):
    write(path, *lines, "#" * users.LARGEST_FILE)
    with pytest.raises(PasswordFileError, match="is too large"):
        Users(path)


def test_a_file_that_is_no_text(path):
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(PasswordFileError, match="is no text"):
        Users(path)


SALT, KEY = encode(bytes(16)), encode(bytes(32))
GOOD = f"bob:read:scrypt,16384,8,1,{SALT}:{KEY},{KEY}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bob", "not four fields"),
        (GOOD + ":", "not four fields"),
        (GOOD.replace("read", "all"), "rights are"),
        (GOOD.replace("read", ""), "rights are"),
        (GOOD.replace("bob", "b\tb"), "printable"),
        (GOOD.replace("bob", " bob"), "printable"),
        (GOOD.replace("bob", "b" * 129), "printable"),
        (GOOD.replace("bob", "e\u0301"), "NFC"),
        (GOOD.replace("scrypt", "md5"), "malformed parameters"),
        (GOOD.replace("16384", "x"), "malformed parameters"),
        (GOOD.replace("16384", "1024"), "weaker"),
        (GOOD.replace("16384", "16385"), "power of two"),
        (GOOD.replace("16384,8,1", "16384,4,1"), "weaker"),
        (GOOD.replace("16384", "1048576"), "more expensive"),
        (GOOD.replace(SALT, encode(bytes(12))), "weaker"),
        (GOOD.replace(KEY, KEY[:-1]), "malformed base64"),
        (GOOD.replace(KEY, encode(bytes(31))), "not two keys"),
        (GOOD.replace(f",{KEY}", ""), "not two keys"),
        (":::", "the name is empty"),
        (f":secret:{SALT}:", "wrong length"),
        (":secret:x:", "malformed base64"),
        ("ada" + GOOD[3:], "comes twice"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(path, lines, line, message):
    write(path, *lines, GOOD.replace("bob", "eve"))
    loaded = Users(path)
    write(path, "# a comment", *lines, line)
    for read in (loaded.reload, lambda: Users(path), lambda: PasswordFile(path).remove("ada")):
        with pytest.raises(PasswordFileError, match=f"users, line 4: .*{message}") as caught:
            read()
        assert KEY not in str(caught.value)
    assert {user.name for user in loaded} == {"ada", "eve"}


def test_reload(path, lines):
    loaded = Users(write(path, *lines))
    PasswordFile(path).set_rights("ada", Rights.parse("admin"))
    assert loaded.get("ada").rights == Rights.parse("write")
    loaded.reload()
    assert loaded.get("ada").rights == Rights.parse("admin")


def test_names_are_the_same_in_every_form(path):
    PasswordFile(path).set("Andre\u0301", PASSWORD)
    found = Users(path)
    assert found.get("Andr\u00e9") is found.get("Andre\u0301") is not None
    assert PasswordFile(path).set("Andr\u00e9", PASSWORD) is False


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "a\0", " a", "a ", "#a", "\ud800", "a" * 129, "\u200b"])
def test_names_that_are_refused(path, name):
    with pytest.raises(OptionError, match="a user's name has"):
        PasswordFile(path).set(name, PASSWORD)
    assert not path.exists()
    with pytest.raises(OptionError):
        normal_name(name)


@pytest.mark.parametrize("password", ["", "x" * 1025])
def test_passwords_that_are_refused(path, password):
    with pytest.raises(OptionError, match="password"):
        PasswordFile(path).set("ada", password)
    assert not path.exists()


@pytest.mark.parametrize("password", [" ", "\0", "\n", "ü", "\U0001f511", "\ud800", "x" * 1024])
def test_passwords_of_any_kind(password):
    parameters = new_parameters()
    first = keys_of(password, parameters)
    hashing.forget()
    assert first == keys_of(password, parameters) != keys_of(f"{password[1:]}?", parameters)


def test_a_password_is_the_same_in_every_form():
    parameters = new_parameters()
    assert keys_of("e\u0301", parameters) == keys_of("\u00e9", parameters)


def test_nothing_shows_a_secret(path, lines):
    found = Users(write(path, *lines))
    user = found.get("ada")
    secrets = [encode(user.keys.stored), encode(user.keys.server), lines[0].split(":")[2]]
    raw = [repr(user.keys.stored), repr(user.keys.server)]
    shown = f"{found!r} {user!r} {user} {user.keys!r} {found._contents!r} {list(found)!r} {found.stand_in('x')!r}"
    assert [secret for secret in secrets + raw if secret in shown] == []


def test_a_failed_write_leaves_the_old_file(path, lines, monkeypatch):
    write(path, *lines)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(users.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        PasswordFile(path).set_rights("ada", Rights.READ)
    assert path.read_text().splitlines() == lines
    assert os.listdir(path.parent) == ["users"]


def test_a_link_stays_one(path, lines, tmp_path):
    write(path, *lines)
    link = tmp_path / "link"
    link.symlink_to(path)
    PasswordFile(link).set_rights("ada", Rights.READ)
    assert link.is_symlink()
    assert Users(path).get("ada").rights == Rights.READ


def test_changes_at_the_same_time_are_all_made(path):
    names = [f"user{number}" for number in range(4)]
    code = (
        "import sys; from berkeleydb_storage.auth.users import PasswordFile; "
        "PasswordFile(sys.argv[1]).set(sys.argv[2], 'x')"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], env={"PYTHONPATH": str(ROOT)}) for name in names
    ]
    assert [job.wait(60) for job in jobs] == [0] * len(jobs)
    assert [user.name for user in PasswordFile(path).users()] == names
    threads = [threading.Thread(target=PasswordFile(path).remove, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert PasswordFile(path).users() == []


def test_the_stand_in_of_a_user_that_does_not_exist(path, lines):
    """It looks like a user, stays the same over restarts, and is nobody's."""
    first, second = Users(write(path, *lines)), Users(path)
    known, one, other = first.get("ada"), first.stand_in("bob"), first.stand_in("eve")
    assert one.parameters == second.stand_in("bob").parameters != other.parameters
    costs = [str(each.parameters).rpartition(",")[0] for each in (known, one, other)]
    assert costs == ["scrypt,16384,8,1"] * 3
    assert len(str(one.parameters)) == len(str(known.parameters))
    assert one.rights == Rights(0)
    assert one.keys == second.stand_in("bob").keys
    assert first.stand_in("e\u0301").parameters == first.stand_in("\u00e9").parameters


def test_stand_ins_have_the_costs_that_users_have(path, lines):
    """So that old users, whose passwords were hashed at another cost, do not stand out."""
    found = Users(write(path, *lines, GOOD.replace("16384", "32768")))
    assert {found.stand_in(f"user{number}").parameters.n for number in range(40)} == {16384, 32768}


def test_without_a_secret_stand_ins_last_as_long_as_the_process(path, lines):
    found = Users(write(path, lines[1]))
    before = found.stand_in("bob").parameters
    found.reload()
    assert before == found.stand_in("bob").parameters != Users(path).stand_in("bob").parameters


@settings(max_examples=300)
@given(st.lists(st.text(max_size=60) | st.from_regex(r"[a-z:,#=0-9]{0,80}", fullmatch=True), max_size=4))
def test_any_text_is_read_or_refused(tmp_path_factory, found):
    path = tmp_path_factory.getbasetemp() / "any"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes("\n".join([GOOD, *found]).encode("utf-8", "surrogatepass"))
    assert outcome(path) == GOOD


def outcome(path):
    """Return the good line, also where a bad one was refused by an error that says which it is."""
    try:
        return Users(path).get("bob").line
    except PasswordFileError as error:
        return GOOD if "line" in str(error) or "no text" in str(error) else str(error)


def test_parameters_are_text_and_back():
    parameters = Parameters(1 << 15, 8, 2, bytes(range(16)))
    assert Parameters.parse(str(parameters)) == parameters


def test_a_user_is_a_line_and_back(path, lines):
    assert Users(write(path, *lines)).get("ada").line == lines[1]
    assert isinstance(Users(path).get("ada"), User)
