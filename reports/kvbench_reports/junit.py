"""JUnit XML: a test case for each metric, for the test view of a CI service.

Follows the schema of Jenkins' xUnit plugin (junit-10.xsd), which pytest and Surefire write too.
What a case says beyond pass or fail stands in its `system-out`; what is true of the whole run
stands in the suite's properties. Characters that XML cannot hold are written as escapes.
May import: the records, kvbench_reports.ci; junitparser late, so that other formats do without.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from kvbench.compare.record import Comparison, Finding, Verdict
from kvbench.measure.result import Report, Row, State
from kvbench.units import format_rate
from kvbench_reports import ci
from kvbench_reports.words import clean, interval_percent, percent

Properties = list[tuple[str, str]]

GATE = "gate"  # name of the case that is red when the gate is and no metric says so
_NO_REASON = "no reason recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """Why a case did not pass: the element, its message and its type."""

    element: Literal["failure", "error", "skipped"]
    message: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A test case before it is XML; every text is one clean line."""

    name: str
    group: str
    outcome: _Outcome | None = None  # None: it passed
    lines: Sequence[str] = ()  # of its system-out
    elapsed_s: float | None = None


def render(report: Report) -> str:
    """The rows of a report as test cases; `classname` is the tier, `time` that of the whole case.

    Failed rows are errors, invalid ones failures, skipped ones skipped, each with its reason. A
    degraded row passes, since it was measured; its `system-out` begins with how it is degraded.
    """
    properties: Properties = [
        ("kvbench.version", report.kvbench_version),
        ("machine.fingerprint", report.machine.fingerprint),
        ("model", report.model.name),
        ("session", report.session_id),
        ("commit", report.commit or ""),
        ("simulated", report.simulated or ""),
        ("inject", ci.inject_text(report.inject)),
        *(("warning", ci.caution_text(each)) for each in report.warnings),
    ]
    cases = [_row_case(report, row) for row in report.rows]
    return _document(f"kvbench run {report.suite}", report.started_at, properties, cases)


def render_comparison(comparison: Comparison) -> str:
    """The findings of a comparison as test cases, tiers included; `classname` is the group.

    SLOWER is a failure and NOT COMPARABLE an error, always. Of the others, one that makes the gate
    red is red here: MISSING as an error, UNSURE (under --strict) as a failure; otherwise both are
    skipped with their reason. FASTER, SAME and NEW pass. If the gate is red and no finding is, a
    case named `gate` carries the reasons, so that a red gate never reads as a green suite.
    """
    properties: Properties = [
        ("kvbench.version", comparison.kvbench_version),
        ("machine.fingerprint", comparison.machine.fingerprint),
        ("model", comparison.model.name),
        ("simulated", comparison.simulated or ""),
        ("inject", ci.inject_text(comparison.new.inject)),
        ("inject.base", ci.inject_text(comparison.base.inject)),
        ("base", _source(comparison.base.path, comparison.base.commit)),
        ("new", _source(comparison.new.path, comparison.new.commit)),
        ("design", str(comparison.design)),
        ("exit_code", str(comparison.exit_code)),
        *(("reason", each) for each in comparison.reasons),
        ("confirm", comparison.confirm or ""),
        *(("difference", each) for each in comparison.differences),
        *(("condition", ci.caution_text(each)) for each in comparison.conditions),
    ]
    found = [finding for verdict in Verdict for finding in comparison.having(verdict)]
    cases = [_finding_case(comparison, finding) for finding in found]
    if comparison.exit_code and not any(_is_red(case) for case in cases):
        cases.append(_gate_case(comparison))
    name = f"kvbench compare {comparison.new.suite}"
    return _document(name, comparison.new.started_at, properties, cases)


def _row_case(report: Report, row: Row) -> _Case:
    return _Case(
        name=clean(row.id),
        group=clean(row.tier),
        outcome=_row_outcome(row),
        lines=list(_row_lines(report, row)),
        elapsed_s=row.elapsed_s,
    )


def _row_outcome(row: Row) -> _Outcome | None:
    message, code = clean(row.reason or _NO_REASON), clean(row.reason_code or row.state)
    match row.state:
        case State.FAILED:
            return _Outcome(element="error", message=message, type=code)
        case State.INVALID:
            return _Outcome(element="failure", message=message, type=code)
        case State.SKIPPED:
            return _Outcome(element="skipped", message=message, type=code)
        case State.OK | State.DEGRADED | State.SIMULATED:
            return None


