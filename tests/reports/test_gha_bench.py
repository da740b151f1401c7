"""Arrays for github-action-benchmark, read as the action reads them."""

import json
import math
from typing import Any

import pytest

from kvbench.compare.record import Comparison, Kind
from kvbench.measure.result import HAS_FIGURE, Report
from kvbench_reports import gha_bench
from tests.reports.comparisons import FINDINGS, make_comparison
from tests.reports.conftest import SERVER
from tests.reports.test_golden import compare

READ = "nvme.read/posix/2MiB/qd16/random"
FIELDS = {"name": str, "unit": str, "value": float, "range": str, "extra": str}


def entries(text: str) -> dict[str, dict[str, Any]]:
    found = json.loads(text)
    assert isinstance(found, list)
    for entry in found:
        assert {"name", "unit", "value"} <= entry.keys() <= FIELDS.keys()
        assert all(isinstance(value, FIELDS[key]) for key, value in entry.items())
        assert math.isfinite(entry["value"])
    names = [entry["name"] for entry in found]
    assert len(set(names)) == len(names), "the action would take the last of two"
    return {entry["name"]: entry for entry in found}


def test_the_arrays_are_as_they_were(measured: Report, comparison: Comparison) -> None:
    compare("report_measured.gha_bench.json", gha_bench.render(measured))
    compare("report_measured.gha_bench_smaller.json", gha_bench.render_smaller(measured))
    compare("comparison.gha_bench.json", gha_bench.render_comparison(comparison))
    compare("comparison.gha_bench_smaller.json", gha_bench.render_comparison_smaller(comparison))


def test_rates_are_in_one_unit_with_their_interval(measured: Report) -> None:
    found = entries(gha_bench.render(measured))
    assert {entry["unit"] for entry in found.values()} == {"GB/s"}
    assert (found[READ]["value"], found[READ]["range"]) == (6.514, "± 1.2%")
    assert found["nvme.read/posix/64KiB/qd1/sequential"]["value"] == 0.7312


def test_a_rate_without_an_interval_has_no_range(measured: Report) -> None:
    assert "range" not in entries(gha_bench.render(measured))["dram.gather/pageable/1-core"]


def test_only_rows_with_a_figure_are_there(measured: Report) -> None:
    with_figure = {row.id for row in measured.rows if row.state in HAS_FIGURE}
    assert entries(gha_bench.render(measured)).keys() == with_figure
    measured.rows[0].bytes_per_s = None
    assert measured.rows[0].id not in entries(gha_bench.render(measured))


def test_latencies_are_a_file_of_their_own_in_microseconds(measured: Report) -> None:
    found = entries(gha_bench.render_smaller(measured))
    assert {entry["unit"] for entry in found.values()} == {"us"}
    assert found[f"{READ} p50"]["value"] == 4910.0
    assert found[f"{READ} p99"]["value"] == 7700.0
    assert "nvme.read/posix/64KiB/qd1/sequential p99" not in found  # too few samples for one
    assert not any("qd32" in name for name in found)  # invalid


def test_a_degraded_row_says_so_beside_its_figure(measured: Report) -> None:
    text = "degraded: asked for gds, the bytes went by posix-bounce"
    for render in (gha_bench.render, gha_bench.render_smaller):
        degraded = [x for name, x in entries(render(measured)).items() if "kvikio" in name]
        assert degraded
        assert all(text in entry["extra"] for entry in degraded)


@pytest.mark.parametrize("render", [gha_bench.render, gha_bench.render_smaller])
def test_a_simulated_or_slowed_figure_never_continues_the_series_of_a_machine(
    render: Any, simulated: Report, measured: Report
) -> None:
    found = entries(render(simulated))
    assert all(name.endswith(" (simulated)") for name in found)
    text = "simulated device (profile nvme-gen4), true of no machine"
    assert all(text in entry["extra"] for entry in found.values())
    measured.inject = {"nvme.*": 0.08}
    found = entries(render(measured))
    assert all(name.endswith(" (injected)") for name in found)
    assert all("slowed on purpose: nvme.*=+8%" in entry["extra"] for entry in found.values())


def test_a_comparison_gives_the_values_of_new_with_verdict_and_change() -> None:
    plain = make_comparison(SERVER)
    found = entries(gha_bench.render_comparison(plain))
    entry = found[f"{READ} (injected)"]
    assert entry["value"] == pytest.approx(6.5 / 1.145, rel=1e-5)
    assert entry["extra"].split("\n")[:3] == [
        "SLOWER",
        "+14.5% in time, 95% interval +9.8% to +19.4%, margin 5%",
        "base 6.5 GB/s, new 5.68 GB/s",
    ]
    assert "NEW was slowed on purpose: nvme.read*=+8%" in entry["extra"]


def test_a_comparison_and_a_report_call_a_figure_by_one_name(measured: Report) -> None:
    measured.inject = {"nvme.read*": 0.08}  # as NEW of the comparison
    both = make_comparison(SERVER)
    rates = entries(gha_bench.render_comparison(both)).keys()
    assert f"{READ} (injected)" in rates & entries(gha_bench.render(measured)).keys()
    tails = entries(gha_bench.render_comparison_smaller(both)).keys()
    assert tails <= entries(gha_bench.render_smaller(measured)).keys()


def test_the_range_of_a_compared_figure_is_the_interval_of_its_change() -> None:
    rates = entries(gha_bench.render_comparison(make_comparison(SERVER)))
    # 1.145 / 1.098 is 4.3 % more, 1.145 / 1.194 is 4.1 % less.
    assert rates[f"{READ} (injected)"]["range"] == "± 4.3%"
    (tail,) = entries(gha_bench.render_comparison_smaller(make_comparison(SERVER))).values()
    assert tail["range"] == "± 84%"  # 1.986 / 1.082


def test_the_two_files_of_a_comparison_have_one_direction_each_and_no_tier() -> None:
    both = make_comparison(SERVER)
    rates = entries(gha_bench.render_comparison(both))
    tails = entries(gha_bench.render_comparison_smaller(both))
    assert {entry["unit"] for entry in rates.values()} == {"GB/s"}
    assert {entry["unit"] for entry in tails.values()} == {"us"}
    with_figure = [x for x in FINDINGS if x.new is not None and x.kind is not Kind.TIER]
    assert len(rates) + len(tails) == len(with_figure)
