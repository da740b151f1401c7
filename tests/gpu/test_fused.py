"""Quantising while gathering, and back while scattering: bit for bit the two steps one by one."""

import os
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from kvbench_kernels import fp8, fused
from kvbench_kernels.fp8 import dequantise_fp8, quantise_fp8
from kvbench_kernels.fused import (
    dequantise_scatter_fp8,
    dequantise_scatter_int8,
    fused_bytes_moved,
    gather_quantise_fp8,
    gather_quantise_int8,
)
from kvbench_kernels.gather import gather_pages, scatter_pages
from kvbench_kernels.int8 import dequantise_int8, quantise_int8
from kvbench_kernels.reference import movement
from kvbench_kernels.reference import quantise as reference
from tests.gpu.quantised import GUARD, guarded, hard_rows

BF16, F32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
PAGES = 7
IDS = [5, 0, -1, 6, 5]  # a repeat and a hole
HOLE = 2
# Values of a page and group: 3 tokens of 8 heads, a page of the usual size and a bit (17 tokens of
# 8 heads of 128), MLA's 576, blocks of 32 in a head of 96.
SHAPES = [(3 * 8 * 128, 128), (17 * 8 * 128, 128), (4 * 576, 576), (5 * 96, 32)]
CASES = [*((*shape, BF16) for shape in SHAPES), (384, 128, torch.float16), (576, 576, F32)]
Kernel = Callable[..., None]
Written = Callable[..., bool]


class Format(NamedTuple):
    gather: Kernel
    scatter: Kernel
    quantise: Kernel
    dequantise: Kernel
    codes: torch.dtype


FORMATS = {
    "fp8": Format(gather_quantise_fp8, dequantise_scatter_fp8, quantise_fp8, dequantise_fp8, E4M3),
    "int8": Format(
        gather_quantise_int8, dequantise_scatter_int8, quantise_int8, dequantise_int8, torch.int8
    ),
}
formats = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


