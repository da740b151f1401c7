"""From options to a scenario: a model's bytes, calibrated times, capacities in blocks.

Says of every run which calibrations it stands on and where they are used beyond their range.
Simulates nothing; reads a report where `tiers` names one.

May import: the rest of `kvbench.sim`, kvbench.geometry, kvbench.measure.result, kvbench.policy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path as File

import numpy as np

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry, load_geometry
from kvbench.measure.result import read_report
from kvbench.policy.names import ruled
from kvbench.sim.cluster.rules import numbers_of
from kvbench.sim.columns import Columns
from kvbench.sim.model import (
    Compute,
    Parts,
    Tiers,
    compute,
    from_hardware,
    from_report,
    hardware,
    hardware_names,
    published,
    scenario_parts,
    splitwise,
)
from kvbench.sim.model.transfer import quantised
from kvbench.sim.options import Options, read_router
from kvbench.sim.scenario import (
    Architecture,
    Decode,
    Objective,
    Path,
    Prefill,
    Router,
    Scenario,
    Tier,
)

_BYTES_PER_S_PER_GBIT = 1e9 / 8
_GIB = 2**30
_PUBLISHED = ("mooncake-fast25",)
_SPLITWISE = "llama2-70b-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A scenario, and what it stands on."""

    scenario: Scenario
    calibrations: tuple[str, ...]
    outside: tuple[str, ...]  # why a calibration is used beyond its range


def make_study(options: Options, columns: Columns) -> Study:
    """The scenario that these options mean for this trace.

    Raises:
        UsageError: a name is not known, a report is none, or things do not fit together.
    """
    geometry = _geometry(options.model, options.kv_dtype)
    computing = _computing(geometry, options)
    tiers = _tiers(options.tiers or options.hardware, options.hardware, options.gpus)
    block_tokens = columns.block_tokens
    parts = scenario_parts(
        geometry,
        computing,
        tiers,
        block_tokens=block_tokens,
        queue_depth=options.queue_depth,
        stored_dtype=options.stored_dtype,
    )
    network, network_note = _network(options, parts)
    router, numbers = read_router(options.router)
    scenario = Scenario(
        nodes=options.nodes,
        decode_nodes=options.decode_nodes,
        architecture=options.architecture,
        router=Router(name=router, options=numbers),
        prefill=_prefill(options, parts),
        decode=_decode(options, parts),
        tiers=_node_tiers(options, parts, block_tokens),
        block_tokens=block_tokens,
        kv_bytes_per_token=parts.kv_bytes_per_token,
        stored_bytes_per_token=parts.stored_bytes_per_token,
        layers=parts.layers,
        overlap=options.overlap,
        network=network,
        central=_central(options, parts, network, block_tokens),
        directory_delay_s=options.directory_delay_s,
        replicate_ratio=math.inf if options.replicate_ratio is None else options.replicate_ratio,
        recompute_if_faster=not options.load_always,
        objective=Objective(
            ttft_s=math.inf if options.slo_ttft_s is None else options.slo_ttft_s,
            tpot_s=math.inf if options.slo_tpot_s is None else options.slo_tpot_s,
            reject=options.reject,
        ),
        seed=options.seed,
    )
    return Study(
        scenario=scenario,
        calibrations=(
            *_used(parts.notes, scenario),
            _ranges(options, computing),
            *network_note,
            _hbm_note(options, parts),
        ),
        outside=(*_used(parts.outside, scenario), *_lengths_outside(computing, columns)),
    )


def check_names(options: Options) -> None:
    """Refuse what is misspelt, before anything is simulated.

    Raises:
        UsageError: a router, an eviction policy, a model or hardware is not known.
    """
    name, numbers = read_router(options.router)
    numbers_of(Router(name=name, options=numbers))
    ruled(options.eviction)
    _geometry(options.model, options.kv_dtype)
    if options.hardware not in hardware_names():
        _measured(options.hardware)
    _tiers(options.tiers or options.hardware, options.hardware, options.gpus)


@cache
def _geometry(model: str, kv_dtype: str) -> KVGeometry:
    return load_geometry(model, cache_dtype=kv_dtype)


def _computing(geometry: KVGeometry, options: Options) -> Compute:
    name = options.hardware
    if name in hardware_names():
        return compute(geometry, name, gpus=options.gpus, weights=options.weights)
    return _measured(name)


def _measured(name: str) -> Compute:
    """A calibration that is of one model on one machine, whatever else is asked for."""
    if name in _PUBLISHED:
        return published(name)
    if name.startswith(_SPLITWISE):
        return splitwise(name)
    raise UsageError(
        f"--hardware {name!r}: expected one of {', '.join((*hardware_names(), *_PUBLISHED))}, "
        f"or a deployment of SplitwiseSim's table, {_SPLITWISE}…"
    )


@cache
def _tiers(name: str, beside: str, gpus: int) -> Tiers:
    """Those of a report or of a name; what a report lacks comes from the hardware's datasheet."""
    if name in hardware_names():
        return from_hardware(hardware(name), gpus=gpus)
    if File(name).is_file():
        measured = from_report(read_report(File(name), samples=False))
        if beside in hardware_names():
            return measured.with_defaults(from_hardware(hardware(beside), gpus=gpus))
        return measured
    if name == beside:
        raise UsageError(
            f"--hardware {name} is a calibration of computing alone: say with --tiers where bytes "
            f"lie, a report of `kvbench run` or one of {', '.join(hardware_names())}"
        )
    raise UsageError(f"--tiers {name!r}: no such report, and none of {', '.join(hardware_names())}")


