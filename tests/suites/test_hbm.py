"""The hbm suite: what it asks for, what it refuses, and bodies that move and check real bytes.

The bodies run on the CPU here, where torch's copy stands for cudaMemcpyAsync; those that launch
a kernel are in tests/gpu/test_hbm_kernels.py. Nothing here says anything about a GPU's speed.
"""

import importlib
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from kvbench.errors import CorruptDataError, TierUnavailableError, UsageError
from kvbench.geometry import load_geometry
from kvbench.machine import Cuda, Gpu, Machine, Memory
from kvbench.measure.body import Context, StepBody
from kvbench.measure.clock import CudaClock, HostClock
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.units import GIB, KIB, MIB
from kvbench_suites import hbm
from kvbench_suites.hbm_bodies import NO_GPU_PATH, CopyBlock, Transfer

H100 = Gpu(
    cuda_index=0,
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * GIB,
    hbm_bytes_per_s=3.35e12,
    hbm_source="NVML: 2619 MHz x 5120 bit x 2 / 8",
    pcie_bytes_per_s=63.0e9,
    pcie_source="PCIe 5 x16",
)
WITH_GPU = Machine(gpus=[H100])
WITHOUT_GPU = Machine(cuda=Cuda(nvml_error="NVML: Driver Not Loaded"))
LLAMA = load_geometry("llama-3.1-8b")
COPY: dict[str, Value] = {"block_bytes": 2 * MIB, "engine": "memcpy"}
TRANSFER: dict[str, Value] = {
    "direction": "h2d",
    "memory": "pageable",
    "block_bytes": 32 * KIB,
    "batch": 4,
}
Body = CopyBlock | Transfer


def context(params: dict[str, Value], machine: Machine = WITHOUT_GPU) -> Context:
    return Context(
        params=params,
        geometry=LLAMA,
        machine=machine,
        plan=Plan(),
        seed=7,
        process=0,
        scratch=None,
    )


def small(body: Body, *, arena_bytes: int, step_bytes: int) -> Body:
    body.arena_bytes = arena_bytes
    body.step_bytes = step_bytes
    return body


def copy_body() -> Body:
    """Four slots of 64 KiB, three copies a step."""
    body = small(CopyBlock("cpu"), arena_bytes=256 * KIB, step_bytes=192 * KIB)
    body.set_up(context({"block_bytes": 64 * KIB, "engine": "memcpy"}))
    return body


def transfer_body(direction: str) -> Body:
    """Four batches of four scattered slots of 32 KiB, two batches a step."""
    body = small(Transfer("cpu"), arena_bytes=512 * KIB, step_bytes=256 * KIB)
    body.set_up(context({**TRANSFER, "direction": direction}))
    return body


BODIES: list[Callable[[], Body]] = [
    copy_body,
    lambda: transfer_body("h2d"),
    lambda: transfer_body("d2h"),
]


# ---------------------------------------------------------------- what the suite asks for


def test_without_cuda_every_case_is_skipped_with_the_drivers_own_words() -> None:
    for case in hbm.SUITE.build(LLAMA, WITHOUT_GPU):
        reason = case.operation.unmet(case.params, WITHOUT_GPU)
        assert reason == "no CUDA device: NVML: Driver Not Loaded", case.id


def test_with_a_gpu_every_case_can_run() -> None:
    for case in hbm.SUITE.build(LLAMA, WITH_GPU):
        assert case.operation.unmet(case.params, WITH_GPU) is None, case.id


def test_a_gpu_that_cuda_visible_devices_hides_is_not_used() -> None:
    hidden = Machine(gpus=[Gpu(name="NVIDIA H100", cuda_index=None)])
    reason = hbm.COPY.unmet(COPY, hidden)
    assert reason == "no CUDA device: CUDA_VISIBLE_DEVICES hides all 1 GPUs"


