"""Every format for people of the sample comparison, byte for byte; see tests/reports/test_golden.

After a change that is meant to be seen, run it once with KVBENCH_WRITE_GOLDEN=1 set, then read the
difference.
"""

import io

import pytest
from rich.console import Console

from kvbench.compare.record import Comparison, decode_comparison
from kvbench_reports.compare import COMPARE_FORMATS, explain, table
from tests.reports.test_golden import GOLDEN, compare


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_table_is_as_it_was(comparison: Comparison, width: int) -> None:
    text = io.StringIO()
    table.show(comparison, Console(file=text, width=width))
    compare(f"comparison_{width}.txt", text.getvalue())


def test_the_table_of_everything_is_as_it_was(comparison: Comparison) -> None:
    compare("comparison_all.txt", table.render(comparison, all_=True))


@pytest.mark.parametrize(
    ("form", "ending"), [("csv", "csv"), ("markdown", "md"), ("json", "json"), ("table", "txt")]
)
def test_a_format_is_as_it_was(comparison: Comparison, form: str, ending: str) -> None:
    name = "comparison_100.txt" if form == "table" else f"comparison_{form}.{ending}"
    compare(name, COMPARE_FORMATS[form](comparison))


def test_an_explanation_is_as_it_was(comparison: Comparison) -> None:
    compare("comparison_explain.txt", explain.render(comparison, "nvme*"))


def test_json_of_schema_1_reads_back_as_the_same_comparison(comparison: Comparison) -> None:
    data = (GOLDEN / "comparison_json.json").read_bytes()
    assert decode_comparison(data, "golden") == comparison
