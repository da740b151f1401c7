"""How a replayed trace was served, from the evidence of chosen processes."""

from typing import Any

import pytest

from kvbench.measure.result import Latency, Report, Row, State, decode_report, encode_report
from kvbench_reports import FORMATS, markdown
from kvbench_reports.served import served
from tests.compare.samples import make_process, make_report, make_row
from tests.reports.test_golden import compare
from tests.reports.test_markdown import check_shape
from tests.reports.test_table import printed

MEMORY = "dram.replay/synthetic-300/lru/dram96/256KiB/qd1"
DRIVE = "nvme.replay/synthetic-300/lru/dram64-nvme384-all/256KiB/x40-qd4"


def moved(**counts: int) -> dict[str, int]:
    names = ("evictions", "queue_drops", "refused_admission", "demotions", "promotions", "written")
    return dict.fromkeys(names, 0) | counts


def counts(**fields: Any) -> dict[str, Any]:
    """One pass of 1000 blocks, 400 hit in memory and 100 on the drive."""
    return {
        "passes": 1,
        "pass_requests": 300,
        "requests": 300,
        "hit_requests": 299,
        "blocks": 1000,
        "tokens": 500_000,
        "hit_blocks": {"dram": 400, "nvme": 100},
        "hit_tokens": 255_500,
        "late_blocks": 0,
        "refused_blocks": 0,
        "unstored_blocks": 0,
        "block_bytes": 262_144,
        "moved": {"dram": moved(evictions=500), "nvme": moved(evictions=300, written=400)},
    } | fields


def row(case: str, *processes: dict[str, Any]) -> Row:
    made = make_row(case, [1.25e9] * len(processes))
    made.processes = [
        make_process(at, 1.25e9, path_evidence={"replay": each})
        for at, each in enumerate(processes)
    ]
    made.latency_s = Latency(count=900, effective_count=300.0, p50=2.5e-3, p99=31e-3)
    return made


@pytest.fixture
def report() -> Report:
    in_memory = {"hit_blocks": {"dram": 250}, "moved": {"dram": moved(evictions=750)}}
    late = {"late_blocks": 7, "refused_blocks": 1, "unstored_blocks": 12}
    cut = {"passes": 0, "requests": 120, "blocks": 600, "tokens": 300_000}
    drops = {"dram": moved(), "nvme": moved(queue_drops=3, refused_admission=1234)}
    return make_report(
        [
            row(MEMORY, counts(**in_memory), counts(**in_memory), counts(**in_memory)),
            row(DRIVE, counts(), counts(**late), counts(**cut, moved=drops)),
        ],
        "s",
    )


def test_hits_of_all_processes_are_added_up_and_divided_by_tier(report: Report) -> None:
    memory, drive = served(report)
    assert memory.hit_blocks == pytest.approx(0.25)
    assert memory.by_tier == {"dram": pytest.approx(0.25)}
    assert drive.hit_blocks == pytest.approx(1500 / 2600)
    assert drive.by_tier == {
        "dram": pytest.approx(1200 / 2600),
        "nvme": pytest.approx(300 / 2600),
    }
    assert drive.hit_tokens == pytest.approx(3 * 255_500 / 1_300_000)
    assert drive.written_bytes == 800 * 262_144
    assert memory.written_bytes is None


def test_table_and_markdown_are_as_they_were(report: Report) -> None:
    compare("served_100.txt", printed(report, 100))
    compare("served.md", markdown.render(report))
    check_shape(report)


def test_a_replay_that_made_no_whole_pass_says_so(report: Report) -> None:
    _, drive = served(report)
    assert "only 120 of 300 requests in a process" in drive.extent
    assert "longer --time-limit" in drive.extent


@pytest.mark.parametrize("state", [State.INVALID, State.FAILED])
def test_a_row_that_must_not_be_believed_is_not_in_the_section(
    report: Report, state: State
) -> None:
    report.rows[0].state = state
    assert [each.case for each in served(report)] == [DRIVE]


@pytest.mark.parametrize("evidence", [{}, {"replay": {"blocks": "many"}}, {"replay": None}])
@pytest.mark.parametrize("form", ["table", "markdown"])
def test_evidence_of_another_kind_makes_no_section(
    report: Report, evidence: dict[str, Any], form: str
) -> None:
    for each in report.rows:
        each.processes = [make_process(0, 1e9, path_evidence=evidence)]
    assert "how the trace was served" not in FORMATS[form](report)


def test_a_report_that_was_written_and_read_says_the_same(report: Report) -> None:
    again = decode_report(encode_report(report), "test")
    assert [each.sentence for each in served(again)] == [each.sentence for each in served(report)]
