"""Bencher Metric Format, held against the schema that Bencher publishes."""

import json
import math
from typing import Any

import jsonschema
import msgspec
import pytest

from kvbench.compare.record import Comparison, Kind
from kvbench.measure.result import HAS_FIGURE, Latency, Report
from kvbench_reports import bmf
from tests.reports.comparisons import FINDINGS, make_comparison
from tests.reports.conftest import SERVER
from tests.reports.test_golden import compare

READ = "nvme.read/posix/2MiB/qd16/random"
RAGGED_S = 13 * 1e-7  # 1299.9999999999998 ns
# What bencher.dev/docs/reference/bencher-metric-format allows, and nothing beside it.
METRIC = {
    "type": "object",
    "properties": {
        name: {"type": "number", "exclusiveMinimum": 0}
        for name in ("value", "lower_value", "upper_value")
    },
    "required": ["value"],
    "additionalProperties": False,
}
MEASURES = {
    "type": "object",
    "properties": {"throughput": METRIC, "latency": METRIC},
    "additionalProperties": False,
    "minProperties": 1,
}
SCHEMA = {"type": "object", "patternProperties": {"^.{1,1024}$": MEASURES}}


def metrics(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    jsonschema.validate(found, SCHEMA)
    for measures in found.values():
        for metric in measures.values():
            low = metric.get("lower_value", metric["value"])
            assert low <= metric["value"] <= metric.get("upper_value", metric["value"])
    return found


def test_the_files_are_as_they_were(measured: Report, comparison: Comparison) -> None:
    compare("report_measured.bmf.json", bmf.render(measured))
    compare("comparison.bmf.json", bmf.render_comparison(comparison))


def test_throughput_is_in_bytes_per_second_within_its_interval(measured: Report) -> None:
    assert metrics(bmf.render(measured))[READ]["throughput"] == {
        "value": 6.514e9,
        "lower_value": pytest.approx(6.514e9 * 0.988),
        "upper_value": pytest.approx(6.514e9 * 1.012),
    }


def test_a_rate_of_one_process_has_no_bounds(measured: Report) -> None:
    found = metrics(bmf.render(measured))["dram.gather/pageable/1-core"]
    assert found == {"throughput": {"value": 9.127e9}}


def test_latency_is_in_nanoseconds_and_its_tail_a_benchmark_of_its_own(measured: Report) -> None:
    found = metrics(bmf.render(measured))
    assert found[READ]["latency"] == {"value": 4_910_000}
    assert found[f"{READ} p99"] == {"latency": {"value": 7_700_000}}
    assert found["nvme.read/posix/64KiB/qd1/sequential"]["latency"] == {"value": 83_400}


def test_scaling_leaves_no_digits_that_nobody_measured(measured: Report) -> None:
    row = next(row for row in measured.rows if row.id == READ)
    row.latency_s = Latency(count=1, effective_count=1.0, p50=RAGGED_S)
    assert RAGGED_S * 1e9 != 1300
    assert metrics(bmf.render(measured))[READ]["latency"] == {"value": 1300}


def test_only_rows_with_a_figure_are_there(measured: Report) -> None:
    names = {name.removesuffix(" p99") for name in metrics(bmf.render(measured))}
    assert names == {row.id for row in measured.rows if row.state in HAS_FIGURE}


def test_a_simulated_or_slowed_figure_says_so_in_its_name(
    simulated: Report, measured: Report
) -> None:
    assert all(name.endswith(" (simulated)") for name in metrics(bmf.render(simulated)))
    simulated.inject = {"nvme.*": 0.08}
    found = metrics(bmf.render(simulated))
    assert all(name.endswith(" (simulated, injected)") for name in found)
    measured.inject = {"nvme.*": 0.08}
    assert all(name.endswith(" (injected)") for name in metrics(bmf.render(measured)))


def test_a_comparison_gives_new_within_the_interval_of_the_change() -> None:
    found = metrics(bmf.render_comparison(make_comparison(SERVER)))
    assert found[f"{READ} (injected)"]["throughput"] == {
        "value": pytest.approx(6.5e9 / 1.145),
        "lower_value": pytest.approx(6.5e9 / 1.194),
        "upper_value": pytest.approx(6.5e9 / 1.098),
    }
    assert found[f"{READ} p99 (injected)"]["latency"] == {
        "value": pytest.approx(7.7e6 * 1.082),
        "lower_value": pytest.approx(7.7e6 * 0.55),
        "upper_value": pytest.approx(7.7e6 * 1.986),
    }


@pytest.mark.parametrize("interval", [(-1.0, 0.5), (-0.5, math.inf), (None, None)])
def test_an_interval_without_an_end_gives_no_bounds(
    interval: tuple[float | None, float | None],
) -> None:
    wild = msgspec.structs.replace(FINDINGS[0], low=interval[0], high=interval[1])
    (found,) = metrics(bmf.render_comparison(make_comparison(SERVER, findings=[wild]))).values()
    assert found["throughput"].keys() == {"value"}


def test_a_row_that_only_new_has_is_there_without_bounds() -> None:
    found = metrics(bmf.render_comparison(make_comparison(SERVER)))
    new = found["dram.gather/locked/2MiB/page32KiB/t2 (injected)"]
    assert new == {"throughput": {"value": 13e9}}


def test_tiers_and_what_new_lacks_are_left_out() -> None:
    found = metrics(bmf.render_comparison(make_comparison(SERVER)))
    expected = [x.id for x in FINDINGS if x.new is not None and x.kind is not Kind.TIER]
    assert sorted(found) == sorted(f"{name} (injected)" for name in expected)
