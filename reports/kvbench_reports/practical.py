"""What kernels reach of the measured device copy: the practical limit beside the HBM peak.

A ratio of bytes read and written per second, medians of two rows of one report: a kernel that
writes half of what it reads is held against what it moves and not against its payload. Its interval
is made of both rows' own, as for interference. Lays nothing out.
"""

from dataclasses import dataclass

from kvbench.measure.result import HAS_FIGURE, Report, Row
from kvbench_reports.interference import Span, logs, mover_ratio
from kvbench_reports.words import NONE, clean, percent

COPY = "copy"
OVER_THE_LINK = frozenset({"transfer", "swap", "offload", "restore"})
NOTE = (
    "bytes read and written per second over those of the fastest copy in this report: ratio of "
    "medians, 95 % interval of both rows' own"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfCopy:
    """One kernel's row."""

    case: str
    share: float  # of the traffic of the copy
    interval: Span | None  # 95 %

    @property
    def interval_text(self) -> str:
        """`95 to 99`, in percent."""
        return NONE if self.interval is None else " to ".join(percent(x) for x in self.interval)

    @property
    def sentence(self) -> str:
        """`97 % (95 to 99 %)  CASE`."""
        spread = "no interval" if self.interval is None else f"{self.interval_text} %"
        return f"{percent(self.share)} % ({spread})  {self.case}"


def of_copy(report: Report) -> tuple[str, list[OfCopy]]:
    """The id of the copy, and the kernels inside GPU memory that hold a figure, in their order."""
    rows = [
        row
        for row in report.rows
        if row.tier == "hbm" and row.state in HAS_FIGURE and row.beside is None and _traffic(row)
    ]
    copies = [row for row in rows if row.operation == COPY]
    if not copies:
        return "", []
    best = max(copies, key=_traffic)
    kernels = [row for row in rows if row.operation not in {COPY, *OVER_THE_LINK}]
    return clean(best.id), [
        OfCopy(
            case=clean(row.id),
            share=_traffic(row) / _traffic(best),
            interval=_interval(row, best),
        )
        for row in kernels
    ]


def _traffic(row: Row) -> float:
    """Bytes read and written per second."""
    if not row.payload_bytes or not row.traffic_bytes:
        return 0.0
    return (row.bytes_per_s or 0.0) * row.traffic_bytes / row.payload_bytes


def _interval(row: Row, copy: Row) -> Span | None:
    here, there = logs(row), logs(copy)
    if here is None or there is None:
        return None
    rates = (row.bytes_per_s or 0.0) / (copy.bytes_per_s or 1.0)
    factor = _traffic(row) / _traffic(copy) / rates
    low, high = mover_ratio(here, there)
    return low * factor, high * factor
