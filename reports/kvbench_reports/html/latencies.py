"""Latency distributions: percentile curves from the HdrHistograms in the rows.

The horizontal axis is 1 / (1 - p) on a log scale, so that each step of ten is one more nine. A
curve ends where fewer than ten independent samples lie beyond it, the rule by which rows state
percentiles, so that it never shows what the tables decline to print.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from hdrh.codec import (  # pyright: ignore[reportMissingTypeStubs]
    HdrCookieException,
    HdrHistogramSettingsException,
    HdrLengthException,
)
from hdrh.histogram import HdrHistogram  # pyright: ignore[reportMissingTypeStubs]

from kvbench.errors import UsageError
from kvbench.measure.result import Latency, Row, State
from kvbench_reports.html.figure import Figure, Panel, Spec, Table
from kvbench_reports.html.says import alone, key_of, left_out, marks_of, plain_time
from kvbench_reports.html.series import (
    Numbers,
    Point,
    chosen_lines,
    chosen_panels,
    legend,
    points,
    styles,
)
from kvbench_reports.html.vega import PAPER, log_ticks, plot, short, time_label
from kvbench_reports.words import NONE, clean

_LIBRARY: Any = HdrHistogram
_S_PER_NS = 1e-9
_BEYOND = 10  # independent samples that must lie beyond a stated percentile
_LEAST_EFFECTIVE = 20  # for the median, and so for a curve
_FURTHEST = 1e8  # 1 / (1 - p); percentiles are not exact enough beyond
_STEPS = 48
_MARKED = (50.0, 90.0, 99.0, 99.9, 99.99)  # percentiles with a dot
_HEIGHT_PX = 220
_ODDS = "format(1 - 1 / datum.value, '.6~%')"


def distribution(tier: str, rows: Sequence[Row]) -> Figure:
    """The figure of one tier.

    Raises:
        UsageError: a histogram is damaged.
    """
    timed = [row for row in alone(rows) if row.latency_s is not None]
    found = [point for point in points(timed, None) if _has_curve(point.row)]
    lines, panels = chosen_lines(found), chosen_panels(found)
    drawn = [point for point in found if point.line in lines and point.panel in panels]
    drawings = {id(point): _curve(point.row) for point in drawn}
    title = "Latency of single operations"
    hollow = marks_of([point.row for point in drawn])
    caption = (
        "Lower is faster, and each step to the right looks at operations ten times rarer: dots "
        "stand at the median, 90 %, 99 % and so on; a curve ends where fewer than ten independent "
        "samples lie beyond it; both axes are logarithmic."
    )
    key = f"{key_of(tier)}-latency"
    return Figure(
        key=key,
        title=title,
        caption=f"{caption} {hollow}".rstrip(),
        table=_table(timed),
        panels=tuple(
            Panel(
                key=f"{key}-{index}",
                title=panel,
                label=f"{title}: {clean(tier)} {panel}, percentile curves; figures in the table.",
                spec=_spec(
                    [(point, drawings[id(point)]) for point in drawn if point.panel == panel],
                    list(drawings.values()),
                    lines,
                ),
            )
            for index, panel in enumerate(panels)
        ),
        legend=legend(lines) if len(lines) > 1 else (),
        absent="" if found else _absent(tier, timed),
        thinned=left_out(
            len(drawn), len(found), "row", f"at most {len(lines)} lines in {len(panels)} panels"
        ),
    )


def percentiles(latency: Latency) -> list[tuple[float, float]]:
    """Percentile and seconds along the curve, as far as the samples carry it.

    Raises:
        UsageError: the histogram is damaged.
    """
    furthest = min(latency.effective_count / _BEYOND, _FURTHEST)
    odds = np.geomspace(1.0, furthest, _STEPS)
    wanted = {100 * (1 - 1 / each) for each in odds.tolist()}
    wanted |= {each for each in _MARKED if 1 / (1 - each / 100) <= furthest * (1 + 1e-9)}
    try:
        histogram = _LIBRARY.decode(latency.histogram)
        counts = np.array(histogram.counts, dtype=np.int64)
    except (
        IndexError,
        TypeError,
        ValueError,
        zlib.error,
        HdrCookieException,
        HdrHistogramSettingsException,
        HdrLengthException,
    ) as error:
        raise UsageError(f"a latency histogram of this report is damaged: {error}") from None
    filled = np.flatnonzero(counts)
    if not len(filled):
        raise UsageError("a latency histogram of this report is empty")
    below = np.cumsum(counts[filled])
    curve: list[tuple[float, float]] = []
    for percentile in sorted(wanted):
        # As the library rounds, so that a curve passes through the percentiles that rows state.
        target = max(1, int(percentile * int(below[-1]) / 100 + 0.5))
        bucket = int(filled[np.searchsorted(below, target)])
        value_ns = histogram.get_highest_equivalent_value(histogram.get_value_from_index(bucket))
        curve.append((percentile, value_ns * _S_PER_NS))
    return curve


def _has_curve(row: Row) -> bool:
    latency = row.latency_s
    return bool(latency and latency.histogram and latency.effective_count >= _LEAST_EFFECTIVE)


def _curve(row: Row) -> list[tuple[float, float]]:
    return percentiles(row.latency_s) if row.latency_s else []


def _absent(tier: str, timed: Sequence[Row]) -> str:
    name = clean(tier)
    if not timed:
        return f"no row of {name} timed single operations"
    if not any(row.latency_s and row.latency_s.histogram for row in timed):
        return f"no row of {name} holds a histogram of its latencies"
    return f"no row of {name} has {_LEAST_EFFECTIVE} independent samples"


def _table(timed: Sequence[Row]) -> Table:
    return Table(
        columns=("case", "state", "samples", "p50", "p90", "p99", "p99.9"),
        rows=tuple(
            (
                clean(row.id),
                row.state,
                f"{latency.count:,}",
                *(
                    NONE if value is None else plain_time(value)
                    for value in (latency.p50, latency.p90, latency.p99, latency.p99_9)
                ),
            )
            for row in timed
            if (latency := row.latency_s)
        ),
        text=2,
    )


def _spec(
    panel: Sequence[tuple[Point, list[tuple[float, float]]]],
    every: Sequence[list[tuple[float, float]]],
    lines: Sequence[Numbers],
) -> Spec:
    rows = [
        _place(point.row, percentile, value_s) | {"line": lines.index(point.line)}
        for point, curve in panel
        for percentile, value_s in curve
    ]
    return plot(_marks(every, lines), height_px=_HEIGHT_PX, rows=rows)


def _place(row: Row, percentile: float, value_s: float) -> Spec:
    place: Spec = {"odds": short(100 / (100 - percentile)), "time": short(value_s)}
    if percentile not in _MARKED:
        return place
    tip = f"{clean(row.id)}: {percentile:g} % below {plain_time(value_s)}"
    return place | {"dot": 1, "hollow": row.state is State.DEGRADED, "tip": tip}


def _marks(every: Sequence[list[tuple[float, float]]], lines: Sequence[Numbers]) -> list[Spec]:
    times = [value_s for curve in every for _, value_s in curve]
    furthest = max(100 / (100 - curve[-1][0]) for curve in every)
    low, high = min(times) / 1.15, max(times) * 1.15
    colour, shape = styles(lines)
    x: Spec = {
        "field": "odds",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [1, furthest * 1.05], "nice": False},
        "axis": {
            "title": None,
            "values": [2] + [10.0**nines for nines in range(1, 8) if 10**nines <= furthest * 1.05],
            "labelExpr": _ODDS,
            "grid": False,
        },
    }
    y: Spec = {
        "field": "time",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {"title": None, "values": log_ticks(low, high), "labelExpr": time_label()},
    }
    return [
        {
            "mark": {"type": "line", "strokeWidth": 1.75},
            "encoding": {"x": x, "y": y, "color": colour},
        },
        {
            "transform": [{"filter": "datum.dot"}],
            "mark": {"type": "point", "size": 50, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "stroke": colour,
                "fill": colour | {"condition": {"test": "datum.hollow", "value": PAPER}},
                "shape": shape,
                "tooltip": {"field": "tip"},
            },
        },
    ]
