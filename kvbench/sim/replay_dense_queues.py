"""SLRU, 2Q, ARC and S3-FIFO, flat and block by block, on dense rows. Compiled.

What each is, is said in `kvbench.policy`. Decides as the general loop does, at a fraction of the
time; a test compares them. A block that is asked for comes in at once, so no ghost is waited for.

May import: kvbench.policy, kvbench.sim.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvbench.policy.names import Kind
from kvbench.sim.jit import compiled, pointed
from kvbench.sim.replay_dense import (
    AFTER,
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
from kvbench.sim.replay_rows import SEGMENTS, Memory

SLRU, TWO_Q = int(Kind.SLRU), int(Kind.TWO_Q)
ARC, S3FIFO = int(Kind.ARC), int(Kind.S3FIFO)
KINDS = (Kind.SLRU, Kind.TWO_Q, Kind.ARC, Kind.S3FIFO)

# States: a block in queue number s, 1 to SEGMENTS; ghosts of queue s are in -s; 0 is neither. The
# list of state s ends at row `middle` + s, and COUNT there is how many it has.
FIRST, SECOND, NEITHER = 1, 2, 0
GHOSTS = 2
ENDS = GHOSTS + 1 + SEGMENTS
MOST_TOUCHES = 3  # S3-FIFO counts in two bits


class Pool(NamedTuple):
    """A pool of queues, handed around in compiled code."""

    m: Memory  # a row for each block, then the ends
    target: NDArray[np.float64]  # (1,) ARC's: how many blocks it wants in its first queue
    middle: int
    kind: int
    capacity: int


def make_queues(kind: Kind, capacity: int, unique_blocks: int) -> Pool:
    """An empty pool."""
    rows = make_rows(unique_blocks + ENDS, unique_blocks, ENDS)
    return Pool(rows, np.zeros(1), unique_blocks + GHOSTS, int(kind), capacity)


@compiled
def through_queues(made: Pool, blocks: Blocks, found: Found, tail_first: bool) -> None:
    """As `block_by_block`, in a pool of `make_queues`."""
    p = Pool(pointed(made.m), pointed(made.target), made.middle, made.kind, made.capacity)
    m, ids = p.m, pointed(blocks.ids)
    here, gone = 0, 0
    for request in range(len(blocks.starts) - 1):
        first, end = int(blocks.starts[request]), int(blocks.starts[request + 1])
        found.leading[request] = leading_here(m, ids, first, end)
        hits = 0
        for step in range(end - first):
            block = int(np.int64(ids[end - 1 - step if tail_first else first + step]))
            state = at(m, block, STATE)
            if state > 0:
                hits += 1
                _touch(p, block, state)
                continue
            if state < 0:
                if p.kind == ARC:
                    _adapt(p, state)
                _take(p, block, state)
            if here < p.capacity:
                here += 1
            else:
                victim = _go_arc(p, state) if p.kind == ARC else _go(p)
                if gone < len(found.victims):
                    found.victims[gone] = victim
                gone += 1
            _arrive(p, block, state, gone)
        found.hits[request] = hits
        found.gone[request] = gone


# Lists.


@compiled
def _length(p: Pool, state: int) -> int:
    return at(p.m, p.middle + state, COUNT)


@compiled
def _take(p: Pool, row: int, state: int) -> None:
    """Out of a list. Its STATE stays."""
    p.m[WORDS * (p.middle + state) + COUNT] -= 1
    unlink(p.m, row)


@compiled
def _take_oldest(p: Pool, state: int) -> int:
    """The row that has been in a list longest, of which there must be one, leaves it."""
    p.m[WORDS * (p.middle + state) + COUNT] -= 1
    return unlink_first(p.m, p.middle + state)


@compiled
def _append(p: Pool, row: int, state: int) -> None:
    m = p.m
    m[WORDS * (p.middle + state) + COUNT] += 1
    m[WORDS * row + STATE] = state
    link_last(m, row, p.middle + state)


@compiled
def _forget_oldest(p: Pool, ghosts: int) -> None:
    if _length(p, ghosts) > 0:
        p.m[WORDS * _take_oldest(p, ghosts) + STATE] = NEITHER


# Use.


@compiled
def _touch(p: Pool, row: int, state: int) -> None:
    """A block that is here was used."""
    if p.kind == S3FIFO:
        p.m[WORDS * row + COUNT] += 1
    elif p.kind == SLRU:
        _lift(p, row, state)
    elif p.kind == ARC or state == SECOND:
        _take(p, row, state)
        _append(p, row, SECOND)


@compiled
def _lift(p: Pool, row: int, state: int) -> None:
    """SLRU: a segment up; what is too much there goes down, one by one."""
    most = p.capacity // SEGMENTS
    _take(p, row, state)
    state = min(state + 1, SEGMENTS)
    _append(p, row, state)
    while state > FIRST:
        while _length(p, state) > most:
            _append(p, _take_oldest(p, state), state - 1)
        state -= 1


@compiled
def _adapt(p: Pool, ghosts: int) -> None:
    """ARC's target, when one of these ghosts is asked for."""
    once, often = _length(p, -FIRST), _length(p, -SECOND)
    target = p.target[0]
    if ghosts == -FIRST:
        p.target[0] = min(target + max(often / once, 1.0), float(p.capacity))
    else:
        p.target[0] = max(target - max(once / often, 1.0), 0.0)


