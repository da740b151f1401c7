"""Findings as lines of a given width, for the terminal.

The bar shrinks first, then goes; then ids move to lines of their own, which leaves room for the
bar again; then the interval goes, then BASE and NEW. An id is never cut. Styles only repeat what
a word says. Knows a width in characters, nothing of a console.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.text import Text

from kvbench.compare.record import Finding, Verdict
from kvbench_reports.compare.figures import Cells
from kvbench_reports.compare.forest import Axis, axis_of, bar, scale
from kvbench_reports.words import NONE

STYLES = {
    Verdict.SLOWER: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.NOT_COMPARABLE: "bold red",
    Verdict.UNSURE: "yellow",
    Verdict.FASTER: "green",
    Verdict.NEW: "cyan",
    Verdict.SAME: "dim",
}
_GAP, _TO = "  ", " to "
_INTERVAL = "95 % interval"
_LEAST_BAR, _MOST_BAR = 14, 60
_LEAST_ID = len("finding")
_MOSTLY = 0.8  # share of the ids that must fit beside their figures; the rest get lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A finding to be listed. `mark` refers to a note below its group."""

    finding: Finding
    cells: Cells
    name: str  # its id, cleaned
    mark: str = ""

    @property
    def label(self) -> str:
        """The id and the mark."""
        return f"{self.name} {self.mark}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """Of the columns of figures; None for those that are not printed."""

    values: tuple[int, int, int] | None  # base, new, unit
    change: int
    ends: tuple[int, int] | None  # of the interval

    @property
    def all(self) -> int:
        """Of the columns between the id and the bar, with the gaps before them."""
        width = len(_GAP) + self.change
        if self.values:
            width += sum(self.values) + 3 * len(_GAP)
        return width + len(_GAP) + self.interval if self.ends else width

    @property
    def interval(self) -> int:
        """Of `-5.1 to +18.8`."""
        return sum(self.ends or ()) + len(_TO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns there is room for, and how wide each one is."""

    id_width: int
    widths: _Widths
    axis: Axis | None
    dropped: tuple[str, ...]  # titles

    def heading(self) -> Iterator[Text]:
        """Titles, units and a rule."""
        ticks, sides = scale(self.axis) if self.axis else ("", "")
        title = _INTERVAL if len(_INTERVAL) <= self.widths.interval else "95 %"
        yield Text(self._joined("finding", ("base", "new", ""), ("change", title), ticks), "bold")
        yield Text(self._joined("", ("", "", ""), ("%", "%"), sides), "dim")
        bar_width = len(_GAP) + self.axis.width if self.axis else 0
        yield Text("─" * (self.id_width + self.widths.all + bar_width), "dim")

    def row(self, line: Line) -> Iterator[Text]:
        """A finding: its id beside its figures, or above them where there is no room."""
        cells, label = line.cells, line.label
        style = STYLES[Verdict.SAME] if line.finding.verdict is Verdict.SAME else ""
        if cells.empty or cell_len(label) > self.id_width:
            yield Text(label, style)
            label = ""
        if not cells.empty:
            values = (cells.base, cells.new, cells.unit)
            figures = (cells.change, self._interval(cells))
            drawn = bar(line.finding, self.axis) if self.axis else ""
            yield Text(self._joined(label, cells.of or values, figures, drawn), style)

    def _joined(
        self, name: str, values: str | tuple[str, str, str], figures: tuple[str, str], drawn: str
    ) -> str:
        """One line; `values` are BASE, NEW and their unit, or a text that stands for them."""
        change, interval = figures
        parts = [name + " " * (self.id_width - cell_len(name))]
        if self.widths.values:
            base, new, unit = self.widths.values
            if isinstance(values, str):
                numbers = base + len(_GAP) + new
                parts.append(values.rjust(numbers).ljust(numbers + len(_GAP) + unit))
            else:
                parts += [values[0].rjust(base), values[1].rjust(new), values[2].ljust(unit)]
        parts.append(change.rjust(self.widths.change))
        if self.widths.ends:
            parts.append(interval.rjust(self.widths.interval))
        return _GAP.join([*parts, drawn]).rstrip()

    def _interval(self, cells: Cells) -> str:
        if not self.widths.ends or NONE in (cells.low, cells.high):
            return NONE
        low, high = self.widths.ends
        return f"{cells.low.rjust(low)}{_TO}{cells.high.rjust(high)}"


def fit(lines: Sequence[Line], width: int) -> Columns:
    """The columns that fit these findings."""
    shown = [line for line in lines if not line.cells.empty]
    cells = [line.cells for line in shown]
    base = _widest("base", (each.base for each in cells))
    new = _widest("new", (each.new for each in cells))
    of = _widest("", (each.of for each in cells))
    widths = _Widths(
        values=(max(base, of - new - len(_GAP)), new, _widest("", (each.unit for each in cells))),
        change=_widest("change", (each.change for each in cells)),
        ends=(
            _widest("", (each.low for each in cells)),
            _widest("", (each.high for each in cells)),
        ),
    )
    id_width, widths = _choose(sorted(cell_len(line.label) for line in shown), widths, width)
    spare = width - id_width - widths.all - len(_GAP)
    findings = [line.finding for line in shown]
    axis = axis_of(findings, min(spare, _MOST_BAR)) if spare >= _LEAST_BAR else None
    lost = [
        *(["base", "new"] if not widths.values else []),
        *([_INTERVAL] if not widths.ends else []),
        *(["the bars"] if spare < _LEAST_BAR else []),
    ]
    return Columns(id_width=id_width, widths=widths, axis=axis, dropped=tuple(lost))


def _choose(ids: Sequence[int], widths: _Widths, width: int) -> tuple[int, _Widths]:
    """Room for ids, and the columns of figures that are printed; `ids` are sorted lengths."""
    for bar_width in (len(_GAP) + _LEAST_BAR, 0):
        room = width - widths.all - bar_width
        beside = [size for size in ids if size <= room]
        if room >= _LEAST_ID and len(beside) >= _MOSTLY * len(ids):
            return max([_LEAST_ID, *beside]), widths
    no_interval = replace(widths, ends=None)
    for fewer in (widths, no_interval):
        if _LEAST_ID + fewer.all <= width:
            return _LEAST_ID, fewer
    return _LEAST_ID, replace(no_interval, values=None)


def _widest(title: str, cells: Iterable[str]) -> int:
    return max([len(title), *map(len, cells)])
