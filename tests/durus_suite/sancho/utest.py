"""What Durus' tests use of sancho: test classes whose methods run in the order of their definition, and `raises`."""


class UTest:
    """A test class. Making an instance runs all of its tests; `names_of` and `run` do it one by one."""

    def __init__(self):
        for name in names_of(type(self)):
            run(self, name)

    def _pre(self):
        """Run before each test."""

    def _post(self):
        """Run after each test, whatever came of it."""


def names_of(cls):
    """Return the names of the tests of a class, its bases' first, each class's in the order of their definition."""
    names = {}
    for base in reversed(cls.__mro__):
        if base is not object:
            names |= {name: None for name, value in vars(base).items() if name[0] != "_" and callable(value)}
    return list(names)


def run(instance, name):
    """Run one test, between `_pre` and `_post`."""
    instance._pre()
    try:
        getattr(instance, name)()
    finally:
        instance._post()


def raises(expected, function, *arguments, **keywords):
    """Fail unless the call raises an exception of the class `expected`; what else it raises, goes up."""
    try:
        result = function(*arguments, **keywords)
    except expected:
        return True
    raise AssertionError(f"{function!r} returned {result!r} and did not raise {expected!r}")
