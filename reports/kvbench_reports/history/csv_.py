"""CSV: a line for each session of each row, base units, an empty cell for what is missing.

The share of a change point stands in the first session of its new level. Text is kept on one line
and cannot become a formula in a spreadsheet.
"""

import csv
import io
from collections.abc import Iterator

from kvbench.compare.record import Kind
from kvbench.history import Group, Trend, Trends
from kvbench_reports.words import clean

COLUMNS = (
    "machine",
    "model",
    "cache_dtype",
    "block_bytes",
    "simulated_profile",
    "side",
    "id",
    "kind",
    "definition_hash",
    "retired",
    "session_id",
    "started_at",
    "commit",
    "bytes_per_s",
    "latency_p99_s",
    "log_se",
    "process_count",
    "change_point",
)
_STARTS_A_FORMULA = ("=", "+", "-", "@")

Cell = str | int | float | None


def render(trends: Trends) -> str:
    """The points as CSV, with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in trends.groups:
        for trend in group.trends:
            writer.writerows([_cell(cell) for cell in row] for row in _rows(group, trend))
    return text.getvalue()


def _rows(group: Group, trend: Trend) -> Iterator[tuple[Cell, ...]]:
    model = group.model
    steps = {change.index: change.change for change in trend.changes or ()}
    is_rate = trend.kind is Kind.RATE
    for index, point in enumerate(trend.points):
        yield (
            group.machine,
            model.name,
            model.cache_dtype,
            model.block_bytes,
            group.simulated,
            group.side,
            trend.id,
            trend.kind,
            trend.definition_hash,
            trend.retired,
            point.session_id,
            point.started_at.isoformat(),
            point.commit,
            point.value if is_rate else None,
            None if is_rate else point.value,
            point.log_se,
            point.processes,
            steps.get(index),
        )


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        line = clean(value)
        return f"'{line}" if line.startswith(_STARTS_A_FORMULA) else line
    return repr(value)
