"""Replays of a trace through one pool: compiled against the policies' own objects, examples."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.policy.names import LEAF, NAMES, ruled
from kvbench.sim.columns import Columns
from kvbench.sim.replay import Order, Replay, oldest_in_use, replay
from kvbench.sim.replay_hits import cached_tokens, hit_ratios
from kvbench.sim.replay_kernels import hold, insert, remove, touch, victim
from kvbench.sim.replay_loops import Blocks, Found, block_by_block
from kvbench.sim.replay_plain import replay_plain
from kvbench.sim.replay_rows import NONE, POOL_WORDS, find_row, front_of, make_pools, park, unpark
from kvbench.sim.trace.read import read_columns
from tests.sim.small_traces import BLOCK_TOKENS, columns_of, conversations, skewed, traces
from tests.sim.traces import CONVERSATION, real_trace

each_policy = pytest.mark.parametrize("name", [*NAMES, "ttl:4", "leaf-ttl:4"])
each_order = pytest.mark.parametrize("order", list(Order))
FLAT = [*(name for name in NAMES if not name.startswith(LEAF)), "ttl:4"]
each_flat = pytest.mark.parametrize("name", FLAT)
IN_TURN = [Order.HEAD_FIRST, Order.TAIL_FIRST]
ROOT = Path(__file__).parents[2]
PLAIN = """
import sys
from kvbench.sim.jit import COMPILES
from kvbench.sim.replay import Order, replay
from tests.sim.small_traces import conversations
assert not COMPILES
columns = conversations(3, 60, 12)
for name in sys.argv[1:]:
    for order in (Order.HEAD_FIRST, Order.TAIL_FIRST):
        print(replay(columns, name, 16, order=order, victims=True).victims.tolist())
