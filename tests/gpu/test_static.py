"""What the kernels compile to, for GPUs that need not be here, and that the reading is right."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import triton
import triton.language as tl

from kvbench_kernels import gather, pointers
from kvbench_kernels.copy import TILE_WORDS
from kvbench_kernels.static import (
    GPUS,
    BuildError,
    Static,
    accesses_without_hints,
    analyse,
    ctas_per_sm,
    read_accesses,
)
from kvbench_kernels.variant import CAPABILITIES, Variant
from tests.gpu.contrived import COPY, computed, copied, walked

WIDE = TILE_WORDS * 4 // 16 // 128  # of one of 128 threads, for its share of the tile
GATHER, SCATTER = gather.VARIANTS
# Beside what ships: numbers as the other integers that a launch may pass.
BUILDS = {
    "copy": (COPY, {}),
    "copy of less than 32 GiB": (replace(COPY, types={**COPY.types, "units": "i32"}), {}),
    "gather": (GATHER, {4: 1}),  # its page's id
    "gather by int64 ids": (replace(GATHER, types={**GATHER.types, "ids": "*i64"}), {8: 1}),
    "scatter": (SCATTER, {4: 1}),
    "scatter by int64 ids": (replace(SCATTER, types={**SCATTER.types, "ids": "*i64"}), {8: 1}),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", BUILDS)
def test_payload_moves_16_bytes_at_a_time_and_nothing_is_kept_in_local_memory(
    name: str, capability: int
) -> None:
    variant, narrow_loads = BUILDS[name]
    static = analyse(variant, capability)

    assert static.accesses.loads == {16: WIDE, **narrow_loads}
    assert static.accesses.stores == {16: WIDE}
    assert (static.stack_bytes, static.local_bytes, static.local_accesses) == (0, 0, 0)
    assert static.registers <= 32, "32 registers leave room for all 2048 threads of an SM"
    assert static.in_flight_bytes == 2048 * WIDE * 16
    assert static.occupancy == 1.0


@pytest.mark.parametrize("variant", [COPY, GATHER, SCATTER], ids=lambda each: each.name)
def test_without_hints_every_access_to_the_payload_is_narrow(variant: Variant) -> None:
    accesses = accesses_without_hints(variant, 90)

    assert accesses.loads == {4: TILE_WORDS // 128 + variant.narrow_loads}
    assert accesses.stores == {4: TILE_WORDS // 128}


def test_without_hints_addresses_out_of_a_table_are_narrow_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # nothing out of an earlier build
    # Their alignment is stated in the kernel, not seen by the launch.
    by_table = next(each for each in pointers.VARIANTS if each.name == "gather_layers")

    assert 16 in analyse(by_table, 90).accesses.loads
    assert 16 not in accesses_without_hints(by_table, 90).loads


def test_builds_without_hints_stay_out_of_the_cache_that_launches_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    accesses_without_hints(COPY, 90)

    assert [each.name for each in tmp_path.iterdir()] == ["kvbench-without-hints"]
    assert tl.multiple_of is tl.core.multiple_of
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path)


def test_accesses_of_every_form_are_counted_by_their_width() -> None:
    accesses = read_accesses("""
        @%p1 ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 ], %rd9;
        ld.relaxed.gpu.global.b64 %rd2, [%rd3];
        ld.global.nc.v2.f32 {%f1, %f2}, [%rd3];
        ld.global.b128 %rq1, [%rd3];
        ld.global.u8 %rs1, [%rd3];
        cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, 0x10;
        cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 4;
        st.global.v4.b32 [ %rd5 + 0 ], { %r1, %r2, %r3, %r4 };
        st.global.b16 [%rd5], %rs1;
        ld.param.b64 %rd1, [copy_words_param_0];
        ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r9];
        st.local.b32 [%rd5], %r1;
    """)

    assert accesses.loads == {16: 3, 8: 2, 4: 1, 1: 1}
    assert accesses.stores == {16: 1, 2: 1}
    assert accesses.bulk_copies == 0


def test_bulk_copies_are_counted_apart() -> None:
    ptx = "cp.async.bulk.tensor.2d.shared::cluster.global.tile [%r1], [%rd1];\n"
    assert read_accesses(ptx + "cp.async.bulk.commit_group;").bulk_copies == 1


def test_an_access_that_cannot_be_read_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"cannot read the width of ld\.global\.v4\.mystery"):
        read_accesses("ld.global.v4.mystery %r1, [%rd1];")


def test_a_large_tile_costs_registers_and_occupancy() -> None:
    # 8192 words: 16 loads of 16 bytes a thread, so a register for each of 64 words and more.
    static = analyse(copied(8192), 90)

    assert static.accesses.loads == {16: 16}
    assert 64 < static.registers <= 128
    assert static.ctas_per_sm == 4  # 65536 / (128 threads x 128 registers)
    assert static.occupancy == 0.25
    assert static.in_flight_bytes == 16 * 16 * 128 * 4


@pytest.mark.parametrize(
    ("capability", "num_warps", "registers", "shared_bytes", "ctas"),
    [
        (90, 4, 32, 0, 16),  # all 64 warps
        (90, 4, 37, 0, 12),  # given out as 40: 51 warps, of which four times 12 are whole CTAs
        (90, 4, 41, 0, 10),  # as 48: 42 warps, and an SM has four schedulers: 40
        (90, 8, 64, 0, 4),
        (90, 4, 255, 0, 2),
        (90, 1, 24, 0, 32),  # no SM holds more CTAs
        (90, 4, 32, 100 * 1024, 2),  # 1 KiB more each
        (80, 4, 32, 100 * 1024, 1),
        (80, 4, 32, 164 * 1024, 0),
    ],
)
def test_ctas_of_an_sm_are_those_of_nvidia_s_calculator(
    capability: int, num_warps: int, registers: int, shared_bytes: int, ctas: int
) -> None:
    assert ctas_per_sm(num_warps, registers, shared_bytes, GPUS[capability]) == ctas


def test_spills_are_seen() -> None:
    static = analyse(copied(8192, num_warps=1), 90)  # 64 loads a thread want 256 registers

    assert static.stack_bytes > 0
    assert static.local_accesses > 0


def test_only_loads_before_the_first_store_are_in_flight_together() -> None:
    static = analyse(computed("one after the other"), 90)

    assert static.accesses.loads == {16: 8}
    assert static.ahead_bytes == 4 * 16


def test_a_loop_leaves_the_issue_ratio_open() -> None:
    static = analyse(walked(), 90)

    assert static.has_loop
    assert static.issue_ratio is None


def test_the_issue_ratio_is_issue_time_over_the_time_of_the_bytes() -> None:
    static = analyse(COPY, 90)
    # 4 warps issue every instruction, on 132 SMs of 4 schedulers at 1.755 GHz; 16 KiB at 3.35 TB/s.
    issue_s = static.instructions * 4 / (132 * 4 * 1.755e9)

    assert not static.has_loop
    assert static.issue_ratio == pytest.approx(issue_s / (2 * 8192 / 3.35e12))


def test_padding_is_not_counted_as_code() -> None:
    # 4 loads, 4 stores and their addresses; the assembler fills up with a dozen NOPs behind.
    assert 30 <= analyse(COPY, 90).instructions <= 60


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ("double", "double_instructions"),
        ("exact division", "calls"),
        ("fused rounding", "fused_instructions"),
        ("fused rounding", "magic_rounding"),
        ("rounding", "magic_rounding"),
    ],
)
def test_arithmetic_that_bars_look_for_is_seen(how: str, field: str) -> None:
    assert getattr(analyse(computed(how), 90), field)


def test_a_rounding_by_a_constant_is_not_fused() -> None:
    assert analyse(computed("rounding"), 90).fused_instructions == 0


def test_the_hardware_s_cast_is_seen_where_there_is_one() -> None:
    assert analyse(computed("cast", "*fp8e4nv"), 90).e4m3_casts == 2048 // 128 // 2
    assert analyse(COPY, 90).e4m3_casts == 0


def refusal(variant: Variant, capability: int) -> str:
    with pytest.raises(BuildError) as caught:
        analyse(variant, capability)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 250
    return text


def test_a_type_that_an_architecture_lacks_is_refused_in_one_line() -> None:
    said = refusal(computed("cast", "*fp8e4nv"), 80)
    assert said.startswith("cast for sm_80: ")
    assert "fp8e4nv not supported" in said


def test_a_failing_assembler_is_told_in_one_line_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = refusal(computed("no instruction"), 90)

    assert said.startswith("no instruction for sm_90: ptxas")
    assert "Repro command" not in said
    assert capfd.readouterr().out == ""  # Triton would print all of the PTX


def test_a_variant_must_declare_exactly_the_arguments_of_its_kernel() -> None:
    less = replace(COPY, types={"src": "*i32", "dst": "*i32"})
    more = replace(COPY, constants={**COPY.constants, "PAGE": 4})

    assert refusal(less, 90).endswith("got a difference in units")
    assert refusal(more, 90).endswith("got a difference in PAGE")


def test_a_pointer_that_a_launch_does_not_look_at_gets_no_hint() -> None:
    # `do_not_specialize` keeps Triton from seeing an address, so it has to be kept here too.
    look_away = triton.jit(do_not_specialize=["src", "units"])
    kernel = look_away(COPY.kernel.fn)
    accesses = analyse(replace(COPY, kernel=kernel), 90).accesses

    assert accesses.loads == {4: TILE_WORDS // 128}
    assert accesses.stores == {16: WIDE}


def test_a_second_look_at_one_source_gives_the_same_record() -> None:
    first: Static = analyse(COPY, 90)
    assert analyse(COPY, 90) == first
