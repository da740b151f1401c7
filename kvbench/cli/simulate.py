"""`kvbench simulate`: what a cluster would do with a trace, from calibrations; sweeps of options.

All figures are simulated. Without a trace a generated one is used, which the output says.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from kvbench.cli.output import emit
from kvbench.cli.trace import BlockTokens, Format
from kvbench.errors import UsageError
from kvbench.sim.options import Axis, Options
from kvbench.sim.scenario import Architecture

if TYPE_CHECKING:
    from kvbench.sim.columns import Columns
    from kvbench.sim.experiment import RunAll
    from kvbench.sim.record import Simulation

BASE = Options()
_PLAIN_REQUESTS = 1_000  # unless more are asked for, where numba is missing
_SUFFIXES = {".json": "json", ".html": "html", ".txt": "table"}


def simulate(  # noqa: PLR0913  the options of the command are its interface
    trace: Annotated[
        Path | None,
        typer.Argument(help="A trace that `kvbench trace` reads.", show_default="a generated one"),
    ] = None,
    *,
    architecture: Annotated[
        Architecture, typer.Option(help="Who may read a block that a node has computed.")
    ] = BASE.architecture,
    router: Annotated[
        str, typer.Option(help="Which node a request goes to: NAME or NAME:option=number,…")
    ] = BASE.router,
    eviction: Annotated[str, typer.Option(help="Which block goes, in every tier.")] = BASE.eviction,
    nodes: Annotated[int, typer.Option(help="Nodes that compute prefill.")] = BASE.nodes,
    decode_nodes: Annotated[
        int, typer.Option(help="Nodes that decode; 0: each node does both.")
    ] = BASE.decode_nodes,
    model: Annotated[
        str, typer.Option(help="Preset, or the path of a Hugging Face config.json.")
    ] = BASE.model,
    kv_dtype: Annotated[str, typer.Option(help="Cache dtype in HBM.")] = BASE.kv_dtype,
    stored_dtype: Annotated[
        str | None, typer.Option(help="Cache dtype below HBM.", show_default="as in HBM")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="What computes: h100, h200, b200, mooncake-fast25, …")
    ] = BASE.hardware,
    weights: Annotated[str, typer.Option(help="Dtype of the model's weights.")] = BASE.weights,
    gpus: Annotated[int, typer.Option(help="GPUs of a node.")] = BASE.gpus,
    tiers: Annotated[
        str | None,
        typer.Option(
            help="What moves blocks: a report of `kvbench run`, or a name as in --hardware.",
            show_default="those of --hardware",
        ),
    ] = None,
    hbm_gib: Annotated[
        float | None,
        typer.Option(help="For KV caches, of a node.", show_default="what weights leave"),
    ] = None,
    hbm_batch_share: Annotated[
        float,
        typer.Option(help="Of that, for the batch of a node that also decodes; the rest: blocks."),
    ] = BASE.hbm_batch_share,
    dram_gib: Annotated[float, typer.Option(help="For blocks, of a node.")] = BASE.dram_gib,
    nvme_gib: Annotated[float, typer.Option(help="For blocks, of a node.")] = BASE.nvme_gib,
    central_gib: Annotated[float, typer.Option(help="Of the whole store.")] = BASE.central_gib,
    central_gbit: Annotated[
        float, typer.Option(help="Gbit/s each way, of the whole store.")
    ] = BASE.central_gbit,
    network_gbit: Annotated[
        float | None,
        typer.Option(help="Gbit/s each way, of a node.", show_default="what --tiers says"),
    ] = None,
    queue_depth: Annotated[
        int, typer.Option(help="Transfers in flight at a drive.")
    ] = BASE.queue_depth,
    most_sequences: Annotated[
        int, typer.Option(help="That a node decodes at a time.")
    ] = BASE.most_sequences,
    directory_delay_s: Annotated[
        float, typer.Option(help="p2p: until others know of a block that came or went.")
    ] = BASE.directory_delay_s,
    replicate_ratio: Annotated[
        float | None,
        typer.Option(
            help="p2p: copy a prefix that is this many times longer elsewhere.",
            show_default="never",
        ),
    ] = None,
    load_always: Annotated[
        bool, typer.Option("--load-always", help="Load even where computing again is faster.")
    ] = False,
    overlap: Annotated[
        bool, typer.Option(help="Load a layer while the one before is computed.")
    ] = BASE.overlap,
    slo_ttft_s: Annotated[
        float | None, typer.Option(help="Objective: time to the first token.", show_default="none")
    ] = None,
    slo_tpot_s: Annotated[
        float | None,
        typer.Option(help="Objective: mean time of the tokens after it.", show_default="none"),
    ] = None,
    reject: Annotated[
        bool, typer.Option("--reject", help="Refuse on arrival what would miss the objective.")
    ] = False,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="PRICES",
            help="Dollars an hour: gpu_hour=2.5,dram_gib_hour=0.004,nvme_gib_hour=…,"
            "central_gib_hour=…,node_hour=…,date=2026-11-26.",
            show_default="no cost is shown",
        ),
    ] = None,
    prefill_scale: Annotated[
        float, typer.Option(help="Prefill takes so many times what is modelled.")
    ] = BASE.prefill_scale,
    decode_scale: Annotated[
        float, typer.Option(help="Decoding takes so many times what is modelled.")
    ] = BASE.decode_scale,
    requests: Annotated[
        int | None, typer.Option(help="Only the first of the trace.", show_default="all")
    ] = None,
    rate_scale: Annotated[
        float, typer.Option(help="Requests arrive so many times as fast.")
    ] = BASE.rate_scale,
    seed: Annotated[int, typer.Option(help="Of random choices.")] = BASE.seed,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUE,…",
            help="Vary an option, for example dram_gib=0,64,256; several times: all combinations.",
            show_default="none",
        ),
    ] = None,
    format_: Format = None,
    block_tokens: BlockTokens = None,
    request: Annotated[
        int | None,
        typer.Option(help="Show the critical path of this request, from 0.", show_default="none"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="one a core")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on this Ray cluster.", show_default="here"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    as_html: Annotated[bool, typer.Option("--html", help="HTML instead of tables.")] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--out",
            help="Write there too, .json, .html or .txt; several times: each of them.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Simulate a trace on a cluster: hit rates, latencies, goodput, cost. Nothing is measured."""
    given = dict(locals())
    # Not at the top: --help needs none of it.
    from kvbench.sim.options import grid, read_axis, read_prices

    files = _files(out or [], "json" if as_json else "html" if as_html else None)
    if as_json and as_html:
        raise UsageError("--json and --html: expected one of them; -o writes several files")
    options = msgspec.convert(
        {name: given[name] for name in Options.__struct_fields__}, Options
    ).check()
    axes = tuple(read_axis(each) for each in sweep or [])
    prices = None if price is None else read_prices(price)
    planned = grid(options, axes)  # what is misspelt is refused before a long trace is read

    from kvbench.sim.experiment import Experiment, run_experiment
    from kvbench.sim.study import check_names

    for _, each in planned:
        check_names(each)
    columns, options, notes = _trace(trace, format_, block_tokens, options, axes)
    simulation = run_experiment(
        Experiment(
            columns=columns,
            generated=trace is None,
            options=options,
            axes=axes,
            prices=prices,
            request=request,
            notes=notes,
        ),
        _run_all(jobs, ray),
    )
    for path, form in files:
        emit(_text(simulation, form), path)
    _show(simulation, "table" if files else "json" if as_json else "html" if as_html else "table")


