"""The forest plot of a comparison: every change with its 95 % interval, margin and verdict.

The axis and the order are those of the terminal's plot. A verdict is a word and a shape before it
is a colour; an interval that leaves the axis ends in an arrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvbench.compare.record import Comparison, Finding, Kind, Verdict
from kvbench_reports.compare.figures import cells_of, decimals, ranked
from kvbench_reports.compare.forest import Axis, axis_of
from kvbench_reports.html.figure import Figure, Panel, Spec, Table
from kvbench_reports.html.says import left_out
from kvbench_reports.html.vega import (
    BESIDE_NAMES,
    FEW_TICKS,
    MARK_OFFSET,
    MUTED,
    PAPER,
    SHARE_LABEL,
    named_rows,
)
from kvbench_reports.words import NONE, clean, percent, short_percent

_MOST_ROWS = 60
_TALL = 10  # rows; a plot that leaves the screen has its axis above, too
_COLOURS = {
    Verdict.SLOWER: "var(--slower)",
    Verdict.FASTER: "var(--faster)",
    Verdict.UNSURE: "var(--unsure)",
}
_SHAPES = {Verdict.SLOWER: "triangle-right", Verdict.FASTER: "triangle-left"}
_CAPTION = (
    "Right of the line at 0 is slower: a mark is the change in time with its 95 % interval, the "
    "short stroke the margin that is tolerated; ▶ is SLOWER, ◀ FASTER, a ring UNSURE, a dot SAME; "
    "an arrow head at the edge says that the interval goes on."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A finding in the table of all of them; `note` says why, and whether the gate fails by it."""

    verdict: str
    name: str
    note: str
    figures: tuple[str, ...]


def forest(comparison: Comparison) -> Figure:
    """The chart and its table, worst first."""
    tested = [each for found in ranked(comparison).values() for each in found if _is_tested(each)]
    drawn = tested[:_MOST_ROWS]
    places = decimals(comparison.findings)
    axis = axis_of(drawn, 2)
    panels: tuple[Panel, ...] = ()
    if axis is not None:
        spoken = "; ".join(
            f"{each.verdict} {_name(each)} {_change(each, places)}" for each in drawn
        )
        panels = (
            Panel(
                key="forest-0",
                title="",
                label=f"Changes with 95 % intervals, + is slower. {spoken}.",
                spec=_spec(drawn, axis, places),
            ),
        )
    return Figure(
        key="forest",
        title="Change of every metric",
        caption=_CAPTION,
        table=Table(
            columns=("verdict", "finding", "change", "95 % interval", "margin"),
            rows=tuple(
                (
                    each.verdict,
                    _name(each),
                    _change(each, places),
                    interval(each, places),
                    f"{short_percent(each.margin)} %",
                )
                for each in tested
            ),
            text=2,
        ),
        panels=panels,
        absent="" if panels else "nothing was tested",
        thinned=left_out(len(drawn), len(tested), "finding", "the worst"),
    )


def listed(comparison: Comparison) -> list[Listed]:
    """Every finding, tested or not, worst first."""
    places = decimals(comparison.findings)
    return [_listed(each, places) for findings in ranked(comparison).values() for each in findings]


def interval(finding: Finding, places: int) -> str:
    """`-5.1 to +18.8 %`, or a dash."""
    cells = cells_of(finding, places)
    return NONE if NONE in {cells.low, cells.high} else f"{cells.low} to {cells.high} %"


def _listed(finding: Finding, places: int) -> Listed:
    cells = cells_of(finding, places)
    gate = ["fails the gate"] if finding.fails else []
    base, new = (
        value if value == NONE else f"{value} {cells.unit}" for value in (cells.base, cells.new)
    )
    return Listed(
        verdict=finding.verdict,
        name=_name(finding),
        note="; ".join([*gate, *([clean(finding.reason)] if finding.reason else [])]),
        figures=(
            base,
            new,
            _change(finding, places),
            interval(finding, places),
            f"{short_percent(finding.margin)} %",
            f"+{percent(finding.mde)} %" if finding.mde is not None else NONE,
        ),
    )


def _name(finding: Finding) -> str:
    of = cells_of(finding, 1).of if finding.kind is Kind.TIER else ""
    return f"{clean(finding.id)}, {of}" if of else clean(finding.id)


