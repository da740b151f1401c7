"""LFU, perfect LFU and LengthAware, flat and block by block, on dense rows. Compiled.

What each is, is said in `kvbench.policy`. Decides as the general loop does, at a fraction of the
time; a test compares them. Blocks of one count are in a list, least recently touched first; the
lists that have any are in a ring by count (Shah, Mitra and Matani 2010), so a use is O(1); only
where perfect LFU brings a block back, it passes the lists of fewer uses. LengthAware has a ring for
each depth, and over their lowest counts a tree of minima: O(log depths) where one changes.

May import: kvbench.policy, kvbench.sim.
"""

from typing import NamedTuple, cast

import numpy as np

from kvbench.policy.names import Kind
from kvbench.sim.jit import compiled, inlined, pointed
from kvbench.sim.replay_dense import (
    AFTER,
    BEFORE,
    COUNT,
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

KINDS = (Kind.LFU, Kind.PERFECT_LFU, Kind.LENGTH_AWARE)

# Behind the rows of blocks: a head for each ring, a row of free lists, and lists. Each takes two
# rows: the first is the end of the list, and its spare words link the ring, whose head is between
# the highest count and the lowest. STATE of a block that is here is its list.
LIST_ROWS = 2
LOWER, HIGHER = 2, 3
USES = WORDS + COUNT  # the count of all blocks in the list; of a head, more than any
NO_USES = 2**31 - 1
DEPTHS = 2**31  # more than any depth
# In the row of free lists, whose HIGHER is the first of them: the first row that was never used.
NEXT_LIST = AFTER


class Pool(NamedTuple):
    """A pool of counts, handed around in compiled code."""

    m: Memory
    lowest: Memory  # a tree of minima, its root at 1: by ring, lowest count * DEPTHS - depth
    heads: int  # the row of the first head
    free: int  # the row of free lists
    rings: int  # a power of 2
    perfect: bool  # counts outlive a block's stay


def make_counts(kind: Kind, capacity: int, unique_blocks: int, longest: int) -> Pool:
    """An empty pool. `longest` is how many blocks the longest request has."""
    rings = 1 << (longest - 1).bit_length() if kind is Kind.LENGTH_AWARE else 1
    heads = unique_blocks
    free = heads + LIST_ROWS * rings
    lists = 1 + min(capacity, unique_blocks)  # with the row of free ones
    memory = make_rows(free + LIST_ROWS * lists)
    memory[WORDS * free + NEXT_LIST] = free + LIST_ROWS
    for head in range(heads, free, LIST_ROWS):
        memory[WORDS * head + LOWER] = head
        memory[WORDS * head + HIGHER] = head
        memory[WORDS * head + USES] = NO_USES
    lowest = cast("Memory", np.full(2 * rings, NO_USES * DEPTHS, np.int64))
    return Pool(memory, lowest, heads, free, rings, kind is Kind.PERFECT_LFU)


@compiled
def through_counts(
    made: Pool, capacity: int, blocks: Blocks, found: Found, tail_first: bool
) -> None:
    """As `block_by_block`, in a pool of `make_counts`."""
    p = Pool(pointed(made.m), pointed(made.lowest), made.heads, made.free, made.rings, made.perfect)
    m, ids = p.m, pointed(blocks.ids)
    here, gone = 0, 0
    for request in range(len(blocks.starts) - 1):
        first, end = int(blocks.starts[request]), int(blocks.starts[request + 1])
        found.leading[request] = leading_here(m, ids, first, end)
        hits = 0
        for step in range(end - first):
            depth = end - first - 1 - step if tail_first else step
            block = int(np.int64(ids[first + depth]))
            if m[WORDS * block + STATE] > 0:
                hits += 1
                _touch(p, block)
                continue
            if here < capacity:
                here += 1
            else:
                victim = _go(p)
                if gone < len(found.victims):
                    found.victims[gone] = victim
                gone += 1
            _arrive(p, block, depth if p.rings > 1 else 0)
        found.hits[request] = hits
        found.gone[request] = gone


# Lists and rings.


@compiled
def _make_list(p: Pool, uses: int, lower: int) -> int:
    """An empty list of this count, in its ring behind another or a head."""
    m = p.m
    made = at(m, p.free, HIGHER)
    if made > 0:
        m[WORDS * p.free + HIGHER] = m[WORDS * made + HIGHER]
    else:
        made = at(m, p.free, NEXT_LIST)
        m[WORDS * p.free + NEXT_LIST] = made + LIST_ROWS
    higher = at(m, lower, HIGHER)
    m[WORDS * made + BEFORE] = made
    m[WORDS * made + AFTER] = made
    m[WORDS * made + LOWER] = lower
    m[WORDS * made + HIGHER] = higher
    m[WORDS * made + USES] = uses
    m[WORDS * lower + HIGHER] = made
    m[WORDS * higher + LOWER] = made
    return made


@inlined
def _drop_if_empty(p: Pool, last: int) -> None:
    m = p.m
    if at(m, last, AFTER) != last:
        return
    lower, higher = at(m, last, LOWER), at(m, last, HIGHER)
    m[WORDS * lower + HIGHER] = higher
    m[WORDS * higher + LOWER] = lower
    m[WORDS * last + HIGHER] = m[WORDS * p.free + HIGHER]
    m[WORDS * p.free + HIGHER] = last
    _lowest_changed(p, lower)


@compiled
def _lowest_changed(p: Pool, head: int) -> None:
    """Put the tree right, if what has another list behind it by now is a head."""
    if head >= p.free:
        return
    depth = (head - p.heads) // LIST_ROWS
    node = p.rings + depth
    rank = at(p.m, at(p.m, head, HIGHER), USES) * DEPTHS - depth
    while p.lowest[node] != rank:
        p.lowest[node] = rank
        node >>= 1
        if node == 0:
            break
        rank = min(p.lowest[2 * node], p.lowest[2 * node + 1])


# Use, coming and going.


@inlined
def _touch(p: Pool, block: int) -> None:
    """A block that is here was used."""
    m = p.m
    old = at(m, block, STATE)
    uses, higher = at(m, old, USES) + 1, at(m, old, HIGHER)
    if at(m, higher, USES) != uses:
        if at(m, old, BEFORE) == at(m, old, AFTER):  # it is alone: the list goes with it
            m[WORDS * old + USES] = uses
            _lowest_changed(p, at(m, old, LOWER))
            return
        higher = _make_list(p, uses, old)
    unlink(m, block)
    m[WORDS * block + STATE] = higher
    link_last(m, block, higher)
    _drop_if_empty(p, old)


@inlined
def _arrive(p: Pool, block: int, depth: int) -> None:
    m = p.m
    uses = at(m, block, COUNT) + 1  # of earlier stays, perfect LFU
    lower = p.heads + LIST_ROWS * depth
    into = at(m, lower, HIGHER)
    while at(m, into, USES) < uses:
        lower = into
        into = at(m, into, HIGHER)
    if at(m, into, USES) != uses:
        into = _make_list(p, uses, lower)
        _lowest_changed(p, lower)
    m[WORDS * block + STATE] = into
    link_last(m, block, into)


@compiled
def _go(p: Pool) -> int:
    """The next victim leaves."""
    m = p.m
    depth = -p.lowest[1] & (DEPTHS - 1)
    old = at(m, p.heads + LIST_ROWS * depth, HIGHER)
    block = unlink_first(m, old)
    m[WORDS * block + STATE] = 0
    if p.perfect:
        m[WORDS * block + COUNT] = at(m, old, USES)
    _drop_if_empty(p, old)
    return block
