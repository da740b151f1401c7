"""Plain LRU and FIFO, block by block: the replays that are run most, in one array. Compiled.

Decides as the general loop does, at a fraction of the time; a test compares them.

May import: kvbench.sim.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvbench.sim.jit import compiled
from kvbench.sim.replay_loops import Blocks, Found

ABSENT = -1


class Line(NamedTuple):
    """How the line is kept."""

    capacity: int  # of the pool, in blocks
    lru: bool  # a touch moves a block to the end
    tail_first: bool  # the blocks of a request are used from its tail


@compiled
def in_line(links: NDArray[np.int32], rule: Line, blocks: Blocks, found: Found) -> None:
    """As `block_by_block` with flat LRU or FIFO.

    Args:
        links: (ids + 1, 2), before and after of each block that is here, else ABSENT; the last row
            is both ends of the line.
        rule: how.
        blocks: what is read.
        found: what is written.
    """
    ids = blocks.ids
    end_row = len(links) - 1
    links[end_row, 0] = end_row
    links[end_row, 1] = end_row
    here, gone = 0, 0
    for request in range(len(blocks.starts) - 1):
        first, end = int(blocks.starts[request]), int(blocks.starts[request + 1])
        leading = 0
        while first + leading < end and links[ids[first + leading], 0] >= 0:
            leading += 1
        found.leading[request] = leading
        hits = 0
        for step in range(end - first):
            block = ids[end - 1 - step] if rule.tail_first else ids[first + step]
            before, after = links[block, 0], links[block, 1]
            if before >= 0:
                hits += 1
                if not rule.lru:
                    continue
                links[before, 1] = after
                links[after, 0] = before
            elif here < rule.capacity:
                here += 1
            else:
                oldest = links[end_row, 1]
                after = links[oldest, 1]
                links[end_row, 1] = after
                links[after, 0] = end_row
                links[oldest, 0] = ABSENT
                if gone < len(found.victims):
                    found.victims[gone] = oldest
                gone += 1
            last = links[end_row, 0]
            links[last, 1] = block
            links[block, 0] = last
            links[block, 1] = end_row
            links[end_row, 0] = block
        found.hits[request] = hits
        found.gone[request] = gone
