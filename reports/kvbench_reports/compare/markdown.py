"""Markdown of a comparison, for a pull request's comment or a job's summary.

The outcome first, then what matters, worst first; SAME is folded. Every section has a budget of
bytes, so that the whole fits into a comment however many findings there are; what did not fit is
counted. No text of a report can end a cell, or be taken for emphasis, HTML or a link.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from kvbench.compare.record import Comparison, Finding, Verdict
from kvbench.measure.result import Caution
from kvbench_reports.compare.figures import Cells, cells_of, decimals, ranked
from kvbench_reports.compare.head import (
    SEEN,
    confirm_label,
    head,
    notices,
    outcome,
    sight_text,
    why,
)
from kvbench_reports.head import SEPARATOR
from kvbench_reports.markdown import cells, code, code_cell, plain
from kvbench_reports.words import NONE, clean, count

# Bytes; GitHub refuses a comment of more than 65,536 characters. Together below 60,000.
_HEADLINE, _NOTICES, _FACTS, _TABLE, _SAME = 1_500, 5_000, 5_000, 25_000, 10_000
_LIST, _COMMAND = 4_000, 4_000
_SHORT = 300  # characters of a reason or of a notice, so that all four notices fit
_LINE = 1_000  # characters of a fact at the top
_LEAST_ROW = 40  # bytes, of the separators and dashes of an empty row
_COLUMNS = ("finding", "base", "new", "change, % of time", "95 % interval", "margin")
_ALIGNED = [":---", "---:", "---:", "---:", "---:", "---:"]


def render(comparison: Comparison) -> str:
    """The whole comparison as GitHub-flavoured Markdown, below 60,000 bytes."""
    groups = ranked(comparison)
    same = groups.pop(Verdict.SAME)
    places = decimals(comparison.findings)
    blocks = [
        _headline(comparison),
        _notices(comparison),
        _within(_facts(comparison), _FACTS, lambda left: f"- {count(left, 'fact')} left out"),
        *_findings(groups, places),
        *_folded(same, places),
        [f"**{SEEN}**"],
        _within(
            [f"- {plain(each.group)}: {plain(sight_text(each))}" for each in comparison.sight]
            or ["- nothing: no metric was tested"],
            _LIST,
            lambda left: f"- {count(left, 'group')} left out",
        ),
        *_conditions(comparison.conditions),
        *_confirm(comparison),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _headline(comparison: Comparison) -> list[str]:
    reasons = [plain(reason) for reason in why(comparison)]
    kept = _within(reasons, _HEADLINE, lambda left: f"{count(left, 'more reason')}")
    return [f"## kvbench compare: {outcome(comparison)}: {'; '.join(kept)}"]


def _notices(comparison: Comparison) -> list[str]:
    lines = [
        f"> **{label}**: {plain(_short(SEPARATOR.join(facts), _SHORT))}"
        for label, facts in notices(comparison)
    ]
    # A blank quoted line between them keeps GitHub from joining them into one.
    spaced = [line for each in lines for line in (each, ">")][:-1]
    return _within(spaced, _NOTICES, lambda left: f"> {count(left, 'line')} of notices left out")


def _facts(comparison: Comparison) -> list[str]:
    said = {label for label, _ in notices(comparison)}
    return [
        f"- **{name}**: {plain(_short(SEPARATOR.join(facts), _LINE))}"
        for name, facts in head(comparison)
        if name not in said
    ]


def _findings(groups: dict[Verdict, list[Finding]], places: int) -> Iterator[list[str]]:
    """The table of everything that is not SAME."""
    found = [each for findings in groups.values() for each in findings]
    if not found:
        return
    kept, left = _fitting(found, partial(_row, places=places, verdict=True), _TABLE)
    yield [
        cells(["verdict", *_COLUMNS, "note"]),
        cells([":---", *_ALIGNED, ":---"]),
        *kept,
    ]
    if left:
        numbers = Counter(each.verdict for each in left)
        named = ", ".join(f"{number:,} {verdict}" for verdict, number in numbers.items())
        yield [f"**Left out here: {named}**; `kvbench compare … --all` lists them."]


def _folded(same: Sequence[Finding], places: int) -> Iterator[list[str]]:
    if not same:
        return
    kept, left = _fitting(same, partial(_row, places=places, verdict=False), _SAME)
    # GitHub reads Markdown inside HTML only after a blank line.
    yield [f"<details><summary>SAME {len(same):,}</summary>"]
    yield [cells(_COLUMNS), cells(_ALIGNED), *kept]
    if left:
        yield [f"{len(left):,} more SAME left out; `kvbench compare … --all` lists them."]
    yield ["</details>"]


def _row(finding: Finding, places: int, *, verdict: bool) -> str:
    made = cells_of(finding, places)
    tier = f" ({made.of})" if made.of else ""
    texts = [
        f"{code_cell(finding.id)}{tier}",
        _with_unit(made.base, made),
        _with_unit(made.new, made),
        made.change,
        NONE if NONE in {made.low, made.high} else f"{made.low} to {made.high}",
        f"{100 * finding.margin:.4g} %",
    ]
    if not verdict:
        return cells(texts)
    name = f"**{finding.verdict}**" if finding.fails else str(finding.verdict)
    return cells([name, *texts, plain(_short(clean(finding.reason or ""), _SHORT))])


def _with_unit(cell: str, made: Cells) -> str:
    return f"{cell} {made.unit}" if cell != NONE else NONE


def _conditions(conditions: Sequence[Caution]) -> Iterator[list[str]]:
    if not conditions:
        return
    yield ["**conditions**"]
    lines: list[str] = []
    for caution in conditions:
        fix = f" Fix: {code(caution.fix)}" if caution.fix else ""
        lines.append(f"- {plain(caution.message)} ({plain(caution.code)}).{fix}")
    yield _within(lines, _LIST, lambda left: f"- {count(left, 'condition')} left out")


def _confirm(comparison: Comparison) -> Iterator[list[str]]:
    if not comparison.confirm:
        return
    command = clean(comparison.confirm)
    label = confirm_label(comparison).capitalize()
    if len(command.encode()) > _COMMAND:
        yield [f"{label} with the command that `kvbench compare` prints; it is too long for here."]
        return
    longest = max((len(run) for run in re.findall("`{3,}", command)), default=2)
    fence = "`" * (longest + 1)
    yield [f"{label} with:"]
    yield [f"{fence}sh", command, fence]


def _fitting(
    findings: Iterable[Finding], line_of: Callable[[Finding], str], budget: int
) -> tuple[list[str], list[Finding]]:
    """The lines that fit into so many bytes, in order, and the findings that do not."""
    kept: list[str] = []
    left: list[Finding] = []
    for finding in findings:
        # Nothing is made of the thousands that come after the budget is spent.
        line = line_of(finding) if budget >= _LEAST_ROW else None
        if line is not None and len(line.encode()) < budget:
            budget -= len(line.encode()) + 1
            kept.append(line)
        else:
            left.append(finding)
    return kept, left


def _within(lines: Sequence[str], budget: int, left_out: Callable[[int], str]) -> list[str]:
    """The lines that fit into so many bytes, and a line that counts the others."""
    kept: list[str] = []
    for line in lines:
        size = len(line.encode()) + 1
        if size <= budget:
            budget -= size
            kept.append(line)
    return kept if len(kept) == len(lines) else [*kept, left_out(len(lines) - len(kept))]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
