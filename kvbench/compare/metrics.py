"""What of a report can be tested: a metric is one number a process, on the scale of the gate.

A row gives its rate, and the 99th percentile of its operations' latency where every process had
the operations for one. Groups are the families of margins: the tier of a rate, `p99` for latency.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvbench.compare.record import Kind
from kvbench.errors import UsageError
from kvbench.measure.result import HAS_FIGURE, Report, Row

GROUPS = ("hbm", "dram", "nvme", "peer", "p99")
MARGINS: Mapping[str, float] = {"hbm": 0.02, "dram": 0.03, "nvme": 0.05, "peer": 0.05, "p99": 0.10}
OTHER_MARGIN = 0.05  # of a tier without a class of its own


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for each process of a row, in base units."""

    id: str
    kind: Kind
    row: Row
    values: tuple[float, ...]
    blocks: tuple[int | None, ...]

    @property
    def group(self) -> str:
        """Which margin it has."""
        return "p99" if self.kind is Kind.P99 else self.row.tier

    @property
    def y(self) -> NDArray[np.float64]:
        """float64 [processes], + is slower."""
        return on_gate_scale(self.kind, self.values)

    @property
    def median(self) -> float:
        """Of the process values."""
        return median(self.values)


def on_gate_scale(kind: Kind, values: ArrayLike) -> NDArray[np.float64]:
    """Base units as y: ln(s), or -ln(bytes/s); a tier's values are y already."""
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if kind is Kind.TIER:
        return array
    return np.log(array) if kind is Kind.P99 else -np.log(array)


def metrics_of(report: Report, only: Iterable[str] = ()) -> dict[str, Metric]:
    """The metrics of all rows that hold a figure, by id."""
    found: dict[str, Metric] = {}
    for row in chosen(report.rows, only):
        if row.state not in HAS_FIGURE or not row.processes:
            continue
        blocks = tuple(process.block for process in row.processes)
        rates = tuple(process.bytes_per_s for process in row.processes)
        found[row.id] = Metric(row.id, Kind.RATE, row, rates, blocks)
        tails = tuple(
            process.latency_p99_s
            for process in row.processes
            if process.latency_p99_s is not None and process.latency_p99_s > 0
        )
        if len(tails) == len(row.processes):
            metric = Metric(p99_id(row.id), Kind.P99, row, tails, blocks)
            found[metric.id] = metric
    return found


def p99_id(row_id: str) -> str:
    """The id of a row's latency metric."""
    return f"{row_id} p99"


def tier_id(group: str) -> str:
    """The id of a group's geometric mean."""
    return f"{group} (tier)"


def chosen(rows: Iterable[Row], only: Iterable[str]) -> list[Row]:
    """Rows whose id matches one of the globs; all of them without a glob."""
    globs = list(only)
    return [row for row in rows if not globs or any(fnmatchcase(row.id, each) for each in globs)]


def parse_margins(texts: Iterable[str]) -> dict[str, float]:
    """`nvme=8%` for one group, `8%` for all of them, over the defaults; 0.08 is 8 %.

    Raises:
        UsageError: an unknown group, or no share between 0 and 100 %.
    """
    margins = dict(MARGINS)
    for text in texts:
        group, equals, share = text.rpartition("=")
        if equals and group not in GROUPS:
            raise UsageError(f"--margin {text!r}: groups are {', '.join(GROUPS)}")
        value = parse_share(share)
        if value is None:
            raise UsageError(f"--margin {text!r}: expected below 100 %, such as nvme=8% or 8%")
        margins.update(dict.fromkeys([group] if equals else GROUPS, value))
    return margins


def parse_share(text: str) -> float | None:
    """`8%` and `0.08` are 0.08; None for anything that is no share between 0 and 100 %."""
    number, scale = (text[:-1], 100.0) if text.endswith("%") else (text, 1.0)
    try:
        value = float(number) / scale
    except ValueError:
        return None
    return value if 0 <= value < 1 else None  # `--margin 8` is no 800 %
