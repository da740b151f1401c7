"""Rate along one number: by block size, by queue depth, by threads, by blocks in a batch.

A line needs two places; rows without a neighbour are only in the tables. Limits are dashed lines,
drawn where they are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.measure.result import Row, State
from kvbench.units import format_bytes
from kvbench_reports.html.figure import Figure, Panel, Spec, Table
from kvbench_reports.html.says import (
    alone,
    bounds_of,
    interval_words,
    key_of,
    left_out,
    limit_of,
    marks_of,
    plain_rate,
    rate_of,
    rate_words,
)
from kvbench_reports.html.series import (
    Numbers,
    Point,
    chosen_lines,
    chosen_panels,
    curves,
    legend,
    points,
    styles,
)
from kvbench_reports.html.vega import (
    BYTES_LABEL,
    MUTED,
    PAPER,
    RATE_LABEL,
    log_ticks,
    plot,
    rate_label,
    short,
)
from kvbench_reports.words import NONE, clean

ALONG = {
    "block_bytes": "block size",
    "queue_depth": "queue depth",
    "threads": "threads",
    "batch": "blocks in a batch",
}
_ALWAYS = ("block_bytes", "queue_depth")  # their absence is worth a sentence
_HEIGHT_PX = 220
_LOG_FROM = 8.0  # largest over smallest, above which small rates would lie on the axis
_MOST_LIMITS = 3


def sweeps(tier: str, rows: Sequence[Row]) -> list[Figure]:
    """The figures of one tier."""
    usable = alone(rows)
    return [
        _figure(tier, usable, name)
        for name in ALONG
        if name in _ALWAYS or curves(points(usable, name))
    ]


def _figure(tier: str, rows: Sequence[Row], name: str) -> Figure:
    title = f"Rate by {ALONG[name]}"
    everything = points(rows, name)
    found = curves(everything)
    lines, panels = chosen_lines(found), chosen_panels(found)
    drawn = [point for point in found if point.line in lines and point.panel in panels]
    log = _is_log(drawn)
    parts = [
        f"Higher is faster; a dot is a row's rate with its 95 % interval, along {ALONG[name]}",
        "a dashed line is the limit" if any(limit_of(point.row) for point in drawn) else "",
        "both axes are logarithmic" if log else "the rate's axis begins at 0",
    ]
    hollow = marks_of([point.row for point in drawn])
    return Figure(
        key=f"{key_of(tier)}-{name.replace('_', '-')}",
        title=title,
        caption=f"{'; '.join(part for part in parts if part)}. {hollow}".rstrip(),
        table=_table(found or everything, name),
        panels=tuple(
            Panel(
                key=f"{key_of(tier)}-{name.replace('_', '-')}-{index}",
                title=panel,
                label=f"{title}: {clean(tier)} {panel}, {_extent(drawn, panel)}.",
                spec=_spec([each for each in drawn if each.panel == panel], drawn, lines, name),
            )
            for index, panel in enumerate(panels)
        ),
        legend=legend(lines) if len(lines) > 1 else (),
        absent="" if found else _absent(tier, everything, name),
        thinned=left_out(
            len(drawn), len(found), "row", f"at most {len(lines)} lines in {len(panels)} panels"
        ),
    )


def _absent(tier: str, found: Sequence[Point], name: str) -> str:
    places = {point.at for point in found}
    if not places:
        return f"no row of {clean(tier)} has a {ALONG[name]}"
    if len(places) == 1:
        only = _place(name, places.pop())
        return f"every row of {clean(tier)} has the same {ALONG[name]}, {only}"
    return f"no two rows of {clean(tier)} differ in {ALONG[name]} alone"


def _table(found: Sequence[Point], name: str) -> Table:
    return Table(
        columns=("case", "state", ALONG[name], "rate", "95 %", "limit"),
        rows=tuple(
            (
                clean(point.row.id),
                point.row.state,
                _place(name, point.at),
                rate_words(point.row),
                interval_words(point.row),
                plain_rate(limit) if (limit := limit_of(point.row)) else NONE,
            )
            for point in found
        ),
        text=2,
    )


def _spec(
    panel: Sequence[Point], drawn: Sequence[Point], lines: Sequence[Numbers], name: str
) -> Spec:
    rows: list[Spec] = [
        {
            "at": point.at,
            "rate": short(rate_of(point.row)),
            "low": short(bounds_of(point.row)[0]),
            "high": short(bounds_of(point.row)[1]),
            "line": lines.index(point.line),
            "hollow": point.row.state is State.DEGRADED,
            "tip": f"{clean(point.row.id)}: {rate_words(point.row)}",
        }
        for point in panel
    ]
    limits = sorted({limit for point in panel if (limit := limit_of(point.row))})[-_MOST_LIMITS:]
    limited: list[Spec] = [
        {"limit": limit, "text": f"limit {plain_rate(limit)}"} for limit in limits
    ]
    return plot(_marks(drawn, lines, name, limited), height_px=_HEIGHT_PX, rows=rows)


def _marks(
    drawn: Sequence[Point], lines: Sequence[Numbers], name: str, limited: list[Spec]
) -> list[Spec]:
    x, y = _across(drawn, name), _Up.over(drawn).place
    colour, shape = styles(lines)
    limit = {"y": y("limit"), "x": {"value": 0}}
    return [
        {
            "data": {"values": limited},
            "mark": {"type": "rule", "strokeDash": [5, 4], "color": MUTED},
            "encoding": limit | {"x2": {"value": "width"}},
        },
        {
            "data": {"values": limited},
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "bottom",
                "dx": 4,
                "dy": -3,
                "fontSize": 11.5,
                "color": MUTED,
            },
            "encoding": limit | {"text": {"field": "text"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y("low"), "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.75},
            "encoding": {"x": x, "y": y("rate"), "color": colour},
        },
        {
            "mark": {"type": "point", "size": 55, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y("rate"),
                "stroke": colour,
                "fill": colour | {"condition": {"test": "datum.hollow", "value": PAPER}},
                "shape": shape,
                "tooltip": {"field": "tip"},
            },
        },
    ]


def _across(drawn: Sequence[Point], name: str) -> Spec:
    places = sorted({point.at for point in drawn})
    label = BYTES_LABEL if name.endswith("_bytes") else "format(datum.value, ',')"
    low, high = places[0], places[-1]
    pad = max(1.1, (high / low) ** 0.06)
    return {
        "field": "at",
        "type": "quantitative",
        "scale": {"type": "log", "base": 2, "domain": [low / pad, high * pad], "nice": False},
        "axis": {"title": None, "values": places, "labelExpr": label, "grid": False},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Up:
    """The vertical axis that the panels of a figure share."""

    scale: Spec
    label: str
    ticks: list[float] | None = None  # None: Vega finds round ones on a linear axis

    @classmethod
    def over(cls, drawn: Sequence[Point]) -> "_Up":
        """An axis for these points, their intervals and limits."""
        low, high = _ends(drawn)
        if not _is_log(drawn):
            scale: Spec = {"domain": [0, short(high * 1.08)], "nice": False}
            return cls(scale=scale, label=rate_label(high))
        low, high = short(low / 1.2), short(high * 1.25)
        scale = {"type": "log", "domain": [low, high], "nice": False}
        return cls(scale=scale, label=RATE_LABEL, ticks=log_ticks(low, high))

    def place(self, field: str) -> Spec:
        """The encoding of a field on this axis."""
        axis: Spec = {"title": None, "labelExpr": self.label, "tickCount": 5}
        if self.ticks is not None:
            axis |= {"values": self.ticks}
        return {"field": field, "type": "quantitative", "scale": self.scale, "axis": axis}


def _ends(drawn: Sequence[Point]) -> tuple[float, float]:
    known = [end for point in drawn for end in bounds_of(point.row)]
    known += [limit for point in drawn if (limit := limit_of(point.row))]
    return min(known, default=1.0), max(known, default=1.0)


def _is_log(drawn: Sequence[Point]) -> bool:
    low, high = _ends(drawn)
    return high > _LOG_FROM * low


def _place(name: str, at: int) -> str:
    return format_bytes(at) if name.endswith("_bytes") else f"{at:,}"


def _extent(drawn: Sequence[Point], panel: str) -> str:
    rows = [point.row for point in drawn if point.panel == panel]
    slowest, fastest = min(rows, key=rate_of), max(rows, key=rate_of)
    return f"from {rate_words(slowest)} to {rate_words(fastest)}"