def _row_lines(report: Report, row: Row) -> Iterator[str]:
    if row.state is State.DEGRADED:
        yield f"degraded: {clean(row.reason or _NO_REASON)}"
    if row.state is State.SIMULATED:
        yield ci.simulated_text(report.simulated or "not recorded")
    if report.inject:
        yield f"the run was {ci.inject_text(report.inject)}"
    rate = ci.rate_of(row)
    if rate is not None:
        yield _rate_line(row, rate)
    latencies = ci.latencies_of(row)
    if latencies:
        times = (f"{name} {ci.time_text(value)}" for name, value in latencies.items())
        yield f"latency {', '.join(times)}"
    for each in row.warnings:
        yield f"warning {ci.caution_text(each)}"


def _rate_line(row: Row, rate: float) -> str:
    parts = [f"rate {format_rate(rate)}"]
    if row.bytes_per_s_low is not None and row.bytes_per_s_high is not None:
        width = interval_percent(rate, row.bytes_per_s_low, row.bytes_per_s_high)
        parts.append(f"95% interval ± {width}%")
    if row.limit_fraction is not None:
        source = clean(row.limit_source or "source not recorded")
        parts.append(f"{percent(row.limit_fraction)}% of the limit ({source})")
    return ", ".join(parts)


def _finding_case(comparison: Comparison, finding: Finding) -> _Case:
    change = ci.change_text(finding)
    reason = clean(finding.reason) if finding.reason else None
    lines = (change, ci.values_text(finding), reason, ci.evidence_text(finding))
    return _Case(
        name=clean(finding.id),
        group=clean(finding.group),
        outcome=_finding_outcome(finding, change, reason),
        lines=[finding.verdict, *(line for line in lines if line), *ci.origins(comparison)],
    )


def _finding_outcome(finding: Finding, change: str | None, reason: str | None) -> _Outcome | None:
    element: Literal["failure", "error", "skipped"]
    match finding.verdict:
        case Verdict.FASTER | Verdict.SAME | Verdict.NEW:
            return None
        case Verdict.SLOWER:
            element = "failure"
        case Verdict.NOT_COMPARABLE:
            element = "error"
        case Verdict.MISSING:
            element = "error" if finding.fails else "skipped"
        case Verdict.UNSURE:
            element = "failure" if finding.fails else "skipped"
    told = "; ".join(text for text in (change, reason) if text) or _NO_REASON
    return _Outcome(element=element, message=f"{finding.verdict}: {told}", type=finding.verdict)


def _gate_case(comparison: Comparison) -> _Case:
    reasons = "; ".join(clean(each) for each in comparison.reasons) or _NO_REASON
    message = f"exit {comparison.exit_code}: {reasons}"
    return _Case(
        name=GATE, group="kvbench", outcome=_Outcome(element="error", message=message, type=GATE)
    )


def _is_red(case: _Case) -> bool:
    return case.outcome is not None and case.outcome.element != "skipped"


def _document(name: str, started_at: str, properties: Properties, cases: Sequence[_Case]) -> str:
    import junitparser as junit  # noqa: PLC0415 - here, so that no other format waits for it

    elements = {"failure": junit.Failure, "error": junit.Error, "skipped": junit.Skipped}
    suite = junit.TestSuite(clean(name))
    timestamp = _utc(started_at)
    if timestamp:
        suite.timestamp = timestamp
    for key, value in properties:
        suite.add_property(key, clean(value))
    made: list[junit.TestCase] = []
    for case in cases:
        element = junit.TestCase(case.name, case.group, _seconds(case.elapsed_s))
        if case.outcome:
            outcome = case.outcome
            element.result = [elements[outcome.element](outcome.message, outcome.type)]
        if case.lines:
            element.system_out = "\n".join(case.lines)
        made.append(element)
    suite.add_testcases(made)  # counts them
    document = junit.JUnitXml("kvbench")
    document.add_testsuite(suite)  # without counts of its own: the schema has no `skipped` there
    data = io.BytesIO()
    document.write(data, pretty=True)  # pyright: ignore[reportUnknownMemberType] - its IO is bare
    return data.getvalue().decode("utf-8")


def _source(path: str, commit: str | None) -> str:
    return f"{path} at {commit}" if commit else path


def _seconds(elapsed_s: float | None) -> float | None:
    # Milliseconds, as Surefire writes them; a smaller time would come out as 1e-05.
    return None if elapsed_s is None else round(elapsed_s, 3)


def _utc(instant: str) -> str | None:
    """ISO 8601 in UTC without a zone, as readers of JUnit expect it."""
    try:
        parsed = datetime.fromisoformat(instant)
    except ValueError:
        return None
    return f"{parsed.astimezone(UTC):%Y-%m-%dT%H:%M:%S}" if parsed.tzinfo else None
