"""Policies of several queues on pools of rows, compiled: SLRU, 2Q, ARC and S3-FIFO.

What each is, is said in `kvbench.policy`; callers use `kvbench.sim.replay_kernels`.

May import: kvbench.errors, kvbench.policy, kvbench.sim.
"""

import math

from kvbench.policy.names import Kind
from kvbench.sim.jit import compiled
from kvbench.sim.replay_rows import (
    AFTER,
    BEFORE,
    BLOCKS,
    CAPACITY,
    CHILDREN,
    COUNT,
    EVICTED,
    EXPONENT,
    GHOST,
    HEAD,
    HELD,
    KIND,
    LEAF,
    LENGTH,
    NONE,
    PENDING,
    SEGMENTS,
    STATE,
    TARGET,
    Memory,
    append,
    drop_oldest,
    free_row,
    front_of,
    park,
    unlink,
)

LRU, FIFO, TTL = int(Kind.LRU), int(Kind.FIFO), int(Kind.TTL)
SLRU, TWO_Q, ARC = int(Kind.SLRU), int(Kind.TWO_Q), int(Kind.ARC)
S3FIFO, S3FIFO_SHARE = int(Kind.S3FIFO), int(Kind.S3FIFO_SHARE)

WANTED = 8  # state of a ghost that was asked for and comes in next; 9 if it was of the second queue
MANTISSA_BITS = 53  # of a float64
MANTISSA = 2.0**MANTISSA_BITS
MOST_TOUCHES = 3  # S3-FIFO counts in two bits


@compiled
def promote(m: Memory, pool: int, row: int) -> None:
    """A hit in SLRU, 2Q or ARC."""
    kind, queue = m[pool + KIND], m[row + STATE] - 1
    if kind == TWO_Q and queue == 0:
        return
    unlink(m, pool, row)
    if kind != SLRU:
        append(m, pool, row, 1)
        return
    most = m[pool + CAPACITY] // SEGMENTS
    queue = min(queue + 1, SEGMENTS - 1)
    append(m, pool, row, queue)
    while queue > 0:
        while m[pool + LENGTH + queue] > most:
            oldest = front_of(m, pool, queue)
            unlink(m, pool, oldest)
            append(m, pool, oldest, queue - 1)
        queue -= 1


@compiled
def want(m: Memory, pool: int, row: int) -> None:
    """A ghost is asked for: it is one no longer, and what comes in next."""
    which = m[row + STATE] - GHOST
    if m[pool + KIND] == ARC:
        _adapt(m, pool, which)
    unlink(m, pool, row)
    m[row + STATE] = WANTED + which
    m[pool + PENDING] = row


@compiled
def _target(m: Memory, pool: int) -> float:
    """How many blocks ARC wants in its first queue."""
    return math.ldexp(float(m[pool + TARGET]), int(m[pool + EXPONENT]))


@compiled
def _adapt(m: Memory, pool: int, which: int) -> None:
    """ARC's target, after a hit among the ghosts of its first queue or its second."""
    once, often = m[pool + LENGTH + SEGMENTS], m[pool + LENGTH + SEGMENTS + 1]
    target = _target(m, pool)
    if which == 0:
        target = min(target + max(often / once, 1.0), float(m[pool + CAPACITY]))
    else:
        target = max(target - max(once / often, 1.0), 0.0)
    fraction, exponent = math.frexp(target)
    m[pool + TARGET] = int(fraction * MANTISSA)
    m[pool + EXPONENT] = exponent - MANTISSA_BITS


@compiled
def queue_for(m: Memory, pool: int, known: bool) -> int:
    """The queue of a new block; `known` is whether it was a ghost."""
    kind = m[pool + KIND]
    if kind == SLRU:
        for queue in range(SEGMENTS):
            if m[pool + LENGTH + queue] < m[pool + CAPACITY] // SEGMENTS:
                return queue
        return 0
    if kind < SLRU:
        return 0
    small = int(m[pool + CAPACITY] * 0.1)
    if kind == S3FIFO and m[pool + EVICTED] == 0 and m[pool + LENGTH] >= small:
        return 1
    return 1 if known else 0


