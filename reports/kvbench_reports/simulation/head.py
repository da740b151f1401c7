"""What a simulation is of, in a few lines of words, the same in every format for people."""

from collections.abc import Iterator

from kvbench.sim.options import Options
from kvbench.sim.record import Simulation, State, Traffic
from kvbench.sim.scenario import Architecture
from kvbench_reports.words import clean, count, number

LABEL = "SIMULATED"
Facts = Iterator[tuple[str, str]]  # an option's name, and what is said of it
_MINUTE_S, _HOUR_S = 60.0, 3600.0


def head(simulation: Simulation) -> list[tuple[str, list[str]]]:
    """Labels and their facts."""
    options = simulation.options
    swept = {axis.option for axis in simulation.sweep}

    def fixed(facts: Facts) -> list[str]:
        return [text for name, text in facts if name not in swept] or ["all of it swept"]

    return [
        ("kvbench", [clean(simulation.kvbench_version), "simulate", clean(simulation.label)]),
        ("trace", _trace(simulation.trace, options)),
        ("model", fixed(_model(options))),
        ("cluster", fixed(_cluster(options))),
        ("node", fixed(_node(options))),
        *([("sweep", _sweep(simulation))] if simulation.sweep else []),
        *([("prices", _prices(simulation))] if simulation.prices else []),
    ]


def closing(simulation: Simulation) -> str:
    """How many runs have figures, and that all of these are simulated."""
    failed = sum(run.state is State.FAILED for run in simulation.runs)
    runs = count(len(simulation.runs) - failed, "run")
    return f"{runs} {LABEL}" + (f", {failed} failed" if failed else "")


def calibrations(simulation: Simulation) -> list[str]:
    """What the figures stand on, of all runs, each once."""
    return list(dict.fromkeys(clean(x) for run in simulation.runs for x in run.calibrations))


def warnings(simulation: Simulation) -> list[str]:
    """Where a calibration is used beyond its range, and notes of the whole."""
    outside = dict.fromkeys(clean(x) for run in simulation.runs for x in run.outside)
    return [*(clean(note) for note in simulation.notes), *(f"outside: {each}" for each in outside)]


def duration_words(value_s: float) -> str:
    """`59 min`, `2.1 h`, `12 s`."""
    if value_s >= 2 * _HOUR_S:
        return f"{number(value_s / _HOUR_S)} h"
    return f"{value_s / _MINUTE_S:.0f} min" if value_s >= 2 * _MINUTE_S else f"{value_s:.0f} s"


def _trace(trace: Traffic, options: Options) -> list[str]:
    name = "generated" if trace.generated else clean(trace.name)
    facts = [
        f"{name} {clean(trace.digest)}",
        f"{count(trace.requests, 'request')} in {duration_words(trace.duration_s)}",
        f"{number(trace.input_tokens / trace.requests)} tokens in, "
        f"{number(trace.output_tokens / trace.requests)} out on average",
        f"blocks of {trace.block_tokens} tokens" if trace.has_blocks else "no blocks",
    ]
    if options.requests is not None:
        facts.append(f"the first {options.requests:,}")
    if options.rate_scale != 1:
        facts.append(f"{options.rate_scale:g} times as fast")
    return facts


def _model(options: Options) -> Facts:
    stored = f", stored as {clean(options.stored_dtype)}" if options.stored_dtype else ""
    yield "model", clean(options.model)
    yield "kv_dtype", f"KV cache in {clean(options.kv_dtype)}{stored}"
    yield "gpus", f"{options.gpus} GPUs a node"
    yield "hardware", clean(options.hardware)
    for name in ("prefill_scale", "decode_scale"):
        if getattr(options, name) != 1:
            yield name, f"{name.split('_')[0]} takes {getattr(options, name):g} times as long"
    if options.tiers:
        yield "tiers", f"tiers of {clean(options.tiers)}"


def _cluster(options: Options) -> Facts:
    if options.decode_nodes:
        yield "nodes", f"{options.nodes} prefill nodes"
        yield "decode_nodes", f"{options.decode_nodes} decode nodes"
    else:
        yield "nodes", count(options.nodes, "node")
    yield "architecture", f"architecture {options.architecture}"
    if options.architecture is Architecture.CENTRAL:
        yield "central_gib", f"store of {options.central_gib:g} GiB"
        yield "central_gbit", f"at {options.central_gbit:g} Gbit/s each way"
    yield "router", f"router {clean(options.router)}"
    yield "eviction", f"eviction {clean(options.eviction)}"
    for name in ("slo_ttft_s", "slo_tpot_s"):
        limit = getattr(options, name)
        if limit is not None:
            yield name, f"SLO {name.split('_')[1].upper()} {limit:g} s"
    if options.reject:
        yield "reject", "refuses what would miss it"
    yield "seed", f"seed {options.seed}"


def _node(options: Options) -> Facts:
    left = options.hbm_gib is None
    yield "hbm_gib", "what weights leave of HBM" if left else f"{options.hbm_gib:g} GiB HBM"
    if not options.decode_nodes:
        yield "hbm_batch_share", f"of it {100 * options.hbm_batch_share:g} % for the batch"
    yield "dram_gib", f"{options.dram_gib:g} GiB DRAM"
    yield "nvme_gib", f"{options.nvme_gib:g} GiB NVMe"
    if options.network_gbit is not None:
        yield "network_gbit", f"network {options.network_gbit:g} Gbit/s each way"


def _sweep(simulation: Simulation) -> list[str]:
    names = " x ".join(
        f"{count(len(axis.values), 'value')} of {axis.option}" for axis in simulation.sweep
    )
    return [f"{names}: {count(len(simulation.runs), 'run')}"]


def _prices(simulation: Simulation) -> list[str]:
    prices = simulation.prices
    if prices is None:
        return []
    named = {
        "GPU": prices.gpu_hour,
        "GiB DRAM": prices.dram_gib_hour,
        "GiB NVMe": prices.nvme_gib_hour,
        "GiB of the central store": prices.central_gib_hour,
        "node": prices.node_hour,
    }
    given = [f"{name} ${value:g}" for name, value in named.items() if value]
    return [f"as given, of {prices.date}, an hour", *given]
