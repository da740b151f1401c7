"""Small made-up traces for replays: prefixes of a random forest, as hypothesis draws them."""

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from kvbench.sim.columns import Columns

BLOCK_TOKENS = 16


def columns_of(
    requests: Sequence[Sequence[int]], arrival_s: Sequence[float] | None = None
) -> Columns:
    """A trace of these requests, a second apart; ids are numbered anew as they appear."""
    numbers: dict[int, int] = {}
    ids = [numbers.setdefault(block, len(numbers)) for blocks in requests for block in blocks]
    sizes = [len(blocks) for blocks in requests]
    count = len(requests)
    return Columns(
        name="small",
        digest="0" * 16,
        block_tokens=BLOCK_TOKENS,
        arrival_s=np.array(arrival_s or range(count), np.float64),
        input_tokens=np.array([max(1, BLOCK_TOKENS * size - 5) for size in sizes], np.int32),
        output_tokens=np.ones(count, np.int32),
        starts=np.array([0, *np.cumsum(sizes)], np.int64),
        ids=np.array(ids, np.int32),
        unique_blocks=len(numbers),
    )


@st.composite
def traces(draw: st.DrawFn, most_blocks: int = 24) -> Columns:
    """Requests for prefixes of a forest in which a block follows any of lower number, or none."""
    blocks = draw(st.integers(2, most_blocks))
    parents = [draw(st.integers(-1, block - 1)) for block in range(blocks)]

    def prefix(block: int) -> list[int]:
        return [*prefix(parents[block]), block] if parents[block] >= 0 else [block]

    lasts = draw(st.lists(st.integers(0, blocks - 1), min_size=4, max_size=60))
    waits = draw(st.lists(st.integers(0, 3), min_size=len(lasts), max_size=len(lasts)))
    arrival_s = [float(at) for at in np.cumsum(waits)]
    return columns_of([prefix(last) for last in lasts], arrival_s)


def conversations(seed: int, count: int, longest: int) -> Columns:
    """Turns of a few conversations that begin alike, a block or more longer each time.

    The last turn of a conversation has more than `longest` blocks, by seven at most.
    """
    draw = random.Random(seed)
    talks: list[list[int]] = []
    made: list[list[int]] = []
    block = 2
    while len(made) < count:
        if len(talks) < 6 or draw.random() < 0.2:
            talks.append([0, 1][: draw.randint(1, 2)])
        talk = draw.choice(talks[-8:])
        if len(talk) > longest:
            talks.remove(talk)
            continue
        if draw.random() < 0.3:  # asked once more
            talk = talk[: draw.randint(1, len(talk))]
        else:
            more = draw.randint(1, 5)
            talk += range(block, block + more)
            block += more
        made.append([*talk])
    return columns_of(made, [at / 10 for at in range(count)])


def skewed(seed: int, count: int) -> list[int]:
    """References to single blocks, the first much more popular, for good or drifting."""
    draw = random.Random(seed)
    ids = draw.choice([60, 120, 400])
    weights = [1 / (rank + 1) ** draw.choice([0.3, 0.8, 1.1]) for rank in range(ids)]
    drift = draw.choice([0, 0, 7])
    chosen = draw.choices(range(ids), weights, k=count)
    return [block + drift * (at // 100) for at, block in enumerate(chosen)]
