"""What a report says of rows that were measured beside a load."""

import json
import math
from statistics import median

import msgspec
import numpy as np
import pytest

from kvbench.measure.result import Report, Row, State, decode_report, encode_report
from kvbench.measure.stats import process_interval
from kvbench_reports import FORMATS
from kvbench_reports.interference import interference, mover_ratio
from kvbench_reports.words import NONE
from tests.reports.conftest import LLAMA, MIB, SERVER, make_row, measured_row, one_process
from tests.reports.test_markdown import check_shape, tables
from tests.reports.test_table import printed

COPY, READ = "dram.copy/pageable/2MiB/t1", "nvme.read/posix/2MiB/qd16/random"
LIMIT = (24.9e9, "data sheet")


def loaded(case: str, load: str, rate: float, load_rates: list[float | None]) -> Row:
    row = measured_row(f"{case}+{load}", rate, 0.04, LIMIT, params={"block_bytes": 2 * MIB})
    row.beside = load
    row.processes = [
        msgspec.structs.replace(one_process(rate), load_bytes_per_s=each) for each in load_rates
    ]
    return row


def alone(case: str = COPY, rate: float = 20e9, half_width: float | None = 0.03) -> Row:
    return measured_row(case, rate, half_width, LIMIT, params={"block_bytes": 2 * MIB})


def make_report() -> Report:
    """A copy alone and beside a read; a read beside a copy, and not alone."""
    return Report(
        kvbench_version="0.1.0",
        session_id="5f2c",
        suite="interference",
        command=["run", "interference"],
        started_at="2026-11-25T16:01:07Z",
        finished_at="2026-11-25T16:02:59Z",
        plan={"processes": 3},
        machine=SERVER,
        model=LLAMA,
        rows=[
            alone(),
            loaded(COPY, READ, 12.4e9, [0.9e9, None, 1.0e9, 0.92e9]),
            loaded(READ, COPY, 2.5e9, [11e9]),
        ],
    )


@pytest.fixture
def report() -> Report:
    return make_report()


def section(text: str, title: str = "interference") -> str:
    return next(part for part in text.split("\n\n") if part.startswith(title))


def test_the_table_says_what_the_load_costs_and_how_fast_the_load_was(report: Report) -> None:
    said = " ".join(section(printed(report, 100)).split())
    assert said.startswith(
        f"interference {COPY}: 62 % of alone (59 to 65 %) while {READ} runs at 920 MB/s "
    )


def test_a_row_whose_case_alone_is_missing_is_told_without_a_ratio(report: Report) -> None:
    text = " ".join(section(printed(report, 100)).split())
    assert (
        f"{READ}: not compared (alone it is not in this report) while {COPY} runs at 11.0 GB/s"
        in text
    )


@pytest.mark.parametrize(
    ("state", "why"),
    [(State.INVALID, "alone it is invalid"), (State.FAILED, "alone it is failed")],
)
def test_a_figure_that_must_not_be_believed_is_no_yardstick(
    report: Report, state: State, why: str
) -> None:
    report.rows[0].state = state  # its figure is still there
    (first, _) = interference(report)
    assert (first.share, first.interval, first.why) == (None, None, why)


def test_a_loaded_row_that_must_not_be_believed_is_not_in_the_section(report: Report) -> None:
    report.rows[1].state = State.INVALID
    assert [each.case for each in interference(report)] == [READ]


def test_rows_whose_bytes_went_by_different_paths_are_not_compared(report: Report) -> None:
    report.rows[0].path_observed, report.rows[1].path_observed = "mlock", "pageable memory"
    (first, _) = interference(report)
    assert first.share is None
    assert first.why == "alone the bytes went by mlock, here by pageable memory"


def test_without_an_interval_of_both_rows_the_ratio_has_none_and_says_so(report: Report) -> None:
    report.rows[0] = alone(half_width=None)
    (first, _) = interference(report)
    assert first.interval is None
    assert "62 % of alone (no interval: a row of one process)" in first.sentence


def test_a_row_is_never_compared_with_itself(report: Report) -> None:
    report.rows[1].id = COPY  # of another's making: its id does not name the load
    report.rows = report.rows[1:2]
    (only,) = interference(report)
    assert only.share is None


def test_the_rows_with_a_load_stand_under_their_own_tier(report: Report) -> None:
    dram = section(printed(report, 240), "dram")
    assert f"{COPY}+{READ}" in dram
    assert f"{READ}+{COPY}" not in dram


def test_markdown_has_a_line_for_each_row_with_a_load(report: Report) -> None:
    check_shape(report)
    table = tables(report)[-1]
    assert table[2:] == [
        f"| `{COPY}` | 62 | 59 to 65 | `{READ}` | 920 MB/s |  |",
        f"| `{READ}` | {NONE} | {NONE} | `{COPY}` | 11.0 GB/s | alone it is not in this report |",
    ]


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_without_a_load_there_is_no_such_section(measured: Report, form: str) -> None:
    assert "interference" not in FORMATS[form](measured)


def test_json_holds_what_was_measured_and_no_ratio(report: Report) -> None:
    raw = json.loads(FORMATS["json"](report))
    row = raw["rows"][1]
    assert (row["id"], row["beside"]) == (f"{COPY}+{READ}", READ)
    assert [each["load_bytes_per_s"] for each in row["processes"]] == [0.9e9, None, 1.0e9, 0.92e9]
    again = decode_report(encode_report(report), "again")
    assert [each.sentence for each in interference(again)] == [
        each.sentence for each in interference(report)
    ]


@pytest.mark.parametrize("processes", [3, 6, 10])
def test_the_interval_of_the_ratio_holds_the_truth_as_often_as_it_says(processes: int) -> None:
    generator = np.random.default_rng(5)
    held, truth, runs = 0, 0.6, 1000
    for _ in range(runs):
        sides: list[tuple[float, float, float]] = []
        for centre in (truth, 1.0):
            rates = centre * np.exp(0.1 * generator.standard_normal(processes))
            found = process_interval(rates.tolist())
            assert found is not None
            middle, low, high, _ = found
            sides.append((math.log(low), math.log(middle), math.log(high)))
        low, high = mover_ratio(*sides)
        held += low <= truth <= high
    assert held / runs > 0.935


def test_the_interval_of_a_ratio_is_that_of_independent_rows() -> None:
    # Zou and Donner: squares add up, and each end takes the other row's opposite one.
    side = (math.log(9.0), math.log(10.0), math.log(12.0))
    low, high = mover_ratio(side, (0.0, 0.0, 0.0))
    assert (low, high) == pytest.approx((9.0, 12.0))
    low, high = mover_ratio((0.0, 0.0, 0.0), side)
    assert (low, high) == pytest.approx((1 / 12.0, 1 / 9.0))
    low, high = mover_ratio(side, side)
    assert low == pytest.approx(math.exp(-math.hypot(math.log(10 / 9), math.log(1.2))))
    assert high == pytest.approx(1 / low)


def test_a_loads_rate_is_the_median_of_the_processes_that_know_it(report: Report) -> None:
    (first, _) = interference(report)
    assert first.load_bytes_per_s == median([0.9e9, 1.0e9, 0.92e9])
    for row in report.rows:
        row.processes = []
    (first, _) = interference(report)
    assert first.load_rate == NONE


def test_a_row_without_a_load_is_alone_by_its_own_id() -> None:
    assert make_row(COPY).alone_id == COPY
