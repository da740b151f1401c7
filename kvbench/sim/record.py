"""What simulations gave, and the file it is kept in: schema `kvbench.simulation/1`.

Base units and shares only. Every figure is SIMULATED: it follows from a trace, from calibrations
that each run names, and from rules; nothing in here was measured by the run that wrote it. Holds no
time of day and no path, so that the same simulation gives the same bytes. Computes nothing.
"""

from enum import StrEnum
from typing import Any

import msgspec

from kvbench.errors import UsageError
from kvbench.sim.options import Axis, Options, Prices, Value

SCHEMA = "kvbench.simulation/1"
LABEL = "SIMULATED: computed from a trace and calibrations, not measured"


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """The trace as it was read or generated, before `requests` and `rate_scale`."""

    name: str
    digest: str
    generated: bool  # no file: a twin that kvbench makes up
    block_tokens: int
    has_blocks: bool  # False: lengths only, so nothing can be used again
    requests: int
    duration_s: float  # from the first arrival to the last
    input_tokens: int  # of all requests
    output_tokens: int
    unique_blocks: int


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A time over the requests that have it. A percentile needs ten requests beyond it."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What came from one place, as a share of all blocks or tokens of the input.

    The token share of a request is split over its sources by their blocks.
    """

    name: str  # "hbm" | "dram" | "nvme" | "peer" | "central"
    block: float
    token: float


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the time something worked."""

    name: str  # "prefill", "dram read", "network", …
    mean: float  # over nodes
    most: float  # of the busiest node
    bytes: float | None  # over all nodes; None where it moves none


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Mean seconds of the critical path to the first token; they add up to the mean TTFT."""

    queue: float
    load: float
    transfer: float
    compute: float
    hand_off: float


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars, from the user's prices, for the simulated time. Tokens are those served."""

    per_hour: float
    per_million_tokens: float  # of input and output
    per_million_output_tokens: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation in figures. A figure that is missing is null; `missing` says why.

    `block_hit_rate` is sum(k) / sum(m) and `token_hit_rate` is sum(cached tokens) / sum(n) over
    requests that were served, with k leading blocks of m used and n input tokens.
    """

    requests: int
    served: int
    refused: int
    good: int  # served within the objective
    good_share: float  # of all requests
    goodput_per_s: float  # good requests a second of the simulated time
    duration_s: float  # from the first arrival to the last finish
    input_tokens_per_s: float
    output_tokens_per_s: float
    block_hit_rate: float | None
    token_hit_rate: float | None
    sources: list[Source]
    ttft_s: Spread
    tpot_s: Spread
    parts_s: Parts | None
    busy: list[Busy]
    busiest_node: float | None  # its requests over the mean of all nodes
    evicted_blocks: dict[str, int]
    dropped_blocks: dict[str, int]  # on their way into a tier, which was busy taking others in
    stale_hints: int
    replicated_blocks: int
    cost: Cost | None
    ttft_curve: list[tuple[float, float]]  # share of requests, seconds that it stays below
    missing: dict[str, str] = {}


class RequestPath(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one request went."""

    number: int  # from 0, in order of arrival
    arrival_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    blocks: int
    hit_blocks: dict[str, int]
    node: int | None  # None: refused
    decode_node: int | None
    parts_s: Parts | None
    ttft_s: float | None
    tpot_s: float | None
    finish_s: float | None


class State(StrEnum):
    """Whether a run has figures."""

    SIMULATED = "simulated"
    FAILED = "failed"  # `reason` says why


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One combination of a sweep."""

    changed: dict[str, Value]  # the options that the sweep varies
    state: State
    reason: str = ""
    calibrations: list[str] = []  # what each part of the model comes from
    outside: list[str] = []  # why a calibration is used beyond its range
    capacity_blocks: dict[str, int] = {}  # of a node, by tier; "central" of the whole store
    summary: Summary | None = None
    request: RequestPath | None = None


class Ideal(msgspec.Struct, frozen=True, kw_only=True):
    """One LRU pool for all requests, in zero time: block hit rate by capacity in blocks."""

    capacity_blocks: list[int]
    block_hit_rate: list[float]


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one `kvbench simulate` gave."""

    schema: str = SCHEMA
    label: str = LABEL
    kvbench_version: str
    trace: Traffic
    options: Options  # `tiers` has a file's name without its directory
    prices: Prices | None
    sweep: list[Axis]
    notes: list[str]
    ideal: Ideal | None
    runs: list[Run]


def encode_simulation(simulation: Simulation) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(simulation), indent=1) + b"\n"


def decode_simulation(data: bytes, source: str) -> Simulation:
    """The simulation in `data`; `source` names it in errors.

    Raises:
        UsageError: it is not one, or is damaged.
    """
    try:
        simulation = msgspec.json.decode(data, type=Simulation)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"{source} is not a kvbench simulation: {error}") from None
    if simulation.schema != SCHEMA:
        raise UsageError(
            f"{source} has schema {simulation.schema[:60]!r}, this kvbench reads {SCHEMA!r}: "
            "upgrade kvbench to read it"
        )
    return simulation


def simulation_schema() -> dict[str, Any]:
    """The JSON Schema of a simulation."""
    return msgspec.json.schema(Simulation)
