"""int4 in groups along a row: half a step of error at most, in float64, and nothing written twice.

Bounds hold for each value. The GPU's division is good to two units in the last place, so a code
may differ from plain torch's where a value is within 1e-5 steps of a tie, and only there.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kvbench_kernels.checks import SCALE_FLOOR
from kvbench_kernels.int4 import (
    TILE_VALUES,
    dequantise_int4,
    int4_bytes_moved,
    quantise_int4,
)
from kvbench_kernels.reference import quantise_int4 as reference

GUARD_BYTES = 32768  # more than a program writes
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TYPES = [BF16, FP16, FP32]
GROUPS = [32, 64, 128]
ROUNDING = {BF16: 2.0**-8, FP16: 2.0**-11, FP32: 2.0**-24}  # of a result, relative
ROWS, WIDTH = 11, 384  # a tile and a bit: the last is ragged for every group


class Quantised(NamedTuple):
    codes: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor


class Guarded(NamedTuple):
    """A contiguous tensor in the middle of memory that holds one byte over and over."""

    tensor: torch.Tensor
    memory: torch.Tensor
    fill: int

    def assert_untouched_around(self) -> None:
        assert (self.memory[:GUARD_BYTES] == self.fill).all(), "written in front of the tensor"
        assert (self.memory[-GUARD_BYTES:] == self.fill).all(), "written past the tensor"


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device: str, fill: int = 0xA5) -> Guarded:
    size_bytes = math.prod(shape) * dtype.itemsize
    memory = torch.full((size_bytes + 2 * GUARD_BYTES,), fill, dtype=torch.uint8, device=device)
    inner = memory[GUARD_BYTES : GUARD_BYTES + size_bytes]
    return Guarded(inner.view(dtype).view(shape), memory, fill)


def quantise(
    x: torch.Tensor, group: int, floor: float = SCALE_FLOOR, fill: int = 0xA5
) -> Quantised:
    rows, width = x.shape
    device = str(x.device)
    outputs = (
        guarded((rows, width // 2), torch.uint8, device, fill),
        guarded((rows, width // group), FP32, device, fill),
        guarded((rows, width // group), FP32, device, fill),
    )
    quantised = Quantised(*(output.tensor for output in outputs))
    quantise_int4(x, *quantised, group=group, floor=floor)
    for output in outputs:
        output.assert_untouched_around()
    return quantised


def dequantise(
    quantised: Quantised, group: int, dtype: torch.dtype, fill: int = 0xA5
) -> torch.Tensor:
    rows, half = quantised.codes.shape
    out = guarded((rows, 2 * half), dtype, str(quantised.codes.device), fill)
    dequantise_int4(*quantised, out.tensor, group=group)
    out.assert_untouched_around()
    return out.tensor


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def with_outliers(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    x = normal(rows, width, seed)
    x[:, 5::128] *= 10
    x[:, 69::128] *= 10
    return x


def in_groups(x: torch.Tensor, group: int) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1] // group, group)


def one_by_one(codes: torch.Tensor) -> torch.Tensor:
    """Codes in the order of their values, [rows, width]."""
    return torch.stack((codes % 16, codes // 16), dim=2).flatten(1)


def mixed_signs_of_zero() -> torch.Tensor:
    x = normal(ROWS, WIDTH)
    x[::2] = x[::2].sign() * 0.0
    x[1::2] = x[1::2].relu() * -1.0
    return x


def some_rows_zero() -> torch.Tensor:
    x = normal(ROWS, WIDTH)
    x[::3] = 0.0
    x[1, 32:160] = 0.0
    return x


def one_spike() -> torch.Tensor:
    x = 1e-3 * normal(ROWS, WIDTH)
    x[:, 40] = 3e4
    return x


DATA: dict[str, Callable[[], torch.Tensor]] = {
    "normal": lambda: normal(ROWS, WIDTH),
    "outlier channels": lambda: with_outliers(ROWS, WIDTH),
    "rows of zeros": some_rows_zero,
    "both zeros": mixed_signs_of_zero,
    "one spike": one_spike,
    "100 to 115": lambda: 100 + 15 * normal(ROWS, WIDTH).sigmoid(),
    "-3 to -2": lambda: -3 + normal(ROWS, WIDTH).sigmoid(),
    "up to a power of two": lambda: torch.linspace(-1, 2, WIDTH).repeat(ROWS, 1),
    "a constant a row": lambda: normal(ROWS, 1).repeat(1, WIDTH),
}


class Case(NamedTuple):
    """The rows of one kind of data, and what became of them."""

    x: torch.Tensor
    quantised: Quantised
    back: torch.Tensor


@functools.cache  # all data in one launch: the interpreter takes its time by the launch
def cases(group: int, dtype: torch.dtype, device: str) -> dict[str, Case]:
    x = torch.cat([make() for make in DATA.values()]).to(device, dtype)
    quantised = quantise(x, group)
    parts = (x, *quantised, dequantise(quantised, group, dtype))
    found: dict[str, Case] = {}
    for name, *of_data in zip(DATA, *(part.chunk(len(DATA)) for part in parts), strict=True):
        found[name] = Case(of_data[0], Quantised(*of_data[1:4]), of_data[4])
    return found


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("data", DATA)
def test_every_value_comes_back_within_half_a_step(
    data: str, group: int, dtype: torch.dtype, device: str
) -> None:
    x, quantised, out = cases(group, dtype, device)[data]

    exact, back = in_groups(x.double(), group), in_groups(out.double(), group)
    minimum, maximum = exact.amin(2), exact.amax(2)
    step = ((maximum - minimum) / 15).clamp(min=SCALE_FLOOR)
    assert torch.equal(quantised.minima.double(), minimum)
    assert ((quantised.scales.double() - step).abs() <= 2e-7 * step).all()
    bound = step[:, :, None] / 2 * (1 + 2e-5) + ROUNDING[dtype] * back.abs()
    assert ((back - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("data", DATA)
def test_codes_differ_from_plain_torch_only_next_to_a_tie(
    data: str, group: int, dtype: torch.dtype, device: str
) -> None:
    x, quantised, _ = cases(group, dtype, device)[data]
    expected = Quantised(*(torch.empty_like(part) for part in quantised))
    reference.quantise_int4(x, *expected, group=group, floor=SCALE_FLOOR)

    differ = one_by_one(quantised.codes) != one_by_one(expected.codes)
    scale = quantised.scales.double()[:, :, None]
    steps = (in_groups(x.double(), group) - quantised.minima.double()[:, :, None]) / scale
    next_to_a_tie = ((steps - steps.floor() - 0.5).abs() <= 1e-5).reshape(x.shape)
    assert not (differ & ~next_to_a_tie).any()


def test_a_tie_goes_to_the_even_code(device: str) -> None:
    x = torch.zeros(1, 32)
    x[0, 1] = 15  # a step is 1
    x[0, 2:17] = torch.arange(15) + 0.5
    codes = quantise(x.to(device, BF16), 32).codes.cpu()

    assert one_by_one(codes)[0, 2:17].tolist() == [
        0,
        2,
        2,
        4,
        4,
        6,
        6,
        8,
        8,
        10,
        10,
        12,
        12,
        14,
        14,
    ]


def test_an_even_value_is_in_the_low_half_of_its_byte(device: str) -> None:
    x = (torch.arange(128) % 16).repeat(2, 1)
    x[1] = 15 - x[1]

    codes = quantise(x.to(device, BF16), 64).codes.cpu()

    assert codes[0, :9].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0x10]
    assert codes[1, :9].tolist() == [0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23, 0x01, 0xEF]


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_values_come_back_exactly(dtype: torch.dtype, device: str) -> None:
    constants = torch.tensor([0.0, -0.0, 1.0, -2.71828, 1e-30, 3.1e4, -6e4])
    x = constants.to(device, dtype)[:, None].repeat(1, 64)

    quantised = quantise(x, 32)

    assert (quantised.codes == 0).all()
    assert torch.equal(dequantise(quantised, 32, dtype), x)


def test_the_ends_of_a_group_are_codes_0_and_15_whatever_its_range(device: str) -> None:
    # Were a largest value ever to round to 16, it would carry into its neighbour's code.
    generator = torch.Generator().manual_seed(3)
    ranges = torch.exp(torch.empty(512, 1).uniform_(-20, 80, generator=generator))
    centres = ranges * torch.empty(512, 1).normal_(generator=generator)
    x = (centres + ranges * torch.empty(512, 64).uniform_(generator=generator)).to(device)

    codes = quantise(x, 64).codes
    steps = one_by_one(codes).long()

    assert (steps.gather(1, x.argmax(1, keepdim=True)) == 15).all()
    assert (steps.gather(1, x.argmin(1, keepdim=True)) == 0).all()


def test_a_range_below_the_floor_keeps_the_floor_as_its_scale(device: str) -> None:
    x = (1e-3 * normal(2, 64)).to(device)

    quantised = quantise(x, 64, floor=0.25)
    back = dequantise(quantised, 64, FP32)

    assert (quantised.scales == 0.25).all()
    assert ((back.double() - x.double()).abs() <= 0.125).all()
    assert (quantise(x, 64, floor=2.0**-126).scales < 1e-3).all()


@pytest.mark.parametrize(
    ("group", "plain", "outliers"), [(32, 0.078, 0.103), (64, 0.090, 0.143), (128, 0.100, 0.200)]
)
def test_the_error_of_a_group_size_is_the_published_one(
    group: int, plain: float, outliers: float, device: str
) -> None:
    for x_on_host, expected in ((normal(512, 128), plain), (with_outliers(512, 128), outliers)):
        x = x_on_host.to(device)
        back = torch.empty_like(x)
        reference.dequantise_int4(*quantise(x, group), back, group=group)
        rms = ((back - x).square().mean() / x.square().mean()).sqrt().item()
        assert rms == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_dequantising_is_a_product_and_a_sum_rounded_to_the_nearest(
    group: int, dtype: torch.dtype, device: str
) -> None:
    generator = torch.Generator().manual_seed(group)
    codes = torch.randint(0, 256, (ROWS, WIDTH // 2), dtype=torch.uint8, generator=generator)
    scales, minima = normal(ROWS, WIDTH // group, 1).abs(), normal(ROWS, WIDTH // group, 2)
    quantised = Quantised(codes.to(device), scales.to(device), minima.to(device))

    out = dequantise(quantised, group, dtype)

    steps = in_groups(one_by_one(codes).float(), group)
    expected = (steps * scales[:, :, None] + minima[:, :, None]).reshape(ROWS, WIDTH).to(dtype)
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("group", GROUPS)
def test_each_byte_is_written_once_and_nothing_is_read_beside_the_arguments(
    group: int,
    device: str,
    stored: list[np.ndarray],
    each_byte_written_once: Callable[..., bool],
    nothing_read_beside: Callable[..., bool],
) -> None:
    x = normal(ROWS, WIDTH + 8).to(device, BF16)[:, :WIDTH]
    quantised = quantise(x, group)
    assert each_byte_written_once(*quantised)
    assert nothing_read_beside(x)

    stored.clear()
    back = dequantise(quantised, group, BF16)
    assert each_byte_written_once(back)
    assert nothing_read_beside(x, *quantised)


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_of_what_was_in_the_outputs_remains(group: int, device: str) -> None:
    x = normal(ROWS, WIDTH).to(device, BF16)

    once, again = quantise(x, group, fill=0x00), quantise(x, group, fill=0xFF)

    for part, other in zip(once, again, strict=True):
        assert torch.equal(part, other)
    assert torch.equal(
        dequantise(once, group, BF16, fill=0x00), dequantise(once, group, BF16, fill=0xFF)
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_may_be_padded_on_either_side_and_the_padding_is_kept(
    dtype: torch.dtype, device: str
) -> None:
    padded = normal(ROWS, WIDTH + 24).to(device, dtype)
    x = padded[:, :WIDTH]
    out = torch.full((ROWS, WIDTH + 40), 77.0, dtype=dtype, device=device)

    quantised = quantise(x, 64)
    dequantise_int4(*quantised, out[:, :WIDTH], group=64)

    for part, other in zip(quantised, quantise(x.contiguous(), 64), strict=True):
        assert torch.equal(part, other)
    assert torch.equal(out[:, :WIDTH], dequantise(quantised, 64, dtype))
    assert (out[:, WIDTH:] == 77.0).all()


def test_a_row_is_found_beyond_the_reach_of_32_bit_offsets(device: str) -> None:
    # Row 1 starts at value 2**32, which 32 bits take for 0. Memory never touched costs nothing.
    stride = 2**32
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else host_bytes
    if free < 2.2 * stride:
        pytest.skip("needs 9 GiB of memory to place two rows 8 GiB apart")
    memory = torch.empty(stride + 64, dtype=BF16, device=device)
    far = memory.as_strided((2, 64), (stride, 1))
    near = normal(2, 64).to(device, BF16)
    far.copy_(near)

    quantised = quantise(far, 64)
    far.zero_()
    dequantise_int4(*quantised, far, group=64)

    for part, other in zip(quantised, quantise(near, 64), strict=True):
        assert torch.equal(part, other)
    assert torch.equal(far, dequantise(quantised, 64, BF16))


@pytest.mark.parametrize("shape", [(0, 64), (3, 0)])
def test_no_values_are_no_work(shape: tuple[int, int], device: str) -> None:
    quantised = quantise(torch.empty(shape, dtype=BF16, device=device), 64)
    assert dequantise(quantised, 64, BF16).shape == shape


def test_the_bytes_are_those_of_all_tensors(device: str) -> None:
    x = normal(3, 256).to(device, BF16)
    tensors = (x, *quantise(x, 64))
    assert int4_bytes_moved(3, 256, 64, 2) == sum(tensor.nbytes for tensor in tensors)
    assert TILE_VALUES % max(GROUPS) == 0, "a tile holds whole groups"


def refused(x: torch.Tensor, parts: Quantised, group: int = 64, floor: float = 1e-12) -> str:
    """What both wrappers say of these arguments; `floor` is for the first alone."""
    with pytest.raises(ValueError, match="must") as caught:
        quantise_int4(x, *parts, group=group, floor=floor)
    if floor == SCALE_FLOOR:
        with pytest.raises(ValueError, match="must") as of_inverse:
            dequantise_int4(*parts, x, group=group)
        if "overlap" not in str(caught.value):  # which names what is read first
            assert str(of_inverse.value).replace("out", "x") == str(caught.value)
    return str(caught.value)


def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(device: str) -> None:
    x = normal(4, 256).to(device, BF16)
    good = quantise(x, 64)

    assert "group must be one of (32, 64, 128), got 48" in refused(x, good, group=48)
    assert "x must be [rows, width] torch.bfloat16" in refused(x.double(), good)
    assert "got [256] torch.bfloat16" in refused(x[0], good)
    assert "strides (256, 2)" in refused(x[:, ::2], good)
    assert "strides (64, 1)" in refused(x.as_strided((4, 128), (64, 1)), good)
    assert "width of x must be a multiple of group 64, got 96" in refused(x[:, :96], good)
    signed = good._replace(codes=good.codes.view(torch.int8))
    assert "codes must be contiguous [4, 128] torch.uint8" in refused(x, signed)
    assert "scales must be contiguous [4, 4] torch.float32" in refused(
        x, good._replace(scales=good.scales.half())
    )
    assert "minima must be contiguous [4, 4]" in refused(
        x, good._replace(minima=good.minima[:, :2])
    )


@pytest.mark.parametrize("floor", [0.0, -1.0, 1e-39, math.inf, math.nan])
def test_a_floor_whose_inverse_is_not_finite_is_refused(floor: float, device: str) -> None:
    x = normal(1, 64).to(device)
    assert "floor must be finite and at least 1.18e-38" in refused(x, quantise(x, 64), floor=floor)


def test_tensors_that_are_not_aligned_to_16_bytes_are_refused(device: str) -> None:
    x = normal(4, 136).to(device, BF16)
    good = quantise(x[:, :128], 64)

    odd_start = "x must start at a multiple of 16 bytes"
    assert odd_start in refused(x[:, 4:132], good)
    odd_stride = normal(4, 132).to(device, BF16)[:, :128]
    message = "stride 0 of x in bytes must be a multiple of 16 bytes, got 264"
    assert message in refused(odd_stride, good)
    for name, part in good._asdict().items():
        memory = torch.zeros(part.numel() + 16, dtype=part.dtype, device=device)
        shifted = memory[1 : part.numel() + 1].view(part.shape)
        assert f"{name} must start at a multiple" in refused(
            x[:, :128], good._replace(**{name: shifted})
        )


def test_codes_inside_the_values_are_refused(device: str) -> None:
    x = normal(4, 64).to(device)
    good = quantise(x, 64)
    inside = x.view(torch.uint8).flatten()[:128].view(4, 32)
    assert "must not overlap" in refused(x, good._replace(codes=inside))
