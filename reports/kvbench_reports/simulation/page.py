"""The HTML page of a simulation. Its frame, style and scripts are those of a report."""

from kvbench.sim.record import Run, Simulation, State
from kvbench_reports.html.figure import Table
from kvbench_reports.html.pages import page
from kvbench_reports.simulation import details
from kvbench_reports.simulation.charts import charts
from kvbench_reports.simulation.figures import (
    METRICS,
    changed_words,
    figure_words,
    metrics_of,
    run_cells,
    seconds_words,
)
from kvbench_reports.simulation.grid import Grid
from kvbench_reports.simulation.head import LABEL, calibrations, closing, head, warnings
from kvbench_reports.simulation.table import DEFINITIONS, request_sentences
from kvbench_reports.simulation.words import what_if
from kvbench_reports.words import clean

_SEPARATOR = " · "
_BIG = ("block", "ttft_mean", "tpot_mean", "good", "cost")  # headline figures of a single run


def simulation_page(simulation: Simulation) -> str:
    """The page."""
    single = None if simulation.sweep else simulation.runs[0]
    figures = charts(simulation)
    lines = dict(head(simulation))
    return page(
        "simulation.html.j2",
        figures,
        title=f"kvbench simulate: {_heading(simulation)}",
        heading=_heading(simulation),
        notices=[(LABEL, simulation.label.partition(": ")[2])],
        tags=[LABEL.lower()],
        headlines=_headlines(simulation, single) if single else [],
        said=what_if(simulation),
        lines=[(name, _SEPARATOR.join(facts)) for name, facts in lines.items()],
        figures=figures,
        swept=bool(simulation.sweep),
        tables=_in_full(single) if single else [("all runs", _runs(simulation))],
        sentences=_sentences(simulation, single),
        definitions=DEFINITIONS,
        failed=[
            f"{changed_words(run)}: {clean(run.reason)}"
            for run in simulation.runs
            if run.state is State.FAILED
        ],
        calibrations=calibrations(simulation),
        warnings=warnings(simulation),
        closing=closing(simulation),
    )


def _heading(simulation: Simulation) -> str:
    options = simulation.options
    name = "a generated trace" if simulation.trace.generated else clean(simulation.trace.name)
    return f"{name} on {options.nodes} x {options.gpus} {clean(options.hardware)}"


def _headlines(simulation: Simulation, run: Run) -> list[dict[str, str]]:
    it = run.summary
    if it is None:
        return []
    known = {metric.key for metric in metrics_of(simulation)}
    asides = {
        "block": "of all blocks of the input",
        "ttft_mean": f"p99 {seconds_words(p99)}" if (p99 := it.ttft_s.p99) else "",
        "tpot_mean": f"p99 {seconds_words(p99)}" if (p99 := it.tpot_s.p99) else "",
        "good": "of all requests",
        "cost": "in and out, at the prices given",
    }
    return [
        {
            "name": metric.words,
            "value": figure_words(metric, value),
            "aside": asides[metric.key],
        }
        for metric in METRICS
        if metric.key in _BIG and metric.key in known and (value := metric.of(it)) is not None
    ]


def _runs(simulation: Simulation) -> Table:
    columns, cells = run_cells(simulation)
    left = tuple(column.key for column in columns[: len(simulation.sweep)])
    return _table(Grid(columns=columns, rows=cells, left=left))


def _in_full(run: Run) -> list[tuple[str, Table]]:
    it = run.summary
    if it is None:
        return []
    grids = {"hit rates": details.hits(it), "times": details.times(it)}
    if it.parts_s is not None:
        grids["where the time goes"] = details.parts(it.parts_s)
    grids["what was busy"] = details.busy(it.busy)
    if run.request is not None and run.request.parts_s is not None:
        grids[f"request {run.request.number:,}"] = details.parts(run.request.parts_s)
    return [(title, _table(grid)) for title, grid in grids.items() if grid.rows]


def _sentences(simulation: Simulation, single: Run | None) -> list[str]:
    if single is None:
        return request_sentences(simulation)
    path = [] if single.request is None else [details.request_sentence(single.request)]
    return [*details.sentences(single), *path]


def _table(grid: Grid) -> Table:
    return Table(
        columns=tuple(
            f"{column.title}, {column.unit}" if column.unit else column.title
            for column in grid.columns
        ),
        rows=tuple(tuple(row[column.key] for column in grid.columns) for row in grid.rows),
        text=grid.text,
    )
