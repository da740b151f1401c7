"""A history of sessions, and what it says: a trend for each row, and where it changed.

Pairwise gates let ten steps of +1 % pass; a history shows them. It is advice and no gate: two
sessions differ by more than their intervals, and nobody interleaved these. Prints nothing;
`kvbench_reports.history` does.

May import: kvbench.errors, kvbench.compare and kvbench.measure.result; ruptures late, for it takes
seconds and is an extra.
"""

from kvbench.history.entries import (
    SCHEMA,
    Added,
    Entry,
    History,
    Kept,
    Model,
    add_reports,
    make_entry,
    read_history,
)
from kvbench.history.trends import (
    LEAST_POINTS,
    Change,
    Group,
    Missing,
    Point,
    Trend,
    Trends,
    change_points,
    encode_trends,
    find_trends,
    noise_sd,
)

__all__ = [
    "LEAST_POINTS",
    "SCHEMA",
    "Added",
    "Change",
    "Entry",
    "Group",
    "History",
    "Kept",
    "Missing",
    "Model",
    "Point",
    "Trend",
    "Trends",
    "add_reports",
    "change_points",
    "encode_trends",
    "find_trends",
    "make_entry",
    "noise_sd",
    "read_history",
]
