"""Trends as lines of a given width, for the terminal.

The sparkline shrinks first, then the last figure goes, then ids move to lines of their own. An id
is never cut. Styles only repeat what a word says. Knows a width in characters, no console.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from rich.text import Text

from kvbench.compare.record import Kind
from kvbench.history import Missing, Trend
from kvbench_reports.words import (
    NONE,
    clean,
    number,
    percent,
    rate_scale,
    signed_percent,
    time_scale,
)

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", ".:-=+*#%"
STYLES = {"slower": "bold red", "faster": "green", "noise": "dim"}
_LEAST_SPAN = 0.10  # of the sparkline's height, in logs: below 10 % from end to end it looks flat
_IN_NOISE = 2 * math.sqrt(2)  # sd: two sessions of one level differ by less 19 times in 20
_UNITS = {"sessions": "", "last": "", "first to last": "%", "spread": "%", "changes": ""}
_CHANGE = "first to last"
_TREND_WIDTHS = (40, 24, 16, 8)
_LEAST_TREND, _LEAST_ID = len("trend"), len("row")
_GAP = "  "

Cells = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns there is room for, and how wide each one is."""

    id_width: int
    trend_width: int
    widths: Mapping[str, int]  # of the others, by title

    @property
    def width(self) -> int:
        """Of the whole table."""
        figures = sum(len(_GAP) + width for width in self.widths.values())
        return self.id_width + len(_GAP) + self.trend_width + figures

    def heading(self) -> Iterator[Text]:
        """Titles, units and a rule."""
        yield Text.assemble(*self._line("row", "trend", {each: each for each in _UNITS}))
        yield Text.assemble(*self._line("", "", _UNITS))
        yield Text("─" * self.width)

    def row(self, trend: Trend, bars: str) -> Iterator[Text]:
        """The figures of a trend, its id above them where there is no room beside."""
        name = clean(trend.id)
        if len(name) > self.id_width:
            yield Text(name)
            name = ""
        line = sparkline([point.value for point in trend.points], self.trend_width, bars)
        yield Text.assemble(*self._line(name, line, cells(trend), STYLES.get(word(trend), "")))

    def _line(
        self, name: str, trend: str, texts: Cells, change_style: str = ""
    ) -> Iterator[tuple[str, str]]:
        yield f"{name.ljust(self.id_width)}{_GAP}{trend.ljust(self.trend_width)}", ""
        for title, width in self.widths.items():
            style = change_style if title == _CHANGE else ""
            yield f"{_GAP}{texts[title].rjust(width)}", style


def fit(trends: Sequence[Trend], width: int) -> Columns:
    """The widest sparkline beside all ids; where none fits, long ids get lines of their own."""
    names = [len(clean(trend.id)) for trend in trends]
    points = max(_LEAST_TREND, *(len(trend.points) for trend in trends))
    found = [cells(trend) for trend in trends]
    widths = {title: max(len(title), *(len(each[title]) for each in found)) for title in _UNITS}
    narrow = {title: size for title, size in widths.items() if title != "last"}
    choices = [(min(size, points), widths) for size in _TREND_WIDTHS]
    choices.append((choices[-1][0], narrow))
    for least in (max(_LEAST_ID, *names), _LEAST_ID):  # beside all ids, or beside the short ones
        for trend_width, columns in choices:
            table = Columns(id_width=least, trend_width=trend_width, widths=columns)
            if table.width <= width:
                spare = width - table.width + least
                fitting = [size for size in names if size <= spare]
                return replace(table, id_width=max([_LEAST_ID, *fitting]))
    return Columns(id_width=_LEAST_ID, trend_width=choices[-1][0], widths=narrow)


def cells(trend: Trend) -> dict[str, str]:
    """The figures of a trend by column, without padding."""
    change = NONE
    if trend.change is not None:
        change = f"{signed_percent(trend.change)} {word(trend).ljust(len('slower'))}"
    return {
        "sessions": f"{len(trend.points):,}",
        "last": _figure(trend),
        _CHANGE: change,
        "spread": NONE if trend.noise_sd is None else percent(math.expm1(trend.noise_sd)),
        "changes": _changes(trend),
    }


def word(trend: Trend) -> str:
    """What the first and the last point differ by, in a word; empty for a single point."""
    if trend.change is None:
        return ""
    noise = _IN_NOISE * (trend.noise_sd or 0.0)
    if abs(math.log1p(trend.change)) <= noise:
        return "noise"
    return direction(trend.change)


def direction(change: float) -> str:
    """`slower`, `faster` or `equal`."""
    return "equal" if change == 0 else "slower" if change > 0 else "faster"


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """The values on a log scale, oldest first; medians of equal parts where there is no room.

    The scale covers `_LEAST_SPAN` at least, so that small noise is nearly a flat line.
    """
    parts = min(width, len(values))
    ends = [len(values) * part // parts for part in range(parts + 1)]
    logs = [math.log(median(values[start:end])) for start, end in itertools.pairwise(ends)]
    middle = (min(logs) + max(logs)) / 2
    span = max(max(logs) - min(logs), _LEAST_SPAN)
    heights = (((each - middle) / span + 0.5) * len(bars) for each in logs)
    return "".join(bars[min(len(bars) - 1, max(0, int(height)))] for height in heights)


def _figure(trend: Trend) -> str:
    value = trend.points[-1].value
    unit, factor = (time_scale if trend.kind is Kind.P99 else rate_scale)([value])
    return f"{number(value / factor)} {unit}"


def _changes(trend: Trend) -> str:
    if trend.changes is not None:
        return f"{len(trend.changes):,}" if trend.changes else "none"
    return "too few" if trend.changes_missing is Missing.TOO_FEW else NONE
