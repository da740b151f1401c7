"""What a twin is made from: the statistics of a trace's requests, and of none in particular.

A model of conversations. New ones begin at random; a request may be followed by the next turn of
its conversation, after some time, which goes on where the one before stopped or branches off
earlier; first requests may share a prefix. Distributions are given as quantiles at PROBABILITIES.
Hours of the day are not modelled: arrivals are stationary. Fitted by `kvbench.sim.trace.fit`.
"""

from collections.abc import Iterator, Sized
from importlib import resources
from itertools import pairwise
from pathlib import Path

import msgspec

from kvbench.errors import UsageError
from kvbench.sim.trace.rows import MOST_TOKENS

SCHEMA = "kvbench.trace-shape/1"

# Finer at both ends: most tokens come from few requests.
PROBABILITIES = (
    *(0.0, 0.002, 0.005, 0.01, 0.02, 0.03),
    *(round(0.025 * i, 3) for i in range(2, 39)),
    *(0.96, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0),
)
DEPTH_EDGES = (1, 2, 3, 5, 9)  # turns before: 0, 1, 2, 3-4, 5-8, more
BLOCK_EDGES = (3, 5, 9, 17, 33, 65, 129)  # blocks of a request: to 2, to 4, to 8, …
DEEP = 3  # turns before, from which on a conversation has a pace of its own
OUTPUT_BINS = 8  # of the input's length, equally full

MATCH_KINDS = ("all of it", "its full blocks", "one less", "a branch")  # of `Shape.match`
MOST_NEXT = 8.0  # turns that may follow one request, on average

_MOST_IDLE = 0.999  # of ticks at which nothing begins: else making one takes forever
_LARGEST = 1e12  # 30 years in ms; sums of a few stay far from what int64 holds
_ROUNDING = 1e-6
_MOST_BLOCKS = 2**24  # of one input; so much room is always kept

Quantiles = list[float]  # at PROBABILITIES, rising


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prefix that first requests share, such as a system prompt."""

    share: float  # of conversations, 0 to 1; what is left to 1 shares nothing
    blocks: int


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters. Lists by depth have len(DEPTH_EDGES) + 1 items, by blocks likewise."""

    schema: str = SCHEMA
    source: str  # what it was fitted to
    block_tokens: int
    most_tokens: int  # no input is longer
    tick_ms: int  # arrivals come together so often; 0: each at its own time
    gap_ms: Quantiles  # between ticks; without ticks, between times when conversations begin
    begin: list[float]  # probability that 0, 1, 2, … conversations begin then
    groups: list[Group]
    first_tokens: Quantiles  # of a conversation's first input, beyond what it shares
    output_edges: list[float]  # input tokens between the OUTPUT_BINS
    output_tokens: list[list[Quantiles]]  # [first or later turn][input's bin]
    next_turns: list[list[float]]  # how many follow a request, by depth and by blocks
    lag_ms: list[list[Quantiles]]  # to the turn that follows: [DEEP or not][by blocks]
    match: list[list[float]]  # by blocks: probabilities of MATCH_KINDS
    added_tokens: list[list[Quantiles]]  # to input and answer before: [DEEP or not][by blocks]
    branch_share: Quantiles  # of the full blocks before, that a branch keeps
    branch_tokens: Quantiles  # input of a branch beyond what it keeps

    def __post_init__(self) -> None:
        for fault in _faults(self):
            raise UsageError(f"shape of a trace: {fault}")


def _faults(shape: Shape) -> Iterator[str]:
    """What cannot be; each may rely on those before it being right."""
    if shape.schema != SCHEMA:
        yield f"schema {shape.schema!r}: expected {SCHEMA}"
    tables = [shape.gap_ms, shape.first_tokens, shape.branch_share, shape.branch_tokens]
    for row in (*shape.lag_ms, *shape.added_tokens, *shape.output_tokens):
        tables += row
    if not _complete(shape, tables):
        yield "a list has a wrong length"
    rest = (shape.begin, *shape.match, *shape.next_turns, shape.output_edges)
    if not all(abs(number) <= _LARGEST for table in (*tables, *rest) for number in table):
        yield f"a number is beyond {_LARGEST:g}"
    if any(a > b for table in tables for a, b in pairwise(table)):
        yield "quantiles have to rise"
    yield from _wrong_shares(shape)
    yield from _wrong_ranges(shape)


