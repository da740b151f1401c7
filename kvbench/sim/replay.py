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
from kvbench.sim.replay_line import ABSENT, Line, in_line
from kvbench.sim.replay_loops import Blocks, Found, as_the_store, block_by_block
from kvbench.sim.replay_rows import make_pools

MOST_TOUCHES = 2**31 - 1  # the clock of the pools is an int32


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
    plain = rule.kind in {Kind.LRU, Kind.FIFO} and not rule.leaf_first
    if plain and order is not Order.AS_THE_STORE:
        links = np.full((columns.unique_blocks + 1, 2), ABSENT, np.int32)
        how = Line(blocks, rule.kind is Kind.LRU, order is Order.TAIL_FIRST)
        in_line(links, how, asked, found)
    else:
        pools = make_pools([eviction], [blocks], columns.unique_blocks)
        if order is Order.AS_THE_STORE:
            as_the_store(pools, asked, found)
        else:
            block_by_block(pools, asked, found, order is Order.TAIL_FIRST)
    kept = int(found.gone[-1]) if victims and n else 0
    return Replay(
        leading=found.leading, hits=found.hits, gone=found.gone, victims=found.victims[:kept]
    )


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
