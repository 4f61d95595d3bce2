"""The public names: they exist, are documented with the errors they raise, and are typed."""

import ast
import inspect
import textwrap
import typing

import pytest

import berkeleydb_storage
from berkeleydb_storage import BerkeleyDBStorage, CheckpointNumbers, GarbageNumbers, Session, Statistics
from berkeleydb_storage import errors as error_module

PUBLIC = {name: getattr(berkeleydb_storage, name) for name in berkeleydb_storage.__all__}
CLASSES = [value for value in PUBLIC.values() if inspect.isclass(value)]
ERRORS = [value for value in CLASSES if issubclass(value, Exception)]

RAISED_BY = {
    "missing": "DurusKeyError",
    "gate.failed": "DamagedError",
    "self._engine.failed": "DamagedError",
}
"""What functions that make an error return."""


def is_ours(member):
    return getattr(member, "__module__", "").partition(".")[0] == "berkeleydb_storage"


def members():
    """Yield (name, function or property) of the public classes: what they have of their own, constructors included."""
    for each in CLASSES:
        for name, member in vars(each).items():
            member = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            documented = not name.startswith("_") or (name == "__init__" and not issubclass(each, (Exception, tuple)))
            if documented and (isinstance(member, property) or (inspect.isfunction(member) and is_ours(member))):
                yield f"{each.__name__}.{name}", member


MEMBERS = dict(members())


def function(member):
    return member.fget if isinstance(member, property) else member


def source(member):
    """Return the parsed source of a function, None where it has none: that of a dataclass's constructor."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function(member))))
    except OSError:
        return None


WRITTEN = {name: member for name, member in MEMBERS.items() if source(member) is not None}


def test_all_is_sorted_and_complete():
    assert berkeleydb_storage.__all__ == sorted(set(berkeleydb_storage.__all__))
    imported = {name for name, value in vars(berkeleydb_storage).items() if is_ours(value) and not name.startswith("_")}
    modules = {name for name, value in vars(berkeleydb_storage).items() if inspect.ismodule(value)}
    assert imported - modules <= set(berkeleydb_storage.__all__)
    assert len(PUBLIC) > 30


def test_every_error_is_public():
    """Whoever wants to catch one must be able to name it."""
    raised = {
        value
        for value in vars(error_module).values()
        if inspect.isclass(value) and issubclass(value, Exception) and is_ours(value)
    }
    assert raised == set(ERRORS)


@pytest.mark.parametrize("each", CLASSES)
def test_every_class_is_documented(each):
    assert each.__doc__
    assert not each.__doc__.startswith(f"{each.__name__}("), "the docstring is the generated one"


@pytest.mark.parametrize("name", WRITTEN)
def test_every_method_is_documented(name):
    text = inspect.getdoc(WRITTEN[name])
    assert text, f"{name} has no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", ":", "?")) or len(text.splitlines()) > 1
    assert first[0].isupper()


@pytest.mark.parametrize("name", WRITTEN)
def test_every_method_is_typed(name):
    call = function(WRITTEN[name])
    hints = typing.get_type_hints(call)
    signature = inspect.signature(call)
    assert "return" in hints
    assert [each for each in signature.parameters if each not in ("self", "cls") and each not in hints] == []


def raised(member):
    """Return the names of the errors that a function raises itself, without those it raises again as they were."""
    found = set()
    for node in ast.walk(source(member)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(what)
            found.add(RAISED_BY.get(name, name))
    return found - {"error", "NotImplementedError"}


@pytest.mark.parametrize("name", [name for name, member in WRITTEN.items() if raised(member)])
def test_every_method_names_the_errors_that_it_raises(name):
    text = inspect.getdoc(WRITTEN[name])
    for error in raised(WRITTEN[name]):
        assert error in text, f"{name} raises {error} and does not say so"


def test_the_test_above_finds_errors():
    assert raised(Session.load) == {"ReadConflictError", "ValueError", "DurusKeyError", "DamagedError"}
    assert "ReadOnlyError" in raised(BerkeleyDBStorage.pack)


@pytest.mark.parametrize("name", WRITTEN)
def test_arguments_that_are_listed_exist(name):
    """What a docstring says under "Args:" are the arguments, all or none of them."""
    text = inspect.getdoc(WRITTEN[name])
    if "Args:" not in text:
        return
    listed = []
    for line in text.partition("Args:")[2].splitlines()[1:]:
        if not line.startswith("    "):
            break
        if not line.startswith("     "):
            listed.append(line.strip().partition(":")[0])
    expected = [each for each in inspect.signature(function(WRITTEN[name])).parameters if each not in ("self", "cls")]
    assert listed == expected


@pytest.mark.parametrize("name", WRITTEN)
def test_errors_that_are_listed_exist(name):
    """What a docstring says under "Raises:" are exceptions, ours or Durus' or Python's."""
    import builtins

    import durus.error

    text = inspect.getdoc(WRITTEN[name])
    for line in text.partition("Raises:")[2].splitlines()[1:]:
        names, colon, _ = line.strip().partition(":")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            for each in names.split(", "):
                known = any(hasattr(where, each) for where in (error_module, durus.error, builtins))
                assert known, f"{name}: {each} is no exception"


def fields_of(each):
    return list(getattr(each, "_fields", ())) or list(getattr(each, "__dataclass_fields__", ()))


@pytest.mark.parametrize(
    "each", [Statistics, CheckpointNumbers, GarbageNumbers, *(PUBLIC[n] for n in ("Fault", "Report"))]
)
def test_every_figure_is_explained_or_named_after_what_it_is(each):
    tree = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
    explained = {
        before.target.id
        for before, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    plain = {"objects", "message", "garbage", "seconds"}
    assert set(fields_of(each)) - explained <= plain


def test_snapshots_do_not_change(tmp_path):
    with BerkeleyDBStorage(tmp_path) as storage:
        snapshot = storage.statistics()
        with pytest.raises(AttributeError):
            snapshot.objects = 5
        with pytest.raises(AttributeError):
            storage.statistics().collected.objects = 5


def test_it_prints_as_what_it_is(tmp_path):
    with BerkeleyDBStorage(tmp_path) as storage:
        assert str(storage) == f"BerkeleyDBStorage({str(tmp_path)!r})"
        assert storage.get_filename() == str(tmp_path)


def test_the_package_is_typed():
    from importlib.resources import files

    assert files("berkeleydb_storage").joinpath("py.typed").is_file()


def test_the_version_is_the_packages():
    assert berkeleydb_storage.__version__.count(".") == 2