def pages_of(page_values: int, dtype: torch.dtype, device: str, padding: int = 0) -> torch.Tensor:
    """Pages cut out of rows that are hard to quantise."""
    rows = hard_rows(-(-PAGES * page_values // 37 // 16) * 16, dtype, device)
    cache = torch.full((PAGES, page_values + padding), float("nan"), dtype=dtype, device=device)
    cache[:, :page_values] = rows.reshape(-1)[: PAGES * page_values].view(PAGES, page_values)
    return cache[:, :page_values]


def ids_of(numbers: list[int], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def as_bytes(rows: torch.Tensor) -> torch.Tensor:
    return rows.view(torch.uint8)


@formats
@pytest.mark.parametrize(("page_values", "group", "dtype"), CASES)
def test_a_fused_gather_leaves_what_a_gather_and_then_quantising_leave(
    page_values: int, group: int, dtype: torch.dtype, form: Format, device: str
) -> None:
    cache = pages_of(page_values, dtype, device)
    numbers = [number for number in IDS if number >= 0]
    ids = ids_of(numbers, torch.int32, device)
    codes = torch.zeros(len(ids), page_values, dtype=form.codes, device=device)
    scales = torch.zeros(len(ids), page_values // group, device=device)
    rows = torch.zeros(len(ids), page_values, dtype=dtype, device=device)
    expected, expected_scales = torch.zeros_like(codes), torch.zeros_like(scales)

    form.gather(cache, ids, codes, scales, group=group)
    gather_pages(as_bytes(cache), ids, as_bytes(rows))
    form.quantise(rows, expected, expected_scales, group=group)

    assert torch.equal(as_bytes(codes), as_bytes(expected))
    assert torch.equal(scales, expected_scales)


@formats
@pytest.mark.parametrize(("page_values", "group", "dtype"), CASES)
def test_a_fused_scatter_leaves_what_dequantising_and_then_a_scatter_leave(
    page_values: int, group: int, dtype: torch.dtype, form: Format, device: str
) -> None:
    rows = pages_of(page_values, dtype, device)[:3].contiguous()
    ids = ids_of([5, 0, 6], torch.int32, device)
    codes = torch.zeros(3, page_values, dtype=form.codes, device=device)
    scales = torch.zeros(3, page_values // group, device=device)
    form.quantise(rows, codes, scales, group=group)
    cache = torch.full((PAGES, page_values), 0.5, dtype=dtype, device=device)
    expected, values = cache.clone(), torch.zeros_like(rows)

    form.scatter(codes, scales, ids, cache, group=group)
    form.dequantise(codes, scales, values, group=group)
    scatter_pages(as_bytes(values), ids, as_bytes(expected))

    assert torch.equal(cache, expected)


@formats
@pytest.mark.parametrize("id_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("padding", [0, 48])
@pytest.mark.parametrize(("page_values", "group"), SHAPES)
def test_codes_are_those_of_torch_and_neither_holes_nor_surroundings_are_touched(
    page_values: int, group: int, padding: int, id_type: torch.dtype, form: Format, device: str
) -> None:
    cache = pages_of(page_values, BF16, device, padding)
    ids = ids_of(IDS, id_type, device)
    codes = guarded((len(IDS), page_values), form.codes, device, padding)
    scales = guarded((len(IDS), page_values // group), F32, device)

    form.gather(cache, ids, codes.tensor, scales.tensor, group=group)

    codes.assert_untouched_around()
    scales.assert_untouched_around()
    named = ids >= 0
    pages = cache[ids[named].long()]
    expected = torch.zeros(4, page_values, dtype=form.codes, device=device)
    expected_scales = torch.zeros(4, page_values // group, device=device)
    plain = reference.quantise_fp8 if form.codes is E4M3 else reference.quantise_int8
    plain(pages, expected, expected_scales, group=group, floor=1e-12)
    off = (scales.tensor[named] / expected_scales - 1).abs().max()
    assert float(off) <= 3e-7  # two roundings of the kernel, one of the reference
    values = torch.zeros(4, page_values, device=device)
    back = reference.dequantise_fp8 if form.codes is E4M3 else reference.dequantise_int8
    back(codes.tensor[named], scales.tensor[named], values)
    if form.codes is E4M3:
        bound = reference.fp8_bound(pages, scales.tensor[named])
    else:
        bound = reference.int8_bound(scales.tensor[named], tuple(pages.shape))
    assert ((values.double() - pages.double()).abs() <= bound * (1 + 1e-6)).all()
    assert (as_bytes(codes.tensor)[HOLE] == GUARD).all(), "the codes of the hole were written"
    assert (as_bytes(scales.tensor)[HOLE] == GUARD).all(), "the scales of the hole were written"


@formats
@pytest.mark.parametrize("id_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("padding", [0, 48])
@pytest.mark.parametrize(("page_values", "group"), SHAPES)
def test_pages_that_are_not_named_stay_as_they_are(
    page_values: int, group: int, padding: int, id_type: torch.dtype, form: Format, device: str
) -> None:
    numbers = [5, -1, 0, 6]
    rows = pages_of(page_values, BF16, device)[: len(numbers)].contiguous()
    codes = guarded((len(numbers), page_values), form.codes, device, padding).tensor
    scales = torch.zeros(len(numbers), page_values // group, device=device)
    form.quantise(rows, codes, scales, group=group)
    cache = guarded((PAGES, page_values), BF16, device, padding)
    values = torch.zeros(len(numbers), page_values, dtype=BF16, device=device)
    back = reference.dequantise_fp8 if form.codes is E4M3 else reference.dequantise_int8
    back(codes, scales, values)
    ids = ids_of(numbers, id_type, device)
    expected = cache.tensor.clone()
    movement.scatter_pages(values, ids, expected)

    form.scatter(codes, scales, ids, cache.tensor, group=group)

    assert torch.equal(as_bytes(cache.tensor.contiguous()), as_bytes(expected))
    cache.assert_untouched_around()


@formats
@pytest.mark.parametrize("padding", [0, 48])
@pytest.mark.parametrize("shape", [(3 * 8 * 128, 128), (4 * 48, 48)], ids=str)
def test_each_byte_is_written_once_and_only_named_bytes_are_read(
    shape: tuple[int, int],
    padding: int,
    each_byte_written_once: Written,
    nothing_read_beside: Written,
    form: Format,
    device: str,
) -> None:
    page_values, group = shape
    cache = pages_of(page_values, BF16, device, padding)
    ids = ids_of(IDS, torch.int32, device)
    codes = guarded((len(IDS), page_values), form.codes, device, padding).tensor
    scales = torch.zeros(len(IDS), page_values // group, device=device)
    back = guarded((PAGES, page_values), BF16, device, padding).tensor
    holes = ids_of([3, 1, -1, 4, 2], torch.int32, device)

    form.gather(cache, ids, codes, scales, group=group)
    form.scatter(codes, scales, holes, back, group=group)

    rows = [codes[:HOLE], codes[HOLE + 1 :], scales[:HOLE], scales[HOLE + 1 :]]
    assert each_byte_written_once(*rows, back[1:5])
    assert nothing_read_beside(cache[:1], cache[5:], ids, holes, *rows)


@pytest.mark.parametrize(("page_values", "group"), SHAPES)
def test_integer_arithmetic_leaves_the_same_bits_as_the_fp8_type(
    page_values: int, group: int, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    cache = pages_of(page_values, BF16, device)
    ids = ids_of([5, 0, 6], torch.int32, device)
    results = []
    for mode in (None, "soft"):
        if mode:
            monkeypatch.setattr(fused, "cast_mode", lambda _device: "soft")
        codes = torch.zeros(3, page_values, dtype=torch.uint8, device=device)
        scales = torch.zeros(3, page_values // group, device=device)
        back = torch.zeros_like(cache)
        gather_quantise_fp8(cache, ids, codes, scales, group=group)
        dequantise_scatter_fp8(codes, scales, ids, back, group=group)
        results.append((codes, scales, back))

    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@formats
def test_a_page_is_found_beyond_the_reach_of_32_bit_offsets(form: Format, device: str) -> None:
    # Page 1 starts at value 2**31. Memory that is never touched costs the system nothing.
    stride_bytes = 2**32
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else host_bytes
    if free < 1.1 * stride_bytes:
        pytest.skip("needs 5 GiB of memory to place two pages 4 GiB apart")
    memory = torch.empty(stride_bytes + 512, dtype=torch.uint8, device=device)
    cache = memory.view(BF16).as_strided((2, 256), (stride_bytes // 2, 1))
    page = pages_of(256, BF16, device)[3:4]
    cache[1:2] = page
    ids, zero = ids_of([1], torch.int32, device), ids_of([0], torch.int32, device)
    codes = torch.zeros(1, 256, dtype=form.codes, device=device)
    scales = torch.zeros(1, 2, device=device)
    near, near_scales = torch.zeros_like(codes), torch.zeros_like(scales)

    form.gather(cache, ids, codes, scales, group=128)
    form.gather(page, zero, near, near_scales, group=128)
    form.scatter(codes, scales, ids, cache, group=128)
    form.scatter(near, near_scales, zero, page, group=128)

    assert torch.equal(as_bytes(codes), as_bytes(near))
    assert torch.equal(scales, near_scales)
    assert torch.equal(cache[1:2], page)


@formats
def test_no_ids_move_nothing(form: Format, device: str) -> None:
    cache = pages_of(256, BF16, device)
    before = cache.clone()
    ids = ids_of([], torch.int32, device)
    codes = torch.zeros(0, 256, dtype=form.codes, device=device)
    scales = torch.zeros(0, 2, device=device)

    form.gather(cache, ids, codes, scales, group=128)
    form.scatter(codes, scales, ids, cache, group=128)

    assert torch.equal(as_bytes(cache), as_bytes(before))


@formats
def test_the_floor_of_a_scale_is_passed_on(form: Format, device: str) -> None:
    cache = torch.zeros(1, 256, device=device)
    codes = torch.zeros(1, 256, dtype=form.codes, device=device)
    scales = torch.zeros(1, 2, device=device)
    form.gather(cache, ids_of([0], torch.int64, device), codes, scales, group=128, floor=0.25)
    assert scales.tolist() == [[0.25, 0.25]]


def test_the_bytes_of_a_fused_gather_are_each_value_once_in_each_form() -> None:
    page = 16 * 8 * 128
    assert fused_bytes_moved(64, page, 2, 128, 4) == 64 * (page * 3 + 16 * 8 * 4 + 4)


@formats
def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(
    form: Format, device: str
) -> None:
    cache, ids = pages_of(256, BF16, device), ids_of([0, 1], torch.int32, device)
    codes = torch.zeros(2, 256, dtype=form.codes, device=device)
    scales = torch.zeros(2, 2, device=device)
    wrong = torch.zeros(2, 256, dtype=torch.int16, device=device)
    whole = torch.zeros(PAGES, 512, dtype=torch.uint8, device=device)
    odd = torch.zeros(PAGES, 260, dtype=BF16, device=device)[:, :256]

    for message, (a, b, c, d) in (
        ("got [2] torch.float32", (cache, ids.float(), codes, scales)),
        ("page_ids must be contiguous [2]", (cache, ids[None], codes, scales)),
        ("codes must be [2, 256] to go with cache, got [1, 256]", (cache, ids, codes[1:], scales)),
        ("got [2, 256] torch.int16", (cache, ids, wrong, scales)),
        ("scales must be contiguous [2, 2]", (cache, ids, codes, scales[:, :1])),
        ("got [7, 256] torch.int16", (cache.view(torch.int16), ids, codes, scales)),
        ("must be a multiple of 16 bytes, got 520", (odd, ids, codes, scales)),
        ("must not overlap", (whole.view(BF16), ids, whole[:2, 256:].view(form.codes), scales)),
    ):
        for call, arguments in ((form.gather, (a, b, c, d)), (form.scatter, (c, d, b, a))):
            with pytest.raises(ValueError, match=r"must") as caught:
                call(*arguments, group=128)
            assert message in str(caught.value)
    with pytest.raises(ValueError, match="floor must be finite and at least"):
        form.gather(cache, ids, codes, scales, group=128, floor=0.0)


def test_fp8_codes_are_written_in_the_type_that_the_device_has(device: str) -> None:
    codes = torch.zeros(1, 16, dtype=torch.uint8, device=device)
    assert fp8.stored(codes, "soft").dtype is torch.uint8
    assert fp8.stored(codes, "hw").dtype is E4M3
