"""The charts of a simulation: hit-rate curves, TTFT, cost against TTFT, where time goes.

A chart draws at most `MOST_LINES` lines, evenly chosen, and says how many it left out; its table
has all runs. Axes are in base units, scaled where they are labelled.
"""

from collections.abc import Sequence

from kvbench.sim.record import Run, Simulation, Summary
from kvbench_reports.html.figure import MOST_LINES, Figure, Panel, Spec, Table, legend_of
from kvbench_reports.html.series import evenly
from kvbench_reports.html.vega import short
from kvbench_reports.simulation.details import PARTS
from kvbench_reports.simulation.figures import changed_words, seconds_words, share_words
from kvbench_reports.simulation.specs import bar_spec, cdf_spec, cost_spec, hit_spec
from kvbench_reports.simulation.words import pareto
from kvbench_reports.words import NONE, clean, number

_MOST_BARS = 24
_CAPACITY = ("hbm_gib", "dram_gib", "nvme_gib", "central_gib", "nodes")
_MARKED = (0.5, 0.9, 0.99)  # shares of requests with a dot
_IDEAL = "one LRU pool for all nodes, in zero time"
_BEFORE = 30  # times less than the smallest run's capacity: where the ideal curve begins
_SHORTEST_S = 1e-4  # a log axis has no 0; no first token is sooner

Ran = tuple[Run, Summary]


def charts(simulation: Simulation) -> list[Figure]:
    """The figures in the order they are read."""
    ran = [(run, run.summary) for run in simulation.runs if run.summary is not None]
    return [hit_rates(simulation, ran), first_tokens(ran), costs(simulation, ran), times(ran)]


def hit_rates(simulation: Simulation, ran: Sequence[Ran]) -> Figure:
    """Block hit rate by the capacity of the whole cluster, with the curve of one ideal pool."""
    found = [(run, it, it.block_hit_rate) for run, it in ran if it.block_hit_rate is not None]
    lines = _lines(simulation, [run for run, *_ in found])
    kept = evenly(list(dict.fromkeys(lines)), MOST_LINES - 1)
    points: list[Spec] = [
        {
            "blocks": max(cluster_blocks(simulation, run), 1),
            "rate": short(rate),
            "line": kept.index(line),
            "tip": f"{_name(run)}: {share_words(rate)} % of blocks",
        }
        for (run, _, rate), line in zip(found, lines, strict=True)
        if line in kept
    ]
    texts = tuple(line or "this run" for line in kept)
    blocks = [cluster_blocks(simulation, run) for run, *_ in found]
    ideal = ideal_points(simulation, max(1.0, min(blocks, default=1) / _BEFORE))
    return Figure(
        key="hit-rates",
        title="Hit rate by capacity",
        caption="Higher is better: the share of blocks of the input that were used from a cache, "
        "along the capacity of all tiers of all nodes, in blocks on a logarithmic axis"
        + (f"; the dashed line is {_IDEAL}." if ideal else "."),
        table=Table(
            columns=("run", "blocks of capacity", "block hit rate"),
            rows=tuple(
                (_name(run), f"{cluster_blocks(simulation, run):,}", f"{share_words(rate)} %")
                for run, _, rate in found
            ),
        ),
        panels=(
            _panel(
                "hit-rates",
                f"Block hit rate by capacity of {len(found)} runs; figures in the table.",
                hit_spec(points, ideal, len(texts)),
            ),
        )
        if found
        else (),
        legend=legend_of(texts) if len(texts) > 1 else (),
        absent="the trace has no blocks, or no run has figures",
        thinned=_thinned(len(kept), len(set(lines)), "lines"),
    )


def cluster_blocks(simulation: Simulation, run: Run) -> int:
    """Blocks that all tiers of all nodes hold, and the central store."""
    options = simulation.options
    nodes = run.changed.get("nodes", options.nodes)
    own = sum(size for name, size in run.capacity_blocks.items() if name != "central")
    return int(nodes or 1) * own + run.capacity_blocks.get("central", 0)


def ideal_points(simulation: Simulation, least: float) -> list[Spec]:
    """The ideal pool's curve from `least` blocks on, as rows."""
    if simulation.ideal is None:
        return []
    pairs = zip(simulation.ideal.capacity_blocks, simulation.ideal.block_hit_rate, strict=True)
    return [{"blocks": blocks, "rate": short(rate)} for blocks, rate in pairs if blocks >= least]


