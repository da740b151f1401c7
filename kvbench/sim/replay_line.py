"""LRU, FIFO and TTL, flat and block by block: the replays that are run most. Compiled.

Decides as the general loop does, at a fraction of the time; a test compares them.

May import: kvbench.sim.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvbench.sim.jit import compiled, pointed
from kvbench.sim.replay_dense import (
    AFTER,
    STATE,
    WORDS,
    at,
    leading_here,
    link_last,
    make_rows,
    unlink,
    unlink_first,
)
from kvbench.sim.replay_loops import Blocks, Found
from kvbench.sim.replay_rows import Memory


class Line(NamedTuple):
    """A pool in one line. STATE of a block that is here is 1 + the request that used it last."""

    m: Memory  # a row for each block, then the end of the line
    end: int
    capacity: int
    fifo: bool  # a touch changes nothing


def make_line(capacity: int, unique_blocks: int, *, fifo: bool) -> Line:
    """An empty pool."""
    return Line(make_rows(unique_blocks + 1, unique_blocks, 1), unique_blocks, capacity, fifo)


@compiled
def in_line(made: Line, blocks: Blocks, found: Found, tail_first: bool) -> None:
    """As `block_by_block`, in a pool of `make_line`. With `blocks.oldest`, blocks expire."""
    m, ids = pointed(made.m), pointed(blocks.ids)
    here, gone = 0, 0
    for request in range(len(blocks.starts) - 1):
        first, end = int(blocks.starts[request]), int(blocks.starts[request + 1])
        if len(blocks.oldest) > 0:
            expired = _expire(m, made.end, int(blocks.oldest[request]), found.victims[gone:])
            gone += expired
            here -= expired
        found.leading[request] = leading_here(m, ids, first, end)
        hits = 0
        for step in range(end - first):
            block = int(np.int64(ids[end - 1 - step if tail_first else first + step]))
            if m[WORDS * block + STATE] > 0:
                hits += 1
                if made.fifo:
                    continue
                unlink(m, block)
            elif here < made.capacity:
                here += 1
            else:
                oldest = _go(m, made.end)
                if gone < len(found.victims):
                    found.victims[gone] = oldest
                gone += 1
            m[WORDS * block + STATE] = 1 + request
            link_last(m, block, made.end)
        found.hits[request] = hits
        found.gone[request] = gone


@compiled
def _go(m: Memory, end_row: int) -> int:
    """The next victim leaves."""
    oldest = unlink_first(m, end_row)
    m[WORDS * oldest + STATE] = 0
    return oldest


@compiled
def _expire(m: Memory, end_row: int, turn: int, victims: NDArray[np.int32]) -> int:
    """What no request from number `turn` on has used leaves, oldest first; how many that were."""
    gone = 0
    while 0 < at(m, at(m, end_row, AFTER), STATE) <= turn:
        oldest = _go(m, end_row)
        if gone < len(victims):
            victims[gone] = oldest
        gone += 1
    return gone
