"""Statistics of a trace, by hand and against what is known of the conversation trace."""

import json
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace import read_columns
from kvbench.sim.trace.stats import Reuse, reuse_gaps_s, seen_before, trace_stats
from tests.sim.traces import CONVERSATION, real_trace

ROWS = [
    (0, 1024 + 512, [0, 1, 2]),
    (1000, 1024, [0, 1]),
    (4000, 600, [0, 3]),
    (4000, 100, [4]),
]


@pytest.fixture
def columns(tmp_path: Path) -> Columns:
    path = tmp_path / "trace.jsonl"
    rows = (
        {"timestamp": ms, "input_length": tokens, "output_length": 10 * tokens, "hash_ids": ids}
        for ms, tokens, ids in ROWS
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return read_columns(path)


def reuse_of(columns: Columns, *capacities: int) -> Reuse:
    reuse = trace_stats(columns, capacities)[0].reuse
    assert reuse is not None
    return reuse


def test_counts_by_hand(columns: Columns) -> None:
    stats, _ = trace_stats(columns)
    reuse = reuse_of(columns)
    assert (stats.requests, stats.duration_s, stats.rate_per_s) == (4, 4.0, 0.75)
    assert stats.distinct_timestamps == 3
    assert (stats.input_tokens.mean, stats.input_tokens.p50, stats.input_tokens.max) == (
        815.0,
        812.0,
        1536.0,
    )
    assert stats.output_tokens.mean == 8150.0
    assert (reuse.references, reuse.unique_blocks, reuse.distinct_first_blocks) == (8, 5, 2)
    assert reuse.reused_share == pytest.approx(2 / 5)
    assert reuse.top_10_percent_share == pytest.approx(2 / 3)  # block 0: used again twice of 3


def test_every_definition_of_the_ideal_hit_rate_by_hand(columns: Columns) -> None:
    ideal = reuse_of(columns).ideal
    # k = 0, 2, 1, 0 of m = 3, 2, 2, 1; n = 1536, 1024, 600, 100
    assert seen_before(columns).tolist() == [0, 2, 1, 0]
    assert ideal.block == pytest.approx(3 / 8)
    assert ideal.token == pytest.approx((1024 + 512) / 3260)
    assert ideal.half_block == pytest.approx((1024 + 512 + 256) / 3260)
    assert ideal.mean_of_requests_token == pytest.approx((1 + 512 / 600) / 4)
    assert ideal.mean_of_requests_block == pytest.approx((1 + 0.5) / 4)
    assert ideal.full_blocks_only == pytest.approx(3 / 6)
    assert ideal.last_block_never == pytest.approx((1 + 1) / 8)


def test_times_to_reuse_by_hand(columns: Columns) -> None:
    gaps_s, first_s = reuse_gaps_s(columns)
    assert sorted(gaps_s.tolist()) == [1.0, 1.0, 3.0]
    assert sorted(first_s.tolist()) == [1.0, 1.0]


def test_the_curve_is_listed_where_it_was_asked_for(columns: Columns) -> None:
    shown = [(each.capacity_blocks, each.block) for each in reuse_of(columns, 2, 99).curve]
    assert shown == [(2, 0.125), (99, 0.375)]
    with pytest.raises(UsageError, match="capacity 0"):
        trace_stats(columns, [0])


def test_a_trace_with_lengths_only_has_no_reuse(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\n", "utf-8")
    stats, curve = trace_stats(read_columns(path))
    assert (stats.reuse, curve, stats.rate_per_s) == (None, None, 0.0)


def test_the_conversation_trace_has_the_known_statistics() -> None:
    columns = read_columns(real_trace(CONVERSATION), cache=False)
    stats, _ = trace_stats(columns, (1_000,))
    reuse = reuse_of(columns, 1_000)
    assert stats.distinct_timestamps == 1180
    assert stats.input_tokens.p99 == pytest.approx(85400.4)
    assert reuse.distinct_first_blocks == 1
    assert reuse.reused_share == pytest.approx(0.2415, abs=6e-5)
    assert reuse.first_reuse_s is not None
    assert reuse.first_reuse_s.p50 == pytest.approx(147.0)
    ideal = reuse.ideal
    assert [
        ideal.mean_of_requests_token,
        ideal.mean_of_requests_block,
        ideal.full_blocks_only,
        ideal.last_block_never,
    ] == pytest.approx([0.4094, 0.3843, 0.3819, 0.3660], abs=6e-5)
