"""Two decisions from a report: the way for small blocks, and whether to quantise what is moved.

Looks only at rows of one report and says of everything whether it was measured or computed from
what was measured. Two ways are told apart where their 95 % intervals do not touch; else it is
unclear. Reads no device and no clock.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from kvbench.errors import UsageError
from kvbench.measure.result import HAS_FIGURE, Report, Row

DIRECTIONS = ("h2d", "d2h")
# The kernel that prepares what goes down to a tier, and the one for what comes back.
# Fused it also does what raw blocks need by themselves: being gathered, or scattered.
STAGES: Mapping[str, tuple[str, str, str, str]] = {
    "offload": ("hbm.gather_quantise", "hbm.quantise", "hbm.gather", "write"),
    "restore": ("hbm.dequantise_scatter", "hbm.dequantise", "hbm.scatter", "read"),
}


class Winner(StrEnum):
    """Which of two ways moved more bytes a second."""

    FIRST = "first"
    SECOND = "second"
    UNCLEAR = "unclear"  # the intervals touch


class SmallBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """The copy engine and the kernel on the same blocks, in bytes per second."""

    direction: str  # "h2d" | "d2h"
    block_bytes: int
    batch: int  # blocks of one call
    programs: int  # of the kernel
    dma_bytes_per_s: float
    kernel_bytes_per_s: float
    faster: str  # "dma" | "kernel" | "unclear"


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """From how many blocks on the kernel is the way to take; None: never, as far as measured."""

    direction: str
    block_bytes: int
    programs: int
    kernel_from_batch: int | None


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks on their way to host memory or back: raw beside quantised, both measured."""

    way: str  # "offload" | "restore"
    format: str
    block_bytes: int
    batch: int
    raw_bytes_per_s: float  # bytes before quantising, for both
    quantised_bytes_per_s: float
    faster: str  # "raw" | "quantised" | "unclear"


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """Computed, not measured: the rate of a tier below which quantising pays on the way there.

    One stage after the other, seconds a byte: raw takes 1 / G + 1 / R and quantised by a fused
    kernel 1 / Q + share / R, so quantising pays while R < (1 - share) / (1 / Q - 1 / G), with R the
    tier's rate in stored bytes, Q the kernel's in bytes before quantising and G that of gathering
    (or scattering) alone. A kernel that is not fused needs the gather as well: then 1 / G cancels.
    Overlapped stages pay up to a higher rate.
    """

    way: str
    format: str
    kernel_bytes_per_s: float  # Q, measured
    stored_share: float  # bytes stored for each byte
    pays_below_bytes_per_s: float | None  # None: at any rate
    tiers: dict[str, bool]  # row id of a tier's rate in this report → whether it pays there


class Crossover(msgspec.Struct, frozen=True, kw_only=True):
    """Both decisions for one machine and model."""

    schema: str = "kvbench.crossover/1"
    kvbench_version: str
    session_id: str
    card: str | None
    model: str
    simulated: str | None
    small_blocks: list[SmallBlocks]
    switches: list[Switch]
    loops: list[Loop]
    break_even: list[BreakEven]


def find_crossover(report: Report) -> Crossover:
    """The decisions that a report's rows allow.

    Raises:
        UsageError: no rows of either kind hold a figure.
    """
    rows = [row for row in report.rows if row.state in HAS_FIGURE and row.bytes_per_s]
    small = list(_small_blocks(rows))
    loops = list(_loops(rows))
    even = list(_break_even(rows))
    if not (small or loops or even):
        raise UsageError(
            "no rows to decide by: hbm.swap beside hbm.transfer, or hbm.offload and hbm.restore; "
            f"measure them with `kvbench run kernels`{_why_not(report)}"
        )
    gpus = report.machine.visible_gpus
    return Crossover(
        kvbench_version=report.kvbench_version,
        session_id=report.session_id,
        card=gpus[0].name if gpus else None,
        model=report.model.name,
        simulated=report.simulated,
        small_blocks=small,
        switches=list(_switches(small)),
        loops=loops,
        break_even=even,
    )


def faster(first: Row, second: Row) -> Winner:
    """Which has the higher rate, by intervals where both have one."""
    low = [row.bytes_per_s_low for row in (first, second)]
    high = [row.bytes_per_s_high for row in (first, second)]
    if None in (*low, *high):
        return Winner.UNCLEAR
    if (low[0] or 0) > (high[1] or 0):
        return Winner.FIRST
    return Winner.SECOND if (low[1] or 0) > (high[0] or 0) else Winner.UNCLEAR


