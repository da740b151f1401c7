"""Every eviction policy of `kvbench.policy` on pools of rows, compiled: the same decisions.

What a policy is, and how it breaks ties, is said there; a test compares their victims one by one.
A caller's own loop calls `touch`, `insert`, `victim`, `remove`, `hold`, `release`, all of which
take the memory of the pools, the place of one of them in it, and the id of a block, an int64.

May import: kvbench.errors, kvbench.policy, kvbench.sim.
"""

import numpy as np
from numpy.typing import NDArray

from kvbench.policy.names import Kind
from kvbench.sim.jit import compiled
from kvbench.sim.replay_queues import (
    FIFO,
    LRU,
    MOST_TOUCHES,
    S3FIFO,
    S3FIFO_SHARE,
    TTL,
    TWO_Q,
    WANTED,
    foremost,
    leave_queue,
    promote,
    queue_for,
    untouched,
    want,
)
from kvbench.sim.replay_rows import (
    ABSENT,
    BLOCKS,
    CAPACITY,
    CHILDREN,
    COUNT,
    COUNTS,
    DEPTH,
    EVICTED,
    GHOST,
    HEAP,
    HEAPED,
    HELD,
    HERE,
    HIGH,
    ID,
    KIND,
    LEAF,
    LOW,
    NONE,
    NOW,
    PARENT,
    PENDING,
    RANKED,
    ROW,
    SEGMENTS,
    STATE,
    THIS_TURN,
    TOUCHED,
    TURN,
    Memory,
    append,
    find_row,
    free_row,
    new_row,
    pull,
    push,
    sift_down,
    unlink,
    unpark,
)

LFU, PERFECT_LFU = int(Kind.LFU), int(Kind.PERFECT_LFU)
LENGTH_AWARE, DEEP_FIRST = int(Kind.LENGTH_AWARE), int(Kind.DEEP_FIRST)
DEPTHS = 2**31  # more than any depth


@compiled
def has(m: Memory, pool: int, block: int) -> bool:
    """Whether the block is in the pool."""
    row = find_row(m, pool, block)
    return row >= 0 and 0 < m[row + STATE] <= SEGMENTS


@compiled
def _is_ranked(m: Memory, pool: int) -> bool:
    kind = m[pool + KIND]
    return LFU <= kind <= DEEP_FIRST or (kind <= TTL and m[pool + LEAF] == 1)


@compiled
def _rank(m: Memory, pool: int, row: int) -> tuple[int, int]:
    kind = m[pool + KIND]
    touched = m[row + TOUCHED]
    if kind == DEEP_FIRST:
        return touched - m[row + DEPTH], touched
    if kind == LENGTH_AWARE:
        return m[row + COUNT] * DEPTHS - m[row + DEPTH], touched
    if kind <= TTL:
        return touched, 0
    return m[row + COUNT], touched


@compiled
def _recall(m: Memory, pool: int, row: int) -> None:
    """A row of a ranked pool may be given (again)."""
    if m[row + STATE] == HERE and m[row + RANKED] < 0 and m[row + HELD] == 0:
        high, low = _rank(m, pool, row)
        push(m, pool, row, high, low)


# Use.


@compiled
def touch(m: Memory, pool: int, block: int) -> bool:
    """A request used this block; whether it is here. A policy with ghosts learns from misses."""
    kind = m[pool + KIND]
    row = find_row(m, pool, block)
    if m[pool + PENDING] > 0:
        _forget_wanted(m, pool, row)
    if row < 0:
        return False
    if not 0 < m[row + STATE] <= SEGMENTS:
        _miss(m, pool, row)
        return False
    m[row + TURN] = m[pool + THIS_TURN]
    if _is_ranked(m, pool):
        if kind != FIFO:
            _count(m, pool, row)
    elif kind in (LRU, TTL):
        unlink(m, pool, row)
        append(m, pool, row, 0)
    elif kind in (S3FIFO, S3FIFO_SHARE):
        if kind == S3FIFO or m[row + COUNT] < MOST_TOUCHES:
            m[row + COUNT] += 1
    elif kind != FIFO:
        promote(m, pool, row)
    return True


@compiled
def _count(m: Memory, pool: int, row: int) -> None:
    m[pool + NOW] += 1
    m[row + TOUCHED] = m[pool + NOW]
    m[row + COUNT] += 1
    if m[pool + KIND] == PERFECT_LFU:
        m[m[pool + COUNTS] + m[row + ID]] = m[row + COUNT]


@compiled
def _miss(m: Memory, pool: int, row: int) -> None:
    """A row that is not here was asked for."""
    if TWO_Q <= m[pool + KIND] <= S3FIFO and GHOST <= m[row + STATE] < ABSENT:
        want(m, pool, row)


@compiled
def _forget_wanted(m: Memory, pool: int, asked: int) -> None:
    row = m[pool + PENDING]
    m[pool + PENDING] = 0
    if row != asked and m[row + STATE] >= WANTED:
        free_row(m, pool, row)


# Coming.


