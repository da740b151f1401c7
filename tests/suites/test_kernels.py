"""The kernels suite: what it sweeps, what it refuses, and what ids say. Data only, no device."""

from typing import Any

import pytest

from kvbench.errors import UsageError
from kvbench.geometry import load_geometry
from kvbench.machine import Machine
from kvbench.measure.body import Context
from kvbench.measure.clock import FakeClock
from kvbench.measure.simulated import SimulatedStep, load_profile
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.units import KIB, MIB
from kvbench_suites import formats, kernels
from kvbench_suites.kernel_suite import SUITE
from tests.suites.test_hbm import WITH_GPU

LLAMA = load_geometry("llama-3.1-8b")
PAGES: dict[str, Value] = {"page_bytes": 32 * KIB, "block_bytes": 2 * MIB}
SHAPE: dict[str, Value] = {**PAGES, "head_dim": 128, "format": "fp8-head"}


def test_every_operation_of_kernels_is_in_the_suite() -> None:
    cases = SUITE.build(LLAMA, WITH_GPU)
    assert {each.name for each in kernels.OPERATIONS} <= {case.operation.name for case in cases}
    swept = {case.params.get("format") for case in cases}
    assert set(formats.FORMATS) - {"kivi-32", "kivi-64"} <= swept, "those need longer blocks"
    longer = SUITE.build(load_geometry("llama-3.1-8b", block_size=64), WITH_GPU)
    assert set(formats.FORMATS) <= {case.params.get("format") for case in longer}


def test_everything_can_run_where_there_is_a_gpu() -> None:
    cases = SUITE.build(LLAMA, WITH_GPU)
    assert [
        case.id for case in cases if case.unmet(WITH_GPU) and case.operation.tier == "hbm"
    ] == []


@pytest.mark.parametrize("model", ["deepseek-v3", "gemma-3-27b", "qwen3-next-80b-a3b"])
def test_models_of_other_kinds_get_the_kernels_that_suit_them(model: str) -> None:
    names = {case.operation.name for case in SUITE.build(load_geometry(model), WITH_GPU)}
    assert "hbm.gather_layers" in names
    assert ("hbm.quantise" in names) == (model != "deepseek-v3"), "a latent has no heads"


@pytest.mark.parametrize(
    ("operation", "one", "other"),
    [
        (kernels.GATHER_LAYERS, {**PAGES, "layers": 16}, {**PAGES, "layers": 32}),
        (kernels.QUANTISE, SHAPE, {**SHAPE, "head_dim": 64}),
        (kernels.QUANTISE, SHAPE, {**SHAPE, "block_tokens": 8}),
        (kernels.QUANTISE, SHAPE, {**SHAPE, "format": "fp8-32"}),
    ],
)
def test_cases_that_differ_have_ids_that_differ(
    operation: Operation, one: dict[str, Value], other: dict[str, Value]
) -> None:
    assert operation.case(one).id != operation.case(other).id


@pytest.mark.parametrize(
    ("operation", "params", "said"),
    [
        (kernels.GATHER_LAYERS, {**PAGES, "layers": 7}, "64 pages is not 7 layers"),
        (kernels.GATHER_LAYERS, {**PAGES, "layers": 128}, "64 pages is not 128 layers"),
        (kernels.QUANTISE, {**SHAPE, "head_dim": 96}, "heads of 96"),
        (kernels.QUANTISE, {**SHAPE, "format": "int4-128", "head_dim": 64}, "groups 128 values"),
        (kernels.QUANTISE, {**SHAPE, "format": "kivi-32"}, "groups 32 tokens"),
        (kernels.QUANTISE, {**SHAPE, "format": "fp4"}, "expected one of fp8-head"),
        (kernels.GATHER_QUANTISE, {**SHAPE, "format": "int4-64"}, "expected one of fp8-head"),
        (
            kernels.RELAYOUT,
            {"source": "sgl_mha", "target": "lmc_2ltd", "layers": 2, "heads": 2, "head_dim": 3},
            "a vector has 6",
        ),
        (
            kernels.SWAP,
            {"direction": "h2d", "block_bytes": 4096, "programs": 65},
            "at most 64",
        ),
    ],
)
def test_what_the_kernels_cannot_do_is_refused_in_one_line(
    operation: Operation, params: dict[str, Value], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        operation.case(params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operation", kernels.OPERATIONS, ids=lambda each: each.name)
def test_every_operation_can_be_simulated(operation: Operation) -> None:
    case = next(case for case in SUITE.build(LLAMA, Machine()) if case.operation is operation)
    body: Any = SimulatedStep(load_profile("steady").devices["hbm"], FakeClock())
    body.set_up(
        Context(
            params=dict(case.params),
            geometry=LLAMA,
            machine=Machine(),
            plan=Plan(),
            seed=1,
            process=0,
            scratch=None,
        )
    )
    assert body.step() > 0


def test_stored_bytes_are_codes_scales_and_minima() -> None:
    def stored(name: str) -> float:
        return formats.stored_share({**SHAPE, "format": name})

    assert stored("raw") == 1.0
    assert stored("fp8-head") == pytest.approx((128 + 4) / 256)
    assert stored("fp8-32") == pytest.approx((32 + 4) / 64)
    assert stored("fp8-tensor") == 0.5
    assert stored("int4-64") == pytest.approx((32 + 8) / 128)
    assert stored("kivi-16") == pytest.approx((8 + 8) / 32)