def test_block_sizes_come_from_the_model_and_one_is_for_the_peak() -> None:
    cases = hbm.SUITE.build(LLAMA, WITH_GPU)
    copies = {case.params["block_bytes"] for case in cases if case.operation is hbm.COPY}
    # 16 tokens x 8 heads x 128 x 2 bytes; times K and V of 32 layers
    assert copies == {32 * KIB, 2 * MIB, 256 * MIB}
    gathers = [case.params for case in cases if case.operation is hbm.GATHER]
    assert {(one["page_bytes"], one["block_bytes"]) for one in gathers} == {(32 * KIB, 2 * MIB)}
    transfers = [case.params for case in cases if case.operation is hbm.TRANSFER]
    assert {(one["block_bytes"], one["batch"]) for one in transfers} == {
        (256 * MIB, 1),
        (2 * MIB, 16),
        (32 * KIB, 64),
    }
    assert {(one["direction"], one["memory"]) for one in transfers} == {
        ("h2d", "pinned"),
        ("h2d", "pageable"),
        ("d2h", "pinned"),
        ("d2h", "pageable"),
    }


def test_no_two_cases_share_an_id() -> None:
    ids = [case.id for case in hbm.SUITE.build(LLAMA, WITH_GPU)]
    assert len(ids) == len(set(ids))
    assert "hbm.copy/triton/256MiB" in ids
    assert "hbm.gather/2MiB/page32KiB/x16" in ids
    assert "hbm.transfer/d2h/pinned/2MiB/x16" in ids


def test_quick_cases_are_cases_of_the_suite() -> None:
    every = {case.id for case in hbm.SUITE.build(LLAMA, WITH_GPU)}
    quick = {case.id for case in hbm.build_quick(LLAMA, WITH_GPU)}
    assert quick < every


@pytest.mark.parametrize("operation", hbm.OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_has_a_body_on_the_cuda_clock(operation: Operation) -> None:
    module, _, name = operation.body.partition(":")
    body = getattr(importlib.import_module(module), name)()
    assert isinstance(body, StepBody)
    assert body.clock == "cuda"
    assert not operation.stream


def test_listing_the_suite_does_not_import_torch() -> None:
    code = "import sys, kvbench_suites.hbm; print(sorted({'torch', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what it refuses


def test_a_copy_that_the_gpu_has_no_room_for_is_skipped() -> None:
    reason = hbm.COPY.unmet({**COPY, "block_bytes": 48 * GIB}, WITH_GPU)
    assert reason == "needs 96 GiB of GPU memory and cuda:0 has 80 GiB"
    # A transfer has one side there only.
    wide: dict[str, Value] = {**TRANSFER, "block_bytes": 24 * GIB, "batch": 2}
    assert hbm.TRANSFER.unmet(wide, WITH_GPU) is None
    assert hbm.TRANSFER.unmet({**wide, "batch": 4}, WITH_GPU) is not None


def test_a_size_the_kernel_cannot_move_is_skipped_for_the_kernel_only() -> None:
    odd: dict[str, Value] = {"block_bytes": 1000, "engine": "triton"}
    reason = "the kernel moves whole units of 16 bytes, block_bytes = 1000"
    assert hbm.COPY.unmet(odd, WITH_GPU) == reason
    assert hbm.COPY.unmet({**odd, "engine": "memcpy"}, WITH_GPU) is None
    pages: dict[str, Value] = {"page_bytes": 1000, "block_bytes": 4000, "batch": 1}
    reason = "the kernel moves whole units of 16 bytes, page_bytes = 1000"
    assert hbm.SCATTER.unmet(pages, WITH_GPU) == reason


def test_a_block_of_one_and_a_half_pages_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"block_bytes = 6144 is no multiple of page_bytes = 4096"):
        hbm.GATHER.case({"page_bytes": 4096, "block_bytes": 6144})


# ---------------------------------------------------------------- limits


def test_a_copy_can_reach_half_of_the_hbm_bandwidth() -> None:
    limit, source = hbm.COPY.limit(COPY, WITH_GPU)
    assert limit == 3.35e12 / 2
    assert source == "NVML: 2619 MHz x 5120 bit x 2 / 8; a copy reads and writes: ÷ 2"
    assert hbm.COPY.traffic(COPY) == 2.0


