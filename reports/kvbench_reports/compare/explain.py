"""Everything that is known of single findings, and in one sentence why the verdict is what it is.

What `--explain ROW` prints: process values, test, p, Holm's rank, interval, smallest visible
change. Computes nothing that the record does not imply.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial

from rich.console import Console, RenderableType
from rich.text import Text

from kvbench.compare.record import Comparison, Design, Finding, Kind, Verdict
from kvbench.errors import UsageError
from kvbench_reports.compare.figures import Cells, cells_of, scale_of
from kvbench_reports.compare.head import design, notices
from kvbench_reports.compare.layout import STYLES
from kvbench_reports.table import Part, labelled, plain_text, print_parts
from kvbench_reports.words import (
    NONE,
    clean,
    count,
    number,
    percent,
    short_percent,
    signed_percent,
)

_DIGITS = 4  # of a process value
_PLACES = 2  # of a change in percent
_SAME_WITHIN = 2.0  # times the margin; what SAME means (docs/statistics.md)
_FAMILIES = 2  # metrics and tiers share alpha
_CLOSE, _ALIKE = 5, 0.5  # ids named in an error, and how alike they must be
_MOST_LOG = 100.0  # of a ratio; expm1 overflows beyond 709
_SMALL_P = 1e-4


def explain(comparison: Comparison, finding_id_or_glob: str) -> list[RenderableType]:
    """The parts that explain each finding of that id, or those that a glob matches.

    Raises:
        UsageError: no finding matches; the error names ids that are close.
    """
    found = _matching(comparison, finding_id_or_glob)
    return [Part(partial(_finding, comparison, finding)) for finding in found]


def show(comparison: Comparison, finding_id_or_glob: str, console: Console) -> None:
    """Print the explanations to a console, a blank line between two of them.

    Raises:
        UsageError: no finding matches.
    """
    print_parts(explain(comparison, finding_id_or_glob), console)


def render(comparison: Comparison, finding_id_or_glob: str) -> str:
    """The explanations as text without colour.

    Raises:
        UsageError: no finding matches.
    """
    return plain_text(explain(comparison, finding_id_or_glob))


def because(comparison: Comparison, finding: Finding) -> str:
    """Why a finding has its verdict, in one sentence."""
    reason = clean(finding.reason or "no reason recorded")
    match finding.verdict:
        case Verdict.MISSING:
            return f"BASE has a figure and NEW has none: {reason}."
        case Verdict.NEW:
            return f"Only NEW has a figure: {reason}."
        case Verdict.NOT_COMPARABLE:
            return f"The two figures are not of the same thing: {reason}."
        case _:
            return _tested(comparison, finding)


def _tested(comparison: Comparison, finding: Finding) -> str:
    margin, wide = short_percent(finding.margin), short_percent(_SAME_WITHIN * finding.margin)
    needed = f"at most {_level(comparison)} needed"
    slower, faster = (
        f"adjusted p {_p(p)}" if p is not None else "p not recorded"
        for p in (finding.p_slower_adjusted, finding.p_faster_adjusted)
    )
    if finding.change is None:
        return f"It was not tested: {clean(finding.reason or 'no reason recorded')}."
    if finding.standard_error == 0:
        return (
            f"No process differs from another on either side, so the change of "
            f"{signed_percent(finding.change, _PLACES)} % is held against the margin of "
            f"{margin} % without a test."
        )
    if finding.verdict in {Verdict.SLOWER, Verdict.FASTER}:
        p = slower if finding.verdict is Verdict.SLOWER else faster
        word = finding.verdict.capitalize()
        return f"{word} by more than {margin} % beyond doubt: {p}, {needed}."
    if finding.verdict is Verdict.SAME:
        return f"Two one-sided tests at 5 % put the change within ±{wide} %, twice the margin."
    if comparison.design is Design.UNKNOWN:
        return f"No verdict is possible: {clean(finding.reason or design(comparison))}."
    return (
        f"Not shown to be slower by more than {margin} % ({slower}, {needed}), "
        f"nor faster, nor to lie within ±{wide} %."
    )


def _matching(comparison: Comparison, wanted: str) -> list[Finding]:
    exact = [each for each in comparison.findings if each.id == wanted]
    if exact:
        return exact
    found = [each for each in comparison.findings if fnmatchcase(each.id, wanted)]
    if found:
        return found
    ids = list(dict.fromkeys(each.id for each in comparison.findings))
    within = [each for each in ids if wanted.casefold() in each.casefold()][:_CLOSE]
    close = within or difflib.get_close_matches(wanted, ids, n=_CLOSE, cutoff=_ALIKE)
    named = f"close ones: {', '.join(map(clean, close))}" if close else "--all lists them"
    raise UsageError(f"--explain {wanted!r} matches no finding; {named}")


def _finding(comparison: Comparison, finding: Finding, width: int) -> Iterator[Text]:
    yield Text(clean(finding.id), style="bold")
    gate = ["one of the reasons why the gate is red"] if finding.fails else []
    lines = [
        *notices(comparison),
        ("verdict", [str(finding.verdict), *gate]),
        ("why", [because(comparison, finding)]),
        *_sides(finding),
        *_statistics(comparison, finding),
    ]
    yield from labelled(lines, width, {"verdict": STYLES[finding.verdict]})
    yield from _values(comparison, finding, width)


def _sides(finding: Finding) -> Iterator[tuple[str, list[str]]]:
    cells: Cells = cells_of(finding, _PLACES)
    sides = (("base", cells.base, finding.base_values), ("new", cells.new, finding.new_values))
    for label, cell, values in sides:
        processes = f"{len(values):,} process{'' if len(values) == 1 else 'es'}"
        if finding.kind is Kind.TIER:
            metrics = count(len(finding.members), "metric") if finding.members else "its metrics"
            yield label, [f"geometric mean of {metrics}", processes, "below, against BASE's mean"]
        elif cell == NONE:
            yield label, ["no figure"]
        else:
            median = [f"median of {processes}"] if values else []
            yield label, [f"{cell} {cells.unit}", *median]


def _statistics(comparison: Comparison, finding: Finding) -> Iterator[tuple[str, list[str]]]:
    margin = f"margin {short_percent(finding.margin)} %"
    if finding.change is None:
        yield "change", ["not tested", margin]
        return
    low, high = (signed_percent(end, _PLACES) for end in (finding.low, finding.high))
    change = signed_percent(finding.change, _PLACES)
    yield "change", [f"{change} % in time, + is slower", f"95 % interval {low} to {high} %", margin]
    yield "test", [clean(finding.test or "not recorded"), design(comparison)]
    yield "estimate", _estimate(finding)
    yield "p", _probabilities(comparison, finding)
    if finding.mde is not None:
        yield (
            "visible",
            [f"a slowdown of {percent(finding.mde)} % with 80 % power, at Holm's hardest step"],
        )


def _estimate(finding: Finding) -> list[str]:
    """What the test was made of; d is a log, since the values were compared as logs."""
    facts: list[str] = []
    log = math.log1p(finding.change) if finding.change is not None and finding.change > -1 else None
    error = finding.standard_error
    if log is not None:
        facts.append(f"d {log:+.4f} (log ratio of time)")
    if error is not None:
        facts.append(f"standard error {error:.4f}")
    if finding.df is not None:
        facts.append(f"{finding.df:.3g} degrees of freedom")
    if log is not None and error:
        facts.append(f"t {(log - math.log1p(finding.margin)) / error:+.2f} from the margin")
    if finding.floor_sd is not None:
        facts.append(f"of it sd {finding.floor_sd:.4f} between sessions")
    return facts or ["not recorded"]


def _probabilities(comparison: Comparison, finding: Finding) -> list[str]:
    facts: list[str] = []
    if finding.p_slower is not None:
        facts.append(f"{_p(finding.p_slower)} if slower by no more than the margin")
    if finding.rank is not None and finding.tests is not None:
        facts.append(f"rank {finding.rank:,} of {count(finding.tests, 'test')}")
    if finding.p_slower_adjusted is not None:
        adjusted = _p(finding.p_slower_adjusted)
        facts.append(f"{adjusted} after Holm, at most {_level(comparison)} is SLOWER")
    if finding.p_faster_adjusted is not None:
        facts.append(f"{_p(finding.p_faster_adjusted)} after Holm for FASTER")
    return facts or ["not recorded"]


def _values(comparison: Comparison, finding: Finding, width: int) -> Iterator[Text]:
    """The values of the processes, in one unit; pairs side by side with their difference."""
    unit, base, new = _in_one_unit(finding)
    together = comparison.design in {Design.PAIRED, Design.INTERLEAVED}
    if together and base and len(base) == len(new):
        yield from _pairs(finding, unit, base, new)
        return
    sides = (("base", base), ("new", new))
    lines = [(f"{side} {unit}", ["  ".join(values)]) for side, values in sides if values]
    if lines:
        yield from labelled(lines, width, {})


def _pairs(finding: Finding, unit: str, base: Sequence[str], new: Sequence[str]) -> Iterator[Text]:
    changes = [
        signed_percent(_change(finding.kind, *pair), _PLACES)
        for pair in zip(finding.base_values, finding.new_values, strict=True)
    ]
    rows = [
        ("pair", "base", "new", "change"),
        ("", unit, unit, "%"),
        *((str(i), *cells) for i, cells in enumerate(zip(base, new, changes, strict=True), 1)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for index, row in enumerate(rows):
        cells = (cell.rjust(size) for cell, size in zip(row, widths, strict=True))
        yield Text("  ".join(cells), style=("bold", "dim")[index] if index < len("bu") else "")


def _in_one_unit(finding: Finding) -> tuple[str, list[str], list[str]]:
    """The process values as text; of a tier, the time relative to BASE's mean."""
    unit, factor = scale_of(finding)
    logs = finding.base_values
    middle = sum(logs) / len(logs) if logs else 0.0

    def shown(value: float) -> str:
        if finding.kind is Kind.TIER:
            return signed_percent(_share(value - middle), _PLACES)
        return number(value / factor, _DIGITS)

    if finding.kind is Kind.TIER:
        unit = "% time"
    return unit, [*map(shown, finding.base_values)], [*map(shown, finding.new_values)]


def _change(kind: Kind, base: float, new: float) -> float | None:
    """Of one pair, as a share of time."""
    if kind is Kind.TIER:
        return _share(new - base)
    slow, fast = (new, base) if kind is Kind.P99 else (base, new)
    return slow / fast - 1 if slow > 0 and fast > 0 else None


def _share(log: float) -> float:
    return math.expm1(log) if log < _MOST_LOG else math.inf


def _level(comparison: Comparison) -> str:
    """What an adjusted p must not exceed, in either family."""
    return f"{comparison.alpha / _FAMILIES:.3g}"


def _p(p: float) -> str:
    return f"{p:.1e}" if 0 < p < _SMALL_P else f"{p:.2g}"