@compiled
def _front(m: Memory, pool: int, queue: int, touches: int) -> int:
    """The first row of a queue that may go, or was touched so often; else NONE."""
    leaf = m[pool + LEAF] == 1
    row = m[pool + HEAD + queue]
    while row >= 0:
        after = m[row + AFTER]
        if leaf and m[row + CHILDREN] > 0:
            if m[row + BEFORE] < 0:
                park(m, pool, row)
        elif m[row + HELD] == 0 or m[row + COUNT] >= touches:
            break
        row = after
    return row


@compiled
def foremost(m: Memory, pool: int) -> int:
    """The row that goes next where queues alone decide."""
    kind, never = m[pool + KIND], 2**31 - 1
    first = 0
    if kind == TWO_Q and m[pool + LENGTH] <= m[pool + CAPACITY] // 4:
        first = 1
    if kind == ARC:
        recent, target = m[pool + LENGTH], _target(m, pool)
        row = m[pool + PENDING]
        tie = recent == target and row > 0 and m[row + STATE] == WANTED + 1
        first = 0 if recent > target or tie else 1
    if kind <= TTL:
        return _front(m, pool, 0, never)
    for step in range(SEGMENTS if kind == SLRU else 2):
        row = _front(m, pool, step ^ first, never)
        if row >= 0:
            return row
    return NONE


@compiled
def untouched(m: Memory, pool: int) -> int:
    """S3-FIFO's next. In the small queue and in main, what was touched is moved on."""
    capacity = m[pool + CAPACITY]
    plain = m[pool + KIND] == S3FIFO
    least = 2 if plain else 1  # touches that let a block of the small queue stay
    small_run = False
    while True:
        if not plain:
            first = 0 if 10 * m[pool + LENGTH] >= m[pool + BLOCKS] else 1
        elif small_run and m[pool + LENGTH] > 0:
            first = 0
        else:
            large = m[pool + LENGTH + 1] > capacity - int(capacity * 0.1)
            first = 1 if large or m[pool + LENGTH] == 0 else 0
        queue = first
        row = _front(m, pool, queue, least if queue == 0 else 1)
        if row < 0:
            queue = 1 - first
            row = _front(m, pool, queue, least if queue == 0 else 1)
        if row < 0 or m[row + COUNT] < (least if queue == 0 else 1):
            return row
        small_run = queue == 0
        m[row + COUNT] = 0 if queue == 0 else min(m[row + COUNT], MOST_TOUCHES) - 1
        unlink(m, pool, row)
        append(m, pool, row, 1)


@compiled
def leave_queue(m: Memory, pool: int, row: int) -> None:
    """Out of its queue, to the ghosts where the policy keeps some."""
    kind, queue, capacity = m[pool + KIND], m[row + STATE] - 1, m[pool + CAPACITY]
    if kind == ARC:
        _leave_arc(m, pool, row)
        return
    unlink(m, pool, row)
    if kind <= SLRU or queue > 0:
        free_row(m, pool, row)
    else:
        append(m, pool, row, SEGMENTS)
    most = m[pool + BLOCKS]  # ghosts
    if kind == TWO_Q:
        most = capacity // 2
    elif kind == S3FIFO:
        most = int(capacity * 0.9)
    while m[pool + LENGTH + SEGMENTS] > most:
        drop_oldest(m, pool, SEGMENTS)


@compiled
def _leave_arc(m: Memory, pool: int, row: int) -> None:
    capacity, queue = m[pool + CAPACITY], m[row + STATE] - 1
    recent, often = m[pool + LENGTH], m[pool + LENGTH + 1]
    ghosts, ghosts_often = m[pool + LENGTH + SEGMENTS], m[pool + LENGTH + SEGMENTS + 1]
    forgotten = False
    if m[pool + PENDING] == 0:
        if recent + ghosts >= capacity:
            forgotten = recent >= capacity and queue == 0
            if not forgotten:
                drop_oldest(m, pool, SEGMENTS)
        elif recent + often + ghosts + ghosts_often >= 2 * capacity:
            drop_oldest(m, pool, SEGMENTS + 1)
    unlink(m, pool, row)
    if forgotten:
        free_row(m, pool, row)
    else:
        append(m, pool, row, SEGMENTS + queue)
    while m[pool + LENGTH + SEGMENTS] + m[pool + LENGTH + SEGMENTS + 1] > capacity:
        fewer = SEGMENTS if m[pool + LENGTH + SEGMENTS] > 0 else SEGMENTS + 1
        drop_oldest(m, pool, fewer)
