"""What a twin is made in: a `Shape` as arrays, the requests made so far, and where it stands.

Plain data for `kvbench.sim.trace.twin_kernel`; makes nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvbench.sim.trace.shape import BLOCK_EDGES

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# What `state` holds; from GROUPS on, where the ids of each shared prefix stand, -1: not used yet
MADE, IDS, NEXT, PENDING, NOW, BEGIN, AT, GROUPS = range(8)
# Why `make` stopped
DONE, NEEDS_ROOM, NEEDS_UNIFORMS, TOO_MANY_BLOCKS = range(4)
MOST_UNIFORMS = 32  # that one request, or one step of time, takes

# Rows of `Tables.quantiles`, of `Tables.cumulative` and of `Made.rows`
GAP, FIRST, BRANCH_SHARE, BRANCH_TOKENS, LAG = range(5)
SIZES = len(BLOCK_EDGES) + 1
ADDED = LAG + 2 * SIZES
OUTPUT = ADDED + 2 * SIZES
BEGINS, GROUP_SHARES, MATCH = range(3)
INPUT_TOKENS, OUTPUT_TOKENS, DEPTH = range(3)


class Tables(NamedTuple):
    """A `Shape` as few arrays: each one more that a loop works on takes long to compile."""

    probabilities: F64  # (q,)
    quantiles: F64  # (rows, q)
    cumulative: F64  # (rows, widest), rising to 1 and then 1
    next_turns: F64  # (depths, sizes)
    output_edges: F64
    numbers: I64  # block_tokens, most_tokens, tick_ms, then the blocks of each group


class Made(NamedTuple):
    """What has been made."""

    arrival_ms: I64  # (n,)
    rows: I32  # (3, n)
    starts: I64  # (n + 1,)
    ids: I32
