"""Traces of requests: when they come, how long they are, and the blocks of their input.

Read from Mooncake's JSONL, or made up from a seed. A block's id names its whole prefix: equal ids
mean equal tokens up to the end of the block. Replays nothing, and knows neither bytes nor tiers.

May import: kvbench.errors. msgspec and xxhash, not torch.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import msgspec
import xxhash

from kvbench.errors import UsageError

MOONCAKE_BLOCK_TOKENS = 512  # one hash id for so many tokens (Mooncake, FAST'25 artefact)
S_PER_MS = 1e-3
_AZURE = b"TIMESTAMP,"  # how the CSV files of Azure's LLM inference traces begin


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `blocks` are the ids of its input's blocks in order, the last may be partial."""

    arrival_s: float  # since the trace began
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival."""

    name: str
    digest: str  # 16 hex digits: XXH3-64 of the file, or of what was made up
    block_tokens: int
    requests: tuple[Request, ...]

    def first(self, count: int) -> "Trace":
        """The first `count` requests; name and digest stay those of the whole."""
        return replace(self, requests=self.requests[:count])

    @property
    def unique_blocks(self) -> int:
        """How many different blocks it refers to."""
        return len({block for request in self.requests for block in request.blocks})

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last; 0 without requests."""
        if not self.requests:
            return 0.0
        return self.requests[-1].arrival_s - self.requests[0].arrival_s


class _Row(msgspec.Struct):
    timestamp: float  # ms
    input_length: int  # tokens
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path) -> Trace:
    """A trace in Mooncake's format: one JSON object a line.

    `timestamp` (ms), `input_length` and `output_length` (tokens), `hash_ids` (one for each block
    of 512 tokens of the input, the last block possibly partial); other fields are ignored. Every
    row is checked: arrivals are in order, there are ceil(input / 512) ids, and an id always follows
    the same one, since it names the prefix. A row that breaks this would shift every hit rate.

    Raises:
        UsageError: the file cannot be read, is of another kind, or a row is wrong; it names the
            line and what was seen there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read trace {path}: {error.strerror}") from None
    if data.startswith(_AZURE):
        raise UsageError(
            f"{path} has token counts and no block hashes (an Azure LLM inference trace): what is "
            "used again cannot be told; use a trace in Mooncake's JSONL format"
        )
    decoder = msgspec.json.Decoder(_Row)
    before: dict[int, int | None] = {}  # by id, the one it follows
    requests: list[Request] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            shown = line[:40].decode(errors="replace")
            raise UsageError(f"{path} line {number}: {error}; seen: {shown!r}") from None
        wrong = _wrong(row, requests[-1] if requests else None) or _unchained(row.hash_ids, before)
        if wrong:
            raise UsageError(f"{path} line {number}: {wrong}")
        requests.append(
            Request(
                row.timestamp * S_PER_MS, row.input_length, row.output_length, tuple(row.hash_ids)
            )
        )
    if not requests:
        raise UsageError(f"{path} has no requests: expected one JSON object a line")
    return Trace(
        name=path.name,
        digest=xxhash.xxh3_64_hexdigest(data),
        block_tokens=MOONCAKE_BLOCK_TOKENS,
        requests=tuple(requests),
    )


def _wrong(row: _Row, last: Request | None) -> str:
    """What a row cannot say, or nothing."""
    if row.input_length < 1 or row.output_length < 0:
        return (
            f"input_length {row.input_length} and output_length {row.output_length}: "
            "expected at least 1 and 0"
        )
    if not (math.isfinite(row.timestamp) and row.timestamp >= 0):
        return f"timestamp {row.timestamp}: expected milliseconds, at least 0"
    if last is not None and row.timestamp * S_PER_MS < last.arrival_s:
        return (
            f"timestamp {row.timestamp:g} after {last.arrival_s / S_PER_MS:g}: "
            "expected the order of arrival"
        )
    blocks = -(-row.input_length // MOONCAKE_BLOCK_TOKENS)
    if len(row.hash_ids) != blocks:
        return (
            f"{len(row.hash_ids)} hash_ids for {row.input_length} tokens: "
            f"expected {blocks}, one for each {MOONCAKE_BLOCK_TOKENS} tokens"
        )
    return ""


def _unchained(blocks: Sequence[int], before: dict[int, int | None]) -> str:
    """Which id does not name its prefix, or nothing; what each follows is noted."""
    last: int | None = None
    for block in blocks:
        known = before.setdefault(block, last)
        if known != last:
            here, there = _after(last), _after(known)
            return (
                f"hash id {block} comes {here} and elsewhere {there}: expected one prefix of an id"
            )
        last = block
    return ""


def _after(block: int | None) -> str:
    return "first" if block is None else f"after {block}"


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
