"""int8 in groups along a row: half a step of error at most, in float64, and nothing beside.

Bounds hold for each value. The GPU's division is good to two units in the last place, so there a
code may differ from torch's where a value is beside a tie, and only there.
"""

from collections.abc import Callable

import pytest
import torch

from kvbench_kernels.checks import SCALE_FLOOR
from kvbench_kernels.int8 import dequantise_int8, int8_bytes_moved, quantise_int8
from kvbench_kernels.reference import quantise as reference
from tests.gpu.quantised import (
    ROUNDING,
    ROWS,
    TYPES,
    assert_same_codes,
    guarded,
    hard_rows,
    normal,
    relative_rms,
    with_outliers,
)

BF16, F32 = torch.bfloat16, torch.float32
SHAPES = [(128, 128), (384, 128), (96, 32), (576, 576), (160, 80)]  # width of a row, group
Written = Callable[..., bool]


def quantise(
    x: torch.Tensor, group: int, floor: float = SCALE_FLOOR, padding: int = 0, fill: int = 0xA5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales, with nothing written around either."""
    rows, width = x.shape
    codes = guarded((rows, width), torch.int8, str(x.device), padding, fill)
    scales = guarded((rows, width // group), F32, str(x.device), 0, fill)
    quantise_int8(x, codes.tensor, scales.tensor, group=group, floor=floor)
    codes.assert_untouched_around()
    scales.assert_untouched_around()
    return codes.tensor, scales.tensor


def dequantise(
    codes: torch.Tensor, scales: torch.Tensor, group: int, dtype: torch.dtype, padding: int = 0
) -> torch.Tensor:
    out = guarded((codes.shape[0], codes.shape[1]), dtype, str(codes.device), padding)
    dequantise_int8(codes, scales, out.tensor, group=group)
    out.assert_untouched_around()
    return out.tensor


def assert_scales(scales: torch.Tensor, x: torch.Tensor, group: int, floor: float) -> None:
    exact = reference.scales_of(x, group, 127.0, floor)
    assert float(((scales.double() - exact) / exact).abs().max()) <= 2e-7


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("width", "group"), SHAPES)
def test_scales_fit_each_group_and_codes_are_those_of_torch(
    width: int, group: int, dtype: torch.dtype, padding: int, device: str
) -> None:
    x = hard_rows(width, dtype, device, padding)

    codes, scales = quantise(x, group, padding=padding)

    assert_scales(scales, x, group, SCALE_FLOOR)
    expected = torch.empty(x.shape, dtype=torch.int8, device=device)
    reference.int8_codes(x, expected, scales)
    assert_same_codes(codes, expected, x, scales)


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("width", "group"), SHAPES)
def test_a_value_comes_back_within_half_a_step(
    width: int, group: int, dtype: torch.dtype, padding: int, device: str
) -> None:
    x = hard_rows(width, BF16, device)
    codes, scales = quantise(x, group, padding=padding)

    found = dequantise(codes, scales, group, dtype, padding)

    bound = reference.int8_bound(scales, tuple(x.shape))
    exact = codes.double() * reference.spread(scales.double(), x.shape)
    assert ((exact - x.double()).abs() <= bound).all()
    rounding = ROUNDING[dtype] * found.double().abs() + torch.finfo(dtype).smallest_normal
    assert ((found.double() - x.double()).abs() <= bound + rounding).all()
    expected = torch.empty_like(found)
    reference.dequantise_int8(codes, scales, expected)
    assert torch.equal(found, expected), "not the code times the scale, rounded once"


def test_every_code_is_dequantised_exactly(device: str) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int32, device=device).to(torch.int8).repeat(2, 1)
    scales = torch.tensor([[1.0], [0.37]], device=device)
    assert torch.equal(dequantise(codes, scales, 256, F32), codes.float() * scales)


@pytest.mark.parametrize(
    ("x", "rms"),
    [(normal(1024, 128), 0.0065), (with_outliers(1024, 128), 0.0181)],
    ids=["normal", "outliers"],
)
def test_the_error_as_a_whole_is_what_the_format_is_known_for(
    x: torch.Tensor, rms: float, device: str
) -> None:
    x = x.to(device)
    codes, scales = quantise(x, 128)
    assert relative_rms(dequantise(codes, scales, 128, F32), x) == pytest.approx(rms, rel=0.05)


@pytest.mark.parametrize("floor", [2.0**-126, 1e-6, 1.0])
def test_a_scale_is_never_below_its_floor_and_zeros_get_just_that(
    floor: float, device: str
) -> None:
    x = hard_rows(128, F32, device)

    codes, scales = quantise(x, 128, floor=floor)

    assert_scales(scales, x, 128, floor)
    assert scales[:2, 0].tolist() == pytest.approx([floor, floor], rel=1e-7, abs=0)
    assert (codes[:2] == 0).all()


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("width", [128, 48])
def test_each_code_scale_and_value_is_written_once_and_only_named_bytes_are_read(
    width: int,
    padding: int,
    each_byte_written_once: Written,
    nothing_read_beside: Written,
    device: str,
) -> None:
    x = hard_rows(width, BF16, device, padding)
    codes = guarded((ROWS, width), torch.int8, device, padding).tensor
    scales = guarded((ROWS, 1), F32, device).tensor
    out = guarded((ROWS, width), BF16, device, padding).tensor

    quantise_int8(x, codes, scales, group=width)
    dequantise_int8(codes, scales, out, group=width)

    assert each_byte_written_once(codes, scales, out)
    assert nothing_read_beside(x, codes, scales)


def test_what_was_there_before_does_not_show(device: str) -> None:
    x = hard_rows(160, BF16, device)
    codes, scales = quantise(x, 80, fill=0x00)
    again, scales_again = quantise(x, 80, fill=0xFF)
    assert torch.equal(codes, again)
    assert torch.equal(scales, scales_again)


def test_no_rows_are_no_work(device: str) -> None:
    around = [torch.full((64,), 7.0, device=device) for _ in range(3)]  # outputs begin in it
    x, scales = around[0][:0].view(0, 128), around[1][:0].view(0, 1)
    codes = around[2].view(torch.int8)[:0].view(0, 128)
    quantise_int8(x, codes, scales, group=128)
    dequantise_int8(codes, scales, x, group=128)
    assert all(bool((memory == 7.0).all()) for memory in around)


def test_bytes_moved_count_values_codes_and_scales() -> None:
    assert int8_bytes_moved(1000, 128, 2, 128) == 1000 * (256 + 128 + 4)
    assert int8_bytes_moved(1000, 128, 4, 32) == 1000 * (512 + 128 + 16)


def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(device: str) -> None:
    x, scales = hard_rows(128, BF16, device), torch.zeros(ROWS, 1, device=device)
    codes = torch.zeros(ROWS, 128, dtype=torch.int8, device=device)
    overlapping = torch.zeros(ROWS, 256, dtype=torch.int8, device=device)

    for message, arguments, group in (
        ("got [37, 128] torch.uint8", (x, codes.view(torch.uint8), scales), 128),
        ("codes must be [37, 128] to go with", (x, codes[1:], scales), 128),
        ("scales must be contiguous [37, 1] torch.float32", (x, codes, scales[1:]), 128),
        ("must be a multiple of group 48, got 128", (x, codes, scales), 48),
        ("group must be a multiple of 16 up to 1024, got 8", (x, codes, scales), 8),
        ("must not overlap", (overlapping.view(BF16), overlapping[:, :128], scales), 128),
        ("must be a multiple of 16 bytes, got 136", (x, padded(codes, 8), scales), 128),
    ):
        with pytest.raises(ValueError, match=r"must") as caught:
            quantise_int8(*arguments, group=group)
        assert message in str(caught.value)
        values, some_codes, some_scales = arguments
        with pytest.raises(ValueError, match=r"must") as caught:
            dequantise_int8(some_codes, some_scales, values, group=group)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="floor must be finite and at least"):
        quantise_int8(x, codes, scales, group=128, floor=0.0)


def padded(tensor: torch.Tensor, padding: int) -> torch.Tensor:
    rows, width = tensor.shape
    return tensor.new_zeros(rows, width + padding)[:, :width]
