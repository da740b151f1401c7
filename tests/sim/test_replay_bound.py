"""The offline bound, against a slow one and against every policy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.policy.names import NAMES
from kvbench.sim.columns import Columns
from kvbench.sim.replay import Order, replay
from kvbench.sim.replay_bound import bound
from kvbench.sim.replay_plain import requests
from tests.sim.small_traces import columns_of, traces


def slow_bound(columns: Columns, blocks: int) -> tuple[list[int], list[int]]:
    """Hits of each request, and what went: of the leaves, the block that is used again last."""
    made = [request for _, request in requests(columns)]
    flat = [(number, block) for number, request in enumerate(made) for block in request]
    parents = {b: a for request in made for a, b in zip([None, *request], request, strict=False)}
    here: set[int] = set()
    hits = [0] * len(made)
    gone: list[int] = []

    def next_use(block: int, now: int) -> tuple[int, int]:
        uses = (at for at in range(now + 1, len(flat)) if flat[at][1] == block)
        depth, above = 0, parents[block]
        while above is not None:
            depth, above = depth + 1, parents[above]
        return next(uses, len(flat)), depth  # of those never used again, the deepest

    for now, (number, block) in enumerate(flat):
        if block in here:
            hits[number] += 1
            continue
        if len(here) == blocks:
            leaves = here - {parents[other] for other in here}
            last = max(leaves, key=lambda each: (next_use(each, now), -each))
            if next_use(last, now) <= next_use(block, now):
                continue
            here.remove(last)
            gone.append(last)
        here.add(block)
    return hits, gone


@settings(deadline=None, max_examples=60)
@given(columns=traces(most_blocks=14), blocks=st.integers(1, 10))
def test_the_leaf_that_is_used_again_last_goes(columns: Columns, blocks: int) -> None:
    found = bound(columns, blocks, victims=True)
    hits, gone = slow_bound(columns, blocks)
    assert found.hits.tolist() == hits
    assert found.leading.tolist() == hits  # it never leaves a hole
    assert found.victims.tolist() == gone


@settings(deadline=None, max_examples=40)
@given(columns=traces(), blocks=st.integers(1, 16), name=st.sampled_from([*NAMES]))
def test_no_policy_finds_more(columns: Columns, blocks: int, name: str) -> None:
    best = int(bound(columns, blocks).hits.sum())
    for order in (Order.HEAD_FIRST, Order.AS_THE_STORE):
        assert int(replay(columns, name, blocks, order=order).hits.sum()) <= best
        assert int(replay(columns, name, blocks, order=order).leading.sum()) <= best


def test_foresight_keeps_what_comes_again_from_a_scan() -> None:
    scan = [[number] for number in range(10, 20)]
    columns = columns_of([[0, 1], *scan, [0, 1], *scan, [0, 1]])
    assert bound(columns, 2).leading.tolist() == [0, *[0] * 10, 2, *[0] * 10, 2]
    assert replay(columns, "lru", 2).leading.sum() == 0


def test_a_bound_needs_blocks() -> None:
    columns = columns_of([[0]])
    lengths_only = replace(columns, ids=columns.ids[:0], starts=np.zeros(2, np.int64))
    with pytest.raises(UsageError, match="has lengths only"):
        bound(lengths_only, 4)
    with pytest.raises(UsageError, match="a pool of 0 blocks: expected at least 1"):
        bound(columns, 0)
