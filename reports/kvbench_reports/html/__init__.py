"""HTML: one file that opens offline, on a telephone and in the dark; its charts have tables.

`render` shows a report, `render_comparison` a comparison, `render_simulation` a simulation. They
need the extra `html` (Jinja for the text, vl-convert for the JavaScript of Vega-Lite) and import it
when they are called, so that the other formats work without it.
"""

from importlib import import_module
from types import ModuleType

from kvbench.compare.record import Comparison
from kvbench.errors import UsageError
from kvbench.measure.result import Report
from kvbench.sim.record import Simulation

_EXTRA = frozenset({"jinja2", "markupsafe", "vl_convert"})


def render(report: Report) -> str:
    """The page of a report.

    Raises:
        UsageError: the extra `html` is missing, or a latency histogram is damaged.
    """
    return str(_needs_extra("html.pages").report_page(report))


def render_comparison(comparison: Comparison) -> str:
    """The page of a comparison.

    Raises:
        UsageError: the extra `html` is missing.
    """
    return str(_needs_extra("html.pages").comparison_page(comparison))


def render_simulation(simulation: Simulation) -> str:
    """The page of a simulation.

    Raises:
        UsageError: the extra `html` is missing.
    """
    return str(_needs_extra("simulation.page").simulation_page(simulation))


def check_extra() -> None:
    """Before what takes long is made into a page.

    Raises:
        UsageError: the extra `html` is missing.
    """
    _needs_extra("html.pages")


def _needs_extra(module: str) -> ModuleType:
    """Imported late: it needs the extra, and takes a while."""
    try:
        return import_module(f"kvbench_reports.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise UsageError(
            f"the html format needs {error.name}, which is missing: pip install 'kvbench[html]'"
        ) from None
