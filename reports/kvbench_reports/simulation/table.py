"""The terminal table of a simulation: a head, the runs or the one run in full, words, closing.

Prints nothing but in `show`, which is given the console.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Console, RenderableType
from rich.text import Text

from kvbench.measure.result import State as RowState
from kvbench.sim.record import Run, Simulation, State
from kvbench_reports.layout import INDENT, STYLES, prose
from kvbench_reports.simulation import details
from kvbench_reports.simulation.figures import DROPPED_FIRST, changed_words, run_cells
from kvbench_reports.simulation.grid import Grid
from kvbench_reports.simulation.head import calibrations, closing, head, warnings
from kvbench_reports.simulation.words import what_if
from kvbench_reports.table import Part, labelled, plain_text, print_parts
from kvbench_reports.words import clean

_SIMULATED = f"bold {STYLES[RowState.SIMULATED]}"
_FAILED = STYLES[RowState.FAILED]
DEFINITIONS = (
    "hit, blocks: leading blocks that were used / all blocks of the input; hit, tokens: tokens "
    "that were not computed / all tokens of the input; requests that were served"
)


def tables(simulation: Simulation) -> list[RenderableType]:
    """The parts of a simulation in the order they are read."""
    failed = [run for run in simulation.runs if run.state is State.FAILED]
    said, warned = what_if(simulation), warnings(simulation)
    single = simulation.runs[0] if not simulation.sweep else None
    return [
        Part(partial(_head, simulation)),
        *(_in_full(single) if single and single.summary else []),
        *([Part(partial(_runs, simulation))] if simulation.sweep else []),
        *([Part(partial(_list, "what if", said, "bold"))] if said else []),
        *(
            [Part(partial(_list, "failed", [_failure(run) for run in failed], _FAILED))]
            if failed
            else []
        ),
        *(_request(simulation) if any(run.request for run in simulation.runs) else []),
        Part(partial(_list, "stands on", calibrations(simulation), "bold")),
        *([Part(partial(_list, "warnings", warned, "bold yellow"))] if warned else []),
        Part(partial(_closing, simulation)),
    ]


def show(simulation: Simulation, console: Console) -> None:
    """Print a simulation to a console, a blank line between its parts."""
    print_parts(tables(simulation), console)


def render(simulation: Simulation) -> str:
    """The tables as text without colour, `kvbench_reports.table.PLAIN_WIDTH` wide."""
    return plain_text(tables(simulation))


def _head(simulation: Simulation, width: int) -> Iterator[Text]:
    yield from labelled(head(simulation), width, {"kvbench": _SIMULATED})


def _runs(simulation: Simulation, width: int) -> Iterator[Text]:
    columns, cells = run_cells(simulation)
    grid = Grid(
        columns=columns,
        rows=cells,
        left=tuple(column.key for column in columns[: len(simulation.sweep)]),
        dropped_first=DROPPED_FIRST,
    )
    yield from grid.lines(width)
    yield from prose(DEFINITIONS, width, style="dim", hang=2)


def _in_full(run: Run) -> list[RenderableType]:
    it = run.summary
    if it is None:
        return []
    grids = [details.times(it)]
    if it.sources:
        grids.insert(0, details.hits(it))
    if it.parts_s is not None:
        grids.append(details.parts(it.parts_s))
    grids.append(details.busy(it.busy))
    notes = [f"no {name}: {clean(why)}" for name, why in it.missing.items() if name != "cost"]
    return [
        *(Part(grid.lines) for grid in grids),
        Part(partial(_list, "", [*details.sentences(run), *notes, DEFINITIONS], "")),
    ]


def _request(simulation: Simulation) -> list[RenderableType]:
    """The critical path of one request: of a single run in full, of a sweep in a sentence each."""
    if not simulation.sweep:
        path = simulation.runs[0].request
        parts = path.parts_s if path is not None else None
        said = [details.request_sentence(path)] if path is not None else []
        grid = [Part(details.parts(parts).lines)] if parts is not None else []
        return [Part(partial(_list, "", said, "")), *grid]
    return [Part(partial(_list, "one request", request_sentences(simulation), "bold"))]


def request_sentences(simulation: Simulation) -> list[str]:
    """The critical path of one request in every run of a sweep."""
    said: list[str] = []
    for run in simulation.runs:
        if run.request is not None:
            parts = run.request.parts_s
            where = f": {details.parts_sentence(parts)}" if parts is not None else ""
            said.append(f"{changed_words(run)}: {details.request_sentence(run.request)}{where}")
    return said


def _failure(run: Run) -> str:
    where = changed_words(run)
    return f"{where}: {clean(run.reason)}" if where else clean(run.reason)


def _list(title: str, texts: Sequence[str], style: str, width: int) -> Iterator[Text]:
    if title:
        yield Text(title, style=style)
    for text in texts:
        yield from prose(text, width, hang=INDENT)


def _closing(simulation: Simulation, width: int) -> Iterator[Text]:
    style = _FAILED if all(run.state is State.FAILED for run in simulation.runs) else _SIMULATED
    yield from prose(closing(simulation), width, style=style, hang=INDENT)
