"""The offline bound: what a pool could find that knew all requests to come. Compiled.

Belady's rule on prefixes ("leaf-Belady"): the block goes whose next use is farthest away. A block
is used whenever one that follows it is, so that block is always a leaf, and no hole comes to be. A
block that would itself be the one to go is not brought in. No policy can find more blocks, since
every block takes one place (Belady 1966, with bypassing); hits are counted as with head-first use.

May import: kvbench.errors, kvbench.sim.
"""

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.jit import compiled, pointed
from kvbench.sim.replay import Replay
from kvbench.sim.replay_loops import Blocks, Found, block_at
from kvbench.sim.replay_rows import (
    BLOCKS,
    CAPACITY,
    HEAP,
    HIGH,
    ID,
    ROW,
    Memory,
    find_row,
    free_row,
    make_pools,
    new_row,
    pull,
    push,
)


def bound(columns: Columns, blocks: int, *, victims: bool = False) -> Replay:
    """As `kvbench.sim.replay.replay`, with foresight.

    Raises:
        UsageError: the trace has no blocks, or the pool no room.
    """
    if not columns.has_blocks:
        raise UsageError(f"trace {columns.name} has lengths only: what is used again is not known")
    n = columns.requests
    found = Found(
        leading=np.zeros(n, np.int32),
        hits=np.zeros(n, np.int32),
        gone=np.zeros(n, np.int64),
        victims=np.zeros(len(columns.ids) if victims else 0, np.int32),
    )
    asked = Blocks(columns.ids, columns.starts, np.zeros(0, np.int64))
    after = next_uses(columns.ids, columns.starts, np.full(columns.unique_blocks, -1, np.int64))
    # As a pool of ranks: its heap has the block first whose next use is last
    pool = make_pools(["lfu"], [blocks], columns.unique_blocks)
    with_foresight(pool, asked, after, found)
    kept = int(found.gone[-1]) if victims and n else 0
    return Replay(
        leading=found.leading, hits=found.hits, gone=found.gone, victims=found.victims[:kept]
    )


@compiled
def next_uses(
    ids: NDArray[np.int32], starts: NDArray[np.int64], seen: NDArray[np.int64]
) -> NDArray[np.int64]:
    """By reference, the number of the next to the same block.

    Where there is none, more than any: the deeper in its request the more, so that of the blocks
    of a prefix the last goes first.
    """
    count = len(ids)
    after = np.empty(count, np.int64)
    for request in range(len(starts) - 2, -1, -1):
        first = starts[request]
        for at in range(starts[request + 1] - 1, first - 1, -1):
            block = ids[at]
            after[at] = seen[block] if seen[block] >= 0 else count + at - first
            seen[block] = at
    return after


@compiled
def with_foresight(pools: Memory, blocks: Blocks, after: NDArray[np.int64], found: Found) -> None:
    """The replay. The heap is by next use, the last first; of equals the block of lower id."""
    m = pointed(pools)
    gone = 0
    heap = m[HEAP]
    for request in range(len(blocks.starts) - 1):
        first, end = blocks.starts[request], blocks.starts[request + 1]
        hits, leading = 0, 0
        for at in range(first, end):
            block = block_at(blocks.ids, at)
            row = find_row(m, 0, block)
            if row >= 0:
                leading += leading == at - first
                hits += 1
                pull(m, 0, row)
            elif m[BLOCKS] < m[CAPACITY]:
                row = new_row(m, 0, block)
                m[BLOCKS] += 1
            elif -m[heap + HIGH] <= after[at]:
                continue
            else:
                last = m[heap + ROW]
                if gone < len(found.victims):
                    found.victims[gone] = m[last + ID]
                gone += 1
                pull(m, 0, last)
                free_row(m, 0, last)
                row = new_row(m, 0, block)
            push(m, 0, row, -after[at], block)
        found.leading[request] = leading
        found.hits[request] = hits
        found.gone[request] = gone
