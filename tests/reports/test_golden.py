"""Every format of the two sample reports, byte for byte.

After a change that is meant to be seen, run it once with KVBENCH_WRITE_GOLDEN=1 set, then read the
difference.
"""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from kvbench.measure.result import Report, decode_report
from kvbench_reports import FORMATS, table

GOLDEN = Path(__file__).parents[1] / "golden"


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("KVBENCH_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} differs; {__doc__}"


def table_at(report: Report, width: int) -> str:
    text = io.StringIO()
    table.show(report, Console(file=text, width=width), "report.json")
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 240])
@pytest.mark.parametrize("name", ["measured", "simulated"])
def test_the_table_is_as_it_was(name: str, width: int, request: pytest.FixtureRequest) -> None:
    compare(f"report_{name}_{width}.txt", table_at(request.getfixturevalue(name), width))


@pytest.mark.parametrize(("form", "ending"), [("csv", "csv"), ("markdown", "md")])
@pytest.mark.parametrize("name", ["measured", "simulated"])
def test_a_format_is_as_it_was(
    name: str, form: str, ending: str, request: pytest.FixtureRequest
) -> None:
    compare(f"report_{name}.{ending}", FORMATS[form](request.getfixturevalue(name)))


def test_a_file_of_schema_1_reads_as_it_did() -> None:
    # Never written again: an old file must stay readable, whatever becomes of the code.
    report = decode_report((GOLDEN / "report_schema_1.json").read_bytes(), "golden")
    assert table_at(report, 100) == (GOLDEN / "report_measured_100.txt").read_text(encoding="utf-8")