@compiled
def insert(m: Memory, pool: int, block: int, parent: int, depth: int) -> None:
    """A block comes in, `depth` blocks after the start of its prefix; it must not be here.

    There has to be room. `parent` is the id before it, or NONE: that keeps the parent here as long
    as this block in a leaf-first pool, and does nothing in others.
    """
    if m[pool + BLOCKS] >= m[pool + CAPACITY]:
        raise IndexError("a pool has no room for another block: evict one first")
    row = find_row(m, pool, block)
    if m[pool + PENDING] > 0:
        _forget_wanted(m, pool, row)
    known = row >= 0 and m[row + STATE] != ABSENT
    if row < 0:
        row = new_row(m, pool, block)
    elif GHOST <= m[row + STATE] < ABSENT:
        want(m, pool, row)
    m[pool + PENDING] = 0
    m[pool + BLOCKS] += 1
    m[row + TURN] = m[pool + THIS_TURN]
    m[row + DEPTH] = depth
    m[row + COUNT] = 0
    if m[pool + LEAF] == 1:
        m[row + PARENT] = parent
        if parent >= 0:
            above = find_row(m, pool, parent)
            if above < 0:
                above = new_row(m, pool, parent)
                m[above + STATE] = ABSENT
            m[above + CHILDREN] += 1
    if not _is_ranked(m, pool):
        append(m, pool, row, queue_for(m, pool, known))
        return
    m[row + STATE] = HERE
    if m[pool + KIND] == PERFECT_LFU:
        m[row + COUNT] = m[m[pool + COUNTS] + block]
    _count(m, pool, row)
    _recall(m, pool, row)


# Going.


@compiled
def victim(m: Memory, pool: int) -> int:
    """The block that should go, or NONE if all are held or have children; it stays until removed.

    S3-FIFO moves blocks on that were touched.
    """
    if _is_ranked(m, pool):
        row = _lowest(m, pool)
    elif m[pool + KIND] in (S3FIFO, S3FIFO_SHARE):
        row = untouched(m, pool)
    else:
        row = foremost(m, pool)
    return m[row + ID] if row >= 0 else NONE


@compiled
def _lowest(m: Memory, pool: int) -> int:
    """The row of lowest rank. Ranks in the heap are put right as they come to its top."""
    base = m[pool + HEAP]
    while m[pool + HEAPED] > 0:
        row = int(m[base + ROW])
        if m[row + HELD] > 0 or (m[pool + LEAF] == 1 and m[row + CHILDREN] > 0):
            pull(m, pool, row)  # recalled when it is released, or its last child goes
            continue
        high, low = _rank(m, pool, row)
        if high == m[base + HIGH] and low == m[base + LOW]:
            return row
        sift_down(m, pool, 0, high, low, row)
    return NONE


@compiled
def remove(m: Memory, pool: int, block: int) -> None:
    """The block leaves the pool. Absent ones are ignored."""
    row = find_row(m, pool, block)
    if row < 0 or not 0 < m[row + STATE] <= SEGMENTS:
        return
    m[pool + BLOCKS] -= 1
    m[pool + EVICTED] = 1
    parent = m[row + PARENT]
    m[row + PARENT] = NONE
    m[row + HELD] = 0
    if _is_ranked(m, pool):
        if m[row + RANKED] >= 0:
            pull(m, pool, row)
        free_row(m, pool, row)
    else:
        leave_queue(m, pool, row)
    if parent < 0:
        return
    above = find_row(m, pool, parent)
    m[above + CHILDREN] -= 1
    if m[above + CHILDREN] == 0:
        if m[above + STATE] == ABSENT:
            free_row(m, pool, above)
        elif _is_ranked(m, pool):
            _recall(m, pool, above)
        else:
            unpark(m, pool, above)


@compiled
def expire(m: Memory, pool: int, turn: int, removed_ids: NDArray[np.int32]) -> int:
    """Remove what no request from number `turn` on has used, oldest first; how many that were.

    For TTL, and for LRU if one likes: those whose order is that of their last use. The first of
    the ids are written to `removed_ids`, as many as fit.
    """
    removed = 0
    while True:
        block = victim(m, pool)
        if block < 0 or m[find_row(m, pool, block) + TURN] >= turn:
            return removed
        remove(m, pool, block)
        if removed < len(removed_ids):
            removed_ids[removed] = block
        removed += 1


# Holding.


@compiled
def hold(m: Memory, pool: int, block: int) -> None:
    """The block, if it is here, cannot go until it is released as often as it was held."""
    row = find_row(m, pool, block)
    if row >= 0 and 0 < m[row + STATE] <= SEGMENTS:
        m[row + HELD] += 1


@compiled
def release(m: Memory, pool: int, block: int) -> None:
    """The block, if it is here and held, is held once less."""
    row = find_row(m, pool, block)
    if row < 0 or m[row + HELD] == 0:
        return
    m[row + HELD] -= 1
    if m[row + HELD] == 0 and _is_ranked(m, pool):
        _recall(m, pool, row)
