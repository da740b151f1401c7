"""`kvbench plan --report FILE` and `--hardware NAME`: load a prefix, recompute it, or both at once.

Arithmetic is in `kvbench.sim.model.restore`; this joins a report or a data sheet with a model's
bytes and prints. Everything it prints is modelled and says from what.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from kvbench.geometry import KVGeometry
    from kvbench.machine import Machine
    from kvbench.sim.model import Compute, Tiers
    from kvbench.sim.model.restore import Source

PUBLISHED = "mooncake-fast25"
SPLITWISE = "llama2-70b-"  # a deployment of SplitwiseSim's table
DEPTH = 16  # blocks in flight
TIERS = (("dram", "dram.read"), ("nvme", "nvme.read"), ("peer", "peer.read"))


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the options say."""

    model: str
    report: Path | None
    hardware: str | None
    weights: str
    drives: int

    @property
    def any(self) -> bool:
        """Whether anything was asked."""
        return self.report is not None or self.hardware is not None


class BreakEven(msgspec.Struct, frozen=True, kw_only=True):
    """From which length on a tier is faster than computing; None: at none up to 4 M tokens."""

    tier: str
    tokens: int | None


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    """Load or recompute, for every tier that is known. Base units; modelled."""

    kind: str  # "modelled from measured tiers", …
    tiers: str
    computing: str
    sources: dict[str, str]  # tier, or "recompute" → its calibration
    missing: dict[str, str]
    restores: list[Any]  # Restore; its import is late
    break_even: list[BreakEven]
    outside: list[str]  # what is beyond the calibrated range


def make_loads(
    geometry: "KVGeometry", machine: "Machine", asked: Asked, lengths: tuple[int, ...]
) -> Loads:
    """Times of every length from every tier.

    Raises:
        UsageError: no tier is known, or nothing says how fast the model is computed.
    """
    from kvbench.sim.model.restore import break_even_tokens, restore

    tiers = _tiers(asked, geometry)
    computing = _computing(geometry, machine, asked)
    sources = [
        _source(geometry, tiers, name, curve) for name, curve in TIERS if curve in tiers.curves
    ]
    if not sources:
        raise UsageError(f"{tiers.name} has no tier to load from: {tiers.missing}")
    restores = [restore(computing, source, length) for length in lengths for source in sources]
    notes = [f"{r.tier}: {why}" for r in restores for why in r.load.outside]
    notes += [f"recompute: {why}" for r in restores for why in r.recompute.outside]
    if asked.hardware is not None and asked.hardware.startswith((PUBLISHED, SPLITWISE)):
        notes.append(f"recompute: times are of {computing.name}, bytes of {geometry.name}")
    return Loads(
        kind=f"modelled from {tiers.kind} tiers",
        tiers=tiers.name,
        computing=computing.name,
        sources={
            **{source.name: source.curve.source for source in sources},
            "recompute": computing.source,
        },
        missing={
            name: tiers.missing.get(curve, "not known")
            for name, curve in TIERS
            if curve not in tiers.curves
        },
        restores=restores,
        break_even=[
            BreakEven(tier=source.name, tokens=break_even_tokens(computing, source))
            for source in sources
        ],
        outside=list(dict.fromkeys(notes)),
    )


def _tiers(asked: Asked, geometry: "KVGeometry") -> "Tiers":
    """Measured ones, and what they lack from the data sheet, if one was named."""
    from kvbench.measure.result import read_report
    from kvbench.sim.model import from_hardware, from_report, hardware, hardware_names

    sheet = None
    if asked.hardware is not None and not asked.hardware.startswith((PUBLISHED, SPLITWISE)):
        gpus = geometry.tensor_parallel * geometry.pipeline_parallel
        sheet = from_hardware(hardware(asked.hardware), gpus=gpus, drives=asked.drives)
    if asked.report is not None:
        measured = from_report(read_report(asked.report, samples=False))
        return measured if sheet is None else measured.with_defaults(sheet)
    if sheet is None:
        raise UsageError(
            f"--hardware {asked.hardware!r} says how fast is computed, not where blocks lie: add "
            f"--report FILE, or name one of {', '.join(hardware_names())}"
        )
    return sheet


