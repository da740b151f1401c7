"""Every policy against a slow one that is obviously right, and what all promise."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.policy.policy import Policy
from kvbench.policy.tree import TreePolicy
from tests.policy.models import (
    BLOCKS,
    OTHERS,
    POLICIES,
    UNHURRIED,
    Ask,
    Call,
    Forest,
    Insert,
    Remove,
    Slow,
    SlowS3FIFO,
    Touch,
    calls,
    forests,
)

Make = Callable[[], TreePolicy[Any]]
MakeSlow = Callable[[], Slow | SlowS3FIFO]
each = pytest.mark.parametrize(
    ("make", "make_slow"), [pytest.param(*both, id=name) for name, both in POLICIES.items()]
)
fast = {name: make for name, (make, _) in POLICIES.items()}
each_fast = pytest.mark.parametrize(
    "make", [pytest.param(make, id=name) for name, make in (fast | OTHERS).items()]
)
each_in_line = pytest.mark.parametrize(  # what was not touched goes as it came
    "make", [pytest.param(make, id=name) for name, make in fast.items()]
)
each_forgetful = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name)
        for name, make in (fast | OTHERS).items()
        if name != "PerfectLFU"  # which is what it is for
    ],
)


def nobody(key: object) -> bool:
    del key
    return False


def do(policy: Policy[int] | Slow | SlowS3FIFO, forest: Forest, call: Call, here: set[int]) -> None:
    """Make a call that is no question; `here` has the blocks of the tier, before and after."""
    match call:
        case Insert(key):
            if key not in here:
                policy.insert(key, forest.parents[key], len(forest.path(key)) - 1)
                here.add(key)
        case Touch(key, skipped):
            policy.touch(forest.path(key)[skipped:])
        case Remove(key):
            policy.remove(key)
            here.discard(key)
        case Ask():
            raise AssertionError(call)


def drive(
    fast: TreePolicy[int],
    slow: Slow | SlowS3FIFO,
    forest: Forest,
    made: Iterable[Call],
    here: set[int],
) -> set[int]:
    """Make the calls to both, with equal answers; the blocks that are in the tier afterwards."""
    for call in made:
        if isinstance(call, Ask):
            victims = fast.victims(call.count, call.spared.__contains__)
            assert victims == slow.victims(call.count, call.spared)
            fast.remove_many(victims[: call.taken])
            for key in victims[: call.taken]:
                do(slow, forest, Remove(key), here)
        else:
            do(fast, forest, call, {*here})
            do(slow, forest, call, here)
        assert len(fast) == len(here)
        assert [key in fast for key in range(BLOCKS)] == [key in here for key in range(BLOCKS)]
    return here


# ---------------------------------------------------------------- equal to the slow one


@each
@UNHURRIED
@given(forest=forests, made=calls)
def test_it_decides_as_a_slow_policy_that_is_obviously_right(
    make: Make, make_slow: MakeSlow, forest: Forest, made: list[Call]
) -> None:
    drive(make(), make_slow(), forest, made, set())


@each
@UNHURRIED
@given(
    forest=forests,
    before=st.just([]) | st.lists(st.builds(Insert, st.integers(0, 15), st.just("")), max_size=4),
    keys=st.permutations(range(BLOCKS)),
    after=calls,
)
def test_many_blocks_come_in_as_one_by_one(
    make: Make,
    make_slow: MakeSlow,
    forest: Forest,
    before: list[Call],
    keys: list[int],
    after: list[Call],
) -> None:
    many, slow = make(), make_slow()
    here = drive(many, slow, forest, before, set())
    coming = [key for key in keys if key not in here]
    depths = [len(forest.path(key)) - 1 for key in coming]
    many.insert_many(coming, [forest.parents[key] for key in coming], depths)
    for key in coming:
        do(slow, forest, Insert(key, ""), here)
    drive(many, slow, forest, after, here)
    assert many.victims(BLOCKS, nobody) == slow.victims(BLOCKS, ())


@each_fast
@UNHURRIED
@given(forest=forests, made=calls, spared=st.frozensets(st.integers(0, 15), max_size=4))
def test_victims_in_pieces_are_those_at_once(
    make: Make, forest: Forest, made: list[Call], spared: frozenset[int]
) -> None:
    at_once, in_pieces = make(), make()
    for policy in (at_once, in_pieces):
        here = set[int]()
        for call in made:
            if isinstance(call, Ask):
                for key in policy.victims(call.count, call.spared.__contains__)[: call.taken]:
                    do(policy, forest, Remove(key), here)
            else:
                do(policy, forest, call, here)
    found: list[int] = []
    while more := in_pieces.victims(2, spared.__contains__, gone=found):
        found += more
    assert at_once.victims(BLOCKS, spared.__contains__) == found


# ---------------------------------------------------------------- what all promise


@each_fast
@UNHURRIED
@given(forest=forests, made=calls)
def test_no_block_goes_before_its_children_nor_while_it_is_spared(
    make: Make, forest: Forest, made: list[Call]
) -> None:
    policy, here = make(), set[int]()
    for call in made:
        if not isinstance(call, Ask):
            do(policy, forest, call, here)
            continue
        victims = policy.victims(call.count, call.spared.__contains__)
        left = set(here)
        for key in victims:
            assert key in left
            assert key not in call.spared
            assert key not in {forest.parents[other] for other in left}
            left.remove(key)
        if len(victims) < call.count:  # then nothing else could go
            assert all(
                key in call.spared or key in {forest.parents[other] for other in left}
                for key in left
            )
        for key in victims[: call.taken]:
            do(policy, forest, Remove(key), here)


@each_fast
def test_victims_stay_until_they_are_removed(make: Make) -> None:
    policy = make()
    for key in range(6):
        policy.insert(key, key - 1 if key else None, key)
    assert policy.victims(3, nobody) == policy.victims(3, nobody) == [5, 4, 3]
    assert len(policy) == 6
    policy.remove(5)
    assert policy.victims(3, nobody) == [4, 3, 2]


@each_fast
def test_a_parent_that_comes_after_its_child_waits_for_it(make: Make) -> None:
    policy = make()
    policy.insert("child", "parent", 1)
    policy.insert("parent", None, 0)
    policy.insert("other", None, 0)
    assert policy.victims(9, lambda key: key == "child") == ["other"]
    victims = policy.victims(9, nobody)
    assert victims.index("child") < victims.index("parent")


@each_fast
def test_a_failing_question_about_a_block_loses_no_block(make: Make) -> None:
    policy = make()
    for key in range(4):
        policy.insert(key, None, 0)

    def fails(key: int) -> bool:
        raise RuntimeError(f"asked for {key}")

    with pytest.raises(RuntimeError, match="asked for 0"):
        policy.victims(4, fails)
    assert policy.victims(4, nobody) == [0, 1, 2, 3]


@each_fast
def test_a_block_cannot_come_in_twice_nor_be_its_own_parent(make: Make) -> None:
    policy = make()
    policy.insert(b"\x01\x02", None, 0)
    with pytest.raises(ValueError, match="block 0102 is in the tier already"):
        policy.insert(b"\x01\x02", None, 0)
    with pytest.raises(ValueError, match="its own parent"):
        policy.insert(b"\x03", b"\x03", 1)
    assert len(policy) == 1


@each_fast
@pytest.mark.parametrize("keys", [[1, 7], [8, 9, 8], [8, 9, 10]])
def test_many_blocks_come_in_together_or_not_at_all(make: Make, keys: list[int]) -> None:
    policy = make()
    policy.insert(7, 1, 3)
    with pytest.raises(ValueError, match="blocks"):
        policy.insert_many(keys, [None, None, 10][: len(keys)], [0] * len(keys))
    assert policy.victims(9, nobody) == [7]
    assert len(policy) == 1


@each_fast
def test_absent_blocks_are_ignored(make: Make) -> None:
    policy = make()
    policy.insert(1, None, 0)
    policy.touch([1, 2, 3])
    policy.touch([])
    policy.remove(2)
    assert policy.victims(9, nobody) == [1]
    assert policy.victims(0, nobody) == []
    assert 2 not in policy


@each_fast
def test_many_blocks_leave_as_one_by_one_the_absent_and_those_named_twice_ignored(
    make: Make,
) -> None:
    policy = make()
    for key in range(6):
        policy.insert(key, key - 1 if key else None, key)
    assert policy.victims(2, nobody) == [5, 4]
    policy.remove_many([5, 99, 4, 5])
    policy.remove_many([])
    assert policy.victims(9, nobody) == [3, 2, 1, 0]
    policy.remove_many([3, 2, 1, 0])
    assert (len(policy), policy.victims(9, nobody), policy.family.children) == (0, [], {})


# ---------------------------------------------------------------- costs


class Counted:
    """A key that counts how often a dict looks at it."""

    looks = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        Counted.looks += 1
        return hash(self.number)


@each_fast
def test_a_long_prefix_is_not_gone_through_for_every_victim(make: Make) -> None:
    length, evicted = 3000, 300
    policy: TreePolicy[Counted] = make()
    chain = [Counted(number) for number in range(length)]
    for number, key in enumerate(chain):  # the head first: the oldest have children
        policy.insert(key, chain[number - 1] if number else None, number)
    before = Counted.looks
    for number in range(evicted):
        assert policy.victims(1, nobody) == [chain[length - 1 - number]]
        policy.remove(chain[length - 1 - number])
    assert Counted.looks - before < 20 * (length + evicted)  # a scan each would be 900,000


def bring_a_pair(policy: TreePolicy[Counted], number: int) -> None:
    block, child = Counted(number), Counted(-number)
    policy.insert(block, None, 0)
    policy.insert(child, block, 1)
    policy.touch([block, child])


def evict_touched(policy: TreePolicy[Counted]) -> list[weakref.ref[Counted]]:
    """Evict the first victim, though it was touched when its turn had come."""
    (key, *_) = policy.victims(3, nobody)
    policy.touch([key])
    policy.victims(1, nobody)
    policy.remove(key)
    return [weakref.ref(key)]


@each_forgetful
def test_nothing_is_kept_of_blocks_that_left_but_a_ghost_as_large_as_the_tier(make: Make) -> None:
    policy: TreePolicy[Counted] = make()
    for number in range(10):
        policy.insert(Counted(number), None, 0)
    gone: list[weakref.ref[Counted]] = []
    for number in range(10, 3000):
        bring_a_pair(policy, number)
        while len(policy) > 10:
            gone += evict_touched(policy)
    assert sum(ref() is not None for ref in gone) < 200


@each_in_line
def test_blocks_in_use_are_asked_about_only_until_enough_others_are_found(make: Make) -> None:
    policy = make()
    for key in range(1000):
        policy.insert(key, None, 0)
    policy.touch(range(500, 1000))
    asked: list[int] = []

    def in_use(key: int) -> bool:
        asked.append(key)
        return key >= 500

    assert policy.victims(100, in_use) == list(range(100))
    assert len(asked) == 100
