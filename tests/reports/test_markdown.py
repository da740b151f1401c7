"""Markdown as GitHub reads it."""

import re

import pytest

from kvbench.measure.result import Caution, Report, State
from kvbench_reports import markdown

CELL_END = re.compile(r"(?<!\\)\|")


def tables(report: Report) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in markdown.render(report).splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def check_shape(report: Report) -> None:
    for table in tables(report):
        assert len({len(CELL_END.findall(line)) for line in table}) == 1, table


def test_there_is_a_table_for_each_tier_and_its_rows_have_a_cell_for_each_column(
    measured: Report,
) -> None:
    assert len(tables(measured)) == 3
    check_shape(measured)


@pytest.mark.parametrize("text", ["a|b", "a\\|b", "`a|b`", "a\nb|", "||"])
def test_no_text_ends_a_cell(measured: Report, text: str) -> None:
    measured.rows[1].id = text
    measured.rows[1].limit_source = text
    for row in measured.rows:
        row.reason = text
    check_shape(measured)


def test_text_is_not_taken_for_markup(measured: Report) -> None:
    failed = next(row for row in measured.rows if row.state is State.FAILED)
    failed.reason = "<b>*x*</b> [a](http://b) `c` __init__ a_b ~/kv &lt;"
    shown = r"\<b>\*x\*\</b> \[a\](http://b) \`c\` \_\_init\_\_ a_b \~/kv \&lt;"
    assert shown in markdown.render(measured)


def test_a_fix_can_be_copied_as_it_is(measured: Report) -> None:
    measured.warnings.append(Caution(code="x", message="m", fix="echo 3 | tee `pwd`/*"))
    assert "Fix: `` echo 3 | tee `pwd`/* ``\n" in markdown.render(measured)


def test_an_invalid_row_says_why_and_prints_no_figure(measured: Report) -> None:
    line = next(x for x in markdown.render(measured).splitlines() if "qd32/random" in x)
    cells = [cell.strip() for cell in CELL_END.split(line)]
    assert cells[2:9] == ["2,048", *["\N{EN DASH}"] * 6]
    assert cells[9] == "invalid"
    assert cells[10].startswith("measured 397% of the limit")


def test_skipped_rows_are_folded(measured: Report) -> None:
    assert "| 5 cases | skipped | no CUDA device: no NVIDIA driver |" in markdown.render(measured)


def test_a_simulated_report_says_so_above_in_and_below_its_table(simulated: Report) -> None:
    text = markdown.render(simulated)
    above, table, below = re.split(r"^### nvme.*$|^- limit", text, flags=re.MULTILINE)
    said = "2 rows from simulated devices (profile nvme-gen4), true of no machine"
    assert said in above
    assert table.count("| simulated |") == 2
    assert said in below


def test_warnings_stand_once_with_their_rows_and_fix(measured: Report) -> None:
    text = markdown.render(measured)
    assert text.count("processes differ by more than") == 1
    assert "(wide_interval, 2 rows). Fix: `kvbench run … --processes 10`\n" in text
    assert "| degraded w2 w3 |" in text
