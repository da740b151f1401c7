"""Hit rate of one LRU pool against its capacity, for every capacity at once.

One pass finds each use's stack distance: how many different blocks were used since the last use of
the same one (Mattson et al., IBM Systems Journal 9(2), 1970). A pool of c blocks hits where it is
below c. Blocks of a request are touched from the first to the last; an id names its whole prefix,
so the hits of a request are always its first blocks, and the curve is that of prefix hits. Holds
for LRU only: other policies are replayed by `kvbench.sim.replay`.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.jit import COMPILES, compiled

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int32] | NDArray[np.int64] | list[int]

NEVER = -1  # the distance of a first use


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRates:
    """Of one capacity, by definition; each from 0 to 1.

    With k leading blocks found of a request's m, and n tokens of input: block is sum k / sum m,
    token is sum min(k b, n) / sum n with b tokens a block, half_block adds b / 2 tokens for every
    request with 0 < k < m.
    """

    block: float
    token: float
    half_block: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Hits with room for c blocks at index c, from 0 to all of them, where no more would help."""

    references: int  # blocks looked for
    tokens: int  # of input
    block_hits: F64  # (unique_blocks + 1,)
    token_hits: F64
    half_block_hits: F64  # in tokens

    def at(self, capacity_blocks: int) -> HitRates:
        """Hit rates of a pool of so many blocks; more than there are is unbounded."""
        at = min(max(capacity_blocks, 0), len(self.block_hits) - 1)
        return HitRates(
            block=float(self.block_hits[at]) / self.references,
            token=float(self.token_hits[at]) / self.tokens,
            half_block=float(self.half_block_hits[at]) / self.tokens,
        )

    @property
    def unbounded(self) -> HitRates:
        """Hit rates of a pool that never evicts."""
        return self.at(len(self.block_hits) - 1)

    def capacity_for(self, share: float) -> int:
        """The least number of blocks with `share` (0 to 1) of the unbounded block hits."""
        wanted = share * float(self.block_hits[-1])
        return int(np.searchsorted(self.block_hits, wanted))


def lru_curve(columns: Columns) -> Curve:
    """The curve of a trace.

    Raises:
        UsageError: the trace has lengths only.
    """
    distances = stack_distances(columns)
    room = columns.unique_blocks
    # A distance of d hits from a capacity of d + 1 on; a first use never does.
    hits_from = np.where(distances == NEVER, room + 1, distances + 1)
    blocks = np.bincount(hits_from, minlength=room + 2)
    tokens = np.bincount(hits_from, weights=block_sizes(columns), minlength=room + 2)
    token_hits = np.cumsum(tokens, dtype=np.float64)[: room + 1]
    return Curve(
        references=len(columns.ids),
        tokens=int(columns.input_tokens.sum(dtype=np.int64)),
        block_hits=np.cumsum(blocks, dtype=np.float64)[: room + 1],
        token_hits=token_hits,
        half_block_hits=token_hits + columns.block_tokens / 2 * _partly(columns, hits_from),
    )


def stack_distances(columns: Columns) -> I32:
    """For each reference the number of other blocks used since its last use, or NEVER; int32 [m].

    Raises:
        UsageError: the trace has lengths only.
    """
    if not columns.has_blocks:
        raise UsageError(
            f"{columns.name} has lengths and no block hashes: what is used again cannot be told"
        )
    size, room = len(columns.ids), columns.unique_blocks
    if COMPILES:
        out = np.empty(size, np.int32)
        tree = np.zeros(size + 1, np.int32)
        _distances(columns.ids, np.full(room, -1, np.int64), tree, out)
        return out
    # Python's own lists and integers are several times faster there than arrays.
    found = [0] * size
    _distances(columns.ids.tolist(), [-1] * room, [0] * (size + 1), found)
    return np.array(found, np.int32)


def block_sizes(columns: Columns) -> I32:
    """Tokens of each block of each request: `block_tokens`, less in a last one; int32 [m]."""
    sizes = np.full(len(columns.ids), columns.block_tokens, np.int32)
    blocks = np.diff(columns.starts)
    some = blocks > 0
    last = columns.starts[1:][some] - 1
    full = (blocks[some] - 1) * columns.block_tokens
    sizes[last] = columns.input_tokens[some] - full
    return sizes


@compiled
def _distances(ids: _Ints, last: _Ints, tree: _Ints, out: _Ints) -> None:
    """A Fenwick tree over positions holds 1 at the latest use of each id."""
    size = len(ids)
    for i in range(size):
        before = last[ids[i]]
        if before < 0:
            out[i] = -1
        else:
            between = 0
            j = i
            while j > 0:
                between += tree[j]
                j &= j - 1
            j = before + 1
            while j > 0:
                between -= tree[j]
                j &= j - 1
            out[i] = between
            j = before + 1
            while j <= size:
                tree[j] -= 1
                j += j & -j
        j = i + 1
        while j <= size:
            tree[j] += 1
            j += j & -j
        last[ids[i]] = i


def _partly(columns: Columns, hits_from: NDArray[np.int64]) -> F64:
    """How many requests find some but not all of their blocks, at each capacity."""
    some = np.diff(columns.starts) > 0
    # Distances never fall along a request: from its first block on some are found, from its last
    # on all are.
    first = hits_from[columns.starts[:-1][some]]
    last = hits_from[columns.starts[1:][some] - 1]
    size = columns.unique_blocks + 2
    change = np.bincount(first, minlength=size) - np.bincount(last, minlength=size)
    return np.cumsum(change, dtype=np.float64)[:-1]
