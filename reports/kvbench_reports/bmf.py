"""Bencher Metric Format: a metric's name, then its measures, each a value with its bounds.

Measures are Bencher's two built-in ones, by their slugs (bencher.dev/docs, "track custom
benchmarks"). `latency` is in nanoseconds, its built-in unit. `throughput` is in bytes per second;
Bencher labels it operations per second until it is told, once, that an operation is a byte:
`bencher measure update PROJECT throughput --units "bytes / second (B/s)"`.
Latencies are a benchmark each, p50 under the row's id and p99 under `ID p99`, the name that
a comparison gives it. The format has no room for remarks: what is simulated or was slowed on
purpose says so in its name.
"""

import json
from collections.abc import Iterable

from kvbench.compare.record import Comparison, Kind
from kvbench.measure.result import Report, Row
from kvbench_reports import ci

THROUGHPUT, LATENCY = "throughput", "latency"  # slugs
_NANOSECONDS = 1e9  # in a second

Metric = dict[str, float]


def render(report: Report) -> str:
    """Rates with the interval between processes as bounds; p50 and p99 of latencies without.

    A row without a figure is left out.
    """
    metrics: list[tuple[str, str, Metric]] = []
    for row in report.rows:
        rate, latencies = ci.rate_of(row), ci.latencies_of(row)
        name = ci.row_name(report, row)
        if rate is not None:
            metrics.append((name, THROUGHPUT, _metric(rate, _interval(row))))
        if "p50" in latencies:
            metrics.append((name, LATENCY, _metric(latencies["p50"], None, _NANOSECONDS)))
        if "p99" in latencies:
            tail = ci.row_name(report, row, "p99")
            metrics.append((tail, LATENCY, _metric(latencies["p99"], None, _NANOSECONDS)))
    return _document(metrics)


def render_comparison(comparison: Comparison) -> str:
    """NEW's figures; the bounds are the 95 % interval of the change, laid around NEW's value.

    What NEW has no figure for is left out, tiers too: their rows have no common unit.
    """
    metrics: list[tuple[str, str, Metric]] = []
    for finding in comparison.findings:
        if finding.new is None:  # as it is for every tier
            continue
        is_latency = finding.kind is Kind.P99
        factor = _NANOSECONDS if is_latency else 1.0
        bounds = ci.bounds(finding)
        metric = _metric(finding.new, bounds, factor)
        measure = LATENCY if is_latency else THROUGHPUT
        metrics.append((ci.finding_name(comparison, finding), measure, metric))
    return _document(metrics)


def _interval(row: Row) -> tuple[float, float] | None:
    if row.bytes_per_s_low is None or row.bytes_per_s_high is None:
        return None
    return row.bytes_per_s_low, row.bytes_per_s_high


def _metric(value: float, bounds: tuple[float, float] | None, factor: float = 1.0) -> Metric:
    figures = {"value": value}
    if bounds is not None:
        figures |= {"lower_value": bounds[0], "upper_value": bounds[1]}
    # Nine digits: beyond, there is only what scaling left behind (83400.00000000001 ns).
    return {name: float(f"{figure * factor:.9g}") for name, figure in figures.items()}


def _document(metrics: Iterable[tuple[str, str, Metric]]) -> str:
    found: dict[str, dict[str, Metric]] = {}
    for name, measure, metric in metrics:
        found.setdefault(name, {})[measure] = metric
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
