"""Figures of the conversation trace (Mooncake, FAST'25) that others computed with other programs.

Skipped where the trace is not. The values are those of plain replays in Python, of libCacheSim
0.3.5 (block hits) and of kvcache-simulator 0.1.3 (the last half of the requests); none is ours.
"""

import numpy as np
import pytest

from kvbench.sim.columns import Columns
from kvbench.sim.jit import COMPILES
from kvbench.sim.replay import Order, replay
from kvbench.sim.replay_bound import bound
from kvbench.sim.replay_hits import cached_tokens, hit_ratios
from kvbench.sim.trace.read import read_columns
from tests.sim.traces import CONVERSATION, real_trace

DIGITS = 5e-5  # four digits are given
POOLS = (1_000, 10_000, 30_000, 50_000, 100_000)


pytestmark = pytest.mark.skipif(not COMPILES, reason="needs numba: it would take minutes without")


@pytest.fixture(scope="module")
def conversation() -> Columns:
    return read_columns(real_trace(CONVERSATION))


@pytest.mark.parametrize(
    ("blocks", "block", "token", "half_block"),
    [
        (19, 0.0253, 0.0258, 0.0387),
        (1_000, 0.0445, 0.0454, 0.0666),
        (10_000, 0.2112, 0.2153, 0.2364),
        (30_000, 0.3257, 0.3321, 0.3532),
        (50_000, 0.3546, 0.3615, 0.3826),
        (100_000, 0.3637, 0.3708, 0.3919),
        (200_000, 0.3664, 0.3736, 0.3947),  # more than it has
    ],
)
def test_lru_finds_what_is_published_by_each_definition(
    conversation: Columns, blocks: int, block: float, token: float, half_block: float
) -> None:
    found = hit_ratios(conversation, replay(conversation, "lru", blocks))
    assert found.block == pytest.approx(block, abs=DIGITS)
    assert found.any_block == found.block  # a property of LRU that is touched head first
    assert found.token == pytest.approx(token, abs=DIGITS)
    assert found.half_block == pytest.approx(half_block, abs=DIGITS)


@pytest.mark.parametrize(
    ("blocks", "block", "half_block"),
    [(19, 0.0417, 0.0638), (1_000, 0.0445, 0.0667), (10_000, 0.2116, 0.2369)],
)
def test_lru_touched_from_the_tail_finds_more_in_small_pools(
    conversation: Columns, blocks: int, block: float, half_block: float
) -> None:
    found = hit_ratios(conversation, replay(conversation, "lru", blocks, order=Order.TAIL_FIRST))
    assert found.block == pytest.approx(block, abs=DIGITS)
    assert found.half_block == pytest.approx(half_block, abs=DIGITS)


def test_an_unbounded_pool_finds_what_each_definition_allows(conversation: Columns) -> None:
    found = hit_ratios(conversation, replay(conversation, "lru", conversation.unique_blocks))
    assert found.mean_tokens == pytest.approx(0.4094, abs=DIGITS)
    assert found.mean_blocks == pytest.approx(0.3843, abs=DIGITS)
    assert found.full_blocks == pytest.approx(0.3819, abs=DIGITS)
    assert found.not_the_last == pytest.approx(0.3660, abs=DIGITS)


@pytest.mark.parametrize(
    ("name", "prefix", "any_block"),
    [
        ("fifo", (0.0434, 0.1815, 0.2944, 0.3335, 0.3563), (0.0435, 0.1865, 0.3021, 0.34, 0.3593)),
        ("lfu", (0.0481, 0.1318, 0.2759, 0.3438, 0.3631), None),
        (
            "perfect-lfu",
            (0.0810, 0.1879, 0.2796, 0.3430, 0.3631),
            (0.0811, 0.1879, 0.2796, 0.3430, 0.3631),
        ),
        ("length-aware", (0.0504, 0.1123, 0.2028, 0.2602, 0.3345), None),
        ("arc", None, (0.0529, 0.2225, 0.3108, 0.3433, 0.3631)),
        ("s3fifo", None, (0.0543, 0.1925, 0.2549, 0.2872, 0.3401)),
        ("slru", None, (0.0471, 0.1138, 0.2727, 0.3187, 0.3575)),
        ("2q", None, (0.0541, 0.1849, 0.3062, 0.3423, 0.3593)),
    ],
)
def test_other_policies_find_what_is_published(
    conversation: Columns,
    name: str,
    prefix: tuple[float, ...] | None,
    any_block: tuple[float, ...] | None,
) -> None:
    found = [hit_ratios(conversation, replay(conversation, name, blocks)) for blocks in POOLS]
    if prefix is not None:
        assert [each.block for each in found] == pytest.approx(prefix, abs=DIGITS)
    expected = prefix if any_block is None else any_block
    assert [each.any_block for each in found] == pytest.approx(expected, abs=DIGITS)


@pytest.mark.parametrize(
    ("blocks", "lru", "fifo", "optimal"),
    [
        (3_276, 7.3, 7.1, 32.0),
        (6_553, 15.3, 14.3, 38.6),
        (13_107, 25.0, 21.6, 39.8),
        (26_214, 33.0, 29.0, 39.8),
        (52_428, 37.8, 34.9, 39.8),
    ],
)
def test_the_last_half_of_the_requests_finds_what_kvcache_simulator_says(
    conversation: Columns, blocks: int, lru: float, fifo: float, optimal: float
) -> None:
    # Tokens; its LRU takes leaves only, its FIFO does not. In per cent with one digit.
    half = conversation.requests // 2
    theirs = {"leaf-lru": lru, "fifo": fifo}
    for name, percent in theirs.items():
        found = hit_ratios(conversation, replay(conversation, name, blocks), first=half)
        assert 100 * found.token == pytest.approx(percent, abs=0.051)
    best = hit_ratios(conversation, bound(conversation, blocks), first=half)
    assert 100 * best.token == pytest.approx(optimal, abs=0.051)


def test_at_least_one_token_of_every_request_is_computed(conversation: Columns) -> None:
    found = replay(conversation, "lru", conversation.unique_blocks)
    left = conversation.input_tokens - cached_tokens(conversation, found)
    assert left.min() == 1
    assert np.count_nonzero(left == 1) > 0
