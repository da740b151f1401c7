"""Trends of a history in, text out: one format a file. Computes no statistic and opens no file.

`HISTORY_FORMATS` names them all; `table.show` prints to a console, with colour and at its width.
All formats for people say that a history is advice and no gate.
"""

from collections.abc import Callable

from kvbench.history import Trends
from kvbench_reports.history import csv_, json_, table

HISTORY_FORMATS: dict[str, Callable[[Trends], str]] = {
    "table": table.render,
    "json": json_.render,
    "csv": csv_.render,
}
