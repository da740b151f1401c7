"""The loop that makes a twin's requests one after another; compiled where there is numba.

Uses sums, products and comparisons of float64 and integers only, and draws uniforms from an array
that is filled outside, so that a seed gives the same requests on every machine and without numba.
"""

from kvbench.sim.jit import compiled
from kvbench.sim.trace.shape import BLOCK_EDGES, DEEP, DEPTH_EDGES, MOST_NEXT, OUTPUT_BINS
from kvbench.sim.trace.twin_arrays import (
    ADDED,
    AT,
    BEGIN,
    BEGINS,
    BRANCH_SHARE,
    BRANCH_TOKENS,
    DEPTH,
    DONE,
    F64,
    FIRST,
    GAP,
    GROUP_SHARES,
    GROUPS,
    I64,
    IDS,
    INPUT_TOKENS,
    LAG,
    MADE,
    MATCH,
    MOST_UNIFORMS,
    NEEDS_ROOM,
    NEEDS_UNIFORMS,
    NEXT,
    NOW,
    OUTPUT,
    OUTPUT_TOKENS,
    PENDING,
    SIZES,
    TOO_MANY_BLOCKS,
    Made,
    Tables,
)

_MOST_CHILDREN = int(MOST_NEXT) + 1
_BRANCH = 3  # the last kind of `Shape.match`
_MOST_ID = 2**31 - 1


@compiled
def make(tables: Tables, made: Made, pending: I64, state: I64, uniforms: F64, end: int) -> int:
    """Make requests until there are `end`, or until something is needed; goes on where it was.

    `pending` int64 [2, room] is a binary heap of turns to come, by time and then by the request
    that they follow.
    """
    most_blocks = tables.numbers[1] // tables.numbers[0] + 2
    while state[MADE] < end:
        if (
            len(made.ids) - state[IDS] <= most_blocks
            or pending.shape[1] - state[PENDING] <= _MOST_CHILDREN
        ):
            return NEEDS_ROOM
        if len(uniforms) - state[AT] < MOST_UNIFORMS:
            return NEEDS_UNIFORMS
        if state[NEXT] > _MOST_ID - most_blocks:
            return TOO_MANY_BLOCKS
        if state[PENDING] > 0 and pending[0, 0] <= state[NOW]:
            due_ms, parent = pending[0, 0], pending[1, 0]
            _drop_first(pending, state)
            _later(tables, made, state, uniforms, parent)
            arrival_ms = state[NOW] if tables.numbers[2] > 0 else due_ms
            _finish(tables, made, pending, state, uniforms, arrival_ms)
        elif state[BEGIN] > 0:
            state[BEGIN] -= 1
            _first(tables, made, state, uniforms)
            _finish(tables, made, pending, state, uniforms, state[NOW])
        else:
            gap_ms = _quantile(tables, GAP, uniforms, state)
            whole = int(gap_ms)
            # The fraction is rounded at random, so that the mean stays.
            if _draw(uniforms, state) < gap_ms - whole:
                whole += 1
            state[NOW] += whole
            state[BEGIN] = _pick(tables, BEGINS, uniforms, state)
    return DONE


@compiled
def _first(tables: Tables, made: Made, state: I64, uniforms: F64) -> None:
    """The first request of a conversation: a shared prefix, and tokens of its own."""
    block_tokens, most_tokens = tables.numbers[0], tables.numbers[1]
    group = _pick(tables, GROUP_SHARES, uniforms, state)
    own = int(_quantile(tables, FIRST, uniforms, state))
    blocks = 0
    begin = 0
    matched = 0
    if group < len(tables.numbers) - 3:
        blocks = tables.numbers[3 + group]
        begin = state[GROUPS + group]
        if begin < 0:
            state[GROUPS + group] = state[IDS]
        else:
            matched = blocks
    made.rows[DEPTH, state[MADE]] = 0
    tokens = min(blocks * block_tokens + max(own, 1), most_tokens)
    _emit(tables, made, state, begin, matched, tokens)


