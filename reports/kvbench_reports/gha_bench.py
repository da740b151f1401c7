"""github-action-benchmark: arrays of named values for its charts, one direction for each file.

`render*` gives rates for its tool `customBiggerIsBetter`, `render*_smaller` latencies for
`customSmallerIsBetter`. The action compares with the last value of the same name only, alerts at
200 % by default and passes over names that it does not know: a chart, not a gate. Units never
change with the values, so that a chart keeps one axis. The action refuses an empty array.
"""

import json
from collections.abc import Iterable, Sequence

from kvbench.compare.record import Comparison, Finding, Kind
from kvbench.measure.result import Report, Row, State
from kvbench_reports import ci
from kvbench_reports.words import clean, interval_percent, percent

RATE_UNIT, _RATE = "GB/s", 1e9  # decimal, as everywhere
TIME_UNIT, _TIME = "us", 1e-6  # spelled as the action spells it when it converts units

Entry = dict[str, str | float]


def render(report: Report) -> str:
    """The rates of a report in GB/s; a row without one is left out.

    `range` is the wider side of the 95 % interval between processes, where there is one.
    """
    return _array(_rate_entry(report, row) for row in report.rows if ci.rate_of(row) is not None)


def render_smaller(report: Report) -> str:
    """The p50 and p99 of a report's latencies in us; they have no interval."""
    return _array(
        _entry(ci.row_name(report, row, percentile), (value / _TIME, TIME_UNIT), _told(report, row))
        for row in report.rows
        for percentile, value in ci.latencies_of(row).items()
    )


def render_comparison(comparison: Comparison) -> str:
    """NEW's rates in GB/s, with verdict and change in `extra`.

    `range` is the 95 % interval of the change: it holds the doubt about BASE too.
    """
    return _findings(comparison, Kind.RATE)


def render_comparison_smaller(comparison: Comparison) -> str:
    """NEW's p99 latencies in us, as `render_comparison` gives the rates."""
    return _findings(comparison, Kind.P99)


def _rate_entry(report: Report, row: Row) -> Entry:
    rate = ci.rate_of(row) or 0.0
    width = interval_percent(rate, row.bytes_per_s_low, row.bytes_per_s_high)
    has_interval = row.bytes_per_s_low is not None and row.bytes_per_s_high is not None
    limit: list[str] = []
    if row.limit_fraction is not None:
        source = clean(row.limit_source or "source not recorded")
        limit.append(f"{percent(row.limit_fraction)}% of the limit ({source})")
    return _entry(
        ci.row_name(report, row),
        (rate / _RATE, RATE_UNIT),
        [*limit, *_told(report, row)],
        f"± {width}%" if has_interval else None,
    )


def _told(report: Report, row: Row) -> list[str]:
    """What the tooltip of a point says of the row."""
    lines: list[str] = []
    if row.state is State.SIMULATED:
        lines.append(ci.simulated_text(report.simulated or "not recorded"))
    if report.inject:
        lines.append(f"the run was {ci.inject_text(report.inject)}")
    if row.state is State.DEGRADED:
        lines.append(f"degraded: {clean(row.reason or 'no reason recorded')}")
    return [*lines, *(f"warning {ci.caution_text(each)}" for each in row.warnings)]


def _findings(comparison: Comparison, kind: Kind) -> str:
    unit, factor = (TIME_UNIT, _TIME) if kind is Kind.P99 else (RATE_UNIT, _RATE)
    found = [(each, each.new) for each in comparison.findings if each.kind is kind]
    return _array(
        _entry(
            ci.finding_name(comparison, finding),
            (new / factor, unit),
            _verdict(comparison, finding),
            _range(finding, new),
        )
        for finding, new in found
        if new is not None
    )


def _verdict(comparison: Comparison, finding: Finding) -> list[str]:
    reason = clean(finding.reason) if finding.reason else None
    lines = (ci.change_text(finding), ci.values_text(finding), reason)
    return [finding.verdict, *(line for line in lines if line), *ci.origins(comparison)]


def _range(finding: Finding, new: float) -> str | None:
    found = ci.bounds(finding)
    return f"± {interval_percent(new, *found)}%" if found else None


def _entry(
    name: str, figure: tuple[float, str], told: Sequence[str], spread: str | None = None
) -> Entry:
    value, unit = figure
    entry: Entry = {"name": name, "unit": unit, "value": float(f"{value:.6g}")}
    if spread:
        entry["range"] = spread
    if told:
        entry["extra"] = "\n".join(told)
    return entry


def _array(entries: Iterable[Entry]) -> str:
    return json.dumps(list(entries), indent=2, ensure_ascii=False) + "\n"
