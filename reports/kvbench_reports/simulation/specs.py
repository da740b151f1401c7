"""The drawings of a simulation's charts as Vega-Lite, over rows in base units."""

from collections.abc import Sequence

from kvbench_reports.html.figure import Spec, legend_of
from kvbench_reports.html.vega import MUTED, PAPER, log_ticks, plot, short, time_label
from kvbench_reports.simulation.details import PARTS

_HEIGHT_PX = 300
_BAR_PX = 36
_NAME_SHARE = 0.3  # of the width, for the names of bars
_FROM_ZERO = f"datum.value === 0 ? '0' : {time_label()}"
_SHARE = "format(100 * datum.value, '.3~g') + ' %'"


def _colours(lines: int) -> Spec:
    order = list(range(max(lines, 1)))
    return {
        "field": "line",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": order, "range": [f"var(--line-{index})" for index in order]},
    }


def _shapes(lines: int) -> Spec:
    shapes = [each.shape for each in legend_of(tuple("" for _ in range(max(lines, 1))))]
    return {
        "field": "line",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(range(len(shapes))), "range": shapes},
    }


def _time_axis(values_s: Sequence[float]) -> Spec:
    low, high = min(values_s) / 1.15, max(values_s) * 1.15
    return {
        "field": "time",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [short(low), short(high)], "nice": False},
        "axis": {"title": None, "values": log_ticks(low, high), "labelExpr": time_label()},
    }


def _floats(rows: Sequence[Spec], field: str) -> list[float]:
    return [value for row in rows if isinstance(value := row[field], int | float)]


def hit_spec(points: list[Spec], ideal: list[Spec], lines: int) -> Spec:
    """Points and lines of block hit rate along capacity, the ideal curve dashed behind them."""
    blocks = _floats([*points, *ideal], "blocks")
    low, high = min(blocks), max(blocks)
    x: Spec = {
        "field": "blocks",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low / 1.2, high * 1.2], "nice": False},
        "axis": {
            "title": "blocks",
            "values": log_ticks(low / 1.2, high * 1.2),
            "labelExpr": "format(datum.value, ',')",
            "grid": False,
        },
    }
    top = max(_floats([*points, *ideal], "rate"), default=0.0)
    y: Spec = {
        "field": "rate",
        "type": "quantitative",
        "scale": {"domain": [0, short(top * 1.08) or 1], "nice": False},
        "axis": {"title": None, "labelExpr": _SHARE, "tickCount": 5},
    }
    colour = _colours(lines)
    return plot(
        [
            {
                "data": {"values": ideal},
                "mark": {"type": "line", "strokeDash": [5, 4], "color": MUTED, "strokeWidth": 1.5},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.75},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            {
                "mark": {"type": "point", "size": 60, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "stroke": colour,
                    "fill": colour,
                    "shape": _shapes(lines),
                    "tooltip": {"field": "tip"},
                },
            },
        ],
        height_px=_HEIGHT_PX,
        rows=points,
    )


def cdf_spec(rows: list[Spec], lines: int) -> Spec:
    """Shares of requests along time."""
    x = _time_axis(_floats(rows, "time"))
    y: Spec = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "nice": False},
        "axis": {"title": None, "labelExpr": _SHARE, "tickCount": 5},
    }
    colour = _colours(lines)
    return plot(
        [
            {
                "mark": {"type": "line", "strokeWidth": 1.75},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "order": {"field": "share", "type": "quantitative"},
                },
            },
            {
                "transform": [{"filter": "datum.dot"}],
                "mark": {"type": "point", "size": 55, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "stroke": colour,
                    "fill": colour,
                    "shape": _shapes(lines),
                    "tooltip": {"field": "tip"},
                },
            },
        ],
        height_px=_HEIGHT_PX,
        rows=rows,
    )


def cost_spec(rows: list[Spec]) -> Spec:
    """Dots, those of the front filled and joined."""
    most = max(_floats(rows, "cost"))
    x: Spec = {
        "field": "cost",
        "type": "quantitative",
        "scale": {"domain": [0, short(most * 1.08) or 1], "nice": False},
        "axis": {"title": None, "labelExpr": "'$' + format(datum.value, '.3~g')", "tickCount": 5},
    }
    y = _time_axis(_floats(rows, "time"))
    fill: Spec = {"condition": {"test": "datum.front", "value": "var(--line-0)"}, "value": PAPER}
    return plot(
        [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "strokeWidth": 1.75, "color": "var(--line-0)"},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "circle", "size": 70, "opacity": 1, "stroke": "var(--line-0)"},
                "encoding": {"x": x, "y": y, "fill": fill, "tooltip": {"field": "tip"}},
            },
        ],
        height_px=_HEIGHT_PX,
        rows=rows,
    )


def bar_spec(rows: list[Spec], names: list[Spec]) -> Spec:
    """A stacked bar for each of `names`, its name beside it or, where it is narrow, above it."""
    order = list(range(len(PARTS)))
    names_px = f"(width > 600 ? width * {_NAME_SHARE} : 0)"
    place: Spec = {
        "field": "row",
        "type": "ordinal",
        "axis": None,
        "scale": {"paddingInner": 0.35, "paddingOuter": 0.2},
    }
    bars: Spec = {
        "mark": {
            "type": "bar",
            "yOffset": {"expr": "width > 600 ? 0 : 7"},
            "height": {"band": 0.6},
        },
        "encoding": {
            "x": {
                "field": "time",
                "type": "quantitative",
                "stack": "zero",
                "scale": {"range": [{"expr": names_px}, {"expr": "width"}], "nice": False},
                "axis": {"title": None, "labelExpr": _FROM_ZERO, "tickCount": 4},
            },
            "color": {
                "field": "part",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": order, "range": [f"var(--line-{index})" for index in order]},
            },
            "order": {"field": "part", "type": "ordinal"},
            "tooltip": {"field": "tip"},
        },
    }
    words: Spec = {
        "data": {"values": names},
        "mark": {
            "type": "text",
            "align": "left",
            "baseline": "middle",
            "x": 0,
            "dy": {"expr": "width > 600 ? 0 : -11"},
            "limit": {"expr": f"width > 600 ? {names_px} - 10 : width"},
            "fontSize": 12,
        },
        "encoding": {"text": {"field": "name", "type": "nominal"}},
    }
    return plot(
        [bars, words], height_px=max(len(names), 1) * _BAR_PX, rows=rows, encoding={"y": place}
    )
