"""Faults that are planted in the server are found by the schedules: these tests of tests can fail."""

import pytest
from mutants import AT_ONCE
from schedules import ahead, inside, new, old, world_of
from test_schedules import expected

PROGRAMS = [("rx ry a rx wy c", "wx c"), ("rx wy c", "ry wx c"), ("wx c rx wy c", "wx c wz c"), ("wx c wx c", "ry c")]
KINDS = [(old, old), (new, new), (old, inside), (new, inside), (ahead, new)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return expected(tmp_path_factory, PROGRAMS)


def difference(world, reference, exact):
    """Return the first case that comes out otherwise, or has a history without an order; None: there is none."""
    for case, (outcomes, _) in reference.items():
        try:
            found, faults = world.run(*case)
        except Exception as error:
            return case, repr(error)
        if faults or (exact and found != outcomes):
            return case, found, faults
    return None


def differences(directory, reference):
    for number, kinds in enumerate(KINDS):
        path = directory / str(number)
        path.mkdir()
        try:
            with world_of(path, kinds) as world:
                yield difference(world, reference, ahead not in kinds)
        except Exception as error:
            yield repr(error)


def test_without_a_fault(directory, reference):
    assert list(differences(directory, reference)) == [None] * len(KINDS)


@pytest.mark.parametrize("name", AT_ONCE)
def test_faults(directory, reference, monkeypatch, name):
    monkeypatch.setattr(*AT_ONCE[name])
    found = next((each for each in differences(directory, reference) if each is not None), None)
    assert found is not None
    print(f"{name}: {found}")
