"""Clusters that can be computed by hand: a block is 10 tokens and 10 bytes, a token one second."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from kvbench.sim.columns import Columns
from kvbench.sim.scenario import Decode, Path, Prefill, Router, Scenario, Tier

BLOCK_TOKENS = 10
BLOCK_BYTES = 10.0
NO_DECODE = Decode(fixed_s=0.0, per_sequence_s=0.0, per_context_token_s=0.0)


def columns(
    arrival_s: Sequence[float],
    blocks: Sequence[Sequence[int]] = (),
    *,
    tokens: Sequence[int] = (),
    outputs: Sequence[int] = (),
) -> Columns:
    """Requests of whole blocks, numbered anew; or of so many tokens and no blocks."""
    count = len(arrival_s)
    numbers: dict[int, int] = {}
    ids = [numbers.setdefault(block, len(numbers)) for each in blocks for block in each]
    sizes = [len(each) for each in blocks] or [0] * count
    return Columns(
        name="by hand",
        digest="0" * 16,
        block_tokens=BLOCK_TOKENS,
        arrival_s=np.array(arrival_s, np.float64),
        input_tokens=np.array(tokens or [BLOCK_TOKENS * size for size in sizes], np.int32),
        output_tokens=np.array(outputs or [1] * count, np.int32),
        starts=np.array([0, *np.cumsum(sizes)], np.int64),
        ids=np.array(ids, np.int32),
        unique_blocks=len(numbers),
    )


def path(bytes_per_s: float, latency_s: float = 0.0) -> Path:
    """A way for bytes."""
    return Path(latency_s=latency_s, bytes_per_s=bytes_per_s)


def tier(name: str, capacity_blocks: int, bytes_per_s: float = math.inf, **changes: Any) -> Tier:
    """A tier that is read and written at the same speed, in both directions at once."""
    way = None if name == "hbm" else path(bytes_per_s)
    return msgspec.structs.replace(
        Tier(name=name, capacity_blocks=capacity_blocks, read=way, write=way), **changes
    )


def scenario(**changes: Any) -> Scenario:
    """One node with much HBM and nothing else, no overlap, prefill of a second a token.

    More nodes take turns.
    """
    return msgspec.structs.replace(
        Scenario(
            nodes=1,
            router=Router(name="round-robin"),
            prefill=Prefill(fixed_s=0.0, per_token_s=1.0, per_token2_s=0.0),
            decode=NO_DECODE,
            tiers=(tier("hbm", 1000),),
            block_tokens=BLOCK_TOKENS,
            kv_bytes_per_token=BLOCK_BYTES / BLOCK_TOKENS,
            overlap=False,
        ),
        **changes,
    )
