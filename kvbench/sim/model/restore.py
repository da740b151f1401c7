"""Load or recompute: what restoring a cached prefix costs either way, and both ways at once.

Loading p tokens pays if its time is below alpha p + beta p^2, what computing them would add to a
prefill that runs anyway: the fixed part of a prefill is paid in both cases. Both at once, as in
Cake (arXiv 2410.03065): compute from the head, load from the tail, and meet where both take as
long.
"""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from kvbench.errors import UsageError
from kvbench.sim.model.compute import Compute
from kvbench.sim.model.curve import Curve
from kvbench.sim.model.prediction import Prediction, around

LONGEST = 2**22  # tokens up to which a break-even is looked for
# Mooncake (FAST'25) Eq. 1: FLOPs of a layer are a n^2 d + b n d^2, not causal
EQ1_A, EQ1_B = 4.0, 22.0


class Way(StrEnum):
    """What is faster."""

    LOAD = "load"
    RECOMPUTE = "recompute"
    UNCLEAR = "unclear"  # the ranges overlap


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a prefix may be loaded from: a curve, and the blocks it is read in."""

    name: str
    curve: Curve
    block_bytes: float
    depth: int
    batch: int = 1  # blocks of a request
    size_bytes: Callable[[int], int]  # of so many tokens, as far as this way carries them

    def load_s(self, tokens: int) -> Prediction:
        """Seconds to load the cache of `tokens` tokens."""
        size = self.size_bytes(tokens)
        return self.curve.seconds(
            size, block_bytes=self.block_bytes, batch=self.batch, depth=self.depth
        )


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """One prefix from one source, modelled."""

    tokens: int
    tier: str
    size_bytes: int
    load: Prediction
    recompute: Prediction
    faster: Way
    break_even_bytes_per_s: float  # a source above it is faster than recomputing
    split_tokens: int  # computed from the head while the others are loaded
    split: Prediction


def recompute_s(compute: Compute, tokens: int) -> Prediction:
    """What computing the first `tokens` tokens adds to a prefill."""
    whole = compute.prefill_s(tokens)
    return around(
        whole.value - compute.prefill.fixed_s,
        compute.prefill_range.low,
        compute.prefill_range.high,
        unit="s",
        source=whole.source,
        outside=whole.outside,
    )


def restore(compute: Compute, source: Source, tokens: int) -> Restore:
    """Both ways for a prefix of `tokens` tokens, and both at once."""
    load, again = source.load_s(tokens), recompute_s(compute, tokens)
    size = source.size_bytes(tokens)
    computed = split_tokens(compute, source, tokens)
    head, tail = recompute_s(compute, computed), source.load_s(tokens - computed)
    faster = Way.UNCLEAR
    if load.high < again.low:
        faster = Way.LOAD
    elif again.high < load.low:
        faster = Way.RECOMPUTE
    return Restore(
        tokens=tokens,
        tier=source.name,
        size_bytes=size,
        load=load,
        recompute=again,
        faster=faster,
        break_even_bytes_per_s=size / again.value,
        split_tokens=computed,
        split=msgspec.structs.replace(
            head.plus(tail),
            value=max(head.value, tail.value),
            low=max(head.low, tail.low),
            high=max(head.high, tail.high),
        ),
    )


def break_even_tokens(compute: Compute, source: Source) -> int | None:
    """The length from which on loading is faster, always; None: at no length up to `LONGEST`."""

    def slower(tokens: int) -> bool:
        return source.load_s(tokens).value > recompute_s(compute, tokens).value

    tokens = LONGEST
    if slower(tokens):
        return None
    while tokens >= 1 and not slower(tokens):
        tokens //= 2
    low, high = tokens, max(1, 2 * tokens)  # loading is slower at `low`, not at `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if slower(middle) else (low, middle)
    return high


def split_tokens(compute: Compute, source: Source, tokens: int) -> int:
    """How many are computed, from the head, so that loading the others takes as long."""
    low, high = 0, tokens  # computing grows and loading falls with the tokens that are computed
    while high - low > 1:
        middle = (low + high) // 2
        if recompute_s(compute, middle).value < source.load_s(tokens - middle).value:
            low = middle
        else:
            high = middle

    def both_s(computed: int) -> float:
        return max(recompute_s(compute, computed).value, source.load_s(tokens - computed).value)

    return min((low, high), key=both_s)


def eq2_bytes_per_s(
    *, hidden: int, group: int, flops: float, tokens: int, element_bytes: float = 2.0
) -> float:
    """Mooncake's Eq. 2: the rate above which loading beats recomputing at `flops` FLOP/s.

    2 d s G / (group (a p d + b d^2)), with `group` query heads for each KV head.

    Raises:
        UsageError: a value is not above 0.
    """
    if min(hidden, group, flops, tokens, element_bytes) <= 0:
        raise UsageError("hidden, group, flops, tokens, element_bytes: expected all above 0")
    work = group * (EQ1_A * tokens * hidden + EQ1_B * hidden**2)
    return 2 * hidden * element_bytes * flops / work
