from typing import Any

import pytest
from hypothesis import given

from kvbench.policy.lru import LRU
from kvbench.policy.s3fifo import S3FIFO
from kvbench.policy.tenants import TenantPolicy, Tenants
from kvbench.policy.tree import TreePolicy
from kvbench.testing.decisions import Insert as Inserted
from kvbench.testing.decisions import RecordingPolicy, RemoveMany, Victims, replay
from tests.policy.models import UNHURRIED, Ask, Call, Forest, Insert, Remove, Touch, calls, forests


def nobody(key: object) -> bool:
    del key
    return False


def recorded() -> RecordingPolicy[int]:
    """Three blocks, the first touched, one of the others spared, one victim removed."""
    policy = RecordingPolicy[int](LRU[int]())
    policy.insert_many([1, 2], [None, None], [0, 0])
    policy.insert(3, None, 0)
    policy.touch([1])
    assert policy.victims(1, (2).__eq__) == [3]
    policy.remove(3)
    assert policy.victims(2, nobody) == [2, 1]
    return policy


def use(tenants: TenantPolicy[int], forest: Forest, made: list[Call]) -> None:
    for call in made:
        match call:
            case Insert(key, tenant):
                if key not in tenants:
                    tenants.insert(key, forest.parents[key], len(forest.path(key)) - 1, tenant)
            case Touch(key, skipped):
                tenants.touch(forest.path(key)[skipped:])
            case Remove(key):
                tenants.remove(key)
            case Ask(count, spared, taken, of_one):
                victims = tenants.victims(count, spared.__contains__, "a" if of_one else None)
                tenants.remove_many(victims[:taken])


def test_a_record_of_a_policy_replays_to_the_same_decisions() -> None:
    assert replay(recorded().record, LRU[int]()) is None


@UNHURRIED
@given(forest=forests, made=calls)
def test_a_record_of_tenants_replays_to_the_same_decisions(
    forest: Forest, made: list[Call]
) -> None:
    policy = RecordingPolicy[int](Tenants(S3FIFO, {"a": 3}))
    policy.insert_many([], [], [], [])
    use(policy, forest, made)
    assert replay(policy.record, Tenants[int](S3FIFO, {"a": 3})) is None


def test_a_policy_recorded_inside_tenants_replays_alone() -> None:
    inner: list[RecordingPolicy[int]] = []

    def make() -> TreePolicy[int]:
        inner.append(RecordingPolicy(LRU()))
        return inner[-1]

    tenants = Tenants[int](make)
    for key in range(40):
        tenants.insert(key, None, 0, "ab"[key % 2])
    assert tenants.victims(30, nobody) == list(range(30))  # so each was asked more than once
    assert len(inner) == 2
    assert [replay(policy.record, LRU[int]()) for policy in inner] == [None, None]


def test_the_first_decision_that_differs_is_named() -> None:
    record = recorded().record
    last = len(record) - 1
    call = record[last]
    assert isinstance(call, Victims)
    difference = replay([*record[:last], Victims(2, None, (), call.spared, (1, 2))], LRU[int]())
    assert difference is not None
    assert (difference.index, difference.answer) == (last, (2, 1))
    assert str(difference) == (
        f"call {last}: Victims(count=2, tenant=None, gone=(), spared=frozenset(), "
        "answer=(1, 2)) "
        "was answered (2, 1)"
    )


def test_a_call_that_was_lost_shows_as_a_difference() -> None:
    record = recorded().record
    found = [replay(record[:at] + record[at + 1 :], LRU[int]()) for at in range(len(record) - 1)]
    touched_or_decided = [difference is not None for difference in found]
    assert touched_or_decided == [True, True, True, False, True]  # the first question was a look


def test_blocks_that_left_together_leave_the_replay_together() -> None:
    policy = recorded()
    policy.remove_many(iter([1, 2]))
    assert policy.victims(2, nobody) == []
    assert policy.record[-2] == RemoveMany((1, 2))
    assert replay(policy.record, LRU[int]()) is None
    del policy.record[-2]
    assert replay(policy.record, LRU[int]()) is not None


def test_who_was_spared_then_is_spared_in_the_replay() -> None:
    record = recorded().record
    (first, _) = [call for call in record if isinstance(call, Victims)]
    assert first.spared == {2}


def test_a_refusal_is_a_difference_and_is_not_written_down() -> None:
    policy = RecordingPolicy[int](LRU[int]())
    policy.insert(1, None, 0)
    with pytest.raises(ValueError, match="in the tier already"):
        policy.insert(1, None, 0)
    assert policy.record == [Inserted(1, None, 0, None)]
    difference = replay([*policy.record, *policy.record], LRU[int]())
    assert difference is not None
    assert difference.index == 1
    assert "in the tier already" in str(difference)


def test_a_recording_policy_answers_what_its_policy_would() -> None:
    tenants = Tenants[Any](LRU, {"a": 1})
    policy = RecordingPolicy[Any](tenants)
    policy.insert_many([1, 2], [None, 1], [0, 1], ["a", "a"])
    assert len(policy) == policy.blocks_of("a") == 2
    assert (1 in policy, 3 in policy) == (True, False)
    assert policy.over_quota() == {"a": 1}
    assert policy.excess("a", adding=1) == 2
    assert policy.victims(1, nobody, tenant="a") == [2]
    assert len(policy.record) == 2