"""


def same(one: Replay, other: Replay) -> None:
    assert one.leading.tolist() == other.leading.tolist()
    assert one.victims.tolist() == other.victims.tolist()
    assert one.gone.tolist() == other.gone.tolist()
    assert one.hits.tolist() == other.hits.tolist()


@each_policy
@each_order
@settings(deadline=None, max_examples=15)
@given(columns=traces(), blocks=st.integers(1, 24), ids=st.sampled_from([0, 20_000]))
def test_the_compiled_replay_evicts_the_same_blocks_at_every_request_as_the_policy(
    name: str, order: Order, columns: Columns, blocks: int, ids: int
) -> None:
    # With many ids, pools find theirs by hashing
    columns = replace(columns, unique_blocks=columns.unique_blocks + ids)
    same(
        replay(columns, name, blocks, order=order, victims=True),
        replay_plain(columns, name, blocks, order),
    )


@pytest.fixture(scope="module")
def piece() -> Columns:
    """The first requests of a real trace."""
    whole = read_columns(real_trace(CONVERSATION))
    requests = 150
    ids = whole.ids[: whole.starts[requests]]
    return replace(
        whole,
        arrival_s=whole.arrival_s[:requests],
        input_tokens=whole.input_tokens[:requests],
        output_tokens=whole.output_tokens[:requests],
        starts=whole.starts[: requests + 1],
        ids=ids,
        unique_blocks=int(ids.max()) + 1,
    )


@each_policy
def test_so_it_does_on_a_piece_of_a_real_trace(name: str, piece: Columns) -> None:
    order = Order.AS_THE_STORE if name.startswith("leaf-") else Order.HEAD_FIRST
    compiled = replay(piece, name, 700, victims=True)  # that order is the default
    assert compiled.gone[-1] > 500
    same(compiled, replay_plain(piece, name, 700, order))


@each_policy
@pytest.mark.parametrize("seed", range(2))
def test_so_it_does_on_longer_made_up_traces(name: str, seed: int) -> None:
    talks = conversations(seed, count=150, longest=20)
    single = columns_of([[block] for block in skewed(seed, 1000)])
    for columns in (talks, single):
        for order in Order:
            compiled = replay(columns, name, 32, order=order, victims=True)
            same(compiled, replay_plain(columns, name, 32, order))


def by_rows(columns: Columns, name: str, blocks: int, order: Order) -> Replay:
    """Block by block through the pool that can do all."""
    n = columns.requests
    found = Found(
        leading=np.zeros(n, np.int32),
        hits=np.zeros(n, np.int32),
        gone=np.zeros(n, np.int64),
        victims=np.zeros(len(columns.ids), np.int32),
    )
    asked = Blocks(columns.ids, columns.starts, oldest_in_use(columns, ruled(name)))
    pools = make_pools([name], [blocks], columns.unique_blocks)
    block_by_block(pools, asked, found, order is Order.TAIL_FIRST)
    return Replay(
        leading=found.leading,
        hits=found.hits,
        gone=found.gone,
        victims=found.victims[: found.gone[-1]],
    )


@each_flat
@pytest.mark.parametrize("order", IN_TURN)
@settings(deadline=None, max_examples=25)
@given(
    requests=st.lists(st.lists(st.integers(0, 11), max_size=14), min_size=2, max_size=50),
    few=st.integers(1, 12),
    blocks=st.integers(1, 14),
)
def test_so_it_does_where_a_request_names_a_block_twice_and_blocks_change_their_depth(
    name: str, order: Order, requests: list[list[int]], few: int, blocks: int
) -> None:
    # The fewer ids, the higher their counts
    made = [[0], *([block % few for block in each] for each in requests)]
    columns = columns_of(made)
    dense = replay(columns, name, blocks, order=order, victims=True)
    same(dense, by_rows(columns, name, blocks, order))
    columns = columns_of([[block for block, _ in groupby(each)] for each in made])
    dense = replay(columns, name, blocks, order=order, victims=True)
    same(dense, replay_plain(columns, name, blocks, order))  # no block may follow itself


@each_flat
@pytest.mark.parametrize("blocks", [3, 5, 8])
def test_blocks_that_were_popular_once_stay_as_long_as_the_policy_keeps_them(
    name: str, blocks: int
) -> None:
    later = random.Random(7).choices(range(2, 12), k=300)
    columns = columns_of([[block] for block in [0] * 9 + [1] * 6 + later])
    compiled = replay(columns, name, blocks, order=Order.HEAD_FIRST, victims=True)
    assert len(compiled.victims) > 50
    same(compiled, replay_plain(columns, name, blocks, Order.HEAD_FIRST))


@each_flat
@pytest.mark.parametrize("order", IN_TURN)
def test_a_flat_pool_of_any_size_decides_on_a_real_trace_as_one_that_can_do_all(
    name: str, order: Order
) -> None:
    columns = read_columns(real_trace(CONVERSATION)).first(3000)
    for blocks in (1, 2, 5, 39, 1000, 10_000):
        dense = replay(columns, name, blocks, order=order, victims=True)
        assert dense.gone[-1] > 30_000
        same(dense, by_rows(columns, name, blocks, order))


def test_a_trace_with_more_blocks_than_counts_can_number_is_replayed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = conversations(0, count=60, longest=12)
    dense = replay(columns, "length-aware", 16, victims=True)
    assert len(dense.victims) > 16
    monkeypatch.setattr("kvbench.sim.replay.MOST_COUNTED", len(columns.ids) - 1)
    monkeypatch.delattr("kvbench.sim.replay.make_counts")
    same(replay(columns, "length-aware", 16, victims=True), dense)


def test_without_numba_flat_replays_decide_the_same_and_nothing_overflows() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN, *FLAT],
        cwd=ROOT,
        env={**os.environ, "KVBENCH_NO_NUMBA": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    columns = conversations(3, 60, 12)
    lines = [
        str(replay(columns, name, 16, order=order, victims=True).victims.tolist())
        for name in FLAT
        for order in IN_TURN
    ]
    assert done.stdout.splitlines() == lines


@settings(deadline=None, max_examples=60)
@given(columns=traces(), blocks=st.integers(1, 24))
def test_under_lru_blocks_that_are_found_at_their_turn_are_those_of_the_prefix(
    columns: Columns, blocks: int
) -> None:
    found = replay(columns, "lru", blocks)
    assert found.hits.tolist() == found.leading.tolist()


@settings(deadline=None, max_examples=40)
@given(columns=traces(), name=st.sampled_from([*NAMES]), extra=st.integers(0, 9))
def test_a_pool_with_room_for_all_finds_all_that_came_before(
    columns: Columns, name: str, extra: int
) -> None:
    found = replay(columns, name, columns.unique_blocks + extra)
    seen: set[int] = set()
    for number, start in enumerate(columns.starts[:-1]):
        request = columns.ids[start : columns.starts[number + 1]].tolist()
        assert (
            found.leading[number] == found.hits[number] == sum(block in seen for block in request)
        )
        seen.update(request)
    assert found.hits.tolist() == found.leading.tolist()
    assert found.gone[-1] == 0


def test_hits_are_counted_by_every_definition() -> None:
    # 3 blocks of 43 tokens; the same and 2 more, of 75 tokens; one other of 11
    columns = columns_of([[0, 1, 2], [0, 1, 2, 3, 4], [7]])
    assert columns.input_tokens.tolist() == [43, 75, 11]
    found = hit_ratios(columns, replay(columns, "lru", 9))
    assert found.block == found.any_block == found.not_the_last == 3 / 9
    assert found.token == 48 / 129
    assert found.half_block == (48 + BLOCK_TOKENS / 2) / 129
    assert found.mean_tokens == pytest.approx(48 / 75 / 3)
    assert found.mean_blocks == pytest.approx(3 / 5 / 3)
    assert found.full_blocks == 3 / 6
    assert hit_ratios(columns, replay(columns, "lru", 9), first=1).block == 3 / 6
    again = columns_of([[0, 1], [0, 1]])
    assert cached_tokens(again, replay(again, "lru", 2)).tolist() == [0, 26]
    assert hit_ratios(again, replay(again, "lru", 2)).not_the_last == 1 / 4


def test_a_block_behind_a_hole_is_here_and_not_found() -> None:
    columns = columns_of([[0, 1], [2], [0, 1]])
    found = replay(columns, "fifo", 2)
    assert found.leading.tolist() == [0, 0, 0]
    assert found.hits.tolist() == [0, 0, 0]  # bringing 0 in pushes 1 out
    found = replay(columns, "fifo", 2, order=Order.AS_THE_STORE)
    assert found.leading.tolist() == [0, 0, 0]
    assert found.hits.tolist() == [0, 0, 1]


def test_blocks_expire_when_nobody_asks_for_them() -> None:
    columns = columns_of([[0, 1], [0], [0, 1], [0, 1]], [0.0, 5.0, 11.0, 21.5])
    assert replay(columns, "ttl:10", 9).leading.tolist() == [0, 1, 1, 0]
    assert replay(columns, "ttl:10.5", 9).leading.tolist() == [0, 1, 1, 2]
    assert replay(columns, "lru", 9).leading.tolist() == [0, 1, 2, 2]


def test_pools_that_share_a_memory_do_not_know_of_each_other() -> None:
    memory = make_pools(["lru", "leaf-arc", "lfu"], [2, 2, 2], unique_blocks=1_000_000)
    for pool in range(3):
        place = pool * POOL_WORDS
        insert(memory, place, 7 + pool, NONE, 0)
        insert(memory, place, 999_999 - pool, NONE, 0)
        assert [touch(memory, place, block) for block in (7, 8, 9)] == [pool == n for n in range(3)]
        assert victim(memory, place) == 999_999 - pool
        hold(memory, place, 999_999 - pool)
        assert victim(memory, place) == 7 + pool
        remove(memory, place, 7 + pool)
        assert victim(memory, place) == NONE


def test_a_row_that_steps_aside_again_keeps_its_place() -> None:
    memory = make_pools(["leaf-slru"], [8], unique_blocks=9)
    for block in (3, 4):
        insert(memory, 0, block, NONE, 0)
    older, younger = find_row(memory, 0, 3), find_row(memory, 0, 4)
    park(memory, 0, older)
    park(memory, 0, younger)
    unpark(memory, 0, older)
    assert front_of(memory, 0, 0) == older
    park(memory, 0, older)
    assert front_of(memory, 0, 0) == older
    unpark(memory, 0, younger)
    unpark(memory, 0, older)
    assert victim(memory, 0) == 3


def test_a_full_pool_takes_no_block() -> None:
    memory = make_pools(["lru"], [1], unique_blocks=9)
    insert(memory, 0, 3, NONE, 0)
    with pytest.raises(IndexError, match="no room for another block"):
        insert(memory, 0, 4, NONE, 0)


def test_what_cannot_be_replayed_is_refused() -> None:
    columns = columns_of([[0]])
    with pytest.raises(UsageError, match="a pool of 0 blocks: expected at least 1"):
        replay(columns, "lru", 0)
    with pytest.raises(UsageError, match="no eviction policy is called 'belady'"):
        replay(columns, "belady", 9)
    lengths_only = replace(columns, ids=columns.ids[:0], starts=np.zeros(2, np.int64))
    with pytest.raises(UsageError, match="trace small has lengths only"):
        replay(lengths_only, "lru", 9)
