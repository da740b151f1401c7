"""What a comparison found, and the file it is kept in: schema `kvbench.comparison/1`.

Base units and shares only; a change is in time, so that + is slower for every metric: a rate that
fell from 52 to 50 GB/s changed by +4 %. Computes nothing and prints nothing.
"""

from enum import StrEnum
from typing import Any

import msgspec

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import Caution

SCHEMA = "kvbench.comparison/1"
PASSED, REGRESSION, NOT_COMPARABLE, INCONCLUSIVE = 0, 3, 4, 5


class Verdict(StrEnum):
    """What is said of one metric or of one tier; the order is that of a table, worst first."""

    SLOWER = "SLOWER"  # by more than the margin, beyond doubt
    MISSING = "MISSING"  # BASE has a figure, NEW has none
    NOT_COMPARABLE = "NOT COMPARABLE"  # not the same thing was measured
    UNSURE = "UNSURE"  # none of the others could be shown
    FASTER = "FASTER"  # the mirror image of SLOWER
    NEW = "NEW"  # only NEW has a figure
    SAME = "SAME"  # shown to be within twice the margin


class Design(StrEnum):
    """How the two sides were measured, which decides what may be concluded."""

    PAIRED = "paired"  # one session, interleaved, enough blocks for a paired test
    INTERLEAVED = "interleaved"  # one session, interleaved, few blocks: Welch has more power
    FLOOR = "floor"  # two sessions, with a noise floor of the machine
    QUIET = "quiet"  # two sessions, assumed to be as alike as processes of one
    UNKNOWN = "unknown"  # two sessions and nothing known of how they differ: all UNSURE


class Kind(StrEnum):
    """What a finding is about."""

    RATE = "rate"  # bytes per second of a row
    P99 = "p99"  # 99th percentile of the latency of a row's operations, in seconds
    TIER = "tier"  # geometric mean over the metrics of a group


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one row, or a whole tier, held against itself.

    Without both sides' process values (MISSING, NEW, NOT COMPARABLE) all figures of the test are
    null. `base` and `new` are medians of the process values, in bytes per second or seconds; a
    tier has none, since its rows have no common unit.
    """

    id: str  # the row's id; with ` p99` behind it for latency; `nvme (tier)` for a tier
    kind: Kind
    group: str  # family of margins: hbm, dram, nvme, peer; p99 for every latency
    margin: float  # slowdown that is tolerated, as a share
    verdict: Verdict
    reason: str | None = None
    fails: bool = False  # it is why the gate is red
    row: str | None = None  # the row's id; null for a tier
    base: float | None = None
    new: float | None = None
    change: float | None = None  # share of time: +0.04 is 4 % slower
    low: float | None = None  # 95 % interval of the change
    high: float | None = None
    mde: float | None = None  # smallest slowdown flagged with 80 % power at the hardest Holm step
    test: str | None = None  # "paired t, 10 pairs" | "Welch t, 5 and 5 processes" | "exact" …
    df: float | None = None
    standard_error: float | None = None  # of the log ratio
    floor_sd: float | None = None  # log sd that two sessions add, where a noise floor was given
    p_slower: float | None = None
    p_slower_adjusted: float | None = None  # by Holm, within the family
    p_faster_adjusted: float | None = None
    rank: int | None = None  # of p_slower in its family, 1 is the smallest
    tests: int | None = None  # in the family
    base_values: list[float] = []  # of the processes; for a tier the log means, negative logs
    new_values: list[float] = []
    members: list[str] = []  # of a tier: ids of its metrics


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two reports."""

    path: str
    kvbench_version: str
    session_id: str
    suite: str
    started_at: str
    commit: str | None = None
    side: str | None = None  # of `kvbench ab`
    inject: dict[str, float] = {}


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest slowdown that could have been seen in a group with 80 % power, as shares."""

    group: str
    metrics: int  # that were tested
    metric: float | None  # median over its metrics
    tier: float | None  # of all of them together
    reason: str | None = None  # why there is none


class NoiseUse(msgspec.Struct, frozen=True, kw_only=True):
    """Which noise floor was used."""

    path: str
    sessions: int
    measured_at: str  # the last session's start


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """BASE and NEW, metric by metric and tier by tier; findings are in no particular order."""

    schema: str = SCHEMA
    kvbench_version: str
    base: Source
    new: Source
    machine: Machine  # of NEW
    model: KVGeometry  # of NEW
    simulated: str | None
    design: Design
    blocks: int | None  # most pairs of a metric, when interleaved
    fewest_blocks: int | None = None  # metrics stop at different numbers of pairs
    alpha: float  # family-wise; half for the metrics, half for the tiers
    margins: dict[str, float]
    noise: NoiseUse | None
    findings: list[Finding]
    sight: list[Sight]
    conditions: list[Caution]  # what differs without making the sides incomparable
    differences: list[str]  # of machine or model, when --force let them pass
    exit_code: int
    reasons: list[str]  # behind the exit code, the gravest first; empty when it is 0
    confirm: str | None  # the command that would confirm or settle it

    def having(self, verdict: Verdict) -> list[Finding]:
        """Findings of a verdict, the largest change first, tiers before metrics of equal change."""
        found = [each for each in self.findings if each.verdict is verdict]
        return sorted(found, key=lambda each: (-(each.change or 0.0), each.kind != Kind.TIER))


def encode_comparison(comparison: Comparison) -> bytes:
    """JSON of a comparison."""
    return msgspec.json.encode(comparison) + b"\n"


def decode_comparison(data: bytes, source: str) -> Comparison:
    """The comparison in `data`; `source` names it in errors.

    Raises:
        UsageError: it is not one, or is damaged.
    """
    try:
        comparison = msgspec.json.decode(data, type=Comparison)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"{source} is not a kvbench comparison: {error}") from None
    if comparison.schema != SCHEMA:
        raise UsageError(
            f"{source} has schema {comparison.schema[:60]!r}, this kvbench reads {SCHEMA!r}: "
            "upgrade kvbench to read it"
        )
    return comparison


def comparison_schema() -> dict[str, Any]:
    """The JSON Schema of a comparison."""
    return msgspec.json.schema(Comparison)
