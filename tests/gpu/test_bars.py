"""Every bar can fail, says why in one line, and fails for what it is meant to catch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvbench_kernels.bars import (
    BARS,
    GOLDEN,
    Finding,
    Golden,
    Verdict,
    golden_path,
    judge,
    judge_failed_build,
    read_golden,
    write_golden,
)
from kvbench_kernels.catalogue import variants
from kvbench_kernels.lint import judge_one
from kvbench_kernels.static import Accesses, Static, analyse
from kvbench_kernels.variant import CAPABILITIES, Variant, Work
from tests.gpu.contrived import COPY, computed, copied

NARROW = Accesses(loads={4: 16}, stores={4: 16}, bulk_copies=0)
# A copy as it ought to be: made up, so that one figure at a time can be spoilt.
GOOD = Static(
    variant="copy_contiguous",
    capability=90,
    triton="3.9.0",
    threads=128,
    accesses=Accesses(loads={16: 4}, stores={16: 4}, bulk_copies=0),
    registers=24,
    stack_bytes=0,
    local_bytes=0,
    local_accesses=0,
    shared_bytes=0,
    instructions=50,
    barriers=0,
    calls=0,
    has_loop=False,
    double_instructions=0,
    fused_instructions=0,
    magic_rounding=False,
    e4m3_casts=0,
    ahead_bytes=64,
    ctas_per_sm=16,
    occupancy=1.0,
    in_flight_bytes=128 * 1024,
    issue_ratio=0.05,
)
GOLD = Golden(
    variant="copy_contiguous", capability=90, triton="3.9.0", registers=24, instructions=50
)


def found(
    static: Static = GOOD,
    variant: Variant = COPY,
    golden: Golden | None = GOLD,
    unhinted: Accesses | None = NARROW,
) -> dict[str, Finding]:
    findings = judge(variant, static, golden=golden, unhinted=unhinted)
    assert [each.bar for each in findings] == list(BARS)
    assert not any("\n" in each.text for each in findings)
    return {each.bar: each for each in findings}


def failed(findings: Mapping[str, Finding]) -> list[str]:
    return [bar for bar, each in findings.items() if each.verdict is Verdict.FAIL]


def test_a_good_build_passes_every_bar() -> None:
    assert all(each.verdict is Verdict.PASS for each in found().values())


def wide(loads: int = 4, stores: int = 4, **narrow: int) -> Accesses:
    return Accesses(
        loads={16: loads} | ({4: narrow["loads_4"]} if narrow.get("loads_4") else {}),
        stores={16: stores} | ({4: narrow["stores_4"]} if narrow.get("stores_4") else {}),
        bulk_copies=0,
    )


@pytest.mark.parametrize(
    ("spoilt", "bars", "said"),
    [
        ({"accesses": NARROW}, ["S1", "S11"], "16 loads narrower than 16 B, 0 allowed"),
        ({"accesses": wide(loads_4=1)}, ["S1"], "1 loads narrower"),
        ({"accesses": wide(stores_4=1)}, ["S1"], "1 stores narrower"),
        ({"accesses": Accesses(loads={16: 4}, stores={}, bulk_copies=0)}, ["S1", "S11"], "no st"),
        ({"stack_bytes": 8}, ["S2"], "stack 8 B"),
        ({"local_bytes": 8}, ["S2"], "local 8 B"),
        ({"local_accesses": 1}, ["S2"], "1 local accesses"),
        ({"registers": 65}, ["S3", "S9"], "65 registers of 64"),
        ({"in_flight_bytes": 47 * 1024}, ["S4"], "47 KiB in flight an SM, at least 48"),
        ({"in_flight_bytes": 0}, ["S4"], "0 KiB"),
        ({"issue_ratio": 0.16}, ["S5"], "issue ratio 0.16 of 0.15"),
        ({"occupancy": 0.24}, ["S6"], "occupancy 24%, at least 25%"),
        ({"occupancy": 0.49, "in_flight_bytes": 0}, ["S4", "S6"], "0 KiB in flight"),
        ({"shared_bytes": 16385}, ["S7"], "16,385 B of shared memory of 16,384"),
        ({"barriers": 6}, ["S7"], "6 barriers of 5"),
        ({"double_instructions": 1}, ["S8"], "1 instructions on float64"),
        ({"calls": 1}, ["S8"], "1 calls"),
        ({"fused_instructions": 2, "magic_rounding": True}, ["S8"], "enable_fp_fusion=False"),
        ({"registers": 27}, ["S9"], "27 registers, golden 24"),
        ({"instructions": 56}, ["S9"], "56 instructions, golden 50: more than 10% apart"),
        ({"instructions": 44}, ["S9"], "44 instructions, golden 50: more than 10% apart"),
        ({"accesses": wide(loads=5)}, ["S11"], "loads 10,240 B of 8,192"),
        ({"accesses": wide(stores=3)}, ["S11"], "stores 6,144 B of 8,192"),
    ],
)
def test_one_spoilt_figure_fails_its_bar_alone(
    spoilt: dict[str, Any], bars: list[str], said: str
) -> None:
    findings = found(replace(GOOD, **spoilt))

    assert failed(findings) == bars
    assert said in findings[bars[0]].text


@pytest.mark.parametrize(
    "kept",
    [
        {"registers": 26},
        {"instructions": 55},
        {"instructions": 45},
        {"fused_instructions": 9},  # a multiply-add is no harm where nothing is rounded
        {"issue_ratio": 0.15},
        {"occupancy": 0.25},
        {"shared_bytes": 16384, "barriers": 5},
    ],
)
def test_figures_at_their_limits_pass(kept: dict[str, Any]) -> None:
    assert failed(found(replace(GOOD, **kept))) == []


def test_limits_are_those_of_the_work_and_of_the_architecture() -> None:
    busy = replace(GOOD, registers=96, issue_ratio=0.6, capability=90)
    channels = replace(GOOD, registers=128, issue_ratio=0.9)

    def bars(static: Static, work: Work) -> set[str]:
        return {*failed(found(static, replace(COPY, work=work)))} - {"S8", "S9"}

    assert bars(busy, Work.MOVE) == {"S3", "S5"}
    assert bars(busy, Work.INT8) == set()
    assert bars(replace(busy, issue_ratio=0.61), Work.INT8) == {"S5"}
    assert bars(replace(busy, capability=100, issue_ratio=0.9), Work.INT8) == set()
    assert bars(channels, Work.INT4) == {"S3"}
    assert bars(channels, Work.CHANNELS) == set()
    assert bars(replace(GOOD, in_flight_bytes=95 * 1024, capability=100), Work.MOVE) == {"S4"}
    assert bars(replace(GOOD, in_flight_bytes=32 * 1024, capability=80), Work.MOVE) == set()


def test_narrow_accesses_are_allowed_up_to_the_number_declared() -> None:
    two = replace(GOOD, accesses=wide(loads_4=2))

    assert failed(found(two, replace(COPY, narrow_loads=2))) == []
    assert failed(found(two, replace(COPY, narrow_loads=1))) == ["S1"]


def test_fp8_wants_the_instruction_where_there_is_one() -> None:
    hardware = replace(COPY, work=Work.HARDWARE_CAST)
    software = replace(COPY, work=Work.SOFTWARE_CAST)

    assert failed(found(GOOD, hardware)) == ["S8"]
    assert failed(found(replace(GOOD, e4m3_casts=4), hardware)) == []
    assert failed(found(GOOD, software)) == ["S8"]
    assert failed(found(replace(GOOD, capability=80), software)) == []


def test_what_no_byte_model_covers_is_not_checked_rather_than_passed() -> None:
    unknown = replace(COPY, payload_load_bytes=None, payload_store_bytes=None)
    findings = found(replace(GOOD, issue_ratio=None), unknown)

    assert findings["S5"].verdict is findings["S11"].verdict is Verdict.NOT_CHECKED
    assert failed(found(GOOD, replace(unknown, payload_store_bytes=1))) == ["S11"]


def test_a_golden_file_of_another_triton_is_not_compared() -> None:
    finding = found(replace(GOOD, registers=48, triton="3.10.0"))["S9"]

    assert finding.verdict is Verdict.NOT_CHECKED
    assert finding.text == "not compared: golden is of triton 3.9.0, this 3.10.0"


def test_a_build_without_a_golden_file_fails() -> None:
    finding = found(golden=None)["S9"]

    assert finding.verdict is Verdict.FAIL
    assert "--update-golden" in finding.text


def test_a_build_that_stays_wide_without_hints_shows_nothing_and_fails() -> None:
    assert failed(found(unhinted=GOOD.accesses)) == ["S10"]
    assert found(unhinted=None)["S10"].verdict is Verdict.NOT_CHECKED


def test_an_exemption_gives_its_reason_and_covers_its_own_bar_alone() -> None:
    exempt = replace(COPY, exempt={"S4": "it is one launch of 30 bytes"})
    findings = found(replace(GOOD, in_flight_bytes=0, stack_bytes=4), exempt)

    assert failed(findings) == ["S2"]
    assert findings["S4"].verdict is Verdict.EXEMPT
    assert findings["S4"].text == "0 KiB in flight an SM, at least 48 wanted"
    assert findings["S4"].reason == "it is one launch of 30 bytes"
    assert failed(found(GOOD, exempt)) == []


def test_an_exemption_of_one_architecture_must_be_needed_there() -> None:
    exempt = replace(COPY, exempt={"S4.sm_90": "a reason", "S5.sm_100": "another"})

    assert found(replace(GOOD, in_flight_bytes=0), exempt)["S4"].verdict is Verdict.EXEMPT
    assert failed(found(replace(GOOD, issue_ratio=0.2, in_flight_bytes=0), exempt)) == ["S5"]
    finding = found(GOOD, exempt)["S4"]
    assert finding.verdict is Verdict.FAIL
    assert "take the exemption S4.sm_90 out" in finding.text


def test_a_variant_that_does_not_compile_fails_s12_alone() -> None:
    findings = judge_failed_build("no such type")

    assert [each.bar for each in findings] == list(BARS)
    assert failed({each.bar: each for each in findings}) == ["S12"]


def test_a_golden_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_golden(GOOD, tmp_path)

    assert read_golden("copy_contiguous", 90, tmp_path) == GOLD
    assert read_golden("copy_contiguous", 80, tmp_path) is None


def test_a_golden_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = golden_path("copy_contiguous", 90, tmp_path)
    path.parent.mkdir()
    for text in ("{", "[1]", '{"registers": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"copy_contiguous\.json of sm_90 is no golden file"):
            read_golden("copy_contiguous", 90, tmp_path)


def test_a_build_of_a_real_kernel_is_judged_as_it_compiled() -> None:
    judged = judge_one(COPY, 90)

    assert judged.bars(Verdict.FAIL) == ()
    assert judged.bars(Verdict.PASS) == tuple(BARS)  # S10 among them: without hints S1 fails


def test_a_tile_that_is_too_large_fails_registers_and_occupancy() -> None:
    large = copied(16384)
    findings = found(analyse(large, 90), large)

    assert {"S3", "S6"} <= {*failed(findings)}


def test_a_wrong_byte_model_fails() -> None:
    wrong = replace(COPY, payload_load_bytes=9000)
    assert failed(found(GOOD, wrong)) == ["S11"]


@pytest.mark.parametrize("how", ["double", "exact division", "fused rounding"])
def test_arithmetic_that_costs_or_rounds_otherwise_fails(how: str) -> None:
    variant = computed(how)
    assert "S8" in failed(found(analyse(variant, 90), variant))


def test_every_name_in_the_catalogue_is_one_variant_and_every_exemption_one_bar() -> None:
    names = [variant.name for variant in variants()]
    exempt = {bar for variant in variants() for bar in variant.exempt}
    known = {f"{bar}{arch}" for bar in BARS for arch in ("", *(f".sm_{c}" for c in CAPABILITIES))}

    assert len(names) == len({*names})
    assert exempt <= known


def test_every_build_has_a_golden_file_and_no_file_is_left_over() -> None:
    builds = {
        golden_path(variant.name, capability)
        for variant in variants()
        for capability in variant.capabilities
    }
    files = {*GOLDEN.glob("*/*")}

    assert builds - files == set(), "write them with: kvbench lint --update-golden"
    assert files - builds == set(), "delete them: no such variant"
