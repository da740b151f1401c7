"""Process to process: what each fresh process measured, relative to the median of its row.

The process is the unit of replication, so this is the spread that intervals are made of. The rows
that spread most are drawn; the table has all.
"""

from collections.abc import Sequence
from statistics import median

from kvbench.measure.result import Row
from kvbench_reports.html.figure import Figure, Panel, Spec, Table
from kvbench_reports.html.says import key_of, left_out, measured, rate_words
from kvbench_reports.html.series import evenly
from kvbench_reports.html.vega import (
    BESIDE_NAMES,
    FEW_TICKS,
    MARK_OFFSET,
    MUTED,
    SHARE_LABEL,
    named_rows,
    short,
)
from kvbench_reports.words import clean, count, signed_percent

_MOST_ROWS = 12
_MOST_DOTS = 60  # of one row: evenly from the slowest to the fastest
_MOST_LISTED = 30  # values in a cell of the table


def spread(tier: str, rows: Sequence[Row]) -> Figure:
    """The figure of one tier."""
    several = [row for row in measured(rows) if len(_shares(row)) > 1]
    several.sort(key=_width, reverse=True)
    drawn = several[:_MOST_ROWS]
    title = "Spread from process to process"
    key = f"{key_of(tier)}-spread"
    spoken = "; ".join(f"{clean(row.id)} {_range(row)}" for row in drawn)
    return Figure(
        key=key,
        title=title,
        caption=(
            "Each dot is one fresh process, placed by its rate relative to the median of its "
            "row's processes; right is faster, and the wider the dots lie, the less a single run "
            "tells; the row that spreads most comes first."
        ),
        table=Table(
            columns=("case", "processes", "slowest", "fastest", "each, % from the median"),
            rows=tuple(_cells(row) for row in several),
        ),
        panels=(Panel(key=f"{key}-0", title="", label=f"{title}: {spoken}.", spec=_spec(drawn)),)
        if drawn
        else (),
        absent="" if drawn else f"no row of {clean(tier)} has two processes to compare",
        thinned=_thinned(drawn, several),
    )


def _thinned(drawn: Sequence[Row], several: Sequence[Row]) -> str:
    text = left_out(len(drawn), len(several), "row", "those that spread most")
    most = max((len(_shares(row)) for row in drawn), default=0)
    if most > _MOST_DOTS:
        text += f" At most {_MOST_DOTS} of {count(most, 'process')} of a row are drawn, evenly."
    return text.replace("processs", "processes").strip()


def _shares(row: Row) -> list[float]:
    """Of each process, its rate over the median of the row, minus 1, slowest first."""
    rates = [each.bytes_per_s for each in row.processes if each.bytes_per_s > 0]
    if not rates:
        return []
    middle = median(rates)
    return sorted(rate / middle - 1 for rate in rates)


def _width(row: Row) -> float:
    shares = _shares(row)
    return shares[-1] - shares[0]


def _range(row: Row) -> str:
    shares = _shares(row)
    return f"{signed_percent(shares[0])} to {signed_percent(shares[-1])} %"


def _cells(row: Row) -> tuple[str, ...]:
    shares = _shares(row)
    listed = ", ".join(signed_percent(share) for share in shares[:_MOST_LISTED])
    more = len(shares) - _MOST_LISTED
    return (
        clean(row.id),
        f"{len(shares):,}",
        f"{signed_percent(shares[0])} %",
        f"{signed_percent(shares[-1])} %",
        f"{listed} and {more:,} more" if more > 0 else listed,
    )


def _spec(drawn: Sequence[Row]) -> Spec:
    names: list[Spec] = [
        {
            "row": place,
            "head": _range(row),
            "value": f"{rate_words(row)}, n = {len(_shares(row)):,}",
            "name": clean(row.id),
        }
        for place, row in enumerate(drawn)
    ]
    dots: list[Spec] = [
        {
            "row": place,
            "share": short(share),
            "tip": f"{clean(row.id)}: {signed_percent(share)} %",
        }
        for place, row in enumerate(drawn)
        for share in evenly(_shares(row), _MOST_DOTS)
    ]
    furthest = 1.08 * max((abs(share) for row in drawn for share in _shares(row)), default=0.0)
    furthest = furthest or 0.01
    x: Spec = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [-furthest, furthest], "nice": False, "range": BESIDE_NAMES},
        "axis": {"title": None, "grid": True, "labelExpr": SHARE_LABEL, "tickCount": FEW_TICKS},
    }
    zero: Spec = {"x": x | {"field": "zero", "axis": None}}
    marks: list[Spec] = [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "color": MUTED},
            "encoding": zero | {"y": {"value": 0}, "y2": {"value": "height"}},
        },
        {
            "mark": {
                "type": "point",
                "size": 85,
                "opacity": 0.75,
                "fill": "var(--line-0)",
                "stroke": "var(--paper)",
                "strokeWidth": 1,
                "yOffset": MARK_OFFSET,
            },
            "encoding": {"x": x, "tooltip": {"field": "tip"}},
        },
    ]
    return named_rows(names, marks, dots)
