"""Results in, text out: one format a file. Never touches a device, torch or a clock.

`FORMATS` names them all; `kvbench_reports.table.show` prints the table to a console, with colour
and at its width. May import: kvbench.units, errors, geometry, machine and measure.result.
"""

from collections.abc import Callable

from kvbench.measure.result import Report
from kvbench_reports import bmf, csv_, gha_bench, github, html, json_, junit, markdown, table

FORMATS: dict[str, Callable[[Report], str]] = {
    "table": table.render,
    "json": json_.render,
    "csv": csv_.render,
    "markdown": markdown.render,
    "junit": junit.render,
    "github": github.render,
    "gha-bench": gha_bench.render,
    "gha-bench-smaller": gha_bench.render_smaller,
    "bmf": bmf.render,
    "html": html.render,
}
