"""Made-up conversations from a seed, a small `Trace` for replays in the store.

A twin of a real trace, with its statistics, is `kvbench.sim.trace.twin`.
"""

import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

import xxhash

from kvbench.errors import UsageError
from kvbench.sim.trace.requests import MOONCAKE_BLOCK_TOKENS, Request, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """What made-up requests are like: turns of conversations, some of them much more popular.

    `live` conversations go on at a time; the r-th is chosen with a probability in proportion to
    r^-`skew` (Zipf). A turn's input is the system prompt, all turns before with their answers, and
    new tokens. One that would exceed `most_tokens` is over, and a new one takes its place. Gaps
    between arrivals, new tokens and answers are exponential. The numbers are our choice: of no
    particular service, and small, so that a replay of some hundred requests shows reuse.
    """

    rate_per_s: float = 4.0
    live: int = 24
    skew: float = 1.0
    system_tokens: int = 1024
    turn_tokens: float = 900.0  # mean of the new tokens of a turn
    answer_tokens: float = 300.0  # mean
    most_tokens: int = 12_288
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "live", "turn_tokens", "answer_tokens", "block_tokens"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}: it has to be more than 0")
        if self.skew < 0 or not 0 <= self.system_tokens < self.most_tokens:
            raise UsageError(
                f"skew {self.skew}, system_tokens {self.system_tokens}: expected skew of at least "
                f"0 and a system prompt shorter than most_tokens, {self.most_tokens}"
            )


@dataclass(slots=True)
class _Talk:
    """One conversation so far."""

    tokens: int
    full: list[int] = field(default_factory=list[int])  # ids of its full blocks, system included


def synthetic(
    count: int, *, seed: int, conversations: Conversations | None = None, name: str = "synthetic"
) -> Trace:
    """`count` made-up requests, the same for the same seed wherever they are made.

    Raises:
        UsageError: `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"a trace of {count} requests: expected at least 1")
    requests = _Maker(conversations or Conversations(), seed).requests(count)
    text = repr([(r.arrival_s, r.input_tokens, r.output_tokens, r.blocks) for r in requests])
    return Trace(
        name=name,
        digest=xxhash.xxh3_64_hexdigest(text.encode()),
        block_tokens=(conversations or Conversations()).block_tokens,
        requests=tuple(requests),
    )


class _Maker:
    """Makes up requests one after another."""

    def __init__(self, like: Conversations, seed: int) -> None:
        self._like = like
        # Only `random()` is used, which Python promises to give the same numbers in every version.
        self._random = random.Random(seed)
        weights = [rank**-like.skew for rank in range(1, like.live + 1)]
        self._cumulative = list(accumulate(weights))
        self._system = list(range(like.system_tokens // like.block_tokens))
        self._next_id = len(self._system)
        self._talks = [self._new() for _ in range(like.live)]

    def requests(self, count: int) -> list[Request]:
        made: list[Request] = []
        now_s = 0.0
        for _ in range(count):
            made.append(self._turn(round(now_s, 6)))  # as a trace in microseconds would have it
            now_s += self._exponential(1 / self._like.rate_per_s)
        return made

    def _turn(self, arrival_s: float) -> Request:
        like = self._like
        rank = bisect_left(self._cumulative, self._random.random() * self._cumulative[-1])
        new_tokens = 1 + int(self._exponential(like.turn_tokens))
        output_tokens = 1 + int(self._exponential(like.answer_tokens))
        if self._talks[rank].tokens + new_tokens > like.most_tokens:
            self._talks[rank] = self._new()
        talk = self._talks[rank]
        input_tokens = min(talk.tokens + new_tokens, like.most_tokens)
        blocks = self._blocks(talk, input_tokens)
        # The answer is tokens of the next turn's input.
        talk.tokens = input_tokens + output_tokens
        return Request(arrival_s, input_tokens, output_tokens, blocks)

    def _new(self) -> _Talk:
        return _Talk(self._like.system_tokens, self._system.copy())

    def _blocks(self, talk: _Talk, tokens: int) -> tuple[int, ...]:
        """Ids of the input's blocks. A partial block is another one than when it is full."""
        while len(talk.full) < tokens // self._like.block_tokens:
            talk.full.append(self._id())
        partial = [self._id()] if tokens % self._like.block_tokens else []
        return (*talk.full[: tokens // self._like.block_tokens], *partial)

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self._random.random())