def _files(paths: list[Path], form: str | None) -> list[tuple[Path, str]]:
    """What is written where, checked before anything is simulated."""
    from kvbench.cli.output import check_output

    found: list[tuple[Path, str]] = []
    for path in paths:
        check_output(path)
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path}: there is no directory {path.parent}")
        by_name = _SUFFIXES.get(path.suffix.lower())
        if form is None and by_name is None:
            raise UsageError(f"-o {path}: name it .json, .html or .txt, or say --json or --html")
        found.append((path, by_name or form or ""))
    if form == "html" or any(each == "html" for _, each in found):
        from kvbench_reports import html

        html.check_extra()
    return found


def _trace(
    path: Path | None,
    format_: str | None,
    block_tokens: int | None,
    options: Options,
    axes: tuple[Axis, ...],
) -> tuple["Columns", Options, tuple[str, ...]]:
    """The trace, what is simulated of it, and what has to be said about that."""
    from kvbench.sim.jit import COMPILES
    from kvbench.sim.trace import read_columns
    from kvbench.sim.trace.twin import DEFAULT_REQUESTS, default_trace

    notes: list[str] = []
    counts = [options.requests, *(x for a in axes if a.option == "requests" for x in a.values)]
    asked = [each for each in counts if isinstance(each, int)]
    if path is None:
        if format_ is not None or block_tokens is not None:
            raise UsageError("--format and --block-tokens are of a trace: name its file")
        columns = default_trace(max(asked, default=DEFAULT_REQUESTS))
        notes.append("no trace was given: this one is generated, of no particular service")
    else:
        columns = read_columns(path, format_=format_, block_tokens=block_tokens)
    if not COMPILES:
        notes.append("numba is missing or turned off: plain Python, many times slower")
        if not asked and columns.requests > _PLAIN_REQUESTS:
            options = msgspec.structs.replace(options, requests=_PLAIN_REQUESTS)
            notes.append(f"so only the first {_PLAIN_REQUESTS:,} requests; --requests takes more")
    return columns, options, tuple(notes)


def _run_all(processes: int | None, ray: str | None) -> "RunAll":
    from kvbench.sim.cluster import simulate as simulate_cluster
    from kvbench.sim.sweep import Done, Job, run_jobs

    if ray is not None:
        from kvbench.sim.ray_cluster import run_on_ray

        return partial(run_on_ray, simulate=simulate_cluster, address=ray)
    workers = processes or len(os.sched_getaffinity(0))

    def run_all(columns: "Columns", jobs: Sequence[Job]) -> list[Done]:
        if min(workers, len(jobs)) > 1:
            # One request here first: what has to be compiled is compiled once, not by each worker.
            run_jobs(columns, [msgspec.structs.replace(jobs[0], requests=1)], simulate_cluster)
        return run_jobs(columns, jobs, simulate_cluster, workers=workers)

    return run_all


def _text(simulation: "Simulation", form: str) -> str:
    from kvbench_reports import html
    from kvbench_reports.simulation import SIMULATION_FORMATS

    if form == "html":
        return html.render_simulation(simulation)
    return SIMULATION_FORMATS[form](simulation)


def _show(simulation: "Simulation", form: str) -> None:
    from kvbench.cli.report import stdout_console
    from kvbench.errors import NothingMeasuredError
    from kvbench.sim.record import State
    from kvbench_reports.simulation import table

    if form == "table":
        table.show(simulation, stdout_console())
    else:
        emit(_text(simulation, form), None)
    if all(run.state is State.FAILED for run in simulation.runs):
        raise NothingMeasuredError(
            f"none of {len(simulation.runs)} runs could be simulated: {simulation.runs[0].reason}"
        )