def _complete(shape: Shape, tables: list[Quantiles]) -> bool:
    depths, sizes = len(DEPTH_EDGES) + 1, len(BLOCK_EDGES) + 1
    cells = (*shape.lag_ms, *shape.added_tokens)
    lengths: tuple[tuple[Sized, int], ...] = (
        (shape.lag_ms, 2),
        (shape.added_tokens, 2),
        (shape.output_tokens, 2),
        *((row, sizes) for row in cells),
        *((row, sizes) for row in shape.next_turns),
        *((row, OUTPUT_BINS) for row in shape.output_tokens),
        *((row, len(MATCH_KINDS)) for row in shape.match),
        *((table, len(PROBABILITIES)) for table in tables),
        (shape.next_turns, depths),
        (shape.match, sizes),
        (shape.output_edges, OUTPUT_BINS - 1),
        (shape.begin[:1], 1),
    )
    return all(len(row) == length for row, length in lengths)


def _wrong_shares(shape: Shape) -> Iterator[str]:
    if any(min(each) < 0 or abs(sum(each) - 1) > _ROUNDING for each in (shape.begin, *shape.match)):
        yield "probabilities have to be at least 0 and to add up to 1"
    if shape.begin[0] > _MOST_IDLE:
        yield "hardly any conversation begins"
    if any(group.share < 0 or group.blocks < 1 for group in shape.groups):
        yield "a group has a share of at least 0, and a block"
    if sum(group.share for group in shape.groups) > 1 + _ROUNDING:
        yield "the shares of groups add up to at most 1"
    if shape.branch_share[0] < 0 or shape.branch_share[-1] > 1:
        yield "a branch keeps from 0 to 1"


def _wrong_ranges(shape: Shape) -> Iterator[str]:
    if min(shape.gap_ms[0], shape.tick_ms) < 0 or shape.gap_ms[-1] <= 0:
        yield "time has to pass"
    if any(table[0] < 0 for row in (*shape.lag_ms, *shape.output_tokens) for table in row):
        yield "lags and outputs have to be at least 0"
    if any(not 0 <= number <= MOST_NEXT for row in shape.next_turns for number in row):
        yield f"next_turns have to be from 0 to {MOST_NEXT:g}"
    shared = max((group.blocks for group in shape.groups), default=0)
    if not 1 <= shape.block_tokens * max(shared, 1) < shape.most_tokens <= MOST_TOKENS:
        yield f"a block, and what groups share, have to be below most_tokens, up to {MOST_TOKENS}"
    if shape.most_tokens // shape.block_tokens > _MOST_BLOCKS:
        yield f"an input has more than {_MOST_BLOCKS} blocks"


def load_shape(path: Path) -> Shape:
    """The parameters of a file that `kvbench trace generate --fitted FILE` wrote.

    Raises:
        UsageError: it cannot be read or is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return _decoded(data, str(path))


def default_shape() -> Shape:
    """The statistics of Mooncake's conversation trace (FAST'25), shipped with kvbench."""
    data = resources.files("kvbench.data").joinpath("conversation_shape.json").read_bytes()
    return _decoded(data, "conversation_shape.json")


def encoded(shape: Shape) -> bytes:
    """As JSON, a field a line."""
    fields = msgspec.structs.asdict(shape)
    lines = (f"  {name!r}: ".replace("'", '"') + _json(value) for name, value in fields.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _decoded(data: bytes, name: str) -> Shape:
    try:
        return msgspec.json.decode(data, type=Shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name} is no shape of a trace: {error}") from None
