"""A table of text of a given width: columns that do not fit are left out, in a stated order.

What is left is printed whole; names of the columns that went are returned, so that they can be
said. Decimal points stay in line. Knows nothing of simulations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from kvbench_reports.figures import Column

_GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Rows of cells by column key. Columns in `left` are words, aligned to the left.

    Those before the first figure say what a row is: they never go.
    """

    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, str]]
    left: tuple[str, ...] = ("name",)
    dropped_first: tuple[str, ...] = ()

    def lines(self, width: int) -> Iterator[Text]:
        """Titles, units, a rule, the rows, and which columns had no room.

        Where even the columns that never go do not fit, the words stand on lines of their own.
        """
        kept = self._fit(width)
        widths = {column.key: self._width(column) for column in kept}
        words = [column for column in kept if column.key in self.left]
        broken = sum(widths.values()) + len(_GAP) * (len(kept) - 1) > width and len(words) > 1
        beside = [column for column in kept if not broken or column not in words]
        titles = {column.key: column.title for column in kept}
        units = {column.key: column.unit for column in kept}
        yield Text(self._line(beside, widths, titles), style="bold")
        if any(column.unit for column in beside):
            yield Text(self._line(beside, widths, units), style="dim")
        total = sum(widths[column.key] for column in beside) + len(_GAP) * (len(beside) - 1)
        yield Text("─" * max(total, 1), style="dim")
        for row in self.rows:
            if broken:
                said = ", ".join(f"{each.title} {row[each.key]}" for each in words)
                yield Text(said[:width])
            yield Text(self._line(beside, widths, row))
        gone = [column.title for column in self.columns if column not in kept]
        if gone:
            yield Text(f"no room for {', '.join(gone)} at this width"[:width], style="dim")

    @property
    def text(self) -> int:
        """How many columns stand before the first figure."""
        figures = (at for at, column in enumerate(self.columns) if column.key not in self.left)
        return next(figures, len(self.columns))

    def _fit(self, width: int) -> list[Column]:
        kept = list(self.columns)
        for key in (None, *self.dropped_first):
            kept = [column for column in kept if column.key != key]
            used = sum(self._width(column) for column in kept) + len(_GAP) * (len(kept) - 1)
            if used <= width:
                break
        return kept

    def _width(self, column: Column) -> int:
        cells = (row[column.key] for row in self.rows)
        return max(len(column.title), len(column.unit), *(len(cell) for cell in cells), 0)

    def _line(
        self, columns: Sequence[Column], widths: Mapping[str, int], cells: Mapping[str, str]
    ) -> str:
        return _GAP.join(
            cells[column.key].ljust(widths[column.key])
            if column.key in self.left
            else cells[column.key].rjust(widths[column.key])
            for column in columns
        ).rstrip()