# Coming and going. `state` is that of the block that was asked for: of a ghost, or NEITHER.


@compiled
def _arrive(p: Pool, block: int, state: int, gone: int) -> None:
    into = FIRST if state == NEITHER else SECOND
    if p.kind == SLRU:
        for segment in range(FIRST, SEGMENTS + 1):
            if _length(p, segment) < p.capacity // SEGMENTS:
                into = segment
                break
    elif p.kind == S3FIFO:
        p.m[WORDS * block + COUNT] = 0
        if gone == 0 and _length(p, FIRST) >= int(p.capacity * 0.1):
            into = SECOND
    _append(p, block, into)


@compiled
def _go(p: Pool) -> int:
    """The next victim leaves, but ARC's."""
    if p.kind == TWO_Q:
        new = _length(p, FIRST)
        return _leave(p, FIRST if new > p.capacity // 4 else SECOND, p.capacity // 2)
    if p.kind == S3FIFO:
        return _go_s3fifo(p)
    segment = FIRST
    while _length(p, segment) == 0:
        segment += 1
    row = _take_oldest(p, segment)
    p.m[WORDS * row + STATE] = NEITHER
    return row


@compiled
def _leave(p: Pool, state: int, most_ghosts: int) -> int:
    """The oldest of a queue goes, or of the other if that is empty; those of the first are kept."""
    if _length(p, state) == 0:
        state = FIRST + SECOND - state
    row = _take_oldest(p, state)
    if state != FIRST:
        p.m[WORDS * row + STATE] = NEITHER
        return row
    _append(p, row, -FIRST)
    while _length(p, -FIRST) > most_ghosts:
        _forget_oldest(p, -FIRST)
    return row


@compiled
def _go_arc(p: Pool, state: int) -> int:
    recent, often = _length(p, FIRST), _length(p, SECOND)
    ghosts, ghosts_often = _length(p, -FIRST), _length(p, -SECOND)
    target = p.target[0]
    queue = FIRST if recent > target or (recent == target and state == -SECOND) else SECOND
    if _length(p, queue) == 0:
        queue = FIRST + SECOND - queue
    forgotten = False
    if state == NEITHER:
        if recent + ghosts >= p.capacity:
            forgotten = recent >= p.capacity and queue == FIRST
            if not forgotten:
                _forget_oldest(p, -FIRST)
        elif recent + often + ghosts + ghosts_often >= 2 * p.capacity:
            _forget_oldest(p, -SECOND)
    row = _take_oldest(p, queue)
    if forgotten:
        p.m[WORDS * row + STATE] = NEITHER
    else:
        _append(p, row, -queue)
    while _length(p, -FIRST) + _length(p, -SECOND) > p.capacity:
        _forget_oldest(p, -FIRST if _length(p, -FIRST) > 0 else -SECOND)
    return row


@compiled
def _go_s3fifo(p: Pool) -> int:
    """What was touched is moved on, in the small queue and in main."""
    m = p.m
    most_main = p.capacity - int(p.capacity * 0.1)
    state = NEITHER
    while True:
        small = _length(p, FIRST)
        stays = state == FIRST and small > 0  # its turn, while it moves blocks on
        large = _length(p, SECOND) > most_main
        state = FIRST if stays or not (large or small == 0) else SECOND
        if _length(p, state) == 0:
            state = FIRST + SECOND - state
        row = at(m, p.middle + state, AFTER)
        touches = at(m, row, COUNT)
        if touches < (2 if state == FIRST else 1):
            return _leave(p, state, int(p.capacity * 0.9))
        m[WORDS * row + COUNT] = 0 if state == FIRST else min(touches, MOST_TOUCHES) - 1
        _append(p, _take_oldest(p, state), SECOND)
