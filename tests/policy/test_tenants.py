"""Tenants against a slow model of one list for all, and the rules of quotas by example."""

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.policy.lru import LRU
from kvbench.policy.tenants import Tenants
from kvbench.policy.tree import TreePolicy
from tests.policy.models import (
    BLOCKS,
    POLICIES,
    UNHURRIED,
    Ask,
    Call,
    Forest,
    Insert,
    Remove,
    Slow,
    Touch,
    calls,
    forests,
    lru_rank,
)

each = pytest.mark.parametrize(
    "make", [pytest.param(make, id=name) for name, (make, _) in POLICIES.items()]
)
quotas = st.dictionaries(st.sampled_from("abc"), st.integers(0, 8))


def nobody(key: object) -> bool:
    del key
    return False


class Asked(list[str]):
    """Spares no block, and notes which were asked about."""

    def __call__(self, key: str) -> bool:
        self.append(key)
        return False


@dataclass
class SlowTenants:
    """Blocks of all tenants in one list by last use, gone through for every victim."""

    quotas: dict[str, int]
    default: int | None
    blocks: Slow = field(default_factory=lambda: Slow(lru_rank))
    tenant: dict[int, str] = field(default_factory=dict[int, str])

    def over(self, gone: Collection[int]) -> dict[str, int]:
        held = [tenant for key, tenant in self.tenant.items() if key not in gone]
        found: dict[str, int] = {}
        for tenant in sorted(set(held)):
            quota = self.quotas.get(tenant, self.default)
            if quota is not None and held.count(tenant) > quota:
                found[tenant] = held.count(tenant) - quota
        return found

    def victims(self, count: int, spared: Collection[int], tenant: str | None) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < count:
            free = self.blocks.eligible(chosen, spared)
            if tenant is not None:
                free = [key for key in free if self.tenant[key] == tenant]
            else:
                over = self.over(chosen)
                hit = [name for name in over if any(self.tenant[key] == name for key in free)]
                if hit:
                    most = min(hit, key=lambda name: (-over[name], name))
                    free = [key for key in free if self.tenant[key] == most]
            if not free:
                break
            chosen.append(min(free, key=lambda key: self.blocks.uses[key].touched))
        return chosen


def do(tenants: Tenants[int], slow: SlowTenants, forest: Forest, call: Call) -> None:
    """Make a call to both; of a question, the answers must be equal."""
    match call:
        case Insert(key, tenant):
            if key not in slow.tenant:
                depth = len(forest.path(key)) - 1
                tenants.insert(key, forest.parents[key], depth, tenant)
                slow.blocks.insert(key, forest.parents[key], depth)
                slow.tenant[key] = tenant
        case Touch(key, skipped):
            tenants.touch(forest.path(key)[skipped:])
            slow.blocks.touch(forest.path(key)[skipped:])
        case Remove(key):
            tenants.remove(key)
            slow.blocks.remove(key)
            slow.tenant.pop(key, None)
        case Ask(count, spared, taken, of_one):
            only = "a" if of_one else None
            victims = tenants.victims(count, spared.__contains__, only)
            assert victims == slow.victims(count, spared, only)
            tenants.remove_many(victims[:taken])
            for key in victims[:taken]:
                slow.blocks.remove(key)
                del slow.tenant[key]


# ---------------------------------------------------------------- equal to the slow one


@UNHURRIED
@given(forest=forests, made=calls, some=quotas, default=st.none() | st.integers(0, 5))
def test_tenants_decide_as_a_slow_list_of_all_blocks_by_last_use(
    forest: Forest, made: list[Call], some: dict[str, int], default: int | None
) -> None:
    tenants, slow = Tenants[int](LRU, some, default), SlowTenants(some, default)
    for call in made:
        do(tenants, slow, forest, call)
        assert len(tenants) == len(slow.tenant)
        assert [key in tenants for key in range(BLOCKS)] == [
            key in slow.tenant for key in range(BLOCKS)
        ]
        over = slow.over(())
        assert tenants.over_quota() == over
        assert [*tenants.over_quota()] == sorted(over, key=lambda name: (-over[name], name))
        for name in "abc":
            assert tenants.blocks_of(name) == [*slow.tenant.values()].count(name)


