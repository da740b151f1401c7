"""Parts of Vega-Lite specifications that the charts share.

Written as data, not through Altair: colours are CSS variables, so that dark mode and print need no
second drawing, and Altair would add half a second of imports without saying anything more. Data
are in base units; axes scale them when they make their labels.
"""

import math
from collections.abc import Sequence

from kvbench_reports.html.figure import Spec
from kvbench_reports.words import rate_scale

MUTED, PAPER = "var(--muted)", "var(--paper)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"
_WIDE = "width > 600"  # pixels; then names stand beside the marks instead of above them
_NAMES = 0.46  # share of the width that they take there
_ROW_PX = 54
_TICKS = 6

CONFIG: Spec = {
    "font": _FONT,
    "background": None,
    "padding": {"left": 0, "top": 6, "right": 6, "bottom": 4},
    "aria": False,  # the element around a drawing is an image with a label
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--rule)",
        "gridColor": "var(--grid)",
        "tickColor": "var(--rule)",
        "labelColor": MUTED,
        "titleColor": MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelOverlap": "greedy",
        "labelSeparation": 8,
        "labelBound": False,
        "labelPadding": 5,
    },
    "text": {"color": "var(--ink)", "fontSize": 13},
    "rule": {"color": "var(--ink)"},
    "tick": {"color": "var(--ink)"},
}
SHARE_LABEL = "datum.value === 0 ? '0' : format(100 * datum.value, '+.3~g') + ' %'"
RATE_LABEL = (
    "datum.value >= 0.9999e12 ? format(datum.value / 1e12, '.3~g') + ' TB/s' : "
    "datum.value >= 0.9999e9 ? format(datum.value / 1e9, '.3~g') + ' GB/s' : "
    "datum.value >= 0.9999e6 ? format(datum.value / 1e6, '.3~g') + ' MB/s' : "
    "format(datum.value / 1e3, '.3~g') + ' kB/s'"
)
BYTES_LABEL = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '.4~g') + ' GiB' : "
    "datum.value >= 1048576 ? format(datum.value / 1048576, '.4~g') + ' MiB' : "
    "datum.value >= 1024 ? format(datum.value / 1024, '.4~g') + ' KiB' : "
    "format(datum.value, '.4~g') + ' B'"
)


def time_label(seconds: str = "datum.value") -> str:
    """An axis label: a time in its own unit; `seconds` is an expression."""
    return (
        f"{seconds} >= 0.9999 ? format({seconds}, '.3~g') + ' s' : "
        f"{seconds} >= 0.9999e-3 ? format({seconds} * 1e3, '.3~g') + ' ms' : "
        f"{seconds} >= 0.9999e-6 ? format({seconds} * 1e6, '.3~g') + ' µs' : "
        f"format({seconds} * 1e9, '.3~g') + ' ns'"
    )


def rate_label(most_bytes_per_s: float) -> str:
    """An axis label: a rate in the unit of the largest one, for a linear axis."""
    unit, factor = rate_scale([most_bytes_per_s])
    return f"format(datum.value / {factor:g}, '.3~g') + ' {unit}'"


def short(value: float) -> float:
    """Five digits, more than a drawing can show: a third of the characters."""
    return float(f"{value:.5g}")


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, both above 0, that divide a log axis evenly enough."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [
            float(f"{step}e{power}")
            for power in range(first, last + 1)
            for step in steps
            if low <= float(f"{step}e{power}") <= high
        ]
        if len(ticks) <= _TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / _TICKS)]


def plot(layers: Sequence[Spec], *, height_px: int, rows: Sequence[Spec], **parts: object) -> Spec:
    """A specification as wide as its container, over these data."""
    return {
        "width": "container",
        "height": height_px,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(rows)},
        "layer": list(layers),
        **parts,
    }


def named_rows(names: Sequence[Spec], marks: Sequence[Spec], rows: Sequence[Spec]) -> Spec:
    """A line of words for each of `names`, and marks over `rows` on a horizontal axis they share.

    Names have `row` (the place, from 0), `head`, `value` and `name`, which are words; rows have
    `row`. Where there is room the words stand left of the marks, on a telephone above them: marks
    take `MARK_OFFSET` and scales `BESIDE_NAMES` to agree with that.
    """
    column = f"({_WIDE} ? width * {_NAMES} - 24 : width)"
    upper, lower = f"{_WIDE} ? -8 : -18", f"{_WIDE} ? 9 : -1"
    words = [
        _words("head", upper, limit=f"max(60, {column} - 8 - 7 * {_longest(names, 'value')})"),
        _words("value", upper, x=column, align="right"),
        _words("name", lower, limit=column, font=_MONO, fontSize=11.5, color=MUTED),
    ]
    place = {
        "field": "row",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [len(names) - 0.5, -0.5], "nice": False, "zero": False},
    }
    return plot(
        [*marks, {"data": {"values": list(names)}, "layer": words}],
        height_px=len(names) * _ROW_PX,
        rows=rows,
        encoding={"y": place},
        resolve={"axis": {"x": "independent"}},
    )


BESIDE_NAMES: list[Spec] = [{"expr": f"{_WIDE} ? width * {_NAMES} : 0"}, {"expr": "width"}]
FEW_TICKS: Spec = {"expr": f"{_WIDE} ? 6 : 3"}
MARK_OFFSET: Spec = {"expr": f"{_WIDE} ? 0 : 14"}


def _words(field: str, dy: str, *, x: str = "0", limit: str = "width", **style: object) -> Spec:
    return {
        "mark": {
            "type": "text",
            "align": "left",
            "baseline": "middle",
            "x": {"expr": x},
            "dy": {"expr": dy},
            "limit": {"expr": limit},
            "stroke": PAPER,  # with the page's paint-order, a halo that keeps lines off the words
            "strokeWidth": 3,
            **style,
        },
        "encoding": {"text": {"field": field, "type": "nominal"}},
    }


def _longest(names: Sequence[Spec], field: str) -> int:
    return max((len(str(each[field])) for each in names), default=0)