def _change(finding: Finding, places: int) -> str:
    change = cells_of(finding, places).change
    return change if change == NONE else f"{change} %"


def _is_tested(finding: Finding) -> bool:
    return finding.change is not None and math.isfinite(finding.change)


def _spec(drawn: Sequence[Finding], axis: Axis, places: int) -> Spec:
    names: list[Spec] = [
        {
            "row": place,
            "head": f"{each.verdict}{', fails the gate' if each.fails else ''}",
            "value": _change(each, places),
            "name": _name(each),
        }
        for place, each in enumerate(drawn)
    ]
    rows = [_row(place, each, axis, places) for place, each in enumerate(drawn)]
    return named_rows(names, _marks(axis, tall=len(drawn) > _TALL), rows)


def _row(place: int, finding: Finding, axis: Axis, places: int) -> Spec:
    """One finding on the axis; what lies outside is drawn at the edge."""
    change = finding.change if finding.change is not None else 0.0
    low, high = (_finite(end, change) for end in (finding.low, finding.high))
    seen = axis.low <= change <= axis.high
    return {
        "row": place,
        "low": _within(low, axis),
        "high": _within(high, axis),
        "margin": finding.margin if finding.margin <= axis.high else None,
        "change": change if seen else None,
        "left": axis.low if min(low, change) < axis.low else None,
        "right": axis.high if max(high, change) > axis.high else None,
        "colour": _COLOURS.get(finding.verdict, MUTED),
        "shape": _SHAPES.get(finding.verdict, "circle"),
        "hollow": finding.verdict is Verdict.UNSURE,
        "tip": f"{finding.verdict} {_name(finding)}: {_change(finding, places)}, "
        f"95 % interval {interval(finding, places)}",
    }


def _finite(end: float | None, otherwise: float) -> float:
    if end is None or math.isnan(end):
        return otherwise
    return end


def _within(share: float, axis: Axis) -> float:
    return min(max(share, axis.low), axis.high)


def _marks(axis: Axis, *, tall: bool) -> list[Spec]:
    own = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    scale = {"domain": [axis.low, axis.high], "nice": False, "range": BESIDE_NAMES}
    ticks: Spec = {"title": None, "grid": True, "labelExpr": SHARE_LABEL, "tickCount": FEW_TICKS}

    def place(field: str, shown: Spec | None = None) -> Spec:
        return {"field": field, "type": "quantitative", "scale": scale, "axis": shown}

    def arrow(field: str, shape: str) -> Spec:
        return {
            "transform": [{"filter": f"isValid(datum.{field})"}],
            "mark": {
                "type": "point",
                "shape": shape,
                "size": 40,
                "opacity": 1,
                "yOffset": MARK_OFFSET,
            },
            "encoding": {"x": place(field), "stroke": own, "fill": own},
        }

    return [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "color": MUTED},
            "encoding": {
                "x": place("zero", ticks),
                "y": {"value": 0},
                "y2": {"value": "height"},
            },
        },
        {
            "transform": [{"filter": "isValid(datum.margin)"}],
            "mark": {
                "type": "tick",
                "orient": "vertical",
                "size": 18,
                "thickness": 1.5,
                "color": MUTED,
                "yOffset": MARK_OFFSET,
            },
            "encoding": {"x": place("margin")},
        },
        {
            "mark": {
                "type": "rule",
                "strokeWidth": 2,
                "yOffset": MARK_OFFSET,
                "y2Offset": MARK_OFFSET,
            },
            "encoding": {
                "x": place(
                    "low", ticks | {"orient": "top", "offset": 8, "grid": False} if tall else None
                ),
                "x2": {"field": "high"},
                "color": own,
            },
        },
        arrow("left", "triangle-left"),
        arrow("right", "triangle-right"),
        {
            "transform": [{"filter": "isValid(datum.change)"}],
            "mark": {
                "type": "point",
                "size": 110,
                "opacity": 1,
                "strokeWidth": 2,
                "yOffset": MARK_OFFSET,
            },
            "encoding": {
                "x": place("change"),
                "stroke": own,
                "fill": own | {"condition": {"test": "datum.hollow", "value": PAPER}},
                "shape": {"field": "shape", "type": "nominal", "scale": None, "legend": None},
                "tooltip": {"field": "tip"},
            },
        },
    ]
