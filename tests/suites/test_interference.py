"""The suite of pairs: what is measured beside what, and alone before it."""

from dataclasses import replace

import pytest

from kvbench.geometry import KVGeometry, load_geometry
from kvbench.geometry.presets import presets
from kvbench.measure.suite import Case
from kvbench_suites import interference, nvme
from tests.suites.test_shipped import MACHINES, each_machine


def pairs(cases: list[Case]) -> set[tuple[str, str]]:
    return {(_words(case), _words(case.beside)) for case in cases if case.beside is not None}


def _words(case: Case) -> str:
    """Operation and what distinguishes it here."""
    word = case.params.get("direction") or (
        case.params["engine"] if case.operation.name == "hbm.copy" else ""
    )
    return f"{case.operation.name} {word}".strip()


def test_tiers_that_share_something_are_paired(llama: KVGeometry) -> None:
    cases = list(interference.SUITE.build(llama, MACHINES["one GPU"]))
    assert pairs(cases) == {
        ("dram.copy", "nvme.read"),
        ("dram.copy", "nvme.write"),
        ("dram.copy", "hbm.transfer h2d"),
        ("nvme.read", "dram.copy"),
        ("nvme.read", "hbm.transfer h2d"),
        ("hbm.copy triton", "hbm.transfer h2d"),
        ("hbm.copy triton", "hbm.transfer d2h"),
        ("hbm.copy memcpy", "hbm.transfer h2d"),
        ("hbm.copy memcpy", "hbm.transfer d2h"),
        ("hbm.transfer h2d", "hbm.transfer d2h"),
        ("hbm.transfer h2d", "hbm.copy triton"),
    }
    assert len(cases) == 16


@each_machine
def test_every_case_stands_alone_before_it_stands_beside_a_load(
    name: str, llama: KVGeometry
) -> None:
    seen: set[str] = set()
    for case in interference.SUITE.build(llama, MACHINES[name]):
        if case.beside is not None:
            assert replace(case, beside=None).id in seen
        seen.add(case.id)


@pytest.mark.parametrize("name", presets())
def test_the_blocks_are_those_of_the_model(name: str) -> None:
    geometry = load_geometry(name)
    for case in interference.SUITE.build(geometry, MACHINES["one GPU"]):
        for each in (case, case.beside):
            if each is None:
                continue
            on_drive = each.operation.tier == "nvme"
            size = geometry.block_bytes
            assert each.params["block_bytes"] == (nvme.whole_sectors(size) if on_drive else size)


def test_without_a_gpu_only_what_needs_none_can_run(llama: KVGeometry) -> None:
    machine = MACHINES["no GPU"]
    cases = list(interference.SUITE.build(llama, machine))
    assert pairs([case for case in cases if case.unmet(machine) is None]) == {
        ("dram.copy", "nvme.read"),
        ("dram.copy", "nvme.write"),
        ("nvme.read", "dram.copy"),
    }
    lacking = {case.unmet(machine) for case in cases if case.beside and case.unmet(machine)}
    assert lacking == {
        "no CUDA device: NVML: Driver Not Loaded",
        "its load cannot run: no CUDA device: NVML: Driver Not Loaded",
    }


@each_machine
def test_the_copy_leaves_a_core_to_the_lanes_of_a_drive(name: str, llama: KVGeometry) -> None:
    machine = MACHINES[name]
    cores = machine.cpu.affinity_cores or 1
    threads = {
        each.params["threads"]
        for case in interference.SUITE.build(llama, machine)
        for each in (case, case.beside)
        if each is not None and each.operation.tier == "dram"
    }
    assert threads == {max(1, cores - 1)}
