"""What the page makes of rows that were measured beside a load."""

import json

import pytest

from kvbench.measure.result import Report
from kvbench_reports import html
from tests.reports.conftest import MIB, latency
from tests.reports.test_interference import COPY, READ, alone, loaded, make_report

pytest.importorskip("vl_convert", reason="needs the extra html: pip install 'kvbench[html]'")
pytest.importorskip("jinja2", reason="needs the extra html: pip install 'kvbench[html]'")

from kvbench_reports.html.ladder import headlines, ladder
from kvbench_reports.html.latencies import distribution
from kvbench_reports.html.sweep import sweeps


@pytest.fixture
def report() -> Report:
    return make_report()


def test_no_chart_along_a_parameter_holds_a_row_with_a_load(report: Report) -> None:
    small = alone("dram.copy/pageable/1MiB/t1", 21e9)
    small.params = {"block_bytes": MIB}
    # Faster than alone, so that it would be the one that is drawn.
    fast = loaded(COPY, READ, 24e9, [1e9])
    slow_small = loaded("dram.copy/pageable/1MiB/t1", READ, 1e9, [1e9])
    slow_small.params = {"block_bytes": MIB}
    report.rows = [small, alone(), fast, slow_small, report.rows[2]]
    for row in report.rows:
        row.latency_s = latency(1e-3, 2e-3)
    dram = report.rows[:4]
    figures = [ladder(report), *sweeps("dram", dram), distribution("dram", dram)]
    cells = [cell for figure in figures for row in figure.table.rows for cell in row]
    assert COPY in cells
    assert "+" not in "".join(cells)
    drawn = json.dumps([panel.spec for figure in figures for panel in figure.panels])
    assert small.id in drawn
    assert "+nvme" not in drawn
    first, second = headlines(report)
    assert first.case == small.id
    assert (second.tier, second.why) == ("nvme", "measured only beside a load")


def test_the_page_lists_what_the_loads_cost_and_opens_without_a_row_alone(report: Report) -> None:
    page = html.render(report)
    assert '<section id="interference">' in page
    assert "59 to 65" in page
    report.rows = report.rows[1:]
    page = html.render(report)
    assert "alone it is not in this report" in page
