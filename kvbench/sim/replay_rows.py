"""Pools of blocks in one array of int64: rows, a table from ids to rows, queues, heaps. Compiled.

A pool is one tier of one node. All pools of a simulation lie in one array, their memory, which is
allocated once; a pool's part of it goes by its capacity, not by how many blocks a trace has. What
is handed around are places in it: of a pool, or of a row. Which block goes is decided in
`kvbench.sim.replay_kernels`. One flat array, since numba counts references to each array at every
call of a function, and compiles a function anew for each kind of integer.

May import: kvbench.errors, kvbench.policy, kvbench.sim.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from kvbench.errors import UsageError
from kvbench.policy.names import Kind, ruled
from kvbench.sim.jit import compiled


class Memory(Protocol):
    """An array of int64, as this code sees it: its words are numbers."""

    def __getitem__(self, place: int, /) -> int: ...

    def __setitem__(self, place: int, word: int, /) -> None: ...


# Words of a row. A row is a block that is here, a ghost (gone, and remembered), or absent (neither,
# but the parent of blocks that are here).
ID, BEFORE, AFTER, STATE, COUNT, TOUCHED, DEPTH, CHILDREN, HELD, RANKED, PARENT, TURN = range(12)
ROW_WORDS = 12
# States. A block that is here is in queue STATE - 1; queues 4 and 5 are of ghosts.
FREE, HERE, SEGMENTS, GHOST, ABSENT = 0, 1, 4, 5, 7
QUEUES = 6
LINES = 10  # queues, and behind them what is parked of the first four
NONE = -1  # no row, no id
PARKED = -2  # RANKED of a row that waits beside its queue, in whose front it was, for its children
PLACE = TOUCHED  # in a queue: the number of its parking, lower than of all behind it; 0: none yet

# Words of a pool.
KIND, LEAF, CAPACITY, BLOCKS = 0, 1, 2, 3  # BLOCKS: how many are here
END_ROW, NEXT_ROW, FREE_ROW = 4, 5, 6  # rows from NEXT_ROW on were never used
TABLE, MASK = 7, 8  # where its table begins; its size - 1, or -1: one entry for each id
HEAP, HEAPED = 9, 10  # where its heap begins, and how much is in it
COUNTS = 11  # where its counts of all ids begin, perfect LFU
NOW, THIS_TURN = 12, 13  # touches so far; the number of the request, told by the owner
TARGET, EXPONENT = 14, 15  # ARC's p is TARGET * 2 ** EXPONENT, a float64 to the last bit
PENDING = 16  # the row of the ghost that was asked for last, or 0
EVICTED = 17  # S3-FIFO: whether anything ever was
HEAD, TAIL = 18, 28  # of each line
LENGTH = 38  # of each queue, with what is parked of it
POOL_WORDS = 44
# Words of an entry of a heap.
HIGH, LOW, ROW = 0, 1, 2
ENTRY_WORDS = 3


def make_pools(evictions: Sequence[str], blocks: Sequence[int], unique_blocks: int) -> Memory:
    """Empty pools, one for each name of a policy and capacity in blocks.

    Pool number i is at i * POOL_WORDS. Memory that is not used yet is not taken: a block takes
    about 130 bytes, a ghost about 110, and a policy of ranks 24 more for each block.

    Raises:
        UsageError: a name is not one of `kvbench.policy.NAMES`, or a capacity is below 1.
    """
    heads = np.zeros((len(evictions), POOL_WORDS), np.int64)
    end = heads.size
    for head, eviction, capacity in zip(heads, evictions, blocks, strict=True):
        if capacity < 1:
            raise UsageError(f"a pool of {capacity} blocks: expected at least 1")
        rule = ruled(eviction)
        rows = min(unique_blocks, (3 if rule.leaf_first else 2) * capacity) + 1
        cells = 1 << (2 * rows - 1).bit_length()
        dense = unique_blocks <= 4 * cells  # faster, and not much larger
        head[KIND], head[LEAF], head[CAPACITY] = rule.kind, rule.leaf_first, capacity
        head[NEXT_ROW], head[END_ROW], head[FREE_ROW] = end, end + rows * ROW_WORDS, NONE
        head[TABLE], head[MASK] = head[END_ROW], NONE if dense else cells - 1
        head[HEAP] = head[TABLE] + (unique_blocks if dense else cells)
        head[COUNTS] = head[HEAP] + ENTRY_WORDS * min(unique_blocks, capacity)
        end = int(head[COUNTS]) + (unique_blocks if rule.kind is Kind.PERFECT_LFU else 0)
        head[HEAD : HEAD + LINES] = NONE
        head[TAIL : TAIL + LINES] = NONE
    memory = np.zeros(end, np.int64)
    memory[: heads.size] = heads.ravel()
    return cast("Memory", memory)


# The table: ids to rows. Probed in turn, and closed up again when an entry goes.


@compiled
def _cell(block: int, mask: int) -> int:
    """Where to look for an id first: the middle bits of a product (Knuth, TAOCP 3, 6.4)."""
    return ((block * 2654435769) >> 8) & mask


@compiled
def find_row(m: Memory, pool: int, block: int) -> int:
    """The row of an id in whatever state, or NONE."""
    first, mask = m[pool + TABLE], m[pool + MASK]
    if mask < 0:
        row = m[first + block]
        return row if row > 0 else NONE
    at = _cell(block, mask)
    while True:
        row = m[first + at]
        if row == 0:
            return NONE
        if m[row + ID] == block:
            return row
        at = (at + 1) & mask


@compiled
def _enter(m: Memory, pool: int, block: int, row: int) -> None:
    first, mask = m[pool + TABLE], m[pool + MASK]
    at = block
    if mask >= 0:
        at = _cell(block, mask)
        while m[first + at] > 0:
            at = (at + 1) & mask
    m[first + at] = row


@compiled
def _leave(m: Memory, pool: int, block: int) -> None:
    first, mask = m[pool + TABLE], m[pool + MASK]
    if mask < 0:
        m[first + block] = 0
        return
    hole = _cell(block, mask)
    while m[m[first + hole] + ID] != block:
        hole = (hole + 1) & mask
    at = (hole + 1) & mask
    while m[first + at] > 0:
        wanted = _cell(m[m[first + at] + ID], mask)
        if ((at - wanted) & mask) >= ((at - hole) & mask):  # it may lie in the hole
            m[first + hole] = m[first + at]
            hole = at
        at = (at + 1) & mask
    m[first + hole] = 0


@compiled
def new_row(m: Memory, pool: int, block: int) -> int:
    """A row for an id that has none. Its words are 0 but ID, RANKED and PARENT."""
    row = m[pool + FREE_ROW]
    if row >= 0:
        m[pool + FREE_ROW] = m[row + AFTER]
        for word in range(ROW_WORDS):
            m[row + word] = 0
    else:
        row = m[pool + NEXT_ROW]
        if row >= m[pool + END_ROW]:
            raise IndexError("a pool has more blocks than its capacity: evict first")
        m[pool + NEXT_ROW] = row + ROW_WORDS
    m[row + ID] = block
    m[row + RANKED] = NONE
    m[row + PARENT] = NONE
    _enter(m, pool, block, row)
    return row


@compiled
def free_row(m: Memory, pool: int, row: int) -> None:
    """The id is neither here nor remembered; if blocks that are here follow it, it is ABSENT."""
    if m[row + CHILDREN] > 0:
        m[row + STATE] = ABSENT
        return
    _leave(m, pool, m[row + ID])
    m[row + STATE] = FREE
    m[row + AFTER] = m[pool + FREE_ROW]
    m[pool + FREE_ROW] = row


# Queues: linked rows. The front has been there longest.


@compiled
def _link(m: Memory, pool: int, row: int, line: int, before: int) -> None:
    """Into a line, right behind another row, or NONE: to its front."""
    after = m[pool + HEAD + line] if before < 0 else m[before + AFTER]
    m[row + BEFORE] = before
    m[row + AFTER] = after
    if before < 0:
        m[pool + HEAD + line] = row
    else:
        m[before + AFTER] = row
    if after < 0:
        m[pool + TAIL + line] = row
    else:
        m[after + BEFORE] = row


@compiled
def _unlink(m: Memory, pool: int, row: int, line: int) -> None:
    before, after = m[row + BEFORE], m[row + AFTER]
    if before < 0:
        m[pool + HEAD + line] = after
    else:
        m[before + AFTER] = after
    if after < 0:
        m[pool + TAIL + line] = before
    else:
        m[after + BEFORE] = before


@compiled
def append(m: Memory, pool: int, row: int, queue: int) -> None:
    """To the back of a queue."""
    m[row + STATE] = queue + 1
    m[row + PLACE] = 0
    m[pool + LENGTH + queue] += 1
    _link(m, pool, row, queue, m[pool + TAIL + queue])


@compiled
def unlink(m: Memory, pool: int, row: int) -> None:
    """Out of its queue, parked or not."""
    queue = m[row + STATE] - 1
    m[pool + LENGTH + queue] -= 1
    if m[row + RANKED] == PARKED:
        m[row + RANKED] = NONE
        _unlink(m, pool, row, QUEUES + queue)
    else:
        _unlink(m, pool, row, queue)


@compiled
def park(m: Memory, pool: int, row: int) -> None:
    """The front of a queue, which has children, steps aside and keeps its place.

    Else it would be passed again for each victim.
    """
    queue = m[row + STATE] - 1
    line = QUEUES + queue
    _unlink(m, pool, row, queue)
    m[row + RANKED] = PARKED
    before = m[pool + TAIL + line]
    if m[row + PLACE] == 0:
        m[pool + NOW] += 1
        m[row + PLACE] = m[pool + NOW]
    while before >= 0 and m[before + PLACE] > m[row + PLACE]:
        before = m[before + BEFORE]
    _link(m, pool, row, line, before)


@compiled
def unpark(m: Memory, pool: int, row: int) -> None:
    """A row without children takes its place in its queue again, if it was parked."""
    if m[row + RANKED] != PARKED:
        return
    queue = m[row + STATE] - 1
    _unlink(m, pool, row, QUEUES + queue)
    m[row + RANKED] = NONE
    before, after = NONE, m[pool + HEAD + queue]
    while after >= 0 and 0 < m[after + PLACE] < m[row + PLACE]:
        before, after = after, m[after + AFTER]
    _link(m, pool, row, queue, before)


@compiled
def front_of(m: Memory, pool: int, queue: int) -> int:
    """The row that has been in a queue longest, parked or not; NONE if there is none."""
    row, parked = m[pool + HEAD + queue], m[pool + HEAD + QUEUES + queue]
    if row < 0 or parked < 0:
        return max(row, parked)
    return row if 0 < m[row + PLACE] < m[parked + PLACE] else parked


@compiled
def drop_oldest(m: Memory, pool: int, queue: int) -> None:
    """Forget the front of a queue of ghosts, if there is one."""
    row = m[pool + HEAD + queue]
    if row >= 0:
        unlink(m, pool, row)
        free_row(m, pool, row)


# Heaps: the lowest (high, low) first. RANKED of a row says where its entry is.


@compiled
def _place(m: Memory, entry: int, high: int, low: int, row: int) -> None:
    m[entry + HIGH] = high
    m[entry + LOW] = low
    m[entry + ROW] = row
    m[row + RANKED] = entry


@compiled
def sift_up(m: Memory, pool: int, at: int, high: int, low: int, row: int) -> None:
    """A row with a rank takes the place of entry number `at`, or one above it."""
    base = m[pool + HEAP]
    while at > 0:
        over = base + ENTRY_WORDS * ((at - 1) >> 1)
        there = m[over + HIGH]
        if there < high or (there == high and m[over + LOW] <= low):
            break
        _place(m, base + ENTRY_WORDS * at, there, m[over + LOW], m[over + ROW])
        at = (at - 1) >> 1
    _place(m, base + ENTRY_WORDS * at, high, low, row)


@compiled
def sift_down(m: Memory, pool: int, at: int, high: int, low: int, row: int) -> None:
    """A row with a rank takes the place of entry number `at`, or one below it."""
    base, size = m[pool + HEAP], m[pool + HEAPED]
    while 2 * at + 1 < size:
        under = 2 * at + 1
        entry = base + ENTRY_WORDS * under
        if under + 1 < size:
            other = entry + ENTRY_WORDS
            if m[other + HIGH] < m[entry + HIGH] or (
                m[other + HIGH] == m[entry + HIGH] and m[other + LOW] < m[entry + LOW]
            ):
                entry = other
                under += 1
        if high < m[entry + HIGH] or (high == m[entry + HIGH] and low <= m[entry + LOW]):
            break
        _place(m, base + ENTRY_WORDS * at, m[entry + HIGH], m[entry + LOW], m[entry + ROW])
        at = under
    _place(m, base + ENTRY_WORDS * at, high, low, row)


@compiled
def push(m: Memory, pool: int, row: int, high: int, low: int) -> None:
    """A row comes into the heap."""
    size = m[pool + HEAPED]
    m[pool + HEAPED] = size + 1
    sift_up(m, pool, size, high, low, row)


@compiled
def pull(m: Memory, pool: int, row: int) -> None:
    """A row leaves the heap, wherever it is in it."""
    base = m[pool + HEAP]
    last = m[pool + HEAPED] - 1
    m[pool + HEAPED] = last
    hole, end = m[row + RANKED], base + ENTRY_WORDS * last
    m[row + RANKED] = NONE
    if hole == end:
        return
    high, low, moved = m[end + HIGH], m[end + LOW], m[end + ROW]
    at = (hole - base) // ENTRY_WORDS
    sift_down(m, pool, at, high, low, moved)
    if m[moved + RANKED] == hole:
        sift_up(m, pool, at, high, low, moved)