def _node_tiers(options: Options, parts: Parts, block_tokens: int) -> tuple[Tier, ...]:
    """HBM, and what a node has below it."""
    asked = (
        ("hbm", _hbm_bytes(options, parts)[0]),
        ("dram", options.dram_gib * _GIB),
        ("nvme", options.nvme_gib * _GIB),
    )
    found: list[Tier] = []
    for name, capacity_bytes in asked:
        if name == "hbm" or capacity_bytes > 0:
            found.append(
                parts.tier(
                    name, capacity_bytes, block_tokens=block_tokens, eviction=options.eviction
                )
            )
    return tuple(found)


def _hbm_bytes(options: Options, parts: Parts) -> tuple[float, float]:
    """HBM for blocks, and for the batch: two parts of one node's, or each of another node."""
    hbm_bytes = _kv_bytes(options, parts)
    if options.decode_nodes:
        return hbm_bytes, hbm_bytes
    return hbm_bytes * (1 - options.hbm_batch_share), hbm_bytes * options.hbm_batch_share


def _kv_bytes(options: Options, parts: Parts) -> float:
    if options.hbm_gib is not None:
        return options.hbm_gib * _GIB
    if not parts.hbm_free_bytes:
        raise UsageError(
            f"--hardware {options.hardware}: how much HBM its weights leave is not known; say it "
            "with --hbm-gib"
        )
    return parts.hbm_free_bytes


def _prefill(options: Options, parts: Parts) -> Prefill:
    scale, modelled = options.prefill_scale, parts.prefill
    return Prefill(
        fixed_s=scale * modelled.fixed_s,
        per_token_s=scale * modelled.per_token_s,
        per_token2_s=scale * modelled.per_token2_s,
    )


def _decode(options: Options, parts: Parts) -> Decode:
    """Batches as large as what the user says and as HBM has room for."""
    scale, modelled = options.decode_scale, parts.decode
    return Decode(
        fixed_s=scale * modelled.fixed_s,
        per_sequence_s=scale * modelled.per_sequence_s,
        per_context_token_s=scale * modelled.per_context_token_s,
        most_sequences=options.most_sequences,
        most_context_tokens=int(_hbm_bytes(options, parts)[1] / parts.kv_bytes_per_token),
    )


def _network(options: Options, parts: Parts) -> tuple[Path | None, tuple[str, ...]]:
    if options.network_gbit is None:
        return parts.network, ()
    latency_s = parts.network.latency_s if parts.network is not None else 0.0
    rate = options.network_gbit * _BYTES_PER_S_PER_GBIT
    note = f"network: {options.network_gbit:g} Gbit/s each way, as given"
    return Path(latency_s=latency_s, bytes_per_s=rate), (note,)


def _central(
    options: Options, parts: Parts, network: Path | None, block_tokens: int
) -> Tier | None:
    """The store that all nodes share, behind its own link."""
    if options.architecture is not Architecture.CENTRAL:
        return None
    bytes_per_token = parts.stored_bytes_per_token or parts.kv_bytes_per_token
    link = Path(
        latency_s=network.latency_s if network is not None else 0.0,
        bytes_per_s=options.central_gbit * _BYTES_PER_S_PER_GBIT,
    )
    path = quantised(
        link,
        stored_share=bytes_per_token / parts.kv_bytes_per_token,
        kernel_bytes_per_s=parts.kernel_bytes_per_s,
    )
    return Tier(
        name="central",
        capacity_blocks=int(options.central_gib * _GIB // (bytes_per_token * block_tokens)),
        eviction=options.eviction,
        read=path,
        write=path,
    )


def _used(notes: Sequence[str], scenario: Scenario) -> tuple[str, ...]:
    """Notes on what the scenario has, `NAME: text`; names of equal texts are joined."""
    absent = {"nvme", "dram"} - {tier.name for tier in scenario.tiers}
    if scenario.architecture is Architecture.NONE and not scenario.decode_nodes:
        absent.add("network")
    texts: dict[str, list[str]] = {}
    for note in notes:
        name, _, text = note.partition(": ")
        if name.partition(".")[0] not in absent:
            texts.setdefault(text, []).append(name)
    return tuple(f"{', '.join(names)}: {text}" for text, names in texts.items())


def _ranges(options: Options, computing: Compute) -> str:
    prefill, decode = computing.prefill_range, computing.decode_range
    return (
        f"ranges of computing: prefill {prefill.low:.2f} to {prefill.high:.2f} times, decode "
        f"{decode.low:.2f} to {decode.high:.2f} times what is modelled; results are of "
        f"{options.prefill_scale:g} and {options.decode_scale:g} times; for the ends --sweep "
        f"prefill_scale={prefill.low:.2f},1,{prefill.high:.2f} and "
        f"decode_scale={decode.low:.2f},1,{decode.high:.2f}"
    )


def _hbm_note(options: Options, parts: Parts) -> str:
    blocks, batch = (each / _GIB for each in _hbm_bytes(options, parts))
    if options.decode_nodes:
        return f"hbm: {blocks:.4g} GiB for blocks where prefill is, for the batch where decode is"
    share = f"--hbm-batch-share {options.hbm_batch_share:g}"
    return f"hbm: {blocks:.4g} GiB for blocks, {batch:.4g} GiB for the running batch ({share})"


def _lengths_outside(computing: Compute, columns: Columns) -> tuple[str, ...]:
    least, most = computing.tokens
    beyond = int(np.count_nonzero((columns.input_tokens < least) | (columns.input_tokens > most)))
    if not beyond:
        return ()
    share = 100 * beyond / columns.requests
    return (
        f"{computing.name} is calibrated for inputs of {least:,} to {most:,} tokens: "
        f"{beyond:,} of {columns.requests:,} requests ({share:.3g} %) are outside",
    )
