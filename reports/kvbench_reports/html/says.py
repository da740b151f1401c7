"""Figures and rows in words for the page: one figure with its own unit, a row's group, a parameter.

Tables take their cells from `kvbench_reports.figures`, where a column has one unit; a figure that
stands alone is made here with the same digits.
"""

from collections.abc import Iterable, Sequence

from kvbench.measure.result import HAS_FIGURE, Report, Row, State
from kvbench.units import format_bytes
from kvbench_reports.view import TIERS
from kvbench_reports.words import (
    clean,
    count,
    digits_of,
    interval_percent,
    number,
    rate_scale,
    time_scale,
)

Value = int | str | bool
_NAMES = {"block_bytes": "block", "page_bytes": "page", "queue_depth": "queue depth"}


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows with a rate that may be shown."""
    return [row for row in rows if row.state in HAS_FIGURE and (row.bytes_per_s or 0) > 0]


def alone(rows: Iterable[Row]) -> list[Row]:
    """Of these, what is drawn along a parameter or a tier: not what a load stood beside.

    It would be a second point in the place of the same case alone.
    """
    return [row for row in measured(rows) if row.beside is None]


def rate_of(row: Row) -> float:
    """Bytes per second of a measured row."""
    return row.bytes_per_s or 0.0


def bounds_of(row: Row) -> tuple[float, float]:
    """The 95 % interval of a measured row's rate; without one, the rate itself twice."""
    rate, low, high = rate_of(row), row.bytes_per_s_low, row.bytes_per_s_high
    if low is None or high is None or low <= 0:
        return rate, rate
    return low, high


def limit_of(row: Row) -> float | None:
    """Bytes per second that a row is held against, where that is known."""
    limit = row.limit_bytes_per_s
    return limit if row.limit_fraction is not None and limit is not None and limit > 0 else None


def rate_words(row: Row) -> str:
    """`6.51 GB/s`, with the digits that the interval supports."""
    unit, factor = rate_scale([rate_of(row)])
    return f"{number(rate_of(row) / factor, _digits(row))} {unit}"


def moving_words(row: Row, size_bytes: int) -> str:
    """How long it takes to move so many bytes at a row's rate: `165 ms`."""
    elapsed_s = size_bytes / rate_of(row)
    unit, factor = time_scale([elapsed_s])
    return f"{number(elapsed_s / factor, _digits(row))} {unit}"


def interval_words(row: Row) -> str:
    """Half the 95 % interval of the rate: `± 1.2 %`; a dash where there is none."""
    share = interval_percent(rate_of(row), row.bytes_per_s_low, row.bytes_per_s_high)
    return f"± {share} %" if share[-1].isdigit() else share


def plain_rate(bytes_per_s: float) -> str:
    """A rate that has no interval: `7.88 GB/s`."""
    unit, factor = rate_scale([bytes_per_s])
    return f"{number(bytes_per_s / factor)} {unit}"


def plain_time(value_s: float) -> str:
    """A time that has no interval: `4.91 ms`."""
    unit, factor = time_scale([value_s])
    return f"{number(value_s / factor)} {unit}"


def parameter(name: str, value: Value) -> str:
    """A parameter in words: `queue depth 16`, `block 2 MiB`, `random`, `fsync`."""
    words = clean(_NAMES.get(name, name)).replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if isinstance(value, str):
        return clean(value)
    return f"{words} {format_bytes(value) if name.endswith('_bytes') else f'{value:,}'}"


def path_of(row: Row) -> str:
    """How the bytes went, as far as that was observed."""
    return clean(row.path_observed or row.path_requested or "") or "path not recorded"


def tiers_of(report: Report) -> dict[str, list[Row]]:
    """Rows by tier: hbm, dram, nvme, peer, then any other."""
    found: dict[str, list[Row]] = {tier: [] for tier in TIERS}
    for row in report.rows:
        found.setdefault(row.tier, []).append(row)
    return {tier: rows for tier, rows in found.items() if rows}


def key_of(text: str) -> str:
    """Text as part of an element's id: other letters than these are written as numbers."""
    return "".join(c if c.isascii() and c.isalnum() else f"-{ord(c):x}-" for c in text)


def left_out(drawn: int, total: int, noun: str, which: str) -> str:
    """The sentence that says a chart was thinned; empty when it was not."""
    if drawn >= total:
        return ""
    return f"Thinned: {drawn:,} of {count(total, noun)} drawn, {which}; the table has all of them."


def marks_of(rows: Sequence[Row]) -> str:
    """How to read marks that are not plainly `ok`; empty when all are."""
    degraded = sum(row.state is State.DEGRADED for row in rows)
    if not degraded:
        return ""
    return "A hollow mark is degraded: measured, but by another path than was asked for."


def _digits(row: Row) -> int:
    return digits_of(rate_of(row), row.bytes_per_s_low, row.bytes_per_s_high)
