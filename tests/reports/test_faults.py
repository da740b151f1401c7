"""What faults of a peer cost, from the evidence of chosen processes."""

from typing import Any

import pytest

from kvbench.measure.result import Report, State, decode_report, encode_report
from kvbench_reports.faults import costs
from tests.compare.samples import make_process, make_report, make_row

KILL = "peer.fault/kill/tcp/256KiB/4-12blocks/250ms/e5-h1000-f2500"
EVICT = "peer.fault/evict/tcp/256KiB/4-12blocks/250ms/e5-h1000-f2500"


def seen(**fields: Any) -> dict[str, Any]:
    return {
        "scripts": 2,
        "requests": 500,
        "requests_in_fault": 400,
        "whole_in_fault": 2,
        "unwhole_before": 0,
        "late": 1,
        "healthy_p50_s": 0.005,
        "lost_max_s": 0.25,
        "lost_p99_s": 0.003,
        "lost_total_s": 0.6,
        "local_healthy_p50_s": 0.001,
        "local_healthy_p99_s": 0.002,
        "local_fault_p50_s": 0.001,
        "local_fault_p99_s": 0.003,
        "breaker_open_s": [0.25, 0.1],
        "clean_s": [1.0, 1.5],
        "wrong_blocks": 0,
        "checked_blocks": 6000,
        "reasons": {"late": 12},
    } | fields


@pytest.fixture
def report() -> Report:
    rows = [make_row(KILL, [1e8, 1e8]), make_row(EVICT, [1e8])]
    worse = {"lost_max_s": 0.5, "lost_p99_s": 0.001, "late": 2, "local_fault_p50_s": 0.003}
    found = [[seen(), seen(**worse)], [seen(breaker_open_s=[], reasons={"gone": 24})]]
    for row, processes in zip(rows, found, strict=True):
        row.processes = [
            make_process(at, 1e8, path_evidence={"faults": each})
            for at, each in enumerate(processes)
        ]
    return make_report(rows, "s")


def test_the_worst_of_all_processes_is_told_and_counts_are_added_up(report: Report) -> None:
    kill, evict = costs(report)
    assert (kill.faults, kill.requests, kill.late) == (4, 800, 3)
    assert (kill.lost_max_s, kill.lost_p99_s) == (0.5, 0.003)
    assert kill.lost_text == "at most 500 ms, p99 3.00 ms"
    assert kill.breaker_text == "open 4 of 4 times, after at most 250 ms"
    assert kill.whole_text == "4 of 4 times, after at most 1.50 s"
    assert kill.local_text == "p50 2.00 x, p99 1.50 x"
    assert kill.wrong_text == "0 of 12,000"
    assert kill.reasons == {"late": 24}
    assert evict.breaker_text == "never open"


@pytest.mark.parametrize("state", [State.INVALID, State.FAILED])
def test_a_row_that_must_not_be_believed_is_not_in_the_section(
    report: Report, state: State
) -> None:
    report.rows[0].state = state
    assert [each.case for each in costs(report)] == [EVICT]


@pytest.mark.parametrize("evidence", [{}, {"faults": {"scripts": "many"}}, {"faults": None}])
def test_evidence_of_another_kind_makes_no_section(
    report: Report, evidence: dict[str, Any]
) -> None:
    for each in report.rows:
        each.processes = [make_process(0, 1e9, path_evidence=evidence)]
    assert costs(report) == []


def test_a_report_that_was_written_and_read_says_the_same(report: Report) -> None:
    again = decode_report(encode_report(report), "test")
    assert [each.sentence for each in costs(again)] == [each.sentence for each in costs(report)]
