"""One tier as lines of a given width, for the terminal.

Where the columns do not fit, those in `DROPPED_FIRST` go, in that order, and a case id that does
not fit beside its figures gets a line of its own. Styles only repeat what a word says. Knows the
views and a width in characters, nothing of a console.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from kvbench.measure.result import State
from kvbench_reports.figures import Column
from kvbench_reports.view import Line, Skipped, TierView

DROPPED_FIRST = ("p50", "p99", "limit", "interval", "block", "tokens")
STYLES = {
    State.OK: "green",
    State.DEGRADED: "yellow",
    State.INVALID: "bold red",
    State.SKIPPED: "dim",
    State.FAILED: "bold red",
    State.SIMULATED: "magenta",
}
INDENT = 4
_GIVEN_UP = frozenset({"p50", "p99"})  # before ids move to lines of their own
_LEAST_CASE = len("case")
READABLE = 100  # longer lines of prose are hard to read
_GAP = "  "


def tier_lines(view: TierView, width: int) -> Iterator[Text]:
    """The heading, the rows and the notes of a tier, with what there was no room for."""
    first, *rest = prose(f"{view.tier}{_GAP}{view.summary}", width, hang=INDENT)
    first.stylize("bold", 0, len(view.tier))
    yield from (first, *rest)
    table = _fit(view, width)
    yield from table.heading()
    notes = [len(line.note) for line in view.lines if isinstance(line, Line) and line.note]
    beside = table.width + len(_GAP) + max(notes, default=0) <= width
    for line in view.lines:
        if isinstance(line, Skipped):
            text = f"{line.title} skipped: {line.reason}"
            yield from prose(text, width, style=STYLES[State.SKIPPED], hang=INDENT)
        else:
            yield from table.row(line, width, note_beside=beside)
    dropped = [column for column in view.columns if column not in table.columns]
    gone = {column.key for column in dropped}
    for note in view.notes:
        if not note.columns or not gone.issuperset(note.columns):
            yield from prose(note.text, width, style="dim", hang=2)
    if dropped:
        titles = ", ".join(column.title for column in dropped)
        yield from prose(f"no room for {titles} at this width", width, style="dim", hang=2)


def prose(
    text: str, width: int, *, style: str = "", indent: int = 0, hang: int = 0
) -> Iterator[Text]:
    """Text wrapped at words; `hang` more spaces before all lines but the first."""
    lines = textwrap.wrap(
        text,
        width=max(min(width, READABLE), indent + hang + 1),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_on_hyphens=False,
    )
    for line in lines:
        yield Text(line, style=style)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The columns that fit and how wide each one is."""

    columns: tuple[Column, ...]
    widths: dict[str, int]  # by the column's key
    shapes: dict[str, "_Shape"]
    case_width: int
    state_width: int

    @property
    def figures_width(self) -> int:
        """Of the columns between case and state, with the gaps before them."""
        return sum(len(_GAP) + self.widths[column.key] for column in self.columns)

    @property
    def width(self) -> int:
        """Of the whole table."""
        return self.case_width + self.figures_width + len(_GAP) + self.state_width

    def heading(self) -> Iterator[Text]:
        """Titles, units and a rule; nothing where no row has a figure."""
        if not self.columns:
            return
        titles = {column.key: column.title for column in self.columns}
        units = {column.key: column.unit for column in self.columns}
        yield Text(f"{self._figures('case', titles)}{_GAP}state", style="bold")
        yield Text(self._figures("", units), style="dim")
        yield Text("─" * self.width, style="dim")

    def row(self, line: Line, width: int, *, note_beside: bool) -> Iterator[Text]:
        """A row's figures; its id above them and its reason below them where there is no room."""
        cells = {key: shape.pad(line.cells[key]) for key, shape in self.shapes.items()}
        id_beside = len(line.case) <= self.case_width
        if not id_beside:
            yield Text(line.case)
        text = Text(self._figures(line.case if id_beside else "", cells) + _GAP)
        text.append(line.state, style=STYLES[line.state])
        text.append(_labels(line))
        if line.note and note_beside:
            text.pad_right(self.width - len(text))
            text.append(f"{_GAP}{line.note}")
        yield text
        if line.note and not note_beside:
            yield from prose(line.note, width, indent=INDENT)

    def _figures(self, case: str, texts: dict[str, str]) -> str:
        cells = (texts[column.key].rjust(self.widths[column.key]) for column in self.columns)
        return case.ljust(self.case_width) + "".join(f"{_GAP}{cell}" for cell in cells)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a column's cells have behind the units digit, so that decimal points stay in line."""

    decimals: int  # the point included
    suffix: int

    @classmethod
    def of(cls, cells: Sequence[str]) -> "_Shape":
        """The shape that holds all of the cells."""
        parts = [_split(cell) for cell in cells]
        return cls(max(len(part[1]) for part in parts), max(len(part[2]) for part in parts))

    def pad(self, cell: str) -> str:
        """The cell, padded behind."""
        whole, decimals, suffix = _split(cell)
        return whole + decimals.ljust(self.decimals) + suffix.ljust(self.suffix)


def _split(cell: str) -> tuple[str, str, str]:
    """`97.5 (a)` as `97`, `.5`, ` (a)`."""
    figure, space, mark = cell.partition(" ")
    whole, point, decimals = figure.partition(".")
    return whole, point + decimals, space + mark


def _labels(line: Line) -> str:
    return "".join(f" {label}" for label in line.warnings)


def _fit(view: TierView, width: int) -> _Table:
    """The most columns that fit: first beside all ids, then beside those that are short."""
    lines = [line for line in view.lines if isinstance(line, Line)]
    ids = [len(line.case) for line in lines]
    choices = list(_fewer_and_fewer(view.columns))
    for columns in choices:
        table = _table(columns, lines, max(ids, default=0))
        kept = {column.key for column in view.columns} - _GIVEN_UP
        if table.width <= width and kept.issubset(column.key for column in columns):
            return table
    for columns in choices:
        spare = width - _table(columns, lines, 0).width
        if spare >= _LEAST_CASE:
            return _table(columns, lines, max((size for size in ids if size <= spare), default=0))
    return _table(choices[-1], lines, 0)


def _fewer_and_fewer(columns: tuple[Column, ...]) -> Iterator[tuple[Column, ...]]:
    yield columns
    for key in DROPPED_FIRST:
        if any(column.key == key for column in columns):
            columns = tuple(column for column in columns if column.key != key)
            yield columns


def _table(columns: tuple[Column, ...], lines: Sequence[Line], case_width: int) -> _Table:
    shapes = {
        column.key: _Shape.of([line.cells[column.key] for line in lines]) for column in columns
    }
    return _Table(
        columns=columns,
        shapes=shapes,
        widths={
            column.key: max(
                len(column.title),
                len(column.unit),
                *(len(shapes[column.key].pad(line.cells[column.key])) for line in lines),
            )
            for column in columns
        },
        case_width=max(case_width, _LEAST_CASE),
        state_width=max(len("state"), *(len(line.state + _labels(line)) for line in lines), 0),
    )