@compiled
def _later(tables: Tables, made: Made, state: I64, uniforms: F64, parent: int) -> None:
    """A turn that goes on from `parent`."""
    block_tokens, most_tokens = tables.numbers[0], tables.numbers[1]
    before = int(made.rows[INPUT_TOKENS, parent])
    full = before // block_tokens
    blocks = made.starts[parent + 1] - made.starts[parent]
    size = _size_bin(blocks)
    kind = _pick(tables, MATCH + size, uniforms, state)
    if kind == 0:
        matched = blocks
        tokens = before
    elif kind < _BRANCH:
        matched = max(full - (kind - 1), 0)
        row = ADDED + size + (SIZES if made.rows[DEPTH, parent] >= DEEP else 0)
        added = int(_quantile(tables, row, uniforms, state))
        tokens = before + int(made.rows[OUTPUT_TOKENS, parent]) + added
    else:
        kept = _quantile(tables, BRANCH_SHARE, uniforms, state) * full
        matched = max(int(kept + 0.5), min(full, 2))  # less would be a first request
        tokens = matched * block_tokens + int(_quantile(tables, BRANCH_TOKENS, uniforms, state))
    if kind > 0:
        tokens = min(max(tokens, matched * block_tokens + 1), most_tokens)
        matched = min(matched, (tokens - 1) // block_tokens)
    made.rows[DEPTH, state[MADE]] = made.rows[DEPTH, parent] + 1
    _emit(tables, made, state, made.starts[parent], matched, tokens)


@compiled
def _emit(tables: Tables, made: Made, state: I64, begin: int, matched: int, tokens: int) -> None:
    """Ids of a request: `matched` as they stand from `begin` on, the rest new."""
    blocks = (tokens + tables.numbers[0] - 1) // tables.numbers[0]
    at = state[IDS]
    for i in range(matched):
        made.ids[at + i] = made.ids[begin + i]
    for i in range(matched, blocks):
        made.ids[at + i] = state[NEXT]
        state[NEXT] += 1
    state[IDS] = at + blocks
    made.rows[INPUT_TOKENS, state[MADE]] = tokens
    made.starts[state[MADE] + 1] = at + blocks


@compiled
def _finish(
    tables: Tables, made: Made, pending: I64, state: I64, uniforms: F64, arrival_ms: int
) -> None:
    """Time and answer of the request just made, and the turns that will follow it."""
    i = state[MADE]
    made.arrival_ms[i] = arrival_ms
    depth = made.rows[DEPTH, i]
    row = OUTPUT + (OUTPUT_BINS if depth > 0 else 0)
    for edge in tables.output_edges:
        if edge <= made.rows[INPUT_TOKENS, i]:
            row += 1
    made.rows[OUTPUT_TOKENS, i] = int(_quantile(tables, row, uniforms, state))
    size = _size_bin(int(made.starts[i + 1] - made.starts[i]))
    follow = tables.next_turns[_depth_bin(depth), size]
    children = int(follow)
    if _draw(uniforms, state) < follow - children:
        children += 1
    for _ in range(children):
        row = LAG + size + (SIZES if depth >= DEEP else 0)
        lag_ms = int(_quantile(tables, row, uniforms, state))
        # It comes with the first tick after it is due: half a tick before, to keep the mean.
        _push(pending, state, arrival_ms + max(lag_ms - tables.numbers[2] // 2, 0), i)
    state[MADE] += 1


@compiled
def _draw(uniforms: F64, state: I64) -> float:
    state[AT] += 1
    return float(uniforms[state[AT] - 1])


@compiled
def _quantile(tables: Tables, row: int, uniforms: F64, state: I64) -> float:
    """A draw from a distribution: between two quantiles on a straight line."""
    at = _draw(uniforms, state)
    probabilities = tables.probabilities
    low, high = 0, len(probabilities) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if probabilities[middle] <= at:
            low = middle
        else:
            high = middle
    share = (at - probabilities[low]) / (probabilities[high] - probabilities[low])
    first = tables.quantiles[row, low]
    return float(first + (tables.quantiles[row, high] - first) * share)


@compiled
def _pick(tables: Tables, row: int, uniforms: F64, state: I64) -> int:
    """The first whose cumulative share is above a draw."""
    at = _draw(uniforms, state)
    i = 0
    while tables.cumulative[row, i] <= at:
        i += 1
    return i


@compiled
def _size_bin(blocks: int) -> int:
    i = 0
    for edge in BLOCK_EDGES:
        if edge <= blocks:
            i += 1
    return i


@compiled
def _depth_bin(depth: int) -> int:
    i = 0
    for edge in DEPTH_EDGES:
        if edge <= depth:
            i += 1
    return i


@compiled
def _push(pending: I64, state: I64, due_ms: int, parent: int) -> None:
    i = state[PENDING]
    state[PENDING] += 1
    while i > 0:
        above = (i - 1) // 2
        higher = pending[0, above]
        if higher < due_ms or (higher == due_ms and pending[1, above] <= parent):
            break
        pending[0, i] = higher
        pending[1, i] = pending[1, above]
        i = above
    pending[0, i] = due_ms
    pending[1, i] = parent


@compiled
def _drop_first(pending: I64, state: I64) -> None:
    state[PENDING] -= 1
    size = state[PENDING]
    due_ms, parent = pending[0, size], pending[1, size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and (
            pending[0, child + 1] < pending[0, child]
            or (
                pending[0, child + 1] == pending[0, child]
                and pending[1, child + 1] < pending[1, child]
            )
        ):
            child += 1
        if pending[0, child] > due_ms or (
            pending[0, child] == due_ms and pending[1, child] >= parent
        ):
            break
        pending[0, i] = pending[0, child]
        pending[1, i] = pending[1, child]
        i = child
    pending[0, i] = due_ms
    pending[1, i] = parent
