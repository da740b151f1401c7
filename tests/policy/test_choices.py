"""What each policy is for, by example: details of S3-FIFO, hit rates of small traces, admission."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.policy.admission import Always, SecondTouch
from kvbench.policy.leaf_first import LeafFirst
from kvbench.policy.length_aware import LengthAware
from kvbench.policy.lru import LRU
from kvbench.policy.policy import Policy
from kvbench.policy.s3fifo import S3FIFO
from kvbench.policy.tree import TreePolicy
from tests.policy.models import UNHURRIED, Ask, Call, Forest, Insert, Remove, Touch, calls, forests


def nobody(key: object) -> bool:
    del key
    return False


def filled(policy: Policy[int], keys: Iterable[int]) -> None:
    for key in keys:
        policy.insert(key, None, 0)


def evict(policy: Policy[Any], count: int) -> list[Any]:
    victims = policy.victims(count, nobody)
    for key in victims:
        policy.remove(key)
    return victims


# ---------------------------------------------------------------- LRU, LeafFirst, LengthAware


def test_lru_takes_a_request_from_its_tail() -> None:
    policy = LRU[str]()
    for key, parent in (("a", None), ("b", "a"), ("c", "b"), ("x", None)):
        policy.insert(key, parent, 0)
    policy.touch(["a", "b", "c"])
    assert policy.victims(4, nobody) == ["x", "c", "b", "a"]


def test_lru_takes_the_last_of_a_request_first_even_if_it_knows_no_parents() -> None:
    policy = LRU[int]()
    filled(policy, range(4))
    policy.touch([3, 1, 2])
    assert policy.victims(4, nobody) == [0, 2, 1, 3]


def test_lru_keeps_a_shared_prefix_until_the_last_that_shares_it_has_gone() -> None:
    policy = LRU[str]()
    for key, parent in (("root", None), ("left", "root"), ("right", "root")):
        policy.insert(key, parent, 0)
    policy.touch(["root", "left"])
    policy.insert("other", None, 0)
    # The root is older than nobody that is left when its last child goes.
    assert policy.victims(9, nobody) == ["right", "left", "root", "other"]


def test_lru_keeps_the_place_of_a_block_in_use_before_those_that_waited() -> None:
    policy = LRU[str]()
    for key, parent in (("in use", None), ("a", None), ("b", "a"), ("c", "b"), ("last", None)):
        policy.insert(key, parent, 0)
    assert policy.victims(1, "in use".__eq__) == ["c"]  # a and b were passed, and wait
    assert policy.victims(9, nobody) == ["in use", "c", "b", "a", "last"]
    policy.remove_many(["c"])
    assert policy.victims(9, nobody) == ["in use", "b", "a", "last"]
    policy.touch(["a"])
    assert policy.victims(9, nobody) == ["in use", "b", "last", "a"]


@UNHURRIED
@given(forest=forests, made=calls)
def test_leaf_first_without_a_weight_decides_as_lru(forest: Forest, made: list[Call]) -> None:
    one, other, here = LRU[int](), LeafFirst[int](depth_weight=0), set[int]()
    for call in made:
        match call:
            case Insert(key):
                if key not in here:
                    here.add(key)
                    for policy in (one, other):
                        policy.insert(key, forest.parents[key], len(forest.path(key)) - 1)
            case Touch(key, skipped):
                one.touch(forest.path(key)[skipped:])
                other.touch(forest.path(key)[skipped:])
            case Remove(key):
                one.remove(key)
                other.remove(key)
                here.discard(key)
            case Ask(count, spared):
                assert one.victims(count, spared.__contains__) == other.victims(
                    count, spared.__contains__
                )


def test_leaf_first_takes_a_deep_block_for_older_than_it_is() -> None:
    policy = LeafFirst[str](depth_weight=2)
    policy.insert("shallow", None, 0)
    for number in range(5):
        policy.insert(f"later {number}", None, 0)
    policy.insert("deep", "elsewhere", 4)  # 6 younger than shallow, and 8 older by depth
    assert policy.victims(1, nobody) == ["deep"]
    policy.touch(["deep"] * 3)
    assert policy.victims(1, nobody) == ["shallow"]


def test_a_negative_weight_of_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="depth_weight is -1: expected 0"):
        LeafFirst[int](depth_weight=-1)


def test_length_aware_takes_the_least_used_then_the_deepest_then_the_oldest() -> None:
    policy = LengthAware[str]()
    for key, position in (("deep old", 9), ("deep new", 9), ("shallow", 1), ("used", 20)):
        policy.insert(key, "elsewhere", position)
    policy.touch(["used"])
    assert policy.victims(9, nobody) == ["deep old", "deep new", "shallow", "used"]


def test_length_aware_forgets_the_uses_of_a_block_that_left() -> None:
    policy = LengthAware[str]()
    policy.insert("back", None, 0)
    policy.touch(["back"] * 9)
    policy.remove("back")
    policy.insert("back", None, 0)
    policy.insert("once", None, 0)
    policy.touch(["once"])
    assert policy.victims(1, nobody) == ["back"]


# ---------------------------------------------------------------- S3-FIFO


def test_s3fifo_drops_what_was_not_touched_again_in_the_order_in_which_it_came() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(10))
    policy.touch([3, 4])
    assert evict(policy, 4) == [0, 1, 2, 5]


def test_s3fifo_drops_from_main_only_when_the_small_queue_is_down_to_a_tenth() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(20))
    policy.touch(range(10))  # these move to main when their turn comes
    assert evict(policy, 9) == list(range(10, 19))
    # 10 in main, 1 in small: 19 goes as long as that is a tenth or more, then main in its order.
    assert evict(policy, 3) == [0, 19, 1]


def in_main_and_small(main: int, small: int) -> S3FIFO[int]:
    """Blocks 0 … in main, 100 … in the small queue."""
    policy = S3FIFO[int]()
    filled(policy, range(main))
    policy.touch(range(main))
    assert policy.victims(1, nobody) == [0]  # all have been moved on
    filled(policy, range(100, 100 + small))
    return policy


def test_s3fifo_counts_the_victims_of_one_call_as_gone_from_the_small_queue() -> None:
    assert in_main_and_small(main=12, small=2).victims(3, nobody) == [100, 0, 1]


def test_s3fifo_counts_the_blocks_that_one_call_moved_on_as_gone_from_the_small_queue() -> None:
    policy = in_main_and_small(main=12, small=3)
    policy.touch([100, 101])
    assert policy.victims(1, nobody) == [0]


def test_s3fifo_trusts_what_comes_again_among_many() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(10))
    assert evict(policy, 2) == [0, 1]
    policy.insert_many([20, 0, 21], [None, None, None], [0, 0, 0])
    assert evict(policy, 9) == [2, 3, 4, 5, 6, 7, 8, 9, 20]
    assert sorted(policy.victims(9, nobody)) == [0, 21]


def test_s3fifo_remembers_what_it_dropped_from_the_small_queue_and_trusts_it_at_once() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(10))
    assert evict(policy, 2) == [0, 1]
    filled(policy, [0, 20, 21])
    assert evict(policy, 9) == [2, 3, 4, 5, 6, 7, 8, 9, 20]  # 0 is in main
    assert sorted(policy.victims(9, nobody)) == [0, 21]


def test_s3fifo_remembers_no_more_keys_than_there_are_blocks() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(10))
    assert evict(policy, 6) == [0, 1, 2, 3, 4, 5]  # four blocks, so 2 to 5 are remembered
    filled(policy, [2, 1])  # 2 goes to main; 1 is as new as any
    assert evict(policy, 5) == [6, 7, 8, 9, 1]
    assert policy.victims(9, nobody) == [2]


def test_s3fifo_lets_a_block_in_main_go_round_once_for_each_touch_and_three_times_at_most() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(4))
    policy.touch(range(4))
    assert policy.victims(1, nobody) == [0]  # all have moved to main
    policy.touch([0] * 9)
    policy.touch([1, 1])
    policy.touch([2])
    assert evict(policy, 4) == [3, 2, 1, 0]
    filled(policy, [4, 5])
    policy.touch([4, 5])
    assert policy.victims(1, nobody) == [4]
    policy.touch([4] * 50)
    policy.touch([5] * 3)
    assert evict(policy, 2) == [4, 5]


def test_s3fifo_counts_touches_anew_in_main() -> None:
    policy = S3FIFO[int]()
    filled(policy, range(4))
    policy.touch([0, 0, 0])
    policy.touch(range(4))
    assert policy.victims(4, nobody) == [0, 1, 2, 3]


def test_s3fifo_keeps_what_is_used_through_a_scan_that_empties_lru() -> None:
    def hits(policy: TreePolicy[int]) -> int:
        hot = [[key] for key in range(20)]
        scan = [[key] for key in range(1000, 1400)]
        return replay(policy, 40, hot * 3 + scan + hot)[-20:].count(1)

    assert hits(S3FIFO()) == 20
    assert hits(LRU()) == 0


# ---------------------------------------------------------------- hit rates


def replay(policy: TreePolicy[int], capacity: int, requests: Iterable[Sequence[int]]) -> list[int]:
    """The leading blocks of each request that are there; then the rest comes in, tail first."""
    hits: list[int] = []
    for blocks in requests:
        found = next((at for at, key in enumerate(blocks) if key not in policy), len(blocks))
        hits.append(found)
        policy.touch(blocks)
        missing = [at for at, key in enumerate(blocks) if key not in policy]
        for key in policy.victims(len(policy) + len(missing) - capacity, blocks.__contains__):
            policy.remove(key)
        for at in reversed(missing):
            policy.insert(blocks[at], blocks[at - 1] if at else None, at)
    return hits


def conversations(turns: int, people: int, grows: int) -> list[list[int]]:
    """Each person's prompt, turn by turn: the shared block 0, all of the last one, `grows` more."""
    return [
        [0, *(1 + 1000 * person + at for at in range(grows * turn))]
        for turn in range(1, turns + 1)
        for person in range(people)
    ]


