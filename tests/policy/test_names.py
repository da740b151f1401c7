"""Policies by name, flat ones, and what TTL, SLRU, 2Q and ARC are for, by example."""

import re
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import UsageError
from kvbench.policy import NAMES, named
from kvbench.policy.flat import Flat
from kvbench.policy.lru import LRU
from kvbench.policy.names import Kind, ruled
from kvbench.policy.tree import TreePolicy
from kvbench.policy.ttl import TTL

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"


def nobody(key: object) -> bool:
    del key
    return False


def use(policy: TreePolicy[Any], blocks: int, keys: str) -> str:
    """Ask for keys one by one, each alone; those that went, in order."""
    gone = ""
    for key in keys:
        here = key in policy
        policy.touch([key])
        if here:
            continue
        if len(policy) == blocks:
            victims = policy.victims(1, nobody)
            policy.remove_many(victims)
            gone += victims[0]
        policy.insert(key, None, 0)
    return gone


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", NAMES)
def test_a_named_policy_takes_leaves_only_exactly_if_its_name_says_so(name: str) -> None:
    policy = named(name, 8)()
    policy.insert_many(["head", "tail"], [None, "head"], [0, 1])
    # While the tail cannot go, neither can the head if there are to be no holes.
    stays = policy.victims(2, lambda key: key == "tail") == []
    assert stays == name.startswith("leaf-")
    assert sorted(policy.victims(2, nobody)) == ["head", "tail"]


def test_the_manual_has_a_row_for_every_name() -> None:
    rows = set(re.findall(r"^\| `([a-z0-9-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == set(NAMES)


def test_an_unknown_name_is_refused_with_those_that_are_like_it() -> None:
    with pytest.raises(UsageError, match="no eviction policy is called 'lur': expected lru"):
        named("lur", 8)
    with pytest.raises(
        UsageError, match="no eviction policy is called 'leaf-lfx': expected leaf-lfu"
    ):
        ruled("leaf-lfx")
    with pytest.raises(UsageError, match=r"called 'qwerty': expected 2q, arc, .*ttl"):
        ruled("qwerty")
    with pytest.raises(UsageError, match="no eviction policy is called 'deep'"):
        ruled("deep")


def test_ttl_takes_seconds_and_nothing_else_does() -> None:
    assert ruled("ttl:1.5").ttl_s == 1.5
    assert ruled("leaf-ttl").ttl_s == 300
    assert ruled("leaf-ttl:7").kind is Kind.TTL
    for wrong in ("ttl:", "ttl:x", "ttl:0", "ttl:-1", "ttl:nan"):
        with pytest.raises(UsageError, match="expected seconds above 0, as in ttl:60"):
            ruled(wrong)
    with pytest.raises(UsageError, match="'lru:3': only ttl takes a number"):
        ruled("lru:3")


def test_a_policy_needs_a_block_at_least() -> None:
    with pytest.raises(UsageError, match="'arc' for 0 blocks: expected at least 1"):
        named("arc", 0)


# ---------------------------------------------------------------- flat


def test_a_flat_policy_leaves_a_hole() -> None:
    policy = Flat(LRU[str]())
    policy.insert("head", None, 0)
    policy.insert("tail", "head", 1)
    assert policy.victims(2, nobody) == ["head", "tail"]
    assert policy.family.children == {}


def test_a_flat_policy_touches_a_request_from_its_head() -> None:
    policy = Flat(LRU[str]())
    policy.insert_many(["a", "b", "c"], [None, "a", "b"], [0, 1, 2])
    policy.touch(["b", "c"])
    policy.touch(["a"])
    assert policy.victims(3, nobody) == ["b", "c", "a"]


def test_a_flat_policy_refuses_a_block_that_is_its_own_parent() -> None:
    policy = Flat(LRU[str]())
    with pytest.raises(ValueError, match="its own parent"):
        policy.insert("a", "a", 0)
    with pytest.raises(ValueError, match="its own parent"):
        policy.insert_many(["b", "a"], [None, "a"], [0, 0])
    assert len(policy) == 0


# ---------------------------------------------------------------- TTL


def test_a_block_expires_when_its_last_use_is_longer_ago_than_the_ttl() -> None:
    policy = TTL[str](10.0)
    assert policy.expired(0.0) == []
    policy.insert("old", None, 0)
    policy.insert("used", None, 0)
    assert policy.expired(4.0) == []
    policy.touch(["used", "absent"])
    assert policy.expired(10.0) == []  # to the dot
    assert policy.expired(10.5) == ["old"]
    policy.remove("old")
    assert policy.expired(14.0) == []
    assert policy.expired(14.5) == ["used"]


def test_an_expired_block_stays_while_a_child_does() -> None:
    policy = TTL[str](10.0)
    policy.expired(0.0)
    policy.insert_many(["head", "tail"], [None, "head"], [0, 1])
    policy.expired(5.0)
    policy.touch(["tail"])
    assert policy.expired(12.0) == []
    assert policy.expired(16.0) == ["tail", "head"]


def test_a_ttl_has_to_be_positive() -> None:
    with pytest.raises(UsageError, match=r"ttl_s is 0\.0: expected more than 0"):
        TTL[str](0.0)


# ---------------------------------------------------------------- queues


def test_slru_keeps_what_was_touched_from_a_scan() -> None:
    # a is lifted out of the lowest segment, c sinks into it; the scan goes through that one alone.
    assert use(named("slru", 8)(), 8, "abcdefgh" + "aa" + "stuvwxyz") == "bcstuvwx"


def test_2q_takes_a_block_for_often_used_when_it_comes_again_after_it_left() -> None:
    policy = named("2q", 4)()
    assert use(policy, 4, "abcd" + "aaaa" + "e") == "a"  # touches in the FIFO do nothing
    assert use(policy, 4, "a") == "b"  # a ghost: into the LRU
    assert use(policy, 4, "vwxyz") == "cdevw"
    assert "a" in policy


def test_arc_gives_room_to_what_its_ghosts_say_it_lacks() -> None:
    policy = named("arc", 4)()
    use(policy, 4, "abcd" + "ab" + "ef")  # a, b often; c, d are ghosts of those used once
    # The target for those used once rises to 1 and e goes, then to 2, which f alone does not reach.
    assert use(policy, 4, "cd") == "ea"