def config_fragment(found: Crossover) -> str:
    """TOML for an engine's or a store's configuration: what to do on this card from now on."""
    measured = "SIMULATED devices, true of no card" if found.simulated else f"card {found.card!r}"
    lines = [
        f"# DMA or kernel for small blocks, and whether to quantise: {measured},",
        f"# model {found.model}, kvbench {found.kvbench_version}, session {found.session_id}",
        f"card = {_quoted(found.card or '')}",
    ]
    for switch in found.switches:
        batch = switch.kernel_from_batch
        lines += [
            "",
            "[[small_blocks]]",
            f"direction = {_quoted(switch.direction)}",
            f"block_bytes = {switch.block_bytes}",
            f"kernel_programs = {switch.programs}",
            "# no kernel: it was not shown faster at the largest batch"
            if batch is None
            else f"kernel_from_batch = {batch}",
        ]
    for each in found.break_even:
        lines += [
            "",
            "[[quantise]]",
            f"way = {_quoted(each.way)}",
            f"format = {_quoted(each.format)}",
            "# computed: it pays at any rate"
            if each.pays_below_bytes_per_s is None
            else f"pays_below_bytes_per_s = {each.pays_below_bytes_per_s:.4g}  # computed",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _why_not(report: Report) -> str:
    reasons = [row.reason for row in report.rows if row.operation in {"swap", "offload"}]
    first = next((reason for reason in reasons if reason), None)
    return f"; here they were not measured: {first}" if first else ""


def _named(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if f"{row.tier}.{row.operation}" == name]


def _small_blocks(rows: Sequence[Row]) -> Iterator[SmallBlocks]:
    """The kernel with the programs that the sweep used: those that most sizes have."""
    dma = {_way(row): row for row in _named(rows, "hbm.transfer")}
    for row in _named(rows, "hbm.swap"):
        copies = dma.get(_way(row))
        if copies is None or copies.params.get("memory") != "pinned":
            continue
        winner = faster(copies, row)
        yield SmallBlocks(
            direction=str(row.params["direction"]),
            block_bytes=int(row.params["block_bytes"]),
            batch=int(row.params["batch"]),
            programs=int(row.params["programs"]),
            dma_bytes_per_s=copies.bytes_per_s or 0.0,
            kernel_bytes_per_s=row.bytes_per_s or 0.0,
            faster={Winner.FIRST: "dma", Winner.SECOND: "kernel"}.get(winner, "unclear"),
        )


def _way(row: Row) -> tuple[object, ...]:
    memory = row.params.get("memory", "pinned")
    return (*(row.params[name] for name in ("direction", "block_bytes", "batch")), memory)


def _switches(points: Sequence[SmallBlocks]) -> Iterator[Switch]:
    """The kernel from a batch on: it must win there and at every larger batch measured."""
    keys = dict.fromkeys((each.direction, each.block_bytes, each.programs) for each in points)
    for direction, block_bytes, programs in sorted(keys):
        here = [
            each
            for each in points
            if (each.direction, each.block_bytes, each.programs)
            == (direction, block_bytes, programs)
        ]
        start: int | None = None
        for each in sorted(here, key=lambda point: point.batch, reverse=True):
            if each.faster != "kernel":
                break
            start = each.batch
        yield Switch(
            direction=direction, block_bytes=block_bytes, programs=programs, kernel_from_batch=start
        )


def _loops(rows: Sequence[Row]) -> Iterator[Loop]:
    for way in STAGES:
        found = _named(rows, f"hbm.{way}")
        raw = {_block(row): row for row in found if row.params["format"] == "raw"}
        for row in found:
            plain = raw.get(_block(row))
            if row.params["format"] == "raw" or plain is None:
                continue
            winner = faster(plain, row)
            yield Loop(
                way=way,
                format=str(row.params["format"]),
                block_bytes=int(row.params["block_bytes"]),
                batch=int(row.params["batch"]),
                raw_bytes_per_s=plain.bytes_per_s or 0.0,
                quantised_bytes_per_s=row.bytes_per_s or 0.0,
                faster={Winner.FIRST: "raw", Winner.SECOND: "quantised"}.get(winner, "unclear"),
            )


def _block(row: Row) -> tuple[int, int]:
    return int(row.params["block_bytes"]), int(row.params["batch"])


def _break_even(rows: Sequence[Row]) -> Iterator[BreakEven]:
    """Of each format the kernel decides that costs least beyond what raw blocks cost too."""
    for way, (fused, plain, moving, verb) in STAGES.items():
        tiers = _tier_rates(rows, way, verb)
        moved = max((_rate(row) for row in _named(rows, moving)), default=math.inf)
        costs = [(1 / _rate(row) - 1 / moved, row) for row in _named(rows, fused)]
        costs += [(1 / _rate(row), row) for row in _named(rows, plain)]
        for name in dict.fromkeys(str(row.params["format"]) for _, row in costs):
            own = [each for each in costs if each[1].params["format"] == name]
            cost_s, best = min(own, key=lambda each: each[0])
            share = _stored_share(best)
            if share is None:
                continue
            limit = (1 - share) / cost_s if cost_s > 0 else None
            yield BreakEven(
                way=way,
                format=name,
                kernel_bytes_per_s=_rate(best),
                stored_share=share,
                pays_below_bytes_per_s=limit,
                tiers={row.id: limit is None or _rate(row) < limit for row in tiers},
            )


def _rate(row: Row) -> float:
    return row.bytes_per_s or 0.0


def _tier_rates(rows: Sequence[Row], way: str, verb: str) -> list[Row]:
    """The fastest row of each tier that these blocks could go to, or come from."""
    direction = "d2h" if way == "offload" else "h2d"
    links = [row for row in _named(rows, "hbm.transfer") if row.params["direction"] == direction]
    drives = _named(rows, f"nvme.{verb}")
    return [max(each, key=_rate) for each in (links, drives) if each]


def _stored_share(row: Row) -> float | None:
    """Bytes stored for each byte: what a kernel moved beyond reading (or writing) the payload."""
    if not row.payload_bytes or not row.traffic_bytes:
        return None
    return row.traffic_bytes / row.payload_bytes - 1.0
