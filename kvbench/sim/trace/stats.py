"""What a trace is like: lengths, arrivals, reuse, ideal hit rates by definition, the LRU curve."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.curve import Curve, lru_curve

SCHEMA = "kvbench.trace-stats/1"
SHARES_OF_UNIQUE = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)  # capacities shown by default
SHARES_OF_CEILING = (0.5, 0.9, 0.99)

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and percentiles, linear between order statistics."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Ideal(msgspec.Struct, frozen=True, kw_only=True):
    """Hit rates of a pool that never evicts, 0 to 1, by definition.

    A request has m blocks and n tokens of input; k leading blocks were seen before; b tokens are a
    block.
    """

    block: float  # sum k / sum m
    token: float  # sum min(k b, n) / sum n
    half_block: float  # token, and b / 2 more for each request with 0 < k < m
    mean_of_requests_token: float  # mean of min(k b, n) / n
    mean_of_requests_block: float  # mean of k / m
    full_blocks_only: float  # the last partial block left out of both sums
    last_block_never: float  # sum min(k, m - 1) / sum m


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """LRU hit rates at one capacity."""

    capacity_blocks: int
    block: float
    token: float
    half_block: float


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """What is used again."""

    block_tokens: int
    references: int
    unique_blocks: int
    distinct_first_blocks: int
    reused_share: float  # of unique blocks, used more than once
    first_reuse_s: Spread | None  # from a block's first use to its second; None: no block has one
    top_1_percent_share: float  # of all reuses, those of the 1 % most used blocks
    top_10_percent_share: float
    ideal: Ideal
    curve: list[Point]
    needed_blocks: dict[str, int]  # for so much of the unbounded block hits


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; `reuse` is None for a trace with lengths only."""

    schema: str
    name: str
    digest: str
    requests: int
    duration_s: float
    rate_per_s: float  # requests less one over the duration; 0 without one
    distinct_timestamps: int
    input_tokens: Spread
    output_tokens: Spread
    reuse: Reuse | None
    notes: tuple[str, ...]


def trace_stats(columns: Columns, capacities: Sequence[int] = ()) -> tuple[Stats, Curve | None]:
    """The statistics of a trace, and its curve if it has one.

    Args:
        columns: the trace.
        capacities: in blocks, where the curve is listed; by default shares of all its blocks.

    Raises:
        UsageError: a capacity is below 1.
    """
    for capacity in capacities:
        if capacity < 1:
            raise UsageError(f"capacity {capacity}: expected at least 1 block")
    duration_s = float(columns.arrival_s[-1])
    curve = lru_curve(columns) if columns.has_blocks else None
    stats = Stats(
        schema=SCHEMA,
        name=columns.name,
        digest=columns.digest,
        requests=columns.requests,
        duration_s=duration_s,
        rate_per_s=(columns.requests - 1) / duration_s if duration_s > 0 else 0.0,
        distinct_timestamps=int(np.count_nonzero(np.diff(columns.arrival_s))) + 1,
        input_tokens=_spread(columns.input_tokens),
        output_tokens=_spread(columns.output_tokens),
        reuse=None if curve is None else _reuse(columns, curve, capacities),
        notes=columns.notes,
    )
    return stats, curve


def seen_before(columns: Columns) -> I64:
    """How many leading blocks of each request were used before; int64 [n].

    An id names its whole prefix, so what was seen before is always the first blocks.
    """
    first = np.full(columns.unique_blocks, -1, np.int64)
    first[columns.ids[::-1]] = np.arange(len(columns.ids) - 1, -1, -1)
    again = first[columns.ids] < np.arange(len(columns.ids))
    sums = np.concatenate(([0], np.cumsum(again)))
    return sums[columns.starts[1:]] - sums[columns.starts[:-1]]


def reuse_gaps_s(columns: Columns) -> tuple[F64, F64]:
    """Seconds since the last use of each reference that has one, and of each second use."""
    order = np.argsort(columns.ids, kind="stable")
    ids = columns.ids[order]
    when_s = np.repeat(columns.arrival_s, np.diff(columns.starts))[order]
    same = ids[1:] == ids[:-1]
    gaps_s = (when_s[1:] - when_s[:-1])[same]
    second = np.concatenate(([True], ~same[:-1]))[same]  # the pair before is of another block
    return gaps_s, gaps_s[second]


def ideal_rates(columns: Columns, curve: Curve) -> Ideal:
    """The unbounded hit rate in each definition."""
    size, found = columns.block_tokens, seen_before(columns)
    blocks = np.diff(columns.starts)
    tokens = columns.input_tokens.astype(np.int64)
    full = tokens // size
    unbounded = curve.unbounded
    return Ideal(
        block=unbounded.block,
        token=unbounded.token,
        half_block=unbounded.half_block,
        mean_of_requests_token=float(np.mean(np.minimum(found * size, tokens) / tokens)),
        mean_of_requests_block=float(np.mean(found / blocks)),
        full_blocks_only=float(np.minimum(found, full).sum() / max(1, full.sum())),
        last_block_never=float(np.minimum(found, blocks - 1).sum() / blocks.sum()),
    )


def _reuse(columns: Columns, curve: Curve, capacities: Sequence[int]) -> Reuse:
    unique = columns.unique_blocks
    uses = np.sort(np.bincount(columns.ids, minlength=unique))[::-1]
    again, all_again = uses - 1, len(columns.ids) - unique
    _, first_s = reuse_gaps_s(columns)
    some = np.diff(columns.starts) > 0
    shown = capacities or sorted({max(1, round(share * unique)) for share in SHARES_OF_UNIQUE})
    return Reuse(
        block_tokens=columns.block_tokens,
        references=len(columns.ids),
        unique_blocks=unique,
        distinct_first_blocks=len(np.unique(columns.ids[columns.starts[:-1][some]])),
        reused_share=float(np.count_nonzero(again) / unique),
        first_reuse_s=_spread(first_s) if len(first_s) else None,
        top_1_percent_share=_top(again, 0.01, all_again),
        top_10_percent_share=_top(again, 0.1, all_again),
        ideal=ideal_rates(columns, curve),
        curve=[point(curve, capacity) for capacity in shown],
        needed_blocks={f"{share:.0%}": curve.capacity_for(share) for share in SHARES_OF_CEILING},
    )


def point(curve: Curve, capacity_blocks: int) -> Point:
    """The curve at one capacity."""
    rates = curve.at(capacity_blocks)
    return Point(
        capacity_blocks=capacity_blocks,
        block=rates.block,
        token=rates.token,
        half_block=rates.half_block,
    )


def _top(again: I64, share: float, all_again: int) -> float:
    count = max(1, round(share * len(again)))
    return float(again[:count].sum() / max(1, all_again))


def _spread(values: NDArray[np.int32] | F64) -> Spread:
    p50, p90, p99 = (float(each) for each in np.percentile(values, (50, 90, 99)))
    return Spread(mean=float(np.mean(values)), p50=p50, p90=p90, p99=p99, max=float(np.max(values)))
