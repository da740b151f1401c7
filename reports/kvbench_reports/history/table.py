"""The terminal table of a history: a head, the rows of each machine and model, a legend.

The worst recent change comes first; at most `ROWS` rows are listed unless all are asked for, and
how many are left out is said. Prints nothing but in `show`, which is given the console.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC
from functools import partial

from rich.console import Console, RenderableType
from rich.text import Text

from kvbench.history import LEAST_POINTS, Change, Group, Missing, Trend, Trends
from kvbench.measure.result import State
from kvbench.units import format_bytes
from kvbench_reports.compare.head import SHORT_COMMIT
from kvbench_reports.head import SEPARATOR
from kvbench_reports.history.added import SHORT_SESSION
from kvbench_reports.history.layout import ASCII_BARS, BARS, STYLES, direction, fit
from kvbench_reports.layout import INDENT, prose
from kvbench_reports.layout import STYLES as STATE_STYLES
from kvbench_reports.table import Part, plain_text, print_parts
from kvbench_reports.words import clean, count, moment, signed_percent

ROWS = 25
ADVISORY = "advisory: not a gate; two sessions differ by more than their intervals"
INSTALL = "pip install 'kvbench[history]'"
_MOST_CHANGES = 3  # of a row, the latest
_LEGEND = (
    "trend: the figure itself, so up is faster for a rate and slower for a p99",
    "first to last: in time, + is slower; noise is what two sessions of one level differ by",
    "spread: standard deviation of a session about its level, from neighbouring sessions",
)


def tables(trends: Trends, *, all_: bool = False, bars: str = BARS) -> list[RenderableType]:
    """The parts of a history in the order they are read."""
    ranked = sorted(
        ((group, trend) for group in trends.groups for trend in group.trends),
        key=lambda pair: _rank(pair[1]),
    )
    most = len(ranked) if all_ else ROWS
    groups: dict[int, tuple[Group, list[Trend]]] = {}
    for group, trend in ranked[:most]:
        groups.setdefault(id(group), (group, []))[1].append(trend)
    shown, left_out = ([trend for _, trend in part] for part in (ranked[:most], ranked[most:]))
    return [
        Part(partial(_head, trends)),
        *(
            Part(partial(_group, group, rows, all_=all_, bars=bars))
            for group, rows in groups.values()
        ),
        Part(partial(_closing, trends, shown, left_out)),
    ]


def show(trends: Trends, console: Console, *, all_: bool = False) -> None:
    """Print the trends to a console, a blank line between their parts."""
    bars = BARS if _can_encode(BARS, console.encoding) else ASCII_BARS
    print_parts(tables(trends, all_=all_, bars=bars), console)


def render(trends: Trends, *, all_: bool = False) -> str:
    """The trends as text without colour, `kvbench_reports.table.PLAIN_WIDTH` wide."""
    return plain_text(tables(trends, all_=all_))


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _rank(trend: Trend) -> tuple[bool, int, float]:
    """In use before retired; slower by its last change, faster by it, without one; worst first."""
    if trend.changes:
        step = trend.changes[-1].change
        return trend.retired, 0 if step > 0 else 1, -step
    return trend.retired, 2, -(trend.change or 0.0)


def _head(trends: Trends, width: int) -> Iterator[Text]:
    days = dict.fromkeys(f"{each.astimezone(UTC):%Y-%m-%d}" for each in (trends.first, trends.last))
    facts = [clean(trends.path), count(trends.sessions, "session"), " to ".join(days)]
    yield from prose(f"history  {SEPARATOR.join(facts)}", width, style="bold", hang=INDENT)
    yield from prose(ADVISORY, width, hang=INDENT)


def _group(
    group: Group, trends: Sequence[Trend], width: int, *, all_: bool, bars: str
) -> Iterator[Text]:
    yield from prose(_heading(group), width, style="bold", hang=INDENT)
    if group.simulated is not None:
        notice = f"simulated devices (profile {clean(group.simulated)}), true of no machine"
        yield from prose(notice, width, style=f"bold {STATE_STYLES[State.SIMULATED]}", hang=INDENT)
    columns = fit(trends, width)
    for line, style in zip(columns.heading(), ("bold", "dim", "dim"), strict=True):
        line.stylize(style)
        yield line
    for trend in trends:
        yield from columns.row(trend, bars)
        yield from _below(trend, width, all_=all_)


def _heading(group: Group) -> str:
    hardware = dict.fromkeys(clean(name) for name in group.gpus or [group.cpu or ""])
    machine = f"machine {clean(group.machine) or 'unknown'}"
    if any(hardware):
        machine += f" ({', '.join(hardware)})"
    model = group.model
    facts = [
        machine,
        f"{clean(model.name)} in {clean(model.cache_dtype)}",
        f"block of {format_bytes(model.block_bytes)}",
    ]
    if group.side is not None:
        facts.append(f"side {clean(group.side)}")
    return SEPARATOR.join([*facts, count(group.sessions, "session")])


def _below(trend: Trend, width: int, *, all_: bool) -> Iterator[Text]:
    """What is said of a row in words: other definitions, then its changes, the latest first."""
    if trend.retired:
        yield from prose("old definition, measured no more", width, style="dim", indent=INDENT)
    elif trend.earlier:
        since = moment(trend.points[0].started_at.isoformat())
        text = f"new definition since {since}: {count(trend.earlier, 'session')} before it apart"
        yield from prose(text, width, style="dim", indent=INDENT)
    changes = trend.changes or []
    shown = changes if all_ else changes[-_MOST_CHANGES:]
    for change in reversed(shown):
        style = STYLES.get(direction(change.change), "")
        yield from prose(_sentence(change), width, style=style, indent=INDENT, hang=2)
    if len(changes) > len(shown):
        text = f"{count(len(changes) - len(shown), 'earlier change')}: --all lists them"
        yield from prose(text, width, style="dim", indent=INDENT)


def _sentence(change: Change) -> str:
    """`+13.9 % slower from 2026-02-03 12:01 UTC on (12 sessions), commit 1f3c9e2aab, session …`."""
    since = moment(change.started_at.isoformat())
    facts = [
        f"{signed_percent(change.change)} % {direction(change.change)} from {since} on "
        f"({count(change.sessions, 'session')})",
        f"commit {clean(change.commit)[:SHORT_COMMIT]}" if change.commit else "no commit recorded",
        f"session {clean(change.session_id)[:SHORT_SESSION]}",
    ]
    return "; ".join([", ".join(facts), *(clean(each) for each in change.with_it)])


def _closing(
    trends: Trends, shown: Sequence[Trend], left_out: Sequence[Trend], width: int
) -> Iterator[Text]:
    for text in _LEGEND:
        yield from prose(text, width, style="dim", hang=INDENT)
    reasons = [trend.changes_missing for trend in shown]
    if few := reasons.count(Missing.TOO_FEW):
        rows = count(few, "row")
        text = f"{Missing.TOO_FEW} in {rows}: {LEAST_POINTS} sessions are needed"
        yield from prose(text, width, hang=INDENT)
    if Missing.NO_RUPTURES in reasons:
        yield Text(f"change points were not looked for: {INSTALL}", style="yellow")
    for note in trends.notes:
        yield from prose(clean(note), width, style="yellow", hang=INDENT)
    if left_out:
        changed = sum(bool(trend.changes) for trend in left_out)
        text = f"{count(len(left_out), 'more row')}, {changed} with a change point: --all lists all"
        yield from prose(text, width, style="bold", hang=INDENT)
