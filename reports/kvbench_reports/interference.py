"""What a load costs: a row that was measured beside a load against the same case alone.

A ratio of the medians of two rows. Its interval is made of theirs by MOVER on logarithms (Zou and
Donner, "Construction of confidence limits about effect measures: a general approach", Statistics
in Medicine 27, 2008); what drifted between the two rows is not in it. Lays nothing out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from kvbench.measure.result import HAS_FIGURE, Report, Row
from kvbench_reports.words import NONE, clean, number, percent, rate_scale

Span = tuple[float, float]
NOTE = (
    "rate beside a load over the rate alone: ratio of medians, 95 % interval of both rows' own; "
    "drift between the rows is not in it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One row that was measured beside a load."""

    case: str  # the id of the same case alone
    load: str
    load_bytes_per_s: float | None  # median of the processes
    share: float | None  # of the rate alone
    interval: Span | None  # 95 %, of the share
    why: str = ""  # there is no share

    @property
    def load_rate(self) -> str:
        """`920 MB/s`."""
        if self.load_bytes_per_s is None:
            return NONE
        unit, factor = rate_scale([self.load_bytes_per_s])
        return f"{number(self.load_bytes_per_s / factor)} {unit}"

    @property
    def share_text(self) -> str:
        """`62`, in percent."""
        return NONE if self.share is None else percent(self.share)

    @property
    def interval_text(self) -> str:
        """`59 to 66`, in percent."""
        if self.interval is None:
            return NONE
        return " to ".join(percent(end) for end in self.interval)

    @property
    def sentence(self) -> str:
        """`CASE: 62 % of alone (59 to 66 %) while LOAD runs at 920 MB/s`."""
        if self.share is None:
            cost = f"not compared ({self.why})"
        else:
            spread = (
                f"{self.interval_text} %" if self.interval else "no interval: a row of one process"
            )
            cost = f"{self.share_text} % of alone ({spread})"
        return f"{self.case}: {cost} while {self.load} runs at {self.load_rate}"


def interference(report: Report) -> list[Beside]:
    """The rows beside a load that hold a figure, in their order."""
    rows = {row.id: row for row in report.rows if row.beside is None}
    return [
        _beside(row, rows.get(row.alone_id)) for row in report.rows if row.beside and _rate(row)
    ]


def _beside(row: Row, alone: Row | None) -> Beside:
    rates = [each.load_bytes_per_s for each in row.processes if each.load_bytes_per_s is not None]
    why = _incomparable(row, alone)
    compared = alone if not why else None
    return Beside(
        case=clean(row.alone_id),
        load=clean(row.beside or ""),
        load_bytes_per_s=median(rates) if rates else None,
        share=_rate(row) / _rate(compared) if compared else None,
        interval=_interval(row, compared) if compared else None,
        why=why,
    )


def _incomparable(row: Row, alone: Row | None) -> str:
    if alone is None:
        return "alone it is not in this report"
    if not _rate(alone):
        return f"alone it is {alone.state}"
    paths = row.path_observed, alone.path_observed
    if None not in paths and paths[0] != paths[1]:
        return f"alone the bytes went by {clean(paths[1] or '')}, here by {clean(paths[0] or '')}"
    return ""


def _rate(row: Row) -> float:
    """Bytes per second of a row that may be believed; 0 of another."""
    return (row.bytes_per_s or 0.0) if row.state in HAS_FIGURE else 0.0


def _interval(row: Row, alone: Row) -> Span | None:
    here, there = logs(row), logs(alone)
    if here is None or there is None:
        return None
    return mover_ratio(here, there)


def mover_ratio(above: Sequence[float], below: Sequence[float]) -> Span:
    """The interval of exp(above - below), each given as low, centre and high on a log scale."""
    low, centre, high = above
    low_below, centre_below, high_below = below
    difference = centre - centre_below
    return (
        math.exp(difference - math.hypot(centre - low, high_below - centre_below)),
        math.exp(difference + math.hypot(high - centre, centre_below - low_below)),
    )


def logs(row: Row) -> tuple[float, float, float] | None:
    """Low, median and high of a rate on a log scale; None where there is no interval."""
    low, high = row.bytes_per_s_low, row.bytes_per_s_high
    if low is None or high is None or low <= 0:
        return None
    return math.log(low), math.log(_rate(row)), math.log(high)
