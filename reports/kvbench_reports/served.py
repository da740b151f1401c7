"""How a replayed trace was served: hits by tier beside bandwidth and latency, and what it cost.

Counts come from the evidence of a row's processes, added up and divided here. A process counts the
whole passes that it made through the trace, or where none ended, as far as it came. Lays nothing
out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kvbench.measure.result import HAS_FIGURE, Report, Row
from kvbench_reports.words import NONE, clean, number, rate_scale, time_scale

EVIDENCE = "replay"
DRIVE = "nvme"
NOTE = (
    "hit: the blocks of a request that arrived and were verified, from its first on without a gap; "
    "of blocks: their sum over that of all blocks, of tokens: the same in tokens of the input; "
    "every pass starts without a block of its own; latency is from a request's arrival to its last "
    "hit, of requests with one; computing takes no time"
)


class _Counts(msgspec.Struct):
    """What one process's evidence says."""

    passes: int
    pass_requests: int
    requests: int
    blocks: int
    tokens: int
    hit_blocks: dict[str, int]
    hit_tokens: int
    late_blocks: int
    refused_blocks: int
    unstored_blocks: int
    block_bytes: int
    moved: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One row of a replay. Shares are of all blocks or tokens that were asked for."""

    case: str
    hit_blocks: float
    hit_tokens: float
    by_tier: dict[str, float]  # share of all blocks
    rate: str
    latency: str  # median and 99th percentile
    evicted: dict[str, int]  # blocks, by tier
    written_bytes: int | None  # to the drive; None without one
    left_out: dict[str, int]  # blocks, by why
    extent: str

    @property
    def tiers_text(self) -> str:
        """`dram 48.7 %, nvme 24.0 %`."""
        return ", ".join(f"{tier} {share(part)} %" for tier, part in self.by_tier.items())

    @property
    def evicted_text(self) -> str:
        """`1,852 dram, 981 nvme`."""
        return ", ".join(f"{blocks:,} {tier}" for tier, blocks in self.evicted.items())

    @property
    def written_text(self) -> str:
        """`8.02 MB`, in decimal units, as drives count what may be written to them."""
        if self.written_bytes is None:
            return NONE
        unit, factor = rate_scale([self.written_bytes])
        return f"{number(self.written_bytes / factor)} {unit.removesuffix('/s')}"

    @property
    def left_out_text(self) -> str:
        """`14 not moved (queue full), 6 not stored (no room)`."""
        told = [f"{blocks:,} {why}" for why, blocks in self.left_out.items() if blocks]
        return ", ".join(told) or "none"

    @property
    def sentence(self) -> str:
        """All of it."""
        written = f"; written to the drive {self.written_text}" if self.written_bytes else ""
        return (
            f"{self.case}: hit {share(self.hit_blocks)} % of blocks ({self.tiers_text}), "
            f"{share(self.hit_tokens)} % of tokens, at {self.rate}, {self.latency}; "
            f"evicted {self.evicted_text}{written}; left out: {self.left_out_text} ({self.extent})"
        )


def served(report: Report) -> list[Served]:
    """The rows of replays that hold a figure, in their order."""
    found: list[Served] = []
    for row in report.rows:
        counts = _counts(row) if row.state in HAS_FIGURE else []
        if counts and sum(each.blocks for each in counts) and sum(each.tokens for each in counts):
            found.append(_served(row, counts))
    return found


def share(part: float) -> str:
    """In percent, one digit after the point: two policies may differ by less than one."""
    return f"{100 * part:.1f}"


def _counts(row: Row) -> list[_Counts]:
    """What the processes say; none where one says it in another way."""
    try:
        return [
            msgspec.convert(process.path_evidence[EVIDENCE], _Counts)
            for process in row.processes
            if EVIDENCE in process.path_evidence
        ]
    except msgspec.ValidationError:
        return []


def _served(row: Row, counts: Sequence[_Counts]) -> Served:
    blocks = sum(each.blocks for each in counts)
    hits: Counter[str] = Counter()
    moved: dict[str, Counter[str]] = {}
    for each in counts:
        hits.update(each.hit_blocks)
        for tier, happened in each.moved.items():
            moved.setdefault(tier, Counter()).update(happened)
    drops = sum(tier["queue_drops"] for tier in moved.values())
    left_out = {
        "past the deadline": sum(each.late_blocks for each in counts),
        "refused (store busy)": sum(each.refused_blocks for each in counts),
        "not stored (no room)": sum(each.unstored_blocks for each in counts),
        "not moved (queue full)": drops,
        "not let into the drive at first touch": moved.get(DRIVE, Counter())["refused_admission"],
    }
    return Served(
        case=clean(row.id),
        hit_blocks=sum(hits.values()) / blocks,
        hit_tokens=sum(each.hit_tokens for each in counts) / sum(each.tokens for each in counts),
        by_tier={clean(tier): hits[tier] / blocks for tier in moved},
        rate=_rate(row),
        latency=_latency(row),
        evicted={clean(tier): happened["evictions"] for tier, happened in moved.items()},
        written_bytes=(moved[DRIVE]["written"] * counts[0].block_bytes if DRIVE in moved else None),
        left_out=left_out,
        extent=_extent(counts),
    )


def _extent(counts: Sequence[_Counts]) -> str:
    """`5 processes, 12 whole passes of 300 requests`, or how far they came."""
    passes = sum(each.passes for each in counts)
    of = "1 process" if len(counts) == 1 else f"{len(counts)} processes"
    partly = [each.requests for each in counts if not each.passes]
    whole = f"{passes:,} whole pass{'' if passes == 1 else 'es'} of {counts[0].pass_requests:,}"
    if partly:
        part = f"only {max(partly):,} of {counts[0].pass_requests:,} requests in a process"
        return f"{of}, {part}: a longer --time-limit has whole passes"
    return f"{of}, {whole} requests"


def _rate(row: Row) -> str:
    if row.bytes_per_s is None:
        return NONE
    unit, factor = rate_scale([row.bytes_per_s])
    return f"{number(row.bytes_per_s / factor)} {unit}"


def _latency(row: Row) -> str:
    found: list[str] = []
    for name in ("p50", "p99"):
        value = None if row.latency_s is None else getattr(row.latency_s, name)
        if value is None:
            found.append(f"{name} {NONE}")
        else:
            unit, factor = time_scale([value])
            found.append(f"{name} {number(value / factor)} {unit}")
    return ", ".join(found)
