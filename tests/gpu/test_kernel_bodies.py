"""The bodies of the `kernels` suite: the bytes they say are the bytes they moved, or they notice.

On a CUDA device where there is one, in Triton's interpreter otherwise (see conftest.py).
"""

import importlib
from typing import Any

import pytest
import torch

from kvbench.errors import CorruptDataError
from kvbench.geometry import load_geometry
from kvbench.machine import Machine
from kvbench.measure.body import Context
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.units import KIB
from kvbench_suites import formats, kernel_suite, kernels
from kvbench_suites.hbm import unit_bytes
from kvbench_suites.hbm_bodies import NO_GPU_PATH
from kvbench_suites.loop_bodies import Swap

PAGES: dict[str, Value] = {"page_bytes": 4 * KIB, "block_bytes": 8 * KIB, "batch": 2}
SHAPE: dict[str, Value] = {**PAGES, "head_dim": 128, "block_tokens": 16}
SMALL: dict[str, Value] = {"block_bytes": 4 * KIB, "batch": 3}
ROWS: dict[str, Value] = {"layers": 2, "block_tokens": 4, "heads": 2, "head_dim": 64, "batch": 2}
CASES: list[tuple[Operation, dict[str, Value]]] = [
    (kernels.GATHER_LAYERS, {**PAGES, "layers": 1}),
    (kernels.SCATTER_LAYERS, {**PAGES, "layers": 1}),
    (kernels.GATHER_TOKENS, {"token_bytes": 2 * KIB, "batch": 6}),
    (kernels.SCATTER_TOKENS, {"token_bytes": 2 * KIB, "batch": 6}),
    (kernels.CHECKSUM, SMALL),
    *((kernels.SWAP, {**SMALL, "direction": way, "programs": 2}) for way in ("h2d", "d2h")),
    *(
        (kernels.RELAYOUT, {**ROWS, "source": source, "target": target})
        for source, target in kernel_suite.LAYOUT_PAIRS
    ),
    *(
        (operation, {**SHAPE, "block_tokens": 16 if name == "kivi-16" else 8, "format": name})
        for operation in (kernels.QUANTISE, kernels.DEQUANTISE)
        for name in formats.FORMATS
        if name not in {"kivi-32", "kivi-64"}  # as kivi-16, over more tokens than a small page has
    ),
    *((kernels.GATHER_QUANTISE, {**SHAPE, "format": name}) for name in formats.FUSED_FORMATS),
    *((kernels.DEQUANTISE_SCATTER, {**SHAPE, "format": name}) for name in formats.FUSED_FORMATS),
    *((kernels.OFFLOAD, {**SHAPE, "format": name}) for name in formats.LOOP_FORMATS),
    *((kernels.RESTORE, {**SHAPE, "format": name}) for name in formats.LOOP_FORMATS),
]
each_case = pytest.mark.parametrize(
    ("operation", "params"),
    CASES,
    ids=[operation.case(params).id for operation, params in CASES],
)


def set_up(operation: Operation, params: dict[str, Value], device: str) -> Any:
    """Three units, two of them a step."""
    module, _, name = operation.body.partition(":")
    body = getattr(importlib.import_module(module), name)(device)
    case = operation.case(params)
    body.arena_bytes = 3 * unit_bytes(case.params)
    body.step_bytes = 2 * unit_bytes(case.params)
    body.set_up(
        Context(
            params=dict(case.params),
            geometry=load_geometry("llama-3.1-8b"),
            machine=Machine(),
            plan=Plan(),
            seed=11,
            process=0,
            scratch=None,
        )
    )
    return body


@each_case
def test_a_step_moves_the_bytes_it_says_and_they_verify_in_a_later_pass_too(
    operation: Operation, params: dict[str, Value], device: str
) -> None:
    body = set_up(operation, params, device)
    assert body.units == 3
    assert body.step() == 2 * unit_bytes(params)
    assert body.verify() == 3 * unit_bytes(params), "one in set_up, two in a step"
    body.step()
    assert body.verify() == 3 * unit_bytes(params)
    expected = operation.path(params) if device == "cuda" else NO_GPU_PATH
    assert body.observed().path == expected
    body.tear_down()


def results(body: Any) -> list[torch.Tensor]:
    """What a body's launches write, in whatever form."""
    for name in ("_stored", "_host"):
        if hasattr(body, name) and "Dequantise" not in type(body).__name__:
            if type(body).__name__ == "Restore":
                break
            return [tensor for unit in getattr(body, name) for tensor in unit]
    return [body._sums] if hasattr(body, "_sums") else [body.target]


@each_case
def test_damage_is_found_and_what_an_earlier_pass_left_behind_is_no_right_answer(
    operation: Operation, params: dict[str, Value], device: str
) -> None:
    body = set_up(operation, params, device)
    while body.done < body.units:
        body.step()
    for tensor in results(body):
        data = tensor.view(torch.uint8).flatten()
        kept = data.clone()
        data[-1] ^= 0x7F  # of a float, its sign aside, the exponent
        data[0] ^= 0x7F
        with pytest.raises(CorruptDataError, match="Do not trust this device"):
            body.verify()
        data.copy_(kept)
    assert body.verify() > 0

    body._move = lambda _source, _target: None
    for _ in range(body.units):
        body._unit()
    with pytest.raises(CorruptDataError):
        body.verify()


@each_case
def test_traffic_is_what_the_kernel_reads_and_writes(
    operation: Operation, params: dict[str, Value], device: str
) -> None:
    del device
    traffic = operation.traffic(operation.case(params).params)
    if operation in {kernels.OFFLOAD, kernels.RESTORE}:
        assert traffic == pytest.approx(formats.stored_share(params)), "of the link"
    elif operation in {kernels.SWAP, kernels.CHECKSUM}:
        assert traffic == 1.0
    elif "format" in params:
        assert traffic == pytest.approx(1 + formats.stored_share(params))
    else:
        assert traffic == 2.0


def test_swap_pairs_every_target_with_two_sources(device: str) -> None:
    body = set_up(kernels.SWAP, {**SMALL, "direction": "h2d", "programs": 2}, device)
    assert isinstance(body, Swap)
    seen = {(body._source_of(k), k % body.units) for k in range(4 * body.units)}
    assert len(seen) == 2 * body.units
