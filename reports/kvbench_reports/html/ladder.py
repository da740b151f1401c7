"""The tier ladder: what each tier gives by each path, as a rate and as the time to move a prompt.

One log axis carries both, since the time is the prompt's bytes over the rate. Of every tier, path
and operation the fastest row is drawn, and named.
"""

from dataclasses import dataclass

from kvbench.measure.result import Report, Row, State
from kvbench.units import format_bytes
from kvbench_reports.figures import TOKENS
from kvbench_reports.html.figure import Figure, Panel, Spec, Table
from kvbench_reports.html.says import (
    alone,
    bounds_of,
    interval_words,
    limit_of,
    marks_of,
    measured,
    moving_words,
    path_of,
    plain_rate,
    rate_of,
    rate_words,
    tiers_of,
)
from kvbench_reports.html.vega import (
    BESIDE_NAMES,
    MARK_OFFSET,
    PAPER,
    RATE_LABEL,
    log_ticks,
    named_rows,
    short,
    time_label,
)
from kvbench_reports.view import state_counts
from kvbench_reports.words import NONE, clean

# These fill a tier or cross the link to it: they do not say how fast blocks come out of it.
_NOT_GIVING = frozenset({"write", "scatter", "transfer"})
_TITLE = f"Tier ladder: rate, and time to move {TOKENS:,} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The big figure of a tier: how long a prompt takes from there; `why` where there is none."""

    tier: str
    time: str
    rate: str
    case: str
    how: str
    why: str = ""


def headlines(report: Report) -> list[Headline]:
    """One for each tier that has rows, from the fastest row that gives blocks back."""
    size = report.model.bytes_for(TOKENS)
    found: list[Headline] = []
    for tier, rows in tiers_of(report).items():
        usable = alone(rows)
        giving = [row for row in usable if row.operation not in _NOT_GIVING] or usable
        if not giving:
            why = f"no figure: {state_counts(rows)}"
            if measured(rows):
                why = "measured only beside a load"
            found.append(Headline(tier=clean(tier), time="", rate="", case="", how="", why=why))
            continue
        best = max(giving, key=rate_of)
        state = f", {best.state}" if best.state is State.DEGRADED else ""
        found.append(
            Headline(
                tier=clean(tier),
                time=moving_words(best, size),
                rate=f"{rate_words(best)} {_interval(best)}".rstrip(),
                case=clean(best.id),
                how=f"{path_of(best)}{state}",
            )
        )
    return found


def prompt_words(report: Report) -> str:
    """What is moved: `8,192 tokens of llama-3.1-8b in bf16, 1 GiB`."""
    model = report.model
    size = format_bytes(model.bytes_for(TOKENS))
    return f"{TOKENS:,} tokens of {clean(model.name)} in {clean(model.cache_dtype)}, {size}"


def ladder(report: Report) -> Figure:
    """The chart and its table."""
    rungs = _rungs(report)
    size = report.model.bytes_for(TOKENS)
    caption = (
        f"Further right is faster; the lower scale is the rate and the upper one the time to move "
        f"{prompt_words(report)}; a dot is the fastest row of its tier, operation and path, the "
        "line through it the 95 % interval, an upright stroke its limit where one is known."
    )
    hollow = marks_of(rungs)
    return Figure(
        key="ladder",
        title=_TITLE,
        caption=f"{caption} {hollow}".rstrip(),
        table=Table(
            columns=("tier", "case", "path", "state", "rate", "95 %", f"{TOKENS:,} tok", "limit"),
            rows=tuple(_cells(row, size) for row in rungs),
            text=4,
        ),
        panels=(_panel(rungs, size),) if rungs else (),
        absent="" if rungs else "no row of this report holds a figure",
    )


def _interval(row: Row) -> str:
    words = interval_words(row)
    return "" if words == NONE else words


def _rungs(report: Report) -> list[Row]:
    """The fastest row of each tier, operation and path: by tier, the fastest first."""
    rungs: list[Row] = []
    for rows in tiers_of(report).values():
        best: dict[tuple[str, str], Row] = {}
        for row in sorted(alone(rows), key=rate_of, reverse=True):
            best.setdefault((row.operation, path_of(row)), row)
        rungs += best.values()
    return rungs


def _cells(row: Row, size_bytes: int) -> tuple[str, ...]:
    limit = limit_of(row)
    return (
        clean(row.tier),
        clean(row.id),
        path_of(row),
        row.state,
        rate_words(row),
        interval_words(row),
        moving_words(row, size_bytes),
        plain_rate(limit) if limit else NONE,
    )


def _panel(rungs: list[Row], size_bytes: int) -> Panel:
    names: list[Spec] = [
        {
            "row": place,
            "head": f"{clean(row.tier)}: {path_of(row)}",
            "value": f"{rate_words(row)} · {moving_words(row, size_bytes)}",
            "name": clean(row.id),
        }
        for place, row in enumerate(rungs)
    ]
    dots: list[Spec] = [
        {
            "row": place,
            "rate": short(rate_of(row)),
            "low": short(bounds_of(row)[0]),
            "high": short(bounds_of(row)[1]),
            "limit": limit_of(row),
            "hollow": row.state is State.DEGRADED,
            "tip": f"{clean(row.id)}: {rate_words(row)}, {moving_words(row, size_bytes)}",
        }
        for place, row in enumerate(rungs)
    ]
    spoken = "; ".join(f"{each['name']} {each['value']}" for each in names)
    return Panel(
        key="ladder-1",
        title="",
        label=f"{_TITLE}. {spoken}.",
        spec=named_rows(names, _marks(rungs, size_bytes), dots),
    )


def _marks(rungs: list[Row], size_bytes: int) -> list[Spec]:
    known = [end for row in rungs for end in bounds_of(row)]
    known += [limit for row in rungs if (limit := limit_of(row))]
    low, high = min(known) / 1.3, max(known) * 1.3
    scale = {"type": "log", "domain": [low, high], "nice": False, "range": BESIDE_NAMES}
    below: Spec = {
        "title": None,
        "grid": True,
        "values": log_ticks(low, high),
        "labelExpr": RATE_LABEL,
    }
    times = log_ticks(size_bytes / high, size_bytes / low)
    above: Spec = {
        "title": None,
        "orient": "top",
        "offset": 8,
        "grid": False,
        "values": [size_bytes / time_s for time_s in times],
        "labelExpr": time_label(f"({size_bytes} / datum.value)"),
    }

    def place(field: str, axis: Spec | None = None) -> Spec:
        return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}

    return [
        {
            "transform": [{"filter": "isValid(datum.limit)"}],
            "mark": {"type": "tick", "orient": "vertical", "size": 20, "yOffset": MARK_OFFSET},
            "encoding": {"x": place("limit", above)},
        },
        {
            "mark": {
                "type": "rule",
                "strokeWidth": 2,
                "color": "var(--line-0)",
                "yOffset": MARK_OFFSET,
                "y2Offset": MARK_OFFSET,
            },
            "encoding": {"x": place("low", below), "x2": {"field": "high"}},
        },
        {
            "mark": {
                "type": "point",
                "size": 90,
                "opacity": 1,
                "stroke": "var(--line-0)",
                "yOffset": MARK_OFFSET,
            },
            "encoding": {
                "x": place("rate"),
                "fill": {
                    "condition": {"test": "datum.hollow", "value": PAPER},
                    "value": "var(--line-0)",
                },
                "tooltip": {"field": "tip"},
            },
        },
    ]
