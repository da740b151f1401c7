"""The shape of a made-up service from a handful of numbers, for who has no trace to fit to.

Lengths and times are exponential around their means, turns are geometric, conversations begin as a
Poisson process. That is a choice, not what services were seen to do: a fitted shape is better.
"""

import math
from dataclasses import dataclass, fields

from kvbench.errors import UsageError
from kvbench.sim.trace.requests import MOONCAKE_BLOCK_TOKENS
from kvbench.sim.trace.shape import (
    BLOCK_EDGES,
    DEPTH_EDGES,
    MOST_NEXT,
    OUTPUT_BINS,
    PROBABILITIES,
    Group,
    Shape,
)

_LARGEST = 0.9999  # an exponential has no largest value: this quantile stands for it
_MOST_TURNS = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """Means of what is to be made up."""

    rate_per_s: float = 4.0  # requests, of all turns
    first_tokens: float = 2000.0  # input of a conversation's first turn, without what is shared
    turn_tokens: float = 300.0  # that each later turn adds to the input and answer before
    answer_tokens: float = 300.0
    turns: float = 3.0  # of a conversation
    think_s: float = 60.0  # from a request to the next turn
    shared_tokens: int = 512  # a prefix of all; whole blocks of it are shared
    most_tokens: int = 131_072
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "shared_tokens" else 1e-6
            if not math.isfinite(value) or value < least:
                raise UsageError(f"{each.name} is {value}: expected a number above 0")
        if not 1 <= self.turns <= _MOST_TURNS:
            raise UsageError(f"turns is {self.turns}: expected from 1 to {_MOST_TURNS:g}")
        if self.shared_tokens >= self.most_tokens:
            raise UsageError(
                f"shared_tokens {self.shared_tokens}: expected less than most_tokens, "
                f"{self.most_tokens}"
            )


def stated_shape(stated: Stated) -> Shape:
    """The shape of what was stated."""
    sizes = len(BLOCK_EDGES) + 1
    shared = stated.shared_tokens // stated.block_tokens
    answers = _exponential(stated.answer_tokens)
    follow = min(1 - 1 / stated.turns, MOST_NEXT)
    return Shape(
        source=f"stated: {stated}",
        block_tokens=stated.block_tokens,
        most_tokens=stated.most_tokens,
        tick_ms=0,
        gap_ms=_exponential(1000.0 * stated.turns / stated.rate_per_s, digits=3),
        begin=[0.0, 1.0],
        groups=[Group(share=1.0, blocks=shared)] if shared else [],
        first_tokens=_exponential(
            stated.first_tokens + stated.shared_tokens - shared * stated.block_tokens
        ),
        output_edges=[0.0] * (OUTPUT_BINS - 1),
        output_tokens=[[answers] * OUTPUT_BINS] * 2,
        next_turns=[[round(follow, 6)] * sizes] * (len(DEPTH_EDGES) + 1),
        lag_ms=[[_exponential(1000.0 * stated.think_s)] * sizes] * 2,
        match=[[0.0, 1.0, 0.0, 0.0]] * sizes,
        added_tokens=[[_exponential(stated.turn_tokens)] * sizes] * 2,
        branch_share=[0.0] * len(PROBABILITIES),
        branch_tokens=[1.0] * len(PROBABILITIES),
    )


def _exponential(mean: float, digits: int = 0) -> list[float]:
    """Its quantiles; rounded, so that machines agree on them."""
    return [round(-mean * math.log(1 - min(p, _LARGEST)), digits) for p in PROBABILITIES]
