"""The runs of a simulation as cells: what a sweep varied, then figures, one unit a column.

Knows nothing of layout: cells are text without padding, and a figure that is missing is a dash.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvbench.sim.options import Value
from kvbench.sim.record import Run, Simulation, Summary
from kvbench_reports.figures import Column
from kvbench_reports.words import NONE, clean, number, time_scale

_GIVE_UP = (
    "tpot_p99",
    "ttft_p50",
    "tpot_mean",
    "refused",
    "goodput",
    "ttft_p90",
    "token",
    "busiest",
)
DROPPED_FIRST = (*_GIVE_UP, "ttft_p99", "good", "cost")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a summary."""

    key: str
    title: str
    unit: str  # "s" is scaled, "%" is a share
    of: Callable[[Summary], float | None]
    words: str  # in a sentence
    headline: bool = False  # sentences name it; others only where no headline changes


METRICS = (
    Metric("block", "hit, blocks", "%", lambda it: it.block_hit_rate, "block hit rate", True),
    Metric("token", "hit, tokens", "%", lambda it: it.token_hit_rate, "token hit rate"),
    Metric("ttft_mean", "TTFT", "s", lambda it: it.ttft_s.mean, "mean TTFT", True),
    Metric("ttft_p50", "TTFT p50", "s", lambda it: it.ttft_s.p50, "p50 TTFT"),
    Metric("ttft_p90", "TTFT p90", "s", lambda it: it.ttft_s.p90, "p90 TTFT"),
    Metric("ttft_p99", "TTFT p99", "s", lambda it: it.ttft_s.p99, "p99 TTFT", True),
    Metric("tpot_mean", "TPOT", "s", lambda it: it.tpot_s.mean, "mean TPOT", True),
    Metric("tpot_p99", "TPOT p99", "s", lambda it: it.tpot_s.p99, "p99 TPOT"),
    Metric("good", "in SLO", "%", lambda it: it.good_share, "share within the SLO", True),
    Metric("goodput", "goodput", "/s", lambda it: it.goodput_per_s, "goodput"),
    Metric("refused", "refused", "", lambda it: it.refused, "refused requests", True),
    Metric("busiest", "busiest", "x mean", lambda it: it.busiest_node, "busiest node", True),
    Metric(
        "cost",
        "cost",
        "$/M tok",
        lambda it: it.cost.per_million_tokens if it.cost else None,
        "cost of a million tokens",
        True,
    ),
)


def metrics_of(simulation: Simulation) -> tuple[Metric, ...]:
    """Those that mean something here: no share within an SLO that nobody stated, no empty ones."""
    options = simulation.options
    swept = {axis.option for axis in simulation.sweep}
    names = {"slo_ttft_s", "slo_tpot_s"}
    objective = bool(swept & names) or any(getattr(options, name) is not None for name in names)
    summaries = [run.summary for run in simulation.runs if run.summary is not None]
    return tuple(
        metric
        for metric in METRICS
        if any(metric.of(each) is not None for each in summaries)
        and (objective or metric.key not in {"good", "goodput"})
        and (metric.key != "refused" or any(each.refused for each in summaries))
    )


def run_cells(simulation: Simulation) -> tuple[tuple[Column, ...], list[dict[str, str]]]:
    """Columns, those of the sweep first, and each run's cells by column key."""
    metrics = metrics_of(simulation)
    units = {metric.key: _unit(metric, simulation.runs) for metric in metrics}
    columns = (
        *(Column(key=_axis(each.option), title=each.option, unit="") for each in simulation.sweep),
        *(Column(key=each.key, title=each.title, unit=units[each.key][0]) for each in metrics),
    )
    cells: list[dict[str, str]] = []
    for run in simulation.runs:
        row = {_axis(name): value_words(value) for name, value in run.changed.items()}
        for metric in metrics:
            value = metric.of(run.summary) if run.summary else None
            row[metric.key] = NONE if value is None else _cell(metric, value, units[metric.key][1])
        cells.append(row)
    return columns, cells


def value_words(value: Value) -> str:
    """An option's value as it is written on the command line."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else clean(str(value))


def figure_words(metric: Metric, value: float) -> str:
    """One figure with its own unit: `33 %`, `2.2 s`, `$0.41`."""
    if metric.key == "cost":
        return f"${number(value)}"
    if metric.unit == "s":
        return seconds_words(value)
    if metric.key == "busiest":
        return f"{number(value)} x mean"
    return f"{share_words(value)} %" if metric.unit == "%" else number(value)


def share_words(share: float) -> str:
    """A share in percent with one decimal, so that two hit rates can be told apart."""
    return f"{100 * share:.1f}"


def seconds_words(value_s: float) -> str:
    """`2.21 s`, `18.3 ms`."""
    unit, factor = time_scale([value_s] if value_s else [1.0])
    return f"{number(value_s / factor)} {unit}"


def changed_words(run: Run) -> str:
    """What a sweep changed in this run: `dram_gib 64, router random`."""
    return ", ".join(f"{name} {value_words(value)}" for name, value in run.changed.items())


def _axis(option: str) -> str:
    return f"axis {option}"


def _values(metric: Metric, runs: Iterable[Run]) -> Sequence[float]:
    found = (metric.of(run.summary) for run in runs if run.summary)
    return [value for value in found if value]


def _unit(metric: Metric, runs: Iterable[Run]) -> tuple[str, float]:
    return time_scale(_values(metric, runs)) if metric.unit == "s" else (metric.unit, 1.0)


def _cell(metric: Metric, value: float, factor: float) -> str:
    if metric.unit == "%":
        return share_words(value)
    if not metric.unit:
        return f"{value:,.0f}"
    return number(value / factor)
