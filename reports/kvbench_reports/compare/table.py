"""The terminal table of a comparison: head, findings worst first, what could be seen, the outcome.

SAME is a count, and at most `ROWS` other findings are listed, unless all are asked for; how many
are left out is said where they are. Prints nothing but in `show`, which is given the console.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from rich.console import Console, RenderableType
from rich.text import Text

from kvbench.compare.record import PASSED, Comparison, Finding, Verdict
from kvbench.measure.result import State
from kvbench_reports.compare.figures import cells_of, decimals, ranked
from kvbench_reports.compare.forest import LEGEND
from kvbench_reports.compare.head import (
    NOTICES,
    SEEN,
    confirm_label,
    head,
    notices,
    outcome,
    sight_text,
    why,
)
from kvbench_reports.compare.layout import STYLES, Columns, Line, fit
from kvbench_reports.layout import INDENT, prose
from kvbench_reports.layout import STYLES as STATE_STYLES
from kvbench_reports.table import Part, labelled, plain_text, print_parts
from kvbench_reports.words import clean

ROWS = 25
_AT_LEAST = 2  # rows of every verdict, before the worst ones take the rest
_NOTICE = f"bold {STATE_STYLES[State.SIMULATED]}"
_MUST_BE_KNOWN = (Verdict.SLOWER, Verdict.MISSING, Verdict.NOT_COMPARABLE)
_LISTS_THEM = "--all lists them"


def tables(comparison: Comparison, *, all_: bool = False) -> list[RenderableType]:
    """The parts of a comparison in the order they are read."""
    return [
        Part(partial(_head, comparison)),
        Part(partial(_findings, comparison, all_=all_)),
        Part(partial(_sight, comparison)),
        *([Part(partial(_conditions, comparison))] if comparison.conditions else []),
        Part(partial(_closing, comparison)),
    ]


def show(comparison: Comparison, console: Console, *, all_: bool = False) -> None:
    """Print a comparison to a console, a blank line between its parts."""
    print_parts(tables(comparison, all_=all_), console)


def render(comparison: Comparison, *, all_: bool = False) -> str:
    """The comparison as text without colour, `kvbench_reports.table.PLAIN_WIDTH` wide."""
    return plain_text(tables(comparison, all_=all_))


def share_rows(groups: Mapping[Verdict, int], rows: int) -> dict[Verdict, int]:
    """How many rows of each verdict are listed: a few of every one, then worst first."""
    shares = {verdict: min(size, _AT_LEAST) for verdict, size in groups.items()}
    spare = rows - sum(shares.values())
    for verdict, size in groups.items():
        more = max(min(size - shares[verdict], spare), 0)
        shares[verdict] += more
        spare -= more
    return shares


def _head(comparison: Comparison, width: int) -> Iterator[Text]:
    return labelled(head(comparison), width, dict.fromkeys(NOTICES, _NOTICE))


def _findings(comparison: Comparison, width: int, *, all_: bool) -> Iterator[Text]:
    groups = ranked(comparison)
    sizes = {verdict: len(found) for verdict, found in groups.items()}
    listed = sizes
    if not all_:
        listed = share_rows({**sizes, Verdict.SAME: 0}, ROWS)
    places = decimals(comparison.findings)
    shown = {verdict: _lines(found, listed[verdict], places) for verdict, found in groups.items()}
    flat = [line for lines in shown.values() for line in lines]
    columns = fit(flat, width)
    has_figures = not all(line.cells.empty for line in flat)
    if has_figures:
        yield from columns.heading()
    for verdict, found in groups.items():
        if found:
            yield from _heading(found, width, listed=bool(shown[verdict]))
            yield from _rows(shown[verdict], _common_reason(found), columns, width)
            yield from _left_out(verdict, len(found) - len(shown[verdict]), width)
    absent = [f"0 {verdict}" for verdict in _MUST_BE_KNOWN if not sizes[verdict]]
    if absent:
        yield from prose(", ".join(absent), width, style="dim")
    if has_figures and columns.axis:
        yield from prose(LEGEND, width, style="dim")
    if has_figures and columns.dropped:
        text = f"no room for {', '.join(columns.dropped)} at this width"
        yield from prose(text, width, style="dim")


def _lines(found: Sequence[Finding], rows: int, places: int) -> list[Line]:
    """The first findings of a verdict, those whose reason others share too with a mark."""
    marks = {} if _common_reason(found) else _shared_reasons(found[:rows])
    return [
        Line(
            finding=each,
            cells=cells_of(each, places),
            name=clean(each.id),
            mark=marks.get(each.reason or "", ""),
        )
        for each in found[:rows]
    ]


def _heading(found: Sequence[Finding], width: int, *, listed: bool) -> Iterator[Text]:
    """The verdict, how many have it, and a reason that all of them share."""
    verdict = found[0].verdict
    text = f"{verdict} {len(found):,}"
    failing = sum(each.fails for each in found)
    if 0 < failing < len(found):
        text += f" ({failing:,} {'fails' if failing == 1 else 'fail'} the gate)"
    if verdict is Verdict.SAME and not listed:
        text += f" ({_LISTS_THEM})"
    elif reason := _common_reason(found):
        text += f": {reason}"
    first, *rest = prose(text, width, hang=INDENT)
    first.stylize(STYLES[verdict], 0, len(verdict))
    first.stylize("bold", 0, len(verdict))
    yield from (first, *rest)


def _rows(
    lines: Sequence[Line], in_heading: str | None, columns: Columns, width: int
) -> Iterator[Text]:
    """The rows, a reason below the one that has it, and below all of them what several share."""
    shared: dict[str, str] = {}
    for line in lines:
        yield from columns.row(line)
        reason = clean(line.finding.reason or "")
        if line.mark:
            shared[line.mark] = reason
        elif reason and reason != in_heading:
            yield from prose(reason, width, indent=INDENT)
    for mark, reason in shared.items():
        yield from prose(f"{mark} {reason}", width, style="dim", hang=INDENT)


def _left_out(verdict: Verdict, hidden: int, width: int) -> Iterator[Text]:
    if hidden and verdict is not Verdict.SAME:
        style = "bold" if verdict in _MUST_BE_KNOWN else "dim"
        yield from prose(f"{hidden:,} more {verdict}: {_LISTS_THEM}", width, style=style)


def _common_reason(found: Sequence[Finding]) -> str | None:
    """The reason of a whole group of several, or None."""
    reasons = {each.reason for each in found}
    only = reasons.pop() if len(reasons) == 1 and len(found) > 1 else None
    return clean(only) if only else None


def _shared_reasons(found: Sequence[Finding]) -> dict[str, str]:
    """Marks, `(1)` and so on, for the reasons that some of the rows share."""
    times = Counter(each.reason for each in found if each.reason)
    shared = [reason for reason, rows in times.items() if rows > 1]
    return {reason: f"({index})" for index, reason in enumerate(shared, start=1)}


def _sight(comparison: Comparison, width: int) -> Iterator[Text]:
    yield Text(SEEN, style="bold")
    if not comparison.sight:
        yield Text(f"{' ' * INDENT}nothing: no metric was tested")
    labels = max((len(clean(each.group)) for each in comparison.sight), default=0) + 2
    for each in comparison.sight:
        text = f"{clean(each.group).ljust(labels)}{sight_text(each)}"
        yield from prose(text, width, indent=INDENT, hang=labels)


def _conditions(comparison: Comparison, width: int) -> Iterator[Text]:
    yield Text("conditions", style="bold yellow")
    for caution in comparison.conditions:
        text = f"{clean(caution.message)} ({clean(caution.code)})"
        yield from prose(text, width, indent=INDENT, hang=2)
        if caution.fix:
            fix = clean(caution.fix)
            yield Text.assemble(" " * (INDENT + 2), ("fix: ", "dim"), (fix, "bold"))


def _closing(comparison: Comparison, width: int) -> Iterator[Text]:
    for label, facts in notices(comparison):
        yield from prose(f"{label}: {'; '.join(facts)}", width, style=_NOTICE, hang=INDENT)
    style = "bold green" if comparison.exit_code == PASSED else "bold red"
    text = f"{outcome(comparison)}: {'; '.join(why(comparison))}"
    yield from prose(text, width, style=style, hang=INDENT)
    if comparison.confirm:
        label = f"{confirm_label(comparison)}: "
        yield Text.assemble((label, "dim"), (clean(comparison.confirm), "bold"))