def test_a_transfer_is_limited_by_the_link_as_negotiated() -> None:
    assert hbm.TRANSFER.limit(TRANSFER, WITH_GPU) == (63.0e9, "PCIe 5 x16")
    assert hbm.TRANSFER.traffic(TRANSFER) == 1.0


def test_the_first_visible_gpu_sets_the_limits() -> None:
    other = Gpu(cuda_index=1, hbm_bytes_per_s=1e12, hbm_source="other", pcie_bytes_per_s=1e9)
    limit, _ = hbm.COPY.limit(COPY, Machine(gpus=[other, H100]))
    assert limit == 3.35e12 / 2


@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA GB10"])
def test_pcie_is_no_limit_where_the_host_is_behind_nvlink(name: str) -> None:
    grace = Gpu(cuda_index=0, name=name, pcie_bytes_per_s=63.0e9, pcie_source="PCIe 5 x16")
    limit, reason = hbm.TRANSFER.limit(TRANSFER, Machine(gpus=[grace]))
    assert limit is None
    assert reason.startswith(f"{name} reaches host memory over NVLink-C2C")


def test_a_limit_that_nvml_does_not_tell_is_missing_with_a_reason() -> None:
    silent = Machine(gpus=[Gpu(cuda_index=0, name="NVIDIA GeForce RTX 4090")])
    for operation in hbm.OPERATIONS:
        limit, reason = operation.limit({}, silent)
        assert limit is None
        assert reason.startswith("NVML tells no "), operation.name
        assert operation.limit({}, WITHOUT_GPU) == (
            None,
            "no CUDA device: NVML: Driver Not Loaded",
        )


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize("make", BODIES)
def test_a_step_says_how_many_bytes_it_moved_and_they_verify(make: Callable[[], Body]) -> None:
    body = make()
    before = body.done

    moved = body.step()

    assert moved == (body.done - before) * body.batch * body.slot_bytes > 0
    assert body.verify() == body.done * body.batch * body.slot_bytes  # first pass: all different


@pytest.mark.parametrize("make", BODIES)
def test_every_slot_is_checked_once_all_were_written(make: Callable[[], Body]) -> None:
    body = make()
    for _ in range(7):
        body.step()
    assert body.verify() == body.target.nbytes == body.units * body.batch * body.slot_bytes


@pytest.mark.parametrize("make", BODIES)
def test_one_flipped_bit_is_found_and_named(make: Callable[[], Body]) -> None:
    body = make()
    for _ in range(3):
        body.step()
    body.target[2, 12345] ^= 4

    with pytest.raises(CorruptDataError, match=r"target slot 2 of \d+ differs from byte 12345:"):
        body.verify()


@pytest.mark.parametrize("make", BODIES)
def test_right_bytes_in_the_wrong_slots_are_found(make: Callable[[], Body]) -> None:
    body = make()
    for _ in range(3):
        body.step()
    body.target[[0, 1]] = body.target[[1, 0]]

    with pytest.raises(CorruptDataError, match=r"target slot 0 "):
        body.verify()


def test_a_write_outside_the_slots_that_were_to_be_written_is_found() -> None:
    body = copy_body()  # one of four slots was written in set_up
    body.target[3, 0] = 1
    with pytest.raises(CorruptDataError, match=r"slot 3 .* expected 0x00, as nothing was moved"):
        body.verify()


@pytest.mark.parametrize("make", BODIES)
def test_what_an_earlier_pass_left_behind_is_no_right_answer(make: Callable[[], Body]) -> None:
    body = make()
    while body.done < body.units:
        body.step()
    first_pass = body.target.clone()
    while body.done < 2 * body.units:
        body.step()
    assert not (body.target == first_pass).all(dim=1).any(), "a slot got the same bytes again"

    body.target.copy_(first_pass)  # as if the second pass had moved nothing
    with pytest.raises(CorruptDataError):
        body.verify()


def test_data_that_the_source_lost_before_it_was_moved_is_found() -> None:
    body = copy_body()
    body.source[1, 0] ^= 1
    body.step()
    with pytest.raises(CorruptDataError):
        body.verify()


