"""HTML: one file that opens offline, on a telephone and in the dark; its charts have tables.

`render` shows a report, `render_comparison` a comparison. Both need the extra `html` (Jinja for the
text, vl-convert for the JavaScript of Vega-Lite) and import it when they are called, so that the
other formats work without it.
"""

from types import ModuleType

from kvbench.compare.record import Comparison
from kvbench.errors import UsageError
from kvbench.measure.result import Report

_EXTRA = frozenset({"jinja2", "markupsafe", "vl_convert"})


def render(report: Report) -> str:
    """The page of a report.

    Raises:
        UsageError: the extra `html` is missing, or a latency histogram is damaged.
    """
    return str(_pages().report_page(report))


def render_comparison(comparison: Comparison) -> str:
    """The page of a comparison.

    Raises:
        UsageError: the extra `html` is missing.
    """
    return str(_pages().comparison_page(comparison))


def _pages() -> ModuleType:
    try:
        from kvbench_reports.html import pages  # noqa: PLC0415  needs the extra, and takes a while
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise UsageError(
            f"the html format needs {error.name}, which is missing: pip install 'kvbench[html]'"
        ) from None
    return pages