def _computing(geometry: "KVGeometry", machine: "Machine", asked: Asked) -> "Compute":
    from kvbench.sim.model import compute, published, shape_of, splitwise

    gpus = geometry.tensor_parallel * geometry.pipeline_parallel
    name = asked.hardware or _card(machine, asked)
    if name == PUBLISHED:
        return published(name)
    if name.startswith(SPLITWISE):
        return splitwise(name)
    shape = shape_of(asked.model) if Path(asked.model).exists() else None  # a config.json
    return compute(geometry, name, gpus=gpus, weights=asked.weights, shape=shape)


def _card(machine: "Machine", asked: Asked) -> str:
    """The preset that a GPU of the measured machine is."""
    from kvbench.measure.result import read_report
    from kvbench.sim.model import hardware_names

    gpus = machine.visible_gpus
    if asked.report is not None:
        gpus = read_report(asked.report, samples=False).machine.visible_gpus
    words = (gpus[0].name or "").lower().split() if gpus else []
    known = next((name for name in hardware_names() if name in words), None)
    if known is None:
        seen = f"{gpus[0].name} is no known hardware" if gpus else "it has no GPU"
        raise UsageError(
            f"how fast the measured machine computes is not known, {seen}: "
            f"add --hardware, one of {', '.join(hardware_names())}"
        )
    return known


def _source(geometry: "KVGeometry", tiers: "Tiers", name: str, curve: str) -> "Source":
    """A tier, and the bytes that its way carries of a prefix.

    A measured link to host memory is one GPU's, and ranks load their shares at once; drives and
    network are shared by all of them.
    """
    from kvbench.sim.model.restore import Source

    found = tiers.curve(curve)
    one_rank = name == "dram" and found.points != ()
    size: Callable[[int], int] = geometry.bytes_for if one_rank else geometry.model_bytes_for
    return Source(
        name=name,
        curve=found,
        block_bytes=geometry.block_bytes if one_rank else geometry.model_block_bytes,
        depth=found.most(DEPTH),
        batch=max((point.batch for point in found.points), default=1),
        size_bytes=size,
    )


def show_loads(console: "Console", loads: Loads, line: Callable[[str], None]) -> None:
    """The table, and what it rests on."""
    from rich import box
    from rich.table import Table

    from kvbench.units import format_bytes, format_rate

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("MODELLED: restore")
    for title in ("bytes", "load", "recompute", "faster", "break-even", "both at once", "computed"):
        table.add_column(title, justify="right", overflow="fold")
    for each in loads.restores:
        table.add_row(
            f"{each.tokens:,} from {each.tier}",
            format_bytes(each.size_bytes),
            _seconds(each.load.value),
            _seconds(each.recompute.value),
            each.faster,
            format_rate(each.break_even_bytes_per_s),
            _seconds(each.split.value),
            f"{each.split_tokens:,}",
        )
    line(f"{loads.computing}; {loads.tiers}: {loads.kind}")
    console.print(table)
    for even in loads.break_even:
        said = "never faster" if even.tokens is None else f"faster from {even.tokens:,} tokens on"
        said = "faster at any length" if even.tokens == 1 else said
        line(f"{even.tier}: loading is {said}, by the middle of the ranges")
    line("break-even: a tier that is faster than this beats recomputing; unclear: ranges overlap.")
    line("both at once: computed tokens from the head while the others are loaded from the tail.")
    for name, source in loads.sources.items():
        line(f"{name}: {source}{_range(loads, name)}")
    for name, why in loads.missing.items():
        line(f"{name}: not known, {why}")
    for why in loads.outside:
        line(f"beyond what was calibrated: {why}")


def _range(loads: Loads, name: str) -> str:
    """Of a source's predictions, as percents of them."""
    some = next((r for r in loads.restores if name in (r.tier, "recompute")), None)
    if some is None:
        return ""
    of = some.recompute if name == "recompute" else some.load
    return f"; range {100 * of.low / of.value:.0f} to {100 * of.high / of.value:.0f} %"


def _seconds(value: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"
