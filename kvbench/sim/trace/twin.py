"""Made-up traces with the statistics of a real one: the same for a seed on every machine.

Nothing here reads a trace: a twin is made from a `Shape`. All of a twin is held in memory, with 4
bytes for each block of each request.
"""

import numpy as np
import xxhash

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace.shape import PROBABILITIES, Shape, default_shape
from kvbench.sim.trace.twin_arrays import (
    AT,
    DEPTH,
    DONE,
    GROUPS,
    I64,
    IDS,
    INPUT_TOKENS,
    MADE,
    NEEDS_UNIFORMS,
    NEXT,
    OUTPUT_TOKENS,
    TOO_MANY_BLOCKS,
    Made,
    Tables,
)

DEFAULT_REQUESTS = 12_000  # about as many as the trace has that the default was fitted to
DEFAULT_NAME = "conversation-twin"

_AT_ONCE = 1 << 16  # uniforms; how many decides which, so it stays
_GROWTH = 1.2
_S_PER_MS = 1e-3


def default_trace(requests: int = DEFAULT_REQUESTS, seed: int = 0) -> Columns:
    """Requests like those of Mooncake's conversation trace (FAST'25), from no file.

    Raises:
        UsageError: `requests` is below 1.
    """
    return generated(requests, seed)


def generated(
    count: int, seed: int, *, shape: Shape | None = None, name: str = DEFAULT_NAME
) -> Columns:
    """`count` requests of a shape; the first of more are the same ones.

    Args:
        count: at least 1. Ten million of the default take about 2 GB.
        seed: at least 0.
        shape: by default that of the conversation trace.
        name: of the trace.

    Raises:
        UsageError: count or seed is not as above, or there are too many different blocks.
    """
    if count < 1 or seed < 0:
        raise UsageError(f"{count} requests, seed {seed}: expected at least 1 and 0")
    of = shape or default_shape()
    made, state = _made(count, seed, of)
    hasher = xxhash.xxh3_64()
    for array in (made.arrival_ms, made.rows[:DEPTH], made.starts, made.ids):
        hasher.update(np.ascontiguousarray(array).data)
    return Columns(
        name=name,
        digest=hasher.hexdigest(),
        block_tokens=of.block_tokens,
        arrival_s=(made.arrival_ms - made.arrival_ms[0]) * _S_PER_MS,
        input_tokens=made.rows[INPUT_TOKENS],
        output_tokens=made.rows[OUTPUT_TOKENS],
        starts=made.starts,
        ids=made.ids,
        unique_blocks=int(state[NEXT]),
        notes=(f"generated, seed {seed}: {of.source}",),
    )


def _made(count: int, seed: int, shape: Shape) -> tuple[Made, I64]:
    # Not at the top: it brings numba, which takes half a second.
    from kvbench.sim.trace.twin_kernel import make  # noqa: PLC0415

    tables = _tables(shape)
    random = np.random.Generator(np.random.PCG64(seed))
    most_blocks = shape.most_tokens // shape.block_tokens + 2
    made = Made(
        arrival_ms=np.zeros(count, np.int64),
        rows=np.zeros((3, count), np.int32),
        starts=np.zeros(count + 1, np.int64),
        ids=np.zeros(2 * most_blocks + 4 * count, np.int32),
    )
    pending = np.zeros((2, 1024), np.int64)
    state = np.zeros(GROUPS + len(shape.groups), np.int64)
    state[GROUPS:] = -1
    uniforms = random.random(_AT_ONCE)
    while (needs := make(tables, made, pending, state, uniforms, count)) != DONE:
        if needs == NEEDS_UNIFORMS:
            # What is left comes first, so that the size of a piece changes nothing.
            uniforms = np.concatenate((uniforms[state[AT] :], random.random(_AT_ONCE)))
            state[AT] = 0
        elif needs == TOO_MANY_BLOCKS:
            raise UsageError(
                f"{count} requests have more than 2^31 different blocks: at most {state[MADE]} fit"
            )
        elif len(made.ids) - state[IDS] <= most_blocks:
            _grow(made, state, count, most_blocks)
        else:
            pending = np.concatenate((pending, np.zeros_like(pending)), axis=1)
    made.ids.resize(int(state[IDS]), refcheck=False)
    return made, state


def _grow(made: Made, state: I64, count: int, most_blocks: int) -> None:
    """More room for ids: as much as all requests will need by what they took so far, or a fifth.

    In place: the operating system moves the pages, so that there are never two copies.
    """
    needed = int(1.02 * count / max(int(state[MADE]), 1) * int(state[IDS]))
    room = min(max(needed, len(made.ids)), int(_GROWTH * len(made.ids)))
    made.ids.resize(room + most_blocks, refcheck=False)


def _tables(shape: Shape) -> Tables:
    shares = [group.share for group in shape.groups]
    # What the shares leave is the next row's, which is no group.
    picks = [shape.begin, [*shares, max(0.0, 1 - sum(shares))], *shape.match]
    cumulative = np.ones((len(picks), max(map(len, picks)) + 1))
    for row, pick in enumerate(picks):
        cumulative[row, : len(pick) - 1] = np.cumsum(pick)[:-1]
    quantiles = [
        *(shape.gap_ms, shape.first_tokens, shape.branch_share, shape.branch_tokens),
        *(each for row in (*shape.lag_ms, *shape.added_tokens) for each in row),
        *(each for row in shape.output_tokens for each in row),
    ]
    numbers = [shape.block_tokens, shape.most_tokens, shape.tick_ms]
    return Tables(
        probabilities=np.array(PROBABILITIES),
        quantiles=np.array(quantiles),
        cumulative=cumulative,
        next_turns=np.array(shape.next_turns),
        output_edges=np.array(shape.output_edges),
        numbers=np.array([*numbers, *(group.blocks for group in shape.groups)], np.int64),
    )
