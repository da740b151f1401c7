"""GitHub Actions: annotations as workflow commands, and the Markdown of a step summary.

A step shows at most 10 errors, 10 warnings and 10 notices and drops the rest without a word
(actions/toolkit, docs/problem-matchers.md), so at most ten annotations are made in all: one that
sums up, then the nine worst. The commands go to standard output, the summary is for the file that
GITHUB_STEP_SUMMARY names; nothing is written here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kvbench.compare.record import Comparison, Finding, Verdict
from kvbench.measure.result import Caution, Report, State
from kvbench_reports import ci, markdown
from kvbench_reports.head import closing, simulated_notice
from kvbench_reports.view import collect_warnings
from kvbench_reports.words import clean

ANNOTATIONS = 10  # of one level that a step shows
# GitHub refuses a summary above 1024 KiB altogether; other commands of the step add to it too.
SUMMARY_BYTES = 1_000_000
_NO_REASON = "no reason recorded"

Level = Literal["error", "warning", "notice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One annotation; its lines are shown below its title."""

    level: Level
    title: str
    lines: Sequence[str]

    @property
    def command(self) -> str:
        """The workflow command, one line: `::error title=…::…`."""
        text = "\n".join(self.lines)
        return f"::{self.level} title={_property(self.title)}::{_data(text)}"


def render(report: Report) -> str:
    """At most ten annotations: failed and invalid rows are errors, degraded ones and doubts warn.

    The first sums the report up and has the gravest level of all.
    """
    found = [*_bad_rows(report), *_doubts(report)]
    lines = [f"{closing(report)}."]
    notice = simulated_notice(report)
    if notice:
        lines.append(f"{notice}.")
    if report.inject:
        lines.append(f"The run was {ci.inject_text(report.inject)}.")
    title = f"kvbench run {clean(report.suite)}"
    return _commands(title, _gravest(found), lines, found)


def render_comparison(comparison: Comparison) -> str:
    """At most ten annotations: what makes the gate red, then what may be slower, then conditions.

    An UNSURE metric is named when its estimate is beyond the margin. The first annotation sums up:
    an error when the gate is red, a notice when it passed.
    """
    from kvbench_reports.compare import head  # noqa: PLC0415 - its package lists this function

    found = [*_findings(comparison), *_conditions(comparison)]
    lines = [*head.why(comparison), *([head.counts(comparison)] if comparison.reasons else [])]
    lines = [f"{line}." for line in (*lines, *ci.origins(comparison))]
    if comparison.confirm:
        lines.append(f"To {head.confirm_label(comparison)}: {clean(comparison.confirm)}")
    level: Level = "error" if comparison.exit_code else "notice"
    return _commands(f"kvbench compare: {head.outcome(comparison)}", level, lines, found)


def summary(report: Report) -> str:
    """The report in Markdown for a step summary, cut at a line if it is too long for one."""
    return _fitted(markdown.render(report))


def summary_comparison(comparison: Comparison) -> str:
    """The comparison in Markdown for a step summary, cut at a line if it is too long for one."""
    from kvbench_reports.compare import markdown as compare_markdown  # noqa: PLC0415 - as above

    return _fitted(compare_markdown.render(comparison))


def _bad_rows(report: Report) -> Iterator[Annotation]:
    levels: tuple[tuple[State, Level], ...] = (
        (State.FAILED, "error"),
        (State.INVALID, "error"),
        (State.DEGRADED, "warning"),
    )
    for state, level in levels:
        for row in report.rows:
            if row.state is state:
                reason = clean(row.reason or _NO_REASON)
                title = f"{state}: {ci.row_name(report, row)}"
                yield Annotation(level=level, title=title, lines=[reason])


def _doubts(report: Report) -> Iterator[Annotation]:
    for warned in collect_warnings(report):
        caution = warned.caution
        title = f"{clean(caution.code)} ({warned.extent})"
        yield Annotation(level="warning", title=title, lines=_caution_lines(caution))


def _findings(comparison: Comparison) -> Iterator[Annotation]:
    ordered = [finding for verdict in Verdict for finding in comparison.having(verdict)]
    for finding in ordered:
        if finding.fails:
            yield _finding(comparison, finding, "error")
    for finding in ordered:
        if not finding.fails and _is_worth_a_look(finding):
            yield _finding(comparison, finding, "warning")


def _is_worth_a_look(finding: Finding) -> bool:
    if finding.verdict is Verdict.UNSURE:
        return finding.change is not None and finding.change > finding.margin
    return finding.verdict in {Verdict.SLOWER, Verdict.MISSING, Verdict.NOT_COMPARABLE}


def _finding(comparison: Comparison, finding: Finding, level: Level) -> Annotation:
    reason = clean(finding.reason) if finding.reason else None
    lines = (ci.change_text(finding), ci.values_text(finding), reason, ci.evidence_text(finding))
    return Annotation(
        level=level,
        title=f"{finding.verdict}: {ci.finding_name(comparison, finding)}",
        lines=[line for line in lines if line] or [_NO_REASON],
    )


def _conditions(comparison: Comparison) -> Iterator[Annotation]:
    for difference in comparison.differences:
        yield Annotation(
            level="warning", title="compared although they differ", lines=[clean(difference)]
        )
    for caution in comparison.conditions:
        yield Annotation(
            level="warning",
            title=f"condition: {clean(caution.code)}",
            lines=_caution_lines(caution),
        )


def _caution_lines(caution: Caution) -> list[str]:
    fix = [f"Fix: {clean(caution.fix)}"] if caution.fix else []
    return [clean(caution.message), *fix]


def _gravest(found: Sequence[Annotation]) -> Level:
    levels = {annotation.level for annotation in found}
    if "error" in levels:
        return "error"
    return "warning" if "warning" in levels else "notice"


def _commands(title: str, level: Level, lines: Sequence[str], found: Sequence[Annotation]) -> str:
    """The summing-up and the first nine of what was found, which comes worst first."""
    shown = found[: ANNOTATIONS - 1]
    left = len(found) - len(shown)
    more = [f"{left} more in the full report."] if left else []
    first = Annotation(level=level, title=title, lines=[*lines, *more])
    return "".join(f"{each.command}\n" for each in (first, *shown))


def _fitted(text: str) -> str:
    data = text.encode()
    if len(data) <= SUMMARY_BYTES:
        return text
    # At the top: after the cut it might stand inside a table, a code block or a folded section.
    notice = (
        f"**Cut: the whole is {len(data):,} bytes long and GitHub takes 1 MiB; "
        "`--format markdown` writes all of it.**\n\n"
    )
    room = SUMMARY_BYTES - len(notice.encode())
    return notice + data[: data.rfind(b"\n", 0, room) + 1].decode()


def _data(text: str) -> str:
    """Escaped as the runner unescapes it (actions/toolkit, packages/core/src/command.ts)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
