"""CSV of a comparison: base units, one line a finding, every figure to its last digit."""

import csv
import io

import msgspec
import pytest

from kvbench.compare.record import Comparison, Finding, Kind
from kvbench_reports.compare import csv_


def read(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_.render(comparison))))


def pairs(comparison: Comparison) -> list[tuple[Finding, dict[str, str]]]:
    cells = {row["id"]: row for row in read(comparison)}
    return [(each, cells[each.id]) for each in comparison.findings]


def test_every_finding_is_one_line_whatever_its_texts_hold(comparison: Comparison) -> None:
    findings = [
        msgspec.structs.replace(each, reason="first\nsecond\r\nthird")
        for each in comparison.findings
    ]
    text = csv_.render(msgspec.structs.replace(comparison, findings=findings))
    assert len(text.splitlines()) == 1 + len(findings)


def test_lines_come_worst_first(comparison: Comparison) -> None:
    found = [row["verdict"] for row in read(comparison)]
    assert found == sorted(found, key=[str(v) for v in dict.fromkeys(found)].index)
    assert found[0] == "SLOWER"
    assert found[-1] == "SAME"


def test_every_figure_of_the_record_is_there_to_the_last_digit(comparison: Comparison) -> None:
    names = {"change": "change_share", "low": "low_share", "high": "high_share", "mde": "mde_share"}
    names |= {"margin": "margin_share", "standard_error": "standard_error_log", "df": "df"}
    names |= {"floor_sd": "floor_sd_log"}
    plain = ("p_slower", "p_slower_adjusted", "p_faster_adjusted", "rank", "tests")
    names |= {name: name for name in plain}
    for finding, cells in pairs(comparison):
        for field, column in names.items():
            value = getattr(finding, field)
            assert cells[column] == ("" if value is None else repr(value)), (finding.id, field)


def test_sides_stand_in_the_column_of_their_unit(comparison: Comparison) -> None:
    units = {Kind.RATE: "bytes_per_s", Kind.P99: "s", Kind.TIER: "log"}
    for finding, cells in pairs(comparison):
        unit = units[finding.kind]
        if finding.kind is not Kind.TIER:
            assert cells[f"base_{unit}"] == ("" if finding.base is None else repr(finding.base))
        values = cells[f"new_values_{unit}"]
        assert [float(value) for value in values.split(";") if value] == finding.new_values
        others = [other for other in units.values() if other != unit]
        assert not any(cells[f"base_values_{other}"] for other in others)


def test_what_is_missing_is_empty_and_never_zero(comparison: Comparison) -> None:
    missing = next(cells for finding, cells in pairs(comparison) if finding.change is None)
    figures = ("change_share", "low_share", "p_slower", "df", "rank", "mde_share")
    assert {missing[name] for name in figures} == {""}


def test_every_line_says_what_makes_it_doubtful(comparison: Comparison) -> None:
    doubtful = msgspec.structs.replace(comparison, simulated="nvme-gen4", differences=["CPU: a, b"])
    for row in read(doubtful):
        assert row["simulated_profile"] == "nvme-gen4"
        assert row["new_inject"] == "nvme.read* by 8 %"
        assert row["forced_differences"] == "CPU: a, b"


def test_the_columns_are_the_same_in_every_comparison(comparison: Comparison) -> None:
    empty = msgspec.structs.replace(comparison, findings=[])
    assert csv_.render(empty) == ",".join(csv_.COLUMNS) + "\n"
    assert csv_.render(comparison).splitlines()[0] == ",".join(csv_.COLUMNS)


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1+1"])
def test_no_text_is_a_formula_for_a_spreadsheet(comparison: Comparison, text: str) -> None:
    finding = msgspec.structs.replace(comparison.findings[0], id=text, reason=text)
    row = read(msgspec.structs.replace(comparison, findings=[finding]))[0]
    assert row["id"] == row["reason"] == "'" + text.strip()
