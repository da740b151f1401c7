"""A trace through one pool, request by request: the compiled loops.

May import: kvbench.policy, kvbench.sim.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvbench.sim.jit import compiled, pointed
from kvbench.sim.replay_kernels import expire, has, hold, insert, release, remove, touch, victim
from kvbench.sim.replay_rows import BLOCKS, CAPACITY, LEAF, NONE, THIS_TURN, Memory


class Blocks(NamedTuple):
    """What a loop reads: the blocks of each request; see `Columns`."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    oldest: NDArray[np.int64]  # by request: what none from this one on has used expires; or empty


class Found(NamedTuple):
    """What a loop writes: a row for each request."""

    leading: NDArray[np.int32]  # blocks from the first on that were here when it came
    hits: NDArray[np.int32]  # blocks that were here when their turn came
    gone: NDArray[np.int64]  # blocks that had left by its end, since the beginning
    victims: NDArray[np.int32]  # these blocks in order, or empty: not wanted


@compiled
def block_at(ids: NDArray[np.int32], at: int) -> int:
    """An id as the pools want it: numba would compile them once more for an int32."""
    return int(np.int64(ids[at]))


@compiled
def _go(m: Memory, block: int, found: Found, gone: int) -> int:
    """A victim leaves; how many have."""
    remove(m, 0, block)
    if gone < len(found.victims):
        found.victims[gone] = block
    return gone + 1


@compiled
def _begin(m: Memory, blocks: Blocks, found: Found, request: int) -> int:
    """A request comes: what expired goes, its leading blocks are counted; how many have gone."""
    gone = 0 if request == 0 else found.gone[request - 1]
    m[THIS_TURN] = request
    if len(blocks.oldest) > 0:
        gone += expire(m, 0, blocks.oldest[request], found.victims[gone:])
    first, end = blocks.starts[request], blocks.starts[request + 1]
    leading = 0
    while first + leading < end and has(m, 0, block_at(blocks.ids, first + leading)):
        leading += 1
    found.leading[request] = leading
    return gone


@compiled
def block_by_block(pools: Memory, blocks: Blocks, found: Found, tail_first: bool) -> None:
    """Each block of a request is used in turn: touched if it is here, else brought in at once."""
    m = pointed(pools)
    ids = blocks.ids
    for request in range(len(blocks.starts) - 1):
        gone = _begin(m, blocks, found, request)
        first, end = blocks.starts[request], blocks.starts[request + 1]
        hits = 0
        for step in range(end - first):
            at = end - 1 - step if tail_first else first + step
            block = block_at(ids, at)
            if touch(m, 0, block):
                hits += 1
                continue
            if m[BLOCKS] >= m[CAPACITY]:
                gone = _go(m, victim(m, 0), found, gone)
            parent = block_at(ids, at - 1) if at > first else NONE
            insert(m, 0, block, parent, at - first)
        found.hits[request] = hits
        found.gone[request] = gone


@compiled
def _touch_those_here(m: Memory, ids: NDArray[np.int32], first: int, end: int) -> None:
    """Touch some blocks of a request as its policy has it: the tail first in a leaf-first pool."""
    leaf_first = m[LEAF] == 1
    for step in range(end - first):
        at = end - 1 - step if leaf_first else first + step
        if has(m, 0, block_at(ids, at)):
            touch(m, 0, block_at(ids, at))


@compiled
def as_the_store(pools: Memory, blocks: Blocks, found: Found) -> None:
    """A request looks its prefix up and holds it, makes room for all that is missing, stores it.

    That is what `kvbench.store` does for one request at a time. Where not enough can go, the last
    blocks are not stored.
    """
    m, ids = pointed(pools), blocks.ids
    for request in range(len(blocks.starts) - 1):
        gone = _begin(m, blocks, found, request)
        first, end = blocks.starts[request], blocks.starts[request + 1]
        middle = first + found.leading[request]
        missing = 0
        for at in range(first, end):
            block = block_at(ids, at)
            if has(m, 0, block):
                hold(m, 0, block)
            else:
                missing += 1
        found.hits[request] = end - first - missing
        _touch_those_here(m, ids, first, middle)
        room = m[CAPACITY] - m[BLOCKS]
        while room < missing:
            block = victim(m, 0)
            if block < 0:
                break
            gone = _go(m, block, found, gone)
            room += 1
        _touch_those_here(m, ids, middle, end)
        for at in range(first, end):
            block = block_at(ids, at)
            if has(m, 0, block):
                continue
            if room == 0:
                break
            insert(m, 0, block, block_at(ids, at - 1) if at > first else NONE, at - first)
            room -= 1
        for at in range(first, end):
            release(m, 0, block_at(ids, at))
        found.gone[request] = gone
