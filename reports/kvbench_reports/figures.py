"""The figures of one tier as cells: which may be shown, in which unit, with how many digits.

An invalid, failed or skipped row has no figure here, whatever its record holds, so no format for
people can print one. Knows nothing of layout: cells are text without padding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvbench.geometry import KVGeometry
from kvbench.measure.result import HAS_FIGURE, Row
from kvbench_reports.words import (
    NONE,
    Scale,
    clean,
    digits_of,
    interval_percent,
    number,
    percent,
    size,
    size_scale,
    time_scale,
)

TOKENS = 8192  # a prompt whose restoring a user can picture
_GIGA = 1e9
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of figures, in one unit."""

    key: str
    title: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One source of limits in a tier. `mark` ties it to its cells; a lone one has none."""

    mark: str
    source: str
    least_bytes_per_s: float
    most_bytes_per_s: float

    @property
    def text(self) -> str:
        """`limit (a): 24 GB/s, memcpy on all cores`."""
        least, most = (number(x / _GIGA) for x in (self.least_bytes_per_s, self.most_bytes_per_s))
        rates = least if least == most else f"{least} to {most}"
        name = f"limit {self.mark}".rstrip()
        return f"{name}: {rates} GB/s, {clean(self.source) or 'source not recorded'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scales:
    block: Scale
    latency: Scale
    tokens: Scale
    tokens_bytes: int


def figures(
    rows: Sequence[Row], model: KVGeometry
) -> tuple[tuple[Column, ...], list[dict[str, str]]]:
    """The columns in which at least one row has a figure, and each row's cells by column key."""
    scales = _scales(rows, model.bytes_for(TOKENS))
    marks = {limit.source: limit.mark for limit in limits(rows)}
    cells = [_cells(row, scales, marks) for row in rows]
    columns = (
        Column(key="block", title="block", unit=scales.block[0]),
        Column(key="rate", title="rate", unit="GB/s"),
        Column(key="interval", title="95 %", unit="± %"),
        Column(key="limit", title="limit", unit="%"),
        Column(key="p50", title="p50", unit=scales.latency[0]),
        Column(key="p99", title="p99", unit=scales.latency[0]),
        Column(key="tokens", title=f"{TOKENS:,} tok", unit=scales.tokens[0]),
    )
    filled = {key for row in cells for key, cell in row.items() if cell != NONE}
    return tuple(column for column in columns if column.key in filled), cells


def limits(rows: Iterable[Row]) -> list[Limit]:
    """The limits that rows with a figure are compared with, one for each source."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if _rate(row) and row.limit_fraction is not None and row.limit_bytes_per_s is not None:
            found.setdefault(row.limit_source or "", []).append(row.limit_bytes_per_s)
    return [
        Limit(
            mark=f"({_letter(index)})" if len(found) > 1 else "",
            source=source,
            least_bytes_per_s=min(rates),
            most_bytes_per_s=max(rates),
        )
        for index, (source, rates) in enumerate(found.items())
    ]


def _letter(index: int) -> str:
    return _ALPHABET[index] if index < len(_ALPHABET) else str(index + 1)


def _scales(rows: Sequence[Row], tokens_bytes: int) -> _Scales:
    blocks = [block for row in rows if (block := _block_bytes(row)) is not None]
    latencies = [value for row in rows for value in (_p50(row), _p99(row)) if value is not None]
    rates = [rate for row in rows if (rate := _rate(row)) is not None]
    return _Scales(
        block=size_scale(blocks),
        latency=time_scale(latencies),
        tokens=time_scale(tokens_bytes / rate for rate in rates),
        tokens_bytes=tokens_bytes,
    )


def _cells(row: Row, scales: _Scales, marks: dict[str, str]) -> dict[str, str]:
    block, rate = _block_bytes(row), _rate(row)
    cells = {
        "block": NONE if block is None else size(block, scales.block),
        "rate": NONE,
        "interval": NONE,
        "limit": NONE,
        "p50": _time(_p50(row), scales.latency),
        "p99": _time(_p99(row), scales.latency),
        "tokens": NONE,
    }
    if rate is not None:
        low, high = row.bytes_per_s_low, row.bytes_per_s_high
        digits = digits_of(rate, low, high)
        cells["rate"] = number(rate / _GIGA, digits)
        cells["interval"] = interval_percent(rate, low, high)
        cells["tokens"] = number(scales.tokens_bytes / rate / scales.tokens[1], digits)
        if row.limit_fraction is not None:
            mark = marks.get(row.limit_source or "", "")
            cells["limit"] = f"{percent(row.limit_fraction)} {mark}".rstrip()
    return cells


def _rate(row: Row) -> float | None:
    usable = row.state in HAS_FIGURE and row.bytes_per_s is not None and row.bytes_per_s > 0
    return row.bytes_per_s if usable else None


def _block_bytes(row: Row) -> int | None:
    value = row.params.get("block_bytes")
    return value if isinstance(value, int) and value > 0 else None


def _p50(row: Row) -> float | None:
    return row.latency_s.p50 if row.state in HAS_FIGURE and row.latency_s else None


def _p99(row: Row) -> float | None:
    return row.latency_s.p99 if row.state in HAS_FIGURE and row.latency_s else None


def _time(value_s: float | None, scale: Scale) -> str:
    return NONE if value_s is None else number(value_s / scale[1])
