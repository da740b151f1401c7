"""Interleaved A/B: what both sides share, what differs, and what a failure on one side does."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure import worker
from kvbench.measure.pairs import PairedSession, PairFinished, Stopping, half_width_of, orders
from kvbench.measure.result import IMPRECISE, Report, Row, State, read_report, write_report
from kvbench.measure.runner import CaseFinished, ProcessStarted, Progress, Setting
from kvbench.measure.side import Side
from kvbench.measure.simulated import Device, Profile, load_profile
from kvbench.measure.suite import Case, sweep
from kvbench.measure.worker import Failure
from kvbench.units import KIB, MIB
from kvbench_suites.dram import COPY
from kvbench_suites.nvme import READ, WRITE
from tests.conftest import QUICK

CASES = sweep(COPY, block_bytes=(1 * MIB, 2 * MIB), threads=1)
CASE = CASES[0]
HERE = Side(name="env:", python=sys.executable)
PROCESSES = 2
ALL_PAIRS = Stopping(half_width=0)


@pytest.fixture
def steady(llama: KVGeometry) -> Setting:
    plan = replace(QUICK, processes=PROCESSES)
    profile = load_profile("steady")
    return Setting(geometry=llama, machine=Machine(), plan=plan, profile=profile, side=HERE)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "base.json", tmp_path / "new.json"


def paired(
    base: Setting,
    new: Setting | None = None,
    cases: list[Case] = CASES,
    stopping: Stopping = ALL_PAIRS,
) -> PairedSession:
    command = ("ab", "env:", "env:", "mine.toml")
    return PairedSession("mine", cases, (base, new or base), command, stopping)


def rows_of(session: PairedSession, case: Case = CASE) -> tuple[Row, Row]:
    base, new = (
        next(row for row in report.rows if row.id == case.id)
        for report in (session.base, session.new)
    )
    return base, new


# ---------------------------------------------------------------- the order


@pytest.mark.parametrize("processes", [1, 2, 5, 10, 11])
def test_each_side_goes_first_as_often_as_the_other(processes: int) -> None:
    for seed in range(20):
        drawn = orders(processes, seed, CASE.id)
        assert len(drawn) == processes
        assert set(drawn) <= {"AB", "BA"}
        assert abs(drawn.count("AB") - drawn.count("BA")) <= 1


def test_sides_are_balanced_wherever_the_blocks_end() -> None:
    for seed in range(20):
        drawn = orders(30, seed, CASE.id)
        for end in range(1, 31):
            part = drawn[:end]
            assert abs(part.count("AB") - part.count("BA")) <= 1


def test_the_order_is_drawn_from_the_seed_for_each_case() -> None:
    drawn = {tuple(orders(10, seed, case.id)) for seed in range(50) for case in CASES}
    assert len(drawn) > 25, "of 32 that are balanced in every two blocks"
    assert orders(10, 7, CASE.id) == orders(10, 7, CASE.id)
    assert {orders(1, seed, CASE.id)[0] for seed in range(20)} == {"AB", "BA"}


def test_the_processes_of_a_block_run_side_by_side_in_the_order_that_is_recorded(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    processes = 5
    plan = replace(steady.plan, processes=processes)
    session = paired(replace(steady, plan=plan), cases=[CASE])
    events = list(session.run(*paths))
    started = [event for event in events if isinstance(event, ProcessStarted)]
    assert [event.process for event in started] == list(range(2 * processes))
    assert {event.processes for event in started} == {2 * processes}
    drawn = orders(processes, steady.seed, CASE.id)
    assert [event.side for event in started] == list("".join(drawn))
    assert {event.side for event in events if isinstance(event, Progress)} == {"A", "B"}
    for row in rows_of(session):
        assert [each.block for each in row.processes] == list(range(processes))
        assert [each.process for each in row.processes] == list(range(processes))
        assert [each.order for each in row.processes] == drawn


def test_one_case_is_one_finished_event_with_both_rows(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    session = paired(steady)
    finished = [event for event in session.run(*paths) if isinstance(event, CaseFinished)]
    assert [event.case for event in finished] == CASES
    for event in finished:
        assert isinstance(event, PairFinished)
        assert (event.base, event.row) == rows_of(session, event.case)


# ---------------------------------------------------------------- when pairs are enough


def pairs_of(session: PairedSession) -> int:
    base, new = rows_of(session)
    assert len(base.processes) == len(new.processes)
    return len(base.processes)


def with_pairs(setting: Setting, most: int, profile: str = "noisy") -> Setting:
    plan = replace(setting.plan, processes=most)
    return replace(setting, plan=plan, profile=load_profile(profile))


def test_pairs_end_as_soon_as_the_ratio_is_known_and_not_before(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    stopping = Stopping(half_width=0.05, least=3)
    session = paired(with_pairs(steady, 30), cases=[CASE], stopping=stopping)
    list(session.run(*paths))
    base, new = rows_of(session)
    pairs = pairs_of(session)
    assert 3 <= pairs < 30
    assert half_width_of(base.processes, new.processes) <= 0.05
    assert pairs == 3 or half_width_of(base.processes[:-1], new.processes[:-1]) > 0.05
    assert IMPRECISE not in {each.code for each in (*base.warnings, *new.warnings)}


def test_a_difference_between_the_sides_does_not_change_when_pairs_end(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    setting = with_pairs(steady, 30)
    counts: list[int] = []
    for slowed in (setting, replace(setting, inject={"dram.*": 0.5})):
        session = paired(setting, slowed, [CASE], Stopping(half_width=0.05, least=3))
        list(session.run(*paths))
        counts.append(pairs_of(session))
    assert counts[0] == counts[1]


def test_pairs_that_do_not_suffice_say_so_on_both_rows(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    session = paired(with_pairs(steady, 3), cases=[CASE], stopping=Stopping(half_width=1e-6))
    list(session.run(*paths))
    for row in rows_of(session):
        (caution,) = [each for each in row.warnings if each.code == IMPRECISE]
        assert caution.message.startswith("3 pairs know B/A to ±")
        assert "no more were asked for (--processes)" in caution.message


def test_precision_nought_runs_all_pairs_and_complains_of_nothing(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    setting = with_pairs(steady, 9, "steady")
    session = paired(setting, cases=[CASE], stopping=Stopping(half_width=0.0, least=2))
    list(session.run(*paths))
    assert pairs_of(session) == 9
    assert not rows_of(session)[0].warnings


def test_when_time_is_up_each_case_still_gets_the_least_pairs(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    stopping = Stopping(half_width=1e-6, least=2, budget_s=0.0)
    session = paired(with_pairs(steady, 8), stopping=stopping)
    list(session.run(*paths))
    for case in CASES:
        base, _ = rows_of(session, case)
        assert len(base.processes) == 2
        assert any("time was up (--time-budget)" in each.message for each in base.warnings)


# ---------------------------------------------------------------- the reports


def test_both_reports_are_of_one_session_and_name_their_sides(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    other = Side(name="env:KVT_A=1", python=sys.executable, environ={"KVT_A": "1"})
    session = paired(steady, replace(steady, side=other, inject={"dram.*": 0.08}))
    list(session.run(*paths))
    base, new = (read_report(path) for path in paths)
    assert base.session_id == new.session_id
    assert (base.side, new.side) == ("env:", "env:KVT_A=1")
    assert (base.inject, new.inject) == ({}, {"dram.*": 0.08})
    assert base.plan == new.plan
    assert None not in {base.finished_at, new.finished_at}
    assert [row.id for row in base.rows] == [row.id for row in new.rows] == [c.id for c in CASES]


def test_only_the_new_side_is_slowed(steady: Setting, paths: tuple[Path, Path]) -> None:
    session = paired(steady, replace(steady, inject={"dram.*": 0.08}))
    list(session.run(*paths))
    for case in CASES:
        base, new = rows_of(session, case)
        assert base.bytes_per_s is not None
        assert new.bytes_per_s == pytest.approx(base.bytes_per_s / 1.08, rel=1e-6)
        assert [caution.code for caution in base.warnings] == []
        assert [caution.code for caution in new.warnings] == ["injected"]
    with pytest.raises(ValueError, match="only the second side"):
        paired(replace(steady, inject={"dram.*": 0.08}), steady)


def test_simulated_devices_have_other_luck_on_each_side(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    # Were it the same, a paired test would see no noise at all and call any difference certain.
    session = paired(replace(steady, profile=load_profile("noisy")), cases=[CASE])
    list(session.run(*paths))
    base, new = ([each.bytes_per_s for each in row.processes] for row in rows_of(session))
    assert len(set(base + new)) == 2 * PROCESSES


def test_both_reports_are_on_disk_after_each_case(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    seen = [
        tuple(len(read_report(path).rows) for path in paths)
        for event in paired(steady).run(*paths)
        if isinstance(event, CaseFinished)
    ]
    assert seen == [(1, 1), (2, 2)]


def test_reports_that_stood_there_are_kept_beside_the_new_ones(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    first = paired(steady, cases=[CASE])
    list(first.run(*paths))
    list(paired(steady, cases=[CASE]).run(*paths))
    for path in paths:
        previous = path.with_name(f"{path.stem}.previous.json")
        assert read_report(previous).session_id == first.base.session_id


def test_one_file_for_both_sides_is_refused(steady: Setting, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "one.json")
    with pytest.raises(UsageError, match="name two files"):
        list(paired(steady).run(tmp_path / "one.json", tmp_path / "link.json"))
    assert not (tmp_path / "one.json").exists()


# ---------------------------------------------------------------- real workers, real files


@pytest.mark.usefixtures("drive")
def test_both_sides_read_the_same_data_file_and_find_it_right(
    setting: Setting, paths: tuple[Path, Path], tmp_path: Path
) -> None:
    # Each checks what it read against the data of its seed, so both had the same one.
    plan = replace(QUICK, processes=2)
    case = READ.case({"block_bytes": 64 * KIB, "queue_depth": 4})
    session = paired(replace(setting, plan=plan, scratch=None), cases=[case])
    session.use(tmp_path)
    files: set[tuple[int, int]] = set()
    for event in session.run(*paths):
        if isinstance(event, ProcessStarted) and (tmp_path / "read.dat").exists():
            stat = (tmp_path / "read.dat").stat()
            files.add((stat.st_ino, stat.st_mtime_ns))
    assert len(files) == 1
    for row in rows_of(session, case):
        assert row.state is State.OK, row.reason
        assert all(each.verified_bytes for each in row.processes)


@pytest.mark.usefixtures("drive")
def test_a_write_that_the_second_side_lost_is_not_vouched_for_by_the_first(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = WRITE.case({"block_bytes": 256 * KIB, "queue_depth": 4})
    assignment = worker.Assignment(
        body=case.operation.body,
        stream=True,
        traffic_per_payload=1.0,
        params=dict(case.params),
        plan=setting.plan,
        geometry=setting.geometry,
        machine=setting.machine,
        seed=setting.seed,
        process=0,
        scratch=str(setting.scratch),
    )
    # Slow, so that both stay in their first pass over the file, and the second covers less of it.
    real_write = os.pwritev

    def slow_write(fd: int, buffers: Any, offset: int) -> int:
        time.sleep(0.03)
        return real_write(fd, buffers, offset)

    def lost_write(_fd: int, buffers: Any, _offset: int) -> int:
        time.sleep(0.06)
        return len(buffers[0])

    monkeypatch.setattr(os, "pwritev", slow_write)
    assert isinstance(worker.run(assignment, lambda _message: None), worker.Result)
    monkeypatch.setattr(os, "pwritev", lost_write)
    second = msgspec.structs.replace(assignment, half=1)
    found = worker.run(second, lambda _message: None)
    assert isinstance(found, Failure)
    assert found.code == "corrupt_data"


# ---------------------------------------------------------------- a side that fails


def failing(tmp_path: Path, good: int) -> Side:
    """An interpreter that runs so many workers and then no more."""
    script, count = tmp_path / "python", tmp_path / "count"
    script.write_text(
        f"#!/bin/sh\necho x >> {count}\n"
        f'[ "$(wc -l < {count})" -le {good} ] || {{ echo "no more of this" >&2; exit 9; }}\n'
        f'exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return Side(name="python:failing", python=str(script))


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_side_that_fails_fails_the_row_of_both_and_the_other_says_whose_fault_it_was(
    steady: Setting, paths: tuple[Path, Path], tmp_path: Path, letter: str
) -> None:
    bad_setting = replace(steady, side=failing(tmp_path, good=0))
    settings = (bad_setting, steady) if letter == "A" else (steady, bad_setting)
    session = paired(*settings, [CASE])
    started = [event for event in session.run(*paths) if isinstance(event, ProcessStarted)]
    bad, good = rows_of(session)[:: 1 if letter == "A" else -1]
    assert (bad.state, bad.reason_code) == (State.FAILED, "worker_crashed")
    assert bad.reason is not None
    assert bad.reason.endswith("no more of this")
    assert (good.state, good.reason_code) == (State.FAILED, "other_side")
    assert good.reason is not None
    assert good.reason.startswith(f"side {letter} (python:failing) has no result")
    assert bad.bytes_per_s is good.bytes_per_s is None
    assert len(good.processes) == len(started) - 1, "what was seen stays as evidence"
    assert len(started) <= 2, "no process is spent on a case that is lost"
    assert session.measured == 0
    assert session.pending == [], "tried, and the reports say so"


def test_a_side_whose_processes_had_all_run_keeps_its_figure(
    steady: Setting, paths: tuple[Path, Path], tmp_path: Path
) -> None:
    seed = next(s for s in range(50) if orders(PROCESSES, s, CASE.id)[-1] == "AB")
    base_setting = replace(steady, seed=seed)
    new_setting = replace(base_setting, side=failing(tmp_path, good=PROCESSES - 1))
    session = paired(base_setting, new_setting, [CASE])
    list(session.run(*paths))
    base, new = rows_of(session)
    assert (base.state, len(base.processes)) == (State.SIMULATED, PROCESSES)
    assert (new.state, len(new.processes)) == (State.FAILED, PROCESSES - 1)


def test_a_case_that_this_machine_cannot_run_is_skipped_on_both_sides(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    drive_only = Profile(
        name="drive", devices={"nvme": Device(bandwidth_bytes_per_s=1e9, latency_s=0)}
    )
    session = paired(replace(steady, profile=drive_only), cases=[CASE])
    assert not any(isinstance(event, ProcessStarted) for event in session.run(*paths))
    assert [row.state for row in rows_of(session)] == [State.SKIPPED, State.SKIPPED]
    half = paired(steady, replace(steady, profile=drive_only), [CASE])
    list(half.run(*paths))
    base, new = rows_of(half)
    assert (base.reason_code, new.state) == ("other_side", State.SKIPPED)


# ---------------------------------------------------------------- interruption and resuming


def interrupted(session: PairedSession, paths: tuple[Path, Path]) -> None:
    """Stopped in the middle of the second case."""
    for event in session.run(*paths):  # left half-way, as an exception would leave it
        if isinstance(event, ProcessStarted) and event.case == CASES[1] and event.process == 3:
            break


def test_an_interruption_keeps_whole_cases_and_resuming_measures_only_the_rest(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    first = paired(replace(steady, seed=5))
    interrupted(first, paths)
    assert [[row.id for row in read_report(path).rows] for path in paths] == [[CASE.id]] * 2
    assert read_report(paths[0]).finished_at is None
    again = paired(replace(steady, seed=99))
    assert again.resume(*paths) == 1
    assert again.pending == CASES[1:]
    started = [event for event in again.run(*paths) if isinstance(event, ProcessStarted)]
    assert {event.case.id for event in started} == {CASES[1].id}
    base, new = (read_report(path) for path in paths)
    assert base.session_id == new.session_id == first.base.session_id
    assert base.finished_at is not None
    assert [len(base.rows), len(new.rows)] == [2, 2]
    assert [each.order for each in base.rows[1].processes] == orders(PROCESSES, 5, CASES[1].id)


def rewrite(path: Path, **changes: object) -> Report:
    report = read_report(path)
    for name, value in changes.items():
        setattr(report, name, value)
    write_report(report, path)
    return report


def test_a_case_that_one_report_lacks_is_measured_again_on_both_sides(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    list(paired(steady).run(*paths))
    rewrite(paths[1], rows=read_report(paths[1]).rows[:1], finished_at=None)
    again = paired(steady)
    assert again.resume(*paths) == 1
    list(again.run(*paths))
    for path in paths:
        assert [row.id for row in read_report(path).rows] == [case.id for case in CASES]
    base, new = rows_of(again, CASES[1])
    assert base.elapsed_s == new.elapsed_s, "of the same turns"


def test_two_reports_that_do_not_belong_together_are_not_resumed(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    list(paired(steady, cases=[CASE]).run(*paths))
    rewrite(paths[1], session_id="another")
    with pytest.raises(UsageError, match="are not of one session"):
        paired(steady, cases=[CASE]).resume(*paths)


def test_another_injection_or_side_is_not_resumed(
    steady: Setting, paths: tuple[Path, Path]
) -> None:
    list(paired(steady, cases=[CASE]).run(*paths))
    with pytest.raises(UsageError, match="its --inject differs"):
        paired(steady, replace(steady, inject={"dram.*": 0.08}), [CASE]).resume(*paths)
    other = Side(name="env:KVT_A=1", python=sys.executable)
    with pytest.raises(UsageError, match="its side differs"):
        paired(steady, replace(steady, side=other), [CASE]).resume(*paths)