@UNHURRIED
@given(
    forest=forests,
    before=st.lists(st.builds(Insert, st.integers(0, 15), st.sampled_from("ab")), max_size=3),
    keys=st.permutations(range(BLOCKS)),
    names=st.lists(st.sampled_from("abc"), min_size=BLOCKS, max_size=BLOCKS),
    after=calls,
)
def test_many_blocks_of_many_tenants_come_in_as_one_by_one(
    forest: Forest, before: list[Call], keys: list[int], names: list[str], after: list[Call]
) -> None:
    tenants, slow = Tenants[int](LRU, {"a": 3}), SlowTenants({"a": 3}, None)
    for call in before:
        do(tenants, slow, forest, call)
    coming = [key for key in keys if key not in slow.tenant]
    depths = [len(forest.path(key)) - 1 for key in coming]
    mine = names[: len(coming)]
    tenants.insert_many(coming, [forest.parents[key] for key in coming], depths, mine)
    for key, depth, name in zip(coming, depths, mine, strict=True):
        slow.blocks.insert(key, forest.parents[key], depth)
        slow.tenant[key] = name
    for call in [Ask(BLOCKS, frozenset(), 0), *after]:
        do(tenants, slow, forest, call)


@each
@UNHURRIED
@given(forest=forests, made=calls)
def test_one_tenant_has_exactly_its_policy(
    make: Callable[[], TreePolicy[Any]], forest: Forest, made: list[Call]
) -> None:
    tenants, alone, here = Tenants[int](make, {"a": 2}), make(), set[int]()
    for call in made:
        match call:
            case Insert(key):
                if key not in here:
                    depth = len(forest.path(key)) - 1
                    tenants.insert(key, forest.parents[key], depth, "a")
                    alone.insert(key, forest.parents[key], depth)
                    here.add(key)
            case Touch(key, skipped):
                tenants.touch(forest.path(key)[skipped:])
                alone.touch(forest.path(key)[skipped:])
            case Remove(key):
                tenants.remove(key)
                alone.remove(key)
                here.discard(key)
                if not here:
                    alone = make()  # a tenant without blocks is forgotten
            case Ask(count, spared):
                victims = tenants.victims(count, spared.__contains__)
                assert victims == alone.victims(count, spared.__contains__)


@each
@UNHURRIED
@given(forest=forests, made=calls)
def test_no_tenants_block_goes_before_anothers_child_of_it(
    make: Callable[[], TreePolicy[Any]], forest: Forest, made: list[Call]
) -> None:
    tenants, here = Tenants[int](make, {"a": 2}), set[int]()
    for call in made:
        match call:
            case Insert(key, tenant):
                if key not in here:
                    tenants.insert(key, forest.parents[key], len(forest.path(key)) - 1, tenant)
                    here.add(key)
            case Touch(key, skipped):
                tenants.touch(forest.path(key)[skipped:])
            case Remove(key):
                tenants.remove(key)
                here.discard(key)
            case Ask(count, spared, taken):
                victims = tenants.victims(count, spared.__contains__)
                left = set(here)
                for key in victims:
                    assert key in left - spared
                    assert key not in {forest.parents[other] for other in left}
                    left.remove(key)
                free = left - spared - {forest.parents[other] for other in left}
                assert len(victims) == count or not free
                for key in victims[:taken]:
                    tenants.remove(key)
                    here.discard(key)


# ---------------------------------------------------------------- quotas


def filled(tenants: Tenants[str], **blocks: int) -> Tenants[str]:
    """Each tenant's blocks, in turns: a0 b0 a1 b1 …"""
    for number in range(max(blocks.values())):
        for tenant, count in blocks.items():
            if number < count:
                tenants.insert(f"{tenant}{number}", None, 0, tenant)
    return tenants


def test_who_is_most_over_its_quota_goes_first_and_only_down_to_it() -> None:
    tenants = filled(Tenants[str](LRU, {"a": 2, "b": 2, "c": 9}), a=3, b=5, c=4)
    assert tenants.over_quota() == {"b": 3, "a": 1}
    assert tenants.victims(3, nobody) == ["b0", "b1", "a0"]
    assert tenants.victims(4, nobody) == ["b0", "b1", "a0", "b2"]
    # Now nobody is over: the oldest of all go.
    assert tenants.victims(7, nobody)[4:] == ["c0", "a1", "c1"]


def test_victims_at_once_or_one_by_one_are_the_same() -> None:
    at_once = filled(Tenants[str](LRU, {"a": 1, "b": 2}), a=4, b=6, c=3)
    one_by_one = filled(Tenants[str](LRU, {"a": 1, "b": 2}), a=4, b=6, c=3)
    found: list[str] = []
    while one_by_one:
        found += one_by_one.victims(1, nobody)
        one_by_one.remove(found[-1])
    assert at_once.victims(99, nobody) == found


def test_a_parent_that_is_over_quota_goes_as_soon_as_anothers_child_of_it_has_gone() -> None:
    tenants = Tenants[str](LRU, {"host": 0})
    tenants.insert("guest's child", "host's", 1, "guest")
    tenants.insert("guest's", None, 0, "guest")
    tenants.insert("host's", None, 0, "host")
    assert tenants.victims(9, nobody) == ["guest's child", "host's", "guest's"]
    assert tenants.victims(9, lambda key: key == "host's") == ["guest's child", "guest's"]
    assert tenants.victims(9, lambda key: key == "guest's child") == ["guest's"]