@pytest.mark.parametrize("make", [LRU[int], LeafFirst[int], LengthAware[int], S3FIFO[int]])
def test_with_room_for_all_every_policy_hits_all_that_was_there(
    make: Callable[[], TreePolicy[int]],
) -> None:
    requests = conversations(turns=4, people=5, grows=3)
    seen, wanted = set[int](), list[int]()
    for blocks in requests:
        wanted.append(len(seen.intersection(blocks)))
        seen |= {*blocks}
    assert replay(make(), 1000, requests) == wanted


def test_lru_hits_nothing_but_the_shared_block_when_the_round_is_longer_than_the_tier() -> None:
    requests = conversations(turns=4, people=5, grows=3)
    assert sum(replay(LRU(), 13, requests)) == len(requests) - 1


def test_length_aware_keeps_beginnings_where_lru_keeps_little() -> None:
    requests = conversations(turns=4, people=5, grows=3)
    hits = sum(replay(LengthAware(), 20, requests))
    assert hits > 2 * sum(replay(LRU(), 20, requests))


# ---------------------------------------------------------------- admission


def test_always_admits() -> None:
    assert Always[int]().admit(1)


def test_a_block_is_admitted_when_it_is_asked_for_again_and_then_starts_anew() -> None:
    admission = SecondTouch[bytes](remembers=8)
    assert [admission.admit(key) for key in (b"a", b"b", b"a", b"a", b"b", b"a")] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]


def test_the_oldest_key_seen_once_is_forgotten_first() -> None:
    admission = SecondTouch[int](remembers=2)
    assert not any(admission.admit(key) for key in (1, 2, 3))
    assert len(admission) == 2
    assert not admission.admit(1)  # forgotten, and remembered now in place of 2
    assert admission.admit(3)
    assert not admission.admit(2)


@UNHURRIED
@given(st.lists(st.integers(0, 9), max_size=50), st.integers(1, 6))
def test_no_more_keys_are_remembered_than_was_said(keys: list[int], remembers: int) -> None:
    admission = SecondTouch[int](remembers)
    once: list[int] = []
    for key in keys:
        assert admission.admit(key) == (key in once)
        once = [other for other in once if other != key] if key in once else [*once, key]
        once = once[-remembers:]
        assert len(admission) == len(once)


def test_remembering_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="SecondTouch remembers 0 keys: expected at least 1"):
        SecondTouch[int](0)
