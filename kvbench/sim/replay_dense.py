"""Rows of 16 bytes, one for each id of a trace: what flat replays block by block keep. Compiled.

No table, since the number of a row is its block, and nothing of leaves or of holding. Behind the
blocks come the ends of lists: an end is a row too, before the first of its list and after the last,
so linking asks no questions. `kvbench.sim.replay_rows` has the pools that can do all.

May import: kvbench.sim.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from kvbench.sim.jit import compiled, inlined
from kvbench.sim.replay_rows import Memory

# Words of a row. STATE is above 0 where the block is here. In an end, COUNT is its owner's.
BEFORE, AFTER, STATE, COUNT = 0, 1, 2, 3
WORDS = 4


def make_rows(rows: int, first_end: int = 0, ends: int = 0) -> Memory:
    """Rows of zeros, some of them ends of empty lists. What is not used yet takes no memory."""
    memory = np.zeros((rows, WORDS), np.int32)
    numbers = np.arange(first_end, first_end + ends, dtype=np.int32)
    memory[numbers, BEFORE] = numbers
    memory[numbers, AFTER] = numbers
    return cast("Memory", memory.ravel())


@inlined
def at(m: Memory, row: int, word: int) -> int:
    """A word of a row, as an int64: numba would compile all it is given to once more for int32."""
    return int(np.int64(m[WORDS * row + word]))


@inlined
def link_last(m: Memory, row: int, end: int) -> None:
    """To the back of a list."""
    last = at(m, end, BEFORE)
    m[WORDS * last + AFTER] = row
    m[WORDS * row + BEFORE] = last
    m[WORDS * row + AFTER] = end
    m[WORDS * end + BEFORE] = row


@inlined
def unlink(m: Memory, row: int) -> None:
    """Out of its list."""
    before, after = at(m, row, BEFORE), at(m, row, AFTER)
    m[WORDS * before + AFTER] = after
    m[WORDS * after + BEFORE] = before


@inlined
def unlink_first(m: Memory, end: int) -> int:
    """The front of a list that has one leaves it; its row."""
    first = at(m, end, AFTER)
    after = at(m, first, AFTER)
    m[WORDS * end + AFTER] = after
    m[WORDS * after + BEFORE] = end
    return first


@compiled
def leading_here(m: Memory, ids: NDArray[np.int32], first: int, end: int) -> int:
    """How many blocks of a request, from `ids[first]` to before `ids[end]`, are here in a row."""
    leading = 0
    while first + leading < end and m[WORDS * int(ids[first + leading]) + STATE] > 0:
        leading += 1
    return leading