def first_tokens(ran: Sequence[Ran]) -> Figure:
    """Distribution of the time to the first token."""
    drawn = evenly([(run, it) for run, it in ran if it.ttft_curve], MOST_LINES)
    rows: list[Spec] = [
        {
            "share": share,
            "time": short(max(value_s, _SHORTEST_S)),
            "line": index,
            "dot": share in _MARKED,
            "tip": f"{_name(run)}: {100 * share:g} % within {seconds_words(value_s)}",
        }
        for index, (run, it) in enumerate(drawn)
        for share, value_s in it.ttft_curve
    ]
    texts = tuple(_name(run) for run, _ in drawn)
    return Figure(
        key="first-tokens",
        title="Time to the first token",
        caption="Further left is faster: the share of served requests whose first token came "
        "within a time, which is on a logarithmic axis; dots at 50, 90 and 99 %.",
        table=Table(
            columns=("run", "mean", "p50", "p90", "p99"),
            rows=tuple(
                (
                    _name(run),
                    *(
                        NONE if value is None else seconds_words(value)
                        for value in (it.ttft_s.mean, it.ttft_s.p50, it.ttft_s.p90, it.ttft_s.p99)
                    ),
                )
                for run, it in ran
            ),
        ),
        panels=(
            _panel(
                "first-tokens",
                f"Distribution of the time to the first token of {len(drawn)} runs.",
                cdf_spec(rows, len(drawn)),
            ),
        )
        if rows
        else (),
        legend=legend_of(texts) if len(texts) > 1 else (),
        absent="no run served a request",
        thinned=_thinned(len(drawn), len(ran), "runs"),
    )


def costs(simulation: Simulation, ran: Sequence[Ran]) -> Figure:
    """Cost of a million tokens against mean TTFT, with the front."""
    front = pareto(simulation)
    rows: list[Spec] = []
    for index, run in enumerate(simulation.runs):
        it = run.summary
        if it and it.cost and it.ttft_s.mean is not None:
            rows.append(
                {
                    "cost": short(it.cost.per_million_tokens),
                    "time": short(max(it.ttft_s.mean, _SHORTEST_S)),
                    "front": index in front,
                    "tip": f"{_name(run)}: ${number(it.cost.per_million_tokens)}, "
                    f"{seconds_words(it.ttft_s.mean)}",
                }
            )
    absent = "no prices were given" if simulation.prices is None else "no run has both"
    return Figure(
        key="costs",
        title="Cost against time to the first token",
        caption="Lower and further left is better: dollars for a million tokens, in and out, at "
        "the prices given, against the mean time to the first token on a logarithmic axis; the "
        "line joins filled dots, the runs that no other one beats in both.",
        table=Table(
            columns=("run", "$ a million tokens", "mean TTFT", "on the front"),
            rows=tuple(
                (
                    _name(run),
                    number(it.cost.per_million_tokens),
                    seconds_words(it.ttft_s.mean),
                    "yes" if simulation.runs.index(run) in front else "no",
                )
                for run, it in ran
                if it.cost and it.ttft_s.mean is not None
            ),
        ),
        panels=(_panel("costs", f"Cost against mean TTFT of {len(rows)} runs.", cost_spec(rows)),)
        if len(rows) > 1
        else (),
        absent=absent if not rows else "it takes two runs: sweep an option",
    )


def times(ran: Sequence[Ran]) -> Figure:
    """Mean critical path to the first token, stacked."""
    known = [(run, it.parts_s) for run, it in ran if it.parts_s is not None]
    drawn = evenly(known, _MOST_BARS)
    words = tuple(name.replace("_", "-") for name in PARTS)
    rows: list[Spec] = [
        {
            "row": place,
            "part": index,
            "time": short(float(getattr(parts, name))),
            "tip": f"{_name(run)}: {words[index]} {seconds_words(getattr(parts, name))}",
        }
        for place, (run, parts) in enumerate(drawn)
        for index, name in enumerate(PARTS)
    ]
    names: list[Spec] = [{"row": place, "name": _name(run)} for place, (run, _) in enumerate(drawn)]
    return Figure(
        key="times",
        title="Where the time to the first token goes",
        caption="Shorter is faster: the mean of each part of the critical path; loading and "
        "transfer count only beyond what computing hid.",
        table=Table(
            columns=("run", *words),
            rows=tuple(
                (_name(run), *(seconds_words(getattr(parts, name)) for name in PARTS))
                for run, parts in known
            ),
        ),
        panels=(
            _panel(
                "times",
                f"Mean parts of the time to the first token of {len(drawn)} runs.",
                bar_spec(rows, names),
            ),
        )
        if rows
        else (),
        legend=legend_of(words),
        absent="no run served a request",
        thinned=_thinned(len(drawn), len(known), "runs"),
    )


def _lines(simulation: Simulation, runs: Sequence[Run]) -> list[str]:
    """The line that each run is a point of: what it changed besides capacities."""
    swept = [axis.option for axis in simulation.sweep]
    along = next((name for name in _CAPACITY if name in swept), None)
    return [
        changed_words(
            Run(
                changed={name: value for name, value in run.changed.items() if name != along},
                state=run.state,
            )
        )
        for run in runs
    ]


def _name(run: Run) -> str:
    return clean(changed_words(run)) or "this run"


def _panel(key: str, label: str, spec: Spec) -> Panel:
    return Panel(key=key, title="", label=label, spec=spec)


def _thinned(drawn: int, total: int, noun: str) -> str:
    if drawn >= total:
        return ""
    return f"Thinned: {drawn} of {total} {noun} drawn, evenly chosen; the table has all of them."
