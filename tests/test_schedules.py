"""Every interleaving of short programs comes out as at Durus' own server, whatever clients are mixed."""

from itertools import combinations_with_replacement

import pytest
from durus.file_storage import FileStorage
from durus.storage import MemoryStorage
from schedules import ahead, inside, interleavings, new, old, pairs, reference_of, world_of

SHORT = ["rx wy c", "ry wx c", "wx c", "rx ry c", "nx c", "ux dx c"]
"""For every test run."""
LONG = ["rx wy c rx wy c", "ry c wx c ry c", "rx ry a wx c", "wx wy c rx wx c", "ux nx c ux dx c", "rx c ry wz c"]
"""With a transaction before, so that caches and what was told before count."""
THREE = [("rx wy c", "ry wz c", "rz wx c"), ("wx c", "rx wy c", "rx ry rz c")]
KINDS = [(old, old), (old, new), (new, old), (new, new), (new, inside), (old, inside)]


def ids(kinds):
    return [" and ".join(each.__name__ for each in some) for some in kinds]


def cases(groups):
    """Yield programs, a schedule, and whether the caches are warm."""
    for programs in groups:
        for schedule in interleavings(*(len(program.split()) for program in programs)):
            for warm in (False, True):
                yield programs, schedule, warm


def expected(tmp_path_factory, groups, storage=MemoryStorage):
    """Return what comes out at Durus' own server, and how many conflicts there are."""
    directory = tmp_path_factory.mktemp("reference")
    with reference_of(storage(), directory / "socket", len(groups[0])) as world:
        found = {case: world.run(*case) for case in cases(groups)}
    assert not any(faults for _, faults in found.values())
    return found


def compare(world, reference):
    """Run all that the reference has; return how many conflicts there were."""
    conflicts = 0
    for case, (outcomes, _) in reference.items():
        found, faults = world.run(*case)
        assert not faults, (case, found, faults)
        assert found == outcomes, case
        conflicts += sum("conflict" in str(outcome) for _, outcome in found)
    assert conflicts
    return conflicts


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return expected(tmp_path_factory, pairs(SHORT))


def test_every_order_is_tried():
    assert len(set(interleavings(3, 2))) == 10
    assert len(list(interleavings(2, 2, 2))) == 90


@pytest.mark.parametrize("kinds", KINDS, ids=ids(KINDS))
def test_two_clients(directory, short, kinds):
    with world_of(directory, kinds) as world:
        compare(world, short)


def test_the_reference_does_the_same_over_a_file(tmp_path_factory, directory, short):
    path = str(directory / "durus")
    assert expected(tmp_path_factory, pairs(SHORT), lambda: FileStorage(path)) == short


@pytest.mark.parametrize("others", [ahead, old], ids=lambda kind: kind.__name__)
def test_prefetch(directory, short, others):
    """Who fetches in advance reads what was there when it was told, where others read what is there by now."""
    with world_of(directory, (ahead, others)) as world:
        for case in short:
            found, faults = world.run(*case)
            assert not faults, (case, found, faults)


THREES = [kinds for kinds in combinations_with_replacement((old, new, inside), 3) if kinds != (inside,) * 3]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return expected(tmp_path_factory, THREE)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return expected(tmp_path_factory, pairs(LONG))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", THREES, ids=ids(THREES))
def test_three_clients(directory, three, kinds):
    with world_of(directory, kinds) as world:
        print(len(three), "schedules,", compare(world, three), "conflicts")


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS, ids=ids(KINDS))
def test_two_clients_with_a_past(directory, long, kinds):
    with world_of(directory, kinds) as world:
        print(len(long), "schedules,", compare(world, long), "conflicts")
