"""How the rows of a tier become small charts side by side, and lines in them.

Rows that agree in operation and words (engine, memory, order) share a panel; in a panel, rows that
agree in all numbers but the one on the horizontal axis share a line. A number that never varies in
a tier is not mentioned. Draws nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvbench.measure.result import Row
from kvbench_reports.html.figure import MOST_LINES, Entry, Spec, legend_of
from kvbench_reports.html.says import Value, parameter
from kvbench_reports.words import clean

MOST_PANELS = 6

T = TypeVar("T")
Numbers = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A row at its place: in a panel, on a line, and at `at` on the horizontal axis."""

    row: Row
    panel: str
    line: Numbers
    at: int


def line_words(line: Numbers) -> str:
    """A line's name in a legend."""
    return ", ".join(parameter(name, value) for name, value in line) or "no other number"


def legend(lines: Sequence[Numbers]) -> tuple[Entry, ...]:
    """What distinguishes the lines; the same colours and shapes in every panel."""
    return legend_of(tuple(line_words(line) for line in lines))


def styles(lines: Sequence[Numbers]) -> tuple[Spec, Spec]:
    """The encodings of colour and shape for the field `line`, an index into `lines`."""
    entries = legend(lines)
    field: Spec = {"field": "line", "type": "nominal", "legend": None}
    order = list(range(len(entries)))
    return (
        field
        | {"scale": {"domain": order, "range": [f"var(--{each.colour})" for each in entries]}},
        field | {"scale": {"domain": order, "range": [each.shape for each in entries]}},
    )


def points(rows: Iterable[Row], along: str | None) -> list[Point]:
    """The rows that have the number `along`, or all of them, at 0, when there is none."""
    found: list[Point] = []
    by_operation: dict[str, list[Row]] = {}
    for row in rows:
        if along is None or _number(row.params.get(along)) > 0:
            by_operation.setdefault(row.operation, []).append(row)
    numbers = _varying(each for alike in by_operation.values() for each in alike)
    for operation, alike in by_operation.items():
        varying = _varying(alike)
        for row in alike:
            words = [
                parameter(name, value)
                for name, value in row.params.items()
                if name in varying and not _is_number(value) and value is not False
            ]
            line = tuple(
                (name, _number(value))
                for name, value in sorted(row.params.items())
                if name in numbers and name != along and _is_number(value)
            )
            found.append(
                Point(
                    row=row,
                    panel=", ".join([clean(operation), *words]),
                    line=line,
                    at=_number(row.params.get(along or "")),
                )
            )
    return found


def curves(found: Sequence[Point]) -> list[Point]:
    """Only points of lines that have two places or more, in order of their places."""
    lines: dict[tuple[str, Numbers], list[Point]] = {}
    for point in found:
        lines.setdefault((point.panel, point.line), []).append(point)
    return [
        point
        for line in lines.values()
        if len({point.at for point in line}) > 1
        for point in sorted(line, key=lambda each: each.at)
    ]


def chosen_lines(found: Iterable[Point]) -> list[Numbers]:
    """At most `MOST_LINES` lines, evenly from the smallest numbers to the largest."""
    return evenly(sorted({point.line for point in found}), MOST_LINES)


def chosen_panels(found: Sequence[Point]) -> list[str]:
    """At most `MOST_PANELS` panels: those with the most rows, in the order of the report."""
    sizes: dict[str, int] = {}
    for point in found:
        sizes[point.panel] = sizes.get(point.panel, 0) + 1
    largest = sorted(sizes, key=lambda panel: -sizes[panel])[:MOST_PANELS]
    return [panel for panel in sizes if panel in largest]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def _is_number(value: Value | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # a flag is none


def _number(value: Value | None) -> int:
    return int(value) if isinstance(value, int) and _is_number(value) else 0


def _varying(rows: Iterable[Row]) -> set[str]:
    """Parameters that have two values or more among the rows that have them at all."""
    found: dict[str, set[Value]] = {}
    for row in rows:
        for name, value in row.params.items():
            found.setdefault(name, set()).add(value)
    return {name for name, values in found.items() if len(values) > 1}
