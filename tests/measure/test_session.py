import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import read_report
from kvbench.measure.runner import CaseFinished, Setting
from kvbench.measure.session import Session, select
from kvbench.measure.simulated import Device, Profile, load_profile
from kvbench.measure.suite import Case, sweep
from kvbench_suites.dram import COPY
from tests.conftest import QUICK

CASES = sweep(COPY, block_bytes=(2**20, 2**21, 2**22), threads=1)


def session(llama: KVGeometry, cases: list[Case], *command: str) -> Session:
    profile = load_profile("noisy")
    setting = Setting(geometry=llama, machine=Machine(), plan=QUICK, profile=profile)
    return Session("mine", cases, setting, command)


def test_the_report_is_on_disk_after_each_case(llama: KVGeometry, tmp_path: Path) -> None:
    running = session(llama, CASES)
    path = tmp_path / "r.json"
    seen = [
        len(read_report(path).rows)
        for event in running.run(path)
        if isinstance(event, CaseFinished)
    ]
    assert seen == [1, 2, 3]
    assert read_report(path).finished_at is not None


def test_a_fix_is_a_command_that_can_be_pasted(llama: KVGeometry, tmp_path: Path) -> None:
    profile = Profile(
        name="wild",
        devices={"dram": Device(bandwidth_bytes_per_s=1e10, latency_s=0.0, process_sd=1.0)},
    )
    plan = replace(QUICK, processes=2)
    setting = Setting(geometry=llama, machine=Machine(), plan=plan, profile=profile)
    command = ("run", "mine.toml", "--dir", "/mnt/a drive")
    running = Session("mine", CASES[:1], setting, command)
    list(running.run(tmp_path / "r.json"))
    (wide,) = running.report.rows[0].warnings
    assert wide.code == "wide_interval"
    assert wide.fix == "kvbench run mine.toml --dir '/mnt/a drive' --processes 10"


def test_two_cases_of_one_name_are_refused(llama: KVGeometry) -> None:
    with pytest.raises(UsageError, match=r"names dram.copy/pageable/1MiB/t1 twice"):
        session(llama, [CASES[0], CASES[0]])


def test_globs_select_by_id_in_the_order_of_the_suite() -> None:
    assert select(CASES, ["*/4MiB/*", "*/1MiB/*"]) == [CASES[0], CASES[2]]
    assert select(CASES, []) == CASES
    with pytest.raises(UsageError, match="--only 'nvme\\*' matches no case; there are 3"):
        select(CASES, ["*/1MiB/*", "nvme*"])


def slowed(llama: KVGeometry, inject: dict[str, float]) -> Session:
    setting = Setting(
        geometry=llama,
        machine=Machine(),
        plan=QUICK,
        profile=load_profile("steady"),
        inject=inject,
    )
    return Session("mine", CASES, setting, ())


def test_a_report_says_what_was_slowed_on_purpose(llama: KVGeometry, tmp_path: Path) -> None:
    running = slowed(llama, {"dram.copy/*/1MiB/*": 0.08})
    list(running.run(tmp_path / "r.json"))
    report = read_report(tmp_path / "r.json")
    assert report.inject == {"dram.copy/*/1MiB/*": 0.08}
    codes = [[caution.code for caution in row.warnings] for row in report.rows]
    assert codes == [["injected"], [], []]
    assert [row.processes[0].inject for row in report.rows] == [0.08, 0.0, 0.0]


def test_an_injection_that_would_slow_nothing_is_refused_before_measuring(
    llama: KVGeometry,
) -> None:
    with pytest.raises(UsageError, match=r"--inject 'nvme\.\*=\+8 %' matches no case"):
        slowed(llama, {"nvme.*": 0.08})


def test_a_run_with_another_injection_is_not_resumed(llama: KVGeometry, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    list(slowed(llama, {"dram.*": 0.08}).run(path))
    assert slowed(llama, {"dram.*": 0.08}).resume(path) == 3
    others: list[dict[str, float]] = [{}, {"dram.*": 0.09}, {"dram.copy/*": 0.08}]
    for other in others:
        with pytest.raises(UsageError, match="its --inject differs"):
            slowed(llama, other).resume(path)


def test_fields_of_a_newer_kvbench_survive_resuming_row_by_row(
    llama: KVGeometry, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    list(session(llama, CASES).run(path))
    raw = json.loads(path.read_text())
    for row in raw["rows"]:
        row["from_the_future"] = row["id"]
    raw["rows"][0]["state"] = "failed"  # so it is measured again, and comes last
    path.write_text(json.dumps(raw))
    again = session(llama, CASES)
    assert again.resume(path) == 2
    list(again.run(path))
    after = {row["id"]: row.get("from_the_future") for row in json.loads(path.read_text())["rows"]}
    assert after == {CASES[1].id: CASES[1].id, CASES[2].id: CASES[2].id, CASES[0].id: None}
