"""A comparison in, text out: one format a file. Computes no verdict and opens no file.

`COMPARE_FORMATS` names them all; `table.show` prints to a console, with colour and at its width,
and `explain.render` is what `--explain` prints about single findings.
"""

from collections.abc import Callable

from kvbench.compare.record import Comparison
from kvbench_reports import bmf, gha_bench, github, html, junit
from kvbench_reports.compare import csv_, json_, markdown, table

COMPARE_FORMATS: dict[str, Callable[[Comparison], str]] = {
    "table": table.render,
    "json": json_.render,
    "csv": csv_.render,
    "markdown": markdown.render,
    "junit": junit.render_comparison,
    "github": github.render_comparison,
    "gha-bench": gha_bench.render_comparison,
    "gha-bench-smaller": gha_bench.render_comparison_smaller,
    "bmf": bmf.render_comparison,
    "html": html.render_comparison,
}