def test_transfers_touch_slots_in_no_regular_order() -> None:
    body = transfer_body("h2d")
    for slots in (body.source_slots, body.target_slots):
        assert sorted(slots.ravel().tolist()) == list(range(body.units * body.batch))
        assert len(set(np.diff(slots.ravel()).tolist())) > 3
    assert (body.source_slots != body.target_slots).any()


def test_source_bytes_do_not_compress() -> None:
    data = copy_body().source.numpy().tobytes()
    assert len(zlib.compress(data)) > 0.99 * len(data)


def test_a_step_is_long_at_full_size_and_short_of_calls_at_a_small_one() -> None:
    # What a GPU would be given, without running it: 2 GiB of large copies, 1024 small ones.
    def payload(block_bytes: int) -> int:
        body = small(CopyBlock("cpu"), arena_bytes=block_bytes, step_bytes=CopyBlock.step_bytes)
        body.set_up(context({"block_bytes": block_bytes, "engine": "memcpy"}))
        return body.step()

    assert payload(4 * KIB) == 1024 * 4 * KIB
    assert payload(64 * MIB) == CopyBlock.step_bytes == 2 * GIB


def test_buffers_shrink_to_half_of_the_memory_that_is_free() -> None:
    scarce = Machine(memory=Memory(available_bytes=4 * MIB))
    body = CopyBlock("cpu")
    body.set_up(context({"block_bytes": 256 * KIB, "engine": "memcpy"}, scarce))
    assert body.source.nbytes == body.target.nbytes == MIB


def test_a_block_larger_than_the_memory_says_what_to_do() -> None:
    scarce = Machine(memory=Memory(available_bytes=4 * MIB))
    with pytest.raises(TierUnavailableError, match=r"two areas of 2 MiB .* use smaller blocks"):
        CopyBlock("cpu").set_up(context(COPY, scarce))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_body_without_a_cuda_device_says_what_to_check() -> None:
    with pytest.raises(TierUnavailableError, match=r"torch sees no CUDA device: check nvidia-smi"):
        CopyBlock().set_up(context(COPY))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_memory_that_cannot_be_pinned_is_an_unavailable_tier_not_a_crash() -> None:
    body = small(Transfer("cpu"), arena_bytes=MIB, step_bytes=MIB)
    with pytest.raises(TierUnavailableError, match=r"Transfer cannot start on cpu: \w+"):
        body.set_up(context({**TRANSFER, "memory": "pinned"}))


def test_a_run_on_the_cpu_never_claims_the_path_of_a_gpu() -> None:
    assert copy_body().observed().path == NO_GPU_PATH
    paths = {operation.path({**COPY, **TRANSFER}) for operation in hbm.OPERATIONS}
    assert NO_GPU_PATH not in paths


def test_tearing_down_lets_the_arenas_go() -> None:
    body = copy_body()
    body.tear_down()
    assert body.source.nbytes == body.target.nbytes == 0


def test_a_body_can_be_torn_down_before_it_was_set_up() -> None:
    CopyBlock("cpu").tear_down()


def test_a_clock_times_a_body_and_gets_its_bytes() -> None:
    body = copy_body()
    moved, took_s = HostClock().time(body.step)
    assert moved == 192 * KIB
    assert took_s > 0


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["pinned", "pageable"])
@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_a_real_transfer_goes_by_the_path_that_was_asked_for(direction: str, memory: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    body = small(Transfer(), arena_bytes=64 * MIB, step_bytes=16 * MIB)
    params: dict[str, Value] = {**TRANSFER, "direction": direction, "memory": memory}
    body.set_up(context(params))

    moved, took_s = CudaClock().time(body.step)

    assert moved == 16 * MIB
    assert took_s > 0
    assert body.verify() > moved
    assert body.observed().path == hbm.TRANSFER.path(params)


@pytest.mark.gpu
def test_a_real_device_copy_moves_what_it_says() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    body = small(CopyBlock(), arena_bytes=64 * MIB, step_bytes=64 * MIB)
    body.set_up(context(COPY))

    moved, took_s = CudaClock().time(body.step)

    assert moved == 64 * MIB
    assert took_s > 0
    assert body.verify() > moved
    assert body.observed().path == hbm.COPY.path(COPY)