def test_the_parent_comes_first_by_name_when_the_child_that_went_was_over_quota_as_well() -> None:
    tenants = Tenants[str](LRU, default_quota=0)
    tenants.insert("of c", None, 0, "c")
    tenants.insert("of a", None, 0, "a")
    tenants.insert("of b, child of a's", "of a", 1, "b")
    assert tenants.victims(9, nobody) == ["of b, child of a's", "of a", "of c"]


def test_a_tenant_whose_blocks_are_all_in_use_leaves_it_to_the_others() -> None:
    tenants = filled(Tenants[str](LRU, {"a": 0}), a=3, b=2)
    assert tenants.victims(1, lambda key: key.startswith("a")) == ["b0"]


def test_the_default_quota_is_for_those_who_have_none_of_their_own() -> None:
    tenants = filled(Tenants[str](LRU, {"a": 5}, default_quota=1), a=3, b=3)
    assert tenants.over_quota() == {"b": 2}
    assert tenants.victims(3, nobody) == ["b0", "b1", "a0"]


def test_a_hard_quota_is_made_room_in_from_the_tenants_own_blocks() -> None:
    tenants = filled(Tenants[str](LRU, {"a": 4}), a=4, b=4)
    assert tenants.excess("a") == 0
    assert tenants.excess("a", adding=2) == 2
    assert tenants.victims(2, nobody, tenant="a") == ["a0", "a1"]
    assert tenants.excess("b", adding=100) == 0
    assert tenants.excess("nobody yet", adding=100) == 0
    assert tenants.victims(2, nobody, tenant="nobody yet") == []


def test_a_block_has_one_owner() -> None:
    tenants = filled(Tenants[str](LRU), a=2, b=2)
    with pytest.raises(ValueError, match="in the tier already"):
        tenants.insert("a0", None, 0, "b")
    with pytest.raises(ValueError, match="in the tier already"):
        tenants.insert_many(["x", "b1"], [None, None], [0, 0], ["a", "a"])
    with pytest.raises(ValueError, match="named twice"):
        tenants.insert_many(["x", "x"], [None, None], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="2 blocks of 1 tenants"):
        tenants.insert_many(["x", "y"], [None, None], [0, 0], ["a"])
    assert len(tenants) == 4


def test_a_negative_quota_is_refused() -> None:
    with pytest.raises(UsageError, match="quota of a is -1 blocks: expected 0 or more"):
        Tenants[str](LRU, {"a": -1})
    with pytest.raises(UsageError, match="quota of the others is -2 blocks"):
        Tenants[str](LRU, {}, -2)


def test_nothing_is_kept_of_tenants_without_blocks() -> None:
    made: list[weakref.ref[LRU[str]]] = []

    def make() -> LRU[str]:
        policy = LRU[str]()
        made.append(weakref.ref(policy))
        return policy

    tenants = Tenants[str](make)
    tenants.insert("stays", None, 0, "stays")
    for number in range(50):
        tenants.insert("guest", None, 0, f"guest {number}")
        tenants.remove("guest")
    asked = Asked()
    assert tenants.victims(9, asked) == ["stays"]
    assert asked == ["stays"]
    assert len(made) == 51
    assert sum(policy() is not None for policy in made) == 1


class Block:
    """A key that can be watched."""


def test_nothing_is_kept_of_a_block_that_left() -> None:
    tenants = Tenants[Block](LRU)
    blocks = [Block() for _ in range(8)]
    for number, block in enumerate(blocks):
        tenants.insert(block, None, 0, "ab"[number % 2])
    tenants.touch(blocks)
    watched = [weakref.ref(block) for block in blocks]
    for number in range(6):
        tenants.remove(blocks[number])
    blocks.clear()
    assert [block() is not None for block in watched] == [False] * 6 + [True] * 2


def test_a_request_of_two_tenants_is_taken_from_its_tail() -> None:
    tenants = filled(Tenants[str](LRU), a=2, b=2)
    tenants.touch(["a0", "a1", "b0"])
    assert tenants.victims(9, nobody) == ["b1", "b0", "a1", "a0"]


def test_many_tenants_are_not_all_asked_for_all_victims() -> None:
    tenants = Tenants[str](LRU)
    filled(tenants, **{f"t{number:03}": 20 for number in range(100)})
    asked = Asked()
    victims = tenants.victims(50, asked)
    assert victims == [f"t{number:03}0" for number in range(50)]
    assert len(asked) <= 4 * 100  # all of 50 from each of 100 would be 2,000 blocks
