"""From a trace to the parameters of its twin: counts and quantiles, nothing of a single request.

What is still to come when a trace ends is allowed for: a request near the end had less time to be
followed, so lags are weighted by how many requests could have shown them (as Kaplan and Meier do).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace.shape import (
    BLOCK_EDGES,
    DEEP,
    DEPTH_EDGES,
    MATCH_KINDS,
    MOST_NEXT,
    OUTPUT_BINS,
    PROBABILITIES,
    Group,
    Shape,
)
from kvbench.sim.trace.stats import seen_before

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEAST_REQUESTS = 100
_LEAST = 20  # of a cell; with fewer its row, or all, says more
_FAN_OUT = 8  # so many different blocks after one: it ends a shared prefix, not a turn
_MOST_GROUPS = 64
_LEAST_EXPOSURE = 0.05  # of requests that could have shown a lag; rarer ones would weigh too much
_MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class _Turns:
    """Which request follows which. Arrays of n; rows of the later turns in `later`."""

    blocks: I64
    matched: I64  # leading blocks that were used before
    shared: I64  # of these, of a prefix that many share
    group: I64  # the block that ends it, or -1
    parent: I64  # the request whose turn it follows, or -1
    depth: I64  # turns before
    later: I64

    @property
    def parents(self) -> I64:
        return self.parent[self.later]


def fit_shape(columns: Columns, source: str) -> Shape:
    """The shape of a trace. One with lengths only gives a twin in which nothing is used again.

    Raises:
        UsageError: it has too few requests, or all at one time.
    """
    if columns.requests < LEAST_REQUESTS or columns.arrival_s[-1] <= 0:
        raise UsageError(
            f"{columns.name} has {columns.requests} requests in {columns.arrival_s[-1]:g} s: "
            f"a twin is fitted to at least {LEAST_REQUESTS}, and not all at one time"
        )
    turns = _turns(columns)
    groups, of_group = _groups(turns)
    beyond = columns.input_tokens - of_group * columns.block_tokens
    gap_ms, begin, tick_ms = _arrivals(columns, turns)
    lags_s, weights = _lags(columns, turns)
    edges = np.quantile(columns.input_tokens, np.arange(1, OUTPUT_BINS) / OUTPUT_BINS)
    match, branch_share, branch_tokens, added = _matches(columns, turns)
    return Shape(
        source=source,
        block_tokens=columns.block_tokens,
        most_tokens=int(columns.input_tokens.max()),
        tick_ms=tick_ms,
        gap_ms=gap_ms,
        begin=begin,
        groups=groups,
        first_tokens=_quantiles(beyond[turns.parent < 0]),
        output_edges=[float(round(edge)) for edge in edges],
        output_tokens=_outputs(columns, turns, edges),
        next_turns=_next_turns(columns, turns, lags_s, weights),
        lag_ms=_by_cell(turns, lags_s * _MS_PER_S, weights),
        match=match,
        added_tokens=added,
        branch_share=branch_share,
        branch_tokens=branch_tokens,
    )


def _turns(columns: Columns) -> _Turns:
    requests = columns.requests
    blocks = np.diff(columns.starts)
    if not columns.has_blocks:
        none = np.zeros(requests, np.int64)
        blocks = -(-columns.input_tokens.astype(np.int64) // columns.block_tokens)
        return _Turns(blocks, none, none, none - 1, none - 1, none, none[:0])
    matched = seen_before(columns)
    shared, group = _shared(columns)
    follows = matched > shared
    request_of = np.repeat(np.arange(requests), blocks)
    order = np.argsort(columns.ids, kind="stable")  # uses of a block one after the other
    before = np.full(len(columns.ids), -1, np.int64)
    same = columns.ids[order][1:] == columns.ids[order][:-1]
    before[order[1:][same]] = order[:-1][same]
    deepest = columns.starts[:-1] + np.maximum(matched, 1) - 1
    parent = np.where(follows, request_of[before[deepest]], -1)
    depth = [0] * requests
    for i, above in enumerate(parent.tolist()):
        if above >= 0:
            depth[i] = depth[above] + 1
    return _Turns(
        blocks, matched, shared, group, parent, np.array(depth), np.flatnonzero(parent >= 0)
    )


def _shared(columns: Columns) -> tuple[I64, I64]:
    """Blocks of the prefix that a request shares with many, and the id that ends it."""
    ids, starts = columns.ids, columns.starts
    first = np.full(columns.unique_blocks, -1, np.int64)
    first[ids[::-1]] = np.arange(len(ids) - 1, -1, -1)
    at = np.arange(len(ids)) - np.repeat(starts[:-1], np.diff(starts))
    inner = first[at[first] > 0]
    fan_out = np.bincount(ids[inner - 1], minlength=columns.unique_blocks)
    depth = np.where(fan_out[ids] >= _FAN_OUT, at + 1, 0)
    shared = np.maximum.reduceat(depth, starts[:-1])
    group = np.where(shared > 0, ids[starts[:-1] + np.maximum(shared, 1) - 1], -1)
    return shared, group


def _groups(turns: _Turns) -> tuple[list[Group], I64]:
    """The shared prefixes that first requests begin with most, and how much of each is one."""
    first = turns.parent < 0
    names, counts = np.unique(turns.group[first & (turns.group >= 0)], return_counts=True)
    kept = np.argsort(-counts, kind="stable")[:_MOST_GROUPS]
    groups: list[Group] = []
    blocks = np.zeros(len(turns.parent), np.int64)
    for name, count in zip(names[kept], counts[kept], strict=True):
        members = turns.group == name
        length = int(turns.shared[members][0])
        share = float(count) / np.count_nonzero(first)
        groups.append(Group(share=float(np.floor(share * 1e6) / 1e6), blocks=length))
        blocks[members] = length
    return groups, blocks


def _arrivals(columns: Columns, turns: _Turns) -> tuple[list[float], list[float], int]:
    """Gaps, how many conversations begin after each, and the tick in ms."""
    first = turns.parent < 0
    times_s = np.unique(columns.arrival_s)
    gaps_s = np.diff(times_s)
    low, middle, high = np.quantile(gaps_s, (0.1, 0.5, 0.9))
    # Together and evenly: the trace was rounded to a tick, or the service batches
    ticks = len(times_s) < columns.requests / 2 and high < 1.5 * low
    if not ticks:
        times_s = np.unique(columns.arrival_s[first])
        gaps_s = np.diff(times_s) if len(times_s) > 1 else gaps_s
    begun = np.bincount(np.searchsorted(times_s, columns.arrival_s[first]), minlength=len(times_s))
    counts = np.bincount(begun)
    return (
        _quantiles(gaps_s * _MS_PER_S, digits=3),
        _shares(counts),
        round(float(middle) * _MS_PER_S) if ticks else 0,
    )


def _lags(columns: Columns, turns: _Turns) -> tuple[F64, F64]:
    """Seconds to each later turn, and how much it weighs for those that came after the end."""
    lags_s = columns.arrival_s[turns.later] - columns.arrival_s[turns.parents]
    left_s = np.sort(columns.arrival_s[-1] - columns.arrival_s)
    exposed = 1 - np.searchsorted(left_s, lags_s) / columns.requests
    return lags_s, 1 / np.maximum(exposed, _LEAST_EXPOSURE)


def _next_turns(columns: Columns, turns: _Turns, lags_s: F64, weights: F64) -> list[list[float]]:
    """Turns that follow a request, had the trace gone on."""
    order = np.argsort(lags_s)
    share = np.concatenate(([0.0], np.cumsum(weights[order]))) / max(weights.sum(), 1e-9)
    left_s = columns.arrival_s[-1] - columns.arrival_s
    seen = share[np.searchsorted(lags_s[order], left_s, side="right")]
    followed = np.bincount(turns.parents, minlength=columns.requests)
    depths, sizes = _depth(turns.depth), _size(turns.blocks)
    overall = _rate(followed, seen, np.ones(columns.requests, bool), 0.0)
    rows: list[list[float]] = []
    for depth in range(len(DEPTH_EDGES) + 1):
        row = _rate(followed, seen, depths == depth, overall)
        cells = range(len(BLOCK_EDGES) + 1)
        rows.append([_rate(followed, seen, (depths == depth) & (sizes == c), row) for c in cells])
    return rows


def _rate(followed: I64, seen: F64, which: Flags, otherwise: float) -> float:
    if np.count_nonzero(which) < _LEAST:
        return otherwise
    rate = followed[which].sum() / max(float(seen[which].sum()), 1e-9)
    return round(min(float(rate), MOST_NEXT), 4)


def _matches(
    columns: Columns, turns: _Turns
) -> tuple[list[list[float]], list[float], list[float], list[list[list[float]]]]:
    """How later turns go on from those before; see `Shape`."""
    parents, later, size = turns.parents, turns.later, columns.block_tokens
    tokens = columns.input_tokens.astype(np.int64)
    full, matched = tokens[parents] // size, turns.matched[later]
    behind = full - matched
    whole = (matched == turns.blocks[parents]) & (tokens[later] == tokens[parents])
    kind = np.select([whole, behind <= 0, behind == 1], [0, 1, 2], default=len(MATCH_KINDS) - 1)
    kinds = [kind[_size(turns.blocks[parents]) == c] for c in range(len(BLOCK_EDGES) + 1)]
    match = [
        _shares(np.bincount(each if len(each) >= _LEAST else kind, minlength=len(MATCH_KINDS)))
        for each in kinds
    ]
    branch = kind == len(MATCH_KINDS) - 1
    added = tokens[later] - tokens[parents] - columns.output_tokens[parents]
    turn = (kind > 0) & ~branch
    return (
        match,
        _quantiles(matched[branch] / np.maximum(full[branch], 1), digits=4),
        _quantiles(tokens[later][branch] - matched[branch] * size),
        _by_cell(turns, added.astype(np.float64), turn.astype(np.float64)),
    )


def _outputs(columns: Columns, turns: _Turns, edges: F64) -> list[list[list[float]]]:
    bins = np.searchsorted(edges, columns.input_tokens, side="right")
    found: list[list[list[float]]] = []
    for of_turn in (turns.parent < 0, turns.parent >= 0):
        values = [
            _enough(columns.output_tokens, of_turn & (bins == b), bins == b)
            for b in range(OUTPUT_BINS)
        ]
        found.append([_quantiles(v if len(v) else columns.output_tokens) for v in values])
    return found


def _by_cell(turns: _Turns, values: F64, weights: F64) -> list[list[list[float]]]:
    """Weighted quantiles of later turns by depth (DEEP or not) and blocks of the one before."""
    sizes, deep = _size(turns.blocks[turns.parents]), turns.depth[turns.parents] >= DEEP
    some = weights > 0
    rows: list[list[list[float]]] = []
    for depth in (~deep & some, deep & some):
        otherwise = depth if np.count_nonzero(depth) >= _LEAST else some
        cells = [depth & (sizes == size) for size in range(len(BLOCK_EDGES) + 1)]
        which = [cell if np.count_nonzero(cell) >= _LEAST else otherwise for cell in cells]
        rows.append([_quantiles(values[cell], weights=weights[cell]) for cell in which])
    return rows


def _enough(values: NDArray[np.integer], which: Flags, otherwise: Flags) -> NDArray[np.integer]:
    return values[which if np.count_nonzero(which) >= _LEAST else otherwise]


def _quantiles(
    values: NDArray[np.integer] | F64, *, weights: F64 | None = None, digits: int = 0
) -> list[float]:
    """At PROBABILITIES, rounded; all 0 if there is no value."""
    if len(values) == 0:
        return [0.0] * len(PROBABILITIES)
    found = (
        np.quantile(values, PROBABILITIES)
        if weights is None
        else np.quantile(values, PROBABILITIES, weights=weights, method="inverted_cdf")
    )
    return [round(float(each), digits) for each in found]


def _shares(counts: I64) -> list[float]:
    """As probabilities that add up to 1; the first where there is nothing."""
    total = int(counts.sum())
    if total == 0:
        return [1.0] + [0.0] * (len(counts) - 1)
    return [float(count) / total for count in counts]


def _depth(depth: I64) -> I64:
    return np.searchsorted(DEPTH_EDGES, depth, side="right")


def _size(blocks: I64) -> I64:
    return np.searchsorted(BLOCK_EDGES, blocks, side="right")
