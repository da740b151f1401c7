"""What a hit is: shares of a trace that were found, by each of the definitions in use, named.

Of n input tokens in m blocks of B tokens, k blocks were found from the first on. All definitions
but `any_block` stop at the first miss. They differ by several per cent: say which one is meant.

May import: kvbench.sim.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvbench.sim.columns import Columns
from kvbench.sim.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRatios:
    """Shares from 0 to 1, NaN without requests."""

    block: float  # sum k / sum m
    token: float  # sum min(B k, n) / sum n
    half_block: float  # token, with B / 2 more for each request of which a part was found
    mean_tokens: float  # mean over requests of min(B k, n) / n
    mean_blocks: float  # mean over requests of k / m
    full_blocks: float  # the last block, if partial, taken from both sums of `block`
    not_the_last: float  # sum min(k, m - 1) / sum m: the last block is computed anew
    any_block: float  # blocks that were here at their turn, behind a miss too, / sum m


def hit_ratios(columns: Columns, found: Replay, *, first: int = 0) -> HitRatios:
    """Of the requests from number `first` on."""
    size = columns.block_tokens
    n = columns.input_tokens[first:].astype(np.int64)
    m = np.diff(columns.starts)[first:]
    k = found.leading[first:].astype(np.int64)
    tokens = np.minimum(size * k, n)
    part = (k > 0) & (k < m)
    full = n // size
    return HitRatios(
        block=_share(k, m),
        token=_share(tokens, n),
        half_block=_share(tokens + part * (size // 2), n),
        mean_tokens=_mean(tokens, n),
        mean_blocks=_mean(k, m),
        full_blocks=_share(np.minimum(k, full), full),
        not_the_last=_share(np.minimum(k, m - 1), m),
        any_block=_share(found.hits[first:].astype(np.int64), m),
    )


def cached_tokens(columns: Columns, found: Replay) -> NDArray[np.int64]:
    """By request, the tokens that need not be computed: min(B k, n - 1), for times."""
    k = found.leading.astype(np.int64)
    return np.minimum(columns.block_tokens * k, columns.input_tokens.astype(np.int64) - 1)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else float("nan")


def _mean(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    return float((part / whole).mean()) if len(whole) else float("nan")
