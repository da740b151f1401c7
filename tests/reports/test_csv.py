"""CSV for spreadsheets and data frames: base units, one line a row, no surprises."""

import csv
import io

import pytest

from kvbench.measure.result import Report, Row, State
from kvbench_reports import csv_


def read(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_.render(report))))


def find(report: Report, case: str) -> tuple[Row, dict[str, str]]:
    cells = next(cells for cells in read(report) if cells["id"] == case)
    return next(row for row in report.rows if row.id == case), cells


def test_every_row_is_one_line_whatever_its_texts_hold(measured: Report) -> None:
    measured.rows[0].reason = "first\nsecond\r\nthird"
    lines = csv_.render(measured).splitlines()
    assert len(lines) == 1 + len(measured.rows)
    assert read(measured)[0]["reason"] == "first second third"


def test_figures_are_in_base_units_to_the_last_digit(measured: Report) -> None:
    row, cells = find(measured, "nvme.read/posix/64KiB/qd1/sequential")
    assert row.latency_s is not None
    assert float(cells["bytes_per_s"]) == row.bytes_per_s
    assert float(cells["bytes_per_s_high"]) == row.bytes_per_s_high
    assert float(cells["latency_p50_s"]) == row.latency_s.p50
    assert cells["param_block_bytes"] == "65536"
    assert cells["payload_bytes"] == str(row.payload_bytes)


def test_what_is_missing_is_empty_and_never_zero(measured: Report) -> None:
    _, cells = find(measured, "nvme.read/posix/64KiB/qd1/sequential")
    assert cells["latency_p99_s"] == cells["device_bytes"] == cells["param_memory"] == ""
    _, skipped = find(measured, "hbm.copy/engine")
    figures = {name: cell for name, cell in skipped.items() if name.endswith(("_bytes", "_s"))}
    assert set(figures.values()) == {""}


def test_an_invalid_row_has_its_reason_and_no_figure(measured: Report) -> None:
    row, cells = find(measured, "nvme.read/posix/2MiB/qd32/random")
    assert (cells["state"], cells["reason"]) == ("invalid", row.reason)
    filled = {name for name, cell in cells.items() if cell and "bytes_per_s" in name}
    assert filled == {"limit_bytes_per_s"}
    assert not any(cell for name, cell in cells.items() if name.startswith("latency_"))


def test_simulated_rows_say_so(simulated: Report) -> None:
    assert {cells["state"] for cells in read(simulated)} == {"simulated"}
    assert {cells["simulated_profile"] for cells in read(simulated)} == {"nvme-gen4"}


def test_columns_are_the_same_in_every_report_and_parameters_follow(
    measured: Report, simulated: Report
) -> None:
    for report in (measured, simulated):
        names = csv_.render(report).splitlines()[0].split(",")
        assert names[: len(csv_.COLUMNS)] == list(csv_.COLUMNS)
        params = names[len(csv_.COLUMNS) :]
        assert params == sorted(params)
        assert all(name.startswith("param_") for name in params)


def test_a_flag_is_true_or_false(measured: Report) -> None:
    _, cells = find(measured, "dram.gather/locked/all-cores")
    assert cells["param_spread"] == "true"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1+1", " =1+1", "-"])
def test_no_text_is_a_formula_for_a_spreadsheet(measured: Report, text: str) -> None:
    measured.rows[0].reason = text
    measured.rows[0].params = {text: text}
    cells = read(measured)[0]
    assert cells["reason"] == "'" + text.strip()
    assert not any(name.startswith(("=", "+", "-", "@")) for name in cells)


@pytest.mark.parametrize("text", ["-1.5", "+3", "-2e-9"])
def test_a_number_keeps_its_sign(measured: Report, text: str) -> None:
    measured.rows[0].params = {"offset": text}
    assert read(measured)[0]["param_offset"] == text


def test_warnings_stand_in_their_row(measured: Report) -> None:
    row, cells = find(measured, "nvme.read/kvikio/2MiB/qd16/random")
    assert row.state is State.DEGRADED
    assert cells["warnings"].startswith("cold_unknown: whether the reads were cold")
    assert "; wide_interval: processes differ" in cells["warnings"]
