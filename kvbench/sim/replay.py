"""A trace through one pool of blocks: what it finds there, under any policy of `kvbench.policy`.

Compiled where numba is; `kvbench.sim.replay_plain` does the same with the policies' own objects.
Moves no bytes and knows no times but for TTL's clock, which is that of the arrivals.

May import: kvbench.errors, kvbench.policy, kvbench.sim.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.policy.names import Kind, Rule, ruled
from kvbench.sim.columns import Columns
from kvbench.sim.jit import compiled
from kvbench.sim.replay_dense_counts import KINDS as COUNTED
from kvbench.sim.replay_dense_counts import make_counts, through_counts
from kvbench.sim.replay_dense_queues import KINDS as QUEUED
from kvbench.sim.replay_dense_queues import make_queues, through_queues
from kvbench.sim.replay_line import in_line, make_line
from kvbench.sim.replay_loops import Blocks, Found, as_the_store, block_by_block
from kvbench.sim.replay_rows import make_pools

MOST_TOUCHES = 2**31 - 1  # the clock of the pools is an int32
MOST_COUNTED = MOST_TOUCHES // 8  # references whose rows of counts an int32 can number for sure


class Order(StrEnum):
    """In which order a request uses its blocks."""

    HEAD_FIRST = "head-first"  # one by one; a block that is missing comes in at once
    TAIL_FIRST = "tail-first"  # so too, from the last
    AS_THE_STORE = "store"  # look up and hold, make room for all that is missing, store it


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What n requests found. Simulated."""

    leading: NDArray[np.int32]  # (n,) blocks from the first on that were here when it came
    hits: NDArray[np.int32]  # (n,) blocks that were here when their turn came: with holes, more
    gone: NDArray[np.int64]  # (n,) blocks that had left by its end, since the beginning
    victims: NDArray[np.int32]  # those blocks in order; empty unless they were asked for


def replay(
    columns: Columns,
    eviction: str,
    blocks: int,
    *,
    order: Order | None = None,
    victims: bool = False,
) -> Replay:
    """What each request finds in an empty pool of `blocks` blocks that all before it have used.

    Args:
        columns: the trace.
        eviction: a name of `kvbench.policy.NAMES`.
        blocks: how many fit.
        order: by default as the store for leaf-first policies, and head first for flat ones.
        victims: whether to keep which blocks left.

    Raises:
        UsageError: the trace has no blocks, the pool no room, or no policy has this name.
    """
    rule = ruled(eviction)
    references = len(columns.ids)
    if not columns.has_blocks:
        raise UsageError(f"trace {columns.name} has lengths only: what is used again is not known")
    if blocks < 1:
        raise UsageError(f"a pool of {blocks} blocks: expected at least 1")
    if 2 * references > MOST_TOUCHES:
        raise UsageError(f"a trace of {references} blocks: expected at most {MOST_TOUCHES // 2}")
    if order is None:
        order = Order.AS_THE_STORE if rule.leaf_first else Order.HEAD_FIRST
    n = columns.requests
    found = Found(
        leading=np.zeros(n, np.int32),
        hits=np.zeros(n, np.int32),
        gone=np.zeros(n, np.int64),
        victims=np.zeros(references if victims else 0, np.int32),
    )
    asked = Blocks(columns.ids, columns.starts, oldest_in_use(columns, rule))
    tail_first = order is Order.TAIL_FIRST
    if order is Order.AS_THE_STORE:
        as_the_store(make_pools([eviction], [blocks], columns.unique_blocks), asked, found)
    elif rule.leaf_first or (rule.kind in COUNTED and references > MOST_COUNTED):
        pools = make_pools([eviction], [blocks], columns.unique_blocks)
        block_by_block(pools, asked, found, tail_first)
    else:
        _flat(columns, rule.kind, blocks, asked, found, tail_first)
    kept = int(found.gone[-1]) if victims and n else 0
    return Replay(
        leading=found.leading, hits=found.hits, gone=found.gone, victims=found.victims[:kept]
    )


def _flat(
    columns: Columns, kind: Kind, blocks: int, asked: Blocks, found: Found, tail_first: bool
) -> None:
    """Block by block through a flat policy, on dense rows."""
    ids = columns.unique_blocks
    if kind in COUNTED:
        longest = int(np.diff(columns.starts).max())
        counts = make_counts(kind, blocks, ids, longest)
        through_counts(counts, blocks, asked, found, tail_first)
    elif kind in QUEUED:
        through_queues(make_queues(kind, blocks, ids), asked, found, tail_first)
    else:
        line = make_line(blocks, ids, fifo=kind is Kind.FIFO)
        in_line(line, asked, found, tail_first)


def oldest_in_use(columns: Columns, rule: Rule) -> NDArray[np.int64]:
    """By request, the first whose blocks have not expired when it comes; empty without a TTL."""
    if rule.kind is not Kind.TTL:
        return np.zeros(0, np.int64)
    oldest = np.zeros(columns.requests, np.int64)
    _by_age(columns.arrival_s, rule.ttl_s, oldest)
    return oldest


@compiled
def _by_age(arrival_s: NDArray[np.float64], ttl_s: float, oldest: NDArray[np.int64]) -> None:
    first = 0
    for request in range(len(arrival_s)):
        while arrival_s[request] - arrival_s[first] > ttl_s:
            first += 1
        oldest[request] = first
